"""A manifest: what to run, as data, complete and checked before anything runs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from pipeline.manifest import yaml_errors
from pipeline.manifest.places import Place
from pipeline.manifest.yaml_errors import wrong


def _number(given: Any) -> Any:
    """YAML takes 1e-5 for text, since there is no point in it."""
    try:
        return float(given) if isinstance(given, str) else given
    except ValueError:
        return given


Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_number)]  # no truth value
Fraction = Annotated[Real, Field(ge=0, lt=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Section(BaseModel):
    """Part of a manifest: its keys and no others.

    It remembers where it stands in the file that it was read from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    _place: Place = PrivateAttr(default=Place())

    def at(self, *steps: str | int) -> Place:
        """Where a key below stands: as text, file, line and key, for the beginning of a sentence about it."""
        return self._place.at(*steps)


class Provided(Section):
    """Where the map of a condition lies that comes with the images, and how its numbers read
    (pipeline/dataset/provided.py).
    """

    path: Text | None = None  # folders: a path below the source's, with {folder}, {stem}, {name} of the image
    column: Text | None = None  # lists, tables: the column; archives: the member's extension, seg.png
    labels: (
        Literal["ade20k_150", "ade20k_png", "coco_stuff_171", "coco_stuff_png", "coco_panoptic_133"] | None
    ) = None
    depth: Literal["distance", "inverse"] | None = None  # a distance of 0 is invalid
    normals: Literal["x right, y up, z to the viewer", "x right, y down, z away"] | None = None
    keypoints: Literal["coco", "openpose"] | None = None
    mask: str | None = None  # as `path` or `column`: where it is 0, the map is invalid

    @model_validator(mode="after")
    def _says_where(self) -> "Provided":
        if (self.path is None) == (self.column is None):
            raise wrong("set `path` (folders) or `column` (lists, tables, archives), one of them")
        for key, name in (("path", self.path), ("mask", self.mask if self.path else None)):
            try:
                (name or "").format(folder="", stem="", name="")
            except (LookupError, ValueError, AttributeError):
                raise wrong(
                    f"{name!r} may name {{folder}}, {{stem}} and {{name}} of the image, nothing else in"
                    " braces",
                    key,
                ) from None
        return self


ProvidedMaps = dict[str, Provided]  # by condition
Column = Literal["none"] | dict[Literal["column", "template"], str]
Member = Literal["none"] | dict[Literal["member", "json", "template"], str]


class FolderSource(Section):
    """Every file below a folder.

    Captions: `sidecar` (photo.txt or photo.json beside photo.jpg) or {template: "a photograph"}.
    """

    kind: Literal["folder"]
    path: Text
    captions: Literal["sidecar", "none"] | dict[Literal["template"], str] = "sidecar"
    provided: ProvidedMaps = {}


class ListSource(Section):
    """A JSONL or CSV list with a column `image` (a path, or package:// for a file that an installed package
    ships).
    """

    kind: Literal["list"]
    path: Text
    image_column: str = "image"
    captions: dict[Literal["column", "template"], str] = {"column": "caption"}
    provided: ProvidedMaps = {}


class WebDatasetSource(Section):
    """Tars of samples: a .tar, a folder of them, or a glob.

    Captions: a member's extension, or a key of the .json member.
    """

    kind: Literal["webdataset"]
    path: Text
    captions: Member = {"member": "txt"}
    provided: ProvidedMaps = {}


class Img2DatasetSource(Section):
    """What img2dataset wrote, in any of its formats: tars, folders of files, or Parquet."""

    kind: Literal["img2dataset"]
    path: Text
    captions: Member = {"member": "txt"}


class ParquetSource(Section):
    """Parquet files: one, a folder of them, or a glob.

    An image is bytes, a struct with bytes, or a path relative to the file.
    """

    kind: Literal["parquet"]
    path: Text
    image_column: str = "image"
    captions: Column = {"column": "text"}
    provided: ProvidedMaps = {}


class HuggingFaceSource(Section):
    """A dataset of the hub or a local one.

    `streaming` keeps what it has read in the workspace, up to `count` rows.
    """

    kind: Literal["huggingface"]
    path: Text
    name: str | None = None  # the configuration
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    count: Annotated[Whole, Field(ge=1)] | None = None
    image_column: str = "image"
    captions: Column = {"column": "text"}
    provided: ProvidedMaps = {}


class ScenesSource(Section):
    """Rendered scenes at `image.resolution`, with exact depth, normals, labels and keypoints."""

    kind: Literal["scenes"]
    count: Annotated[Whole, Field(ge=1)]
    seed: Annotated[Whole, Field(ge=0)] = 0
    most_objects: Annotated[Whole, Field(ge=1)] = 4  # in a scene, the figure not counted
    # share of the picture that an object's box has at least
    least_box: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    least_visible: Annotated[Real, Field(ge=0, le=1)] = 0.0  # share of an object that nothing hides, at least


