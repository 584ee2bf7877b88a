import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)

from tests.train.conftest import ToyPairs, tiny_base
from train import checkpoint, precision
from train.base import Base, load
from train.controlnet import ControlNet
from train.encoders import encode_text
from train.fit import Options, fit
from train.pretrained import locate
from train.sample import Control, SamplingSettings, generate, initial_noise, load_trained, point_scales
from train.samplers import TITLES, scheduler

SMALL = {"height": 64, "width": 64, "num_inference_steps": 3}


def draw(
    base: Base, net: ControlNet | None, *, text: np.ndarray, empty: np.ndarray, **more: Any
) -> np.ndarray:
    """With any fields of SamplingSettings."""
    given = {name: more.pop(name) for name in ("hints", "seeds")}
    settings = SamplingSettings(**{**SMALL, **more})
    return generate(base, net, prompt_embeds=text, negative_prompt_embeds=empty, settings=settings, **given)


@pytest.fixture(scope="module")
def base(random_base_folder: Path) -> Base:
    return load(random_base_folder)


@pytest.fixture(scope="module")
def texts(base: Base) -> np.ndarray:
    return encode_text(base, ["a cat", "two dogs", "a red house", ""])


@pytest.fixture(scope="module")
def controlnet(base: Base) -> ControlNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, _ = ControlNet.from_unet(base.unet)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def hints(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("sampler", TITLES)
def test_an_image_does_not_depend_on_its_batch(
    base: Base, texts: np.ndarray, controlnet: ControlNet, sampler: str
) -> None:
    common = {"empty": texts[3], "sampler": sampler, "num_inference_steps": 4}
    together = draw(base, controlnet, hints=hints(3), text=texts[:3], seeds=[5, 6, 7], **common)
    for i in range(3):
        one = {"hints": hints(3)[i : i + 1], "text": texts[i : i + 1], "seeds": [5 + i]}
        alone = draw(base, controlnet, **one, **common)
        assert np.abs(alone[0].astype(int) - together[i]).max() <= 1


def test_the_noise_can_belong_to_seed_and_image() -> None:
    one = initial_noise([1, 1, 2], ["a", "b", "a"], 64, 64)
    assert one.shape == (3, 4, 8, 8)
    assert torch.equal(one[1], initial_noise([1], ["b"], 64, 64)[0])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], one[2])


def test_without_a_controlnet_and_with_a_fresh_one_the_base_draws_the_same(
    base: Base, texts: np.ndarray
) -> None:
    fresh, _ = ControlNet.from_unet(base.unet)
    plain = draw(base, None, hints=None, text=texts[:1], empty=texts[3], seeds=[0])
    assert np.array_equal(plain, draw(base, fresh, hints=hints(1), text=texts[:1], empty=texts[3], seeds=[0]))


def test_hint_and_scale_change_the_image(base: Base, texts: np.ndarray, controlnet: ControlNet) -> None:
    common = {"text": texts[:1], "empty": texts[3], "seeds": [0]}
    full, half = (
        draw(base, controlnet, hints=hints(1), controlnet_conditioning_scale=scale, **common)
        for scale in (1.0, 0.5)
    )
    assert not np.array_equal(full, half)
    assert not np.array_equal(full, draw(base, controlnet, hints=255 - hints(1), **common))


def test_the_hint_is_guided_only_where_that_is_asked_for(
    base: Base, texts: np.ndarray, controlnet: ControlNet
) -> None:
    """With an empty prompt both branches see the same, and guidance changes nothing, unless one of them has
    no hint.
    """
    common: dict[str, Any] = {
        "hints": hints(1),
        "text": texts[3:4],
        "empty": texts[3],
        "seeds": [0],
    }
    off, on, led = (
        draw(base, controlnet, **common | {"guidance_scale": scale, "cfg_hint": branches}).astype(int)
        for scale, branches in ((1.0, "both"), (3.0, "both"), (3.0, "conditional"))
    )
    assert np.abs(on - off).max() <= 1 < np.abs(led - off).mean(), "rounding tips one value in two thousand"
    without = draw(base, None, **common | {"hints": None, "guidance_scale": 3.0})
    assert np.array_equal(
        without,
        draw(
            base,
            controlnet,
            **common
            | {"guidance_scale": 3.0, "cfg_hint": "conditional", "controlnet_conditioning_scale": 0.0},
        ),
    )


