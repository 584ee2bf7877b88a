import numpy as np
import pytest
import torch

from tests.train.conftest import ToyPairs
from train.batches import batch_at, batches, draws, position

DRAW = {"seed": 0, "prompt_drop": 0.5, "scaling_factor": 1.0}


def test_every_epoch_shows_each_pair_once_in_another_order() -> None:
    order = [position(7, 3, counter) for counter in range(21)]
    epochs = [[index for epoch, index in order if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sample_is_the_same_whatever_the_batch_size() -> None:
    pairs = ToyPairs(7)
    large = batch_at(pairs, ["edges"], 4, size=8, **DRAW)
    small = [batch_at(pairs, ["edges"], 4 + i, size=1, **DRAW) for i in range(8)]
    assert large.image_ids == tuple(one.image_ids[0] for one in small)
    assert large.epochs == (0, 0, 0, 1, 1, 1, 1, 1)
    for name in ("latents", "noise", "timesteps", "text", "dropped"):
        assert torch.equal(getattr(large, name), torch.cat([getattr(one, name) for one in small])), name
    assert torch.equal(large.hints["edges"], torch.cat([one.hints["edges"] for one in small]))


def test_reading_ahead_changes_nothing() -> None:
    plain, threaded = (list(batches(ToyPairs(), ["edges"], range(0, 20, 4), workers=workers, **DRAW)) for workers in (0, 3))
    assert [one.image_ids for one in plain] == [one.image_ids for one in threaded]
    assert all(torch.equal(one.noise, other.noise) for one, other in zip(plain, threaded, strict=True))


def test_prompts_are_dropped_anew_in_each_epoch_at_the_rate_asked_for() -> None:
    pairs = ToyPairs(100)
    epochs = [batch_at(pairs, ["edges"], 100 * epoch, size=100, **DRAW) for epoch in range(3)]
    masks = [dict(zip(one.image_ids, one.dropped.tolist(), strict=True)) for one in epochs]
    assert masks[0] != masks[1] != masks[2]
    assert 120 < sum(sum(mask.values()) for mask in masks) < 180
    assert torch.equal(epochs[0].text[epochs[0].dropped], torch.zeros(int(epochs[0].dropped.sum()), 5, 8))
    assert all(row.abs().sum() > 0 for row in epochs[0].text[~epochs[0].dropped])


def test_the_draws_of_a_sample_do_not_depend_on_the_conditions() -> None:
    pairs = ToyPairs(conditions=("edges", "inverse"))
    one, two = (batch_at(pairs, names, 0, size=6, **DRAW) for names in (["edges"], ["inverse", "edges"]))
    for name in ("latents", "noise", "timesteps", "text"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_each_purpose_draws_its_own_numbers() -> None:
    assert draws(0, 1, "a", "noise").random() == draws(0, 1, "a", "noise").random()
    keys = [(0, 1, "a", "noise"), (0, 1, "a", "prompt"), (0, 2, "a", "noise"), (1, 1, "a", "noise")]
    assert len({draws(*key).random() for key in keys}) == 4


def test_the_posterior_is_sampled_and_scaled() -> None:
    pairs = ToyPairs()
    one = batch_at(pairs, ["edges"], 0, size=1, seed=0, prompt_drop=0.0, scaling_factor=2.0)
    row = pairs[pairs.ids.index(one.image_ids[0])]
    assert 0 < np.abs(one.latents[0].numpy() / 2 - row.mean).max() < 0.1


def test_a_hint_that_does_not_fit_its_image_is_named() -> None:
    class Wrong(ToyPairs):
        def __getitem__(self, i: int):
            row = super().__getitem__(i)
            row.hints["edges"] = row.hints["edges"][:64]
            return row

    with pytest.raises(ValueError, match=r"hint edges of image image-\d"):
        batch_at(Wrong(), ["edges"], 0, size=2, **DRAW)
    with pytest.raises(ValueError, match="no hint for depth"):
        batch_at(ToyPairs(), ["depth"], 0, size=2, **DRAW)
