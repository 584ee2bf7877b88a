import numpy as np
import pytest
import torch

from tests.train.conftest import ToyPairs
from train.batches import Batch, Order, batch_at, batches, rng
from train.options import Options


def batch(
    pairs: ToyPairs,
    conditions: list[str],
    counter: int,
    size: int,
    scaling_factor: float = 1.0,
    **options: float,
) -> Batch:
    """The batch of one size that begins at the counter."""
    chosen = Options(images=size, batch=size, **options)
    order = Order(pairs.sizes, chosen.seed, size)
    (made,) = batch_at(
        pairs, conditions, [order[counter + i] for i in range(size)], chosen, scaling_factor=scaling_factor
    )
    return made


def test_every_epoch_shows_each_pair_once_in_another_order() -> None:
    places = Order([(16, 16)] * 7, seed=3, batch=1)
    order = [places[counter] for counter in range(21)]
    epochs = [[index for epoch, index in order if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sample_is_the_same_whatever_the_batch_size() -> None:
    pairs = ToyPairs(7)
    large = batch(pairs, ["edges"], 4, 8)
    small = [batch(pairs, ["edges"], 4 + i, 1) for i in range(8)]
    assert large.image_ids == tuple(one.image_ids[0] for one in small)
    assert large.epochs == (0, 0, 0, 1, 1, 1, 1, 1)
    for name in ("latents", "noise", "timesteps", "text", "dropped"):
        assert torch.equal(getattr(large, name), torch.cat([getattr(one, name) for one in small])), name
    assert torch.equal(large.hints["edges"], torch.cat([one.hints["edges"] for one in small]))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_reading_ahead_changes_nothing(workers: int) -> None:
    """In a thread of this process, or in other processes."""
    plain, ahead = (
        [
            one
            for (one,) in batches(
                ToyPairs(),
                ["edges"],
                range(0, 20, 4),
                Options(images=20, batch=4, workers=workers),
                scaling_factor=1.0,
            )
        ]
        for workers in (0, workers)
    )
    assert [one.image_ids for one in plain] == [one.image_ids for one in ahead]
    for name in ("latents", "noise", "text"):
        for one, other in zip(plain, ahead, strict=True):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_prompts_are_dropped_anew_in_each_epoch_at_the_rate_asked_for() -> None:
    pairs = ToyPairs(100)
    epochs = [batch(pairs, ["edges"], 100 * epoch, 100) for epoch in range(3)]
    masks = [dict(zip(one.image_ids, one.dropped.tolist(), strict=True)) for one in epochs]
    assert masks[0] != masks[1] != masks[2]
    assert 120 < sum(sum(mask.values()) for mask in masks) < 180
    assert torch.equal(epochs[0].text[epochs[0].dropped], torch.zeros(int(epochs[0].dropped.sum()), 5, 8))
    assert all(row.abs().sum() > 0 for row in epochs[0].text[~epochs[0].dropped])


def test_the_draws_of_a_sample_do_not_depend_on_the_conditions() -> None:
    pairs = ToyPairs(conditions=("edges", "inverse"))
    one, two = (batch(pairs, names, 0, 6) for names in (["edges"], ["inverse", "edges"]))
    for name in ("latents", "noise", "timesteps", "text"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_each_purpose_draws_its_own_numbers() -> None:
    assert rng(0, 1, "a", "noise").random() == rng(0, 1, "a", "noise").random()
    keys = [(0, 1, "a", "noise"), (0, 1, "a", "prompt"), (0, 2, "a", "noise"), (1, 1, "a", "noise")]
    assert len({rng(*key).random() for key in keys}) == 4


@pytest.mark.parametrize(("count", "size"), [(23, 4), (8, 5), (3, 8), (24, 4)])
def test_batches_are_of_one_size_but_for_what_each_size_leaves_over(count: int, size: int) -> None:
    sizes = [(16, 16), (16, 24), (24, 16)]
    mine = [sizes[i % 7 % 3] for i in range(count)]
    places = Order(mine, seed=1, batch=size)
    drawn = [places[counter] for counter in range(5 * count)]
    for epoch in range(5):
        assert sorted(index for e, index in drawn if e == epoch) == list(range(count))
    whole = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
    mixed = [chunk for chunk in whole if len({mine[index] for _, index in chunk}) > 1]
    # at most: three sizes leave under three batches over, and one straddles the epochs
    assert len(mixed) <= 5 * 4
    assert len({mine[chunk[0][1]] for chunk in whole}) == min(3, count) or count < size
    if count >= 23:
        assert (
            len(mixed) < len(whole)
            and len({tuple(index for _, index in chunk) for chunk in whole}) > len(whole) // 2
        )


def test_a_batch_of_several_sizes_comes_as_one_part_for_each() -> None:
    pairs = ToyPairs(6, wide=(1, 4))
    parts = batch_at(
        pairs, ["edges"], [(0, i) for i in range(6)], Options(images=6, batch=6), scaling_factor=1.0
    )
    assert [part.image_ids for part in parts] == [
        ("image-0", "image-2", "image-3", "image-5"),
        ("image-1", "image-4"),
    ]
    assert [tuple(part.latents.shape[2:]) for part in parts] == [(16, 16), (16, 32)]
    assert tuple(parts[1].hints["edges"].shape) == (2, 3, 128, 256)


def test_mirrored_images_come_anew_in_each_epoch_with_their_mirrored_hints() -> None:
    pairs = ToyPairs(100, side=8)
    epochs = [batch(pairs, ["edges"], 100 * epoch, 100, flip=0.5, prompt_drop=0.0) for epoch in range(2)]
    seen = [dict(zip(one.image_ids, one.mirrored.tolist(), strict=True)) for one in epochs]
    assert seen[0] != seen[1] and 70 < sum(sum(mask.values()) for mask in seen) < 130
    for i, name in enumerate(epochs[0].image_ids):
        one = (pairs.mirrored if seen[0][name] else pairs.__getitem__)(int(name.split("-")[1]))
        assert np.abs(epochs[0].latents[i].numpy() - one.mean).max() < 0.1
        assert np.array_equal(epochs[0].hints["edges"][i].permute(1, 2, 0).numpy(), one.hints["edges"])
    assert not batch(pairs, ["edges"], 0, 100).mirrored.any()


def test_the_posterior_is_sampled_and_scaled() -> None:
    pairs = ToyPairs()
    one = batch(pairs, ["edges"], 0, 1, scaling_factor=2.0)
    row = pairs[pairs.ids.index(one.image_ids[0])]
    assert 0 < np.abs(one.latents[0].numpy() / 2 - row.mean).max() < 0.1


def test_a_hint_that_does_not_fit_its_image_is_named() -> None:
    class Wrong(ToyPairs):
        def __getitem__(self, i: int):
            row = super().__getitem__(i)
            row.hints["edges"] = row.hints["edges"][:64]
            return row

    with pytest.raises(ValueError, match=r"hint edges of image image-\d"):
        batch(Wrong(), ["edges"], 0, 2)
    with pytest.raises(ValueError, match="no hint for depth"):
        batch(ToyPairs(), ["depth"], 0, 2)
