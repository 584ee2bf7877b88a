import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel

from tests.train.conftest import ToyPairs, tiny_base, tiny_unet
from train import checkpoint, integrity, pretrained
from train.checkpoint import KEEP, kept, newest
from train.controlnet import ControlNet
from train.distributed import Ranks
from train.fit import Options, fit
from train.integrity import META, OPTIMIZER, SEAL, Checkpoint, Damaged, check_controlnet, read
from train.log_file import LOG, read_log
from train.pretrained import load_controlnet
from train.resume import newest_checkpoint
from train.weights_file import WEIGHTS

OPTIONS = Options(images=24, batch=4, lr=1e-2, checkpoint_every=8, log_every=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    return fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, tmp_path_factory.mktemp("trained"))


def test_diffusers_loads_the_checkpoint_and_computes_the_same(trained: Checkpoint) -> None:
    theirs = ControlNetModel.from_pretrained(trained.path / "edges").eval()
    ours = load_controlnet(trained.path / "edges", tiny_unet())
    x, t, text, hint = (
        torch.randn(2, 4, 16, 16),
        torch.tensor([3, 700]),
        torch.randn(2, 5, 8),
        torch.rand(2, 3, 128, 128),
    )
    with torch.no_grad():
        downs, mid = ours(x, t, text, hint)
        their_downs, their_mid = theirs(x, t, text, hint, return_dict=False)
    assert mid.abs().max() > 1e-3
    for mine, other in zip((*downs, mid), (*their_downs, their_mid), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_meta_says_what_was_trained_on_what(trained: Checkpoint) -> None:
    assert (trained.images, trained.step, trained.path.name) == (24, 6, "step-00000006")
    assert trained.meta["base"] == tiny_base().fingerprint and trained.meta["random_weights"] is True
    assert trained.meta["options"]["batch"] == 4 and trained.meta["loss"]["edges"] > 0
    assert set(trained.meta["files"]) == {
        f"edges/{name}" for name in ("config.json", WEIGHTS, "optimizer.safetensors")
    }


def test_only_the_newest_checkpoints_are_kept(trained: Checkpoint) -> None:
    assert sorted(path.name for path in trained.path.parent.glob("step-*")) == [
        "step-00000004",
        "step-00000006",
    ]
    assert KEEP == 2


def test_a_run_leaves_checkpoints_on_its_way_for_good_if_asked_to(tmp_path: Path) -> None:
    # 12, 20 and 32 are the first to reach a multiple
    options = Options(images=32, batch=4, checkpoint_every=4, keep_every=10)
    fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        f"step-{step:08d}" for step in (3, 5, 7, 8)
    ], "the two newest stay anyway"
    assert [it.images for it in kept(tmp_path)] == [12, 20, 32]
    shutil.rmtree(tmp_path / "step-00000005" / "edges")
    assert [it.images for it in kept(tmp_path)] == [12, 32], "half a checkpoint is none"


def test_an_incomplete_checkpoint_is_passed_over(trained: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained.path.parent, out)
    (out / "step-00000009" / "edges").mkdir(parents=True)
    assert newest(out).step == 6
    (out / "step-00000006" / "edges" / WEIGHTS).write_bytes(b"cut short")
    assert newest(out).step == 4
    with pytest.raises(FileNotFoundError, match=rf"damaged: edges/{WEIGHTS}"):
        read(out / "step-00000006")
    (out / "step-00000004" / META).unlink()
    assert newest(out) is None
    assert newest(tmp_path / "nowhere") is None


def test_a_folder_that_is_no_controlnet_is_refused(trained: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        load_controlnet(tmp_path)
    shutil.copytree(trained.path / "edges", tmp_path / "edges")
    with pytest.raises(ValueError, match="belongs to another base"):
        load_controlnet(tmp_path / "edges", tiny_unet(block_out_channels=(4, 8, 16, 16)))
    config = json.loads((tmp_path / "edges" / "config.json").read_text()) | {"conditioning_channels": 4}
    (tmp_path / "edges" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=(
            r"does not fit its config.json: 1 tensors differ, first controlnet_cond_embedding.conv_in.weight"
        ),
    ):
        load_controlnet(tmp_path / "edges")


def test_a_file_that_is_cut_short_is_named_where_no_hash_tells(tmp_path: Path) -> None:
    ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4, 4, 8, 8)).save_pretrained(
        tmp_path
    )
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    for read_it in (load_controlnet, lambda folder: pretrained.write_rounded(folder, tmp_path / "rounded")):
        with pytest.raises(
            ValueError, match=f"{tmp_path / WEIGHTS} can't be read: it is damaged, or no .safetensors file"
        ):
            read_it(tmp_path)


