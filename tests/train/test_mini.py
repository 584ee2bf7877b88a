"""The mini base: its encoder, its words, its loop, and the folder that comes out, at the size of a toy."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from torch import nn

from train import base as bases
from train import encoders, mini, pretrained
from train.mini import (
    autoencoder,
    base,
    card,
    denoiser,
    grid,
    latents,
    learning,
    make,
    patches,
    pictures,
    scores,
    text,
)
from train.mini.autoencoder import AutoencoderRecipe
from train.mini.denoiser import DenoiserRecipe
from train.mini.learning import Loop, Spent
from train.mini.make import BaseRecipe
from train.mini.pictures import Pictures

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60)}
TINY = BaseRecipe(
    autoencoder=AutoencoderRecipe(widths=(16, 48, 48, 32), images=24, batch=4, bf16=False),
    denoiser=DenoiserRecipe(
        widths=(8, 16, 16, 16), groups=4, heads=2, text_width=16, text_layers=1, images=48, batch=8
    ),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def drawn(count: int, seed: int) -> list[tuple[np.ndarray, str, str]]:
    """A box of one colour on the left or on the right."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        image = np.full((64, 64, 3), rng.integers(150, 250), np.uint8)
        name, side = list(COLOURS)[rng.integers(3)], int(rng.integers(2))
        top, width = rng.integers(8, 24), rng.integers(12, 28)
        image[top : top + 24, 34 * side : 34 * side + width] = COLOURS[name]
        here, there = ("left", "right") if side == 0 else ("right", "left")
        rows.append(
            (image, f"one object: a {name} box on the {here}", f"one object: a {name} box on the {there}")
        )
    return rows


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("seen")
    for part in range(2):
        pictures.write_part(folder, f"{part:04d}", drawn(12, part))
    return pictures.read(folder)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("unseen")
    pictures.write_part(folder, "0000", drawn(24, 99))
    return pictures.read(folder)


@pytest.fixture(scope="module")
# work, the base's folder
def made(seen: Pictures, unseen: Pictures, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.set_num_threads(1)
    work, dest = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("made") / "base"
    assert make.train(TINY, seen, unseen, work)
    export(work, dest, seen, unseen)
    return work, dest


def export(work: Path, dest: Path, seen: Pictures, unseen: Pictures, older: Path | None = None) -> None:
    parts, spent = make.load_trained(TINY, seen, work, older)
    found = scores.measure(parts, unseen, count=4)
    page = card.write(
        parts=parts,
        spent=spent,
        scores=found,
        data="Boxes.",
        wanted={"vae": 24, "decoder": 0, "denoiser": 128},
    )
    base.write(dest, parts, spent, {"scores": found}, page)


# --- the encoder ---


def test_the_first_encoder_is_the_principal_components_of_blocks(seen: Pictures, unseen: Pictures) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3)).astype(np.uint8)
    images[::2] = seen.images(range(12))
    vae = autoencoder.build(TINY.autoencoder, 64, seed=0).eval()
    basis = patches.fit(images, 8)
    patches.write_encoder(vae, basis)
    with torch.no_grad():
        posterior = vae.encode(autoencoder.to_tensor(unseen.images(range(4)), "cpu")).latent_dist
    wanted = patches.encode(basis, unseen.images(range(4)))
    assert np.abs(posterior.mean.numpy() - wanted).max() < 0.01 < 0.1 < wanted.std()
    assert posterior.std.numpy() == pytest.approx(patches.DEVIATION, rel=1e-4)
    assert autoencoder.deviation(vae) == pytest.approx(patches.DEVIATION, rel=1e-4)


