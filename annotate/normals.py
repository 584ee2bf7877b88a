"""Surface normals: NormalBae (Bae et al. 2021) from a picture, and ControlNet 1.0's recipe from depth."""

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from annotate import inference
from annotate.depth import run_in_fp32
from annotate.maps import RawMap
from annotate.parameters import Number, Parameter, Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, tensors

BAE = WeightFile(
    name="scannet.pt",
    sha256="03dbf1600c51ee3d45c29f77b77bf1a3b7a24c3452dba62a4ae658f37330c209",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
)
BAE_SHORT = 512  # controlnet_aux's default, near the 480 rows of the training pictures
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB of 0..1
FLIP = np.array([-1, 1, 1], np.float32)  # ScanNet's x points left, ours right

FROM_DEPTH: dict[str, Parameter] = {
    "a": Number(default=2 * math.pi, least=0.01, most=1000.0),  # z before normalising: larger is flatter
    # of min-max depth; what lies behind faces the viewer
    "bg_threshold": Number(default=0.1, least=0.0, most=1.0),
    # range given to depths in other units than MiDaS's; the default is the closest to the true normals of 100
    # rendered scenes
    "spread": Number(default=450.0, least=0.1, most=100_000.0),
}
# what the demo of ControlNet 1.0 gave (gradio_normal2image.py); the default is that of its function
DEMO: Values = {"bg_threshold": 0.4}
SHORT = 384  # short side at which `spread` counts

# uint8 [n, h, w, 3] RGB -> unit vectors float32 [n, h, w, 3]
NormalNetwork = Callable[[np.ndarray], np.ndarray]


def detect_bae(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images -> normals at image size."""
    import cv2

    network = load_bae(params["precision"], device, params.get("weights", PINNED))
    vectors = inference.run(
        inference.at_resolution(images, params["resolution"]), network, device, "normal-bae"
    )
    sized = [
        cv2.resize(n, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        for n, image in zip(vectors, images, strict=True)
    ]
    return [RawMap("normals", unit(n)) for n in sized]


@functools.cache
def load_bae(precision: str, device: str, weights: str = PINNED) -> NormalNetwork:
    """controlnet_aux's own network, once per process; sides are multiples of 32."""
    import torch

    path = find(BAE, weights)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from controlnet_aux.normalbae.nets.NNET import NNET

        model = NNET(SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7))
    stored = tensors(path).get("model")
    if not isinstance(stored, dict):
        raise WeightsError(f"{path} holds no weights of BAE under `model`: get others")
    model.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    kind = inference.dtype(precision)
    model = model.eval().to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run_in_fp32(model.decoder.out_conv_res1[-1])
    mean, deviation = (torch.tensor(each, device=device) for each in (MEAN, DEVIATION))

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # (n, 3, h, w) seen through channels-last memory
            x = (
                ((torch.from_numpy(images).to(device).float() / 255 - mean) / deviation)
                .to(kind)
                .permute(0, 3, 1, 2)
            )
            finest = model(x)[0][-1]  # x left, y up, z to the viewer, and the network's doubt
            return finest[:, :3].permute(0, 2, 3, 1).cpu().numpy() * FLIP

    return run


def detect_from_depth(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """Inverse depth of each image -> normals at its size."""
    return [from_depth(raw, **params) for raw in parents]


def from_depth(raw: RawMap, a: float, bg_threshold: float, spread: float) -> RawMap:
    """ControlNet 1.0's normals (annotator/midas/__init__.py): (-Sobel x, Sobel y, a) made unit, and 0 0 1 in
    the background.

    The published picture is drawn from (Sobel x, Sobel y, a), which the drawing makes of it again: inverse
    depth that grows to the right is a wall that faces left. MiDaS depth counts as it is, per pixel of the
    image that the network saw; of any other depth the map's range counts as `spread`, at a short side of 384,
    so that the unit and the size of the image don't matter.
    """
    import cv2

    stored = _as_stored(raw)
    h, w = stored.shape
    ratio = stored - stored.min()
    high = float(ratio.max())
    if raw.meta.get("unit") == "midas":
        seen = raw.meta.get("seen", (h, w))
        across, down = w / seen[1], h / seen[0]
    else:
        across = down = spread / (high or 1.0) * min(h, w) / SHORT
    x, y = (cv2.Sobel(stored, cv2.CV_32F, *order, ksize=3) for order in ((1, 0), (0, 1)))
    if high:
        ratio /= np.float32(high)
    facing = ratio < bg_threshold
    x[facing], y[facing] = 0, 0
    return RawMap("normals", unit(np.stack([x * -across, y * down, np.full_like(x, a)], axis=2)))


def _as_stored(raw: RawMap) -> np.ndarray:
    """The values that the 16-bit code gives back, so that a depth made just now and one read from a shard
    have the same normals.
    """
    steps = np.rint((raw.array.astype(np.float64) - raw.meta["shift"]) / raw.meta["scale"])
    return (steps.clip(0, 65535) * raw.meta["scale"] + raw.meta["shift"]).astype(np.float32)


def unit(n: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis; one without a direction is 0 0 0."""
    length = np.sqrt((n * n).sum(axis=2, keepdims=True))
    return np.divide(n, length, out=np.zeros_like(n), where=length > 0)
