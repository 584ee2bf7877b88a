"""Counts and tables as plain text."""

import csv
import io
import json
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


def csv_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """RFC 4180: a header, lines that end in CRLF, NULL as an empty field; lists and maps are JSON."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([[_csv_field(value) for value in row] for row in rows])
    return out.getvalue()


def _csv_field(value: Any) -> Any:
    if isinstance(value, bool | dict | list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return value.hex() if isinstance(value, bytes) else value


def tally(counts: dict[str, int]) -> str:
    """`3 failed, 16 ok`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