def test_the_components_are_those_of_an_independent_decomposition_and_of_unit_variance(
    seen: Pictures,
) -> None:
    images = seen.images(range(24))
    basis = patches.fit(images, 4)
    blocks = (
        np.stack(
            [
                image[y : y + 8, x : x + 8].transpose(2, 0, 1).ravel()
                for image in images
                for y in range(0, 64, 8)
                for x in range(0, 64, 8)
            ]
        )
        / 127.5
        - 1
    )
    _, values, vectors = np.linalg.svd(blocks - blocks.mean(axis=0), full_matrices=False)
    directions = basis.rows / np.linalg.norm(basis.rows, axis=1, keepdims=True)
    assert np.abs((directions * vectors[:4]).sum(axis=1)) == pytest.approx(1, abs=1e-3)
    assert basis.kept == pytest.approx((values[:4] ** 2).sum() / (values**2).sum(), rel=1e-3)
    assert patches.encode(basis, images).var() == pytest.approx(1, abs=0.02)


def test_widths_that_can_not_hold_the_components_are_refused(seen: Pictures) -> None:
    vae = autoencoder.build(AutoencoderRecipe(widths=(16, 32, 48, 32)), 64, seed=0)
    with pytest.raises(ValueError, match="at least 12, 48, 48 and 32 channels"):
        autoencoder.start(vae, seen)


# --- pictures and words ---


def test_a_mirrored_picture_comes_with_the_caption_of_its_mirror_image(seen: Pictures) -> None:
    count = len(seen.captions)
    assert len(seen) == 2 * count == 48
    one, other = seen.images([13, 13 + count])
    assert (one[:, ::-1] == other).all() and not (one == other).all()
    assert {seen.caption(13).split()[-1], seen.caption(13 + count).split()[-1]} == {"left", "right"}
    assert (one == drawn(12, 1)[1][0]).all()  # of the second part


def test_a_part_that_was_not_finished_is_not_read(tmp_path: Path) -> None:
    pictures.write_part(tmp_path, "0000", drawn(2, 0))
    np.save(tmp_path / "0001.npy", np.zeros((3, 64, 64, 3), np.uint8))
    assert not pictures.has_part(tmp_path, "0001") and len(pictures.read(tmp_path).captions) == 2
    with pytest.raises(ValueError, match="would be empty"):
        pictures.write_part(tmp_path, "0002", [])


def test_each_word_is_one_token_after_a_round_trip_and_other_words_are_spelled(
    seen: Pictures, tmp_path: Path
) -> None:
    # words within words
    captions = [*seen.captions, "three striped cylinders; stripes, a tiled floor, the tiles there: them"]
    words = text.words_of(captions)
    text.build_tokenizer(words, 32).save_pretrained(tmp_path)
    tokenizer = (
        base.load_tokenizer(tmp_path.parent)
        if tmp_path.name == "tokenizer"
        else type(text.build_tokenizer(words)).from_pretrained(tmp_path)
    )
    assert [tokenizer.tokenize(word) for word in words] == [[word + "</w>"] for word in words]
    assert tokenizer.tokenize("rod") == ["r", "o", "d</w>"]
    ids = text.tokens_of(tokenizer, [captions[-1], ""])
    assert (
        ids.shape == (2, 32) and ids[1].tolist() == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 31
    )
    with pytest.raises(ValueError, match=r"a caption has \d+ tokens, 32 fit"):
        text.tokens_of(tokenizer, ["red " * 40])


# --- the loop ---


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


def learn(
    folder: Path, images: int, *, seconds: float = 60, loss: Any = None, spent: Spent | None = None
) -> tuple[Line, Spent, bool]:
    net = Line()
    loop = Loop(part="line", images=images, batch=4, half_life=20, log_every=16, measure_every=32)
    return learning.learn(  # type: ignore[return-value]
        net,
        learning.Objective(
            [learning.ParameterGroup(list(net.parameters()))],
            loss or (lambda net, seen: (net.weight - torch.tensor([1.0, -1.0, seen % 3])).square().sum()),
            lambda seen: 0.05,
            lambda mean: {"held_out": float(sum(p.detach().abs().sum() for p in mean.parameters()))},
        ),
        loop,
        folder / "line",
        spent=spent or Spent(),
        until=time.monotonic() + seconds,
    )


