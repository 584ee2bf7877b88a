"""Pictures that somebody else made for a task, in a folder: what is told about them, and their bytes."""

import csv
import functools
import io
import json
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import MillError
from pipeline.storage.workspace import fingerprint, sha256_file

FACTS, FAILED = "submission.json", "failed.csv"
# of submission.json: what a reader of the leaderboard must be told
TOLD = ("task", "model", "url", "base", "licence", "protocol", "who", "date")
MAY_BE_EMPTY = ("url",)
LONGEST = 2000  # characters of one of them
MOST = 2**20  # bytes of submission.json and of failed.csv
OWN, SHUFFLED, PLAIN = "", "shuffled", "plain"  # folders: the condition's own hint, another image's, none
LARGEST = 2**28  # bytes of one picture


@dataclass(frozen=True)
class Submission:
    """One model's pictures for one task."""

    facts: Mapping[str, str]  # of TOLD
    folders: Mapping[str, Path]  # OWN, and SHUFFLED and PLAIN where they are there
    # by folder: file -> why the model made none
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def files(self, folder: str) -> dict[str, Path]:
        """Name -> path of each picture of one folder."""
        return {path.name: path for path in sorted(self.folders[folder].iterdir()) if path.suffix == ".png"}

    def hashes(self, folder: str) -> dict[str, str]:
        """Name -> sha256 of the bytes of each picture of one folder."""
        files = self.files(folder)
        looks = tuple(
            (str(path), status.st_size, status.st_mtime_ns)
            for path in files.values()
            for status in [path.stat()]
        )
        return dict(zip(files, _hashes(looks), strict=True))

    def fingerprint(self, folder: str) -> str:
        """Of the names and bytes of the pictures, and of what failed."""
        return fingerprint([self.hashes(folder), sorted(self.failed.get(folder, ()))])


def read(folder: Path, shuffled: Path | None = None, plain: Path | None = None) -> Submission:
    """MillError in one sentence: no such folder, or a submission.json or failed.csv that can't be read.
    Whether the pictures are what was asked for, `admission.faults` says.
    """
    if not folder.is_dir():
        raise MillError(f"{folder} is no folder of pictures: name the one that holds {FACTS}.")
    folders = {OWN: folder}
    for name, given in ((SHUFFLED, shuffled), (PLAIN, plain)):
        if given is not None and not given.is_dir():
            raise MillError(
                f"{given} is no folder of pictures: leave the key `{name}` out, or mend the path."
            )
        if (place := given or folder / name).is_dir():
            folders[name] = place
    failed = {name: _failed(place / FAILED) for name, place in folders.items()}
    return Submission(_facts(folder / FACTS), folders, failed)


def picture(path: Path, width: int, height: int) -> np.ndarray:  # uint8 [h, w, 3] RGB
    """ValueError: no PNG of 8-bit RGB in this size; its words say what pictures are that are refused."""
    from PIL import Image

    if path.is_symlink() or not path.is_file():
        raise ValueError("links, folders or devices where files are asked for")
    size = path.stat().st_size
    if not size:
        raise ValueError("empty files")
    if size > LARGEST:
        raise ValueError(f"files of over {LARGEST:,} bytes")
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("no PNG files: every other format may lose something, or was not asked for")
    *size_of, depth, colour = struct.unpack(">IIBB", data[16:26])
    if size_of != [width, height]:
        raise ValueError(
            f"of another size than asked for ({size_of[0]}×{size_of[1]} instead of {width}×{height})"
        )
    if (depth, colour) != (8, 2):
        raise ValueError("not of 8-bit RGB (no alpha, palette, grey or 16 bits)")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise ValueError("animations")
            opened.load()
            return np.array(opened)
    except (OSError, SyntaxError, ValueError, struct.error, MemoryError) as error:
        if isinstance(error, ValueError) and str(error) == "animations":
            raise
        raise ValueError("broken PNG files") from error


def _facts(path: Path) -> dict[str, str]:
    wanted = ", ".join(TOLD)
    stored = _small(path, f"Write it beside the pictures, with {wanted}.")
    try:
        facts = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise MillError(f"{path} is no JSON ({str(error)[:100]}): mend it.") from error
    if not isinstance(facts, dict):
        raise MillError(f"{path} holds no object with {wanted}: write one.")
    for name in TOLD:
        value = facts.get(name)
        if not isinstance(value, str) or not (value.strip() or name in MAY_BE_EMPTY):
            raise MillError(f"{path}: {name!r} is missing or no text: it wants {wanted}, each a text.")
        if len(value) > LONGEST:
            raise MillError(f"{path}: {name!r} has over {LONGEST:,} characters: shorten it.")
    return {name: facts[name].strip() for name in TOLD}


def _failed(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(_small(path, "").decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MillError(f"{path} is no CSV in UTF-8 ({str(error)[:100]}): mend it.") from error
    found: dict[str, str] = {}
    for row in rows:
        if None in row or not row.get("file") or row.get("reason") is None:
            raise MillError(
                f"{path}: a row without `file` and `reason`: write a header of these two and a row a file."
            )
        if row["file"] in found:
            raise MillError(f"{path} names {row['file'][:80]!r} twice: keep one of the rows.")
        found[row["file"]] = row["reason"][:LONGEST] or "the model made none"
    return found


def _small(path: Path, remedy: str) -> bytes:
    if not path.is_file():
        raise MillError(f"{path} is not there. {remedy}")
    if path.stat().st_size > MOST:
        raise MillError(f"{path} has over {MOST:,} bytes: it is no {path.name}.")
    return path.read_bytes()


@functools.cache
def _hashes(files: tuple[tuple[str, int, int], ...]) -> list[str]:
    """Hashed once a process, as long as sizes and times stay as they are."""

    def sha256(file: tuple[str, int, int]) -> str:
        return sha256_file(Path(file[0]))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(sha256, files))
