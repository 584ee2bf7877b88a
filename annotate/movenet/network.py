"""The network of MoveNet MultiPose Lightning, as its published graph computes it: MobileNetV2, 1.5 times as
wide, a feature pyramid down to cells of four pixels, and six heads.
"""

from torch import Tensor, nn
from torch.nn import functional

# of MobileNetV2's blocks: channels inside, channels out, stride
BLOCKS = (
    (144, 40, 2), (240, 40, 1), (240, 48, 2), (288, 48, 1), (288, 48, 1), (288, 96, 2), (576, 96, 1),
    (576, 96, 1), (576, 96, 1), (576, 144, 1), (864, 144, 1), (864, 144, 1), (864, 240, 2), (1440, 240, 1),
    (1440, 240, 1), (1440, 480, 1),
)  # fmt: skip
# blocks whose outputs join the pyramid, finest first: channels of the block, of the pyramid before and after
LEVELS = {1: (40, 24, 24), 4: (48, 32, 24), 8: (96, 64, 32)}
# channels of the maps that are read, one value per cell of four pixels
HEADS = {
    "center": 1,  # logit of a person's middle
    "box_scale": 2,  # height and width of the person in cells
    "box_offset": 2,  # y, x from the cell to the middle
    "kpt_heatmap": 17,  # logits of the keypoints
    "kpt_regress": 34,  # y, x from the cell of a middle to each keypoint
    "kpt_offset": 34,  # y, x from a keypoint's cell to the keypoint
}
SCALE = 257 / 2**15  # 2 / 255 in float16, as the graph has it


class MoveNet(nn.Module):
    """float32 [n, 3, h, w] RGB of 0 to 255, sides multiples of 32 -> the maps of HEADS at a quarter of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 48, 3, stride=2)
        self.first = nn.ModuleList([_Conv(48, 48, 3, groups=48), _Conv(48, 24)])
        self.blocks = nn.ModuleList()
        channels = 24
        for inside, out, stride in BLOCKS:
            self.blocks.append(_Block(channels, inside, out, stride))
            channels = out
        self.last = _Conv(channels, 1280)
        self.top = _Conv(1280, 64)
        self.sides = nn.ModuleDict({str(k): _Conv(block, side) for k, (block, side, _) in LEVELS.items()})
        self.merged = nn.ModuleDict({str(k): _Separable(side, out) for k, (_, side, out) in LEVELS.items()})
        self.heads = nn.ModuleDict({name: _Head(out) for name, out in HEADS.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = functional.relu6(self.stem(image * SCALE - 1))
        x = self.first[1](functional.relu6(self.first[0](x)))
        levels = {}
        for k, block in enumerate(self.blocks):
            x = block(x)
            levels[k] = x
        x = self.top(functional.relu6(self.last(x)))
        for k in sorted(LEVELS, reverse=True):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.merged[str(k)](x + self.sides[str(k)](levels[k]))
        return {name: head(x) for name, head in self.heads.items()}


class _Conv(nn.Conv2d):
    """TensorFlow's SAME: what can't be split evenly is padded on the right and below."""

    def __init__(
        self, before: int, after: int, size: int = 1, *, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__(
            before, after, size, stride, size // 2 if stride == 1 else 0, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride == (1, 1) else functional.pad(x, (0, 1, 0, 1)))


class _Block(nn.Module):
    """MobileNetV2's: wide, each channel by itself, narrow; added to its input where both have one shape."""

    def __init__(self, before: int, inside: int, after: int, stride: int) -> None:
        super().__init__()
        self.expand = _Conv(before, inside)
        self.depthwise = _Conv(inside, inside, 3, stride=stride, groups=inside)
        self.project = _Conv(inside, after)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.depthwise(functional.relu6(self.expand(x))))
        y = self.project(y)
        return x + y if self.residual else y


class _Separable(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.depthwise = _Conv(before, before, 3, groups=before, bias=False)
        self.pointwise = _Conv(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.pointwise(self.depthwise(x)))


class _Head(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.inner = _Separable(24, 96)
        self.outer = _Conv(96, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))