def test_training_in_two_goes_is_training_in_one(tmp_path: Path) -> None:
    whole, _, _ = learn(tmp_path / "one", 400)
    _, spent, done = learn(tmp_path / "two", 200)
    assert done and spent.images == 200
    halves, spent, _ = learn(tmp_path / "two", 400)
    assert torch.equal(whole.weight, halves.weight) and spent.images == 400
    assert whole.weight.detach()[0] > 0.2  # and it did learn


def test_it_stops_when_its_time_is_over_or_when_it_is_told_to_with_everything_saved(tmp_path: Path) -> None:
    _, spent, done = learn(tmp_path / "time", 10**9, seconds=0.3)
    assert not done and 0 < spent.images == learning.spent_of(tmp_path / "time" / "line").images  # type: ignore[union-attr]

    def loss(net: Line, seen: int) -> torch.Tensor:
        if seen == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return net.weight.square().sum()

    before = signal.getsignal(signal.SIGTERM)
    _, spent, done = learn(tmp_path / "told", 10**9, loss=loss)
    assert not done and spent.images == 44 and signal.getsignal(signal.SIGTERM) is before


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    def loss(net: Line, seen: int) -> Any:
        return (net.weight * (float("inf") if seen == 4 else 1.0)).sum()

    _, _, done = learn(tmp_path / "odd", 12, loss=loss)
    net = Line()
    assert (
        done
        and learning.average_of(tmp_path / "odd" / "line", net)
        and bool(torch.isfinite(net.weight).all())
    )


def test_the_log_counts_images_and_says_what_was_measured(tmp_path: Path) -> None:
    learn(tmp_path, 64)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows if "loss" in row] == [16, 32, 48, 64]
    assert [row["images"] for row in rows if "held_out" in row] == [32, 64]


# --- the base ---


def test_diffusers_and_the_trainer_load_the_folder_and_it_is_small_and_bfloat16(
    made: tuple[Path, Path],
) -> None:
    from safetensors import safe_open

    drawn = scores.draw(made[1], ["one object: a red box on the left"], steps=2)
    assert drawn.shape == (1, 64, 64, 3) and drawn.dtype == np.uint8
    loaded = bases.load(made[1])
    assert (
        not loaded.random_weights
        and loaded.unet.config.in_channels == 8
        and loaded.scheduler["prediction_type"] == "v_prediction"
    )
    assert (
        len(loaded.unet.down_blocks) == 4
        and sum(len(block.resnets) for block in loaded.unet.down_blocks) == 8
    )
    points = (
        1 + sum(len(block.resnets) + len(block.downsamplers or []) for block in loaded.unet.down_blocks) + 1
    )
    assert points == 13
    for path in made[1].rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"BF16", "I64"}, path


def test_what_was_changed_on_disk_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    base.verify(made[1])
    copy = tmp_path / "base"
    shutil.copytree(made[1], copy)
    (copy / "unet" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"unet/config\.json is not the file of SHA256SUMS"):
        base.verify(copy)


def test_latents_are_the_shipped_encoders_own_of_unit_variance(
    made: tuple[Path, Path], seen: Pictures
) -> None:
    shipped = bases.load(made[1])
    vae = make.load_vae(TINY, seen, made[0])
    data = latents.of_pictures(vae, base.load_tokenizer(made[1]), seen, made[0] / "latents", device="cpu")
    mean, std = encoders.encode_images(shipped, seen.images([0, 30]))
    assert np.abs(mean * shipped.scaling_factor - data.means([0, 30])).max() < 0.1  # computed in bfloat16
    assert data.means(range(48)).std() == pytest.approx(
        1, abs=0.05
    ) and std.mean() * shipped.scaling_factor == pytest.approx(data.deviation, rel=1e-3)
    files = list((made[0] / "latents").iterdir())
    assert len(files) == 2  # of seen and unseen pictures

    class Gone:
        config, encoder, quant_conv = vae.config, vae.encoder, vae.quant_conv  # but nothing encodes

    again = latents.of_pictures(Gone(), base.load_tokenizer(made[1]), seen, made[0] / "latents", device="cpu")
    assert (again.means([30, 0]) == data.means([30, 0])).all()


