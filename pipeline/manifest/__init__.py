"""A manifest: what to run, as data, complete and checked before anything runs; read and saved."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from pipeline.manifest import yaml_errors
from pipeline.manifest.dataset import Captions, ConditionSettings, Image, Select, Split
from pipeline.manifest.download import Download
from pipeline.manifest.evaluation import BASELINES, Benchmark, Evaluate, External, Features, Submitted
from pipeline.manifest.section import NAME, Real, Section, Text, Whole
from pipeline.manifest.source import (
    SOURCE_KINDS,
    AnySource,
    Column,
    DepthCoding,
    FolderSource,
    HuggingFaceSource,
    Img2DatasetSource,
    KeypointsCoding,
    ListSource,
    Member,
    NormalsCoding,
    ParquetSource,
    Provided,
    ScenesSource,
    Source,
    WebDatasetSource,
)
from pipeline.manifest.training import Run, Train
from pipeline.manifest.yaml_errors import wrong

__all__ = [
    "NAME", "SOURCE_KINDS", "AnySource", "Benchmark", "Captions", "Column", "ConditionSettings",
    "DepthCoding", "Download", "Evaluate", "External", "Features", "FolderSource", "HuggingFaceSource",
    "Image", "Img2DatasetSource", "KeypointsCoding", "ListSource", "Manifest", "Member", "NormalsCoding",
    "ParquetSource", "Provided", "Real", "Run", "ScenesSource", "Section", "Select", "Source", "Split",
    "Submitted", "Text", "Train", "WebDatasetSource", "Whole", "dump", "load", "load_saved",
]  # fmt: skip

ConditionOrNothing = Annotated[
    ConditionSettings, BeforeValidator(lambda given: {} if given is None else given)
]


class Manifest(Section):
    name: Annotated[str, Field(pattern=NAME)]
    workspace: Text
    source: Annotated[
        list[Source],
        Field(min_length=1),
        BeforeValidator(lambda given: given if isinstance(given, list) else [given]),
    ]
    image: Image = Image()
    split: Split = Split()
    # images of a part, no part of any identity; auto = about half a minute of work
    shard_images: Literal["auto"] | Annotated[Whole, Field(ge=1, le=10_000)] = "auto"
    captions: Captions | None = None
    where: str = "true"  # of every condition's `select:`; SQL over the view `candidates`
    conditions: Annotated[dict[str, ConditionOrNothing], Field(min_length=1)]
    train: Train | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _runs_name_conditions_of_the_manifest(self) -> "Manifest":
        for number, run in enumerate(self.train.runs if self.train else []):
            for name in run.conditions:
                if name not in self.conditions:
                    raise wrong(
                        f"trains {name!r}, which `conditions:` does not make: add it there",
                        "train",
                        "runs",
                        number,
                        "conditions",
                    )
        others = self.evaluate.names | set(BASELINES) if self.evaluate else set()
        for number, run in enumerate(self.train.runs if self.train else []):
            if run.name in others:
                sentence = f"{run.name!r} is the name of a baseline or an external ControlNet: change it"
                raise wrong(sentence, "train", "runs", number, "name")
        if self.evaluate and not self.train and not self.evaluate.base and self.evaluate.draws:
            raise wrong(
                "samples need a base model: set evaluate.base, or add a `train:` section; submitted pictures"
                " need none beside `baselines: [real_image]`",
                "evaluate",
            )
        if self.evaluate and self.train and self.evaluate.base not in (None, self.train.base):
            raise wrong(
                "another than train.base, and the runs belong to theirs: remove evaluate.base",
                "evaluate",
                "base",
            )
        for key in ("external", "submissions") if self.evaluate else ():
            for number, it in enumerate(getattr(self.evaluate, key)):
                if it.condition not in self.conditions:
                    raise wrong(
                        f"follows {it.condition!r}, which `conditions:` does not make: add it there",
                        "evaluate",
                        key,
                        number,
                        "condition",
                    )
        for name in self.evaluate.readers if self.evaluate else ():
            if name not in self.conditions:
                raise wrong("`conditions:` does not make it: add it there", "evaluate", "readers", name)
        return self

    @property
    def captioner(self) -> str | None:
        """The network that makes captions."""
        return self.captions.model if self.captions else None

    @property
    def draws_captions(self) -> bool:
        """Whether training draws one of an image's captions in each epoch, instead of always the first."""
        return self.captions is not None and self.captions.choose == "random"

    @property
    def base(self) -> str | None:
        """The base model of training and sampling."""
        return self.train.base if self.train else self.evaluate.base if self.evaluate else None


def load(path: Path) -> Manifest:
    """MillError has one line for each mistake."""
    return yaml_errors.read(path, Manifest)


def load_saved(path: Path) -> Manifest:
    """As `load`, of the copy that a workspace keeps, which an earlier version may have written."""
    return yaml_errors.read(path, Manifest, _renamed)


def _renamed(value: Any) -> Any:
    """A saved manifest with the keys of today."""
    frozen = (value.get("evaluate") or {}).get("benchmark") if isinstance(value, dict) else None
    if isinstance(frozen, dict):
        for old in Benchmark.renamed.keys() & frozen.keys():
            given = frozen.pop(old)
            hint = "conditional" if given else "both"
            frozen[Benchmark.renamed[old]] = hint if old == "guide_hint" else given
    return value


def dump(manifest: Manifest) -> str:
    # nulls too: `near: null` is not its default
    return yaml.safe_dump(manifest.model_dump(), sort_keys=False, allow_unicode=True)
