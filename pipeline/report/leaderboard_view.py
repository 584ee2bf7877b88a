"""The leaderboard as its pages show it: a table for each condition, ceilings above the models and floors
below them.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.report.figures import digits, figure
from pipeline.report.leaderboard_data import (
    EvidenceSample,
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    Published,
    Score,
)
from pipeline.report.pareto import Pareto, pareto
from pipeline.report.protocol import differences

ARMS = {  # in the order of their rows: what each is called, where it stands
    "real_image": ("real image", "ceiling"), "vae_round_trip": ("real image through the VAE", "ceiling"),
    "control": ("", "models"),
    "warm_start": ("start", "models"),
    "no_control": ("no control", "floor"), "shuffled_condition": ("shuffled condition", "floor"),
    "plain": ("without the condition", "floor"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    metric: Measure
    digits: int  # after the point


@dataclass(frozen=True, kw_only=True)
class Cell:
    score: Score
    digits: int
    provenance: int  # its line in `provenance`
    vae: float | None = None  # the normalized score of the real image through the VAE: its own ceiling


@dataclass(frozen=True, kw_only=True)
class Row:
    model: str
    arm: str
    label: str  # what the arm is; '' = the model itself
    cells: tuple[Cell | None, ...]  # as the columns
    seconds: float | None  # per image
    anchor: str  # of the model on the evidence page; '' = not shown there
    mark: str = ""  # whether it was submitted, and whose results it is of


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What others print, as a table; each cell has its source below."""

    comparable: bool  # got as the numbers of this leaderboard
    metrics: tuple[tuple[str, bool], ...]  # as printed, higher is better
    # of a comparable one: our best model, and what to multiply its value by
    ours: tuple[tuple[str, Cell, float] | None, ...]
    # for each metric the numbers with their footnotes
    models: Mapping[str, tuple[tuple[tuple[Published, int], ...], ...]]
    notes: tuple[tuple[str, str, str], ...]  # source, address, note with what differs; numbered from 1


@dataclass(frozen=True, kw_only=True)
class ConditionTable:
    """One condition: its task, its table, its plot, what others report."""

    benchmark: FrozenBenchmark
    columns: tuple[Column, ...]
    ceiling: tuple[Row, ...]
    models: tuple[Row, ...]
    floor: tuple[Row, ...]
    primary: int | None  # number of its column
    leaders: tuple[Row, ...]  # models that may hold the first place by it
    limit: str  # below which two models can't be told apart by it, a sentence; '' = not known
    marks: tuple[str, ...]
    # sentences: what the size of the pictures does to measures, which have no normalized score, and why
    remarks: tuple[str, ...]
    pareto: Pareto | None
    reported: tuple[Reported, ...]  # what is comparable first
    evidence: str  # its page; '' = none


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One image and seed, and what every model made of it, best first."""

    first: EvidenceSample
    outputs: tuple[EvidenceSample, ...]


def tables(data: Leaderboard, pages: Mapping[str, str]) -> list[ConditionTable]:
    """`pages`: condition -> the name of its evidence page, used where there is evidence."""
    by_condition: dict[str, list[tuple[int, Score]]] = {}
    for line, score in enumerate(data.scores):
        by_condition.setdefault(score.condition, []).append((line, score))
    return [
        _table(data, benchmark, dict(by_condition.get(benchmark.condition, [])), pages)
        for benchmark in data.benchmarks
    ]


def _table(
    data: Leaderboard,
    benchmark: FrozenBenchmark,
    numbered: Mapping[int, Score],  # by their lines of provenance
    pages: Mapping[str, str],
) -> ConditionTable:
    numbered = {line: score for line, score in numbered.items() if score.metric not in benchmark.repeats}
    condition, scores = benchmark.condition, list(numbered.values())
    columns = _columns(data, scores)
    shown = {sample.model for sample in data.evidence if sample.condition == condition}
    seconds = {speed.model: speed.seconds_per_image for speed in data.speeds if speed.condition == condition}
    rows = _rows(data, numbered, columns, seconds, shown)
    primary = next((number for number, column in enumerate(columns) if column.metric.primary), None)
    trained = [row for row in rows["models"] if row.arm == "control"]
    trained.sort(key=lambda row: _merit(row, primary, columns), reverse=True)
    plot = None
    if primary is not None:
        plot = pareto(
            columns[primary].metric, {column.metric: column.digits for column in columns}, scores, seconds
        )
    return ConditionTable(
        benchmark=benchmark,
        columns=tuple(columns),
        ceiling=tuple(rows["ceiling"]),
        models=tuple(_with_their_starts(trained, rows["models"])),
        floor=tuple(rows["floor"]),
        primary=primary,
        leaders=_leaders(trained, primary),
        limit=_limit(benchmark, columns, primary),
        marks=tuple(dict.fromkeys(mark for score in scores for mark in score.marks)),
        remarks=(*benchmark.notes, *_unplaced(scores, columns)),
        pareto=plot,
        reported=tuple(_reported(data.published, benchmark, trained, columns)),
        evidence=pages[condition] if shown else "",
    )


def _columns(data: Leaderboard, scores: Sequence[Score]) -> list[Column]:
    """Those that have a score, the primary measure first."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.metric, []).append(score.value)
    return [
        Column(metric=metric, digits=digits(values[metric.name]))
        for metric in sorted(data.metrics, key=lambda metric: not metric.primary)
        if metric.name in values
    ]


