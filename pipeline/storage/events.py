"""What a run tells about itself while it is under way: a line of JSON for each event, and how far it is."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.storage import copies, stores
from pipeline.storage.stores import StoreError
from pipeline.storage.workspace import TEMPORARY

EVENTS = "events.jsonl"
PROGRESS = "progress.json"


def say(root: Path, event: str, **facts: Any) -> None:
    """Appends one event to the log of the workspace in one write, so that each line is whole. A disk that
    does not take it never ends a run.
    """
    line = json.dumps({"time": now(), "event": event, **facts}, ensure_ascii=False, default=str)
    try:
        file = os.open(root / EVENTS, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        try:
            size = os.lseek(file, 0, os.SEEK_END)
            torn = (
                size > 0 and os.pread(file, 1, size - 1) != b"\n"
            )  # by a full disk, or the end of a machine
            os.write(file, (b"\n" if torn else b"") + line.encode() + b"\n")
        finally:
            os.close(file)
    except OSError:
        return


def bring(root: Path) -> None:
    """The log that another machine left in the bucket of a workspace; a plain folder has it."""
    if stores.address_of(root):
        copies.has_copy(root / EVENTS)


def save(root: Path) -> None:
    """Into the bucket of a workspace, as the run ends; a store that does not take it never ends a run."""
    path = root / EVENTS
    if stores.address_of(root) and path.exists():
        with suppress(StoreError):
            copies.saved(path, stores.put(path, path))


def read(root: Path) -> list[dict[str, Any]]:
    """Every event whose line is whole, in their order."""
    events = []
    try:
        lines = (root / EVENTS).read_bytes().split(b"\n")
    except (FileNotFoundError, IsADirectoryError):
        return []
    for line in lines:
        with suppress(ValueError, RecursionError):
            event = json.loads(line.decode())
            if isinstance(event, dict):
                events.append(event)
    return events


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """How far the stage is that is under way."""

    time: str  # when this was written
    stage: str
    done: int
    total: int
    unit: str
    per_second: float
    seconds_left: float | None  # None = not known yet
    under_way: dict[str, int]  # what rows are passed through, such as conditions -> jobs that are at it
    rows: dict[str, int]  # committed by the stage: condition or kind -> rows
    rows_per_second: dict[str, float]


def write_progress(root: Path, progress: StageProgress) -> None:
    """For `controlmill status`, which must not hold the catalog of a run that is under way."""
    temporary = root / f"{TEMPORARY}{os.getpid()}-{PROGRESS}"
    with suppress(OSError):
        temporary.write_text(json.dumps(vars(progress)), encoding="utf-8")
        temporary.replace(root / PROGRESS)
        return
    with suppress(OSError):  # what a full disk took of it
        temporary.unlink(missing_ok=True)


def read_progress(root: Path) -> StageProgress | None:
    """None where no run tells how far it is."""
    try:
        return StageProgress(**json.loads((root / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def clear_progress(root: Path) -> None:
    with suppress(OSError):  # a folder in its place
        (root / PROGRESS).unlink(missing_ok=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