AnySource = (
    FolderSource
    | ListSource
    | WebDatasetSource
    | Img2DatasetSource
    | ParquetSource
    | HuggingFaceSource
    | ScenesSource
)
Source = Annotated[AnySource, Field(discriminator="kind")]
SOURCE_KINDS = tuple(get_args(section.model_fields["kind"].annotation)[0] for section in get_args(AnySource))


class Image(Section):
    """The canonical image that every detector reads; changing any of it is a new image key."""

    resolution: Annotated[Whole, Field(ge=64, le=4096, multiple_of=64)] = 512
    fit: Literal["crop", "bucket"] = "crop"
    store: Literal["jpeg", "png"] = "jpeg"
    max_pixels: Annotated[Whole, Field(ge=4096)] = 100_000_000


class Split(Section):
    """A function of salt and group.

    Near-duplicates share a group: images whose 64-bit perceptual hashes differ in `near` bits at most.
    """

    validation: Fraction = 0.05
    test: Fraction = 0.05
    salt: Whole | str = 0
    near: Annotated[Whole, Field(ge=0, le=16)] | None = 6  # None: only equal files are one group

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "Split":
        if self.validation + self.test >= 1:
            raise wrong("validation + test must leave something to train on: set them to sum below 1")
        return self


class Select(Section):
    """The rows that become pairs: SQL over the catalog's view `candidates`."""

    where: str = "true"
    order_by: str | None = None
    limit: Annotated[Whole, Field(ge=1)] | None = None


