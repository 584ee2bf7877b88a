"""Results of several leaderboards -> one: places are told anew from the replicates of all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from annotate.conditions import CONDITIONS
from evaluate import measures, replicates
from pipeline import MillError
from pipeline.benchmark.systems import CONTROL, NO_CONTROL, PLAIN, REAL, SHUFFLED
from pipeline.report.leaderboard_data import (
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    published,
)
from pipeline.report.placing import CatalogScore, placed
from pipeline.report.results import Mark, Results

NEAR = 1e-3  # by which the same pictures may score otherwise on another machine, as a share of the value


@dataclass(frozen=True)
class Source:
    """One of the files, and what its systems are called in the merged results."""

    path: Path
    results: Results
    names: Mapping[str, str]  # system -> here; those that another file has too are left out
    origins: Mapping[str, str]  # origin -> here


def merged(files: Sequence[tuple[Path, Results]]) -> Results:
    """MillError, a sentence for each thing that differs, where they can't be compared; the same name with
    other weights is refused.
    """
    if found := [*_differences(files), *_other_versions(files)]:
        raise MillError("\n".join(found))
    sources = sources_of(files)
    scores, origins, weights, protocols = [], {}, {}, {}
    floor_of: dict[str, set[str]] = {}  # no control -> the origins whose base it is
    for source in sources:
        for system, name in source.names.items():
            weights[name] = source.results.weights[system]
            protocols[name] = source.results.protocols[system]
            origins[name] = source.origins[source.results.origins[system]]
        for each in source.results.scores:
            origin = source.origins[source.results.origins[each.system]]
            if each.variant == NO_CONTROL:
                kept = source.names.get(each.system) or _twin(sources, source, each.system)
                floor_of.setdefault(kept, set()).add(origin)
            if each.system in source.names:
                scores.append(replace(each, system=source.names[each.system], model=_shown(source, each)))
    scores.sort(key=lambda each: (list(CONDITIONS).index(each.condition), measures.place(each.metric)))

    def is_floor(of: CatalogScore, other: CatalogScore) -> bool:
        if other.variant == NO_CONTROL:
            return origins[of.system] in floor_of[other.system] and bool(protocols[of.system])
        same = other.model == of.model and origins[other.system] == origins[of.system]
        return other.variant in (SHUFFLED, PLAIN) and same

    marks: dict[str, Mark] = {}
    for source in sources:
        marks |= source.results.marks
    conditions = [name for name in CONDITIONS if name in marks]
    told = _provenances(sources)
    board = Leaderboard(
        name=" + ".join(dict.fromkeys(source.results.board.name for source in sources)),
        made_at=max(source.results.board.made_at for source in sources),
        version=sources[0].results.board.version,
        machine=", ".join(dict.fromkeys(source.results.board.machine for source in sources)),
        notes=tuple(dict.fromkeys(note for source in sources for note in source.results.board.notes)),
        metrics=tuple(_metrics(sources)),
        benchmarks=tuple(_benchmark(sources, name, scores) for name in conditions),
        models=tuple(_models(sources)),
        scores=tuple(
            placed(
                scores,
                is_floor=is_floor,
                shown=lambda of: of.model,
                provenance=lambda of: told[of.system, of.metric] | {"origin": origins[of.system]},
                protocol=lambda of: protocols[of.system],
            )
        ),
        speeds=tuple(_renamed(sources, "speeds")),
        evidence=tuple(_renamed(sources, "evidence")),
        published=published(conditions),
    )
    return Results(board, marks, weights, tuple(scores), origins, protocols)


def _differences(files: Sequence[tuple[Path, Results]]) -> Iterable[str]:
    first: dict[str, tuple[Path, Mark]] = {}
    for path, results in files:
        for condition, mark in results.marks.items():
            other, known = first.setdefault(condition, (path, mark))
            if differing := known.differences(mark):
                yield (
                    f"{condition}: {other} and {path} can't be compared ({'; '.join(differing)}): leave"
                    " one of them out."
                )


def _other_versions(files: Sequence[tuple[Path, Results]]) -> Iterable[str]:
    first: dict[str, tuple[Path, str]] = {}
    for path, results in files:
        for metric, version in {each.metric: each.metric_version for each in results.scores}.items():
            other, known = first.setdefault(metric, (path, version))
            if known != version:
                yield (
                    f"{metric} is of version {known} in {other} and {version} in {path}: score the older one"
                    " again with this ControlMill."
                )


def sources_of(files: Sequence[tuple[Path, Results]]) -> list[Source]:
    """MillError where a name means two things."""
    taken: set[str] = set()
    known: dict[str, tuple[Path, Results]] = {}  # system -> where it came from
    weights: dict[tuple[str, str], tuple[Path, str]] = {}  # model and condition -> where, and its weights
    sources = []
    for path, results in files:
        origins = {}
        for origin in sorted(set(results.origins.values())):
            origins[origin] = _free(origin, taken)
            taken.add(origins[origin])
        names: dict[str, str] = {}
        for system, of in {each.system: each for each in results.scores}.items():
            mark = results.weights.get(system, "")
            if of.variant == CONTROL:
                other, before = weights.setdefault((of.model, of.condition), (path, mark))
                if before != mark:
                    raise MillError(
                        f"{of.model} on {of.condition} has other weights in {other} than in {path}: give one"
                        " of the two another name."
                    )
            if system not in known:
                known[system] = path, results
                names[system] = system
                continue
            _, before_results = known[system]
            if of.variant == REAL:
                _same_reader(system, known[system], (path, results))
            elif (before_results.weights.get(system, ""), before_results.protocols[system]) != (
                mark,
                results.protocols[system],
            ):  # another base without control, or one model sampled in two ways
                first, _, rest = system.partition("/")
                names[system] = f"{first} ({origins[results.origins[system]]})/{rest}"
        sources.append(Source(path, results, names, origins))
    return sources


def _free(origin: str, taken: set[str]) -> str:
    number, name = 1, origin
    while name in taken:
        number += 1
        name = f"{origin} {number}"
    return name


def _same_reader(system: str, one: tuple[Path, Results], other: tuple[Path, Results]) -> None:
    """What the real images score is what the reader makes of equal pictures."""
    values = [
        {each.metric: each.value for each in results.scores if each.system == system}
        for _, results in (one, other)
    ]
    for metric in values[0].keys() & values[1].keys():
        first, second = values[0][metric], values[1][metric]
        if abs(first - second) > NEAR * max(1.0, abs(first), abs(second)):
            raise MillError(
                f"The real images score {first:g} in {one[0]} and {second:g} in {other[0]} by {metric}:"
                " the reader works otherwise there, so that the two can't be compared."
            )


def _twin(sources: Sequence[Source], of: Source, system: str) -> str:
    """What an earlier file calls a system that this one has too."""
    return next(source.names[system] for source in sources if system in source.names and source is not of)


def _shown(source: Source, of: CatalogScore) -> str:
    """What the model is called here: with its origin, where another file has its name for something else."""
    if source.names[of.system] == of.system:
        return of.model
    return f"{of.model} ({source.origins[source.results.origins[of.system]]})"


def _renamed(sources: Sequence[Source], part: str) -> Iterator[Any]:
    """The rows of a part of each board, of what its file brings."""
    for source in sources:
        own = _own(source)
        for row in getattr(source.results.board, part):
            if (row.model, row.condition) in own:
                yield replace(row, model=own[row.model, row.condition])


def _own(source: Source) -> dict[tuple[str, str], str]:
    """Model and condition of what this file brings -> what the model is called here."""
    return {
        (each.model, each.condition): _shown(source, each)
        for each in source.results.scores
        if each.system in source.names and each.variant in (CONTROL, NO_CONTROL)
    }


def _provenances(sources: Sequence[Source]) -> dict[tuple[str, str], dict[str, str]]:
    """By system and measure."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for source in sources:
        shown = {
            (score.model, score.arm, score.condition, score.metric): score.provenance
            for score in source.results.board.scores
        }
        for each in source.results.scores:
            if each.system in source.names:
                told = shown.get((each.model, each.variant, each.condition, each.metric), {})
                found[source.names[each.system], each.metric] = dict(told)
    return found


