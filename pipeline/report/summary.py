"""What a job comes to: a line for each trained ControlNet, before and after its training, beside its
baselines and its ceiling.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from annotate.conditions import CONDITIONS
from evaluate import measures
from evaluate.replicates import LEVEL, Replicated, best, difference, draws, of_means, quantile, share
from pipeline.benchmark.estimates import replicated
from pipeline.benchmark.systems import BEFORE, CONTROL, EARLIER, NO_CONTROL, REAL, SHUFFLED, System
from pipeline.catalog import Catalog
from pipeline.experiment.logs import held_out_rows, read_log
from pipeline.plan import Plan
from pipeline.report.contents import Course, Number, SummaryRow
from pipeline.report.leaderboard_view import digits
from pipeline.report.text import table

COLUMNS = ("value", "replicates", "method", "prompts", "higher_is_better")  # of the table `scores`
BASELINES = (BEFORE, SHUFFLED, NO_CONTROL)
NOTES = (
    (
        "value ± reach of its 95 % interval; gap: thousandths of the held-out loss that the hint saves the"
        " base; °  more than another's hint saves"
    ),
    (
        "<  worse than trained, image by image, beyond chance (95 %);  >  better than trained, beyond chance;"
        "  *  above both baselines beyond chance"
    ),
    "ruler: the normalized score: 0 % = the better baseline, 100 % = the real image",
)


def summary(plan: Plan, catalog: Catalog, made: list[System]) -> list[SummaryRow]:
    """In the order of the conditions; a ControlNet of which nothing is scored yet is left out."""
    scores = _scores(catalog, made)
    trained = [system for system in made if system.arm == CONTROL and system.name in scores]
    logs = {model: read_log(plan.workspace.run(model)) for model in {system.model for system in trained}}
    rows = [_row(system, made, scores, _gaps(plan, system, logs[system.model])) for system in trained]
    return sorted(rows, key=lambda row: (list(CONDITIONS).index(row.condition), row.model))


def lines(plan: Plan, catalog: Catalog, systems: list[System], page: Path) -> Iterator[str]:
    """For a person at the end of a run."""
    rows = summary(plan, catalog, systems)
    if not rows:
        return
    several = len({row.condition for row in rows}) < len(rows)
    names = [
        "  condition",
        *(["model"] if several else []),
        "measure",
        "gap before",
        "gap",
        "trained",
        "before",
        "another's",
        "no control",
    ]
    yield from table([*names, "ceiling", "ruler"], [_cells(row, several) for row in rows]).splitlines()
    yield from NOTES
    absent = {
        row.share_reason: [it.condition for it in rows if it.share_reason == row.share_reason]
        for row in rows
        if row.share_reason
    }
    yield from (
        f"no ruler of {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in absent.items()
    )
    yield f"{page} shows all of it"


def courses(catalog: Catalog, made: list[System]) -> dict[tuple[str, str], Course]:
    """Run and condition -> its primary measure from before the first image to the end, where checkpoints on
    the way were scored.
    """
    scores, images = _scores(catalog, made), dict(catalog.query("SELECT run, images FROM runs"))
    on_the_way: dict[tuple[str, str], list[System]] = {}
    for system in made:
        if system.arm == EARLIER:
            on_the_way.setdefault((system.model, system.condition), []).append(system)
    out = {}
    for (model, condition), on_way in on_the_way.items():
        metric = measures.primary(CONDITIONS[condition].kind)
        found = _found(model, condition, made, scores)
        begun = found.get(BEFORE) or found.get(NO_CONTROL)  # one that starts from the base adds nothing
        points = (
            {0: begun}
            | {it.seen: replicated(scores[it.name]) for it in on_way if scores.get(it.name)}
            | {images[model]: found.get(CONTROL)}
        )
        floor = _floor(found, metric.higher_is_better)
        out[model, condition] = Course(
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            floor=floor.value if floor else None,
            points=tuple(
                (seen, score.value, *(score.interval or (None, None)))
                for seen, score in sorted(points.items())
                if score
            ),
        )
    return out


def _cells(row: SummaryRow, several: bool) -> list[str]:
    places = digits([it.value for it in (row.trained, *row.baselines.values(), row.ceiling) if it])
    return [
        f"{'*' if row.beyond_both else ' '} {row.condition}",
        *([row.model] if several else []),
        f"{row.metric} {'↑' if row.higher_is_better else '↓'}",
        f"{_text(row.gap_before, 1)} {row.gap_verdict}".rstrip(),
        f"{_text(row.gap, 1)}{' °' if row.heard else ''}",
        _text(row.trained, places),
        *(
            f"{_text(row.baselines.get(arm), places)} {row.verdicts.get(arm, '')}".rstrip()
            for arm in BASELINES
        ),
        _text(row.ceiling, places),
        f"{_text(row.share, 0)} %" if row.share else "–",
    ]


def _text(number: Number | None, places: int) -> str:
    if number is None:
        return "–"
    return f"{number.value:.{places}f}" + (f"±{number.reach:.{places}f}" if number.reach is not None else "")


def _scores(catalog: Catalog, made: list[System]) -> dict[str, dict[str, Any]]:
    """By system, its primary measure; systems without it have an empty row as soon as anything of them is
    scored.
    """
    found: dict[str, dict[str, Any]] = {
        system: {} for (system,) in catalog.query("SELECT DISTINCT system FROM scores")
    }
    wanted = {system.name: measures.primary(CONDITIONS[system.condition].kind).name for system in made}
    for name, metric, *row in catalog.query(f"SELECT system, metric, {', '.join(COLUMNS)} FROM scores"):
        if wanted.get(name) == metric:
            found[name] = dict(zip(COLUMNS, row, strict=True))
    return found


def _row(
    system: System, made: list[System], scores: Mapping[str, Mapping[str, Any]], gaps: Mapping[str, Any]
) -> SummaryRow:
    found = _found(system.model, system.condition, made, scores)
    metric = measures.primary(CONDITIONS[system.condition].kind)
    verdicts = {
        arm: _verdict(found[CONTROL], found[arm], metric.higher_is_better)
        for arm in BASELINES
        if {arm, CONTROL} <= found.keys()
    }
    return SummaryRow(
        condition=system.condition,
        model=system.shown,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        definition=metric.definition,
        **gaps,
        trained=_number(found.get(CONTROL)),
        ceiling=_number(found.get(REAL)),
        **_share(found, metric.higher_is_better),
        verdicts=verdicts,
        baselines={arm: number for arm in BASELINES if (number := _number(found.get(arm)))},
        beyond_both=all(verdicts.get(arm) == "<" for arm in (SHUFFLED, NO_CONTROL)),
    )


def _found(
    model: str, condition: str, made: list[System], scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, Replicated]:  # by arm, without the checkpoints on the way
    beside = [
        it for it in made if it.condition == condition and it.model in (model, it.arm) and it.arm != EARLIER
    ]
    return {it.arm: replicated(scores[it.name]) for it in beside if scores.get(it.name)}


def _verdict(trained: Replicated, other: Replicated, higher_is_better: bool) -> str:
    """Of the other: < worse, > better, beyond chance; '' = within it."""
    found = difference(trained, other)
    return _side(found.low, found.high, higher_is_better)


def _side(low: float | None, high: float | None, higher_is_better: bool) -> str:
    """Of trained minus other."""
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "<" if (low > 0) == higher_is_better else ">"


def _share(found: Mapping[str, Replicated], higher_is_better: bool) -> dict[str, Any]:  # fields of SummaryRow
    """In percent, with the longer arm of its interval; or why there is none."""
    if CONTROL not in found:
        return {}
    way = share(
        found[CONTROL], _floor(found, higher_is_better), found.get(REAL), higher_is_better=higher_is_better
    )
    if isinstance(way, str):
        return {"share_reason": way}
    return {
        "share": Number(value=100 * way.value, reach=100 * max(way.high - way.value, way.value - way.low))
    }


def _floor(found: Mapping[str, Replicated], higher_is_better: bool) -> Replicated | None:
    """The better of the baselines that know nothing of the image's own hint."""
    return best((found[arm] for arm in (SHUFFLED, NO_CONTROL) if arm in found), higher_is_better)


