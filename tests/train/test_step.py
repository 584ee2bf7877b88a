"""One step in other shapes: joined conditions, several sizes, bf16 passes, less memory, several processes."""

import dataclasses
import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.conftest import ToyPairs, tiny_base, tiny_unet
from tests.train.test_fit import assert_equal, rows, tensors
from train import precision
from train import step as steps
from train.controlnet import ControlNet
from train.distributed import Ranks
from train.fit import Options, fit
from train.metric_buffer import MetricBuffer, NotFinite
from train.unet_parts import unet_decoder

OPTIONS = Options(images=16, batch=4, lr=1e-2, checkpoint_every=16, log_every=8)
TWO = ToyPairs(8, conditions=("edges", "inverse"), side=8)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "optimizer" not in name}


@pytest.mark.parametrize("connect", ["full", "middle"])
def test_joined_conditions_learn_the_same(tmp_path: Path, connect: str) -> None:
    options = dataclasses.replace(OPTIONS, connect=connect, lr=1e-4)
    apart = fit(tiny_base(), TWO, ["edges", "inverse"], options, tmp_path / "apart")
    joined = fit(
        tiny_base(), TWO, ["edges", "inverse"], dataclasses.replace(options, join=True), tmp_path / "joined"
    )
    for condition in ("edges", "inverse"):
        assert furthest(weights(tensors(apart, condition)), weights(tensors(joined, condition))) < 1e-5
    for one, other in zip(rows(tmp_path / "apart"), rows(tmp_path / "joined"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_joined_conditions_take_one_decoder_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    monkeypatch.setattr(steps, "gradients", spied(steps.gradients, passes))
    monkeypatch.setattr("train.micro_batch.gradients", steps.gradients)
    fit(tiny_base(), TWO, ["edges", "inverse"], dataclasses.replace(OPTIONS, join=True, images=4), tmp_path)
    assert passes == [8]


def spied(real, passes: list[int]):
    def gradients(network, *given):
        def decode(unet, skips, *more, **options):
            passes.append(len(skips[0]))
            return unet_decoder(unet, skips, *more, **options)

        return real(dataclasses.replace(network, decode=decode), *given)

    return gradients


class LittleMemory:
    """Runs out of memory where more than `most` images are decoded at once, having done half of the work."""

    def __init__(self, most: int) -> None:
        self.most, self.tried = most, []

    def __call__(self, real):
        def gradients(network, *given):
            def decode(unet, skips, *more, **options):
                self.tried.append(len(skips[0]))
                if len(skips[0]) > self.most:
                    raise torch.OutOfMemoryError("no room")
                return unet_decoder(unet, skips, *more, **options)

            return real(dataclasses.replace(network, decode=decode), *given)

        return gradients


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_logical_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dataclasses.replace(OPTIONS, checkpoint_every=8)
    small = fit(
        tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(options, micro_batch=1), tmp_path / "small"
    )
    memory = LittleMemory(1)
    monkeypatch.setattr("train.micro_batch.gradients", memory(steps.gradients))
    fallen = fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path / "fallen")
    assert memory.tried[:4] == [4, 2, 1, 1] and set(memory.tried[2:]) == {1}  # told once, and then kept
    assert_equal(tensors(small), tensors(fallen))
    assert [row["micro_batch"] for row in rows(tmp_path / "fallen")] == [1, 1]
    memory.tried.clear()
    fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(options, images=20), tmp_path / "fallen")
    assert memory.tried == [1] * 4  # a resumed run knows what fits


def test_out_of_memory_parts_joined_conditions_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = LittleMemory(4)
    monkeypatch.setattr("train.micro_batch.gradients", memory(steps.gradients))
    fit(tiny_base(), TWO, ["edges", "inverse"], dataclasses.replace(OPTIONS, join=True, images=4), tmp_path)
    assert memory.tried == [8, 4, 4]