def test_resolution_weights_are_those_of_the_paper_at_512_pixels_and_the_same_ratios_elsewhere() -> None:
    """Section 3.5: 64/h, so 1 for the finest residuals and 8 for the middle; a stub gives ones."""

    class Ones:
        config: ClassVar[dict[str, Any]] = {}

        def residuals(self, x: torch.Tensor, *given: Any) -> Any:
            sides = [-(-x.shape[-2] // 2 ** min(i // 3, 3)) for i in range(12)]
            return tuple(torch.ones(len(x), 1, side, side) for side in sides), torch.ones(
                len(x), 1, sides[-1], sides[-1]
            )

    def weights(height: int, scale: float, weighted: bool) -> list[float]:
        control = Control(Ones(), torch.zeros(1, 1, 1, 1), [scale] * 13, weighted)  # type: ignore[arg-type]
        x = torch.zeros(2, 4, height, height)
        downs, middle = control.residuals(x, torch.zeros(2), torch.zeros(2, 1, 1))
        assert all(not each[0].any() for each in (*downs, middle))  # the branch without the hint
        return [float(each[1].max()) for each in (*downs, middle)]

    assert weights(64, 1.0, True) == [1.0] * 3 + [2.0] * 3 + [4.0] * 3 + [8.0] * 4
    assert weights(96, 1.0, True) == weights(16, 1.0, True) == weights(64, 1.0, True)
    assert weights(64, 0.5, True)[-1] == 4.0 and weights(64, 1.0, False) == [1.0] * 13


def test_weighted_guidance_draws_another_image_and_without_a_controlnet_the_same(
    base: Base, texts: np.ndarray, controlnet: ControlNet
) -> None:
    common: dict[str, Any] = {"text": texts[:1], "empty": texts[3], "seeds": [0], "guidance_scale": 3.0}
    plain, weighted = (
        draw(base, controlnet, **common, hints=hints(1), cfg_hint=how) for how in ("conditional", "weighted")
    )
    assert not np.array_equal(plain, weighted)
    alone = [draw(base, None, **common, hints=None, cfg_hint=how) for how in ("conditional", "weighted")]
    assert np.array_equal(*alone)


@pytest.mark.slow
def test_in_bf16_images_are_near_those_of_fp32_and_do_not_depend_on_their_batch() -> None:
    """Of a trained base, in mean levels of 255; a processor without such instructions computes the same,
    slower.
    """
    images = []
    for name in ("fp32", "bf16"):
        base, net = load_trained(locate("mini/canny"), precision.for_sampling(load("mini"), name))
        assert base.dtype == next(net.parameters()).dtype == precision.dtype_of(name)
        assert base.text_encoder.dtype == torch.float32
        size = {"height": 64, "width": 64, "guidance_scale": 3.0, "cfg_hint": "conditional"}
        common: dict[str, Any] = {"empty": encode_text(base, [""])[0], **size}
        given = {"hints": hints(2), "text": encode_text(base, ["a red ball", "a box"]), "seeds": [5, 6]}
        images.append(draw(base, net, **given, **common).astype(int))
        alone = draw(base, net, **{key: value[1:] for key, value in given.items()}, **common)
        assert np.abs(alone[0] - images[-1][1]).mean() < 1
    assert 0 < np.abs(images[0] - images[1]).mean() < 1


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ("fpu avx512f avx512_vnni", "fp32"),
        ("fpu avx512f avx512_bf16", "bf16"),
        ("amx_bf16 amx_tile", "bf16"),
        ("", "fp32"),
    ],
    ids=["no bf16", "avx512", "amx", "unknown"],
)
def test_auto_is_bf16_where_the_processor_multiplies_in_it(
    flags: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : some CPU\nflags : {flags}\n")
    monkeypatch.setattr(precision, "CPU", tmp_path / ("cpuinfo" if flags else "none"))
    assert precision.settled("auto", "cpu") == chosen
    assert precision.settled("fp32", "cpu") == "fp32" and precision.settled("bf16", "cpu") == "bf16"


@pytest.fixture(scope="module")
def pipeline(
    base: Base, controlnet: ControlNet, tmp_path_factory: pytest.TempPathFactory
) -> StableDiffusionControlNetPipeline:
    saved = checkpoint.save(
        tmp_path_factory.mktemp("run"), {"edges": controlnet}, {}, {"step": 1, "images": 4}
    )
    made = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        controlnet=ControlNetModel.from_pretrained(saved.path / "edges"),
        scheduler=DDIMScheduler.from_config(base.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.5},
        {"guidance_scale": 7.5, "guess_mode": True},
        {"guidance_scale": 1.0, "guess_mode": True},
        {"guidance_scale": 3.0, "guess_mode": True, "controlnet_conditioning_scale": 1.7, "prompt": ""},
        {"guidance_scale": 7.5, "control_guidance_start": 0.3, "num_inference_steps": 4},
        {"guidance_scale": 7.5, "control_guidance_end": 0.5, "num_inference_steps": 4},
    ],
    ids=[
        "prompt only",
        "plain",
        "guess",
        "guess without guidance",
        "guess without a prompt",
        "late start",
        "early end",
    ],
)
def test_the_image_of_an_exported_checkpoint_is_that_of_the_diffusers_pipeline(
    base: Base,
    texts: np.ndarray,
    controlnet: ControlNet,
    pipeline: StableDiffusionControlNetPipeline,
    settings: dict[str, Any],
) -> None:
    hint = torch.from_numpy(hints(1)).permute(0, 3, 1, 2) / 255
    given = {"prompt": "a cat", "num_inference_steps": 3} | settings
    image = pipeline(**given, image=hint, latents=initial_noise([3], None, 64, 64), output_type="np").images
    ours = {name: value for name, value in settings.items() if name != "prompt"}
    text = texts[3:] if settings.get("prompt") == "" else texts[:1]
    common = {"hints": hints(1), "text": text, "empty": texts[3], "seeds": [3]}
    drawn = draw(base, controlnet, **common, **ours)
    assert np.abs(np.round(image * 255) - drawn).max() <= 1
    plain = {"guidance_scale": ours["guidance_scale"], "num_inference_steps": given["num_inference_steps"]}
    assert (
        ours in ({"guidance_scale": 1.0}, {"guidance_scale": 7.5})
        or np.abs(draw(base, controlnet, **common, **plain).astype(int) - drawn).max() > 8
    )


