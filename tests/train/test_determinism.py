"""`deterministic` switches kernels for one run, and is no part of what a run is."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from tests.train.conftest import ToyPairs, tiny_base
from tests.train.test_fit import assert_equal, rows, tensors
from train import determinism
from train.determinism import deterministic_kernels
from train.fit import Options, fit

OPTIONS = Options(images=8, batch=4, lr=1e-2, checkpoint_every=4, log_every=4, held_out=0)


def state() -> tuple[object, ...]:
    from torch._inductor import config as inductor

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        inductor.deterministic,
        os.environ.get(determinism.CUBLAS),
    )


def test_inside_everything_is_set_and_afterwards_all_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(determinism.CUBLAS, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with pytest.raises(ZeroDivisionError), deterministic_kernels(True):
        assert state() == (True, True, False, True, ":4096:8")
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        raise ZeroDivisionError
    assert state() == before
    monkeypatch.setenv(determinism.CUBLAS, ":16:8")
    with deterministic_kernels(True):
        assert state()[-1] == ":16:8"  # somebody's own, which will do
    with deterministic_kernels(False):
        assert state() == (*before[:-1], ":16:8")


@pytest.mark.slow
def test_on_a_cpu_the_bits_are_those_of_every_run_and_the_run_is_the_same(tmp_path: Path) -> None:
    usual = fit(tiny_base(), ToyPairs(side=8), ["edges"], OPTIONS, tmp_path / "usual")
    half = dataclasses.replace(OPTIONS, images=4)
    fit(tiny_base(), ToyPairs(side=8), ["edges"], half, tmp_path / "resumed")
    again = dataclasses.replace(OPTIONS, deterministic=True)
    resumed = fit(tiny_base(), ToyPairs(side=8), ["edges"], again, tmp_path / "resumed")
    assert_equal(tensors(usual), tensors(resumed))
    assert not [row for row in rows(tmp_path / "resumed") if "note" in row]


def test_a_run_on_a_gpu_that_goes_on_with_other_kernels_says_so() -> None:
    from train.integrity import Checkpoint
    from train.resume import check_same_run, new_kernels

    before = dataclasses.asdict(OPTIONS)
    del before["deterministic"]  # of a checkpoint that is older than the key
    same = {"conditions": ["edges"], "base": "b", "pairs_hash": "p", "warm_start": {}}
    done = Checkpoint(Path("step-1"), 4, 1, same | {"options": before, "device": "cuda"})
    now = dataclasses.replace(OPTIONS, deterministic=True)
    check_same_run(done, same | {"options": dataclasses.asdict(now)})
    (told,) = new_kernels(now, done)
    assert told == (
        "goes on with deterministic: true: the weights are no longer bit-identical to those of an undisturbed"
        " run"
    )
    assert new_kernels(OPTIONS, done) == []