def _rows(
    data: Leaderboard,
    numbered: Mapping[int, Score],  # of one condition, by their lines of provenance
    columns: Sequence[Column],
    seconds: Mapping[str, float],  # model -> per image
    shown: Collection[str],  # models that are on the evidence page
) -> dict[str, list[Row]]:  # by place
    marks = {model.name: _mark(model) for model in data.models}
    anchors = {model.name: f"m{number}" for number, model in enumerate(data.models) if model.name in shown}
    vae = {score.metric: score.share for score in numbered.values() if score.arm == "vae_round_trip"}
    digits_of = {column.metric.name: column.digits for column in columns}
    rows: dict[str, list[Row]] = {"ceiling": [], "models": [], "floor": []}
    order = sorted(numbered.items(), key=lambda each: (list(ARMS).index(each[1].arm), each[1].model))
    for (arm, model), of_row in groupby(order, key=lambda each: (each[1].arm, each[1].model)):
        label, place = ARMS[arm]
        cells = {
            score.metric: Cell(
                score=score,
                digits=digits_of[score.metric],
                provenance=line,
                vae=vae.get(score.metric) if place == "models" else None,
            )
            for line, score in of_row
        }
        rows[place].append(
            Row(
                model=model,
                arm=arm,
                label=label,
                seconds=seconds.get(model) if arm in ("control", "no_control") else None,
                cells=tuple(cells.get(column.metric.name) for column in columns),
                anchor=anchors.get(model, "") if arm == "control" else "",
                mark=marks.get(model, ""),
            )
        )
    return rows


def _mark(model: LeaderboardModel) -> str:
    kind = model.kind if model.kind == "submitted" else ""
    return " · ".join(filter(None, (kind, model.origin, model.date)))


def _with_their_starts(trained: Sequence[Row], rows: Sequence[Row]) -> Iterator[Row]:
    """Each model, then what it began from."""
    for row in trained:
        yield row
        yield from (other for other in rows if other.arm != "control" and other.model == row.model)


def _merit(row: Row, number: int | None, columns: Sequence[Column]) -> float:
    cell = None if number is None else row.cells[number]
    if number is None or cell is None or math.isnan(cell.score.value):
        return -math.inf
    return cell.score.value if columns[number].metric.higher_is_better else -cell.score.value


def _leaders(models: Sequence[Row], primary: int | None) -> tuple[Row, ...]:
    """Those that share the first place; where none is ranked, the best number."""
    scored = [(row, cell) for row in models if primary is not None and (cell := row.cells[primary])]
    first = [row for row, cell in scored if cell.score.rank and cell.score.rank[0] == 1]
    return tuple(first) or tuple(row for row, _ in scored[:1])


