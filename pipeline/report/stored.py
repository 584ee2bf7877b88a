"""leaderboard.json -> the data that it was written from: pages can be written again without a workspace."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from evaluate import fidelity
from evaluate.replicates import BY_CHANCE, NO_CEILING, NO_FLOOR, NOT_BETTER, NOT_FINITE, TOO_FEW
from pipeline import MillError
from pipeline.report.leaderboard_data import (
    EvidenceSample,
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    Published,
    Score,
    Speed,
    published,
)
from pipeline.report.listings import PICTURES, STORED_AS, VERSION, Json

PARTS = {
    "metrics": Measure,
    "benchmarks": FrozenBenchmark,
    "models": LeaderboardModel,
    "scores": Score,
    "speeds": Speed,
}
Pictures = Callable[[str], bytes | None]  # the picture of an address; None where there is none
READ_AS = {key: name for name, key in STORED_AS.items()}
MEASURE = {"metrics": "name", "scores": "metric"}  # where a row names its measure


def read(folder: Path) -> Leaderboard:
    """Of this layout or an earlier one; measures that were taken out since are left out.

    MillError where there is no leaderboard.json that can be read, its layout is a later one, it breaks its
    schema, or one of its pictures is not in the folder.
    """
    file = folder / "leaderboard.json"
    try:
        text = file.read_bytes()
    except OSError as error:
        raise _no_leaderboard(str(file), error) from error
    root = folder.resolve()

    def picture(address: str) -> bytes | None:
        place = folder / address
        return place.read_bytes() if place.resolve().is_relative_to(root) and place.is_file() else None

    return parsed(text, str(file), picture)


def parsed(text: bytes, name: str, picture: Pictures) -> Leaderboard:
    """The same of the file's content, which sentences call `name`; each picture is asked for once."""
    try:
        stored = json.loads(text)
        layout = stored["layout"]
    except (ValueError, TypeError, KeyError) as error:
        raise _no_leaderboard(name, error) from error
    if layout not in range(1, VERSION + 1):
        raise MillError(
            f"{name} has layout {layout}, this ControlMill reads up to {VERSION}: use the one that wrote it."
        )

    @functools.cache
    def shown(address: str) -> bytes:
        found = picture(address)
        if found is None:
            raise MillError(f"{name} shows {address}, which is not beside it: copy its pictures/ there too.")
        return found

    try:
        return _data(stored, shown)
    except (KeyError, TypeError) as error:
        raise MillError(f"{name} does not keep to docs/leaderboard.schema.json: {error}.") from error


def _no_leaderboard(name: str, error: Exception) -> MillError:
    return MillError(
        f"{name} is no leaderboard of ControlMill ({error}): name the folder that holds leaderboard.json."
    )


def _data(stored: Json, picture: Callable[[str], bytes]) -> Leaderboard:
    parts: Json = {
        key: tuple(
            record(**_frozen(row))
            for row in stored[key]
            if not fidelity.retired(row.get(MEASURE.get(key), ""))
        )
        for key, record in PARTS.items()
    }
    parts |= {key: stored[key] for key in ("name", "made_at", "version", "machine")}
    evidence = tuple(_evidence(row, picture) for row in stored["evidence"])
    data = Leaderboard(notes=tuple(stored["notes"]), evidence=evidence, **parts)
    if stored["layout"] == 1:  # no protocols, no reasons, and a ceiling might lie below the floor
        conditions = [benchmark.condition for benchmark in data.benchmarks]
        return replace(data, scores=tuple(_placed(data)), published=published(conditions))
    return replace(data, published=tuple(Published(**_frozen(row)) for row in stored["published"]))


def _frozen(row: Json) -> Json:
    """As the records have it: no number where JSON could hold none."""
    fields = {
        READ_AS.get(key, key): tuple(value) if isinstance(value, list) else value
        for key, value in row.items()
    }
    numbers = ("value", "seconds_per_image", "score")
    return fields | {key: math.nan for key in numbers if key in fields and fields[key] is None}


def _evidence(row: Json, picture: Callable[[str], bytes]) -> EvidenceSample:
    fields = {key: value for key, value in _frozen(row).items() if key != "reason"}
    pictures = {name: None if row[name] is None else picture(row[name]) for name in PICTURES}
    reread = row["reason"] if pictures["reread"] is None else pictures["reread"]
    always = {
        "reread": reread or "",
        "hint": pictures["hint"] or b"",
        "generated": pictures["generated"] or b"",
    }
    return EvidenceSample(**fields | pictures | always)


def _placed(data: Leaderboard) -> Iterator[Score]:
    """A normalized score only where the real image has the better value; else why there is none, by the
    values.
    """
    better = {metric.name: metric.higher_is_better for metric in data.metrics}
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in data.scores:
        groups.setdefault((score.condition, score.metric), []).append(score)
    for score in data.scores:
        reason = _reason(score, groups[score.condition, score.metric], 1 if better[score.metric] else -1)
        if reason in (BY_CHANCE, TOO_FEW) and score.share is not None:
            yield score
        else:
            yield replace(score, share=None, share_low=None, share_high=None, share_reason=reason)


def _reason(score: Score, group: Sequence[Score], sign: int) -> str:
    """Which of them it is that the draws told, where floor and ceiling lie as they should."""
    shuffled = [
        other.value for other in group if other.arm == "shuffled_condition" and other.model == score.model
    ]
    floors = [other.value for other in group if other.arm == "no_control"] + shuffled
    ceiling = next((other.value for other in group if other.arm == "real_image"), None)
    if ceiling is None:
        return NO_CEILING
    if not floors:
        return NO_FLOOR
    if not all(map(math.isfinite, (score.value, ceiling, *floors))):
        return NOT_FINITE
    if sign * ceiling <= max(sign * floor for floor in floors):
        return NOT_BETTER
    return BY_CHANCE if score.low is not None else TOO_FEW
