"""Counts and tables as plain text."""

from collections.abc import Sequence
from typing import Any


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(column) for column in columns) for columns in zip(names, *cells, strict=True)]
    right = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(names))]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ).rstrip()

    return "\n".join([line(list(names)), *map(line, cells)])


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def tally(counts: dict[str, int]) -> str:
    """`3 failed, 16 ok`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
