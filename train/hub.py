"""Folders of the Hugging Face hub, by owner/name."""

from pathlib import Path


def folder(
    what: str,  # how the error calls it
    name: str,  # owner/name
    wanted: list[str],  # files, or patterns of them
    download: bool,  # False = only what is in the cache
    then: str,  # what to do with a copy of the folder
) -> Path:
    """The local cache first, so that a run that has its files never waits for a network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except OSError as error:  # not in the cache
        reason: Exception = error
    try:
        if download:
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        reason = error
    includes = " ".join(f"--include '{each}'" for each in wanted)  # or else all precisions and formats come along, tens of GB
    raise FileNotFoundError(
        f"{what} is not in the Hugging Face cache{' and the hub can not be reached' if download else ''}: on a machine with a network run "
        f"`hf download {name} {includes} --local-dir {name.split('/')[1]}`, copy that folder here and {then}"
    ) from reason
