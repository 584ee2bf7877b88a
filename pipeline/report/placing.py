"""Scores of many systems -> places with their ties, and normalized scores."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate import caveats, measures, places, replicates
from evaluate.replicates import Replicated
from pipeline.benchmark.systems import CONTROL, NO_CONTROL, PLAIN, REAL, SHUFFLED
from pipeline.report.leaderboard_data import Score

FLOORS = (NO_CONTROL, SHUFFLED, PLAIN)
NO_FLOOR_OF_ITS_OWN = (
    "a submission with neither shuffled/ nor plain/ has no floor of its own, and ours is that of another base"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogScore:
    """A row of the table `scores`, or of the results of another leaderboard."""

    system: str
    model: str
    variant: Any  # leaderboard_data.Arm
    condition: str
    metric: str
    metric_version: str
    value: float
    low: float | None
    high: float | None
    n: int
    n_failed: int
    prompts: int
    method: str
    higher_is_better: bool
    benchmark: str
    reader: str
    checkpoint: str | None
    score_key: str
    caveats: tuple[str, ...]
    score: Replicated


def placed(
    scores: Sequence[CatalogScore],
    *,
    is_floor: Callable[[CatalogScore, CatalogScore], bool],  # of the first, whether the second is one
    shown: Callable[[CatalogScore], str],  # what pages call its model
    provenance: Callable[[CatalogScore], Mapping[str, str]],
    # what all of the closed track share: base and sampling; '' = made in a way of its own
    protocol: Callable[[CatalogScore], str],
) -> Iterator[Score]:
    """Ranks among the models, in the open track of all and in the closed one of each protocol; floors and
    ceilings from the baselines of the same benchmark.
    """
    groups: dict[tuple[str, str], list[CatalogScore]] = {}
    for each in scores:
        groups.setdefault((each.condition, each.metric), []).append(each)
    rank = dict(_ranks(groups.values()))
    closed = dict(_closed_ranks(groups.values(), protocol))
    for group in groups.values():
        ceiling = next((each.score for each in group if each.variant == REAL), None)
        floors = [each for each in group if each.variant in FLOORS]
        for each in group:
            better = each.higher_is_better
            # the best that can be had without following the condition
            floor = replicates.best((it.score for it in floors if is_floor(each, it)), better)
            share = replicates.normalized_score(each.score, floor, ceiling, higher_is_better=better)
            reason = share if isinstance(share, str) else ""
            if floor is None and each.variant == CONTROL and floors:
                reason = NO_FLOOR_OF_ITS_OWN
            way = None if isinstance(share, str) else share
            yield Score(
                model=shown(each),
                arm=each.variant,
                condition=each.condition,
                metric=each.metric,
                n=each.n,
                n_failed=each.n_failed,
                value=each.value,
                low=each.low,
                high=each.high,
                share=way and way.value,
                share_low=way and way.low,
                share_high=way and way.high,
                share_reason=reason,
                rank=rank.get((each.system, each.metric)),
                closed_rank=closed.get((each.system, each.metric)),
                marks=each.caveats,
                provenance=provenance(each),
            )


def _closed_ranks(
    groups: Iterable[Sequence[CatalogScore]], protocol: Callable[[CatalogScore], str]
) -> Iterator[tuple[tuple[str, str], places.Places]]:
    """Among the models of one protocol, where others are compared too: else it is the rank among all."""
    by_protocol: dict[str, list[list[CatalogScore]]] = {}
    for group in groups:
        models = [each for each in group if each.variant == CONTROL]
        protocols = {protocol(each) for each in models}
        for name in sorted(protocols - {""}) if len(protocols) > 1 else ():
            of_one = [each for each in models if protocol(each) == name]
            by_protocol.setdefault(name, []).append(of_one)
    for tables in by_protocol.values():
        yield from _ranks(tables)


def _ranks(
    groups: Iterable[Sequence[CatalogScore]],  # each of one condition and measure
) -> Iterator[tuple[tuple[str, str], places.Places]]:  # (system, measure) -> places
    """Corrected over all conditions of a measure, and over the main measures of all conditions, which a
    reader takes in together.
    """
    families: dict[str, list[list[CatalogScore]]] = {}
    for group in groups:
        ranked = [each for each in group if each.variant == CONTROL and not caveats.unranked(each.caveats)]
        if len(ranked) > 1:
            metric = measures.metric(ranked[0].metric)
            families.setdefault("" if metric.primary else metric.name, []).append(ranked)
    for family in families.values():
        tables = [
            places.Table([each.score for each in ranked], ranked[0].higher_is_better) for ranked in family
        ]
        for ranked, held in zip(family, places.ranks_of(tables), strict=True):
            yield from zip(((each.system, each.metric) for each in ranked), held, strict=True)
