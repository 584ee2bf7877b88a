"""What a reader must know before believing a score of few; thresholds come from benchmarks/intervals.py."""

from collections.abc import Iterable, Sequence

from evaluate import frechet, lines, people
from evaluate.comparison import Counts, Metric

SPARSE = 1000  # images of each side, below which neighbourhoods are too wide, and CMMD is mostly bias
_SPARSE = {
    **dict.fromkeys(
        ("precision", "recall", "density", "coverage"),
        ", where five neighbours reach across what a model leaves out",
    ),
    "cmmd": ", where two sets of one kind seem apart",
}
_BIASED = {"fd": "biased", "fd_groups": "biased", "fd_infinity": "extrapolated from few"}
ENOUGH = 500  # people or lines, from which an average precision is high by 0.02 at most
_ASKED = {  # average precision -> what of a sample's counts says how many there are to be found
    **dict.fromkeys(("people_ap", "people_ap50", "people_ap75"), "n_truth"),
    **{f"people_ap_{size}": f"n_truth_{size}" for size in people.SIZES},
    **{f"line_sap_{reach:g}": "n_truth" for reach in lines.REACHES},
}
_RANKED_BY, _NOT_RANKED = "; ranked by", "; not ranked"


def of_distance(metric: Metric, *, made: int, real: int, asked: int) -> list[str]:
    """Of a distance between `made` and `real` images, where `asked` were to be made.

    Both sides count: however many are made of a prompt, their distance is to the few real ones. What has no
    image has no features either, and no worst: leaving it out may help, so the score has no rank.
    """
    n, what = min(made // metric.groups, real), metric.name.partition(" ")[0]
    said = []
    if made < asked:
        said.append(
            f"{asked - made:,} missing: of {asked:,} samples {made:,} have an image, and a distance knows no"
            f" others{_NOT_RANKED}"
        )
    if what in _SPARSE and n < SPARSE:
        said.append(f"high for few: n = {n:,} < {SPARSE:,}{_SPARSE[what]}{_RANKED_BY} kd")
    if what in _BIASED and metric.dimensions and frechet.ranking(n, metric.dimensions) != "fd":
        said.append(
            f"{_BIASED[what]}: n = {n:,} < {frechet.ENOUGH} × {metric.dimensions:,} dimensions{_RANKED_BY} kd"
        )
    return said


def of_precision(metric: Metric, counts: Sequence[Counts]) -> list[str]:  # of one sample of each prompt
    """An average precision takes the best precision at each recall or beyond, and of few that is chance.

    It keeps its rank: at equal n the bias of two systems differs by about a standard error at most.
    """
    if metric.name not in _ASKED:
        return []
    asked = sum(int(image[_ASKED[metric.name]][0]) for image in counts)
    if asked >= ENOUGH:
        return []
    what = "people" if metric.kind == "people" else "lines"
    return [
        f"high for few: {asked:,} {what} < {ENOUGH}, of which it is high by chance (of 20 by up to 0.08, of"
        f" {ENOUGH} by 0.02); compare it at equal n only"
    ]


def unranked(marks: Iterable[str]) -> bool:
    """Whether one of a score's marks takes its rank: such a mark ends by saying so."""
    return any(_RANKED_BY in mark or mark.endswith(_NOT_RANKED) for mark in marks)
