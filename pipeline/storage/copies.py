"""Local copies of a bucket's objects: downloaded once, whole, and deleted where they take too much."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline import MillError
from pipeline.storage import stores

LIMIT = "CONTROLMILL_CACHE_BYTES"  # environment variable
UNFINISHED = ".tmp-"  # before the name of a file in the making
ETAG = ".etag-"  # before the name of a copy: the file beside it that holds its ETag
TRUSTED = 600.0  # seconds in which a process does not ask again whether its copy is what the store has
ROOMY = 0.9  # of the limit: what stays when copies are deleted

_checked: dict[Path, float] = {}  # copy -> when this process last knew it to be what the store has
_downloaded = 0  # bytes since this process last looked at the size of the cache


def copy_of(path: Path, *, trusted: float = TRUSTED) -> Path:
    """The local copy of an object, downloaded where it is not there yet or is not what the store has; a plain
    path as it is. FileNotFoundError where there is no such object.

    Processes that want the same object download it once. Copies are deleted, the least recently used first,
    where they take more than $CONTROLMILL_CACHE_BYTES.
    """
    if stores.address_of(path) is None:
        return path
    place = stores.located(path)
    if time.monotonic() - _checked.get(place, -1e9) < trusted and place.exists():
        return place
    size = 0
    with _etag_file(place) as file:
        known = file.read() if place.exists() else ""
        try:
            size, etag = download(path, place, known)
            _write_etag(file, etag)
        except FileNotFoundError:
            place.unlink(missing_ok=True)
            raise
        now = time.time_ns()  # the file system's own clock is too coarse to tell what was used last
        os.utime(file.fileno(), ns=(now, now))
    _checked[place] = time.monotonic()
    _make_room(size, place)
    return place


def has_copy(path: Path) -> bool:
    """Brings the copy of a small object up to date, now; False where there is no such object.

    Of a plain path: whether it is a file.
    """
    try:
        return copy_of(path, trusted=0.0).is_file()
    except FileNotFoundError:
        return False


def saved(path: Path, etag: str) -> None:
    """The file at `path` has just been written to the store as it is here, and stays as its copy."""
    place = stores.located(path)
    with _etag_file(place) as file:
        _write_etag(file, etag)
    _checked[place] = time.monotonic()


def etag_of_copy(path: Path) -> str:
    """The ETag that the copy of an object came with; '' where there is no copy."""
    try:
        return _etag_path(stores.located(path)).read_text()
    except OSError:
        return ""


def forget(path: Path) -> None:
    """Deletes the local copy alone, or a plain file."""
    place = stores.located(path)
    _checked.pop(place, None)
    place.unlink(missing_ok=True)
    if stores.address_of(path):
        _etag_path(place).unlink(missing_ok=True)


def _etag_path(place: Path) -> Path:
    return place.with_name(f"{ETAG}{place.name}")


@contextmanager
def _etag_file(place: Path) -> Iterator[IO[str]]:
    """Of a copy, locked: whoever holds it may change the copy."""
    path = _etag_path(place)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:  # deleted with its copy, while this waited
                same = False
            if same:
                file.seek(0)
                yield file
                return


def _write_etag(file: IO[str], etag: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(etag)
    file.flush()


def download(path: Path, place: Path, known: str = "") -> tuple[int, str]:
    """Puts an object into a file, whole or not at all; returns size and ETag, size 0 where the file has the
    ETag `known` and that is still right. FileNotFoundError where there is no such object.
    """
    from obstore.exceptions import NotModifiedError

    options = {"if_none_match": known} if known else {}
    temporary = place.with_name(f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}-{place.name}")

    def ask(store: Any, key: str) -> Mapping[str, Any]:
        answer = store.get(key, options=options)
        with temporary.open("wb") as file:
            for chunk in answer.stream(min_chunk_size=2**20):
                file.write(chunk)
        meta: Mapping[str, Any] = answer.meta
        return meta

    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        meta = stores.asked(path, ask)
        temporary.replace(place)
    except NotModifiedError:
        return 0, known
    finally:
        temporary.unlink(missing_ok=True)
    return meta["size"], meta["e_tag"] or ""


def cache_bytes() -> int:
    """How much the copies of this machine may take. MillError where the variable is no number."""
    given = os.environ.get(LIMIT, "")
    try:
        return int(float(given)) if given else 50 * 10**9
    except ValueError:
        raise MillError(f"{LIMIT} is {given!r}: set it to a number of bytes, such as 50e9.") from None


def _make_room(size: int, kept: Path) -> None:
    """Looks at the cache when this process has downloaded a noticeable part of what it may hold."""
    global _downloaded
    _downloaded += size
    limit = cache_bytes()
    if not size or _downloaded < limit / 64:
        return
    _downloaded = 0
    copies = []
    for etag in stores.cache_folder().rglob(f"{ETAG}*"):
        place = etag.with_name(etag.name.removeprefix(ETAG))
        # catalogs and manifests are small, and are worked with in place
        if place.suffix == ".parquet":
            with suppress(OSError):
                copies.append((etag.stat().st_mtime_ns, place.stat().st_size, place))
    total = sum(bytes_ for _, bytes_, _ in copies)
    for _, bytes_, place in sorted(copies) if total > limit else ():
        if place == kept:
            continue
        forget(place)
        total -= bytes_
        if total <= ROOMY * limit:
            return


def remove(path: Path) -> None:
    """An object with its copy here, or a plain file; nothing where there is none."""
    forget(path)
    if stores.address_of(path):
        stores.delete(path)