def test_the_loss_of_a_denoiser_that_knows_the_answer_is_nothing(
    made: tuple[Path, Path], seen: Pictures
) -> None:
    alpha_bar = denoiser.levels()
    words = base.load_tokenizer(made[1])
    one = latents.of_pictures(
        make.load_vae(TINY, seen, made[0]), words, seen, made[0] / "latents", device="cpu"
    )
    means = one.means([0]).repeat(4, axis=0)
    data = latents.Latents(
        4, one.shape, lambda indices: means[indices], 0.0, one.tokens[:1].repeat(4, 1), one.empty
    )
    told: list[bool] = []

    class Knowing(nn.Module):
        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            told.extend((tokens != data.empty).any(dim=1).tolist())
            a = alpha_bar[timesteps].view(-1, 1, 1, 1)
            clean = torch.from_numpy(means[:1].astype(np.float32))
            noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
            return a.sqrt() * noise - (1 - a).sqrt() * clean

    recipe = DenoiserRecipe(batch=200, prompt_drop=0.25)
    loss = denoiser.loss_at(Knowing(), 0, data=data, recipe=recipe, alpha_bar=alpha_bar, seed=0)
    assert float(loss) < 1e-6 and 0.65 < sum(told) / len(told) < 0.85
    assert denoiser.held_out_error(Knowing(), data, alpha_bar, 4)["held_out_epsilon"] < 1e-6


def test_an_older_base_is_gone_on_from_with_its_vae_its_words_and_its_counts(
    made: tuple[Path, Path], seen: Pictures, unseen: Pictures, tmp_path: Path
) -> None:
    from dataclasses import replace

    more = replace(TINY, denoiser=replace(TINY.denoiser, images=96))
    assert make.train(more, seen, unseen, tmp_path, older=made[1])
    parts, spent = make.load_trained(more, seen, tmp_path, made[1])
    assert spent["denoiser"].images == 96 and spent["vae"].images == 24
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == {"denoiser"} and rows[-1]["images"] == 96
    old = bases.load(made[1], parts=("vae",)).vae.state_dict()
    assert all(torch.equal(old[name], value) for name, value in parts.vae.state_dict().items())


def test_a_vae_goes_on_when_the_recipe_asks_for_more_and_its_unet_with_it(
    made: tuple[Path, Path], seen: Pictures, unseen: Pictures, tmp_path: Path
) -> None:
    from dataclasses import replace

    more = replace(
        TINY, autoencoder=replace(TINY.autoencoder, images=32), denoiser=replace(TINY.denoiser, images=72)
    )
    assert make.train(more, seen, unseen, tmp_path, older=made[1])
    parts, spent = make.load_trained(more, seen, tmp_path, made[1])
    assert (spent["vae"].images, spent["denoiser"].images) == (32, 72)
    assert latents.fingerprint(parts.vae) != latents.fingerprint(make.load_vae(TINY, seen, made[0]))


def test_a_polished_decoder_leaves_the_latents_as_they_were(
    made: tuple[Path, Path], seen: Pictures, unseen: Pictures, tmp_path: Path
) -> None:
    from dataclasses import replace

    recipe = replace(TINY, autoencoder=replace(TINY.autoencoder, polish=8))
    assert make.polish(recipe, seen, unseen, tmp_path, older=made[1])
    before = make.load_vae(recipe, seen, made[0])
    after = make.load_vae(recipe, seen, tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True)
    )
    assert not torch.equal(before.decoder.conv_out.weight, after.decoder.conv_out.weight)
    _, spent = make.load_trained(recipe, seen, tmp_path, made[1])
    assert (spent["decoder"].images, spent["denoiser"].images) == (8, 48)


