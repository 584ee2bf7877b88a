"""A manifest: what to run, as data. Complete and checked before anything runs; every error names file, line, key and fix."""

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline import MillError

Whole = Annotated[int, Field(strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FolderSource(Section):
    """Every file below a folder. Captions: `sidecar` (photo.txt or photo.json beside photo.jpg) or {template: "a photograph"}."""

    kind: Literal["folder"]
    path: str
    captions: Literal["sidecar", "none"] | dict[Literal["template"], str] = "sidecar"


class ListSource(Section):
    """A JSONL or CSV list with a column `image` (a path, or package:// for a file that an installed package ships)."""

    kind: Literal["list"]
    path: str
    image_column: str = "image"
    captions: dict[Literal["column", "template"], str] = {"column": "caption"}


Source = Annotated[FolderSource | ListSource, Field(discriminator="kind")]


class Image(Section):
    """The canonical image that every detector reads; changing any of it is a new image key."""

    resolution: Annotated[Whole, Field(ge=64, le=4096, multiple_of=64)] = 512
    fit: Literal["crop", "bucket"] = "crop"
    store: Literal["jpeg", "png"] = "jpeg"
    max_pixels: Annotated[Whole, Field(ge=4096)] = 100_000_000


class Split(Section):
    validation: Fraction = 0.05
    test: Fraction = 0.05
    salt: Whole | str = 0

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must leave something to train on: set them to sum below 1")
        return self


class Select(Section):
    """The rows that become pairs: SQL over the catalog's view `candidates`."""

    where: str = "true"
    order_by: str | None = None
    limit: Annotated[Whole, Field(ge=1)] | None = None


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

    conditions: Annotated[list[str], Field(min_length=1)]
    images: Annotated[Whole, Field(ge=1)]
    batch: Annotated[Whole, Field(ge=1)] = 4
    micro_batch: Annotated[Whole, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-5
    prompt_drop: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: Annotated[Whole, Field(ge=0)] = 0
    checkpoint_every: Annotated[Whole, Field(ge=1)] | None = None
    warm_start: str | None = None

    @model_validator(mode="after")
    def _divides(self) -> "Run":
        if self.images % self.batch:
            enough = -(-self.images // self.batch) * self.batch
            raise ValueError(f"images ({self.images}) must be a multiple of batch ({self.batch}): set it to {enough}")
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})")
        return self


class Train(Section):
    base: str
    runs: Annotated[list[Run], Field(min_length=1)]


class Benchmark(Section):
    split: Literal["train", "validation", "test"] = "test"
    samples: Annotated[Whole, Field(ge=1)] = 1000
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0]
    steps: Annotated[Whole, Field(ge=1, le=1000)] = 20
    guidance: Annotated[float, Field(ge=0)] = 7.5
    scale: Annotated[float, Field(ge=0)] = 1.0


class Evaluate(Section):
    benchmark: Benchmark = Benchmark()
    baselines: list[Literal["no_control", "shuffled_condition"]] = ["no_control", "shuffled_condition"]


class Manifest(Section):
    name: Annotated[str, Field(pattern=NAME)]
    workspace: str
    source: Annotated[list[Source], Field(min_length=1), BeforeValidator(lambda given: given if isinstance(given, list) else [given])]
    image: Image = Image()
    split: Split = Split()
    shard_images: Annotated[Whole, Field(ge=1, le=10_000)] = 256
    conditions: Annotated[
        dict[str, Annotated[Condition, BeforeValidator(lambda given: {} if given is None else given)]], Field(min_length=1)
    ]
    train: Train | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _runs_name_conditions_of_the_manifest(self) -> "Manifest":
        for number, run in enumerate(self.train.runs if self.train else []):
            for name in run.conditions:
                if name not in self.conditions:
                    raise ValueError(f"train.runs[{number}] trains {name!r}, which `conditions:` does not make: add it there")
        if self.evaluate and not self.train:
            raise ValueError("`evaluate:` scores what `train:` made: add a `train:` section, or remove `evaluate:`")
        return self


def load(path: Path) -> Manifest:
    """Reads and checks a manifest; MillError has one line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MillError(f"The manifest {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
        doubled = next(_doubled_keys(tree), None)
    except RecursionError:
        raise MillError(f"{path}: nested too deeply for a manifest.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise MillError(f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(value, dict):
        raise MillError(f"{path}: a manifest is a mapping of keys (name, workspace, source, …); this file holds {type(value).__name__}.")
    if doubled:
        raise MillError(f"{path}:{doubled.start_mark.line + 1}: the key {doubled.value!r} stands twice; keep one.")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        raise MillError("\n".join(dict.fromkeys(_sentence(path, tree, mistake) for mistake in error.errors()))) from None


def dump(manifest: Manifest) -> str:
    return yaml.safe_dump(manifest.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


def _doubled_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(key.value)
            yield from _doubled_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _doubled_keys(item)


def _sentence(path: Path, tree: yaml.Node | None, mistake: Any) -> str:
    """One of pydantic's mistakes as `file:line: key: what is wrong, what to do`."""
    steps: list[str | int] = []
    node, model, line = tree, Manifest, None
    for depth, step in enumerate(mistake["loc"], start=1):
        child = _child(node, step)
        absent = mistake["type"] == "missing" and depth == len(mistake["loc"])
        if child is None and not absent and (isinstance(step, int) or step not in getattr(model, "model_fields", {})):
            continue  # a union's branch or an implied list, which the file does not spell
        steps.append(step)
        if child is not None:
            node, line = child, _key_line(node, step)
        model = _model_of(model, step)
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".") or "the manifest"
    where = f"{path}:{line}" if line else f"{path}"
    given = mistake.get("input")
    message = mistake["msg"].removeprefix("Value error, ")
    match mistake["type"]:
        case "extra_forbidden":
            parent = _model_at(steps[:-1])
            known = sorted(parent.model_fields) if parent else []
            close = difflib.get_close_matches(str(steps[-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}." if known else "remove it."
            return f"{where}: {key}: unknown key; {hint}"
        case "missing":
            return f"{where}: {key}: missing; add it."
        case "value_error":
            return f"{where}: {key}: {message}." if key != "the manifest" else f"{where}: {message}."
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{where}: {key}: `kind:` must be one of folder, list."
    shown = "" if isinstance(given, dict | list) else f" (found {given!r})"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}{shown}."


def _child(node: yaml.Node | None, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def _key_line(node: yaml.Node | None, step: str | int) -> int | None:
    if isinstance(node, yaml.MappingNode):
        return next((key.start_mark.line + 1 for key, _ in node.value if key.value == str(step)), None)
    child = _child(node, step)
    return child.start_mark.line + 1 if child else None


def _model_at(steps: list[str | int]) -> type[BaseModel] | None:
    model: Any = Manifest
    for step in steps:
        model = _model_of(model, step)
    return model


def _model_of(model: Any, step: str | int) -> Any:
    """The section that a key leads to, looking through lists, optional values and unions of one section."""
    if model is None:
        return None
    if isinstance(step, int) or "model_fields" not in dir(model):
        return model
    field = model.model_fields.get(step)
    return _sections(field.annotation) if field else model


def _sections(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, dict, typing.Union, types.UnionType, Annotated):
        found = [inner for inner in map(_sections, typing.get_args(annotation)) if inner]
        return found[0] if found else None
    return None
