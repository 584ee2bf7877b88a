"""What a training has told so far: its losses, its conditioning gain on held-out pairs, its notes."""

from pathlib import Path
from typing import Any

from train import log_file as logs

LogRow = dict[str, Any]  # one line of a run's log.jsonl: train/log_file.py says what stands in it


def read_log(out: Path) -> list[LogRow]:
    """What a run has told so far, without the lines that are damaged."""
    rows: list[Any] = logs.read_log(out / logs.LOG)[0]
    return rows


def notes(log: list[LogRow]) -> list[str]:
    """What a person should know of a run: damage that it went on from, an option that changed on its way."""
    return [row["note"] for row in log if "note" in row]


def held_out_rows(log: list[LogRow], condition: str) -> list[tuple[int, dict[str, Any]]]:
    """Images seen, and what train.held_out.summary said of the condition's held-out pairs then."""
    return [
        (row["images"], row["held_out"][condition]) for row in log if condition in row.get("held_out", {})
    ]


def follows(log: list[LogRow]) -> dict[str, int]:
    """Condition -> images at its convergence step (train.held_out.convergence_steps), as last told."""
    return next((row["alarm"] for row in reversed(log) if row.get("alarm")), {})


def measured_on_gpu(log: list[LogRow]) -> LogRow | None:
    """The first row that tells what a process takes of its GPU; the seconds of the row before it are those of
    compiling too.
    """
    rows = [row for row in log if row.get("gpu_memory") and row.get("mfu") is not None]
    return rows[1] if len(rows) > 1 else None
