"""`controlmill convert` as a person runs it: both ways and back, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.commands.convert import convert
from train import checkpoint, pretrained
from train.controlnet import ControlNet, empty_controlnet
from train.original import SD15, SD21, unfixed

WEIGHTS = "diffusion_pytorch_model.safetensors"


def unet(**changes: Any) -> UNet2DConditionModel:
    sizes = {
        "block_out_channels": (4, 8, 12, 12),
        "cross_attention_dim": 8,
        "norm_num_groups": 2,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**sizes, **changes})


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as another maker's program writes it, in half precision, with a setting that is
    no topology.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs = ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(4, 4, 8, 8))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    theirs.register_to_config(global_pool_conditions=True)
    folder = tmp_path_factory.mktemp("nets") / "net"
    theirs.half().save_pretrained(folder)
    return folder


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, words)])


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def test_there_and_back_nothing_is_lost(net: Path, tmp_path: Path) -> None:
    there = run(net, tmp_path / "net.safetensors", "--to", "original")
    assert there.exit_code == 0, there.output
    assert "340 tensors" in there.output and "pools its residuals" in there.output
    assert all(name.startswith("control_model.") for name in load_file(tmp_path / "net.safetensors"))
    back = run(tmp_path / "net.safetensors", tmp_path / "back", "--to", "diffusers")
    assert back.exit_code == 0, back.output
    assert same(net / WEIGHTS, tmp_path / "back" / WEIGHTS)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (net / "config.json").read_text()
    )
    assert ControlNetModel.from_pretrained(tmp_path / "back").config.global_pool_conditions is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "net.safetensors"]


@pytest.mark.parametrize("place", ["", "unet"])
def test_a_file_without_a_config_takes_that_of_its_base(place: str, net: Path, tmp_path: Path) -> None:
    run(net, tmp_path / "net.safetensors", "--to", "original")
    save_file(load_file(tmp_path / "net.safetensors"), tmp_path / "bare.safetensors")
    refused = run(tmp_path / "bare.safetensors", tmp_path / "back", "--to", "diffusers")
    assert refused.exit_code == 1 and "--base-config" in refused.output and not (tmp_path / "back").exists()
    unet().save_config(tmp_path / "base" / place)
    assert (
        run(
            tmp_path / "bare.safetensors",
            tmp_path / "back",
            "--to",
            "diffusers",
            "--base-config",
            tmp_path / "base",
        ).exit_code
        == 0
    )
    assert same(net / WEIGHTS, tmp_path / "back" / WEIGHTS)
    assert ControlNetModel.from_pretrained(tmp_path / "back").config.attention_head_dim == 2


def test_what_is_there_stays_as_it_is(net: Path, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_text("mine")
    (tmp_path / "folder").mkdir()
    for dest, to in (("net.safetensors", "original"), ("folder", "diffusers")):
        refused = run(net, tmp_path / dest, "--to", to)
        assert refused.exit_code == 1 and "is there already" in refused.output
    assert (tmp_path / "net.safetensors").read_text() == "mine" and not list((tmp_path / "folder").iterdir())


def test_a_conversion_that_fails_leaves_nothing(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **more: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(args[1]))

    run(net, tmp_path / "net.safetensors", "--to", "original")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    for src, dest, to in (
        (net, "other.safetensors", "original"),
        (tmp_path / "net.safetensors", "folder", "diffusers"),
    ):
        refused = run(src, tmp_path / dest, "--to", to)
        assert refused.exit_code == 1 and "disk" in refused.output and "Traceback" not in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_checkpoint_of_a_run_is_read_where_one_condition_is_meant(tmp_path: Path) -> None:
    nets = {name: ControlNet.from_unet(unet())[0] for name in ("canny", "hed")}
    optimizers = {name: torch.optim.AdamW(one.parameters()) for name, one in nets.items()}
    both = checkpoint.save(tmp_path / "both", nets, optimizers, {"step": 3, "images": 12})
    one = checkpoint.save(tmp_path / "one", {"hed": nets["hed"]}, optimizers, {"step": 3, "images": 12})
    refused = run(both.path, tmp_path / "x.safetensors", "--to", "original")
    assert (
        refused.exit_code == 1
        and f"holds canny, hed: name one of them, such as {both.path / 'canny'}" in refused.output
    )
    for number, src in enumerate((both.path / "hed", one.path, tmp_path / "one")):
        made = tmp_path / f"{number}.safetensors"
        assert run(src, made, "--to", "original").exit_code == 0
        back = pretrained.load_controlnet(made)
        assert all(
            torch.equal(tensor, nets["hed"].state_dict()[name]) for name, tensor in back.state_dict().items()
        )


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A condition's folder of a run that kept an average, whose base was unlocked."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("averaged")
    models: dict[str, torch.nn.Module] = {
        "canny": ControlNet.from_unet(unet())[0],
        "canny/ema": ControlNet.from_unet(unet())[0],
    }
    models |= {"canny/unet": unet(), "canny/ema/unet": unet()}
    for model in models.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return checkpoint.save(folder, models, {}, {"step": 3, "images": 12}).path / "canny"


@pytest.mark.parametrize(
    ("place", "choice", "folder", "kind"),
    [
        (".", [], "ema", "the average of the weights"),
        (".", ["--weights", "average"], "ema", "the average of the weights"),
        (".", ["--weights", "trained"], ".", "the weights that learned"),
        ("..", ["--weights", "trained"], ".", "the weights that learned"),
        ("ema", [], "ema", "the average of the weights"),
    ],
)
def test_what_would_be_sampled_is_converted_unless_asked_otherwise(
    averaged: Path, tmp_path: Path, place: str, choice: list[str], folder: str, kind: str
) -> None:
    told = run((averaged / place).resolve(), tmp_path / "net.safetensors", "--to", "original", *choice)
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0].endswith(f"original layout, {kind}")
    assert (
        len(lines) == 2
        and f"trained together with the base in {(averaged / folder).resolve() / 'unet'}" in lines[1]
    )
    assert run(tmp_path / "net.safetensors", tmp_path / "back", "--to", "diffusers").exit_code == 0
    assert same(averaged / folder / WEIGHTS, tmp_path / "back" / WEIGHTS)


def test_mistakes_are_one_sentence(net: Path, averaged: Path, tmp_path: Path) -> None:
    broken, cut = tmp_path / "broken", tmp_path / "cut"
    shutil.copytree(net, broken)
    shutil.copytree(net, cut)
    (cut / WEIGHTS).write_bytes((net / WEIGHTS).read_bytes()[:-9])
    tensors = load_file(net / WEIGHTS)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "controlnet_mid_block.bias"},
        broken / WEIGHTS,
    )
    cases = [
        ((tmp_path / "no", tmp_path / "x", "--to", "diffusers"), "there is no such file or folder"),
        (
            (tmp_path, tmp_path / "x", "--to", "diffusers"),
            "no ControlNet in the diffusers layout: it needs config.json",
        ),
        ((net, tmp_path / "x", "--to", "original"), "give it a name that ends in .safetensors"),
        ((net, tmp_path / "x", "--to", "comfy"), "--to: 'comfy' is unknown"),
        ((net / WEIGHTS, tmp_path / "x", "--to", "diffusers"), "holds no ControlNet in the original layout"),
        (
            (net / WEIGHTS, tmp_path / "x", "--to", "diffusers", "--base-config", tmp_path),
            "has the config.json of a UNet",
        ),
        (
            (net, tmp_path / "x", "--to", "diffusers", "--weights", "ema"),
            "--weights: 'ema' is unknown; set one of average, trained",
        ),
        (
            (net, tmp_path / "x", "--to", "diffusers", "--weights", "average"),
            "has no average beside its weights",
        ),
        (
            (averaged / "ema", tmp_path / "x", "--to", "diffusers", "--weights", "trained"),
            f"the weights that learned are in {averaged}",
        ),
        (
            (broken, tmp_path / "x.safetensors", "--to", "original"),
            "lacks the tensor controlnet_mid_block.bias with the shape [12]",
        ),
        (
            (cut, tmp_path / "x.safetensors", "--to", "original"),
            f"{cut / WEIGHTS} can't be read: it is damaged",
        ),
    ]
    for words, sentence in cases:
        told = run(*words)
        assert told.exit_code == 1 and sentence in told.output and told.output.count("\n") == 1, told.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "cut"]


def test_a_file_called_meta_json_makes_no_checkpoint_of_a_controlnet(net: Path, tmp_path: Path) -> None:
    (shutil.copytree(net, tmp_path / "net") / "meta.json").write_text("somebody's own")
    assert run(tmp_path / "net", tmp_path / "net.safetensors", "--to", "original").exit_code == 0


def test_a_base_config_that_is_no_json_is_named(net: Path, tmp_path: Path) -> None:
    assert run(net, tmp_path / "net.safetensors", "--to", "original").exit_code == 0
    (tmp_path / "config.json").write_text("{")
    told = run(tmp_path / "net.safetensors", tmp_path / "x", "--to", "diffusers", "--base-config", tmp_path)
    assert told.exit_code == 1 and f"{tmp_path / 'config.json'} is no JSON" in told.output


def test_a_difference_file_is_no_controlnet(net: Path, tmp_path: Path) -> None:
    run(net, tmp_path / "whole.safetensors", "--to", "original")
    for name, tensor in (("difference", torch.tensor(1.0)), ("lora_controlnet", torch.zeros(0))):
        save_file(load_file(tmp_path / "whole.safetensors") | {name: tensor}, tmp_path / "other.safetensors")
        told = run(
            tmp_path / "other.safetensors",
            tmp_path / "net",
            "--to",
            "diffusers",
            "--base-config",
            base_of(tmp_path),
        )
        wanted = "is a difference file" if name == "difference" else "Control-LoRA is not read"
        assert told.exit_code == 1 and wanted in told.output and told.output.count("\n") == 1, told.output
    assert not (tmp_path / "net").exists()


def base_of(tmp_path: Path, **changes: Any) -> Path:
    unet(**changes).save_config(tmp_path / "base")
    return tmp_path / "base"


def test_a_controlnet_of_an_inpainting_base_is_refused(net: Path, tmp_path: Path) -> None:
    run(net, tmp_path / "whole.safetensors", "--to", "original")
    save_file(load_file(tmp_path / "whole.safetensors"), tmp_path / "bare.safetensors")
    told = run(
        tmp_path / "bare.safetensors",
        tmp_path / "net",
        "--to",
        "diffusers",
        "--base-config",
        base_of(tmp_path, in_channels=9),
    )
    assert told.exit_code == 1 and "of an inpainting base (in_channels: 9) is not read" in told.output, (
        told.output
    )


def test_a_network_that_fixed_shapes_can_not_hold_is_written_with_a_warning(
    net: Path, tmp_path: Path
) -> None:
    told = run("train/mini/roots/canny", tmp_path / "canny.safetensors", "--to", "original")
    assert told.exit_code == 0 and (tmp_path / "canny.safetensors").is_file(), told.output
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'canny.safetensors'} will not load in ComfyUI or A1111")
    assert (
        "block_out_channels is [48, 80, 96, 96], not [320, 640, 1280, 1280]" in line
        and "in_channels is 8, not 4" in line
    )
    back = run(tmp_path / "canny.safetensors", tmp_path / "back", "--to", "diffusers")
    assert back.exit_code == 0 and not back.stderr
    with torch.device("meta"):
        for config in (SD15, SD21):
            plain = json.loads(json.dumps(checkpoint.diffusers_config(empty_controlnet(config))))
            assert unfixed(plain) == "" and "conditioning_channels is 1, not 3" in unfixed(
                plain | {"conditioning_channels": 1}
            )


def test_pooled_residuals_survive_the_way_from_a_file_called_shuffle(net: Path, tmp_path: Path) -> None:
    run(net, tmp_path / "net.safetensors", "--to", "original")
    for name, pooled in (("Shuffle_fp16", True), ("canny", False)):
        save_file(load_file(tmp_path / "net.safetensors"), tmp_path / f"{name}.safetensors")
        told = run(
            tmp_path / f"{name}.safetensors",
            tmp_path / name,
            "--to",
            "diffusers",
            "--base-config",
            base_of(tmp_path),
        )
        assert told.exit_code == 0 and ("pools its residuals" in told.output) is pooled, told.output
        assert bool(ControlNetModel.from_pretrained(tmp_path / name).config.global_pool_conditions) is pooled


def test_the_function_says_what_it_made(net: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    convert(net, tmp_path / "net.safetensors", to="original", say=lines.append)
    count = sum(tensor.numel() for tensor in load_file(tmp_path / "net.safetensors").values())
    assert lines[0] == f"{tmp_path / 'net.safetensors'}: 340 tensors, {count:,} parameters, original layout"


def test_what_appears_meanwhile_is_not_written_over(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(net, tmp_path / "net.safetensors", "--to", "original")

    def slow(tensors: Any, path: Path, **more: Any) -> None:
        save_file(tensors, path, **more)
        (tmp_path / "other.safetensors").write_text("another's")
        (tmp_path / "folder").mkdir(exist_ok=True)

    monkeypatch.setattr("safetensors.torch.save_file", slow)
    for src, dest, to in (
        (net, "other.safetensors", "original"),
        (tmp_path / "net.safetensors", "folder", "diffusers"),
    ):
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        refused = run(src, tmp_path / dest, "--to", to)
        assert refused.exit_code == 1 and "is there already" in refused.output
    assert (tmp_path / "other.safetensors").read_text() == "another's" and not list(
        (tmp_path / "folder").iterdir()
    )
    assert not list(tmp_path.glob(".tmp-*"))
