"""Inverse depth from one picture: MiDaS DPT-Hybrid and DPT-Large (Ranftl et al. 2021); what all networks of
depth share.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING

import numpy as np

from annotate import attention, inference, pretrained
from annotate.maps import RawMap, depth_map
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder, tensors

if TYPE_CHECKING:
    import torch
    from timm.layers import StdConv2dSame

MIDAS = WeightFile(
    name="dpt_hybrid-midas-501f0c75.pt",
    sha256="501f0c75b3bca7daec6b3682c5054c09b366765aef6fa3a09d03a5cb4b230853",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
)
# trained at 384; the size of ControlNet's gradio_depth2image.py and gradio_normal2image.py too
MIDAS_SHORT = 384

_LARGE = {"repo": "Intel/dpt-large", "revision": "main"}
LARGE = (
    WeightFile(name="config.json", **_LARGE),
    WeightFile(name="model.safetensors", also="pytorch_model.bin", **_LARGE),
)
LARGE_SIDE = 384  # of the square into which its processor presses every picture
# of ImageNet, RGB of 0..1
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLOSEST = 1e-3  # metres: nothing is taken to be nearer

# uint8 [n, h, w, 3] RGB -> depth float32 [n, h, w], as its network means it
DepthNetwork = Callable[[np.ndarray], np.ndarray]


def from_metres(metres: np.ndarray) -> RawMap:
    """float32 [h, w] distances along the camera's axis -> inverse depth in 1/m."""
    return depth_map(1 / np.maximum(metres, CLOSEST), unit="1/m")


def detect_midas(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images -> what the network gives, at image size; meta `seen` is the [h, w] at which it
    saw the image.
    """
    import cv2

    network = load_midas(params["precision"], device, params.get("weights", PINNED))
    seen = inference.at_resolution(images, params["resolution"])
    maps = []
    for image, small, inverse in zip(
        images, seen, inference.run(seen, network, device, "midas-dpt-hybrid"), strict=True
    ):
        raw = depth_map(cv2.resize(inverse, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), unit="midas")
        maps.append(replace(raw, meta={**raw.meta, "seen": list(small.shape[:2])}))
    return maps


@functools.cache
def load_midas(precision: str, device: str, weights: str = PINNED) -> DepthNetwork:
    """MiDaS DPT-Hybrid, once per process; sides are multiples of 32."""
    import torch

    model = build_midas(find(MIDAS, weights))
    store_standardised(model)
    for number in (1, 2, 3, 4):
        block = getattr(model.scratch, f"refinenet{number}")
        block.forward = MethodType(_fuse, block)
    kind = inference.dtype(precision)
    model = model.to(device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run_in_fp32(model.scratch.output_conv[4])
    if precision == "bf16" and device == "cpu":
        attention.by_heads(model)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # -1..1, (n, 3, h, w) seen through channels-last memory
            x = (torch.from_numpy(images).to(device).float() / 127.5 - 1).to(kind).permute(0, 3, 1, 2)
            inverse = model(x).cpu().numpy()
            model.pretrained.activations.clear()  # the library keeps the last image's features in a global
            return inverse

    return run


def build_midas(path: Path) -> "torch.nn.Module":
    """controlnet_aux's own network with the weights of `path`, in fp32; every tensor must be there, and no
    other.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

        with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
            model = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    stored = tensors(path)
    model.load_state_dict(stored["model"] if "optimizer" in stored else stored, assign=True)
    return model.eval()


def store_standardised(model: "torch.nn.Module") -> None:
    """Standardise the weights of timm's StdConv2dSame once, in double precision, where the library does it
    anew for every image.
    """
    import torch
    from timm.layers import StdConv2dSame

    for layer in model.modules():
        if isinstance(layer, StdConv2dSame):
            weight = layer.weight.detach().double()
            variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
            layer.weight = torch.nn.Parameter(
                ((weight - mean) / (variance + layer.eps).sqrt()).to(layer.weight.dtype)
            )
            layer.forward = MethodType(_convolve, layer)  # type: ignore[method-assign]


def _convolve(layer: "StdConv2dSame", x: "torch.Tensor") -> "torch.Tensor":
    """The layer without its standardisation."""
    from timm.layers.padding import pad_same
    from torch.nn.functional import conv2d

    x = (
        pad_same(x, list(layer.kernel_size), list(layer.stride), list(layer.dilation))
        if layer.same_pad
        else x
    )
    return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def run_in_fp32(layer: "torch.nn.Module") -> None:
    """For the last layer of a bf16 network: eight bits of depth would be terraces, which normals made from it
    would show.
    """
    layer.float().register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs))


def _fuse(block: "torch.nn.Module", *features: "torch.Tensor") -> "torch.Tensor":
    """The library's FeatureFusionBlock_custom with its 1x1 convolution before the enlargement, on a quarter
    of the pixels.

    The two commute: one mixes channels, the other mixes pixels with weights that sum to one.
    """
    from torch.nn.functional import interpolate

    total = features[0] if len(features) == 1 else features[0] + block.resConfUnit1(features[1])  # type: ignore[operator]
    narrow = block.out_conv(block.resConfUnit2(total))  # type: ignore[operator]
    return interpolate(narrow, scale_factor=2, mode="bilinear", align_corners=True)


def detect_large(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images -> inverse depth up to an unknown scale and shift, at image size."""
    network = load_large(params["precision"], device, params["resolution"], params.get("weights", PINNED))
    maps = inference.run(images, network, device, f"dpt-large {params['resolution']}")
    return [depth_map(inverse, unit="midas") for inverse in maps]


@functools.cache
def load_large(precision: str, device: str, side: int, weights: str = PINNED) -> DepthNetwork:
    """DPT-Large, once per process; it sees a square of `side` and its answer is scaled back, both bilinearly,
    as ControlNet++ reads depth.

    WeightsError: a file is absent, or a tensor is absent or has another shape.
    """
    import torch
    from torch.nn.functional import interpolate

    kind = inference.dtype(precision)
    folder = find_folder(LARGE, weights)
    model = pretrained.load("DPTForDepthEstimation", folder, "dpt-large", file=find(LARGE[-1], weights))
    if model.config.is_hybrid:
        raise WeightsError(
            f"dpt-large: {folder / 'config.json'}: this is DPT-Hybrid, another network: get Intel/dpt-large"
        )
    model = model.to(device, kind, memory_format=torch.channels_last)
    run_in_fp32(model.head.head[4])

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # in bytes and on the CPU, as above
            x = interpolate(
                torch.from_numpy(images).permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True
            ).to(device)
            inverse = model((x / 127.5 - 1).to(kind)).predicted_depth
            return interpolate(inverse[:, None], images.shape[1:3], mode="bilinear")[:, 0].cpu().numpy()

    return run
