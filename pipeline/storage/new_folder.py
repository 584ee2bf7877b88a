"""A folder that a command makes for its user: whole, or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import MillError
from pipeline.storage.workspace import TEMPORARY, stopping


@contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """A folder beside `dest` that takes its name when all is in it; what a killed export left there is swept
    by the next.
    """
    _must_be_free(dest)
    staging = dest.with_name(f"{TEMPORARY}{dest.name}")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise stopping(error) or MillError(
            f"{dest} can't be made ({error.strerror}): name another folder."
        ) from error
    try:
        _lock(descriptor, staging, dest)
        try:
            _must_be_free(dest)  # another export may have ended meanwhile
            _empty(staging)
            yield staging
            os.sync()  # a power cut must not leave a whole folder of empty files
            _must_be_free(dest)
            staging.rename(dest)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                raise MillError(
                    f"Stopped; nothing is left at {dest}, the same command begins again."
                ) from None
            raise
    finally:
        os.close(descriptor)


def _must_be_free(dest: Path) -> None:
    if dest.is_mount() or (dest.exists() and (not dest.is_dir() or any(dest.iterdir()))):
        raise MillError(
            f"{dest} is there already, and an export never adds to what is there: name a new folder, or"
            " remove it first."
        )


def _lock(descriptor: int, staging: Path, dest: Path) -> None:
    """One export to a place at a time; the lock dies with its process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # else the other has just ended
        mine = staging.exists() and os.path.samestat(os.fstat(descriptor), staging.stat())
    except BlockingIOError:
        mine = False
    if not mine:
        raise MillError(f"Another export is writing {dest}: wait for it, or name another folder.")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