def _metrics(sources: Sequence[Source]) -> list[Measure]:
    by_name = {metric.name: metric for source in sources for metric in source.results.board.metrics}
    return [by_name[name] for name in sorted(by_name, key=measures.place)]


def _benchmark(sources: Sequence[Source], condition: str, scores: Sequence[CatalogScore]) -> FrozenBenchmark:
    first = next(
        benchmark
        for source in sources
        for benchmark in source.results.board.benchmarks
        if benchmark.condition == condition
    )
    of = (condition, CONDITIONS[condition].fidelity, CONTROL)
    compared = [each.score for each in scores if (each.condition, each.metric, each.variant) == of]
    return replace(first, detectable=replicates.detectable(compared))


def _models(sources: Sequence[Source]) -> list[LeaderboardModel]:
    found: dict[str, LeaderboardModel] = {}
    for source in sources:
        known = {model.name: model for model in source.results.board.models}
        first = {each.system: each for each in source.results.scores}
        for system in source.names:
            of = first[system]
            shown = _shown(source, of)
            model = known.get(of.model)
            if model and shown not in found:
                origin = model.origin or source.origins[source.results.origins[system]]
                date = model.date or source.results.board.made_at[:10]
                found[shown] = replace(model, name=shown, origin=origin, date=date)
    return list(found.values())
