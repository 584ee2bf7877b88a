"""Pinned weight files from the Hugging Face hub into its cache, each checked before it counts as there."""

from pathlib import Path
from typing import Any

from annotate import memory
from annotate.weights import WeightFile, WeightsError, find, is_there, sha256

GATED = "accept its terms on its page and set HF_TOKEN to a token of that account"


def bytes_to_get(weight: WeightFile) -> int:
    """0 where the file is there. WeightsError: the hub does not have it, refuses, or can't be reached."""
    return 0 if is_there(weight) else int(_asked(weight, dry_run=True).file_size)


def get(weight: WeightFile) -> Path:
    """Where the file is, downloaded if it was nowhere: the pinned revision of this file alone. A connection
    that breaks off is taken up where it was; nothing half and nothing but the pinned bytes is kept.

    The variables of the hub's own tools count: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE.

    WeightsError: the hub does not have it, refuses, or can't be reached, it sent other bytes, or the file is
    no file of the hub.
    """
    if is_there(weight):
        return find(weight)
    path = Path(_asked(weight, dry_run=False))
    if weight.sha256 and sha256(path) != weight.sha256:
        path.resolve().unlink()  # the cache links to it
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{weight.repo} sent another {weight.name} than the pinned one: it was deleted; try again, and"
            " look at HF_ENDPOINT and at what lies between here and the hub"
        )
    return path


def _asked(weight: WeightFile, *, dry_run: bool) -> Any:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    if not weight.repo:
        raise WeightsError(f"{weight.name} is not on the hub. Get it: {weight.get}")
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of each of its retries
    try:
        return hf_hub_download(weight.repo, weight.name, revision=weight.revision, dry_run=dry_run)
    except Exception as error:  # its HTTP client has errors of its own
        memory.let_through(error)
        raise WeightsError(f"{weight.repo}/{weight.name}: {_sentence(weight, error)}") from error
    finally:
        logging.set_verbosity(told)


def _sentence(weight: WeightFile, error: BaseException) -> str:
    from huggingface_hub import errors

    at = f"revision {weight.revision[:12]}"
    match error:
        case errors.GatedRepoError():
            return f"the repository is gated: {GATED}"
        case errors.RevisionNotFoundError():
            return f"the repository has no {at}"
        case errors.RemoteEntryNotFoundError():
            return f"{at} has no such file"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private: {GATED}"
        case errors.HfHubHTTPError():
            return (
                f"the hub refuses ({error.response.status_code}): {_what_to_do(error.response.status_code)}"
            )
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _sentence(weight, error.__cause__)
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return "the hub can't be reached, and the cache lacks the file"
        case OSError() if error.errno is not None:
            where = f" {error.filename}" if error.filename else ""
            return (
                f"it can't be stored{where} ({error.strerror}): make room, or set HF_HOME to another folder"
            )
    return f"the download failed ({_first_line(error)}): run the same command again"


def _what_to_do(status: int) -> str:
    if status in (401, 403):
        return "set HF_TOKEN to a token that may read it"
    return "try again later" + (", or set HF_TOKEN, which allows more" if status == 429 else "")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
