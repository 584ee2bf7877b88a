"""The network of the mini detector: a convolutional U whose last layer says everything at every pixel."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS, FACTS = "detector.safetensors", "detector.json"
JOINTS = 18  # in the order of OpenPose's skeleton


@dataclass(frozen=True)
class Words:
    """What the numbers of the network's classes mean."""

    classes: tuple[tuple[str, str, str], ...]  # own name (a floor, a wall, a shape, "person"), class of COCO-Stuff, class of ADE20K
    colours: tuple[str, ...]  # of objects; 0 = none
    shapes: tuple[str, ...]  # the classes that are objects


class Detector(nn.Module):
    """RGB in -1..1 [B, 3, H, W], sides multiples of 16 => maps at the image's size, joints at half of it."""

    def __init__(self, words: Words, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.words, self.widths = words, widths
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip(widths[:1] + widths[:-1], widths, strict=True))
        self.up = nn.ModuleList(_Block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.deep = nn.Sequential(_Block(widths[-1], widths[-1]), _Block(widths[-1], widths[-1]))
        self.sizes = (1, 3, len(words.classes), len(words.colours))
        self.dense = nn.Conv2d(widths[0], 4 * sum(self.sizes), 1)  # two by two pixels at once
        self.joints = nn.Conv2d(widths[0], JOINTS, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """depth: log of inverse metres [B, H, W]; normals [B, 3, H, W] unit; classes, colours: logits; joints: logits [B, 18, H/2, W/2]."""
        x = self.stem(images)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x if not skips else functional.max_pool2d(x, 2))
            skips.append(x)
        x = self.deep(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        depth, normals, classes, colours = functional.pixel_shuffle(self.dense(x), 2).split(self.sizes, dim=1)
        return {
            "depth": depth[:, 0], "normals": functional.normalize(normals.float(), dim=1), "classes": classes, "colours": colours,
            "joints": self.joints(x),
        }  # fmt: skip


class _Block(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.carry = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.body = nn.Sequential(
            nn.GroupNorm(8, before), nn.Conv2d(before, after, 3, padding=1), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.carry(x) + self.body(x)


def save(
    net: Detector,
    folder: Path,
    facts: Mapping[str, Any],  # JSON-able: how it was made, what it scores
) -> None:
    """bfloat16 weights, and beside them what their numbers mean."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in net.state_dict().items()}, folder / WEIGHTS)
    words = {"classes": net.words.classes, "colours": net.words.colours, "shapes": net.words.shapes, "widths": net.widths}
    (folder / FACTS).write_text(json.dumps({**words, **facts}, indent=1) + "\n")


def load(folder: Path) -> Detector:
    """In evaluation mode, float32."""
    from safetensors.torch import load_file

    told = json.loads((folder / FACTS).read_text())
    words = Words(tuple(tuple(row) for row in told["classes"]), tuple(told["colours"]), tuple(told["shapes"]))
    net = Detector(words, tuple(told["widths"]))
    net.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return net.eval().requires_grad_(False)
