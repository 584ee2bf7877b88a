"""What the name of a file tells: whether it is an image, whose map it is, and whether a glob means it."""

import os
import re
from collections.abc import Sequence
from functools import cached_property

# what Pillow reads here (pipeline/dataset/images.py), as extensions of files and of members of tars
READABLE = {
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm",
    "pbm", "pnm", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "tga", "icb", "vda", "vst", "ico",
    "avif", "avifs",
}  # fmt: skip
# pictures that need an extra or can't be read: each is a row that says so
OTHER_PICTURES = {
    "heic", "heif", "hif", "jxl", "psd", "svg",
    "arw", "cr2", "cr3", "dng", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "srw",
}  # fmt: skip
PICTURES = READABLE | OTHER_PICTURES
MAGIC_BYTES = 16  # of the start of a file whose name has no extension
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avi[fs]|hei[cfmsx]|he[vi][cmsx]|mif1|msf1)"
    rb"|\xff\x0a|\0\0\0\x0cJXL |8BPS",
    re.DOTALL,
)


def split(name: str) -> tuple[str, str]:
    """A file's name as its stem and its last extension, which is in lower case and without its dot, or ""."""
    dot = name.rfind(".")
    return (name[:dot], name[dot + 1 :].lower()) if 0 < dot < len(name) - 1 else (name, "")


def starts_as_picture(data: bytes) -> bool:
    """Whether a file that begins with these bytes says that it is a picture."""
    return MAGIC.match(data) is not None


class Globs:
    """Patterns of `include` and `exclude`: one without / means a name at any depth, one with / a path below
    the source; ** goes through folders.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = [(pattern, re.compile(_expression(pattern))) for pattern in patterns]
        self.unused = set(patterns)

    def match(self, path: str) -> bool:
        """Whether any pattern means this file or folder; `path` is relative, with / between its parts."""
        for pattern, expression in self.patterns:
            if expression.fullmatch(path if "/" in pattern else path.rpartition("/")[2]):
                self.unused.discard(pattern)
                return True
        return False


def _expression(pattern: str) -> str:
    """A glob as a regular expression."""
    parts = []
    position = 0
    pattern = pattern.removeprefix("./").rstrip("/") or pattern
    for token in re.finditer(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]", pattern):
        parts.append(re.escape(pattern[position : token.start()]))
        position = token.end()
        match token.group():
            case "**/":
                parts.append("(?:.*/)?")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case characters:
                inner = characters[1:-1].replace("\\", r"\\").replace("[", r"\[")
                parts.append(f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]")
    return "(?s:" + "".join(parts) + re.escape(pattern[position:]) + ")"


class MapTemplate:
    """A `provided` path or mask, {folder}/{stem}.png: where the map of each image below a folder lies."""

    def __init__(self, root: str, template: str) -> None:
        self.root, self.template = root, template
        self.fixed = "{" not in template  # one file for the whole set

    def beside(self, folder: str, name: str) -> str:
        """The file that belongs to an image; `folder` is the image's below the root, "." for the root."""
        inner = self.template.format(folder=folder, stem=split(name)[0], name=name)
        return os.path.normpath(os.path.join(self.root, inner))  # noqa: PTH118 - for each of many images

    def names(self, path: str) -> bool:
        """Whether a file below the root is a map of some image, be that image there or not; `path` is
        relative.
        """
        return self._expression is not None and self._expression.fullmatch(path) is not None

    @cached_property
    def _expression(self) -> re.Pattern[str] | None:
        """None where only the images themselves can tell: the template names every file, or leads upwards."""
        template = self.template.removeprefix("./")
        if ".." in template.split("/") or template.removeprefix("{folder}/") in ("{name}", "{stem}"):
            return None
        pieces = re.split(r"(\{folder\}/|\{[^}]*\})", template)
        return re.compile("".join(map(_piece, pieces)), re.DOTALL)


def _piece(piece: str) -> str:
    """A part of a template, text or {field}, as a regular expression."""
    if not piece.startswith("{"):
        return re.escape(piece)
    if piece.startswith("{folder"):
        return "(?:.*/)?" if piece == "{folder}/" else ".*"
    return "[^/]+"