class Captions(BaseModel):
    """Captions by a network, for the images that came without one, or for all; every further key is a
    parameter of the captioner.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    model: str = "blip-base"
    when: Literal["missing", "always"] = "missing"

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Condition(BaseModel):
    """Detector and selection; every further key is a parameter of the detector, checked by the detector."""

    model_config = ConfigDict(extra="allow", frozen=True)
    detector: str = "auto"
    select: Select = Select()

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Run(Section):
    """One training run: these conditions' ControlNets, together over one pass of the locked base."""

    # what pages call it, no part of its identity; None = its conditions and a hash
    name: Annotated[str, Field(pattern=NAME, max_length=40)] | None = None
    conditions: Annotated[list[str], Field(min_length=1)]
    images: Annotated[Whole, Field(ge=1)]
    batch: Annotated[Whole, Field(ge=1)] = 4
    micro_batch: Annotated[Whole, Field(ge=1)] | None = None
    lr: Annotated[Real, Field(gt=0, le=1)] = 1e-5
    prompt_drop: Annotated[Real, Field(ge=0, le=1)] = 0.5
    seed: Annotated[Whole, Field(ge=0)] = 0
    checkpoint_every: Annotated[Whole, Field(ge=1)] | None = None
    # a condition that another run trains, or a ControlNet: for all conditions, or by condition
    warm_start: str | dict[str, str] | None = None
    # middle: the paper's small-scale training, without residuals for the skips
    connect: Literal["full", "middle"] = "full"
    # of the base; its weights are then saved in unet/ beside the ControlNet's
    unlock: Literal["none", "decoder", "all"] = "none"
    # None = lr; the released code's advice is 2e-6
    unlock_lr: Annotated[Real, Field(gt=0, le=1)] | None = None
    min_snr: Annotated[Real, Field(gt=0)] | None = None  # gamma of the min-SNR weighting, usually 5
    # half-life in images of an average of the weights; it samples
    ema: Annotated[Real, Field(gt=0)] | None = None
    gradient_checkpointing: bool = False  # less memory for more time
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the passes; auto: bf16 on a GPU, else fp32
    compile: Literal["auto", True, False] = "auto"  # auto: on a GPU
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    # share of images seen mirrored, hints and all, where the caption allows it
    flip: Annotated[Real, Field(ge=0, le=1)] = 0.0
    join: bool = False  # one decoder pass for all conditions: faster while batches are small, more memory
    gpus: Annotated[Whole, Field(ge=1)] = 1  # the batch is cut among them; without a GPU, processes
    # pairs of the validation split that the loss gap is measured on; 0 = none
    held_out: Annotated[Whole, Field(ge=0)] = 64
    # images between two such measures; None = as checkpoint_every
    watch_every: Annotated[Whole, Field(ge=1)] | None = None
    # images between checkpoints that stay for good; None = the newest stay
    keep_every: Annotated[Whole, Field(ge=1)] | None = None
    # held-out pairs that are drawn at each checkpoint; None = 4 on a GPU, else 0
    grids: Annotated[Whole, Field(ge=0)] | None = None

    @property
    def starts(self) -> dict[str, str]:
        """What each condition starts from; one that is not here starts from the base."""
        if isinstance(self.warm_start, str):
            return dict.fromkeys(self.conditions, self.warm_start)
        return dict(self.warm_start or {})

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights.

        Keys younger than the first release count where they are set, so that runs trained before keep their
        names.

        Left out: what only says how a run is called, watched and kept (`name`, `held_out`, `watch_every`,
        `keep_every`, `grids`, and `checkpoint_every`); `gradient_checkpointing`, whose gradients are the
        same; and `micro_batch`, which changes no more than the weights' last bits, is said where it changes
        on the way, and is halved anyway where memory runs out. These two once counted, so their default still
        stands here. `gpus`, `precision`, `compile`, `optimizer` and `join` decide bits, and stay.
        """
        young = {
            "connect",
            "unlock",
            "unlock_lr",
            "min_snr",
            "ema",
            "precision",
            "compile",
            "optimizer",
            "flip",
            "join",
            "gpus",
        }
        usual = {key for key in young if getattr(self, key) == type(self).model_fields[key].default}
        told = self.model_dump(
            exclude=usual
            | {"name", "gradient_checkpointing", "held_out", "watch_every", "keep_every", "grids"}
        )
        return told | {"micro_batch": None, "checkpoint_every": None}

    @model_validator(mode="after")
    def _is_called_otherwise_than_runs_are_by_themselves(self) -> "Run":
        if self.name and re.search("-[0-9a-f]{8}$", self.name):
            raise wrong(
                f"{self.name!r} ends as the names that runs have by themselves: change its end", "name"
            )
        return self

    @model_validator(mode="after")
    def _modes_agree(self) -> "Run":
        doubled = sorted({name for name in self.conditions if self.conditions.count(name) > 1})
        if doubled:
            raise wrong(f"names {', '.join(doubled)} twice: keep one", "conditions")
        if stray := sorted(set(self.starts) - set(self.conditions)):
            raise wrong(
                f"names {', '.join(stray)}, which this run does not train: take it out, or add it to"
                " conditions",
                "warm_start",
            )
        if self.unlock != "none" and len(self.conditions) > 1:
            raise wrong(
                f"{' and '.join(self.conditions)} share one locked base: with unlock: {self.unlock} give each"
                " a run of its own",
                "unlock",
            )
        if self.unlock == "none" and self.unlock_lr is not None:
            raise wrong(
                "says nothing while unlock is none: remove it, or set unlock to decoder or all", "unlock_lr"
            )
        if self.ema is not None and self.ema < 1:
            raise wrong(
                f"a half-life in images is wanted, not a decay per step ({self.ema}): a decay d is batch * ln"
                " 2 / -ln d images",
                "ema",
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> "Run":
        if self.images % self.batch:
            enough = -(-self.images // self.batch) * self.batch
            raise wrong(
                f"images ({self.images}) must be a multiple of batch ({self.batch}): set it to {enough}",
                "images",
            )
        if self.micro_batch and self.batch % self.micro_batch:
            raise wrong(
                f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch}): change one of"
                " them",
                "micro_batch",
            )
        if self.batch % self.gpus:
            enough = -(-self.batch // self.gpus) * self.gpus
            raise wrong(
                f"batch ({self.batch}) must be a multiple of gpus ({self.gpus}), which share it: set it to"
                f" {enough}",
                "batch",
            )
        return self


class Train(Section):
    base: Text
    runs: Annotated[list[Run], Field(min_length=1)]

    def waits_for(self, number: int) -> dict[str, int]:
        """Condition of run `number` -> the run that it starts from: the nearest above that trains what is
        wanted, else the first below.
        """
        others = [*range(number - 1, -1, -1), *range(number + 1, len(self.runs))]
        found = {
            name: [it for it in others if wanted in self.runs[it].conditions]
            for name, wanted in self.runs[number].starts.items()
        }
        return {name: makers[0] for name, makers in found.items() if makers}

    @model_validator(mode="after")
    def _names_are_names(self) -> "Train":
        names = [run.name for run in self.runs if run.name]
        for number, run in enumerate(self.runs):
            if names.count(run.name or "") > 1:
                raise wrong(f"two runs are called {run.name!r}: change one", "runs", number, "name")
        return self

    @model_validator(mode="after")
    def _warm_starts_end(self) -> "Train":
        for number, run in enumerate(self.runs):
            place = ("runs", number, "warm_start")
            for name, wanted in run.starts.items():
                if wanted in run.conditions and name not in self.waits_for(number):
                    raise wrong(
                        f"this run trains {wanted!r} itself: name a condition that another run trains, or a"
                        " ControlNet's folder",
                        *place,
                    )
            if circle := self._circle((number,)):
                raise wrong(
                    f"runs {', '.join(map(str, circle))} wait for each other in a circle: take one"
                    " warm_start out",
                    *place,
                )
        return self

    def _circle(self, seen: tuple[int, ...]) -> tuple[int, ...] | None:
        """The way from the first of these runs back to it, over those that each waits for."""
        for other in self.waits_for(seen[-1]).values():
            if other == seen[0]:
                return seen
            if other not in seen and (found := self._circle((*seen, other))):
                return found
        return None


class Benchmark(Section):
    """What every system is asked for, frozen: samples of other benchmarks are never compared."""

    split: Literal["train", "validation", "test"] = "test"
    samples: Annotated[Whole, Field(ge=1)] = 1000  # images of the split, each with every seed
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0]
    num_inference_steps: Annotated[Whole, Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[Real, Field(ge=0)] = 7.5
    negative_prompt: str = ""  # of the unconditional branch
    controlnet_conditioning_scale: Annotated[Real, Field(ge=0)] = 1.0
    # the branches of classifier-free guidance that see the hint: both, as in the released code, or the
    # conditional one alone, so that guidance strengthens the hint as well as the prompt (paper, 3.5)
    cfg_hint: Literal["both", "conditional"] = "both"
    renamed: ClassVar[Mapping[str, str]] = {
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "negative": "negative_prompt",
        "scale": "controlnet_conditioning_scale",
        "guide_hint": "cfg_hint",
    }

    def stored(self, *keys: str) -> dict[str, object]:
        """Under the names and values of the first versions, which fingerprints and notes are made of: all of
        them, or these.
        """
        values = {
            "split": self.split,
            "samples": self.samples,
            "seeds": self.seeds,
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "negative": self.negative_prompt,
            "scale": self.controlnet_conditioning_scale,
            "guide_hint": self.cfg_hint == "conditional",
        }
        return {key: values[key] for key in keys or values}


class External(Section):
    """Somebody's ControlNet, scored beside the runs."""

    name: Annotated[str, Field(pattern=NAME)]
    condition: str
    checkpoint: str  # a diffusers folder, a file in the original layout, or a hub id