def test_a_gradient_of_a_pass_that_failed_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second micro-batch of the first try fails, when the first one has already left its gradient."""
    plain = fit(
        tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, micro_batch=1), tmp_path / "plain"
    )
    calls = []

    def decode(*given, **options):
        calls.append(len(given[1][0]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return unet_decoder(*given, **options)

    real = steps.gradients
    monkeypatch.setattr(
        "train.micro_batch.gradients",
        lambda network, *given: real(dataclasses.replace(network, decode=decode), *given),
    )
    fallen = fit(
        tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, micro_batch=2), tmp_path / "fallen"
    )
    assert calls[:3] == [2, 2, 1]
    # What micro_batch 2 began goes on with 1, so the weights are those of 1 alone.
    assert_equal(tensors(plain), tensors(fallen))


def test_one_image_that_does_not_fit_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.micro_batch.gradients", LittleMemory(0)(steps.gradients))
    with pytest.raises(
        MemoryError, match="gradient_checkpointing: true, connect: middle, optimizer: adamw8bit"
    ):
        fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path)


@pytest.mark.slow
def test_images_of_several_sizes_train_and_resume_exactly(tmp_path: Path) -> None:
    pairs = ToyPairs(7, wide=(0, 2, 3), side=8)
    options = dataclasses.replace(OPTIONS, images=32, flip=0.5)
    whole = fit(tiny_base(), pairs, ["edges"], options, tmp_path / "whole")
    fit(tiny_base(), pairs, ["edges"], dataclasses.replace(options, images=16), tmp_path / "halves")
    halves = fit(tiny_base(), pairs, ["edges"], dataclasses.replace(options, workers=3), tmp_path / "halves")
    assert_equal(tensors(whole), tensors(halves))


@pytest.mark.slow
def test_bf16_passes_teach_float32_masters(tmp_path: Path) -> None:
    """The same gradients but for rounding; what is saved and what the optimizer holds is float32 and no
    rounded number.
    """
    exact = fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, lr=1e-3), tmp_path / "fp32")
    options = dataclasses.replace(OPTIONS, lr=1e-3, precision="bf16", ema=8.0)
    rounded = fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path / "bf16")
    made = {name: tensor for name, tensor in tensors(rounded).items() if "ema" not in name}
    assert all(tensor.dtype == torch.float32 for tensor in made.values())
    assert any(
        not torch.equal(tensor, tensor.bfloat16().float())
        for name, tensor in weights(made).items()
        if "mid_block" in name
    )
    # Adam moves a weight by 1e-3 a step at most, either way
    assert 0 < furthest(weights(made), weights(tensors(exact))) < 8.5e-3
    norms = [[row["gradient_norm"]["edges"] for row in rows(tmp_path / name)] for name in ("fp32", "bf16")]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(options, images=8), tmp_path / "halves")
    assert_equal(
        tensors(rounded), tensors(fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path / "halves"))
    )


def test_gradients_of_bf16_passes_add_up_in_float32() -> None:
    net = torch.nn.Linear(3, 1, bias=False)
    twin = precision.twin(net, "bf16")
    assert twin.weight.dtype == torch.bfloat16
    for value in (256.0, 1.0, 1.0):  # in bf16 256 + 1 is 256
        twin(torch.full((1, 3), value, dtype=torch.bfloat16)).sum().backward()
        assert twin.weight.grad is None
    assert net.weight.grad.tolist() == [[258.0, 258.0, 258.0]] and net.weight.grad.dtype == torch.float32
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0, 1 + 2**-12]]))
    precision.refresh(twin, net)
    assert twin.weight.float().tolist() == [[1.0, 2.0, 1.0]]


def test_the_locked_base_computes_in_bf16_and_channels_last_and_stays_as_it_was() -> None:
    unet = tiny_unet()
    made = precision.locked(unet, "bf16", "cpu")
    assert made.conv_in.weight.dtype == torch.bfloat16 and unet.conv_in.weight.dtype == torch.float32
    assert made.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert precision.locked(unet, "fp32", "cpu") is unet


@pytest.mark.slow
def test_compiled_halves_give_the_same_gradients_for_every_condition() -> None:
    """With the tracing of torch.compile but without its code generator, which takes a minute."""
    unet = tiny_unet()
    nets = {name: ControlNet.from_unet(unet)[0] for name in ("edges", "inverse")}
    network = steps.DiffusionModel(unet, nets, torch.linspace(0.99, 0.01, 1000), "epsilon")
    parts = steps_of(TWO)
    found = []
    for each in (network, network.compiled(backend="aot_eager")):
        losses = steps.gradients(each, parts, OPTIONS, steps.MicroBatch(4, join=False))
        found.append(
            (
                losses,
                {
                    f"{c} {n}": p.grad.clone()
                    for c, net in nets.items()
                    for n, p in net.named_parameters()
                    if p.grad is not None
                },
            )
        )
        for net in nets.values():
            net.zero_grad(set_to_none=True)
    assert found[0][1].keys() == found[1][1].keys()
    assert furthest(found[0][1], found[1][1]) < 1e-6
    assert furthest(found[0][0], found[1][0]) < 1e-6


def steps_of(pairs: ToyPairs):
    from train.batches import batch_at

    return batch_at(pairs, list(pairs.conditions), [(0, i) for i in range(4)], OPTIONS, scaling_factor=1.0)


def train_as_rank(out: Path, port: int, rank: int, drift: bool) -> None:
    """In a process of its own."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    ranks = Ranks.here()
    if rank == 1:  # the other one needs not know
        sys.modules["train.micro_batch"].gradients = LittleMemory(1)(steps.gradients)
    try:
        options = dataclasses.replace(OPTIONS, lr=1e-4, log_every=4)
        fit(
            tiny_base(),
            TWO,
            ["edges", "inverse"],
            options,
            out,
            held_out=ToyPairs(3, conditions=TWO.conditions),
        )
        norm = torch.nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.fill_(1.0 + drift * rank * 2**-23)
        (norm(torch.full((1, 2), 1.0 + rank)).sum() * 0.5).backward()
        ranks.sum_gradients(norm.parameters())
        told = {"gradient": norm.weight.grad.tolist()}
        try:
            ranks.check_equal({"norm": norm}, 0)
        except RuntimeError as error:
            told["error"] = str(error)
        buffer = MetricBuffer(["edges"], ranks)
        buffer.add(
            (f"image-{rank}",),
            {"edges": torch.tensor([0.5 / rank if rank else math.nan])},
            {"edges": torch.tensor(1.0)},
        )
        try:
            buffer.take(1)
        except NotFinite as error:
            told["lost"] = str(error)
        (out / f"rank-{rank}.json").write_text(json.dumps(told))
    finally:
        dist.destroy_process_group()