def _number(score: Replicated | None) -> Number | None:
    between = score and score.interval
    return Number(value=score.value, reach=between[1] - score.value if between else None) if score else None


def _gaps(plan: Plan, system: System, log: list[dict[str, Any]]) -> dict[str, Any]:  # fields of SummaryRow
    """Before the training and when it was last measured; a ControlNet that begins as a copy of the base saves
    nothing before.
    """
    from train import checkpoint, held_out

    told = held_out_rows(log, system.condition)
    if not told:
        return {}
    (began, first), (_, last) = told[0], told[-1]
    done = checkpoint.newest(plan.workspace.run(system.model))
    fresh = done is not None and system.condition not in done.meta.get("warm_start", {})
    return {
        "gap_before": _gap(first) if began == 0 else Number(value=0.0) if fresh else None,
        "gap": _gap(last),
        "gap_verdict": "" if began else _gained(first, last),
        "heard": held_out.heard(last, LEVEL),
    }


def _gap(told: Mapping[str, Any]) -> Number | None:
    if told["gap"] is None:
        return None
    error, count = told["gap_error"], told["n"]
    reach = None if error is None else 1000 * error * quantile((1 + LEVEL) / 2, count - 1)
    return Number(value=1000 * told["gap"], reach=reach)


def _gained(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Of the first: as `_verdict`, pair by pair in shares of the loss, which differs a hundredfold between
    timesteps.
    """
    pairs = [
        (one, other)
        for one, other in zip(first.get("losses", ()), last.get("losses", ()), strict=False)
        if one and other is not None
    ]
    if not pairs:
        return ""
    before, after = np.array(pairs).T
    saved = of_means(1 - after / before, np.arange(len(pairs)), draws(len(pairs)))
    low, high = saved.interval or (None, None)
    return _side(low, high, higher_is_better=True)
