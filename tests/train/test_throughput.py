import time
from typing import Any

import pytest
import torch

from tests.train.conftest import tiny_unet
from train import throughput
from train.throughput import flops_per_image, matmul_rate, peak_memory, reset_peak

SD15_AT_512 = {"height": 64, "width": 64, "tokens": 77}
TINY = {"height": 8, "width": 8, "tokens": 5}
SHALLOW = {
    "block_out_channels": (4, 8), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sd15() -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


@pytest.mark.parametrize(
    ("conditions", "modes", "gigaflops"),
    [(1, {}, 2265), (8, {}, 8 * (2004 + 261 / 8)), (1, {"unlock": "decoder"}, 2734)],
    ids=["cached latents", "eight on one locked encoder", "decoder unlocked"],
)
def test_a_step_of_stable_diffusion_costs_what_was_counted_apart(
    sd15: Any, conditions: int, modes: dict[str, Any], gigaflops: float
) -> None:
    assert flops_per_image(sd15, [3] * conditions, **SD15_AT_512, **modes) == pytest.approx(
        gigaflops * 1e9, rel=0.005
    )


@pytest.mark.slow
def test_modes_cost_more_or_less_in_the_order_of_their_work() -> None:
    unet = tiny_unet(**SHALLOW)
    middle, full, decoder, whole = (
        flops_per_image(unet, [3], **TINY, connect=connect, unlock=unlock)
        for connect, unlock in (("middle", "none"), ("full", "none"), ("full", "decoder"), ("full", "all"))
    )
    assert middle < full < decoder < whole
    assert flops_per_image(unet, [3], **TINY, recompute=True) > 1.2 * full


def test_conditions_may_have_hints_of_other_channels() -> None:
    unet = tiny_unet(**SHALLOW)
    one, six = (flops_per_image(unet, [channels], **TINY) for channels in (1, 6))
    assert one < six < flops_per_image(unet, [1, 6], **TINY) < one + six  # the locked encoder runs once


def test_counting_leaves_the_network_alone() -> None:
    unet = tiny_unet(**SHALLOW)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    flops_per_image(unet, [3], **TINY, unlock="all")
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in unet.parameters())


def test_the_matmul_rate_is_measured_once_and_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(throughput.SIDES, "cpu", 256)
    matmul_rate.cache_clear()
    rate = matmul_rate("cpu", torch.float32)
    a, start = torch.rand(256, 256), time.perf_counter()
    for _ in range(20):
        a @ a
    loop = 20 * 2 * 256**3 / (time.perf_counter() - start)
    assert loop / 20 < rate < loop * 20
    monkeypatch.setattr(torch, "mm", None)
    assert matmul_rate("cpu", torch.float32) == rate
    matmul_rate.cache_clear()


def test_the_peak_is_the_largest_growth_since_the_reset_also_of_what_was_freed() -> None:
    reset_peak("cpu")
    block = torch.ones(30_000_000)  # 120 MB
    del block
    assert 100e6 < peak_memory("cpu") < 200e6
    reset_peak("cpu")
    assert peak_memory("cpu") < 50e6


def test_without_leave_to_reset_the_mark_only_growth_beyond_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    block = torch.ones(60_000_000)
    del block
    # writing to a folder is an OSError, as where the kernel says no
    monkeypatch.setattr(throughput, "_CLEAR", tmp_path)
    reset_peak("cpu")
    torch.ones(2_000_000)
    assert peak_memory("cpu") < 50e6
