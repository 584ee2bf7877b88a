"""The mini scorer: its loss by hand, its words, its rows that do not depend on each other, its examination,
its files.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from evaluate import mini
from evaluate.mini import card, clip, losses, scores
from evaluate.mini.clip import MiniClip, scaled
from evaluate.mini.network import NOTHING, UNKNOWN, Scorer, Sizes, words_of
from evaluate.mini.scores import Proportion

TINY = Sizes(
    side=32, widths=(8, 8, 16), features=8, text_width=16, text_layers=1, heads=2, length=12, width=16
)
CAPTIONS = ["a red box on the left", "a blue box on the right", "a red cone; plain wall"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def net() -> Scorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scorer(words_of(CAPTIONS), TINY).eval()


def noise(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_the_loss_of_two_pairs_is_the_one_computed_by_hand() -> None:
    seen = said = torch.eye(4)[:2]
    one = torch.tensor(0.0)
    apart = torch.eye(4)[2:]
    rows, columns = math.log(1 + 2 / math.e), math.log(1 + 1 / math.e)
    assert float(losses.contrast(seen, said, apart, one)) == pytest.approx((rows + columns) / 2, rel=1e-5)
    as_good = math.log(2 + 1 / math.e)  # the false caption as near as the right one
    assert float(losses.contrast(seen, said, said, one)) == pytest.approx((as_good + columns) / 2, rel=1e-5)


def test_the_temperature_is_bounded_as_in_clip() -> None:
    seen, apart = torch.eye(4)[:2], torch.eye(4)[2:]
    wrong = seen.flip(0)
    assert float(losses.contrast(seen, wrong, apart, torch.tensor(99.0))) == pytest.approx(100, rel=1e-5)


def test_a_false_caption_is_pushed_from_its_own_picture_only() -> None:
    seen = torch.eye(4)[:2]
    false = torch.zeros(2, 4, requires_grad=True)
    losses.contrast(seen, seen, false, torch.tensor(0.0)).backward()
    assert false.grad is not None
    assert (false.grad[:, :2].diagonal() > 0).all() and false.grad[0, 1] == false.grad[1, 0] == 0


def test_words_have_the_same_numbers_whatever_the_order_of_captions_and_a_new_one_is_unknown(
    net: Scorer,
) -> None:
    assert (
        words_of(CAPTIONS)
        == words_of(CAPTIONS[::-1])
        == tuple(
            sorted(["a", "red", "box", "on", "the", "left", "blue", "right", "cone", ";", "plain", "wall"])
        )
    )
    numbers = net.numbered(["A red, red BOX", "a zebra"])
    assert numbers.shape == (2, 4)
    assert numbers[0, 1] == numbers[0, 2] > UNKNOWN and numbers[1].tolist() == [
        numbers[0, 0],
        UNKNOWN,
        NOTHING,
        NOTHING,
    ]


@pytest.mark.parametrize("caption", ["", "...", " ".join(["red"] * 13)])
def test_a_caption_without_words_or_with_too_many_is_refused(net: Scorer, caption: str) -> None:
    with pytest.raises(ValueError, match="reads from 1 to 12"):
        MiniClip(net, "").texts(["a red box", caption])


def test_the_share_of_known_words_is_told(net: Scorer) -> None:
    assert MiniClip(net, "").known(["a red box", "a photograph of a zebra", "unheard"]).tolist() == [
        1,
        0.4,
        0,
    ]


def test_order_of_words_matters(net: Scorer) -> None:
    one, other = MiniClip(net, "").texts(["a red box a blue cone", "a blue box a red cone"])
    assert np.abs(one - other).max() > 1e-4


def test_a_row_is_the_same_alone_and_among_others_but_for_rounding(net: Scorer) -> None:
    scorer, images = MiniClip(net, ""), noise(clip.BATCH + 3)
    for found in (scorer.images, scorer.features):
        assert np.allclose(
            found(images)[[2, -1]], np.concatenate([found(images[2:3]), found(images[-1:])]), atol=1e-5
        )
    texts = [*CAPTIONS, "a red box on the left; a blue cone"] * 9
    assert np.allclose(
        scorer.texts(texts)[[1, -1]],
        np.concatenate([scorer.texts(texts[1:2]), scorer.texts(texts[-1:])]),
        atol=1e-5,
    )


def test_what_fills_a_short_caption_up_changes_nothing_but_rounding(net: Scorer) -> None:
    with torch.inference_mode():
        short, long = (net.of_texts(net.numbered(["a red box"], length)) for length in (3, 12))
    assert torch.allclose(short, long, atol=1e-6)


def test_points_have_unit_length_and_no_rows_have_a_width(net: Scorer) -> None:
    scorer = MiniClip(net, "")
    for found in (scorer.images(noise(3)), scorer.texts(CAPTIONS)):
        assert (
            found.dtype == np.float32
            and found.shape == (3, 16)
            and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        )
    assert scorer.features(noise(3)).shape == (3, 8)
    assert scorer.images(noise(0)).shape == scorer.texts([]).shape == (0, 16) and scorer.features(
        noise(0)
    ).shape == (0, 8)


@pytest.mark.parametrize("images", [noise(2).astype(np.float32), noise(2)[..., :1], noise(2)[0]])
def test_pictures_of_another_kind_are_refused(net: Scorer, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        MiniClip(net, "").images(images)


def test_pictures_of_several_sizes_have_the_rows_that_each_has_alone(net: Scorer) -> None:
    mixed, scorer = [noise(1, 32)[0], noise(1, 48)[0]], MiniClip(net, "")
    for rows in (scorer.images, scorer.features):
        alone = np.concatenate([rows(picture[None]) for picture in mixed])
        assert np.allclose(rows(mixed), alone, atol=1e-5)


def test_features_are_the_means_of_the_cells(net: Scorer) -> None:
    images = noise(2)
    with torch.inference_mode():
        cells = net.cells(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    assert cells.shape == (2, 8, 4, 4)
    assert np.allclose(MiniClip(net, "").features(images), cells.reshape(2, 8, 16).mean(2), atol=1e-6)


@pytest.mark.parametrize("size", [(80, 80), (20, 20), (32, 32)])
def test_pictures_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    smooth = np.asarray(Image.fromarray(noise(1, 8)[0]).resize(size, Image.Resampling.BILINEAR))
    wanted = np.asarray(Image.fromarray(smooth).resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    found = scaled(torch.from_numpy(smooth[None].copy()), 32)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).max() <= 1.01


def test_of_a_wide_picture_the_middle_is_seen() -> None:
    wide = np.zeros((1, 32, 96, 3), np.uint8)
    wide[:, :, 32:64] = 200
    assert (scaled(torch.from_numpy(wide), 32) == 200).all()
    tall = np.ascontiguousarray(wide.transpose(0, 2, 1, 3))
    assert (scaled(torch.from_numpy(tall), 32) == 200).all()


def test_it_can_learn_which_caption_is_whose() -> None:
    colours = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60), "white": (240, 240, 240)}
    captions = [f"a {name} box on the {side}" for name in colours for side in ("left", "right")]
    images = np.full((8, 32, 32, 3), 90, np.uint8)
    for row, rgb in enumerate(value for value in colours.values() for _ in range(2)):
        images[row, 8:24, 16 * (row % 2) : 16 * (row % 2) + 16] = rgb
    false = [
        caption.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        for caption in captions
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Scorer(words_of(captions), TINY)
    optimizer = torch.optim.AdamW(net.parameters(), lr=8e-3)
    for _ in range(60):
        loss = losses.loss(net, torch.from_numpy(images), captions, false)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scorer = MiniClip(net.eval(), "")
    likeness = scorer.images(images) @ scorer.texts(captions).T
    # thirty steps are enough; after sixty the right one leads by 0.39, which rounding moves by 0.0002
    assert (likeness.argmax(0) == np.arange(8)).all() and (likeness.argmax(1) == np.arange(8)).all()


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (1, 7), (823, 1000), (40, 40)])
def test_the_interval_of_a_share_is_scipys_wilson_interval(hits: int, n: int) -> None:
    found = Proportion.of(np.arange(n) < hits)
    wanted = binomtest(hits, n).proportion_ci(method="wilson")
    assert found.value == hits / n and found.n == n
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@dataclasses.dataclass
class Told:
    """A scorer whose answers are given: pictures by their first value, captions by their text."""

    of_pictures: np.ndarray
    of_texts: dict[str, np.ndarray]

    def images(self, images: np.ndarray) -> np.ndarray:
        return self.of_pictures[images[:, 0, 0, 0]]

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.of_texts[text] for text in texts])


def examined(of_pictures: np.ndarray, of_texts: np.ndarray, **false: Any) -> dict[str, Proportion]:
    captions = [f"scene {row}" for row in range(len(of_texts))]
    table = dict(zip(captions, of_texts, strict=True)) | {
        "far": np.zeros(of_texts.shape[1]),
        "near": np.ones(of_texts.shape[1]),
    }
    images = np.broadcast_to(
        np.arange(len(of_texts), dtype=np.uint8)[:, None, None, None], (len(of_texts), 2, 2, 3)
    )
    return scores.measure(Told(of_pictures, table), images, captions, false)  # type: ignore[arg-type]


def test_a_perfect_scorer_is_always_right_and_one_that_tells_nothing_apart_never() -> None:
    right = examined(np.eye(40), np.eye(40), easy=["far"] * 40, hard=["near"] * 40)
    assert [one.value for one in right.values()] == [1, 1, 1, 0] and {one.n for one in right.values()} == {40}
    assert [one.value for one in examined(np.ones((40, 40)), np.eye(40)).values()] == [0, 0]


def test_the_two_directions_are_told_apart() -> None:
    """All pictures like caption 0 best, so each caption but that one has its own picture first."""
    pictures = np.eye(40)
    pictures[:, 0] = 2
    found = examined(pictures, np.eye(40))
    others = scores.drawn([f"scene {row}" for row in range(40)], 0)
    assert found["caption first of 32"].value == pytest.approx(np.mean(~(others == 0).any(1)))
    assert found["picture first of 32"].value == pytest.approx(39 / 40)


def test_scenes_that_cannot_be_changed_so_are_not_counted() -> None:
    found = examined(np.eye(40), np.eye(40), rare=["far", *[None] * 39], never=[None] * 40)
    assert found["caption before one with rare"].n == 1 and "caption before one with never" not in found


def test_the_others_are_scenes_with_other_captions_drawn_for_each_alone() -> None:
    captions = [f"scene {row % 50}" for row in range(60)]
    found = scores.drawn(captions, 7)
    for row, others in enumerate(found):
        assert len(set(others)) == 31 and captions[row] not in {captions[other] for other in others}
    assert (found == scores.drawn(captions, 7)).all() and (found != scores.drawn(captions, 8)).any()
    with pytest.raises(ValueError, match="hold out more scenes"):
        scores.drawn(captions[:31], 7)


def test_what_is_written_is_read_again_in_bfloat16_with_its_hash(net: Scorer, tmp_path: Path) -> None:
    clip.write(net, tmp_path, {"spent": {"images": 3}})
    found = mini.load(tmp_path)
    again = mini.load(tmp_path)
    assert (
        found.sha256 == again.sha256 == json.loads((tmp_path / clip.NOTE).read_text())["sha256"]
        and len(found.sha256) == 64
    )
    assert found.net.words == net.words and found.net.sizes == TINY
    for name, value in net.state_dict().items():
        assert torch.equal(found.net.state_dict()[name], value.bfloat16().float()), name
    assert (found.images(noise(2)) == again.images(noise(2))).all()


def test_weights_of_another_training_are_refused(net: Scorer, tmp_path: Path) -> None:
    clip.write(net, tmp_path, {})
    kept = (tmp_path / clip.NOTE).read_text()
    with torch.no_grad():
        net.scale.add_(1)
    clip.write(net, tmp_path, {})
    (tmp_path / clip.NOTE).write_text(kept)
    with pytest.raises(ValueError, match=r"scorer\.safetensors has sha256 .* take both from one training"):
        mini.load(tmp_path)
    (tmp_path / clip.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"has no scorer\.safetensors"):
        mini.load(tmp_path)


def test_the_card_says_what_is_unfinished_and_every_score(net: Scorer) -> None:
    spent = {"images": 1000, "cpu_seconds": 90.0, "seconds": 120.0}
    found = {"caption first of 32": Proportion(0.5, 0.4, 0.6, 100)}
    told = {
        wanted: card.write(
            scorer=MiniClip(net, "abc123"),
            spent=spent,
            scores=found,
            data="Data.",
            machine="M",
            wanted=wanted,
        )
        for wanted in (1000, 2000)
    }
    assert "Training is complete" in told[1000] and "unfinished: 1,000 of 2,000 images" in told[2000]
    for text in (
        "| caption first of 32 | 50.0 % | 40.0 to 60.0 % | 100 |",
        "abc123",
        "1.5 CPU minutes",
        "Data.",
        "Apache-2.0",
    ):
        assert text in told[1000]


def test_the_card_says_first_what_it_can_not_tell(net: Scorer) -> None:
    found = {
        "caption before one with a hat": Proportion(0.52, 0.49, 0.55, 900),
        "caption before one with a cat": Proportion(0.9, 0.88, 0.92, 900),
    }
    spent = {"images": 1000, "cpu_seconds": 90.0, "seconds": 120.0}
    text = card.write(scorer=MiniClip(net, ""), spent=spent, scores=found, data="", machine="", wanted=1000)
    assert "Hardly better than chance: caption before one with a hat.**" in text


def test_the_shipped_scorer_is_small_has_few_features_and_its_card_its_hash() -> None:
    shipped = mini.load()
    note = json.loads((mini.FOLDER / clip.NOTE).read_text())
    text = (mini.FOLDER / "README.md").read_text()
    assert (
        shipped.name == "mini-clip"
        and shipped.net.sizes.features <= 64
        and (mini.FOLDER / clip.WEIGHTS).stat().st_size <= 4_000_000
    )
    assert shipped.sha256 in text
    for name, one in note["scores"].items():
        row = (
            f"| {name} | {100 * one['value']:.1f} % | {100 * one['low']:.1f} to {100 * one['high']:.1f} % |"
            f" {one['n']:,} |"
        )
        assert row in text
    assert (
        note["scores"]["caption first of 32"]["low"] > 0.8
        and note["scores"]["caption first of 32"]["n"] >= 1000
    )
