import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

from tests.train.conftest import ToyPairs, tiny_base, tiny_unet
from train import pretrained, train_state
from train.batches import Pair
from train.checkpoint import newest
from train.fit import Calls, Options, fit
from train.integrity import META, OPTIMIZER, SEAL, Checkpoint, Damaged
from train.logger import LOG
from train.metric_buffer import NotFinite
from train.weights_file import WEIGHTS

OPTIONS = Options(images=32, batch=4, lr=1e-2, checkpoint_every=16, log_every=8)


def tensors(checkpoint: Checkpoint, condition: str = "edges") -> dict[str, torch.Tensor]:
    """Weights and optimizers, also of averages and of an unlocked base."""
    folder = checkpoint.path / condition
    files = sorted(folder.rglob("*.safetensors"))
    assert {folder / WEIGHTS, folder / OPTIMIZER} <= set(files)
    return {
        f"{path.relative_to(folder)} {name}": value
        for path in files
        for name, value in load_file(path).items()
    }


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


@pytest.mark.slow
def test_training_lowers_the_loss_where_the_hint_decides_the_target(tmp_path: Path) -> None:
    options = Options(images=8 * 160, batch=8, lr=5e-3, log_every=160, checkpoint_every=1280)
    fit(tiny_base(), ToyPairs(16, side=8), ["edges"], options, tmp_path)
    losses = [row["loss"]["edges"] for row in rows(tmp_path)]
    assert losses[-1] < 0.8 * losses[0], "0.70 of it measured; rounding moves the third digit"


def test_the_base_is_locked(tmp_path: Path) -> None:
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    fit(base, ToyPairs(), ["edges"], OPTIONS, tmp_path)
    assert_equal(before, base.unet.state_dict())
    assert all(parameter.grad is None for parameter in base.unet.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modes", "files"),
    [
        ({}, {""}),
        (
            {"unlock": "decoder", "unlock_lr": 1e-3, "ema": 20.0, "min_snr": 5.0},
            {"", "unet", "ema", "ema/unet"},
        ),
    ],
    ids=["plain", "decoder and averages"],
)
def test_resume_is_exact(tmp_path: Path, modes: dict, files: set[str]) -> None:
    options = dataclasses.replace(OPTIONS, **modes)
    whole = fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path / "whole")
    fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(options, images=16), tmp_path / "halves")
    halves = fit(
        tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(options, workers=3), tmp_path / "halves"
    )
    assert {path.parent for path in (whole.path / "edges").rglob(WEIGHTS)} == {
        whole.path / "edges" / name for name in files
    }
    assert (halves.images, halves.step) == (32, 8)
    assert_equal(tensors(whole), tensors(halves))
    strip = [
        [(row["images"], row["step"], row["loss"]) for row in rows(tmp_path / name)]
        for name in ("whole", "halves")
    ]
    assert strip[0] == strip[1] and [images for images, _, _ in strip[0]] == [8, 16, 24, 32]


class KilledPairs(ToyPairs):
    """Dies without a chance to clean up, once the first checkpoint is on disk."""

    out = Path()

    def __getitem__(self, i: int) -> Pair:
        if list(self.out.glob("step-*/meta.json")) and len(rows(self.out)) >= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def die_in_training(out: Path) -> None:
    torch.set_num_threads(1)
    KilledPairs.out = out
    fit(tiny_base(), KilledPairs(), ["edges"], dataclasses.replace(OPTIONS, workers=0), out)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from tests.train.test_fit import die_in_training;"
        " die_in_training(pathlib.Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    died = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "killed")],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert died.returncode == -signal.SIGKILL
    assert newest(tmp_path / "killed").images == 16
    assert [row["images"] for row in rows(tmp_path / "killed")] == [8, 16, 24]
    (tmp_path / "killed" / ".tmp-step-00000006-1").mkdir()
    resumed = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "killed")
    whole = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "whole")
    assert_equal(tensors(whole), tensors(resumed))
    assert [row["images"] for row in rows(tmp_path / "killed")] == [8, 16, 24, 32]
    assert not list((tmp_path / "killed").glob(".tmp-*"))


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_saves_at_its_next_step_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    asked = iter([False, True])
    stopped = fit(
        tiny_base(),
        ToyPairs(),
        ["edges"],
        OPTIONS,
        tmp_path / "stopped",
        calls=Calls(should_stop=lambda: next(asked)),
    )
    assert stopped.images == 2 * OPTIONS.batch < OPTIONS.images
    resumed = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "stopped")
    whole = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "whole")
    assert resumed.images == OPTIONS.images
    assert_equal(tensors(whole), tensors(resumed))


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    class Unread(ToyPairs):
        def __getitem__(self, i: int) -> Pair:
            raise AssertionError("a finished run reads no pairs")

    first = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path)
    assert fit(tiny_base(), Unread(), ["edges"], OPTIONS, tmp_path) == first