class Features(Section):
    """A network whose features the distribution is measured on."""

    extractor: str  # a name of evaluate.extractors
    weights: str | None = None  # file or folder; None = those that an installed package ships


Baseline = Literal[
    "no_control", "shuffled_condition", "vae_round_trip", "real_image", "warm_start", "earlier"
]
BASELINES = get_args(Baseline)


class Evaluate(Section):
    base: Text | None = None  # None = train.base
    benchmark: Benchmark = Benchmark()
    baselines: list[Baseline] = ["no_control", "shuffled_condition", "vae_round_trip", "real_image"]
    external: list[External] = []
    # another detector to read a condition again from what was generated; else the one that made it
    readers: dict[str, Condition] = {}
    features: list[Features] = []
    clip: str | None = None  # `mini`, or the folder of a CLIP in transformers' layout

    @model_validator(mode="after")
    def _names_are_names(self) -> "Evaluate":
        names = [(it.name, it.condition) for it in self.external]
        doubled = sorted({name for name, condition in names if names.count((name, condition)) > 1})
        if doubled:
            raise wrong(
                f"names {', '.join(doubled)} twice for one condition: call one of them otherwise", "external"
            )
        return self


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
    shard_images: Annotated[Whole, Field(ge=1, le=10_000)] = 256
    captions: Captions | None = None
    where: str = "true"  # of every condition's `select:`; SQL over the view `candidates`
    conditions: Annotated[
        dict[str, Annotated[Condition, BeforeValidator(lambda given: {} if given is None else given)]],
        Field(min_length=1),
    ]
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
        others = {it.name for it in self.evaluate.external} | set(BASELINES) if self.evaluate else set()
        for number, run in enumerate(self.train.runs if self.train else []):
            if run.name in others:
                sentence = f"{run.name!r} is the name of a baseline or an external ControlNet: change it"
                raise wrong(sentence, "train", "runs", number, "name")
        if self.evaluate and not self.train and not self.evaluate.base:
            raise wrong("samples need a base model: set evaluate.base, or add a `train:` section", "evaluate")
        if self.evaluate and self.train and self.evaluate.base not in (None, self.train.base):
            raise wrong(
                "another than train.base, and the runs belong to theirs: remove evaluate.base",
                "evaluate",
                "base",
            )
        for number, it in enumerate(self.evaluate.external if self.evaluate else []):
            if it.condition not in self.conditions:
                raise wrong(
                    f"follows {it.condition!r}, which `conditions:` does not make: add it there",
                    "evaluate",
                    "external",
                    number,
                    "condition",
                )
        for name in self.evaluate.readers if self.evaluate else ():
            if name not in self.conditions:
                raise wrong("`conditions:` does not make it: add it there", "evaluate", "readers", name)
        return self

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
