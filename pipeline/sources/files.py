"""Files: which ones a path names, what they look like from outside, and what they hold."""

import errno
import glob
import os
import stat
from pathlib import Path, PurePosixPath

from annotate.weights import package_folder
from pipeline import MillError
from pipeline.sources.far.addresses import local_path, scheme_of
from pipeline.sources.names import Globs
from pipeline.sources.raw import MAX_BYTES, RawImage, Unreadable
from pipeline.sources.tree import walk

PACKAGE = "package://"  # package://skimage/data/coffee.png: a file that an installed package ships
ABSENT = "-"  # stamp of a file that is not there
# what a share says that drops out; the file may be as whole as it was
SHARE_ERRORS = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNABORTED,
    errno.EREMOTEIO, errno.ENODEV, errno.ENXIO,
}  # fmt: skip


def resolve(path: str) -> Path:
    """The absolute path, with `~` and links followed. MillError where the text can't be a path."""
    if scheme := scheme_of(local_path(path)):
        raise MillError(
            f"source.path: this kind of source is not read from {scheme}:// addresses: copy the data here, or"
            " name its images in a list."
        )
    try:
        return Path(local_path(path)).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise MillError(f"source.path: {path!r} is no path: {str(error).rstrip('.')}.") from error


def matching(path: str, *endings: str, notes: list[str] | None = None) -> list[Path]:
    """The files that `path` names and that end so, absolute and sorted: one file, all below a folder, or a
    glob; perhaps none.

    A link keeps its own name: in the hub's cache only that has the ending. `notes` takes sentences about
    folders that were left out.
    """
    folder = resolve(path)
    if folder.is_dir():
        tree = walk(folder, Globs([]), None)
        files = [Path(each.path, name) for each in tree.folders for name in each.files]
        if notes is not None:
            notes.extend(f"{folder}: {note}" for note in tree.notes())
            notes.extend(f"{closed.uri}: {closed.problem}" for closed in tree.closed)
    else:
        path = str(Path(local_path(path)).expanduser())
        files = [Path(name).absolute() for name in glob.glob(path, recursive=True)]  # noqa: PTH207 - an absolute pattern
    return sorted(inner for inner in files if inner.name.lower().endswith(endings) and inner.is_file())


def stamp_of(state: os.stat_result) -> str:
    """Size and time of a file: whatever was read of it holds as long as this stays."""
    return f"{state.st_size}:{state.st_mtime_ns}"


def stamp(path: str) -> str:
    """Raises OSError where the file is not there."""
    return stamp_of(os.stat(path))  # noqa: PTH116 - a read of one row needs no Path


def stamp_or_absent(path: str) -> str:
    try:
        return stamp(path)
    except (OSError, ValueError):
        return ABSENT


def nowhere(path: str, kind: str) -> MillError:
    return MillError(f"source.path: {path} names no {kind}: set it to a file, a folder or a glob of {kind}s.")


def read_file(raw: RawImage) -> bytes:
    """The raw bytes; raises Unreadable when the file is not there to be read, or changes meanwhile."""
    return read_path(locate(raw.uri))


def read_path(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `most` bytes; raises Unreadable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device might never end
            raise Unreadable("not a file")
        # whatever takes the file's place now is not waited for
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise Unreadable("not a file")
            if before.st_size > most:
                raise Unreadable(f"too large: {before.st_size} bytes")
            data = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror}") from error
    except ValueError as error:
        raise Unreadable(f"no path: {error}") from error
    if len(data) != before.st_size or stamp_of(before) != stamp_of(after):
        raise Unreadable("it changed while it was read")
    if not data:
        raise Unreadable("empty file")
    return data


def may_pass(raw: RawImage, error: BaseException) -> bool:
    """Whether what could not be read may be readable soon: it was there when it was listed and is gone, or
    its share dropped out. False of addresses far away, which are asked several times as it is.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError) or raw.problem or raw.reader in ("url", "object"):
        return False
    was_there = raw.stamp.rpartition(" ")[2] != ABSENT
    return cause.errno in SHARE_ERRORS or (cause.errno == errno.ENOENT and was_there)


def locate(uri: str) -> Path:
    """The file of an address; raises Unreadable where a package:// address names none."""
    if not uri.startswith(PACKAGE):
        return Path(uri)
    package, _, inner = uri.removeprefix(PACKAGE).partition("/")
    if ".." in PurePosixPath(inner).parts:
        raise Unreadable("a package:// address can't leave its package")
    if not package.isidentifier():
        raise Unreadable(f"{package!r} is no package's name")
    folder = package_folder(package)
    if folder is None:
        raise Unreadable(f"the package {package} is not installed")
    return folder / inner
