"""The Inception of 2015 behind published FIDs, for tests of how clean-fid's program is called: torchvision's,
with the three poolings in which TensorFlow's graph differs.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3
from torchvision.models import inception as blocks


class InceptionA(blocks.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), five, three, self.branch_pool(inner_mean(x))]


class InceptionC(blocks.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return [self.branch1x1(x), seven, twice, self.branch_pool(inner_mean(x))]


class InceptionE(blocks.InceptionE):
    def _forward(self, x: Tensor) -> list[Tensor]:
        three, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        three = torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1)
        twice = torch.cat([self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)], 1)
        return [self.branch1x1(x), three, twice, self.branch_pool(self.pooled(x))]

    def pooled(self, x: Tensor) -> Tensor:
        return inner_mean(x)


class LastInceptionE(InceptionE):
    def pooled(self, x: Tensor) -> Tensor:
        # a slip of the graph that the weights were trained with
        return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def inner_mean(x: Tensor) -> Tensor:
    """TensorFlow's mean counts no padding."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def network() -> nn.Sequential:
    """N3HW in -1..1 with H = W = 299 -> [N, 2048]; tensors are named as in the files of pytorch-fid and
    torch-fidelity, but for their `fc`.
    """
    layers = dict(
        Inception3(
            num_classes=1008, aux_logits=False, transform_input=False, init_weights=False
        ).named_children()
    )
    layers |= {
        name: InceptionA(width, pool_features=pool)
        for name, width, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64))
    }
    layers |= {
        name: InceptionC(768, channels_7x7=inside)
        for name, inside in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192))
    }
    layers |= {"Mixed_7b": InceptionE(1280), "Mixed_7c": LastInceptionE(2048), "fc": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers)).eval()
