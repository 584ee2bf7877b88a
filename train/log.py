"""train.jsonl, a JSON line for each thing that a run tells: whoever reads it back passes over lines that are
no longer what was written.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG = "train.jsonl"
ASKED = ("n", "gap", "gap_error")  # of train.held_out.summary: what its readers can't do without


# the rows; the numbers, from 1, of lines that are none
def read_log(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
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


def write_log(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """In place of what is there."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def lines_text(numbers: Sequence[int]) -> str:
    """`line 3`, `lines 3, 7`, `lines 1, 2, 3 and 40 more`."""
    shown = ", ".join(map(str, numbers[:3])) + (f" and {len(numbers) - 3} more" if len(numbers) > 3 else "")
    return f"line{'s' if len(numbers) > 1 else ''} {shown}"


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _fits(row) else None


def _fits(row: dict[str, Any]) -> bool:
    """Whether the values are of the kinds that readers compute with."""
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
        and all(map(_is_measured, tables[2].values()))
        and isinstance(row.get("note", ""), str)
    )


def _is_measured(told: Any) -> bool:
    if not isinstance(told, dict) or not isinstance(told.get("losses", []), list):
        return False
    more = (told[name] for name in ("shuffled_gap", "control", "control_z") if name in told)
    values = (*(told.get(name, "") for name in ASKED), *more, *told.get("losses", []))
    return all(value is None or _is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
