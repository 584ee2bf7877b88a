"""Folders of the Hugging Face hub, by owner/name."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# of a disk, not of a network
STORING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


def folder(
    what: str,  # how the error calls it
    name: str,  # owner/name
    wanted: list[str],  # files, or patterns of them
    download: bool,  # False = only what is in the cache
    then: str,  # what to do with a copy of the folder
    lacking: Callable[[Path], list[str]],  # the files that its reader needs and does not find in the folder
) -> Path:
    """The local cache first, so that a run that has its files never waits for a network; it may hold others
    of the folder, such as fp16.

    FileNotFoundError: the cache lacks files, and `download` is False, or the download fails.
    """
    from huggingface_hub import snapshot_download

    absent: list[str] = []
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        absent = lacking(cached)
        if not absent:
            return cached
        reason: Exception | None = None
    except OSError as error:  # not in the cache
        reason = error
    try:
        if download:
            with _quiet():
                return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        reason = error
    unreachable = f" and {_refusal(reason)}" if download else ""
    include, whole = (" ".join(f"--include '{one}'" for one in files) for files in (absent, wanted))
    if absent:
        raise FileNotFoundError(
            f"{what} is not whole in the Hugging Face cache{unreachable}: {', '.join(absent)} are missing;"
            f" with a network `hf download {name} {include}` completes it; without one copy a folder of `hf"
            f" download {name} {whole} --local-dir {name.split('/')[1]}` here and {then}"
        ) from reason
    raise FileNotFoundError(
        f"{what} is not in the Hugging Face cache{unreachable}: on a machine with a network run "
        f"`hf download {name} {whole} --local-dir {name.split('/')[1]}`, copy that folder here and {then}"
    ) from reason


def bytes_to_get(
    name: str,  # owner/name
    wanted: list[str],  # files, or patterns of them
) -> int:
    """What a download would bring, beside what is in the cache.

    OSError: the hub can't be reached, or refuses.
    """
    from huggingface_hub import snapshot_download

    try:
        with _quiet(), _no_bars():
            files = snapshot_download(name, allow_patterns=wanted, dry_run=True)
    except Exception as error:  # its HTTP client has errors of its own
        raise OSError(_refusal(error)) from error
    return sum(file.file_size or 0 for file in files if file.will_download)


def _refusal(error: BaseException | None) -> str:
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.GatedRepoError):
            return "the hub wants its terms accepted on its page, and HF_TOKEN set to a token of that account"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "the hub has no such repository, or it is private"
        if isinstance(error, errors.HfHubHTTPError):
            return f"the hub refuses ({error.response.status_code})"
        if isinstance(error, OSError) and error.errno in STORING:
            return f"its files can't be stored ({error.strerror}; HF_HOME names the folder)"
        error = error.__cause__
    return "the hub can not be reached"


@contextmanager
def _quiet() -> Iterator[None]:
    """The hub's library warns at each of its retries."""
    from huggingface_hub.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(told)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Where nothing is downloaded."""
    from huggingface_hub import utils

    shown = not utils.are_progress_bars_disabled()
    if shown:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            utils.enable_progress_bars()
