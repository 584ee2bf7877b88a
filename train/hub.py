"""Folders of the Hugging Face hub, by owner/name."""

from collections.abc import Callable
from pathlib import Path


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
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        reason = error
    unreachable = " and the hub can not be reached" if download else ""
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
