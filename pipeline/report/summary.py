"""What a job comes to: a line for each trained ControlNet, at the start and at the end of its training,
beside its baselines and its ceiling.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from annotate.conditions import CONDITIONS
from evaluate import measures
from evaluate.replicates import LEVEL, Replicated, best, normalized_score, quantile
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.systems import BEFORE, CONTROL, EARLIER, NO_CONTROL, PLAIN, REAL, SHUFFLED, System
from pipeline.catalog import Catalog
from pipeline.experiment.logs import held_out_rows, read_log
from pipeline.plan import Plan
from pipeline.report import verdicts
from pipeline.report.contents import Estimate, Gains, LearningCurve, SummaryRow
from pipeline.report.figures import digits
from pipeline.report.text import table
from pipeline.report.verdicts import Compared, Measured
from pipeline.storage.stores import shown

COLUMNS = ("metric", "value", "replicates", "method", "prompts")  # of the table `scores`
BASELINES = (BEFORE, SHUFFLED, NO_CONTROL)
GAINED, FOLLOWED = "gained", "followed"  # what else has a sign: the conditioning gain, its own hints
HEADINGS = (
    "measure", "gain at start", "gain", "trained", "start", "shuffled", "no control", "ceiling", "normalized",
)  # fmt: skip
NOTES = (
    (
        "value ± reach of its 95 % interval; gain: conditioning gain ×1000, the base's held-out loss minus"
        " the ControlNet's; °  more than a shuffled hint"
    ),
    (
        "<  worse than trained, image by image, beyond chance;  >  better;  *  above both baselines; in 95 of"
        " 100 tables no sign is chance (Holm)"
    ),
    "start: the checkpoint it began from; normalized: 0 % = the better baseline, 100 % = the real image",
)

Scores = Mapping[str, Replicated | None]  # by system; None = it is scored, but not by its primary measure


def summary(plan: Plan, catalog: Catalog, compared: list[System]) -> list[SummaryRow]:
    """In the order of the conditions; a ControlNet of which nothing is scored yet is left out."""
    scores = _scores(catalog, compared)
    trained = [system for system in compared if system.variant == CONTROL and system.name in scores]
    logs = {model: read_log(plan.workspace.run(model)) for model in {system.model for system in trained}}
    beside = [_by_variant(system.model, system.condition, compared, scores) for system in trained]
    held_out = [held_out_rows(logs[system.model], system.condition) for system in trained]
    signs = verdicts.signs(
        {
            (number, what): it
            for number, system in enumerate(trained)
            for what, it in _compared(system, beside[number], held_out[number])
        }
    )
    rows = [
        _row(
            system,
            beside[number],
            _gains(plan, system, held_out[number]),
            {what: sign for (row, what), sign in signs.items() if row == number},
        )
        for number, system in enumerate(trained)
    ]
    return sorted(rows, key=lambda row: (list(CONDITIONS).index(row.condition), row.model))


def lines(plan: Plan, catalog: Catalog, systems: list[System], page: Path) -> Iterator[str]:
    """For a person at the end of a run."""
    rows = summary(plan, catalog, systems)
    if not rows:
        return
    several = len({row.condition for row in rows}) < len(rows)
    headings = ["  condition", *(["model"] if several else []), *HEADINGS]
    yield from table(headings, [_cells(row, several) for row in rows]).splitlines()
    yield from NOTES
    absent: dict[str, list[str]] = {}
    for row in rows:
        if row.normalized_reason:
            absent.setdefault(row.normalized_reason, []).append(row.condition)
    for reason, conditions in absent.items():
        yield f"no normalized score of {', '.join(dict.fromkeys(conditions))}: {reason}"
    yield from _caveats(catalog, rows)
    yield f"{shown(page)} shows all of it"


def _caveats(catalog: Catalog, rows: Sequence[SummaryRow]) -> Iterator[str]:
    """What must be known of the numbers of the table, each said once."""
    sql = "SELECT condition, metric, caveats FROM scores WHERE variant = ? AND caveats <> '[]' ORDER BY ALL"
    shown_here = {(row.condition, row.metric) for row in rows}
    said: dict[tuple[str, str], list[str]] = {}
    for condition, metric, caveats in catalog.query(sql, [CONTROL]):
        for caveat in json.loads(caveats) if (condition, metric) in shown_here else ():
            said.setdefault((metric, caveat), []).append(condition)
    for (metric, caveat), conditions in said.items():
        yield f"{metric} of {', '.join(dict.fromkeys(conditions))}: {caveat}"


def thousandths(gain: float) -> float:
    """A conditioning gain as it is shown: the log has the difference of two losses, tables and plots show
    thousandths of it.
    """
    return 1000 * gain


def learning_curves(catalog: Catalog, compared: list[System]) -> dict[tuple[str, str], LearningCurve]:
    """Run and condition -> its primary measure from before the first image to the end, where checkpoints on
    the way were scored.
    """
    scores, images = _scores(catalog, compared), dict(catalog.query("SELECT run, images FROM runs"))
    earlier: dict[tuple[str, str], list[System]] = {}
    for system in compared:
        if system.variant == EARLIER:
            earlier.setdefault((system.model, system.condition), []).append(system)
    curves = {}
    for (model, condition), on_the_way in earlier.items():
        metric = measures.primary(CONDITIONS[condition].kind)
        by_variant = _by_variant(model, condition, compared, scores)
        start = by_variant.get(BEFORE) or by_variant.get(
            NO_CONTROL
        )  # one that starts from the base adds nothing
        points = (
            {0: start}
            | {system.seen: scores.get(system.name) for system in on_the_way}
            | {images[model]: by_variant.get(CONTROL)}
        )
        floor = _floor(by_variant, metric.higher_is_better)
        curves[model, condition] = LearningCurve(
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            floor=floor.value if floor else None,
            points=tuple(
                (seen, score.value, *(score.interval or (None, None)))
                for seen, score in sorted(points.items())
                if score
            ),
        )
    return curves


def _cells(row: SummaryRow, several: bool) -> list[str]:
    places = digits([one.value for one in (row.trained, *row.baselines.values(), row.ceiling) if one])
    return [
        f"{'*' if row.beyond_both else ' '} {row.condition}",
        *([row.model] if several else []),
        f"{row.metric} {'↑' if row.higher_is_better else '↓'}",
        f"{_text(row.gains.start, 1)} {row.gains.verdict}".rstrip(),
        f"{_text(row.gains.end, 1)}{' °' if row.gains.beyond_shuffled else ''}",
        _text(row.trained, places),
        *(
            f"{_text(row.baselines.get(variant), places)} {row.verdicts.get(variant, '')}".rstrip()
            for variant in BASELINES
        ),
        _text(row.ceiling, places),
        f"{_text(row.normalized, 0)} %" if row.normalized else "–",
    ]


def _text(estimate: Estimate | None, places: int) -> str:
    if estimate is None:
        return "–"
    reach = "" if estimate.reach is None else f"±{estimate.reach:.{places}f}"
    return f"{estimate.value:.{places}f}{reach}"


def _scores(catalog: Catalog, compared: list[System]) -> dict[str, Replicated | None]:
    scores: dict[str, Replicated | None] = dict.fromkeys(
        system for (system,) in catalog.query("SELECT DISTINCT system FROM scores")
    )
    wanted = {system.name: measures.primary(CONDITIONS[system.condition].kind).name for system in compared}
    for name, *row in catalog.query(f"SELECT system, {', '.join(COLUMNS)} FROM scores"):
        if wanted.get(name) == row[0]:
            scores[name] = replicated(dict(zip(COLUMNS, row, strict=True)))
    return scores


def _compared(
    system: System, by_variant: Mapping[str, Replicated], measured: Sequence[tuple[int, Measured]]
) -> Iterator[tuple[str, Compared]]:
    """All that a row has a sign for."""
    better = measures.primary(CONDITIONS[system.condition].kind).higher_is_better
    for variant in BASELINES:
        if {variant, CONTROL} <= by_variant.keys():
            trained, other = by_variant[CONTROL], by_variant[variant]
            yield variant, verdicts.against(trained, other, higher_is_better=better)
    if measured:
        (began, first), (_, last) = measured[0], measured[-1]
        yield FOLLOWED, verdicts.followed(last)
        if not began:
            yield GAINED, verdicts.gained(first, last)


def _row(
    system: System, by_variant: Mapping[str, Replicated], gains: Gains, signs: Mapping[str, str]
) -> SummaryRow:
    metric = measures.primary(CONDITIONS[system.condition].kind)
    normalized, reason = _normalized(by_variant, metric.higher_is_better)
    return SummaryRow(
        condition=system.condition,
        model=system.shown,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        definition=metric.definition,
        gains=replace(gains, verdict=signs.get(GAINED, ""), beyond_shuffled=signs.get(FOLLOWED) == "<"),
        trained=_estimate(by_variant.get(CONTROL)),
        ceiling=_estimate(by_variant.get(REAL)),
        normalized=normalized,
        normalized_reason=reason,
        verdicts={variant: signs[variant] for variant in BASELINES if variant in signs},
        baselines={
            variant: estimate for variant in BASELINES if (estimate := _estimate(by_variant.get(variant)))
        },
        beyond_both=all(signs.get(variant) == "<" for variant in (SHUFFLED, NO_CONTROL)),
    )


def _by_variant(
    model: str, condition: str, compared: list[System], scores: Scores
) -> dict[str, Replicated]:  # without the checkpoints on the way
    beside = [
        system
        for system in compared
        if system.condition == condition
        and system.model in (model, system.variant)
        and system.variant != EARLIER
    ]
    found = {system.variant: score for system in beside if (score := scores.get(system.name))}
    if any(system.pictures for system in beside):  # made on another base: ours is no control of it
        found.pop(NO_CONTROL, None)
        if PLAIN in found:
            found[NO_CONTROL] = found.pop(PLAIN)
    return found


# or why there is none
def _normalized(by_variant: Mapping[str, Replicated], higher_is_better: bool) -> tuple[Estimate | None, str]:
    """In percent, with the longer arm of its interval."""
    if CONTROL not in by_variant:
        return None, ""
    score = normalized_score(
        by_variant[CONTROL],
        _floor(by_variant, higher_is_better),
        by_variant.get(REAL),
        higher_is_better=higher_is_better,
    )
    if isinstance(score, str):
        return None, score
    reach = max(score.high - score.value, score.value - score.low)
    return Estimate(value=100 * score.value, reach=100 * reach), ""


def _floor(by_variant: Mapping[str, Replicated], higher_is_better: bool) -> Replicated | None:
    """The better of the baselines that know nothing of the image's own hint."""
    return best(
        (by_variant[variant] for variant in (SHUFFLED, NO_CONTROL) if variant in by_variant), higher_is_better
    )


def _estimate(score: Replicated | None) -> Estimate | None:
    if score is None:
        return None
    if (between := score.interval) is None:
        return Estimate(value=score.value)
    return Estimate(value=score.value, reach=max(between[1] - score.value, score.value - between[0]))


def _gains(plan: Plan, system: System, measured: Sequence[tuple[int, Measured]]) -> Gains:
    """At the start of the training and when it was last measured; a ControlNet that begins as a copy of the
    base saves nothing at the start.
    """
    from train import checkpoint

    if not measured:
        return Gains()
    (began, first), (_, last) = measured[0], measured[-1]
    newest = checkpoint.newest(plan.workspace.run(system.model))
    fresh = newest is not None and system.condition not in newest.meta.get("warm_start", {})
    return Gains(
        start=_gain(first) if began == 0 else Estimate(value=0.0) if fresh else None,
        end=_gain(last),
    )


def _gain(measured: Measured) -> Estimate | None:
    if measured["gap"] is None:
        return None
    error, count = measured["gap_error"], measured["n"]
    reach = None if error is None else thousandths(error * quantile((1 + LEVEL) / 2, count - 1))
    return Estimate(value=thousandths(measured["gap"]), reach=reach)
