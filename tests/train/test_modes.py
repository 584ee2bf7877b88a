"""The loop's modes: unlocked base, averaged weights, weighted loss, gradient checkpointing, hints of other
channels.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from tests.train.conftest import SCHEDULER, ToyPairs, tiny_base
from tests.train.test_fit import assert_equal, rows, tensors
from train import ema
from train.base import noise_levels
from train.batches import Order, Pair, batch_at
from train.fit import Options, fit
from train.sample import load_trained
from train.unet_parts import unet_decoder, unet_encoder
from train.weights_file import WEIGHTS

OPTIONS = Options(images=8, batch=4, lr=1e-3, checkpoint_every=16, log_every=4, workers=0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def options(**changes: object) -> Options:
    return dataclasses.replace(OPTIONS, **changes)


@pytest.mark.parametrize("unlock", ["none", "decoder", "all"])
def test_exactly_what_is_unlocked_changes_and_never_the_callers_base(tmp_path: Path, unlock: str) -> None:
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    done = fit(base, ToyPairs(), ["edges"], options(unlock=unlock), tmp_path)
    assert_equal(before, base.unet.state_dict())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.unet.parameters())
    if unlock == "none":
        assert not list(done.path.rglob("unet"))
        return
    after = UNet2DConditionModel.from_pretrained(done.path / "edges" / "unet").state_dict()
    assert_equal(weights(done.path / "edges" / "unet"), after)
    decoder = [base.unet.up_blocks, base.unet.conv_norm_out, base.unet.conv_out]
    expected = {
        id(p) for part in (decoder if unlock == "decoder" else [base.unet]) for p in part.parameters()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, parameter in base.unet.named_parameters() if id(parameter) in expected}


def test_the_unlocked_part_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    slow = options(unlock="decoder", unlock_lr=1e-9, weight_decay=0.0)
    done = fit(tiny_base(), ToyPairs(), ["edges"], slow, tmp_path)
    start = tiny_base().unet.state_dict()
    assert (
        max(
            float((tensor - start[name]).abs().max())
            for name, tensor in weights(done.path / "edges" / "unet").items()
        )
        < 1e-7
    )
    assert float(weights(done.path / "edges")["controlnet_mid_block.bias"].abs().max()) > 1e-4


def test_an_unlocked_base_serves_one_condition_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="edges and inverse share one locked base"):
        fit(
            tiny_base(),
            ToyPairs(conditions=("edges", "inverse")),
            ["edges", "inverse"],
            options(unlock="all"),
            tmp_path,
        )


@pytest.mark.slow
def test_sampling_uses_the_averages_and_the_base_that_trained_along(tmp_path: Path) -> None:
    done = fit(
        tiny_base(), ToyPairs(), ["edges"], options(images=16, lr=1e-2, unlock="decoder", ema=8.0), tmp_path
    )
    caller = tiny_base()
    base, net = load_trained(done.path / "edges", caller)
    folder = done.path / "edges" / "ema"
    assert not torch.equal(
        weights(folder)["controlnet_mid_block.weight"],
        weights(done.path / "edges")["controlnet_mid_block.weight"],
    )
    theirs = ControlNetModel.from_pretrained(folder).eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    x, t, text, hint = (
        torch.randn(2, 4, 16, 16),
        torch.tensor([3, 700]),
        torch.randn(2, 5, 8),
        torch.rand(2, 3, 128, 128),
    )
    with torch.no_grad():
        downs, mid = theirs(x, t, text, hint, return_dict=False)
        expected = unet(
            x, t, text, down_block_additional_residuals=downs, mid_block_additional_residual=mid
        ).sample
        skips, middle, emb = unet_encoder(base.unet, x, t, text)
        found = unet_decoder(base.unet, skips, middle, emb, text, net(x, t, text, hint))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_equal(caller.unet.state_dict(), tiny_base().unet.state_dict())
    plain = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "plain")
    base, net = load_trained(plain.path / "edges", caller)
    assert base is caller
    assert_equal(weights(plain.path / "edges"), net.state_dict())


def test_half_of_what_the_average_lacks_is_gone_after_its_half_life_whatever_the_batch() -> None:
    for batch in (1, 2, 8):
        model = nn.Linear(3, 2)
        mean = ema.start(model)
        start = mean.weight.clone()
        with torch.no_grad():
            model.weight.add_(1.0)
        for _ in range(8 // batch):
            ema.update(mean, model, half_life=8, seen=10**9, batch=batch)
        torch.testing.assert_close(mean.weight, start + 0.5)


@pytest.mark.parametrize("half_life", [1.0, 1e6])
def test_the_average_follows_the_weights_step_by_step(tmp_path: Path, half_life: float) -> None:
    """Early on the half-life is a twentieth of the images seen, so that the start is forgotten."""
    done = fit(
        tiny_base(), ToyPairs(), ["edges"], options(images=32, checkpoint_every=4, ema=half_life), tmp_path
    )
    decay = 0.5 ** (4 / min(half_life, 0.05 * 28))
    now, before = weights(done.path / "edges"), weights(tmp_path / "step-00000007" / "edges" / "ema")
    for name, tensor in weights(done.path / "edges" / "ema").items():
        torch.testing.assert_close(
            tensor, before[name] * decay + now[name] * (1 - decay), rtol=1e-5, atol=1e-7, msg=name
        )


def test_an_average_changes_nothing_that_trains(tmp_path: Path) -> None:
    plain = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "plain")
    kept = fit(tiny_base(), ToyPairs(), ["edges"], options(ema=8.0), tmp_path / "kept")
    assert_equal(weights(plain.path / "edges"), weights(kept.path / "edges"))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_counts_errors_of_the_clean_image_up_to_gamma(tmp_path: Path, prediction: str) -> None:
    """Computed on the clean image that a prediction stands for, where the weight is min(SNR,
    gamma) for both.
    """
    base = dataclasses.replace(tiny_base(), scheduler=SCHEDULER | {"prediction_type": prediction})
    chosen = options(images=16, batch=16, min_snr=5.0, seed=3, prompt_drop=0.5)
    fit(base, ToyPairs(16), ["edges"], chosen, tmp_path)
    (batch,) = batch_at(
        ToyPairs(16),
        ["edges"],
        [Order([(16, 16)] * 16, 3, 16)[i] for i in range(16)],
        chosen,
        scaling_factor=1.0,
    )
    level = noise_levels(base)[batch.timesteps].double().view(-1, 1, 1, 1)
    noisy = level.sqrt() * batch.latents + (1 - level).sqrt() * batch.noise
    with torch.no_grad():  # a new ControlNet adds nothing
        predicted = base.unet(noisy.float(), batch.timesteps, batch.text).sample
    if prediction == "epsilon":
        clean = (noisy - (1 - level).sqrt() * predicted) / level.sqrt()
    else:
        clean = level.sqrt() * noisy - (1 - level).sqrt() * predicted
    snr = level / (1 - level)
    assert bool((snr < 5).any()) and bool((snr > 5).any())
    expected = (snr.clamp(max=5.0) * (clean - batch.latents).square()).mean()
    assert rows(tmp_path)[0]["loss"]["edges"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("unlock", ["none", "all"])
def test_gradient_checkpointing_keeps_less_and_ends_with_the_same_bits(tmp_path: Path, unlock: str) -> None:
    results, kept = [], []
    for recompute in (False, True):
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        wanted = options(unlock=unlock, gradient_checkpointing=recompute, images=4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            results.append(fit(tiny_base(), ToyPairs(), ["edges"], wanted, tmp_path / str(recompute)))
        kept.append(sum(sizes.values()))
    assert_equal(tensors(results[0]), tensors(results[1]))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.slow
def test_a_hint_of_one_channel_trains_and_starts_no_condition_of_three(tmp_path: Path) -> None:
    class Grey(ToyPairs):
        def __getitem__(self, i: int) -> Pair:
            row = super().__getitem__(i)
            return dataclasses.replace(
                row, hints={name: np.ascontiguousarray(hint[..., :1]) for name, hint in row.hints.items()}
            )

    done = fit(tiny_base(), Grey(), ["edges"], OPTIONS, tmp_path / "grey")
    assert weights(done.path / "edges")["controlnet_cond_embedding.conv_in.weight"].shape[1] == 1
    with pytest.raises(ValueError, match="reads hints of 1 channels, and those of edges have 3"):
        fit(
            tiny_base(),
            ToyPairs(),
            ["edges"],
            OPTIONS,
            tmp_path / "rgb",
            warm_start={"edges": done.path / "edges"},
        )


@pytest.mark.slow
def test_a_warm_start_takes_an_unlocked_base_along_or_refuses(tmp_path: Path) -> None:
    first = fit(tiny_base(), ToyPairs(), ["edges"], options(unlock="decoder", lr=1e-2), tmp_path / "first")
    warm = {"edges": first.path / "edges"}
    with pytest.raises(ValueError, match="which this run would ignore"):
        fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "locked", warm_start=warm)
    still = options(unlock="decoder", lr=1e-12, weight_decay=0.0, images=4)
    second = fit(tiny_base(), ToyPairs(), ["edges"], still, tmp_path / "second", warm_start=warm)
    for part in ("", "unet"):
        before = weights(first.path / "edges" / part)
        for name, tensor in weights(second.path / "edges" / part).items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-9, msg=name)
