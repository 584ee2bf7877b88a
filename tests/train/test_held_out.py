import copy
import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from scipy.stats import rankdata

from tests.train.conftest import ToyPairs, tiny_base, tiny_unet
from train.base import Base, noise_levels
from train.batches import batch_at, rng
from train.controlnet import ControlNet
from train.held_out import BUCKET_NAMES, HeldOut, choose, convergence_steps, derangement, stratified_timesteps
from train.loss import noisy_and_target
from train.options import Options
from train.unet_parts import unet_decoder, unet_encoder

SEED, COUNT = 0, 64


def small_base() -> Base:
    """Two levels instead of four, which learn to follow a hint in seconds."""
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return dataclasses.replace(
        tiny_base(), unet=tiny_unet(block_out_channels=(8, 16), layers_per_block=1, **blocks)
    )


def fresh(base: Base) -> ControlNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ControlNet.from_unet(base.unet)[0]


def shaken(base: Base) -> ControlNet:
    """One whose zero convolutions are zero no more."""
    net = fresh(base)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def held_out(base: Base, pairs: ToyPairs, **changes: Any) -> HeldOut:
    usual = {"count": COUNT, "seed": SEED, "connect": "full"}
    return HeldOut(base, base.unet, pairs, list(pairs.conditions), **(usual | changes))