THEIRS = {
    "ddim": DDIMScheduler,
    "unipc": UniPCMultistepScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


STABLE_DIFFUSION = {  # scheduler_config.json of 1.5, which says nothing of the spacing of its timesteps
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
VELOCITY = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("first", "own"),
    [
        (PNDMScheduler, STABLE_DIFFUSION),
        (DDIMScheduler, STABLE_DIFFUSION | {"timestep_spacing": "leading"}),
        (DDIMScheduler, STABLE_DIFFUSION | VELOCITY),
    ],
    ids=["stable diffusion 1.5", "leading", "velocity without signal at the end"],
)
@pytest.mark.parametrize("sampler", TITLES)
def test_each_sampler_draws_the_image_of_the_diffusers_pipeline_with_its_scheduler(
    base: Base,
    texts: np.ndarray,
    controlnet: ControlNet,
    pipeline: StableDiffusionControlNetPipeline,
    sampler: str,
    first: Any,
    own: dict[str, Any],
) -> None:
    """Within 1 of 255, with guidance, a negative prompt, and where the hint rests at last; put into the
    pipeline as people do, from the scheduler that the base came with.
    """
    settings: dict[str, Any] = {
        "guidance_scale": 7.5,
        "num_inference_steps": 6,
        "control_guidance_end": 0.7,
    }
    hint = torch.from_numpy(hints(1)).permute(0, 3, 1, 2) / 255
    before = pipeline.scheduler
    try:
        pipeline.scheduler = THEIRS[sampler].from_config(first.from_config(own).config)
        latents = initial_noise([3], None, 64, 64)
        image = pipeline(
            "a cat", negative_prompt="two dogs", image=hint, latents=latents, output_type="np", **settings
        ).images
    finally:
        pipeline.scheduler = before
    base = dataclasses.replace(base, scheduler=own)
    common: dict[str, Any] = {"hints": hints(1), "text": texts[:1], "empty": texts[1], "seeds": [3]}
    drawn = draw(base, controlnet, **common, **settings, sampler=sampler)
    assert np.abs(np.round(image * 255) - drawn).max() <= 1


def test_solvers_draw_other_images_and_euler_steps_as_ddim_does(
    base: Base, texts: np.ndarray, controlnet: ControlNet
) -> None:
    """At equal timesteps Euler's step is DDIM's in other variables."""
    trailing = dict(base.scheduler) | {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    base = dataclasses.replace(base, scheduler=trailing)
    common: dict[str, Any] = {"hints": hints(1), "text": texts[:1], "empty": texts[1], "seeds": [3]}
    ddim, unipc, dpm, euler = (draw(base, controlnet, **common, sampler=name).astype(int) for name in TITLES)
    apart = [np.abs(one - other).mean() for one, other in ((ddim, unipc), (ddim, dpm), (unipc, dpm))]
    assert np.abs(ddim - euler).mean() < 0.05 * min(apart)


@pytest.mark.parametrize("sampler", TITLES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_network_that_knows_its_picture_is_led_to_it_by_every_sampler(
    base: Base, sampler: Any, prediction: str
) -> None:
    """Noise and velocity that follow from one picture: what is left at the end is that picture."""
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = scheduler(dict(base.scheduler) | {"prediction_type": prediction}, sampler, 20)
    x = noise * float(made.init_noise_sigma)
    levels = DDIMScheduler.from_config(base.scheduler).alphas_cumprod
    for timestep in made.timesteps:
        seen = made.scale_model_input(x, timestep)
        # Euler and the solvers stand between whole timesteps
        level = torch.from_numpy(np.interp(float(timestep), np.arange(1000), levels.numpy())[None]).float()
        signal, spread = level.sqrt(), (1 - level).sqrt()
        epsilon = (seen - signal * picture) / spread
        told = epsilon if prediction == "epsilon" else signal * epsilon - spread * picture
        x = made.step(told, timestep, x).prev_sample
    assert (x - picture).abs().mean() < 0.05 and (noise - picture).abs().mean() > 1


@pytest.mark.parametrize("sampler", TITLES)
@pytest.mark.parametrize(
    ("spacing", "refused", "by_solvers"),
    [("leading", {1000, 1001}, {999}), ("linspace", {1001}, {1000}), ("trailing", {61, 998, 1001}, set())],
)
def test_steps_that_do_not_fit_into_the_bases_timesteps_are_refused_in_one_sentence(
    base: Base, sampler: Any, spacing: str, refused: set[int], by_solvers: set[int]
) -> None:
    """diffusers dies of them within its arrays, takes a timestep of -1, or draws pictures of NaN."""
    config, found = dict(base.scheduler) | {"timestep_spacing": spacing}, set()
    for steps in (1, 2, 20, 61, 998, 999, 1000, 1001):
        try:
            made = scheduler(config, sampler, steps)
        except ValueError as error:
            assert f"the sampler {sampler} can't take {steps} steps on this base" in str(error)
            found.add(steps)
            continue
        assert len(made.timesteps) == steps and 0 <= made.timesteps.min() <= made.timesteps.max() < 1000
    assert found == refused | (by_solvers if sampler in ("unipc", "dpm++") else set())


def test_what_a_sampler_is_called_is_what_it_does_whatever_the_bases_own_scheduler_says(base: Base) -> None:
    own = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun", "clip_sample": True}
    made = {name: scheduler(dict(base.scheduler) | own, name, 5).config for name in TITLES}
    assert made["dpm++"].algorithm_type == "dpmsolver++", "the other one draws noise on its way"
    assert (made["dpm++"].solver_order, made["unipc"].solver_order, made["ddim"].clip_sample) == (2, 2, False)


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize(
    "settings", [{"controlnet_conditioning_channel_order": "bgr"}, {"global_pool_conditions": True}]
)
def test_what_a_foreign_controlnet_says_of_its_hints_and_residuals_is_done(
    base: Base, texts: np.ndarray, controlnet: ControlNet, settings: dict, guess: bool, tmp_path: Path
) -> None:
    folder = checkpoint.save(tmp_path, {"edges": controlnet}, {}, {"step": 1, "images": 4}).path / "edges"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    made = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        controlnet=ControlNetModel.from_pretrained(folder),
        scheduler=DDIMScheduler.from_config(base.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    hint = torch.from_numpy(hints(1)).permute(0, 3, 1, 2) / 255
    told = {"prompt": "a cat", "num_inference_steps": 3, "guidance_scale": 3.0, "guess_mode": guess}
    image = made(**told, image=hint, latents=initial_noise([3], None, 64, 64), output_type="np").images
    common: dict[str, Any] = {
        "hints": hints(1),
        "text": texts[:1],
        "empty": texts[3],
        "seeds": [3],
        "guidance_scale": 3.0,
        "guess_mode": guess,
    }
    _, net = load_trained(folder, base)
    found = draw(base, net, **common)
    assert np.abs(np.round(image * 255) - found).max() <= 1
    assert np.abs(draw(base, controlnet, **common).astype(int) - found).mean() > 0.5


def test_guess_mode_follows_the_released_code_from_a_tenth_to_all_of_the_scale() -> None:
    assert point_scales(2.0, False) == [2.0] * 13
    assert point_scales(2.0, True) == pytest.approx([2.0 * 0.825 ** (12 - i) for i in range(13)], rel=6e-3)
    assert point_scales(2.0, True) == pytest.approx((2.0 * torch.logspace(-1, 0, 13)).tolist(), rel=1e-6)


def test_a_controlnet_of_the_middle_only_samples_with_the_middle_only(tmp_path: Path) -> None:
    """Its other zero convolutions never had a gradient, so that weight decay has not touched them either."""
    options = Options(images=8, batch=4, lr=1e-2, weight_decay=0.5, connect="middle", workers=0, held_out=0)
    done = fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path)
    _, net = load_trained(done.path / "edges", tiny_base())
    x, t, text, hint = (
        torch.randn(2, 4, 16, 16),
        torch.tensor([3, 700]),
        torch.randn(2, 5, 8),
        torch.rand(2, 3, 128, 128),
    )
    with torch.no_grad():
        downs, middle = net(x, t, text, hint)
    assert len(downs) == 12 and not any(bool(down.any()) for down in downs)
    assert middle.abs().max() > 1e-4


def test_a_base_in_bf16_draws_nearly_the_same_and_a_net_that_trains_is_not_rounded(
    base: Base, random_base_folder: Path, texts: np.ndarray, controlnet: ControlNet
) -> None:
    common = {"hints": hints(1), "text": texts[:1], "empty": texts[3], "seeds": [0]}
    whole = draw(base, controlnet, **common).astype(int)
    low = load(random_base_folder, dtype=torch.bfloat16)
    low = dataclasses.replace(low, unet=low.unet.to(memory_format=torch.channels_last))
    before = copy.deepcopy(controlnet.state_dict())
    drawn = draw(low, controlnet, **common)
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype == torch.float32
        for name, tensor in controlnet.state_dict().items()
    )
    with torch.autocast("cpu", torch.bfloat16):
        cast = draw(base, controlnet, **common)
    alone = draw(base, None, **{**common, "hints": None})
    # the random VAE makes much of little: what it draws in bf16 from the same latents differs as much
    for image in (drawn, cast):
        assert 0 < np.abs(image - whole).mean() < np.abs(image - alone.astype(int)).mean() / 2
        assert np.corrcoef(image.ravel(), whole.ravel())[0, 1] > 0.95


def test_loading_a_base_says_nothing(random_base_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    load(random_base_folder)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)])
def test_a_window_that_holds_no_step_is_refused(
    base: Base, texts: np.ndarray, controlnet: ControlNet, start: float, end: float
) -> None:
    with pytest.raises(ValueError, match=r"0 <= start < end <= 1, not"):
        draw(
            base,
            controlnet,
            hints=hints(1),
            text=texts[:1],
            empty=texts[3],
            seeds=[0],
            control_guidance_start=start,
            control_guidance_end=end,
        )


def test_wrong_hints_are_refused(base: Base, texts: np.ndarray, controlnet: ControlNet) -> None:
    common = {"text": texts[:1], "empty": texts[3], "seeds": [0]}
    with pytest.raises(ValueError, match="needs hints"):
        draw(base, controlnet, hints=None, **common)
    with pytest.raises(ValueError, match=r"hints must be uint8 \(1, 64, 64, 3\)"):
        draw(base, controlnet, hints=hints(1)[:, :32], **common)
