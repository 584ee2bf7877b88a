"""What a report shows: frozen records of plain values, filled from the catalog by pipeline/stages/report.py.

Everything but the name has a default, because the report is also written while the job is under way; a part
without data says so on the page. Pictures are PNG, JPEG or WebP bytes, thumbnails of 256 px or so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the job in the strip below the title."""

    name: str
    state: Literal["done", "running", "waiting", "off"]  # off = the manifest doesn't ask for it
    detail: str = ""  # "56 images", "300 of 400 steps"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why rows were skipped or failed, or what is doubtful about ok ones; one line per reason."""

    text: str
    count: int
    status: Literal["ok", "skipped", "failed"] = "failed"
    examples: tuple[str, ...] = ()  # URIs of a few of them


@dataclass(frozen=True, kw_only=True)
class Ingest:
    by_status: Mapping[str, int]  # rows of `images`: {"ok": 14, "failed": 2}
    by_split: Mapping[str, int] = field(default_factory=dict)  # readable images only
    # canonical "512×512" -> images, in the order to show
    by_size: Mapping[str, int] = field(default_factory=dict)
    n_sources: int = 0  # addresses read, duplicates included
    n_duplicates: int = 0  # addresses whose bytes were there already
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConditionRow:
    """One of the thirteen; state "lacking" = asked for or not, it can't be made here yet."""

    name: str
    title: str
    kind: str
    state: Literal["made", "not asked", "lacking"]
    lacks: str = ""  # what is missing: the command that gets it, else a sentence
    detector: str | None = None
    version: str | None = None
    licence: str | None = None
    fingerprint: str | None = None
    ok: int = 0
    skipped: int = 0
    failed: int = 0
    todo: int = 0
    seconds: float | None = None  # mean seconds of the detector per image
    measures: Mapping[str, float] = field(default_factory=dict)  # mean over the ok rows
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ContactRow:
    """A photograph beside its maps."""

    image_id: str
    uri: str
    caption: str
    split: str
    image: bytes
    maps: Mapping[str, bytes | str]  # condition name -> picture, or why there is none
    # condition name -> what the colours of its label map stand for, the largest first
    legends: Mapping[str, tuple["LegendEntry", ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """A class of a label map."""

    name: str
    colour: str  # "#rrggbb"
    share: float  # of the map


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A training run, finished or under way."""

    name: str
    conditions: tuple[str, ...]
    base: str
    random_weights: bool
    images_seen: int
    steps: int
    seconds: float | None = None
    images_per_second: float | None = None
    loss: tuple[tuple[float, float], ...] = ()  # (images seen, loss), in order
    # by condition: (images, conditioning gain in thousandths of the loss, that with a shuffled condition)
    gains: Mapping[str, tuple[tuple[float, float, float | None], ...]] = field(default_factory=dict)
    # condition -> images seen when it began to follow its hints
    convergence_step: Mapping[str, int] = field(default_factory=dict)
    followed: Mapping[str, str] = field(default_factory=dict)  # by condition: that in a sentence
    learning_curves: Mapping[str, "LearningCurve"] = field(default_factory=dict)  # by condition
    checkpoint: str | None = None  # relative to the workspace
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Fidelity along a run's training."""

    metric: str
    higher_is_better: bool
    floor: float | None  # the better baseline at its end
    # images seen, value, interval; 0 = before the training
    points: tuple[tuple[int, float, float | None, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A system against a baseline on the same prompts and seeds (evaluate.replicates.difference)."""

    against: str
    difference: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One number of one system, with its identity (a row of the table `scores`)."""

    system: str
    baseline: bool  # no ControlNet with its own hint
    # the held-out image itself: no system is measured against it as a floor
    ceiling: bool = False
    vae: bool = False  # of the ceilings the held-out image through the VAE: the VAE's own
    condition: str
    metric: str
    value: float
    low: float | None  # 95 % interval; None = too few images for one
    high: float | None
    n: int
    n_failed: int
    higher_is_better: bool
    definition: str = ""  # evaluate.fidelity.METRICS[metric].definition
    detector: str = ""  # fingerprint of the detector that read the maps
    maker: str = ""  # fingerprint of the one that made the conditions
    checkpoint: str | None = None
    seeds: tuple[int, ...] = ()
    comparisons: tuple[PairedDifference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    value: float
    reach: float | None = None  # the longer arm of its 95 % interval; None = none is known


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The conditioning gain of one ControlNet, in thousandths of the loss: the base's held-out loss minus its
    own.
    """

    start: Estimate | None = None  # of the checkpoint it began from
    end: Estimate | None = None
    verdict: str = ""  # of the start: < smaller than at the end beyond chance, > larger, '' neither
    beyond_shuffled: bool = False  # its own hint saves more than a shuffled one, beyond chance


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """What became of one ControlNet, by the measure that says how well its condition is kept."""

    condition: str
    model: str
    metric: str
    higher_is_better: bool
    definition: str = ""
    gains: Gains = Gains()
    trained: Estimate | None = None
    ceiling: Estimate | None = None  # the held-out image itself
    normalized: Estimate | None = None  # percent of the way from the better baseline to the ceiling
    normalized_reason: str = ""  # why there is none
    # warm_start, shuffled_condition, no_control
    baselines: Mapping[str, Estimate] = field(default_factory=dict)
    # of each baseline: < worse than trained beyond chance, > better, '' neither
    verdicts: Mapping[str, str] = field(default_factory=dict)
    # above no control and the shuffled condition, beyond chance
    beyond_both: bool = False


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What one system made of a condition."""

    system: str
    baseline: bool
    image: bytes
    reread: bytes | str  # the map read again from it, or why there is none
    values: Mapping[str, float] = field(default_factory=dict)  # metric -> score of this sample


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """One held-out pair and what each system made of it."""

    condition: str
    image_id: str
    prompt: str
    seed: int
    hint: bytes  # the condition as the network saw it
    source: bytes | None = None  # the photograph that the condition was read from
    outputs: tuple[Generated, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LibraryRow:
    """A measure beside the same by torchmetrics, clean-fid or pycocotools."""

    measure: str
    library: str
    values: int
    difference: float  # the largest


@dataclass(frozen=True, kw_only=True)
class ReportData:
    name: str
    made_at: str = ""  # "2026-11-23 00:14 UTC"
    version: str = ""  # "controlmill 0.1.0, commit 1a2b3c4"
    manifest: str = ""  # the resolved manifest, YAML
    machine: Mapping[str, str] = field(default_factory=dict)
    # plain sentences that a reader must know before the numbers
    notes: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    ingest: Ingest | None = None
    conditions: tuple[ConditionRow, ...] = ()
    contact: tuple[ContactRow, ...] = ()
    get: str = ""  # the command that gets the weights of conditions that can't be made here
    runs: tuple[RunRow, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    summary: tuple[SummaryRow, ...] = ()
    evidence: tuple[EvidenceRow, ...] = ()
    # whether leaderboard/leaderboard.html lies beside the page
    leaderboard: bool = False
    libraries: tuple[LibraryRow, ...] = ()  # what `controlmill verify --libraries` found last