def test_a_file_of_diffusers_loads_here(tmp_path: Path) -> None:
    theirs = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4, 4, 8, 8))
    theirs.save_pretrained(tmp_path)
    ours = load_controlnet(tmp_path, tiny_unet())
    assert isinstance(ours, ControlNet)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def flip(path: Path) -> None:
    """One bit of one byte: the file keeps its size, and most loaders take it."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x40
    path.write_bytes(bytes(data))


def without(key: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        meta = json.loads(path.read_text())
        del meta[key], meta[SEAL]
        path.write_text(json.dumps(meta))

    return change


def counted(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": 25, SEAL: None}))


def retold(before: str, after: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    return change


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit of the weights": (f"edges/{WEIGHTS}", flip, "has another sha256 than meta.json says"),
    "a bit of the optimizer's state": (f"edges/{OPTIMIZER}", flip, "has another sha256 than meta.json says"),
    "a file cut short": (
        f"edges/{OPTIMIZER}",
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        "is missing or has the wrong size",
    ),
    "a file gone": ("edges/config.json", Path.unlink, "is missing or has the wrong size"),
    "garbage": (
        META,
        lambda path: path.write_bytes(b"\x00\xff\xfe garbage"),
        f"{META} is not as it was written",
    ),
    "nothing": (META, lambda path: path.write_bytes(b""), f"{META} is not as it was written"),
    "no object": (META, lambda path: path.write_text("[1, 2]"), f"{META} is not as it was written"),
    "files of no kind": (
        META,
        lambda path: path.write_text('{"images": 24, "step": 6, "files": {"x": 3}}'),
        f"{META} is not as it was written",
    ),
    "no images": (META, without("images"), f"{META} is not as it was written"),
    "no options": (META, without("options"), f"{META} lacks options"),
    "a bit of an option": (META, retold('"lr": 0.01', '"lr": 0.03'), f"{META} is not as it was written"),
    "a bit of the base's name": (
        META,
        retold('"base_name": "tiny"', '"base_name": "tinx"'),
        f"{META} is not as it was written",
    ),
    "a wrong count": (META, counted, f"{META} is not as it was written"),
    "no meta": (META, Path.unlink, "it has no meta.json"),
}


@pytest.mark.parametrize(("name", "damage", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_each_damage_is_found_and_named(
    trained: Checkpoint, tmp_path: Path, name: str, damage: Callable[[Path], object], sentence: str
) -> None:
    last = tmp_path / "run" / "step-00000006"
    shutil.copytree(trained.path.parent, last.parent)
    damage(last / name)
    done, damaged = checkpoint.newest_whole(last.parent)
    assert (
        done is not None
        and done.step == 4
        and list(damaged) == [last]
        and str(last) in damaged[last]
        and sentence in damaged[last]
    )
    assert newest(last.parent).step in (
        4,
        6,
    ), "and no traceback where names and sizes are all that is asked for"


@pytest.mark.parametrize(
    "which",
    ["a bit of the weights", "a bit of the optimizer's state", "garbage", "no options", "a bit of an option"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_made_again(
    trained: Checkpoint, tmp_path: Path, which: str
) -> None:
    name, damage, sentence = DAMAGES[which]
    out = tmp_path / "run"
    shutil.copytree(trained.path.parent, out)
    damage(out / "step-00000006" / name)
    made = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, out)
    assert made.step == 6 and integrity.whole(made.path) == made
    files = {name: fact["sha256"] for name, fact in trained.meta["files"].items()}
    assert {name: fact["sha256"] for name, fact in made.meta["files"].items()} == files, "bit for bit"
    (note,) = [row for row in read_log(out / LOG)[0] if "note" in row]
    assert (
        note["images"] == 16
        and sentence in note["note"]
        and "the run goes on from step-00000004, and keeps this one as" in note["note"]
    )
    assert sorted(path.name for path in out.glob("*step-*")) == [
        "step-00000004",
        "step-00000006",
    ], "what was set aside is made again"


def test_what_took_the_place_of_a_checkpoints_record_is_told_of(trained: Checkpoint, tmp_path: Path) -> None:
    step = shutil.copytree(trained.path, tmp_path / trained.path.name)
    assert not integrity.problems(step)
    retold('"seed": 0', '"seed": 1')(step / META)
    assert integrity.problems(step) == [f"checkpoint {step} is damaged: {META} is not as it was written"]
    (step / META).unlink()
    (step / META).mkdir()
    assert integrity.problems(step) == [f"{step} is not a complete checkpoint: it has no {META}"]


def test_where_no_checkpoint_is_whole_the_run_begins_anew(trained: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained.path.parent, out)
    for folder in checkpoint.folders(out):
        flip(folder / "edges" / WEIGHTS)
    made = fit(tiny_base(), ToyPairs(), ["edges"], OPTIONS, out)
    assert made.meta["files"] == trained.meta["files"]
    notes = [row["note"] for row in read_log(out / LOG)[0] if "note" in row]
    assert len(notes) == 2 and all("no whole one is left, so the run begins anew" in note for note in notes)


def test_only_those_who_use_a_checkpoint_hash_it(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.path.parent, tmp_path / "run")
    hashed: list[str] = []
    real = integrity.sha256_of
    monkeypatch.setattr(integrity, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    assert (
        newest(tmp_path / "run").step == 6
        and not kept(tmp_path / "run")
        and read(tmp_path / "run/step-00000006")
        and not hashed
    )
    assert checkpoint.newest_whole(tmp_path / "run")[0].step == 6
    assert sorted(hashed) == [
        "config.json",
        WEIGHTS,
        OPTIMIZER,
    ], "each file once, and none of an older checkpoint"
    flip(tmp_path / "run/step-00000006/edges" / OPTIMIZER)
    assert checkpoint.newest_whole(tmp_path / "run", resume=False)[0].step == 6, (
        "what learned it is not what samples"
    )
    done, damaged = checkpoint.newest_whole(tmp_path / "run")
    assert done is not None and done.step == 4 and list(damaged) == [tmp_path / "run/step-00000006"]
    (sentence,) = integrity.problems(tmp_path / "run/step-00000006")
    assert f"edges/{OPTIMIZER} has another sha256" in sentence and not integrity.problems(
        tmp_path / "run/step-00000004"
    )


def test_a_file_that_the_disk_does_not_give_is_damage_and_one_that_is_forbidden_is_not(
    trained: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int) -> Callable[[Path], str]:
        def digest(path: Path) -> str:
            raise OSError(number, os.strerror(number))

        return digest

    monkeypatch.setattr(integrity, "sha256_of", fails(errno.EIO))
    with pytest.raises(Damaged, match=r"config.json can't be read \(Input/output error\)"):
        integrity.whole(trained.path)
    monkeypatch.setattr(integrity, "sha256_of", fails(errno.EACCES))
    with pytest.raises(PermissionError):
        integrity.whole(trained.path)


def test_of_several_ranks_the_first_decides_where_all_go_on(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = (trained, ["a sentence"])

    class Second(Ranks):
        def all_of(self, here: object) -> list:
            return [decided, here]

    monkeypatch.setattr(
        integrity, "sha256_of", lambda path: pytest.fail("another than the first reads nothing")
    )
    assert newest_checkpoint(tmp_path, Second(1, 2)) == decided


def test_a_controlnet_of_a_checkpoint_is_compared_with_what_was_written(
    trained: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(trained.path, tmp_path / "step-00000006")
    net = tmp_path / "step-00000006" / "edges"
    flip(net / OPTIMIZER)
    check_controlnet(net)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(net, tmp_path / "elsewhere" / "edges")
    (tmp_path / "elsewhere" / META).write_text("somebody's own")
    flip(net / WEIGHTS)
    with pytest.raises(Damaged, match=f"edges/{WEIGHTS} has another sha256"):
        check_controlnet(net)
    check_controlnet(tmp_path / "elsewhere" / "edges")
    (net.parent / META).write_bytes(b"\xff")
    with pytest.raises(Damaged, match="is not as it was written"):
        check_controlnet(net)


def test_an_average_that_is_gone_is_not_silently_replaced_by_the_weights(tmp_path: Path) -> None:
    models = {name: ControlNet.from_unet(tiny_unet())[0] for name in ("edges", "edges/ema")}
    net = checkpoint.save(tmp_path, models, {}, {"images": 4, "step": 1}).path / "edges"
    flip(net / "ema" / WEIGHTS)
    for place in (net, net / "ema"):
        with pytest.raises(Damaged, match=f"edges/ema/{WEIGHTS} has another sha256"):
            check_controlnet(place)
    shutil.rmtree(net / "ema")
    with pytest.raises(Damaged, match=r"edges/ema/.* is missing"):
        check_controlnet(net)


def test_a_longer_run_takes_over_no_damaged_checkpoint(tmp_path: Path) -> None:
    options = Options(images=24, batch=4, checkpoint_every=4, keep_every=8)
    begun = fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path / "short")
    flip(tmp_path / "short/step-00000004/edges" / OPTIMIZER)
    checkpoint.take_over(begun, tmp_path / "long")
    assert [path.name for path in checkpoint.folders(tmp_path / "long")] == ["step-00000002", "step-00000006"]
