"""A board as its pages show it: a table for each condition, ceilings above the models and
floors below them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.report.leaderboard_data import Benchmark, Board, Evidence, Metric, Published, Score
from pipeline.report.pareto import Pareto, pareto
from pipeline.report.protocol import differences

ARMS = {  # in the order of their rows: what each is called, where it stands
    "real_image": ("real image", "ceiling"), "vae_round_trip": ("real image through the VAE", "ceiling"),
    "control": ("", "models"),
    "warm_start": ("before its training", "models"),
    "no_control": ("no control", "floor"), "shuffled_condition": ("another image's condition", "floor"),
}  # fmt: skip
# shares that a bar has room for: a model below the floor has none, one above the ceiling sticks out a little
ENDS = (0.0, 1.08)


@dataclass(frozen=True, kw_only=True)
class Column:
    metric: Metric
    digits: int  # after the point


@dataclass(frozen=True, kw_only=True)
class Cell:
    score: Score
    digits: int
    passport: int  # its place in `passports`


@dataclass(frozen=True, kw_only=True)
class Row:
    model: str
    arm: str
    label: str  # what the arm is; '' = the model itself
    cells: tuple[Cell | None, ...]  # as the columns
    seconds: float | None  # per image
    anchor: str  # of the model on the evidence page; '' = not shown there


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What others print, as a table; each cell has its source below."""

    comparable: bool  # got as the numbers of this board
    metrics: tuple[tuple[str, bool], ...]  # as printed, higher is better
    # of a comparable one: our best model, and what to multiply its value by
    ours: tuple[tuple[str, Cell, float] | None, ...]
    # for each metric the numbers with their footnotes
    models: Mapping[str, tuple[tuple[tuple[Published, int], ...], ...]]
    notes: tuple[tuple[str, str, str], ...]  # source, address, note with what differs; numbered from 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """One condition: its task, its table, its plot, what others report."""

    benchmark: Benchmark
    columns: tuple[Column, ...]
    ceiling: tuple[Row, ...]
    models: tuple[Row, ...]
    floor: tuple[Row, ...]
    primary: int | None  # number of its column
    leaders: tuple[Row, ...]  # models that may hold the first place by it
    limit: str  # below which two models can't be told apart by it, a sentence; '' = not known
    marks: tuple[str, ...]
    unplaced: tuple[str, ...]  # sentences: which measures have no normalized score, and why
    pareto: Pareto | None
    reported: tuple[Reported, ...]  # what is comparable first
    evidence: str  # its page; '' = none


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One image and seed, and what every model made of it, best first."""

    first: Evidence
    outputs: tuple[Evidence, ...]


def groups(board: Board, pages: Mapping[str, str]) -> list[Group]:
    """`pages`: condition -> the name of its evidence page, used where there is evidence."""
    passport = {id(score): number for number, score in enumerate(board.scores)}
    seconds = {(it.model, it.condition): it.seconds_per_image for it in board.speeds}
    witnessed = {(it.model, it.condition) for it in board.evidence}
    order = {
        metric.name: number
        for number, metric in enumerate(sorted(board.metrics, key=lambda metric: not metric.primary))
    }
    anchors = {model.name: f"m{number}" for number, model in enumerate(board.models)}
    by_condition: dict[str, list[Score]] = {}
    for score in board.scores:
        by_condition.setdefault(score.condition, []).append(score)
    out = []
    for benchmark in board.benchmarks:
        condition, scores = benchmark.condition, by_condition.get(benchmark.condition, [])
        present = {score.metric for score in scores}
        columns = [
            Column(
                metric=metric, digits=digits([score.value for score in scores if score.metric == metric.name])
            )
            for metric in sorted(
                (it for it in board.metrics if it.name in present), key=lambda it: order[it.name]
            )
        ]
        rows: dict[str, list[Row]] = {"ceiling": [], "models": [], "floor": []}
        for (arm, model), found in groupby(
            sorted(scores, key=lambda it: (list(ARMS).index(it.arm), it.model)),
            key=lambda it: (it.arm, it.model),
        ):
            label, place = ARMS[arm]
            by_metric = {score.metric: score for score in found}
            cells = [by_metric.get(column.metric.name) for column in columns]
            rows[place].append(
                Row(
                    model=model,
                    arm=arm,
                    label=label,
                    seconds=seconds.get((model, condition)) if arm in ("control", "no_control") else None,
                    cells=tuple(
                        (
                            Cell(score=score, digits=column.digits, passport=passport[id(score)])
                            if score
                            else None
                        )
                        for score, column in zip(cells, columns, strict=True)
                    ),
                    anchor=(
                        anchors.get(model, "") if arm == "control" and (model, condition) in witnessed else ""
                    ),
                )
            )
        primary = next((number for number, column in enumerate(columns) if column.metric.primary), None)
        trained = [row for row in rows["models"] if row.arm == "control"]
        trained.sort(key=lambda row: _merit(row, primary, columns), reverse=True)
        models = [
            row
            for it in trained
            for row in (
                it,
                *(row for row in rows["models"] if row.arm != "control" and row.model == it.model),
            )
        ]
        out.append(
            Group(
                benchmark=benchmark,
                columns=tuple(columns),
                ceiling=tuple(rows["ceiling"]),
                models=tuple(models),
                floor=tuple(rows["floor"]),
                primary=primary,
                leaders=_leaders(trained, primary),
                limit=_limit(benchmark, columns, primary),
                marks=tuple(dict.fromkeys(mark for score in scores for mark in score.marks)),
                unplaced=tuple(_unplaced(scores, columns)),
                pareto=(
                    None
                    if primary is None
                    else pareto(
                        columns[primary].metric, {it.metric: it.digits for it in columns}, scores, seconds
                    )
                ),
                reported=tuple(_reported(board.published, benchmark, trained, columns)),
                evidence=pages[condition] if any(where == condition for _, where in witnessed) else "",
            )
        )
    return out


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


def _limit(benchmark: Benchmark, columns: Sequence[Column], primary: int | None) -> str:
    if primary is None or benchmark.detectable is None:
        return ""
    metric, least = columns[primary].metric, figure(benchmark.detectable, columns[primary].digits + 1)
    unit = f" {metric.unit}" if metric.unit else ""
    return (
        f"Differences of {metric.title} below {least}{unit} can't be told apart with n ="
        f" {benchmark.samples:,}: at {benchmark.images:,} prompts, so large a one between two models is found"
        " in 80 % of repeats at 5 %."
    )


def _unplaced(scores: Sequence[Score], columns: Sequence[Column]) -> Iterator[str]:
    absent: dict[str, set[str]] = {}
    for score in scores:
        if score.share is None and score.share_reason:
            absent.setdefault(score.share_reason, set()).add(score.metric)
    for reason, names in absent.items():
        yield (
            "No normalized score of"
            f" {', '.join(column.metric.title for column in columns if column.metric.name in names)}:"
            f" {reason}."
        )


def _reported(
    published: Sequence[Published], benchmark: Benchmark, models: Sequence[Row], columns: Sequence[Column]
) -> Iterator[Reported]:
    """Apart: what was got as the numbers of this board, and what was not."""
    found = [(row, differences(row, benchmark)) for row in published if row.condition == benchmark.condition]
    for comparable in (True, False):
        rows = [(row, _note(row, differ)) for row, differ in found if bool(differ) != comparable]
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


def shared(found: Iterable[Evidence], group: Group) -> list[Shared]:
    """What all models were asked on one image and seed, in the order of the evidence."""
    better = group.primary is None or group.columns[group.primary].metric.higher_is_better
    by_sample: dict[tuple[str, int], list[Evidence]] = {}
    for it in found:
        if it.which == "same":
            by_sample.setdefault((it.image_id, it.seed), []).append(it)
    return [
        Shared(
            first=outputs[0], outputs=tuple(sorted(outputs, key=lambda it: -it.score if better else it.score))
        )
        for outputs in by_sample.values()
    ]


def passports(board: Board) -> dict[str, Any]:
    """Under every number, what it is and depends on: pairs of places in `words`, since most passports say
    mostly the same.
    """
    words: dict[str, int] = {}
    metrics = {metric.name: metric for metric in board.metrics}
    lines = [
        [words.setdefault(text, len(words)) for pair in _facts(score, metrics[score.metric]) for text in pair]
        for score in board.scores
    ]
    return {"words": list(words), "lines": lines}


def _facts(score: Score, metric: Metric) -> list[tuple[str, str]]:
    unit = f" {metric.unit}" if metric.unit else ""
    facts = [
        ("measure", f"{metric.title}, {'higher' if metric.higher_is_better else 'lower'} is better"),
        ("definition", metric.definition),
        (
            "column",
            {"corrected": "corrected", "paper": "paper-compatible", "diagnostic": "diagnostic"}[
                metric.column
            ],
        ),
        ("quirks", metric.quirks),
        ("value", f"{score.value:.6g}{unit}"),
        (
            "95 % interval",
            "too few prompts" if score.low is None else f"{score.low:.6g} – {score.high:.6g}{unit}",
        ),
        (
            "samples",
            f"{score.n:,}"
            + (
                f", of which {score.n_failed:,} failed and count as the worst value"
                if score.n_failed
                else ", none failed"
            ),
        ),
        (
            "normalized score",
            share_text(score, intervals=True) or (score.share_reason and f"none: {score.share_reason}"),
        ),
        ("rank", "" if score.rank is None else places(score.rank)),
        *(("mark", mark) for mark in score.marks),
        *((str(key), str(value)) for key, value in score.passport.items()),
    ]
    return [(key, value) for key, value in facts if value]


def digits(values: Sequence[float]) -> int:
    """Of all numbers of a column, so that they stand under each other: four of the largest count, three below
    one.
    """
    top = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(6, max(0, 3 - math.floor(math.log10(top)) - (top < 1))) if top else 3


def figure(value: float | None, places: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{places}f}".replace("-", "−")


def places(rank: tuple[int, int]) -> str:
    """A tie group as it is said: 1, 2–4."""
    return f"{rank[0]}" if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def share_text(score: Score, *, intervals: bool = False) -> str:
    if score.share is None or not math.isfinite(score.share):
        return ""
    between = (
        f" ({_percent(score.share_low)} – {_percent(score.share_high)})"
        if intervals and score.share_low is not None
        else ""
    )
    whole = (
        f"{_percent(score.share)}{between} of the way from floor to ceiling"
        if intervals
        else _percent(score.share)
    )
    return ", ".join(filter(None, (whole, above(score) if intervals else "")))


def above(score: Score) -> str:
    """What a share of more than 100 % means, in words; '' = it is not."""
    if score.share is None or not score.share > 1:
        return ""
    return "better than the real image" + (
        "" if score.share_low is not None and score.share_low > 1 else ", within chance"
    )


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "–"
    return f"{round(100 * share)} %".replace("-", "−")  # an int: there is no −0


def ruler(score: Score) -> str:
    """The bar of a share as CSS: where its fill starts and how wide it is, the same for its interval, all in
    percent of its box.
    """
    if score.share is None or not math.isfinite(score.share):
        return ""
    start, end = sorted((_place(0.0), _place(score.share)))
    drawn = f"--x:{start:.1f}%;--w:{end - start:.1f}%"
    if (
        score.share_low is None
        or score.share_high is None
        or not math.isfinite(score.share_low + score.share_high)
    ):
        return drawn
    low, high = _place(score.share_low), _place(score.share_high)
    return f"{drawn};--l:{low:.1f}%;--h:{high - low:.1f}%"


def _place(share: float) -> float:
    low, high = ENDS
    return 100 * (min(high, max(low, share)) - low) / (high - low)
