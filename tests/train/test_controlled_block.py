"""Equation 2 of the paper on blocks of several kinds, and the gradients that its section 3.1 argues for."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from train.controlnet import ControlledBlock


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)


# A block, the shapes of x and c, and the channels and spatial axes that ControlledBlock must be told.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], dict[str, int]]] = {
    "convolution that shrinks": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(6, 6, 3, padding=1)),
        (2, 4, 8, 8), (2, 4, 8, 8), {"in_channels": 4, "out_channels": 6},
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        (2, 4, 8, 8), (2, 3, 8, 8), {"in_channels": 4, "out_channels": 4, "condition_channels": 3},
    ),
    "sound": (lambda: nn.Conv1d(4, 5, 3), (2, 4, 16), (2, 4, 16),
    {"in_channels": 4, "out_channels": 5, "spatial": 1}),
    "transformer": (transformer, (2, 7, 6), (2, 7, 9),
    {"in_channels": 6, "out_channels": 6, "condition_channels": 9, "spatial": 0}),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, ControlledBlock, Tensor, Tensor]:
    build, x, c, told = CASES[name]
    torch.manual_seed(0)
    block = build()
    return (
        copy.deepcopy(block).eval().requires_grad_(False),
        ControlledBlock(block, **told).train(),
        torch.randn(x),
        torch.randn(c),
    )


def reached(block: ControlledBlock) -> set[str]:
    return {name for name, p in block.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("name", CASES)
def test_before_the_first_step_the_output_is_that_of_the_block_alone(name: str) -> None:
    alone, block, x, c = made(name)
    assert torch.equal(block(x, c), alone(x))


@pytest.mark.parametrize("name", CASES)
def test_the_zero_convolutions_learn_first_and_the_copy_one_step_later(name: str) -> None:
    """Zero weights do not stop the gradient of the weights themselves: it is the input, which is not zero."""
    _, block, x, c = made(name)
    target = torch.randn_like(block(x, c))
    optimizer = torch.optim.SGD([p for p in block.parameters() if p.requires_grad], lr=0.1)
    outer, inner = ({f"zero_{end}.{kind}" for kind in ("weight", "bias")} for end in ("out", "in"))
    trunk = {f"copy.{name}" for name, _ in block.copy.named_parameters()}
    (block(x, c) - target).square().mean().backward()
    assert reached(block) == outer
    optimizer.step()
    optimizer.zero_grad()
    (block(x, c) - target).square().mean().backward()
    assert outer <= reached(block) and {"zero_in.weight"} <= reached(block)
    late = reached(block) & trunk
    # A bias in front of a batch norm, and a key's bias under a softmax, never get a gradient worth the name;
    # all weights do.
    assert {name for name in trunk if name.endswith("weight")} <= late
    assert reached(block) <= outer | inner | trunk


@pytest.mark.parametrize("name", CASES)
def test_training_moves_the_copy_and_never_a_bit_of_the_locked_block(name: str) -> None:
    alone, block, x, c = made(name)
    optimizer = torch.optim.SGD([p for p in block.parameters() if p.requires_grad], lr=0.1)
    target = torch.randn_like(block(x, c))
    for _ in range(3):
        optimizer.zero_grad()
        (block(x, c) - target).square().mean().backward()
        optimizer.step()
    assert all(
        torch.equal(tensor, block.locked.state_dict()[name]) for name, tensor in alone.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in block.locked.parameters())
    assert not all(
        torch.equal(tensor, block.copy.state_dict()[name]) for name, tensor in alone.state_dict().items()
    )
    assert not torch.equal(block(x, c), alone(x))


def test_further_inputs_reach_the_block_and_its_copy() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor, factor: float) -> Tensor:
            return self.conv(x) * factor

    block, x = ControlledBlock(Scaled(), 2, 2), torch.randn(1, 2, 4, 4)
    nn.init.ones_(block.zero_out.weight)
    assert torch.allclose(block(x, x, 3.0), 3 * block(x, x, 1.0), atol=1e-6)


def test_a_block_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="0, 1, 2 or 3 spatial axes, not 4"):
        ControlledBlock(nn.Conv2d(2, 2, 1), 2, 2, spatial=4)