def test_a_run_with_other_options_is_not_resumed(tmp_path: Path) -> None:
    fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, images=16), tmp_path)
    with pytest.raises(ValueError, match=r"options.lr"):
        fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, lr=1e-3), tmp_path)
    with pytest.raises(ValueError, match=r"pairs_hash"):
        fit(tiny_base(), ToyPairs(5), ["edges"], OPTIONS, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_older_than_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    half = fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, images=16), tmp_path)
    meta = json.loads((half.path / META).read_text())
    for name in ("min_snr", "ema", "unlock", "unlock_lr", "gradient_checkpointing"):
        del meta["options"][name]
    del meta[SEAL]
    (half.path / META).write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"other options.unlock:"):
        fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, unlock="decoder"), tmp_path)
    assert fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path).images == 32


def test_four_micro_batches_of_one_equal_one_of_four(tmp_path: Path) -> None:
    """But where a gradient is next to nothing, of which Adam divides the rounding by 1e-8: 1.1e-5 measured,
    of steps of 1e-3.
    """
    options = dataclasses.replace(OPTIONS, images=8, lr=1e-3)
    one = fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path / "one")
    four = fit(
        tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(options, micro_batch=1), tmp_path / "four"
    )
    for name, tensor in load_file(one.path / "edges" / WEIGHTS).items():
        torch.testing.assert_close(
            tensor, load_file(four.path / "edges" / WEIGHTS)[name], rtol=0, atol=1e-4, msg=name
        )


@pytest.mark.slow
def test_another_micro_batch_goes_on_and_says_so_and_another_interval_of_checkpoints_changes_nothing(
    tmp_path: Path,
) -> None:
    whole = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path / "whole")
    for name, change in (("micro", {"micro_batch": 2}), ("every", {"checkpoint_every": 4})):
        fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, images=16), tmp_path / name)
        made = fit(
            tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, **change), tmp_path / name
        )
        assert made.images == 32 and made.meta["began_with"] == {"micro_batch": None, "checkpoint_every": 16}
        assert made.meta["options"] == whole.meta["options"] | change
        notes = [(row["images"], row["note"]) for row in rows(tmp_path / name) if "note" in row]
        if name == "every":
            assert not notes
            assert_equal(tensors(whole), tensors(made))
            continue
        end = "the weights are no longer bit-identical to those of an undisturbed run"
        assert notes == [(16, f"goes on with micro_batch 2 instead of 4: {end}")]
        assert [row["micro_batch"] for row in rows(tmp_path / name) if "micro_batch" in row] == [4, 4, 2, 2]
        for key, tensor in load_file(whole.path / "edges" / WEIGHTS).items():
            torch.testing.assert_close(
                tensor, load_file(made.path / "edges" / WEIGHTS)[key], rtol=0, atol=1e-2, msg=key
            )


@pytest.mark.slow
def test_a_damaged_log_is_read_as_far_as_it_is_one_and_the_run_says_what_is_lost(tmp_path: Path) -> None:
    fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, images=16), tmp_path)
    first, second = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    (tmp_path / LOG).write_bytes(
        first[:20] + b"\n" + second + b'[1]\n\x00\xff\xfe\n{"loss": {"edges": 1.0}}\n' + first[:30]
    )
    fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path)
    told = rows(tmp_path)
    assert [row["images"] for row in told] == [16, 16, 24, 32]
    assert (
        told[1]["note"] == "train.jsonl was damaged: lines 1, 3, 4 and 1 more told nothing and are left out"
    )


def test_a_damaged_start_is_named_before_any_work(tmp_path: Path) -> None:
    pairs = ToyPairs(conditions=("edges", "inverse"))
    first = fit(tiny_base(), pairs, ["edges"], dataclasses.replace(OPTIONS, images=16), tmp_path / "edges")
    weights = first.path / "edges" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(
        Damaged,
        match=f"checkpoint {first.path} is damaged: edges/{WEIGHTS} has another sha256 than meta.json says",
    ):
        fit(
            tiny_base(),
            pairs,
            ["inverse"],
            OPTIONS,
            tmp_path / "inverse",
            warm_start={"inverse": first.path / "edges"},
        )
    assert not (tmp_path / "inverse" / LOG).exists()


