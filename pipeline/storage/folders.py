"""Folders of a bucket: brought here, worked with as folders of this machine, and saved file by file where one
changed.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.storage import copies, stores
from pipeline.storage.copies import UNFINISHED

AT_A_TIME = 8  # requests
LAST = "meta.json"  # a folder with it is whole: it is written after all others, and deleted before them


@dataclass(frozen=True)
class Known:
    """A file as it was when it and its object were last the same."""

    etag: str
    bytes: int
    changed: int  # ns


Index = dict[str, Known]  # by its path below the folder


def everything(name: str) -> bool:
    return True


def bring(folder: Path, wanted: Callable[[str], bool] = everything) -> None:
    """Makes the files of a folder here what the bucket has, those whose path below it is `wanted`; what is
    only here stays. Nothing is done for a plain folder.

    A listing may be old: what it lacks is deleted here only where there is no such object any more.
    """
    if stores.address_of(folder) is None:
        return
    place = stores.located(folder)
    with _index(place) as index:
        objects = {each.path.relative_to(folder).as_posix(): each for each in stores.below(folder)}

        def bring_file(name: str) -> None:
            file, known = place / name, index.get(name)
            # else it may be newer here
            if known is None or known.etag != objects[name].etag or not file.exists():
                _, etag = copies.download(folder / name, file)
                index[name] = _known(file, etag)

        _each(bring_file, filter(wanted, objects))
        for name in sorted(filter(wanted, index.keys() - objects.keys()), key=_order, reverse=True):
            if stores.head(folder / name) is None:
                (place / name).unlink(missing_ok=True)
                del index[name]
        _remove_empty(place)


def save(folder: Path, wanted: Callable[[str], bool] = everything, *, source: Path | None = None) -> None:
    """Makes the bucket have the files of a folder as they are here, those whose path below it is `wanted`:
    those that changed are written, and those that are here no more are deleted. Nothing is done for a plain
    folder.

    `source` is where they lie, if not at the folder's own local copies.
    """
    if stores.address_of(folder) is None:
        return
    place = source or stores.located(folder)
    with _index(place) as index:
        names = [name for name in _files(place) if wanted(name)]

        def save_file(name: str) -> None:
            with suppress(FileNotFoundError):  # whoever writes there may have deleted it meanwhile
                _save_file(folder / name, place / name, name, index)

        _each(save_file, names)
        gone = sorted(filter(wanted, index.keys() - set(names)), key=_order, reverse=True)
        first = [name for name in gone if PurePosixPath(name).name == LAST]
        stores.delete_all([folder / name for name in first])
        stores.delete_all([folder / name for name in gone if name not in first])
        for name in gone:
            del index[name]


def _save_file(path: Path, file: Path, name: str, index: Index) -> None:
    state, known = file.stat(), index.get(name)
    if known is None or (known.bytes, known.changed) != (state.st_size, state.st_mtime_ns):
        index[name] = Known(stores.put(path, file), state.st_size, state.st_mtime_ns)


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder to write to, saved at the end of the block: a plain folder is its own, one of a bucket has its
    files in a place of this machine.
    """
    address = stores.address_of(folder)
    if address is None:
        yield folder
        return
    place = stores.cache_folder() / "written" / hashlib.sha256(address.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    yield place
    save(folder, source=place)


def remove(folder: Path) -> None:
    """With all below it, here and in the bucket."""
    import shutil

    shutil.rmtree(stores.located(folder), ignore_errors=True)
    save(folder)
    if stores.address_of(folder):
        stores.delete_all([each.path for each in stores.below(folder)])


def bring_each(folder: Path, wanted: Callable[[str], bool] = everything) -> None:
    """`bring` of each folder in a folder."""
    if stores.address_of(folder) is None:
        return
    below = (each.path.relative_to(folder).parts for each in stores.below(folder))
    for name in sorted({parts[0] for parts in below if len(parts) > 1}):
        bring(folder / name, wanted)


def _each(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Many requests at a time; those of LAST when all others are through."""
    ordered = sorted(names, key=_order)
    first = [name for name in ordered if not _order(name)[0]]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for some in (first, ordered[len(first) :]):
            list(pool.map(work, some))  # raises what one of them raised


def _order(name: str) -> tuple[bool, str]:
    return PurePosixPath(name).name == LAST, name


def _files(place: Path) -> list[str]:
    """Paths below a folder, without what is unfinished."""
    found = []
    for above, folders, files in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(UNFINISHED)]
        for name in files:
            if not name.startswith((UNFINISHED, copies.ETAG)):
                found.append((Path(above) / name).relative_to(place).as_posix())
    return found


def _remove_empty(place: Path) -> None:
    """Folders that lost all their files."""
    for above, folders, files in os.walk(place, topdown=False):
        if not folders and not files and Path(above) != place:
            Path(above).rmdir()


def _known(file: Path, etag: str) -> Known:
    state = file.stat()
    return Known(etag, state.st_size, state.st_mtime_ns)


@contextmanager
def _index(place: Path) -> Iterator[Index]:
    """What is known of a folder's files, kept at the end of the block, also where it failed on its way; one
    process at a time.
    """
    mark = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    path = stores.cache_folder() / "folders" / f"{mark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            index = {name: Known(*facts) for name, facts in json.load(file).items()}
        except (ValueError, TypeError, AttributeError):  # the first time, or cut short
            index = {}
        try:
            yield index
        finally:
            file.seek(0)
            file.truncate()
            json.dump({name: (it.etag, it.bytes, it.changed) for name, it in index.items()}, file)
