"""What a leaderboard shows: frozen records of plain values, filled from the catalog by
pipeline/report/leaderboard_scores.py.

Its published numbers come from published.json, which says for each where it was printed.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Arm = Literal[
    "control", "warm_start", "shuffled_condition", "no_control", "plain", "real_image", "vae_round_trip"
]
# what has to be the same for two numbers of one measure to be compared
PROTOCOL = ("base", "resolution", "data", "reader", "sampler")
PUBLISHED = Path(__file__).parent / "published.json"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column; `paper` repeats published code bug for bug, `corrected` is what it should have been."""

    name: str
    title: str
    definition: str  # one sentence
    unit: str = ""  # "°", "px"; '' = none
    higher_is_better: bool
    column: Literal["corrected", "paper", "diagnostic"]
    level: Literal["sample", "set"]  # sample = a mean over samples; set = of all samples at once
    version: str
    quirks: str = ""  # of a paper column: what it repeats, named
    primary: bool = False  # the one that says how well this kind of map is kept


@dataclass(frozen=True, kw_only=True)
class FrozenBenchmark:
    """The frozen task of one condition, the same for every model."""

    condition: str
    title: str
    kind: str
    fingerprint: str
    split: str
    images: int
    samples: int  # images × seeds
    seeds: tuple[int, ...]
    sampler: str
    steps: int
    guidance: float
    scale: float
    # guidance of both, the prompt and the hint; "weighted" = with the paper's resolution weights
    guide_hint: bool | Literal["weighted"] = False
    negative: str  # the negative prompt; '' = none
    base: str
    # sides of a picture, or of the square that has its area; None = not recorded
    resolution: int | None = None
    data: str | None = None  # which images; None = not recorded
    detector: str  # made the condition: name and fingerprint
    reader: str  # read it again from what was generated; '' = nothing can
    # a true difference of the first measure that is found in 80 % of repeats at 5 %; None = no two models
    # differ
    detectable: float | None = None
    repeats: tuple[str, ...] = ()  # measures that are another one at this size, and have no column
    notes: tuple[str, ...] = ()  # sentences: what the size of the pictures does to measures

    @property
    def guided(self) -> str:
        return guided(self.guide_hint)


def guided(guide_hint: bool | str) -> str:
    """What guidance strengthens beside the prompt, as the end of "guidance 3"."""
    weights = ", weighted by resolution" * (guide_hint == "weighted")
    return f" of prompt and hint{weights}" if guide_hint else ""


@dataclass(frozen=True, kw_only=True)
class LeaderboardModel:
    name: str
    kind: Literal["run", "external", "submitted", "baseline"]
    base: str = ""
    checkpoint: str | None = None  # None or '' = no ControlNet
    note: str = ""
    origin: str = ""  # whose results it was merged from; '' = this leaderboard's own
    date: str = ""  # of those, or of a submission


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number; `share` is the normalized score: 0 = the better of no control and the shuffled
    condition, 1 = the real image.
    """

    model: str
    arm: Arm
    condition: str
    metric: str
    value: float
    low: float | None = None  # 95 % interval; None = too few prompts
    high: float | None = None
    n: int  # samples asked for, those that failed included
    n_failed: int = 0
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    share_reason: str = ""  # why there is no normalized score
    rank: tuple[int, int] | None = None  # first and last place that it may hold; None = not ranked
    # the same among the models of its own base and sampling; None = there are no others, or it is alone
    closed_rank: tuple[int, int] | None = None
    # what a reader must know before believing it: "biased: n = 200 < 10 × 64 dimensions"
    marks: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # everything that the number depends on


@dataclass(frozen=True, kw_only=True)
class Speed:
    model: str
    condition: str
    seconds_per_image: float


@dataclass(frozen=True, kw_only=True)
class EvidenceSample:
    """One sample of one model; pictures are PNG, JPEG or WebP bytes, or words where there is none."""

    condition: str
    model: str
    metric: str
    which: Literal["best", "median", "worst", "same"]  # same = an image and seed that every model is shown on
    image_id: str
    prompt: str
    seed: int
    score: float
    hint: bytes
    source: bytes | None  # the photograph that the condition was read from
    generated: bytes
    reread: bytes | str
    difference: bytes | None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number from elsewhere: shown as reported, never ranked; beside ours only where the protocol is the
    same (protocol.py).
    """

    condition: str
    metric: str  # as printed there, with the network that read the maps
    higher_is_better: bool
    model: str
    value: float
    low: float | None = None
    high: float | None = None
    source: str
    url: str
    note: str = ""
    beside: str = ""  # our measure of the same definition, by name; '' = none
    times: float = 1.0  # of ours, to stand beside it: 100 where they print percent
    base: str | None = None  # this and what follows is its protocol; None = not known
    resolution: int | None = None
    data: str | None = None
    reader: str | None = None  # read the condition again, or made the features
    sampler: str | None = None  # with steps, guidance and negative prompt


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    name: str
    made_at: str = ""  # "2026-11-23 00:14 UTC"
    version: str = ""  # "controlmill 0.1.0"
    notes: tuple[str, ...] = ()  # plain sentences that a reader must know before the numbers
    machine: str = ""
    metrics: tuple[Measure, ...] = ()  # in the order of the columns
    benchmarks: tuple[FrozenBenchmark, ...] = ()  # in the order of the page
    models: tuple[LeaderboardModel, ...] = ()
    scores: tuple[Score, ...] = ()
    speeds: tuple[Speed, ...] = ()
    evidence: tuple[EvidenceSample, ...] = ()
    published: tuple[Published, ...] = ()


def published(conditions: Collection[str]) -> tuple[Published, ...]:
    """The numbers that papers and users report for these conditions."""
    return tuple(
        row
        for row in _published(json.loads(PUBLISHED.read_text(encoding="utf-8")))
        if row.condition in conditions
    )


def _published(stored: Mapping[str, Any]) -> Iterator[Published]:
    """Of published.json: a row is a value, a pair (value, spread), or a value with its own note."""
    for table in stored["tables"]:
        source = stored["sources"][table["source"]]
        for model, row in table["rows"].items():
            printed = row if isinstance(row, dict) else {"value": row}
            value, spread = (
                printed["value"] if isinstance(printed["value"], list) else (printed["value"], None)
            )
            protocol = dict.fromkeys(PROTOCOL) | {
                name: value
                for part in (source, table, source.get("models", {}).get(model, {}))
                for name, value in part.items()
                if name in PROTOCOL
            }
            notes = [
                note
                for note in (
                    printed.get("note"),
                    table.get("note"),
                    spread is not None and table.get("spread"),
                )
                if note
            ]
            yield Published(
                condition=table["condition"],
                metric=table["metric"],
                higher_is_better=table["higher_is_better"],
                model=model,
                value=value,
                low=None if spread is None else round(value - spread, 6),
                high=None if spread is None else round(value + spread, 6),
                source=f"{source['title']}, {table['place']}" if table.get("place") else source["title"],
                url=source["url"],
                note=" ".join(note for note in notes if note),
                beside=table.get("beside", ""),
                times=table.get("times", 1.0),
                **protocol,
            )