def test_an_older_base_of_another_size_is_refused(
    made: tuple[Path, Path], seen: Pictures, unseen: Pictures, tmp_path: Path
) -> None:
    from dataclasses import replace

    wider = replace(TINY, denoiser=replace(TINY.denoiser, widths=(16, 16, 16, 16)))
    with pytest.raises(ValueError, match="does not fit the recipe"):
        make.train(wider, seen, unseen, tmp_path, older=made[1])


def test_the_card_says_what_is_unfinished_and_what_it_cost(made: tuple[Path, Path]) -> None:
    page = (made[1] / "README.md").read_text()
    assert (
        "unfinished: the denoiser has seen 48 of 128 images" in page
        and "| VAE |" in page
        and "| 24 |" in page
    )
    assert "the vae has" not in page


def test_a_grid_shows_pictures_reconstructions_and_samples(
    made: tuple[Path, Path], unseen: Pictures, tmp_path: Path
) -> None:
    grid.write(tmp_path / "grid.png", made[1], unseen, samples=2)
    assert Image.open(tmp_path / "grid.png").size == (6 * 64, 5 * 64 + grid.WORDS)


def test_the_shipped_base_and_its_controlnets_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bases.locate("mini") == mini.BASE and bases.fingerprint("mini") == bases.fingerprint(mini.BASE)
    monkeypatch.setattr(mini, "ROOTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="there are none"):
        pretrained.locate("mini/canny")
    (tmp_path / "canny").mkdir()
    (tmp_path / "canny/config.json").write_text("{}")
    assert pretrained.locate("mini/canny") == tmp_path / "canny"
    with pytest.raises(FileNotFoundError, match="there are mini/canny"):
        pretrained.locate("mini/hough")
    assert mini.root("minister/canny") is None and mini.root("mini") is None


def test_the_shipped_posterior_is_as_narrow_as_the_unet_was_trained_with() -> None:
    """Latents that a run draws from it are what the base knows: a wide one would teach a ControlNet noise."""
    shipped = bases.load("mini", parts=("vae",))
    base.verify(mini.BASE)
    pictures_of_noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    _, std = encoders.encode_images(shipped, pictures_of_noise)
    assert std * shipped.scaling_factor == pytest.approx(patches.DEVIATION * shipped.scaling_factor, rel=0.05)


def picture(pipeline: Any, **more: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(0)
    return pipeline(
        "a red cube on the floor", num_inference_steps=2, output_type="np", generator=draw, **more
    ).images[0]


def test_diffusers_draws_with_the_shipped_base_and_its_controlnets_as_they_are() -> None:
    """Without a word about precision: transformers keeps that of the weights unless their config says
    another, diffusers takes float32.
    """
    plain = StableDiffusionPipeline.from_pretrained(mini.BASE)
    alone = picture(plain)
    assert alone.shape == (128, 128, 3) and alone.std() > 0.02
    hint = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    for root in sorted(mini.ROOTS.glob("*/config.json")):
        controlnet = ControlNetModel.from_pretrained(root.parent)
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(mini.BASE, controlnet=controlnet)
        parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.controlnet)
        assert {next(part.parameters()).dtype for part in parts} == {torch.float32}
        controlled = picture(pipeline, image=hint)
        assert controlled.shape == (128, 128, 3) and np.abs(controlled - alone).mean() > 0.01


def test_a_base_is_written_so_that_diffusers_draws_with_it(made: tuple[Path, Path]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(made[1])
    assert next(pipeline.text_encoder.parameters()).dtype == torch.float32
    assert picture(pipeline).shape == (64, 64, 3)


def test_the_shipped_base_kept_its_name_when_its_config_said_float32() -> None:
    assert bases.fingerprint("mini") == "ce001ffc0f32705b"
    assert json.loads((mini.BASE / "text_encoder/config.json").read_text())["dtype"] == "float32"
