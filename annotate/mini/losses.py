"""What the mini detector learns from: exact truth of rendered scenes, and pictures degraded as a generator
would degrade them.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from annotate.flips import counterparts
from annotate.mini import figure
from annotate.mini.network import DetectorNetwork, JointNetwork

REACH = 1.5  # deviation of a joint's spot, in cells of two pixels
SPOT = 20.0  # weight of a cell that holds a joint: a hundred others hold none


@dataclass(frozen=True)
class Truth:
    """Of a batch of scenes."""

    images: NDArray[np.uint8]  # [B, s, s, 3]
    depth: NDArray[np.float16]  # [B, s, s]: 1 / metres
    normals: NDArray[np.int8]  # [B, s, s, 3]: times 127, x right, y up, z to the viewer
    classes: NDArray[np.uint8]  # [B, s, s]
    colours: NDArray[np.uint8]  # [B, s, s]: of objects; 0 = none
    joints: NDArray[np.float32]  # [B, 18, 3]: x, y, and 1 seen, 0.5 hidden, 0 outside or nobody there


def mirrored(truth: Truth, which: NDArray[np.bool_]) -> Truth:  # which: [B]
    """Left becomes right, in the picture and in the names of joints."""
    flip = which[:, None, None]
    side = truth.images.shape[2]
    normals = np.where(
        flip[..., None], truth.normals[:, :, ::-1] * np.array([-1, 1, 1], np.int8), truth.normals
    )
    joints = truth.joints[:, counterparts("openpose_18")].copy()
    joints[..., 0] = np.where(joints[..., 2] > 0, side - 1 - joints[..., 0], 0)
    return Truth(
        np.where(flip[..., None], truth.images[:, :, ::-1], truth.images),
        np.where(flip, truth.depth[:, :, ::-1], truth.depth),
        normals,
        np.where(flip, truth.classes[:, :, ::-1], truth.classes),
        np.where(flip, truth.colours[:, :, ::-1], truth.colours),
        np.where(flip, joints, truth.joints),
    )


def degraded(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur, noise, other light and colours, and blocks: generated pictures have some of each."""
    out = np.empty_like(images)
    for image, into in zip(images, out, strict=True):
        x = image.astype(np.float32)
        if rng.random() < 0.5:
            x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.3, 1.6))
        if rng.random() < 0.5:
            x = (x - 128) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-20, 20) + rng.uniform(-8, 8, 3)
        if rng.random() < 0.5:
            x = x + rng.normal(0, rng.uniform(0, 10), x.shape)
        x = x.clip(0, 255).astype(np.uint8)
        if rng.random() < 0.3:
            x = cv2.imdecode(
                cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])[1],
                cv2.IMREAD_COLOR,
            )
        into[:] = x
    return out


def to_tensor(images: NDArray[np.uint8]) -> Tensor:  # NHWC => NCHW in -1..1
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss(net: DetectorNetwork, truth: Truth, device: str, *, bf16: bool) -> Tensor:
    """The sum of four: no weights were searched for, each is near 1 at the start."""
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        outputs = net(to_tensor(truth.images).to(device))
    depth = torch.from_numpy(truth.depth.astype(np.float32)).to(device).log()
    normals = torch.from_numpy(truth.normals.astype(np.float32)).to(device).permute(0, 3, 1, 2) / 127
    classes, colours = (
        torch.from_numpy(labels.astype(np.int64)).to(device) for labels in (truth.classes, truth.colours)
    )
    return (
        2 * (outputs["depth"].float() - depth).abs().mean()
        + (1 - (outputs["normals"] * normals).sum(dim=1)).mean()
        + functional.cross_entropy(outputs["classes"].float(), classes)
        + functional.cross_entropy(outputs["colours"].float(), colours)
    )


def figure_loss(
    net: JointNetwork, figures: tuple[NDArray[np.uint8], NDArray[np.float32]], device: str, *, bf16: bool
) -> Tensor:
    """Of figures that were cut out, with their joints; near 1 at the start, when a hundred cells hold no
    joint for one that does.
    """
    pictures, joints = figures
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        outputs = net(to_tensor(pictures).to(device))
    spots = torch.from_numpy(spots_of(joints, figure.SIDE // 2)).to(device)
    return 10 * functional.binary_cross_entropy_with_logits(outputs.float(), spots, weight=1 + SPOT * spots)


def figures_of(
    truth: Truth,  # scenes with somebody in sight
    person: int,  # the class
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:  # [B, SIDE, SIDE, 3]; joints in them [B, 18, 3]
    """Each scene's figure, cut out a little larger or smaller and beside the middle, as a mask that is not
    quite right would have it.
    """
    cuts = [
        figure.cut(
            picture, classes == person, fill=rng.uniform(0.7, 0.95), aside=tuple(rng.uniform(-0.06, 0.06, 2))
        )
        for picture, classes in zip(truth.images, truth.classes, strict=True)
    ]
    return np.stack([one.picture for one in cuts]), np.stack(
        [one.moved(joints) for one, joints in zip(cuts, truth.joints, strict=True)]
    )


def spots_of(joints: NDArray[np.float32], side: int) -> NDArray[np.float32]:  # [B, 18, side, side] in 0..1
    """A Gaussian around each joint, half as high where it is hidden."""
    grid = np.arange(side, dtype=np.float32)
    x, y = (joints[..., :2].transpose(2, 0, 1) - 0.5) / 2  # a cell's centre lies between two pixels
    across = np.exp(-((grid - x[..., None]) ** 2) / (2 * REACH**2))
    down = np.exp(-((grid - y[..., None]) ** 2) / (2 * REACH**2))
    return joints[..., 2, None, None] * down[..., :, None] * across[..., None, :]
