"""A plan, and what the stages ask of it."""

from dataclasses import dataclass, field
from pathlib import Path

from annotate import annotator
from annotate.annotator import PROVIDED, Step
from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS, OWN
from annotate.label_spaces import SOURCES
from annotate.parameters import Values
from annotate.weights import PINNED, Identity
from pipeline import sources
from pipeline.catalog.indexing import DetectorRecord
from pipeline.catalog.selections import Selection
from pipeline.cluster.position import Limit
from pipeline.manifest import Manifest, Select
from pipeline.sources import Listing
from pipeline.storage.workspace import Workspace

DEFAULT_CAPTION_LIMIT = Limit(300.0, "captions.time_limit")  # of one image
PROVIDED_LIMIT = 60.0  # seconds that a map may take that came with its image


@dataclass(frozen=True)
class Planned:
    """One condition to make.

    `fingerprint` covers detector, weights, parameters, precision, library, image key and parents.
    """

    step: Step
    identity: Identity
    fingerprint: str
    select: Select
    asked: bool  # False: made only because another condition is made from it
    lack: str | None = None  # what it misses on this machine
    time_limit: float | None = None  # seconds, as the manifest gives it; None = as the detector's row says
    section: str = "conditions"  # of the manifest

    @property
    def limit(self) -> Limit:
        """Of one image."""
        row = DETECTORS.get(self.step.detector)
        seconds = self.time_limit or (row.time_limit if row else PROVIDED_LIMIT)
        return Limit(seconds, f"{self.section}.{self.name}.time_limit")

    @property
    def name(self) -> str:
        return self.step.condition

    @property
    def maps(self) -> str:
        """The name under which its maps lie: that of the condition whose maps it shares, else its own."""
        return CONDITIONS[self.name].shares or self.name

    @property
    def drawing(self) -> int:
        """2 where its hints may show a class of label_spaces.REDRAWN, which once had another colour, else 1.

        Where it is not 1 it is a part of what identifies runs and benchmarks; rendered scenes, and what
        reads them, know none of these classes.
        """
        maps = self.identity["params"].get("sources", ()) if self.step.detector == PROVIDED else ()
        spaces = {SOURCES.get(source.get("labels", "")) for source in maps}
        if self.step.detector in OWN:
            spaces |= set(CONDITIONS[self.name].label_spaces)
        return 2 if "coco_stuff_171" in spaces else 1

    def record(self) -> DetectorRecord:
        """What the catalog and the shard's footer keep of the detector."""
        licence = annotator.licence(self.step.detector, self.step.params.get("weights", PINNED))
        return {
            "condition": self.name,
            "maps": self.maps,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "licence": licence,
        }


@dataclass(frozen=True)
class PlannedCaptions:
    """Captions that a network makes of the canonical images."""

    model: str
    params: Values
    key: str  # fingerprint of captioner, weights, parameters, `when` and image key
    when: str  # missing, always
    lack: str | None
    limit: Limit = DEFAULT_CAPTION_LIMIT


@dataclass(frozen=True)
class Plan:
    manifest: Manifest
    workspace: Workspace
    image_key: str
    conditions: dict[str, Planned]  # parents before their children
    captions: PlannedCaptions | None = None
    # what reads a condition again, where it is not what made it
    readers: dict[str, Planned] = field(default_factory=dict)

    def reader(self, condition: str) -> Planned:
        """What reads the condition from generated images."""
        return self.readers.get(condition, self.conditions[condition])

    def raw_images(self, notes: list[str] | None = None) -> Listing:
        """Every raw image of the sources, in their order; `notes` takes sentences about what was left out."""
        return sources.listing(
            self.manifest.source,
            self.manifest.image,
            without=self.workspace.root,
            spool=self.workspace.spool,
            notes=notes,
        )

    def ancestry(self, condition: str) -> list[str]:
        """The names under which its maps, and those that they are made from, lie."""
        planned = self.conditions[condition]
        return [planned.maps, *(self.ancestry(planned.step.parent) if planned.step.parent else [])]

    def maps_of(self, condition: str, part: int) -> Path:
        """The shard of a condition's maps."""
        planned = self.conditions[condition]
        return self.workspace.maps(planned.maps, planned.fingerprint, part)

    def settings(self) -> dict[str, str]:
        """What the catalog's views show: the images, captions and their rule that are in force."""
        chosen = (
            {"caption_key": self.captions.key, "caption_when": self.captions.when} if self.captions else {}
        )
        return {"image_key": self.image_key, **chosen}

    def selections(self) -> dict[str, Selection]:
        """Condition -> what makes its maps pairs."""
        at = self.manifest.at
        return {
            name: Selection(
                (
                    (str(at("where")), self.manifest.where),
                    (str(at("conditions", name, "select", "where")), planned.select.where),
                ),
                planned.select.order_by,
                planned.select.limit,
                str(at("conditions", name, "select", "order_by")),
            )
            for name, planned in self.conditions.items()
        }