def test_convergence_is_seen_when_a_network_begins_to_follow_its_hint_and_not_when_it_merely_learns() -> None:
    base, pairs = small_base(), ToyPairs(96, side=8)
    measured = choose(pairs.ids, COUNT, SEED)
    others = [i for i in range(96) if i not in measured]
    watch, net, levels = held_out(base, pairs), fresh(base), noise_levels(base)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    rows: list[dict[str, Any]] = []
    for step in range(1, 241):
        places = [(step, int(i)) for i in rng(0, "order", step).choice(others, 8, replace=False)]
        (batch,) = batch_at(pairs, ["edges"], places, Options(images=8, batch=8), scaling_factor=1.0)
        noisy, target = noisy_and_target(
            batch.latents, batch.noise, levels[batch.timesteps], base.prediction_type
        )
        half = unet_encoder(base.unet, noisy, batch.timesteps, batch.text)
        residuals = net(noisy, batch.timesteps, batch.text, batch.hints["edges"].float() / 255)
        optimizer.zero_grad()
        (unet_decoder(base.unet, *half, batch.text, residuals) - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            rows.append(
                {
                    "images": 8 * step,
                    "loss": {"edges": 0.0},
                    "held_out": watch.measure(base.unet, {"edges": net}),
                }
            )
            if convergence_steps(rows):
                break
    # measured: control_z 2.7, 5.9 and 6.5 against 4.25, control in the end 65 times the first; AVX2 gives the
    # same four digits
    early, late = rows[0]["held_out"]["edges"], rows[-1]["held_out"]["edges"]
    assert early["gap"] > 20 * early["gap_error"] and convergence_steps(rows[:1] * 2) == {}
    assert late["control"] > 10 * abs(early["control"]) and late["gap"] - late[
        "shuffled_gap"
    ] == pytest.approx(late["control"])
    assert (
        sum(late["gap_by_timestep"][name] > late["shuffled_gap_by_timestep"][name] for name in BUCKET_NAMES)
        >= 5
    )
    assert convergence_steps(rows) == {"edges": rows[-2]["images"]} and len(rows) > 2
    json.dumps(rows, allow_nan=False)


def test_a_new_controlnet_has_a_gain_of_exactly_nothing() -> None:
    base, pairs = tiny_base(), ToyPairs(9, ("edges", "inverse"))
    found = held_out(base, pairs).measure(base.unet, {name: fresh(base) for name in pairs.conditions})
    assert list(found) == ["edges", "inverse"]
    for numbers in found.values():
        assert numbers["gap"] == numbers["shuffled_gap"] == numbers["control"] == numbers["gap_error"] == 0
        assert numbers["control_z"] is None and numbers["n"] == 9
        assert numbers["loss"] == numbers["base_loss"] > 0.5


@pytest.mark.parametrize("connect", ["full", "middle"])
def test_the_losses_are_those_of_diffusers_on_the_same_inputs_also_of_several_sizes(connect: str) -> None:
    base, pairs = small_base(), ToyPairs(7, side=8, wide=(1, 4, 5))
    watch, net = held_out(base, pairs, connect=connect, micro_batch=2), shaken(base)
    base_losses, true, shuffled = [], [], []
    for group in watch.groups:
        hint = group.hints["edges"].float() / 255
        assert sorted(group.partner.tolist()) == list(range(len(hint))) and all(
            group.partner != torch.arange(len(hint))
        )
        for losses, chosen in ((base_losses, None), (true, hint), (shuffled, hint[group.partner])):
            given: dict[str, Any] = {}
            if chosen is not None:
                downs, middle = net(group.noisy, group.timesteps, group.text, chosen)
                downs = downs if connect == "full" else tuple(torch.zeros_like(down) for down in downs)
                given = {"down_block_additional_residuals": downs, "mid_block_additional_residual": middle}
            with torch.no_grad():
                predicted = base.unet(group.noisy, group.timesteps, group.text, **given).sample
            losses += (predicted - group.target).square().mean(dim=(1, 2, 3)).tolist()
    found = watch.measure(base.unet, {"edges": net})["edges"]
    mean = {
        name: pytest.approx(np.mean(values), rel=1e-5)
        for name, values in (("loss", true), ("base_loss", base_losses))
    }
    assert {name: found[name] for name in mean} == mean
    gap = np.array(base_losses) - true
    assert found["gap"] == pytest.approx(gap.mean(), rel=1e-3, abs=1e-6)
    assert found["gap_error"] == pytest.approx(gap.std(ddof=1) / np.sqrt(7), rel=1e-3)
    assert found["shuffled_gap"] == pytest.approx(
        np.mean(base_losses) - np.mean(shuffled), rel=1e-3, abs=1e-6
    )
    assert found["control"] == pytest.approx(np.mean(shuffled) - np.mean(true), rel=1e-3, abs=1e-6)
    share = (np.array(shuffled) - true) / base_losses
    assert found["control_z"] == pytest.approx(z_of(share), abs=0.05)
    times = torch.cat([group.timesteps for group in watch.groups]).numpy()
    for b, name in enumerate(BUCKET_NAMES):
        inside = (times >= 125 * b) & (times < 125 * (b + 1))
        assert found["gap_by_timestep"][name] == (
            pytest.approx(gap[inside].mean(), rel=1e-3, abs=1e-6) if inside.any() else None
        )


def test_every_bucket_of_timesteps_has_its_share_and_each_image_its_own_draw() -> None:
    ids = [f"image-{i}" for i in range(80)]
    places = choose(ids, 64, SEED)
    times = stratified_timesteps([ids[i] for i in places], SEED)
    assert np.bincount(np.array(list(times.values())) // 125).tolist() == [8] * 8
    assert len({t % 125 for t in times.values()}) > 30
    assert times != stratified_timesteps([ids[i] for i in places], SEED + 1)
    assert len(set(places)) == 64 and places != sorted(places)
    grown = choose([f"new-{i}" for i in range(20)] + ids, 64, SEED)
    # those that stay keep their order
    assert [i - 20 for i in grown if i >= 20] == places[: sum(i >= 20 for i in grown)]
    assert choose(ids, 64, SEED)[:10] == choose(ids, 10, SEED)
    assert sorted(choose(ids, 500, SEED)) == list(range(80))


def test_measuring_again_gives_the_same_bits_and_leaves_the_global_generators_alone() -> None:
    base, pairs = small_base(), ToyPairs(10, side=8)
    net, before = shaken(base), (torch.get_rng_state(), np.random.get_state()[1].copy())
    watch = held_out(base, pairs)
    first = watch.measure(base.unet, {"edges": net})
    assert (
        first
        == watch.measure(base.unet, {"edges": net})
        == held_out(base, pairs).measure(base.unet, {"edges": net})
    )
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(
        before[1], np.random.get_state()[1]
    )
    assert all(parameter.grad is None for parameter in net.parameters()) and net.training
    assert first != held_out(base, pairs, seed=1).measure(base.unet, {"edges": net})


def test_the_caption_is_never_dropped_and_noise_is_not_that_of_training() -> None:
    base, pairs = small_base(), ToyPairs(12, side=8)
    (group,) = held_out(base, pairs).groups
    texts = {pairs[i].text.tobytes() for i in range(12)}
    assert {text.numpy().tobytes() for text in group.text} == texts
    (trained,) = batch_at(
        pairs, ["edges"], [(0, i) for i in range(12)], Options(images=1, batch=1), scaling_factor=1.0
    )
    assert not any(torch.equal(one, other) for one, other in itertools.product(group.target, trained.noise))


def test_one_pair_of_its_size_has_no_shuffle_and_one_pair_alone_no_control() -> None:
    base = small_base()
    some = held_out(base, ToyPairs(4, side=8, wide=(2,))).measure(base.unet, {"edges": shaken(base)})["edges"]
    assert (some["n"], some["n_shuffled"]) == (4, 3) and some["control"] is not None
    alone = held_out(base, ToyPairs(1, side=8)).measure(base.unet, {"edges": shaken(base)})["edges"]
    assert alone["n"] == 1 and alone["gap"] is not None
    assert [alone[name] for name in ("gap_error", "shuffled_gap", "control", "control_z")] == [None] * 4
    json.dumps(alone, allow_nan=False)
    assert all(not (derangement(n, 3, (8, 8)) == torch.arange(n)).any() for n in range(2, 40))


def test_an_unlocked_base_is_measured_against_the_locked_one() -> None:
    base, pairs = small_base(), ToyPairs(8, side=8)
    watch, other = held_out(base, pairs), copy.deepcopy(base.unet)
    with torch.no_grad():
        other.conv_out.bias.add_(0.1)
    found, plain = (watch.measure(unet, {"edges": fresh(base)})["edges"] for unet in (other, base.unet))
    assert plain["gap"] == 0 != found["gap"]
    assert found["base_loss"] == plain["base_loss"]


@pytest.mark.parametrize("half", [False, True], ids=["float32 ControlNet", "bf16 ControlNet"])
def test_the_base_may_compute_in_bf16(half: bool) -> None:
    base, pairs = small_base(), ToyPairs(8, side=8)
    net = shaken(base)
    expected = held_out(base, pairs).measure(base.unet, {"edges": net})["edges"]
    unet: UNet2DConditionModel = copy.deepcopy(base.unet).to(
        torch.bfloat16, memory_format=torch.channels_last
    )
    low = copy.deepcopy(net).to(torch.bfloat16) if half else net
    watch = HeldOut(base, unet, pairs, ["edges"], count=8, seed=SEED, connect="full")
    found = watch.measure(unet, {"edges": low})["edges"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02) and found["loss"] != expected["loss"]
    assert next(net.parameters()).dtype == torch.float32


def test_nothing_to_measure_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 are there, 64 asked for"):
        held_out(small_base(), ToyPairs(0))


def z_of(shares: np.ndarray) -> np.ndarray:  # [..., n] => [...]
    """By scipy's ranks; of the sum of those with a plus, as the books have it, mean and variance are taken
    off.
    """
    n, plus = shares.shape[-1], (rankdata(np.abs(shares), axis=-1) * (shares > 0)).sum(axis=-1)
    return (plus - n * (n + 1) / 4) / np.sqrt(n * (n + 1) * (2 * n + 1) / 24)


# [runs, measures, conditions] control_z
def null_runs(runs: int, measures: int, conditions: int, n: int) -> np.ndarray:
    """Networks that react to hints, with tails of their own and slowly changing, but not to
    whose they are.
    """
    rng = np.random.default_rng(0)
    partner = derangement(n, SEED, (8, 8)).numpy()
    scale = rng.lognormal(0, 0.5, n)  # of each pair, as its timestep has it
    z = np.empty((runs, measures, conditions))
    own = other = alike = 0.0
    for m in range(measures):
        fade = 0.9 if m else 0.0
        own, other, alike = (
            fade * past + (1 - fade**2) ** 0.5 * rng.standard_t(3, (runs, conditions, n))
            for past in (own, other, alike)
        )
        share = scale * (other - own) + 0.3 * (alike[..., partner] - alike)
        z[:, m] = z_of(share)
    return z


def log(
    z: np.ndarray,
    # [measures, conditions] => rows of train.jsonl, with some between them that measured nothing
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for m, each in enumerate(z):
        rows.append({"images": 1000 * m + 500, "loss": {}})
        rows.append(
            {
                "images": 1000 * m + 1000,
                "held_out": {f"condition-{k}": {"control_z": float(one)} for k, one in enumerate(each)},
            }
        )
    return rows


def test_chance_looks_like_convergence_in_at_most_one_run_of_twenty() -> None:
    z = null_runs(40, 100, 13, 64)
    assert 0.9 < z.std() < 1.1 and z.max() > 3
    assert sum(bool(convergence_steps(log(run))) for run in z) <= 2


def test_a_jump_is_known_one_measure_later_and_dated_to_its_first() -> None:
    z = null_runs(1, 40, 13, 64)[0]
    z[20:, 4] = 6.0
    assert convergence_steps(log(z[:21])) == {}
    assert convergence_steps(log(z[:22])) == convergence_steps(log(z)) == {"condition-4": 21000}


def test_one_odd_measure_is_no_convergence() -> None:
    for between in (4.2, None):
        rows = [
            {"images": m, "held_out": {"canny": {"control_z": z}}}
            for m, z in enumerate([None, 5.0, between, 5.0])
        ]
        assert convergence_steps(rows) == {}
        assert convergence_steps([*rows, {"images": 9, "held_out": {"canny": {"control_z": 4.3}}}]) == {
            "canny": 3
        }
    assert convergence_steps([]) == convergence_steps([{"images": 1, "loss": {"canny": 0.1}}]) == {}


def test_a_measure_that_runs_out_of_memory_takes_fewer_images_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, pairs = tiny_base(), ToyPairs(5, side=8)
    net = shaken(base)
    plain = held_out(base, pairs, micro_batch=2).measure(base.unet, {"edges": net})
    tried = []

    def decode(unet: Any, skips: Any, *given: Any) -> torch.Tensor:
        tried.append(len(skips[0]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("no room")
        return unet_decoder(unet, skips, *given)

    monkeypatch.setattr("train.held_out.unet_decoder", decode)
    fallen = held_out(base, pairs, micro_batch=8)
    assert tried == [5, 4, 2, 2, 1] and fallen.micro_batch == 2
    assert fallen.measure(base.unet, {"edges": net}) == plain