def _limit(benchmark: FrozenBenchmark, columns: Sequence[Column], primary: int | None) -> str:
    if primary is None or benchmark.detectable is None:
        return ""
    metric, least = columns[primary].metric, figure(benchmark.detectable, columns[primary].digits + 1)
    unit = f" {metric.unit}" if metric.unit else ""
    return (
        f"Differences of {metric.title} below {least}{unit} can't be told apart with n ="
        f" {benchmark.samples:,}: at {benchmark.images:,} prompts, so large a one between two models is found"
        " in 80 % of repeats at 5 %, where no others are compared."
    )


def _unplaced(scores: Sequence[Score], columns: Sequence[Column]) -> Iterator[str]:
    absent: dict[str, set[str]] = {}
    of_models = [score for score in scores if score.arm == "control"]
    for score in of_models or scores:
        if score.share is None and score.share_reason:
            absent.setdefault(score.share_reason, set()).add(score.metric)
    for reason, names in absent.items():
        yield (
            "No normalized score of"
            f" {', '.join(column.metric.title for column in columns if column.metric.name in names)}:"
            f" {reason}."
        )


def _reported(
    published: Sequence[Published],
    benchmark: FrozenBenchmark,
    models: Sequence[Row],
    columns: Sequence[Column],
) -> Iterator[Reported]:
    """Apart: what was got as the numbers of this leaderboard, and what was not."""
    of_condition = [row for row in published if row.condition == benchmark.condition]
    compared = [(row, differences(row, benchmark)) for row in of_condition]
    for comparable in (True, False):
        rows = [(row, _note(row, differ)) for row, differ in compared if bool(differ) != comparable]
        if not rows:
            continue
        metrics = tuple(dict.fromkeys((row.metric, row.higher_is_better) for row, _ in rows))
        notes = list(dict.fromkeys(note for _, note in rows))
        table: dict[str, list[list[tuple[Published, int]]]] = {}
        for row, note in rows:
            cells = table.setdefault(row.model, [[] for _ in metrics])
            cells[metrics.index((row.metric, row.higher_is_better))].append((row, 1 + notes.index(note)))
        beside = {row.metric: (row.beside, row.times) for row, _ in rows if comparable}
        yield Reported(
            comparable=comparable,
            metrics=metrics,
            notes=tuple(notes),
            models={model: tuple(map(tuple, cells)) for model, cells in table.items()},
            ours=tuple(_ours(*beside.get(name, ("", 1.0)), models, columns) for name, _ in metrics),
        )


def _note(row: Published, differ: Sequence[str]) -> tuple[str, str, str]:
    apart = f"Another protocol: {'; '.join(differ)}." if differ else ""
    return row.source, row.url, " ".join(filter(None, (row.note, apart)))


def _ours(
    name: str, times: float, models: Sequence[Row], columns: Sequence[Column]
) -> tuple[str, Cell, float] | None:
    number = next((number for number, column in enumerate(columns) if column.metric.name == name), None)
    best = max(
        (row for row in models if number is not None and row.cells[number]),
        key=lambda row: _merit(row, number, columns),
        default=None,
    )
    cell = best and number is not None and best.cells[number]
    return (best.model, cell, times) if best and cell else None


def shared(samples: Iterable[EvidenceSample], table: ConditionTable) -> list[Shared]:
    """What all models were asked on one image and seed, in the order of the evidence."""
    better = table.primary is None or table.columns[table.primary].metric.higher_is_better
    by_sample: dict[tuple[str, int], list[EvidenceSample]] = {}
    for sample in samples:
        if sample.which == "same":
            by_sample.setdefault((sample.image_id, sample.seed), []).append(sample)
    return [
        Shared(
            first=outputs[0],
            outputs=tuple(sorted(outputs, key=lambda each: -each.score if better else each.score)),
        )
        for outputs in by_sample.values()
    ]
