"""The detectors that are built, one row each; the libraries behind a row load when it first runs."""

import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from annotate import cartoon, edges, hed, lines, pose, sketch
from annotate.conditions import Condition
from annotate.maps import RawMap
from annotate.parameters import Choice, Number, Parameter, Values
from annotate.weights import WeightFile, lacking

# images uint8 HW3 RGB, parameters, draws of each image, parents' maps (empty without a parent), device -> one map per image
Detect = Callable[[list[np.ndarray], Values, list[Values], list[RawMap], str], list[RawMap]]

OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Everything that identifies a detector and how to run it; bump `version` when its output changes."""

    name: str
    title: str
    version: int
    licence: str
    distributions: tuple[str, ...]  # names under which the library that computes may be installed; its version is identity
    modules: tuple[str, ...]  # import names that must be there
    detect: Detect
    get: str = ""  # how to install what is missing
    parameters: dict[str, Parameter]
    check: Callable[[Values], None] | None = None  # parameters that don't fit together: ValueError
    settle: Callable[[Values], Values] | None = None  # replace `auto` by what this machine does
    draw: Callable[[Values, random.Random], Values] | None = None  # the random numbers of one image
    adapt: Callable[[RawMap, Condition, Values], RawMap] | None = None  # one pass, several conditions
    weights: WeightFile | None = None
    reads_parent: bool = False


_ROWS = (
    Detector(
        name="opencv-canny", title="OpenCV Canny", version=1, licence="Apache-2.0", distributions=OPENCV, modules=("cv2",),
        detect=edges.detect, draw=edges.draw, check=edges.check,
        parameters={
            "low": Number(default=100, least=0, most=10_000, whole=True, span=True),
            "high": Number(default=200, least=0, most=10_000, whole=True, span=True),
        },
    ),
    Detector(
        name="opencv-lsd", title="OpenCV line segment detector", version=1, licence="Apache-2.0", distributions=OPENCV, modules=("cv2",),
        detect=lines.detect,
        parameters={
            "min_length": Number(default=20.0, least=0.0, most=10_000.0),  # pixels
            "min_score": Number(default=1.0, least=-100.0, most=10_000.0),  # -log10 of the number of false alarms
        },
    ),
    Detector(
        name="hed-bsds500", title="HED (VGG16, BSDS500)", version=1, licence="MIT", distributions=("torch",),
        modules=("torch", "h5py"), get="pip install torch h5py", detect=hed.detect, settle=hed.settle, weights=hed.WEIGHTS,
        parameters={"precision": Choice(default="auto", options=("auto", *hed.PRECISIONS))},
    ),
    Detector(
        name="sketch-hed", title="sketches from HED", version=1, licence="Apache-2.0", distributions=OPENCV, modules=("cv2",),
        detect=sketch.detect, draw=sketch.draw, reads_parent=True,
        parameters={
            "threshold": Number(default=(64, 192), least=1, most=254, whole=True, span=True),  # of the soft edges
            "masked": Number(default=(0.0, 0.5), least=0.0, most=1.0, span=True),  # share of the strokes taken away
            "thin": Number(default=0.5, least=0.0, most=1.0),  # chance of non-maximum suppression
            "width": Number(default=(1, 7), least=1, most=24, whole=True, span=True),  # pixels of the morphology at 512
        },
    ),
    Detector(
        name="xdog", title="flow-guided XDoG", version=1, licence="Apache-2.0", distributions=OPENCV, modules=("cv2",),
        detect=cartoon.detect,
        parameters={
            "sigma": Number(default=1.0, least=0.3, most=10.0),  # half width of a line at 512, pixels
            "sharpness": Number(default=8.0, least=0.0, most=100.0),
            "threshold": Number(default=0.12, least=0.0, most=1.0),
            "min_stroke": Number(default=24, least=0, most=10_000, whole=True),  # pixels at 512
        },
    ),
    Detector(
        name="mediapipe-pose", title="MediaPipe BlazePose (one person)", version=1, licence="Apache-2.0", distributions=("mediapipe",),
        modules=("mediapipe", "matplotlib", "absl", "google.protobuf"), get="pip install --no-deps mediapipe==0.10.21",
        detect=pose.detect, adapt=pose.adapt, weights=pose.WEIGHTS,
        parameters={
            "min_confidence": Number(default=0.5, least=0.0, most=1.0),  # of there being a person
            "min_visibility": Number(default=0.5, least=0.0, most=1.0),  # of a keypoint
        },
    ),
)  # fmt: skip

DETECTORS: dict[str, Detector] = {row.name: row for row in _ROWS}


def missing(detector: str) -> str | None:
    """One sentence on what this detector lacks here; None = it can run."""
    row = DETECTORS.get(detector)
    if row is None:
        return f"{detector} is not built yet"
    absent = [module for module in row.modules if not _installed(module)]
    if absent:
        return f"{detector} needs {', '.join(absent)}: {row.get or 'pip install ' + row.distributions[0]}"
    lack = lacking(row.weights) if row.weights else None
    return f"{detector} {lack}" if lack else None


def licence(detector: str) -> str:
    """Of the detector with its weights, as recorded with every map."""
    return DETECTORS[detector].licence


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False
