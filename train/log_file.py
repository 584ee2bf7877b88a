"""train.jsonl, a JSON line for each thing that a run tells: whoever reads it back passes over lines that are
no longer what was written.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

LOG = "train.jsonl"
NEEDED = ("n", "gap", "gap_error")  # of a ConditioningGain: what its readers can't do without


class ConditioningGain(TypedDict, total=False):
    """One measurement of a condition on the held-out pairs (train.held_out.summary); None = no number."""

    n: int  # pairs
    n_shuffled: int  # those of them that have another pair of their size
    loss: float | None
    base_loss: float | None
    losses: list[float | None]  # [n]
    gap: float | None  # the conditioning gain: the base's loss minus the ControlNet's
    gap_error: float | None  # its standard error
    gap_by_timestep: dict[str, float | None]
    shuffled_gap: float | None  # the same with another pair's hint
    shuffled_gap_by_timestep: dict[str, float | None]
    control: float | None  # the loss with another's hint minus that with its own
    control_z: float | None


class LogRow(TypedDict, total=False):
    """A line of the log: a note, a measurement before the first step, or the means since the last line."""

    images: Required[int]  # seen so far
    step: int
    note: str
    loss: dict[str, float]  # by condition, like all tables here
    gradient_norm: dict[str, float]
    skipped: dict[str, int]  # steps whose gradient was not finite, where there were any
    lr: float
    images_per_second: float
    seconds: float  # of training, all sessions together
    seconds_left: float
    peak_memory: int  # bytes
    gpu_memory: int  # bytes that the GPU has, where it is one
    micro_batch: int
    joined: bool
    # model FLOP/s as a share of what a matrix product reaches here; None = no memory was left to measure that
    mfu: float | None
    held_out: dict[str, ConditioningGain]
    alarm: dict[str, int]  # images at the convergence step


# the rows; the numbers, from 1, of lines that are none
def read_log(path: Path) -> tuple[list[LogRow], list[int]]:
    """What stands behind the last line break is a row in the making, or was when its process was killed: no
    row, and no damage.
    """
    rows, damaged = [], []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number < len(lines):
            damaged.append(number)
    return rows, damaged


def write_log(path: Path, rows: Sequence[LogRow]) -> None:
    """In place of what is there."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def lines_text(numbers: Sequence[int]) -> str:
    """`line 3`, `lines 3, 7`, `lines 1, 2, 3 and 40 more`."""
    shown = ", ".join(map(str, numbers[:3])) + (f" and {len(numbers) - 3} more" if len(numbers) > 3 else "")
    return f"line{'s' if len(numbers) > 1 else ''} {shown}"


def _row(line: bytes) -> LogRow | None:
    try:
        row: Any = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if _fits(row) else None


def _fits(row: Any) -> bool:
    """Whether the values are of the kinds that readers compute with."""
    if not isinstance(row, dict):
        return False
    counts = type(row.get("images")) is int and type(row.get("step", 0)) is int
    speeds = all(
        _is_number(row[name])
        for name in ("seconds", "seconds_left", "images_per_second")
        if row.get(name) is not None
    )
    tables: list[Any] = [row.get(name, {}) for name in ("loss", "alarm", "held_out")]
    if not counts or not speeds or not all(isinstance(table, dict) for table in tables):
        return False
    numbers = (*tables[0].values(), *tables[1].values())
    return (
        all(map(_is_number, numbers))
        and all(map(_is_gain, tables[2].values()))
        and isinstance(row.get("note", ""), str)
    )


def _is_gain(gain: Any) -> bool:
    if not isinstance(gain, dict) or not isinstance(gain.get("losses", []), list):
        return False
    more = (gain[name] for name in ("shuffled_gap", "control", "control_z") if name in gain)
    values = (*(gain.get(name, "") for name in NEEDED), *more, *gain.get("losses", []))
    return all(value is None or _is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