@pytest.mark.slow
def test_two_conditions_together_equal_two_runs_bit_for_bit(tmp_path: Path) -> None:
    pairs = ToyPairs(conditions=("edges", "inverse"))
    joint = fit(tiny_base(), pairs, ["edges", "inverse"], OPTIONS, tmp_path / "joint")
    for condition in pairs.conditions:
        alone = fit(tiny_base(), pairs, [condition], OPTIONS, tmp_path / condition)
        assert_equal(tensors(alone, condition), tensors(joint, condition))


def test_middle_only_trains_no_skip_and_still_holds_every_tensor(tmp_path: Path) -> None:
    done = fit(tiny_base(), ToyPairs(), ["edges"], dataclasses.replace(OPTIONS, connect="middle"), tmp_path)
    weights = load_file(done.path / "edges" / WEIGHTS)
    assert len(weights) == 340
    assert all(
        not tensor.any() for name, tensor in weights.items() if name.startswith("controlnet_down_blocks")
    )
    assert weights["controlnet_mid_block.weight"].any()


@pytest.mark.slow
def test_warm_start_begins_with_the_other_conditions_weights(tmp_path: Path) -> None:
    pairs = ToyPairs(conditions=("edges", "inverse"))
    first = fit(tiny_base(), pairs, ["edges"], OPTIONS, tmp_path / "edges")
    small = dataclasses.replace(OPTIONS, images=4, lr=1e-12, weight_decay=0.0)
    second = fit(
        tiny_base(),
        pairs,
        ["inverse"],
        small,
        tmp_path / "inverse",
        warm_start={"inverse": first.path / "edges"},
    )
    for name, tensor in load_file(first.path / "edges" / WEIGHTS).items():
        torch.testing.assert_close(
            load_file(second.path / "inverse" / WEIGHTS)[name], tensor, rtol=0, atol=1e-9
        )
    middle = dataclasses.replace(small, connect="middle")
    third = fit(
        tiny_base(),
        pairs,
        ["inverse"],
        middle,
        tmp_path / "middle",
        warm_start={"inverse": first.path / "edges"},
    )
    # who samples adds no residual that was not trained with
    for name, tensor in load_file(third.path / "inverse" / WEIGHTS).items():
        assert (not tensor.any()) == ("controlnet_down_blocks" in name), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"controlnet_conditioning_channel_order": "bgr"}, {"global_pool_conditions": True}]
)
def test_a_warm_start_keeps_how_its_controlnet_takes_hints_and_gives_residuals(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    theirs = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(8, 8, 8, 8))
    theirs.register_to_config(**settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    theirs.save_pretrained(tmp_path / "theirs")
    pairs = ToyPairs(conditions=("edges", "inverse"))
    options = Options(images=8, batch=4, lr=1e-3, workers=0, held_out=2, join=True)
    warm = {"edges": tmp_path / "theirs"}
    done = fit(
        tiny_base(), pairs, ["edges", "inverse"], options, tmp_path / "run", warm_start=warm, held_out=pairs
    )
    again = ControlNetModel.from_pretrained(done.path / "edges").eval()
    ours = pretrained.load_controlnet(done.path / "edges", tiny_unet())
    assert all(again.config[key] == value for key, value in settings.items())
    x, t, text, hint = (
        torch.randn(2, 4, 16, 16),
        torch.tensor([3, 700]),
        torch.randn(2, 5, 8),
        torch.rand(2, 3, 128, 128),
    )
    for other, mine in ((theirs, pretrained.load_controlnet(tmp_path / "theirs")), (again, ours)):
        plain = ControlNetModel.from_config(
            {**other.config, **dict.fromkeys(settings)}, controlnet_conditioning_channel_order="rgb"
        ).eval()
        plain.load_state_dict(other.state_dict())
        with torch.no_grad():
            downs, mid = mine(x, t, text, hint)
            their_downs, their_mid = other(x, t, text, hint, return_dict=False)
            # the setting matters here
            assert (plain(x, t, text, hint, return_dict=False)[0][0] - their_downs[0]).abs().max() > 0.1
        for own, expected in zip((*downs, mid), (*their_downs, their_mid), strict=True):
            torch.testing.assert_close(own, expected.expand_as(own), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_a_warm_start_saves_is_told_before_the_first_step_and_once(tmp_path: Path) -> None:
    """Of two conditions one starts warm: it saves as much after steps that change nothing, and the other, a
    copy of the base, nothing.
    """
    pairs = ToyPairs(conditions=("edges", "inverse"))
    first = fit(tiny_base(), pairs, ["edges"], dataclasses.replace(OPTIONS, images=8), tmp_path / "edges")
    still = dataclasses.replace(
        OPTIONS, images=8, lr=1e-12, weight_decay=0.0, log_every=4, checkpoint_every=4, held_out=4
    )
    together = {"warm_start": {"inverse": first.path / "edges"}, "held_out": pairs}
    for images in (8, 12):
        fit(
            tiny_base(),
            pairs,
            ["edges", "inverse"],
            dataclasses.replace(still, images=images),
            tmp_path / "both",
            **together,
        )
    told = rows(tmp_path / "both")
    assert [row["images"] for row in told] == [0, 4, 8, 12]
    before, after = told[0]["held_out"], told[2]["held_out"]
    assert (
        before["inverse"]["gap"] == pytest.approx(after["inverse"]["gap"], abs=1e-6)
        and abs(before["inverse"]["gap"]) > 1e-4
    )
    assert before["edges"]["gap"] == pytest.approx(0, abs=1e-7)
    fit(tiny_base(), pairs, ["edges"], still, tmp_path / "cold", held_out=pairs)
    assert [row["images"] for row in rows(tmp_path / "cold")] == [4, 8]


class Broken(ToyPairs):
    """Some of its latents are no numbers."""

    def __init__(self, wrong: set[int], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.wrong = wrong

    def __getitem__(self, i: int) -> Pair:
        row = super().__getitem__(i)
        return dataclasses.replace(row, mean=np.full_like(row.mean, np.nan)) if i in self.wrong else row


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_its_images_are_named(tmp_path: Path) -> None:
    pairs, options = Broken({3}, 24), dataclasses.replace(OPTIONS, ema=20.0)
    whole = fit(tiny_base(), pairs, ["edges"], options, tmp_path / "whole")
    told = rows(tmp_path / "whole")
    notes = [row["note"] for row in told if "note" in row]
    counts = [row["skipped"]["edges"] for row in told if "skipped" in row]
    assert counts and len(notes) == len(counts)
    assert all(re.search(r"edges: \d of 2 steps were skipped, .*, images image-3$", note) for note in notes)
    assert all(math.isfinite(value) for row in told for value in row.get("loss", {}).values())
    found = tensors(whole)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    taken = {int(tensor) for name, tensor in found.items() if name.endswith(".step")}
    assert taken == {8 - sum(counts)}, "the optimizer counts the steps that it took"
    fit(tiny_base(), pairs, ["edges"], dataclasses.replace(options, images=16), tmp_path / "halves")
    assert_equal(found, tensors(fit(tiny_base(), pairs, ["edges"], options, tmp_path / "halves")))


def test_one_condition_goes_on_where_another_skips(tmp_path: Path) -> None:
    """As if each were trained alone."""
    base, parts = tiny_base(), ["edges", "inverse"]
    pairs = ToyPairs(conditions=tuple(parts))
    alone = fit(tiny_base(), pairs, ["inverse"], OPTIONS, tmp_path / "alone")
    kept = train_state.step

    def step(state: Any, *given: Any, **named: Any) -> Any:
        if "edges" in state.models and named["images"] == 8:
            for parameter in train_state.trainable(state.models["edges"]):
                if parameter.grad is not None:
                    parameter.grad.fill_(float("inf"))
        return kept(state, *given, **named)

    with patch.object(train_state, "step", step):
        both = fit(base, pairs, parts, OPTIONS, tmp_path / "both")
    assert_equal(tensors(alone, "inverse"), tensors(both, "inverse"))
    (note,) = (row["note"] for row in rows(tmp_path / "both") if "note" in row)
    assert note.startswith("edges: 1 of 2 steps were skipped")


def test_many_gradients_in_a_row_that_are_not_finite_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.metric_buffer.MOST_SKIPPED", 3)
    with pytest.raises(NotFinite, match=r"3 gradients of edges in a row were not finite, the last at step 3"):
        fit(tiny_base(), Broken(set(range(100))), ["edges"], OPTIONS, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 30}, "set images to 28 or 32"),
        ({"images": 3}, "set images to 4"),
        ({"micro_batch": 3}, "multiple of micro_batch"),
        ({"prompt_drop": 1.5}, "between 0 and 1"),
        ({"connect": "half"}, "full or middle"),
        ({"lr": -1.0}, "lr and clip"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"unlock": "encoder"}, "none, decoder or all"),
        ({"unlock_lr": 1e-6}, "says nothing while unlock is none"),
        ({"min_snr": 0.0}, "min_snr must be above 0"),
        ({"ema": 0.9999}, "a decay of 0.9999 at a batch of 4 is ema: 27725"),
    ],
)
def test_impossible_options_say_what_to_set(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **wrong)
