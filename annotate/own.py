"""A detector of one's own: a function of an installed package, with all that identifies its maps."""

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate import memory
from annotate.conditions import CONDITIONS, Condition
from annotate.maps import RawMap, depth_map, resolution
from annotate.parameters import Parameter, Values
from annotate.weights import WeightFile

GROUP = "controlmill.detectors"  # of entry points: a name -> what `detector` made
# image uint8 [h, w, 3] RGB, parameters, device (cpu, cuda) -> its map, or that as an array, of its size
Function = Callable[[np.ndarray, Values, str], RawMap | np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a package says of its detector. The package's name and version are part of every map's identity,
    and so is `version`: raise it where the maps change and the package's version does not.
    """

    name: str
    conditions: tuple[str, ...]  # of one kind of map
    licence: str  # of code and weights
    function: Function
    title: str = ""
    version: int = 1
    parameters: Mapping[str, Parameter] = field(default_factory=dict)  # that a manifest may set
    weights: tuple[WeightFile, ...] = ()  # without all of them it does not run
    seconds: float = 1.0  # of one image at 512 x 512 on one core, roughly
    gpu_seconds: float | None = None  # None = it computes on the CPU
    gpu_memory: float = 0.0  # GB
    time_limit: float = 300.0  # seconds that one image may take

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.name):
            raise ValueError(f"{self.name!r} is no name of a detector: small letters, digits, . _ and -")
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        if unknown or not self.conditions:
            raise ValueError(f"{self.name}: conditions are of {', '.join(CONDITIONS)}, not {unknown}")
        if len(kinds := sorted({CONDITIONS[name].kind for name in self.conditions})) > 1:
            raise ValueError(f"{self.name}: its conditions have maps of the kinds {' and '.join(kinds)}")

    def __call__(self, image: np.ndarray, params: Values, device: str = "cpu") -> RawMap | np.ndarray:
        return self.function(image, params, device)

    def detect(
        self, images: list[np.ndarray], params: Values, _: list[Values], __: list[RawMap], device: str
    ) -> list[RawMap]:
        """As rows of annotate/detectors.py; ValueError where a map is not what was promised."""
        return [self._map(image, self.function(image, dict(params), device)) for image in images]

    def _map(self, image: np.ndarray, made: Any) -> RawMap:
        first = CONDITIONS[self.conditions[0]]
        size = (int(image.shape[0]), int(image.shape[1]))
        raw = made if isinstance(made, RawMap) else _of_array(first, np.asarray(made), size)
        if raw.kind != first.kind:
            raise ValueError(f"{self.name} gave a map of kind {raw.kind} where {first.kind} was promised")
        if resolution(raw) != size:
            raise ValueError(f"{self.name} gave a map of {resolution(raw)} for an image of {size}")
        return raw


def _of_array(condition: Condition, array: np.ndarray, size: tuple[int, int]) -> RawMap:
    """With the meta that the kind of map needs, as far as the condition tells it."""
    if condition.kind == "depth":
        return depth_map(array)
    meta: dict[str, Any] = {}
    if condition.kind in ("lines", "people"):
        meta["size"] = list(size)
    if condition.layout:
        meta["layout"] = condition.layout
    if condition.label_spaces:
        meta["label_space"] = condition.label_spaces[0]
    return RawMap(condition.kind, array, meta)  # type: ignore[arg-type]


def fits(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The same map; ValueError where its keypoints or labels are not those of the condition."""
    if condition.layout and raw.meta["layout"] != condition.layout:
        raise ValueError(f"{condition.name} has keypoints {condition.layout}, not {raw.meta['layout']}")
    if condition.label_spaces and raw.meta["label_space"] not in condition.label_spaces:
        known = " or ".join(condition.label_spaces)
        raise ValueError(f"{condition.name} has labels of {known}, not of {raw.meta['label_space']}")
    return raw


def detector(**facts: Any) -> Callable[[Function], Own]:
    """Decorator: the fields of Own, all but `function`. ValueError where they don't fit together."""
    return lambda function: Own(function=function, **facts)


def installed() -> Iterator[tuple[str, str, Own | Exception]]:
    """Of each entry point: its name, its package, and the detector, or why it can't be loaded."""
    for point in importlib.metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist else ""
        try:
            found = point.load()
            if not isinstance(found, Own):
                raise TypeError(f"{point.value} is no detector: decorate it with annotate.own.detector")
            if found.name != point.name:
                raise ValueError(f"its entry point has another name than the detector {found.name}")
            yield point.name, package, found
        except Exception as error:  # somebody else's code
            memory.let_through(error)
            yield point.name, package, error
