"""Writes the report: pictures under the names of their hashes first, the page last, by a rename."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline.report import learning
from pipeline.report.contents import Estimate, ReportData, ScoreRow
from pipeline.report.figures import digits
from pipeline.report.plots import Axis, axis, gain_plot, learning_plot, loss_plot
from pipeline.storage.workspace import write_text

TEMPLATES = Path(__file__).parent
PICTURES = "pictures"  # folder beside index.html
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


@dataclass(frozen=True)
class Picture:
    """A file beside the page, with the size that keeps the page from jumping while it loads."""

    href: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class ScoreGroup:
    """The rows of one condition and metric on one axis, systems first; `floor` is the best baseline, `vae`
    the VAE's own ceiling.
    """

    condition: str
    metric: str
    definition: str
    higher_is_better: bool
    rows: tuple[ScoreRow, ...]
    axis: Axis
    floor: float | None
    vae: float | None
    again: str  # who read the condition again, in words; '' = not known


def render(data: ReportData, out: Path) -> Path:
    """Writes out/index.html and its pictures, replacing an older report only when the new one is whole;
    returns the page's path.
    """
    pictures: dict[str, bytes] = {}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count,
        number=number,
        reach=_reach,
        duration=_duration,
        rate=_rate,
        short=_short,
        tail=tail,
        p_value=_p_value,
    )
    page = environment.get_template("index.html").render(
        data=data,
        picture=lambda content: picture_of(content, pictures),
        groups=score_groups(data.scores),
        several=len({row.condition for row in data.summary}) < len(data.summary),
        places={
            (row.condition, row.model): digits(
                [one.value for one in (row.trained, row.ceiling, *row.baselines.values()) if one]
            )
            for row in data.summary
        },
        plots={run.name: loss_plot(run.loss) for run in data.runs},
        gains={
            run.name: {condition: gain_plot(points) for condition, points in run.gains.items()}
            for run in data.runs
        },
        learning={
            run.name: {
                condition: learning_plot(curve.points, curve.floor)
                for condition, curve in run.learning_curves.items()
            }
            for run in data.runs
        },
        told=learning.told,
        strip=max(
            data.contact,
            key=lambda row: sum(isinstance(cell, bytes) for cell in row.maps.values()),
            default=None,
        ),
        titles={condition.name: condition.title for condition in data.conditions},
        kinds={condition.name: condition.kind for condition in data.conditions},
        columns=_columns(data),
    )
    folder = out / PICTURES
    write_pictures(folder, pictures)
    index = out / "index.html"
    write_text(index, page)
    for old in folder.iterdir():
        if old.name not in pictures and not old.is_dir():
            old.unlink(missing_ok=True)
    return index


def write_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """Not synced one by one, which takes longer than all the rest: one that a crash cut short has another
    size, and is written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        place = folder / name
        if not place.exists() or place.stat().st_size != len(content):
            place.write_bytes(content)


def score_groups(scores: tuple[ScoreRow, ...]) -> list[ScoreGroup]:
    """Scores by condition, then metric, each on an axis from zero (or the lowest value) that its intervals
    fit in.
    """
    groups = []
    order = {
        key: number for number, key in enumerate(dict.fromkeys((row.condition, row.metric) for row in scores))
    }
    for (condition, metric), of_group in groupby(
        sorted(scores, key=lambda row: order[row.condition, row.metric]),
        key=lambda row: (row.condition, row.metric),
    ):
        rows = sorted(of_group, key=lambda row: row.baseline)
        ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
        floors = [row.value for row in rows if row.baseline and not row.ceiling]
        better = rows[0].higher_is_better
        groups.append(
            ScoreGroup(
                condition=condition,
                metric=metric,
                definition=rows[0].definition,
                higher_is_better=better,
                rows=tuple(rows),
                axis=axis(min(0.0, *ends), max(ends) or 1.0),
                floor=(max(floors) if better else min(floors)) if floors else None,
                vae=next((row.value for row in rows if row.vae), None),
                again=_again(rows),
            )
        )
    return groups


def _again(rows: Sequence[ScoreRow]) -> str:
    read = {(row.maker, row.detector) for row in rows}
    if not all(maker and reader for maker, reader in read):
        return ""
    if all(maker == reader for maker, reader in read):
        return "read again by the detector that made the conditions"
    return "read again by another detector, or another version or setting, than made the conditions"


def _columns(data: ReportData) -> list[str]:
    """Conditions that some row of the contact sheet has, in the order of the conditions' table."""
    present = dict.fromkeys(name for row in data.contact for name in row.maps)
    known = [condition.name for condition in data.conditions if condition.name in present]
    return known + [name for name in present if name not in known]


def picture_of(content: bytes | str | None, pictures: dict[str, bytes]) -> Picture | None:
    """Files a picture under its hash and says where; None for anything that is not one, which the page then
    says in words.
    """
    if not isinstance(content, bytes):
        return None
    try:
        with Image.open(BytesIO(content), formats=tuple(FORMATS)) as image:
            width, height, suffix = image.width, image.height, FORMATS[str(image.format)]
    except (OSError, Image.DecompressionBombError):
        return None
    name = hashlib.sha256(content).hexdigest()[:20] + suffix
    pictures[name] = content
    return Picture(f"{PICTURES}/{name}", width, height)


def count(value: float) -> str:
    return f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _reach(estimate: Estimate | None, places: int) -> str:
    if estimate is None:
        return "–"
    reach = "" if estimate.reach is None else f" ± {number(estimate.reach, places)}"
    return number(estimate.value, places) + reach


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _rate(seconds: float | None) -> str:
    """Seconds per image as images per second, with the digits that mean something."""
    if not seconds or not math.isfinite(seconds):
        return "–"
    rate = 1 / seconds
    return f"{rate:,.0f}" if rate >= 20 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"


def _short(text: str | None, length: int = 8) -> str:
    return "–" if not text else text if len(text) <= length else text[:length] + "…"


def tail(uri: str) -> str:
    """The last part of an address: what a person calls the picture."""
    return uri.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1] or uri


def _p_value(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