def two_processes(out: Path, drift: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, pathlib; from tests.train.test_step import train_as_rank as go;"
        " go(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(out), str(port), str(rank), str(int(drift))])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Their gradients are one, their checkpoint is that of one process, and a weight that drifts apart is
    named.
    """
    alone = fit(
        tiny_base(),
        TWO,
        ["edges", "inverse"],
        dataclasses.replace(OPTIONS, lr=1e-4, log_every=4),
        tmp_path / "alone",
    )
    two_processes(tmp_path / "two", drift=True)
    told = [json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [one["gradient"] for one in told] == [[[1.5, 1.5], [1.5, 1.5]]] * 2
    assert all(
        "the 2 ranks differ in 2 tensors" in one["error"] and "first norm: weight" in one["error"]
        for one in told
    )
    assert all("loss of edges is not finite at step 1, images image-0:" in one["lost"] for one in told), (
        "whichever is heard names the image"
    )
    both = dataclasses.replace(alone, path=tmp_path / "two" / alone.path.name)
    meta = json.loads((both.path / "meta.json").read_text())
    assert meta["ranks"] == 2 and meta["room"]["micro"] == 1, (
        "the smallest room of all is what a resumed run begins with"
    )
    for condition in ("edges", "inverse"):
        assert furthest(weights(tensors(alone, condition)), weights(tensors(both, condition))) < 1e-5
    logged = [rows(tmp_path / name) for name in ("alone", "two")]
    assert [row["images"] for row in logged[1]] == [4, 8, 12, 16]
    for one, other in zip(*logged, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert "held_out" in logged[1][-1]


def test_a_batch_that_the_processes_can_not_share_is_refused() -> None:
    assert [Ranks(rank, 2).share(6) for rank in range(2)] == [slice(0, 3), slice(3, 6)]
    with pytest.raises(ValueError, match=r"batch \(6\) must be a multiple of the 4 processes"):
        Ranks(0, 4).share(6)
