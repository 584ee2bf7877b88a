"""What an optimizer keeps, and that it comes back bit for bit; in eight bits where bitsandbytes
is installed.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.train.conftest import tiny_unet
from train import checkpoint, pretrained
from train.controlnet import ControlNet
from train.integrity import OPTIMIZER
from train.optimizer import lacking, load_optimizer, make, optimizer_tensors
from train.options import Options

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def options(**changes: Any) -> Options:
    return Options(images=4, batch=4, **changes)


LEAN = options(optimizer="adamw8bit")


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Gradients that depend on nothing but the number of the step; the first parameter never has one."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in learning(model)[1:]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(
        torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype for name, tensor in one.items()
    )


@needs_bitsandbytes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_resume_with_moments_in_eight_bits_is_exact(layout: torch.memory_format, tmp_path: Path) -> None:
    whole, _ = ControlNet.from_unet(tiny_unet(block_out_channels=(8, 16, 32, 32)))
    whole.conv_in.requires_grad_(False)
    whole.to(memory_format=layout)
    half = copy.deepcopy(whole)
    optimizers = [make(learning(one), LEAN, 1e-2) for one in (whole, half)]
    steps(whole, optimizers[0], range(6))
    steps(half, optimizers[1], range(3))
    moments = [
        value
        for state in optimizers[1].state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    # on a GPU they are read in the order of the memory
    assert all(moment.is_contiguous() for moment in moments)
    saved = checkpoint.save(tmp_path, {"edges": half}, {"edges": optimizers[1]}, {"step": 3, "images": 12})
    kept = load_file(saved.path / "edges" / OPTIMIZER)
    assert {tensor.dtype for tensor in kept.values()} == {torch.uint8, torch.float32, torch.int64}
    back = pretrained.load_controlnet(saved.path / "edges").to(memory_format=layout)
    back.conv_in.requires_grad_(False)
    optimizer = make(learning(back), LEAN, 1e-2)
    load_optimizer(saved.path / "edges", back, optimizer)
    assert_same(optimizer_tensors(back, optimizer), kept)
    steps(back, optimizer, range(3, 6))
    assert_same(back.state_dict(), whole.state_dict())
    assert_same(optimizer_tensors(back, optimizer), optimizer_tensors(whole, optimizers[0]))


@needs_bitsandbytes
def test_eight_bits_keep_two_bytes_a_parameter_and_small_tensors_eight() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(512, 512, bias=False), nn.Linear(63, 65, bias=False))
    optimizer = make(list(model.parameters()), LEAN, 1e-3)
    steps(model, optimizer, range(1))
    kept = optimizer_tensors(model, optimizer)

    def size(name: str) -> int:
        """Without the code books, which all parameters share in memory, and the count of steps."""
        return sum(
            t.numel() * t.element_size()
            for key, t in kept.items()
            if key.startswith(name) and t.ndim and "qmap" not in key
        )

    # a float32 for each 256 values of each moment
    assert size("1.weight") == 2 * 512 * 512 + 2 * 4 * 512 * 512 // 256
    assert size("2.weight") == 8 * 63 * 65
    books = {
        id(state[book]) for state in optimizer.state.values() for book in ("qmap1", "qmap2") if book in state
    }
    assert len(books) == 2


@needs_bitsandbytes
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_eight_bits_lead_about_where_adamw_leads(decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(96, 96)
    ends = []
    for name in ("adamw", "adamw8bit"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(96, 96, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(start)
        chosen = options(optimizer=name, weight_decay=decay)
        steps(model, make(list(model.parameters()), chosen, 1e-2), range(30))
        ends.append(model[1].weight.detach() - start)
    assert (ends[1] - ends[0]).norm() < 0.05 * ends[0].norm()


def test_adamw_is_that_of_torch_with_the_runs_rate_and_decay() -> None:
    ends = []
    for build in (
        lambda ps: make(ps, options(weight_decay=0.3), 2e-2),
        lambda ps: torch.optim.AdamW(ps, lr=2e-2, weight_decay=0.3, fused=True),
    ):
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        steps(model, build(list(model.parameters())), range(3))
        ends.append(model.state_dict())
    assert_same(*ends)


def test_what_an_optimizer_counts_and_shares_comes_back_as_it_was(tmp_path: Path) -> None:
    """SparseAdam counts its steps in a Python int, as bitsandbytes does; a tensor that two parameters share
    is no reason to fail.
    """

    def trained(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            model(torch.tensor([[1, 3]])).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters())
    trained(model, optimizer, 2)
    state = optimizer.state[model[0].weight]
    state["again"] = state["exp_avg"]
    save_file(optimizer_tensors(model, optimizer), tmp_path / OPTIMIZER)
    back = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    back.load_state_dict(model.state_dict())
    again = torch.optim.SparseAdam(back.parameters())
    load_optimizer(tmp_path, back, again)
    found = again.state[back[0].weight]
    assert type(found["step"]) is int and found["step"] == 2 and torch.equal(found["again"], state["exp_avg"])
    for one, its in ((model, optimizer), (back, again)):
        trained(one, its, 2)
    assert_same(back.state_dict(), model.state_dict())


def test_a_missing_package_is_a_sentence_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert lacking("adamw") is None
    with pytest.raises(
        ValueError,
        match=(
            r"adamw8bit needs the package bitsandbytes: `pip install 'controlmill\[lean\]'`, or set"
            r" optimizer to"
        ),
    ):
        make([nn.Parameter(torch.zeros(1))], LEAN, 1e-3)
