"""What a run is asked while it is under way: to stop when what it is at is committed."""

import time
from collections.abc import Callable
from contextlib import suppress

from pipeline import MillError
from pipeline.storage import copies, lease, stores
from pipeline.storage.events import now
from pipeline.storage.workspace import LEASE, Workspace

STOP = "stop"  # a file of the workspace, or an object
EVERY = 1.0  # seconds between two looks at a file
EVERY_FAR = 3.0  # seconds between two looks at an object: each is a request


def ask_to_stop(workspace: Workspace) -> None:
    """The driver sees it within seconds. MillError where no run is under way."""
    if not is_under_way(workspace):
        raise MillError(f"No run is under way in {workspace.address}: there is nothing to stop.")
    path = workspace.root / STOP
    if workspace.is_remote:
        stores.put(path, now().encode())
    else:
        path.write_text(now(), encoding="utf-8")


def asked_to_stop(workspace: Workspace) -> bool:
    path = workspace.root / STOP
    return stores.head(path) is not None if workspace.is_remote else path.exists()


def asks_to_stop(workspace: Workspace) -> Callable[[], bool]:
    """The same for who asks often, such as at each step of a training: it looks now and then."""
    every = EVERY_FAR if workspace.is_remote else EVERY
    last, answer = float("-inf"), False

    def asked() -> bool:
        nonlocal last, answer
        if not answer and time.monotonic() - last >= every:
            with suppress(stores.StoreError):  # the next look may tell
                answer = asked_to_stop(workspace)
            last = time.monotonic()
        return answer

    return asked


def forget(workspace: Workspace) -> None:
    copies.remove(workspace.root / STOP)


def is_under_way(workspace: Workspace) -> bool:
    """Whether a driver holds the workspace."""
    return bool(lease.holder(workspace.root / LEASE)) if workspace.is_remote else workspace.is_locked_here()
