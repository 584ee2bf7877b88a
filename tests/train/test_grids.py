import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.conftest import ToyPairs
from train.base import Base, load
from train.batches import Pair
from train.controlnet import ControlNet
from train.encoders import decode_latents
from train.fit import Options, fit
from train.grids import INK, LINE, Grid, assemble, write
from train.held_out import choose
from train.sample import SamplingSettings, generate

SEED = 3
QUICK = Grid("edges", count=2, seed=SEED, num_inference_steps=2)


@pytest.fixture(scope="module")
def base(random_base_folder: Path) -> Base:
    return load(random_base_folder, parts=("unet", "vae"))


@dataclasses.dataclass
class Wide(ToyPairs):
    """As toy pairs, with text that the random base reads."""

    tokens: int = 4
    text_width: int = 8

    def __getitem__(self, i: int) -> Pair:
        text = np.random.default_rng(i).standard_normal((self.tokens, self.text_width)).astype(np.float32)
        return dataclasses.replace(super().__getitem__(i), text=text)

    @property
    def empty_text(self) -> np.ndarray:
        return np.zeros((self.tokens, self.text_width), np.float32)


def pairs_for(base: Base, **changes: Any) -> Wide:
    return Wide(**({"count": 4, "side": 8, "text_width": base.unet.config.cross_attention_dim} | changes))


@pytest.fixture(scope="module")
def controlnet(base: Base) -> ControlNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made, _ = ControlNet.from_unet(base.unet)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


# below the title and the columns' names
def rows(picture: np.ndarray, size: int = 64, width: int = 64) -> list[np.ndarray]:
    return [picture[top : top + size, : 3 * width] for top in range(2 * LINE, len(picture), size)]


def test_a_row_is_condition_generated_target_of_a_held_out_pair(
    tmp_path: Path, base: Base, controlnet: ControlNet
) -> None:
    pairs = pairs_for(base)
    picture = write(tmp_path / "grids" / "edges.png", base, base.unet, controlnet, pairs, QUICK, 4000)
    assert np.array_equal(picture, np.asarray(Image.open(tmp_path / "grids" / "edges.png")))
    assert [path.name for path in (tmp_path / "grids").iterdir()] == ["edges.png"]
    assert (picture[: 2 * LINE] > 150).any()
    found = rows(picture)
    assert len(found) == 2
    for i, row in zip(choose(pairs.ids, 2, SEED), found, strict=True):
        pair = pairs[i]
        drawn = generate(
            base,
            controlnet,
            hints=pair.hints["edges"][None],
            prompt_embeds=pair.text[None],
            negative_prompt_embeds=pairs.empty_text,
            seeds=[SEED],
            noise_keys=[pair.image_id],
            settings=SamplingSettings(height=64, width=64, num_inference_steps=2, guidance_scale=7.5),
        )
        target = decode_latents(base, torch.from_numpy(pair.mean)[None] * base.scaling_factor)
        for column, expected in enumerate((pair.hints["edges"], drawn[0], target[0])):
            assert np.array_equal(row[:, 64 * column : 64 * (column + 1)], expected)


def test_two_checkpoints_start_from_the_same_noise_and_leave_all_as_it_was(
    tmp_path: Path, base: Base, controlnet: ControlNet
) -> None:
    before = {name: tensor.clone() for name, tensor in controlnet.state_dict().items()}
    generator = torch.get_rng_state()
    pictures = [
        write(tmp_path / f"{i}.png", base, base.unet, controlnet, pairs_for(base), QUICK, 4000)
        for i in range(2)
    ]
    assert np.array_equal(*pictures)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in controlnet.state_dict().items())
    other = write(
        tmp_path / "2.png",
        base,
        base.unet,
        controlnet,
        pairs_for(base),
        dataclasses.replace(QUICK, seed=4, count=1),
        4000,
    )
    assert not np.array_equal(rows(pictures[0])[0], rows(other)[0])


def test_a_pass_in_bf16_rounds_no_master(tmp_path: Path, base: Base, controlnet: ControlNet) -> None:
    unet = copy.deepcopy(base.unet).to(torch.bfloat16, memory_format=torch.channels_last)
    low = rows(write(tmp_path / "low.png", base, unet, controlnet, pairs_for(base), QUICK, 4000))
    assert {parameter.dtype for parameter in (*controlnet.parameters(), *base.vae.parameters())} == {
        torch.float32
    }
    high = rows(write(tmp_path / "high.png", base, base.unet, controlnet, pairs_for(base), QUICK, 4000))
    assert 0 < np.abs(low[0].astype(int) - high[0]).mean() < 10


def test_pairs_of_several_sizes_and_hints_of_one_channel_have_their_rows(tmp_path: Path, base: Base) -> None:
    class Grey(Wide):
        def __getitem__(self, i: int) -> Pair:
            pair = super().__getitem__(i)
            return dataclasses.replace(
                pair, hints={"edges": np.ascontiguousarray(pair.hints["edges"][..., :1])}
            )

    pairs = Grey(count=3, side=8, wide=(1,), text_width=base.unet.config.cross_attention_dim)
    net, _ = ControlNet.from_unet(base.unet, 1)
    three = dataclasses.replace(QUICK, count=3, num_inference_steps=1)
    picture = write(tmp_path / "grey.png", base, base.unet, net, pairs, three, 4000)
    changes = [i for i, index in enumerate(choose(pairs.ids, 3, SEED)) if index == 1]
    heads = 2 if changes[0] in (0, 2) else 3
    assert picture.shape == (LINE * (1 + heads) + 3 * 64, 3 * 128, 3)


def test_a_long_title_is_not_cut_off() -> None:
    small = assemble(
        [np.zeros((64, 192, 3), np.uint8)],
        "a condition with a long name, 123456789 images seen, some base, random weights",
    )
    assert small.shape == (2 * LINE + 64, 192, 3)
    assert (small[:LINE, 96:] > INK // 2).any() and not (small[:LINE, -2:] > INK // 2).any()


def test_a_base_without_its_vae_draws_no_grid(tmp_path: Path, base: Base, controlnet: ControlNet) -> None:
    bare = dataclasses.replace(base, vae=None)
    with pytest.raises(ValueError, match="without its vae, which draws the grids"):
        write(tmp_path / "x.png", bare, base.unet, controlnet, pairs_for(base), QUICK, 4000)


def test_a_grid_that_finds_no_memory_costs_no_checkpoint(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*given: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("train.logger.grids.write", no_room)
    options = Options(images=2, batch=2, grids=1, held_out=0)
    made = fit(base, pairs_for(base), ["edges"], options, tmp_path, held_out=pairs_for(base))
    assert made.images == 2 and "no memory is left to draw" in capsys.readouterr().out
