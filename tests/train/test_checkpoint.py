import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel

from tests.train.conftest import ToyPairs, tiny_base, tiny_unet
from train.checkpoint import KEEP, META, WEIGHTS, Checkpoint, kept, load_controlnet, newest, read
from train.controlnet import ControlNet
from train.fit import Options, fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    options = Options(images=24, batch=4, lr=1e-2, checkpoint_every=8, log_every=8)
    return fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path_factory.mktemp("trained"))


def test_diffusers_loads_the_checkpoint_and_computes_the_same(trained: Checkpoint) -> None:
    theirs = ControlNetModel.from_pretrained(trained.path / "edges").eval()
    ours = load_controlnet(trained.path / "edges", tiny_unet())
    x, t, text, hint = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 8), torch.rand(2, 3, 128, 128)
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
    assert set(trained.meta["files"]) == {f"edges/{name}" for name in ("config.json", WEIGHTS, "optimizer.safetensors")}


def test_only_the_newest_checkpoints_are_kept(trained: Checkpoint) -> None:
    assert sorted(path.name for path in trained.path.parent.glob("step-*")) == ["step-00000004", "step-00000006"]
    assert KEEP == 2


def test_a_run_leaves_checkpoints_on_its_way_for_good_if_asked_to(tmp_path: Path) -> None:
    options = Options(images=32, batch=4, checkpoint_every=4, keep_every=10)  # 12, 20 and 32 are the first to reach a multiple
    fit(tiny_base(), ToyPairs(), ["edges"], options, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{step:08d}" for step in (3, 5, 7, 8)], "the two newest stay anyway"
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
    with pytest.raises(ValueError, match=r"does not fit its config.json: 1 tensors differ, first controlnet_cond_embedding.conv_in.weight"):
        load_controlnet(tmp_path / "edges")


def test_a_file_of_diffusers_loads_here(tmp_path: Path) -> None:
    theirs = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4, 4, 8, 8))
    theirs.save_pretrained(tmp_path)
    ours = load_controlnet(tmp_path, tiny_unet())
    assert isinstance(ours, ControlNet)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
