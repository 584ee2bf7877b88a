"""What the name of a file tells: whether it is an image, and whether a glob means it."""

import re
from collections.abc import Sequence

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
