"""What a learning curve says, in words for somebody who has never read one."""

from collections.abc import Callable, Sequence

from pipeline.report import verdicts
from pipeline.report.contents import LearningCurve
from pipeline.report.figures import digits
from pipeline.report.verdicts import Measured

SURE = 0.05 / 13  # a chance beyond which one of thirteen conditions is not called followed
Point = tuple[int, float, float | None, float | None]  # images seen, value, its interval


def told(curve: LearningCurve) -> list[str]:
    """Sentences on what changed from the first point to the last, on the better baseline, and on whether more
    training promises more. Nothing is said of a point without an interval.
    """
    sign = 1 if curve.higher_is_better else -1
    places = digits([value for _, value, _, _ in curve.points])
    points = [point for point in curve.points if point[2] is not None]
    if len(points) < 2:
        return ["Too few images were scored to tell whether it learns: raise the samples of the benchmark."]
    first, last = points[0], points[-1]
    change = _told_apart(first, last, sign)
    words = {1: "It got better", 0: "No change that these samples can tell", -1: "It got worse"}
    sentences = [
        f"{words[change]}: {curve.metric} was {first[1]:.{places}f} at {first[0]:,} images and is"
        f" {last[1]:.{places}f} at {last[0]:,}."
    ]
    if (floor := curve.floor) is not None:
        since = _since(points, lambda point: sign * (_worst(point, sign) - floor) > 0)
        beyond = (
            "nowhere yet: it has not shown that it follows its condition"
            if since is None
            else f"since {since:,} images"
        )
        sentences.append(f"Beyond the better baseline ({floor:.{places}f}) {beyond}.")
    if change > 0:
        still = _since(points, lambda point: not _told_apart(point, last, sign))
        assert still is not None
        sentences.append(
            f"Since {still:,} images these samples tell no further gain: more training promises little."
            if still < last[0]
            else "It was still getting better when it ended: more images may bring more."
        )
    return sentences


def followed(convergence_step: int | None, measured: Sequence[tuple[int, Measured]]) -> str:
    """Whether a run follows a condition, of its convergence step and what was measured of held-out pairs."""
    if convergence_step is not None:
        return (
            f"Convergence step: it follows its condition since {convergence_step:,} images."
            if convergence_step
            else "Followed its condition before this training."
        )
    if not measured:
        return "Not seen to follow its condition yet."
    images, last = measured[-1]
    own = verdicts.followed(last)
    if own.better and own.p is not None and own.p < SURE:
        return (
            f"At {images:,} images its own hints gain more than shuffled ones, beyond chance. A convergence"
            f" step asks for more, at two measures in a row; {last['n_shuffled']} pairs may be too few for it"
            " (held_out)."
        )
    return "Not seen to follow its condition yet."


def _worst(point: Point, sign: int) -> float:
    low, high = point[2:]
    assert low is not None and high is not None
    return low if sign > 0 else high


def _told_apart(before: Point, after: Point, sign: int) -> int:
    """1 where `after` is better, -1 where it is worse, 0 where the intervals overlap."""
    if sign * (_worst(after, sign) - _worst(before, -sign)) > 0:
        return 1
    return -1 if sign * (_worst(before, sign) - _worst(after, -sign)) > 0 else 0


def _since(points: list[Point], holds: Callable[[Point], bool]) -> int | None:
    """The images from which on it holds of every point to the end; None = not of the last."""
    since = None
    for point in reversed(points):
        if not holds(point):
            break
        since = point[0]
    return since
