"""How many images a network is given at a time, on a GPU that is made up."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from annotate import inference

IMAGES = [np.full((4, 6, 3), number, np.uint8) for number in range(21)]


@dataclass
class Gpu:
    """`free` bytes, of which one image takes `each` by the first look, and `true` in a pass of several."""

    free: int
    each: int
    true: int = 0
    passes: list[int] = field(default_factory=list)  # images of each pass
    peak: int = 0

    def forward(self, batch: np.ndarray) -> list[int]:
        self.passes.append(len(batch))
        self.peak = len(batch) * self.each
        if len(batch) > 1 and len(batch) * (self.true or self.each) > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return [int(image[0, 0, 0]) for image in batch]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gpu]:
    def make(free: int, each: int, true: int = 0) -> Gpu:
        made = Gpu(free, each, true)
        told = {
            "synchronize": lambda device: None,
            "reset_peak_memory_stats": lambda device: None,
            "memory_allocated": lambda device: 0,
            "max_memory_allocated": lambda device: made.peak,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device: (made.free, made.free),
        }
        for name, function in told.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(inference, "_BATCHES", {})
        return made

    return make


def test_as_many_images_pass_at_once_as_the_memory_that_one_took_allows(gpu: Callable[..., Gpu]) -> None:
    made = gpu(free=1000, each=90)
    assert inference.run(IMAGES, made.forward, "cuda", "network") == list(range(21))
    assert made.passes == [1, 1, 8, 8, 8], "8 of 90 bytes in 80 % of 1000; the last pass is filled up"
    assert inference.run(IMAGES[:3], made.forward, "cuda", "network") == [0, 1, 2]
    assert made.passes[5:] == [4], "few images do not wait for a pass of many"
    wide = [np.zeros((4, 9, 3), np.uint8)] * 2
    inference.run(wide, made.forward, "cuda", "network")
    assert made.passes[6:] == [1, 1, 2], "another size is measured for itself"


def test_out_of_memory_halves_the_batch_until_it_fits_and_loses_no_image(gpu: Callable[..., Gpu]) -> None:
    made = gpu(free=1000, each=20, true=300)
    assert inference.run(IMAGES, made.forward, "cuda:0", "network") == list(range(21))
    assert made.passes[2:6] == [32, 16, 8, 4] and set(made.passes[6:-1]) == {2} and made.passes[-1] == 1
    inference.run(IMAGES[:4], made.forward, "cuda:0", "network")
    assert made.passes[-2:] == [2, 2], "what was too much is not tried again"


def test_one_image_that_is_too_much_is_an_error(gpu: Callable[..., Gpu]) -> None:
    gpu(free=1000, each=10)

    def forward(batch: np.ndarray) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        inference.run(IMAGES, forward, "cuda", "network")


def test_another_error_is_not_tried_again_with_fewer(gpu: Callable[..., Gpu]) -> None:
    made = gpu(free=1000, each=10)

    def forward(batch: np.ndarray) -> list[int]:
        if made.forward(batch) and len(batch) > 1:
            raise ValueError("the picture is broken")
        return [0]

    with pytest.raises(ValueError, match="broken"):
        inference.run(IMAGES, forward, "cuda", "network")
    assert made.passes == [1, 1, 32]


def test_a_cpu_is_given_one_image_at_a_time() -> None:
    made = Gpu(free=1000, each=1)
    assert inference.run(IMAGES, made.forward, "cpu", "network") == list(range(21))
    assert set(made.passes) == {1}
