"""All models on all conditions in one table: how far each is from floor to ceiling, by the first measure of
each condition, and which places it may hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.leaderboard_view import Cell, ConditionTable


@dataclass(frozen=True, kw_only=True)
class OverallRow:
    model: str
    cells: tuple[Cell | None, ...]  # as the conditions; None = not scored there
    first: int  # conditions whose first place it may hold
    ranked: int  # conditions on which it has a place

    @property
    def mean(self) -> float:
        """Of its normalized scores, to put rows in order: no test stands behind it, so no page shows it."""
        shares = [
            cell.score.share
            for cell in self.cells
            if cell and cell.score.share is not None and math.isfinite(cell.score.share)
        ]
        return sum(shares) / len(shares) if shares else -math.inf


@dataclass(frozen=True, kw_only=True)
class Overall:
    conditions: tuple[ConditionTable, ...]
    ceiling: tuple[OverallRow, ...]  # the VAE's own
    models: tuple[OverallRow, ...]


def overall(tables: Sequence[ConditionTable]) -> Overall | None:
    """None = no model has a score by the first measure of a condition."""
    shown = tuple(table for table in tables if table.primary is not None)
    models = _rows(shown, "models", "control")
    if not models:
        return None
    models.sort(key=lambda row: (-row.first, -row.mean, row.model))
    ceiling = _rows(shown, "ceiling", "vae_round_trip")
    return Overall(conditions=shown, ceiling=tuple(ceiling), models=tuple(models))


def _rows(tables: Sequence[ConditionTable], place: str, arm: str) -> list[OverallRow]:
    found: dict[str, list[Cell | None]] = {}
    for number, table in enumerate(tables):
        assert table.primary is not None
        for row in getattr(table, place):
            if row.arm == arm and row.cells[table.primary]:
                cells = found.setdefault(row.model, [None] * len(tables))
                cells[number] = row.cells[table.primary]
    return [_row(model, cells) for model, cells in found.items()]


def _row(model: str, cells: Sequence[Cell | None]) -> OverallRow:
    ranks = [cell.score.rank for cell in cells if cell and cell.score.rank]
    return OverallRow(
        model=model,
        cells=tuple(cells),
        first=sum(rank[0] == 1 for rank in ranks),
        ranked=len(ranks),
    )
