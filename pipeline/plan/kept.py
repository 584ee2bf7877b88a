"""The manifest that a workspace keeps of its last run, with what `auto` came to, and the sum of what was
written.
"""

import hashlib
from pathlib import Path

from annotate import annotator
from pipeline import MillError, manifest
from pipeline.manifest import Manifest
from pipeline.storage import copies, stores
from pipeline.storage.workspace import Workspace, write_text

SEAL = "# sha256 of the lines below: "  # the first line; what an earlier version wrote has none


def save(workspace: Workspace, given: Manifest) -> None:
    text = manifest.dump(given)
    write_text(workspace.manifest, f"{SEAL}{_sum(text.encode())}\n{text}")


def saved(workspace: Workspace) -> Manifest:
    """With parameters of detectors that came later as they were before; MillError where it is missing or
    damaged.
    """
    place = stores.shown(workspace.manifest)
    copies.has_copy(workspace.manifest)
    try:
        if _is_sealed(workspace.manifest) is False:
            raise MillError(f"{place} is not as it was written.")
        return _completed(manifest.load_saved(workspace.manifest))
    except MillError as error:
        told = str(error).replace(str(workspace.manifest), place)
        raise MillError(
            f"{told}\n{place} is the workspace's own copy of the manifest of its last run, and"
            " is damaged: delete it, then `controlmill run MANIFEST` with yours goes on and writes it again."
        ) from error


def _completed(given: Manifest) -> Manifest:
    conditions = {
        name: it.model_copy(update=annotator.as_before(it.detector, it.params))
        for name, it in given.conditions.items()
    }
    return given.model_copy(update={"conditions": conditions})


def damage(workspace: Workspace) -> str:
    """What is wrong with it; '' = it is what was written, or can at least be read."""
    if _is_sealed(workspace.manifest):
        return ""
    try:
        saved(workspace)
    except MillError as error:
        return str(error).splitlines()[0]
    return ""


def _is_sealed(path: Path) -> bool | None:
    """Whether it is what was written; None where that can't be told."""
    try:
        first, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    seal = SEAL.encode()
    return first == seal + _sum(text).encode() if first.startswith(seal) else None


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
