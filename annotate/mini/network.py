"""The networks of the mini detector: a convolutional U whose last layer says everything at every pixel, and
one for the joints of a figure.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotate.mini.vocabulary import Vocabulary
from annotate.weights import WeightsError

JOINTS = 18  # in the order of OpenPose's skeleton
WIDTHS = (32, 64, 96, 128)


class _UNet(nn.Module):
    """RGB in -1..1 [B, 3, H, W], sides multiples of 16 => [B, widths[0], H / 2, W / 2]."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(
            _ResidualBlock(a, b) for a, b in zip(widths[:1] + widths[:-1], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _ResidualBlock(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.deep = nn.Sequential(
            _ResidualBlock(widths[-1], widths[-1]), _ResidualBlock(widths[-1], widths[-1])
        )

    def everywhere(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x if not skips else functional.max_pool2d(x, 2))
            skips.append(x)
        x = self.deep(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return x


class JointNetwork(_UNet):
    """A figure, cut out and scaled to one size [B, 3, s, s] => logits of its joints [B, 18, s / 2, s / 2].

    Read from the whole picture, which way a figure looks, and so which arm is the left one, was right of
    three in four.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__(widths)
        self.joints = nn.Conv2d(widths[0], JOINTS, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.joints(self.everywhere(images))


class DetectorNetwork(_UNet):
    """RGB in -1..1 [B, 3, H, W], sides multiples of 16 => maps at the image's size."""

    def __init__(self, vocabulary: Vocabulary, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__(widths)
        self.vocabulary = vocabulary
        self.figure: JointNetwork | None = None  # learned after it; without one no joints are read
        self.sizes = (1, 3, len(vocabulary.classes), len(vocabulary.colours))
        self.dense = nn.Conv2d(widths[0], 4 * sum(self.sizes), 1)  # two by two pixels at once

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """depth: log of inverse metres [B, H, W]; normals [B, 3, H, W] unit; classes, colours: logits."""
        depth, normals, classes, colours = functional.pixel_shuffle(
            self.dense(self.everywhere(images)), 2
        ).split(self.sizes, dim=1)
        return {
            "depth": depth[:, 0],
            "normals": functional.normalize(normals.float(), dim=1),
            "classes": classes,
            "colours": colours,
        }


class _ResidualBlock(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.carry = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.body = nn.Sequential(
            nn.GroupNorm(8, before),
            nn.Conv2d(before, after, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.carry(x) + self.body(x)


def save(net: DetectorNetwork, path: Path) -> None:
    """bfloat16, and in the same file what its numbers mean."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in net.state_dict().items()
    }
    save_file(weights, path, {"words": net.vocabulary.to_json(), "widths": json.dumps(net.widths)})


def load(path: Path) -> DetectorNetwork:
    """In evaluation mode, float32; WeightsError: the file holds something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}
        net = DetectorNetwork(Vocabulary.from_json(metadata["words"]), tuple(json.loads(metadata["widths"])))
        if any(name.startswith("figure.") for name in weights):
            net.figure = JointNetwork(net.widths)
        net.load_state_dict(weights)
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} holds no mini detector: take annotate/mini/detector.safetensors, or make one"
        ) from error
    return net.eval().requires_grad_(False)
