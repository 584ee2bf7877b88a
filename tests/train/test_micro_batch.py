"""Memory that runs out, in every wording and at every place; what the compiler gets to see."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import ToyPairs, tiny_base, tiny_unet
from tests.train.test_fit import assert_equal, rows, tensors
from train import compiler, micro_batch, optimizer, out_of_memory, throughput, train_state
from train import step as steps
from train.batches import batch_at
from train.controlnet import ControlNet
from train.fit import Options, fit
from train.step import DiffusionModel, MicroBatch
from train.unet_parts import unet_decoder

OPTIONS = Options(images=8, batch=4, lr=1e-2, checkpoint_every=8, log_every=4, held_out=0)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["torch", "cudnn", "cublas", "triton", "cpu"])
def test_every_library_s_word_for_memory_that_ran_out_is_known(error: RuntimeError) -> None:
    wrapped = RuntimeError("backend='inductor' raised:")
    wrapped.__cause__ = error
    assert out_of_memory.is_out_of_memory(error) and out_of_memory.is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("a caption that says out of memory"),
        MemoryError("with one image at a time"),
    ],
    ids=["another error of CUDA", "another kind", "the last word"],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory.is_out_of_memory(error)
    with pytest.raises(type(error)), out_of_memory.unless_out_of_memory():
        raise error


def test_work_is_done_in_halves_where_memory_runs_out_and_comes_in_order() -> None:
    tried: list[int] = []

    def work(given: list[int]) -> list[int]:
        tried.append(len(given))
        if len(given) > 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return [10 * each for each in given]

    assert out_of_memory.in_parts(work, [1, 2, 3, 4, 5]) == [10, 20, 30, 40, 50]
    assert tried == [5, 2, 3, 1, 2]
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        out_of_memory.in_parts(lambda given: work([*given] * 3), [1, 2])


@pytest.mark.parametrize("error", ERRORS[1:4], ids=["cudnn", "cublas", "triton"])
def test_an_error_without_a_type_of_its_own_halves_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    decoded: list[int] = []

    def decode(unet: Any, skips: Any, *more: Any, **options: Any) -> torch.Tensor:
        decoded.append(len(skips[0]))
        if len(skips[0]) > 2:
            raise error
        return unet_decoder(unet, skips, *more, **options)

    real = steps.gradients
    monkeypatch.setattr(
        micro_batch,
        "gradients",
        lambda model, *given: real(dataclasses.replace(model, decode=decode), *given),
    )
    fit(tiny_base(), ToyPairs(side=8), ["edges"], OPTIONS, tmp_path)
    assert decoded == [4, 2, 2, 2, 2]


def test_memory_that_runs_out_while_a_run_is_built_or_takes_its_first_step_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(train_state, "build", full)
        with pytest.raises(MemoryError, match="building the run runs out of memory: set gradient_check"):
            fit(tiny_base(), ToyPairs(side=8), ["edges"], OPTIONS, tmp_path / "built")
    monkeypatch.setattr(optimizer, "step", full)
    with pytest.raises(MemoryError, match=r"the optimizer's step runs out of memory: .* adamw8bit"):
        fit(tiny_base(), ToyPairs(side=8), ["edges"], OPTIONS, tmp_path / "stepped")


def test_a_yardstick_without_room_costs_the_share_of_the_peak_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    throughput.matmul_rate.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", full)
        fit(tiny_base(), ToyPairs(side=8), ["edges"], OPTIONS, tmp_path)
    throughput.matmul_rate.cache_clear()
    assert [row["mfu"] for row in rows(tmp_path)] == [None, None]
    assert throughput.matmul_rate("cpu", torch.float32) > 0


class Counter:
    """A compiler that runs what it is given, and keeps the first sizes of each program."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, program: Any, inputs: list[Any]) -> Any:
        four = [tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor) and each.dim() == 4]
        self.shapes += [shape for shape in four if shape[1] == 4 and shape[0] != 1][:1]
        return program.forward


@pytest.mark.slow
def test_mixed_batches_and_the_search_for_the_micro_batch_are_not_compiled() -> None:
    """Batches of two sizes compile each part twice; the three mixed ones, of other counts, nothing."""
    unet = tiny_unet()
    counter = Counter()
    model = DiffusionModel(
        unet, {"edges": ControlNet.from_unet(unet)[0]}, torch.linspace(0.99, 0.01, 1000), "epsilon"
    )
    torch.compiler.reset()
    compiled = model.compiled(backend=counter)
    pairs = ToyPairs(12, side=8, wide=(0, 1, 2, 3, 4, 5))
    seen = []
    for places in ([6, 7, 8, 9], [0, 6, 7, 8], [0, 1, 2, 3], [0, 1, 6, 7], [0, 1, 2, 6], [7, 8, 9, 10]):
        parts = batch_at(pairs, ["edges"], [(0, i) for i in places], OPTIONS, scaling_factor=1.0)
        steps.gradients(compiled, parts, OPTIONS, MicroBatch(4, join=False))
        seen.append((len(parts), len(counter.shapes)))
    counts = [count for _, count in seen]
    assert counts[0] > 0 and counts[2] == 2 * counts[0]
    assert counts == [counts[0], counts[0], counts[2], counts[2], counts[2], counts[2]]
    assert [number for number, _ in seen] == [1, 2, 1, 2, 2, 1]
    assert {shape[2:] for shape in counter.shapes} == {(8, 8), (8, 16)}


@pytest.mark.slow
def test_the_micro_batch_is_found_before_anything_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in for the compiled model counts its calls; the search leaves no trace in the weights."""
    compiled: list[int] = []
    eager: list[int] = []

    def decode_by(told: list[int], most: int) -> Any:
        def decode(unet: Any, skips: Any, *more: Any, **options: Any) -> torch.Tensor:
            told.append(len(skips[0]))
            if len(skips[0]) > most:
                raise torch.OutOfMemoryError("no room")
            return unet_decoder(unet, skips, *more, **options)

        return decode

    def as_compiled(self: DiffusionModel) -> DiffusionModel:
        slow = dataclasses.replace(self, decode=decode_by(eager, 2))
        return dataclasses.replace(self, decode=decode_by(compiled, 2), eager=slow)

    monkeypatch.setattr(DiffusionModel, "compiled", as_compiled)
    monkeypatch.setattr(compiler, "lacking", lambda device: None)
    options = dataclasses.replace(OPTIONS, compile=True)
    found = fit(tiny_base(), ToyPairs(side=8), ["edges"], options, tmp_path / "found")
    assert eager == [4, 2, 2, 2, 2] and compiled == [2, 2, 2, 2]  # twice: before and beside Adam's moments
    known = fit(
        tiny_base(),
        ToyPairs(side=8),
        ["edges"],
        dataclasses.replace(OPTIONS, micro_batch=2),
        tmp_path / "known",
    )
    assert_equal(tensors(known), tensors(found))
    eager.clear()
    fit(tiny_base(), ToyPairs(side=8), ["edges"], dataclasses.replace(options, images=12), tmp_path / "found")
    assert eager == []  # a run that goes on knows


def test_a_machine_that_can_t_compile_says_so_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler.lacking("cpu") == "a compiler (no-such-compiler)"
    fit(tiny_base(), ToyPairs(side=8), ["edges"], dataclasses.replace(OPTIONS, compile=True), tmp_path)
    told = rows(tmp_path)
    assert told[0]["note"] == (
        "compile: true needs a compiler (no-such-compiler): this machine lacks that, so the run trains"
        " without the compiler"
    )
    assert told[-1]["images"] == 8
