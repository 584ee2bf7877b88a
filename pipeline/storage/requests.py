"""What a run is asked while it is under way: to stop when what it is at is committed."""

import fcntl

from pipeline import MillError
from pipeline.storage.events import now
from pipeline.storage.workspace import Workspace

STOP = "stop"  # a file of the workspace


def ask_to_stop(workspace: Workspace) -> None:
    """The driver sees it within a second or so. MillError where no run is under way."""
    if not is_under_way(workspace):
        raise MillError(f"No run is under way in {workspace.root}: there is nothing to stop.")
    (workspace.root / STOP).write_text(now(), encoding="utf-8")


def asked_to_stop(workspace: Workspace) -> bool:
    return (workspace.root / STOP).exists()


def forget(workspace: Workspace) -> None:
    (workspace.root / STOP).unlink(missing_ok=True)


def is_under_way(workspace: Workspace) -> bool:
    """Whether a driver holds the workspace's lock."""
    try:
        with (workspace.root / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
