"""The detectors that are built, one row each; the libraries behind a row load when it first runs."""

import functools
import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from annotate import (
    cartoon,
    controlnet_hed,
    depth,
    depth_anything,
    depth_pro,
    dwpose,
    edges,
    eomt,
    hed,
    inference,
    lineart,
    lines,
    marigold,
    mlsd,
    normals,
    openpifpaf,
    openpose,
    own,
    pidinet,
    pose,
    segmentation,
    sketch,
    teed,
    tips,
    vitpose,
)
from annotate.conditions import CONDITIONS, Condition
from annotate.maps import RawMap
from annotate.mini import detect as mini
from annotate.movenet import detect as movenet
from annotate.parameters import Choice, Number, Parameter, Values
from annotate.weights import PINNED, WeightFile, identity, lacking

# images uint8 HW3 RGB, parameters, random parameters of each image, parents' maps (empty without a parent),
# device -> one map per image
Detect = Callable[[list[np.ndarray], Values, list[Values], list[RawMap], str], list[RawMap]]

# what a shared pass found, one of its conditions, parameters -> that condition's map
Adapt = Callable[[RawMap, Condition, Values], RawMap]
PROVIDED = "provided"  # in place of a detector: the map that came with the image

OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Everything that identifies a detector and how to run it; bump `version` when its output changes."""

    name: str
    title: str
    version: int
    licence: str
    # names under which the library that computes may be installed; its version is identity
    distributions: tuple[str, ...]
    modules: tuple[str, ...]  # import names that must be there
    detect: Detect
    get: str = ""  # how to install what is missing
    parameters: dict[str, Parameter]
    # `preset: NAME` in a manifest -> parameters; others that it gives go before these
    presets: dict[str, Values] = field(default_factory=dict)
    check: Callable[[Values], None] | None = None  # parameters that don't fit together: ValueError
    settle: Callable[[Values], Values] | None = None  # replace `auto` by what this machine does
    unable: Callable[[Values], str | None] | None = None  # why this machine can't compute with these
    draw_params: Callable[[Values, random.Random], Values] | None = None  # the random numbers of one image
    adapt: Adapt | None = None  # one pass, several conditions
    weights: tuple[WeightFile, ...] = ()  # all of them or nothing works
    reads_parent: bool = False
    # of one image at 512 x 512, roughly: seconds on one core of a CPU, on a GPU, and what it takes there
    seconds: float
    gpu_seconds: float | None = None  # None = it computes on the CPU, also where there is a GPU
    gpu_memory: float = 0.0  # GB: the network, and a batch of a few images
    time_limit: float  # seconds that one image may take, unless the manifest says otherwise


_ROWS = (
    Detector(
        name="opencv-canny", title="OpenCV Canny", version=1, licence="Apache-2.0", distributions=OPENCV,
        modules=("cv2",),
        detect=edges.detect, draw_params=edges.draw_params, check=edges.check,
        seconds=0.008, time_limit=60.0,
        parameters={
            "low": Number(default=100, least=0, most=10_000, whole=True, span=True),
            "high": Number(default=200, least=0, most=10_000, whole=True, span=True),
        },
    ),
    Detector(
        name="kornia-canny", title="Canny as kornia computes it (0.1, 0.2)", version=1, licence="Apache-2.0",
        distributions=OPENCV, modules=("cv2",),
        detect=edges.detect_kornia,
        seconds=0.03, time_limit=60.0,
        parameters={},
    ),
    Detector(
        name="opencv-lsd", title="OpenCV line segment detector", version=1, licence="Apache-2.0",
        distributions=OPENCV, modules=("cv2",),
        detect=lines.detect,
        seconds=0.03, time_limit=60.0,
        parameters={
            "min_length": Number(default=20.0, least=0.0, most=10_000.0),  # pixels
            # -log10 of the number of false alarms
            "min_score": Number(default=1.0, least=-100.0, most=10_000.0),
        },
    ),
    Detector(
        name="mlsd", title="M-LSD large", version=1, licence="Apache-2.0 (code and weights)",
        distributions=("controlnet-aux",),
        modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch", detect=mlsd.detect,
        settle=inference.settle,
        weights=(mlsd.WEIGHTS,),
        seconds=1.5, gpu_seconds=0.03, gpu_memory=2.0, time_limit=300.0,
        parameters={
            "resolution": inference.resolution(512),
            "thr_v": Number(default=0.1, least=0.0, most=1.0),  # probability of a segment's centre
            # length of a segment, in cells of two pixels of what the network sees
            "thr_d": Number(default=0.1, least=0.0, most=1000.0),
            # not auto: ends are numbers of hundreds of pixels, and bf16 has eight bits of them
            "precision": Choice(default="fp32", options=inference.PRECISION.options),
        },
    ),
    Detector(
        name="controlnet-hed", title="ControlNet's HED", version=1, licence="Apache-2.0 (code and weights)",
        distributions=("torch",),
        modules=("torch",), detect=controlnet_hed.detect, settle=hed.settle,
        unable=hed.unable,
        weights=(controlnet_hed.WEIGHTS,),
        seconds=0.9, gpu_seconds=0.02, gpu_memory=2.0, time_limit=300.0,
        parameters={
            "resolution": inference.resolution(0),  # other than 0, sides are rounded to 64 as in the release
            # repeated pixels: 16 keeps the frame off plain borders; the release has 0
            "margin": Number(default=0, least=0, most=64, whole=True),
            "precision": Choice(default="auto", options=("auto", *hed.PRECISIONS)),
        },
    ),
    Detector(
        name="hed-bsds500", title="HED (VGG16, BSDS500)", version=1, licence="MIT", distributions=("torch",),
        modules=("torch", "h5py"), get="pip install torch h5py", detect=hed.detect, settle=hed.settle,
        unable=hed.unable,
        weights=(hed.WEIGHTS,),
        seconds=0.9, gpu_seconds=0.02, gpu_memory=2.0, time_limit=300.0,
        parameters={"precision": Choice(default="auto", options=("auto", *hed.PRECISIONS))},
    ),
    Detector(
        name="pidinet", title="PiDiNet (BSDS500)", version=1,
        licence="research only, commercial use by agreement with its authors (code and weights)",
        distributions=("controlnet_aux",),
        modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch", detect=pidinet.detect,
        settle=inference.settle,
        weights=(pidinet.WEIGHTS,),
        seconds=0.9, gpu_seconds=0.01, gpu_memory=2.0, time_limit=300.0,
        parameters={"resolution": inference.resolution(512), "precision": inference.PRECISION},
    ),
    Detector(
        name="teed", title="TEED (BIPED)", version=1, licence="MIT (code and weights)",
        distributions=("controlnet_aux",),
        modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch", detect=teed.detect,
        settle=inference.settle,
        weights=(teed.TEED,),
        seconds=0.4, gpu_seconds=0.01, gpu_memory=1.0, time_limit=300.0,
        parameters={"resolution": inference.resolution(512), "precision": inference.PRECISION},
    ),
    Detector(
        name="anyline", title="AnyLine (TEED retrained, and dark lines)", version=1,
        licence="MIT (code), CreativeML OpenRAIL++-M (weights of MistoLine)",
        distributions=("controlnet_aux",),
        modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch",
        detect=teed.detect_anyline, adapt=lineart.adapt, settle=inference.settle,
        weights=(teed.MTEED,),
        seconds=2.5, gpu_seconds=0.05, gpu_memory=2.0, time_limit=300.0,
        parameters={
            "resolution": inference.resolution(teed.SHORT),
            # how the dark lines are laid over the edges: as by its authors, or as by controlnet_aux
            "blend": Choice(default="screen", options=tuple(teed.BLENDS)),
            # of the grey lines, where a condition has only edges
            "threshold": Number(default=lineart.THRESHOLD, least=1, most=255, whole=True),
            "precision": inference.PRECISION,
        },
    ),
    Detector(
        name="sketch-hed", title="sketches from HED", version=1, licence="Apache-2.0", distributions=OPENCV,
        modules=("cv2",),
        detect=sketch.detect, draw_params=sketch.draw_params, reads_parent=True,
        seconds=0.05, time_limit=60.0,
        parameters={
            # of the soft edges
            "threshold": Number(default=(64, 192), least=1, most=254, whole=True, span=True),
            # share of the strokes taken away
            "masked": Number(default=(0.0, 0.5), least=0.0, most=1.0, span=True),
            "thin": Number(default=0.5, least=0.0, most=1.0),  # chance of non-maximum suppression
            # pixels at 512: ControlNet 1.1's range
            "width": Number(default=(1, 24), least=1, most=24, whole=True, span=True),
            # how strokes get their width; with none it is only that of the morphology
            "pen": Choice(default="round", options=tuple(sketch.MORPHOLOGIES), before="none"),
        },
        presets={"published": sketch.PUBLISHED},
    ),
    Detector(
        name="anime2sketch", title="Anime2Sketch", version=1, licence="MIT (code and weights)",
        distributions=("controlnet-aux",),
        modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch", detect=lineart.detect,
        settle=inference.settle,
        weights=(lineart.WEIGHTS,),
        seconds=2.0, gpu_seconds=0.03, gpu_memory=3.0, time_limit=300.0,
        parameters={
            "resolution": inference.resolution(512),
            # of the grey lines
            "threshold": Number(default=lineart.THRESHOLD, least=1, most=255, whole=True),
            "precision": inference.PRECISION,
        },
    ),
    *(
        Detector(
            name=name, title=f"informative drawings, {title}", version=1, licence="MIT (code and weights)",
            distributions=("controlnet_aux",),
            modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch",
            detect=functools.partial(lineart.detect_informative, weights), adapt=lineart.adapt,
            settle=inference.settle, weights=(weights,),
            seconds=2.0, gpu_seconds=0.03, gpu_memory=3.0, time_limit=300.0,
            parameters={
                "resolution": inference.resolution(512),
                # of the grey lines, where a condition has only edges
                "threshold": Number(default=lineart.THRESHOLD, least=1, most=255, whole=True),
                "precision": inference.PRECISION,
            },
        )
        for name, title, weights in (
            ("lineart-realistic", "fine lines", lineart.FINE),
            ("lineart-coarse", "coarse lines", lineart.COARSE),
        )
    ),
    Detector(
        name="xdog", title="flow-guided XDoG", version=1, licence="Apache-2.0", distributions=OPENCV,
        modules=("cv2",),
        detect=cartoon.detect,
        seconds=0.4, time_limit=60.0,
        parameters={
            "sigma": Number(default=1.0, least=0.3, most=10.0),  # half width of a line at 512, pixels
            "sharpness": Number(default=8.0, least=0.0, most=100.0),
            "threshold": Number(default=0.12, least=0.0, most=1.0),
            "min_stroke": Number(default=24, least=0, most=10_000, whole=True),  # pixels at 512
        },
    ),
    Detector(
        name="openpose", title="OpenPose body", version=1,
        licence="CMU OpenPose, non-commercial (code and weights)",
        distributions=("controlnet_aux",), modules=("torch", "controlnet_aux", "scipy"),
        get="pip install controlnet-aux torch scipy",
        detect=openpose.detect, settle=inference.settle, weights=(openpose.WEIGHTS,),
        seconds=3.0, gpu_seconds=0.05, gpu_memory=3.0, time_limit=300.0,
        parameters={
            "resolution": inference.resolution(512),  # of the maps in which peaks are sought
            # the network sees 368 rows times this; more finds smaller people
            "scale": Number(default=0.5, least=0.1, most=4.0),
            "peak_threshold": Number(default=0.1, least=0.0, most=1.0),  # of a keypoint's heat, smoothed
            "limb_threshold": Number(default=0.05, least=0.0, most=1.0),  # of the field along a limb
            "min_parts": Number(default=4, least=1, most=18, whole=True),  # of a person
            "min_score": Number(default=0.4, least=0.0, most=10.0),  # mean over a person's parts
            "precision": inference.PRECISION,
        },
    ),
    Detector(
        name="openpifpaf", title="OpenPifPaf", version=1, licence="AGPL-3.0 (code and weights)",
        distributions=("openpifpaf-vita", "openpifpaf"),
        modules=("torch", "openpifpaf", "pysparkling", "matplotlib"),
        get=openpifpaf.GET, detect=openpifpaf.detect, check=openpifpaf.check, settle=inference.settle,
        weights=(openpifpaf.WEIGHTS,),
        seconds=1.0, gpu_seconds=0.05, gpu_memory=3.0, time_limit=300.0,
        parameters={
            # of the image that the network sees; 0 = as it is
            "long_edge": Number(default=0, least=0, most=4096, whole=True),
            # of a keypoint from which a person grows
            "seed_threshold": Number(default=0.2, least=0.0, most=1.0),
            "keypoint_threshold": Number(default=0.15, least=0.0, most=1.0),
            "instance_threshold": Number(default=0.15, least=0.0, most=1.0),  # of a person
            "precision": inference.PRECISION,
        },
    ),
    Detector(
        name="vitpose", title="ViTPose+ Base in boxes of RT-DETR", version=1,
        licence="Apache-2.0 (code and weights)", distributions=("transformers",),
        modules=("torch", "torchvision", "transformers", "scipy"),
        get="pip install torch torchvision transformers scipy",
        detect=vitpose.detect, adapt=vitpose.adapt, weights=(*vitpose.POSE, *vitpose.BOXES),
        seconds=4.0, gpu_seconds=0.08, gpu_memory=3.0, time_limit=300.0,
        parameters={
            "box_threshold": Number(default=0.3, least=0.0, most=1.0),  # of a person
            "min_confidence": Number(default=0.3, least=0.0, most=1.0),  # of a keypoint
            # how far bf16 moves keypoints with real weights is not known
            "precision": Choice(default="fp32", options=("fp32", "bf16")),
        },
    ),
    Detector(
        name="dwpose", title="DWPose, body with hands and face, in boxes of YOLOX", version=1,
        licence="Apache-2.0 (code and weights; trained on COCO-WholeBody, whose terms are non-commercial)",
        distributions=("onnxruntime", "onnxruntime-gpu"), modules=("onnxruntime", "cv2"),
        get="pip install onnxruntime", detect=dwpose.detect, adapt=dwpose.adapt,
        weights=(dwpose.POSE, dwpose.BOXES),
        seconds=4.0, gpu_seconds=0.1, gpu_memory=3.0, time_limit=300.0,
        parameters={
            "box_threshold": Number(default=0.3, least=0.0, most=1.0),  # of a person
            "min_confidence": Number(default=0.3, least=0.0, most=1.0),  # of a point
        },
    ),
    Detector(
        name="movenet", title="MoveNet MultiPose Lightning", version=1,
        licence="Apache-2.0 (code and weights)", distributions=("torch",),
        modules=("torch", "cv2", "safetensors"), get="pip install torch opencv-python-headless safetensors",
        detect=movenet.detect, adapt=movenet.adapt, weights=(movenet.WEIGHTS,),
        seconds=0.4, gpu_seconds=0.02, gpu_memory=1.0, time_limit=300.0,
        parameters={
            # long sides of the image that the network sees, for people near and far; 0 = only the other
            "coarse": Number(default=256, least=0, most=2048, whole=True),
            "fine": Number(default=512, least=0, most=2048, whole=True),
            "most": Number(default=20, least=1, most=100, whole=True),  # people of one pass, the surest
            "min_score": Number(default=0.25, least=0.0, most=1.0),  # of a person
            "min_confidence": Number(default=0.2, least=0.0, most=1.0),  # of a keypoint
        },
    ),
    Detector(
        name="mediapipe-pose", title="MediaPipe BlazePose (one person)", version=1, licence="Apache-2.0",
        distributions=("mediapipe",),
        modules=("mediapipe", "matplotlib", "absl", "google.protobuf"),
        get="pip install --no-deps mediapipe==0.10.21",
        detect=pose.detect, adapt=pose.adapt, weights=(pose.WEIGHTS,),
        seconds=0.1, time_limit=60.0,
        parameters={
            "min_confidence": Number(default=0.5, least=0.0, most=1.0),  # of there being a person
            "min_visibility": Number(default=0.5, least=0.0, most=1.0),  # of a keypoint
        },
    ),
    *(
        Detector(
            name=model.name, title=model.title, version=1, licence=model.licence,
            distributions=("transformers",),
            modules=("torch", "torchvision", "transformers", "scipy"),
            get="pip install torch torchvision transformers scipy",
            detect=functools.partial(segmentation.detect, model), weights=model.files,
            seconds=15.0, gpu_seconds=0.15, gpu_memory=6.0, time_limit=900.0,
            parameters={
                "resolution": inference.resolution(0),  # 0 = as the model's own preprocessor says
                # how many labels bf16 changes with real weights is not known
                "precision": Choice(default="fp32", options=("fp32", "bf16")),
            },
        )
        for model in segmentation.MODELS.values()
    ),
    Detector(
        name=eomt.NAME, title="EoMT (ViT-L, COCO panoptic)", version=1,
        licence="Apache-2.0 (code), MIT (weights)",
        distributions=("transformers",), modules=("torch", "torchvision", "transformers", "scipy"),
        get="pip install torch torchvision transformers scipy", detect=eomt.detect, weights=eomt.FILES,
        seconds=30.0, gpu_seconds=0.1, gpu_memory=6.0, time_limit=900.0,
        parameters={
            # how many labels bf16 changes with real weights is not known
            "precision": Choice(default="fp32", options=("fp32", "bf16")),
        },
    ),
    Detector(
        name="midas-dpt-hybrid", title="MiDaS DPT-Hybrid", version=1, licence="MIT (code and weights)",
        distributions=("controlnet_aux",),
        modules=("torch", "timm", "controlnet_aux"), get="pip install controlnet-aux timm torch",
        detect=depth.detect_midas, settle=inference.settle, weights=(depth.MIDAS,),
        seconds=3.3, gpu_seconds=0.04, gpu_memory=3.0, time_limit=300.0,
        parameters={"resolution": inference.resolution(depth.MIDAS_SHORT), "precision": inference.PRECISION},
    ),
    *(
        Detector(
            name=model.name, title=model.title, version=1, licence=model.licence,
            distributions=("transformers",),
            modules=("torch", "transformers"), get="pip install transformers torch",
            detect=functools.partial(depth_anything.detect, model), settle=inference.settle,
            weights=model.files, seconds=model.cost[0], gpu_seconds=model.cost[1], gpu_memory=model.cost[2],
            time_limit=300.0,
            parameters={
                "resolution": inference.resolution(depth_anything.SHORT), "precision": inference.PRECISION,
            },
        )
        for model in depth_anything.MODELS.values()
    ),
    Detector(
        name="depth-pro", title="Depth Pro", version=1, licence=depth_pro.LICENCE,
        distributions=("transformers",),
        modules=("torch", "transformers"), get="pip install transformers torch",
        detect=depth_pro.detect, settle=inference.settle, weights=depth_pro.FILES,
        seconds=240.0, gpu_seconds=0.5, gpu_memory=10.0, time_limit=3600.0,
        parameters={"precision": inference.PRECISION},
    ),
    Detector(
        name="dpt-large", title="DPT-Large", version=1, licence="Apache-2.0 (code and weights)",
        distributions=("transformers",),
        modules=("torch", "transformers"), get="pip install transformers torch",
        detect=depth.detect_large, settle=inference.settle, weights=depth.LARGE,
        seconds=5.0, gpu_seconds=0.05, gpu_memory=4.0, time_limit=300.0,
        parameters={
            # a side of the square that it sees, a multiple of its patches
            "resolution": Number(default=depth.LARGE_SIDE, least=64, most=1024, whole=True),
            "precision": inference.PRECISION,
        },
    ),
    *(
        Detector(
            name=model.name, title=model.title, version=1,
            licence="Apache-2.0 (code and weights; trained on NYU Depth V2 and ADE20K)",
            distributions=("transformers",),
            modules=("torch", "transformers"), get="pip install transformers torch",
            detect=functools.partial(tips.detect, model), adapt=tips.adapt, settle=inference.settle,
            weights=model.files, seconds=model.cost[0], gpu_seconds=model.cost[1], gpu_memory=model.cost[2],
            time_limit=300.0,
            parameters={
                # a side of the square that it sees, rounded to its patches of 14
                "resolution": Number(default=tips.SIDE, least=56, most=1792, whole=True),
                "precision": inference.PRECISION,
            },
        )
        for model in tips.MODELS.values()
    ),
    *(
        Detector(
            name=model.name, title=model.title, version=1, licence=marigold.LICENCE,
            distributions=("diffusers",),
            modules=("torch", "diffusers", "transformers", "scipy"),
            get="pip install diffusers transformers torch scipy",
            detect=functools.partial(marigold.detect, model), settle=inference.settle, check=marigold.check,
            draw_params=marigold.draw_params, weights=model.files,
            seconds=300.0, gpu_seconds=1.0, gpu_memory=14.0, time_limit=3600.0,
            parameters=marigold.DEPTH_PARAMETERS if model.draws == "depth" else marigold.PARAMETERS,
        )
        for model in marigold.MODELS.values()
    ),
    Detector(
        name="normal-bae", title="NormalBae (ScanNet)", version=1,
        licence="MIT (code and weights; trained on ScanNet, whose terms are non-commercial)",
        distributions=("controlnet_aux",),
        modules=("torch", "controlnet_aux"), get="pip install controlnet-aux torch",
        detect=normals.detect_bae, settle=inference.settle, weights=(normals.BAE,),
        seconds=3.0, gpu_seconds=0.05, gpu_memory=3.0, time_limit=300.0,
        parameters={"resolution": inference.resolution(normals.BAE_SHORT), "precision": inference.PRECISION},
    ),
    Detector(
        name="normal-from-depth", title="normals from depth (ControlNet 1.0)", version=1,
        licence="Apache-2.0", distributions=OPENCV,
        seconds=0.05, time_limit=60.0,
        modules=("cv2",), detect=normals.detect_from_depth, reads_parent=True, parameters=normals.FROM_DEPTH,
        presets={"demo": normals.DEMO},
    ),
    Detector(
        name="mini", title="the mini detector (rendered scenes only)", version=2,
        licence="Apache-2.0 (code and weights)", distributions=("torch",),
        modules=("torch", "cv2", "safetensors"), get="pip install torch opencv-python-headless safetensors",
        seconds=0.1, gpu_seconds=0.01, gpu_memory=1.0, time_limit=300.0,
        detect=mini.detect, adapt=mini.adapt, weights=(mini.WEIGHTS,), parameters={},
    ),
)  # fmt: skip

DETECTORS: dict[str, Detector] = {row.name: row for row in _ROWS}
OWN: dict[str, tuple[str, ...]] = {}  # of installed packages: detector -> its conditions
BROKEN: dict[str, str] = {}  # of installed packages: name -> why it can't be loaded


def _add(package: str, found: own.Own) -> None:
    if found.name in DETECTORS:
        raise ValueError(f"there is a detector {found.name} already")
    DETECTORS[found.name] = Detector(
        name=found.name,
        title=found.title or found.name,
        version=found.version,
        licence=found.licence,
        distributions=(package,),
        modules=(),
        detect=found.detect,
        adapt=own.fits,
        parameters=dict(found.parameters),
        weights=found.weights,
        seconds=found.seconds,
        gpu_seconds=found.gpu_seconds,
        gpu_memory=found.gpu_memory,
        time_limit=found.time_limit,
    )
    OWN[found.name] = found.conditions


def _add_installed() -> None:
    for name, package, found in own.installed():
        if not isinstance(found, Exception):
            try:
                _add(package, found)
            except ValueError as error:
                found = error
        if isinstance(found, Exception):
            BROKEN[name] = f"{package} can't be loaded ({type(found).__name__}: {found})"


_add_installed()


def named(condition: str) -> tuple[str, ...]:
    """All detectors of a condition: those that `auto` tries, in its order, then those to be named."""
    row = CONDITIONS[condition]
    return (*row.detectors, *row.by_name, *(name for name, of in OWN.items() if condition in of))


def missing(detector: str, weights: str = PINNED) -> str | None:
    """One sentence on what this detector lacks here, with its pinned weights or those at the path `weights`;
    None = it can run.
    """
    row = DETECTORS.get(detector)
    if row is None:
        return f"{detector} is not built yet"
    if absent := lacking_modules(row):
        return f"{detector} needs {', '.join(absent)}: {row.get or 'pip install ' + row.distributions[0]}"
    lack = lacking(row.weights, weights)
    return f"{detector} {lack}" if lack else None


def lacking_modules(row: Detector) -> list[str]:
    """Of the program behind the detector, what is not installed."""
    return [module for module in row.modules if not _installed(module)]


def licence(detector: str, given: str = PINNED) -> str:
    """Of the detector with its weights, as recorded with every map; a row knows that of its pinned weights,
    not of others that are `given`.
    """
    if detector == PROVIDED:
        return "that of the data"
    row = DETECTORS[detector]
    # the pinned bytes may lie anywhere
    own = given != PINNED and identity(row.weights, given) != identity(row.weights)
    return (
        f"not known: weights of your own; the code: {row.licence.partition(' (')[0]}" if own else row.licence
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False
