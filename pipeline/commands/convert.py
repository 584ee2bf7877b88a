"""A ControlNet from one layout into the other: a diffusers folder <-> the original single file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import MillError
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, TEMPORARY, stopping, write_whole

if TYPE_CHECKING:
    from torch import Tensor

Config = dict[str, Any]  # of a network, as its config.json has it

LAYOUTS = ("diffusers", "original")
WEIGHTS = ("average", "trained")


def convert(
    src: Path,  # a diffusers folder, an original single file, or a run's checkpoint of one condition
    dest: Path,  # must not exist; a .safetensors file where `to` is original, else a folder
    *,
    to: str,  # one of LAYOUTS
    # folder with the config.json of the base's UNet; None = the file says, or SD 1.5 or 2.1
    base_config: Path | None = None,
    # one of WEIGHTS; None = those that are sampled with: the average where a run kept one
    which: str | None = None,
    say: Callable[[str], None],
    warn: Callable[[str], None] | None = None,  # what will disappoint, though DEST is written; None = say
) -> None:
    """Tensors keep their values and dtype.

    DEST appears whole or not at all, and nothing is written over; MillError where it can't.
    """
    if to not in LAYOUTS:
        raise MillError(f"--to: {to!r} is unknown; set one of {', '.join(LAYOUTS)}.")
    if which not in (None, *WEIGHTS):
        raise MillError(f"--weights: {which!r} is unknown; set one of {', '.join(WEIGHTS)}.")
    _must_be_free(dest)
    if to == "original" and dest.suffix != ".safetensors":
        raise MillError(f"{dest}: the original layout is one file; give it a name that ends in .safetensors.")
    from train import integrity, original, unlocked

    warn = warn or say
    try:
        folder, kind = _meant(src, which, say)
        weights, config = _read(folder, base_config)
        if to == "original":
            _write_original(dest, weights, config)
        else:
            _write_diffusers(dest, weights, config)
    except integrity.Damaged as error:
        raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
    except (FileNotFoundError, ValueError) as error:  # the libraries' sentences
        raise MillError(f"{error}.") from error
    except OSError as error:
        raise stopping(error, str(dest)) or MillError(
            f"{dest} can't be written ({error.strerror}): name another place."
        ) from error
    say(
        f"{dest}: {len(weights)} tensors, {sum(tensor.numel() for tensor in weights.values()):,} parameters,"
        f" {to} layout{kind}"
    )
    if unlocked.has_unet(folder):
        say(
            f"{dest}: it was trained together with the base in {folder / unlocked.FOLDER}, which is not in"
            " this file: sample it on that base"
        )
    if to == "original" and (odd := original.unfixed(config)):
        warn(
            f"warning: {dest} will not load in ComfyUI or A1111, which build the network from the fixed"
            f" shapes of SD 1.5 and 2.1: {odd}; ControlMill and diffusers' ControlNetModel.from_single_file"
            " (with config=) read it"
        )
    if to == "diffusers" and src.is_file() and config.get("global_pool_conditions"):
        say(
            f"{dest}: this ControlNet pools its residuals (global_pool_conditions in its config.json), as its"
            " file says or is called"
        )
    if to == "original" and config.get("global_pool_conditions"):
        say(
            f"{dest}: this ControlNet pools its residuals; programs that read this layout know that only from"
            " `shuffle` in the file's name"
        )


# tensors by diffusers' names
def _read(folder: Path, base_config: Path | None) -> tuple[dict[str, "Tensor"], Config]:
    from train import checkpoint, kinds, original, weights_file
    from train.controlnet import empty_controlnet

    if folder.is_file():
        weights, config = original.read_controlnet(
            folder, None if base_config is None else _unet_config(base_config)
        )
        return weights, (
            config if "_class_name" in config else checkpoint.diffusers_config(empty_controlnet(config))
        )
    if not (folder / "config.json").is_file() or not (folder / weights_file.WEIGHTS).is_file():
        there = kinds.in_place_of(folder / weights_file.WEIGHTS)
        raise MillError(
            f"{folder} is no ControlNet in the diffusers layout: it needs config.json and"
            f" {weights_file.WEIGHTS}{there}."
        )
    config = kinds.read_config(folder)
    weights = weights_file.tensors_of(folder / weights_file.WEIGHTS)
    kinds.check_names(folder, weights)
    expected = {name: tensor.shape for name, tensor in empty_controlnet(config).state_dict().items()}
    weights_file.check_fit(str(folder / weights_file.WEIGHTS), "", weights, expected)
    return weights, config


def _meant(
    src: Path, which: str | None, say: Callable[[str], None]
) -> tuple[Path, str]:  # a ControlNet's folder or file; the end of the sentence that tells of it
    """What was trained and what is sampled with are two sets of weights where a run kept an average; the same
    rule as sampling's.
    """
    from train import integrity
    from train.integrity import AVERAGE, folder_to_sample

    if not src.exists():
        raise MillError(f"{src}: there is no such file or folder.")
    folder = src if src.is_file() else _controlnet_folder(src, say)
    integrity.check_controlnet(folder)
    if folder.name == AVERAGE and folder.is_dir():
        if which == "trained":
            raise MillError(f"{folder} is an average: the weights that learned are in {folder.parent}.")
        return folder, ", the average of the weights"
    average = folder_to_sample(folder)
    if average == folder:
        if which == "average":
            raise MillError(f"{folder} has no average beside its weights: leave --weights out.")
        return folder, ""
    return (
        (folder, ", the weights that learned")
        if which == "trained"
        else (average, ", the average of the weights")
    )


def _controlnet_folder(src: Path, say: Callable[[str], None]) -> Path:
    """A checkpoint holds a folder for each condition it trained; its newest whole one is meant where a whole
    run is given.
    """
    from train import checkpoint, integrity

    if checkpoint.folders(src):
        whole, damaged = checkpoint.newest_whole(src, resume=False)
        for sentence in damaged.values():
            say(f"{sentence}: {f'{whole.path.name} is taken instead' if whole else 'passed over'}")
        if whole is None:
            raise MillError(f"{src} has no whole checkpoint: {DAMAGED_CHECKPOINT}.")
    elif (src / integrity.META).is_file() and not (src / "config.json").is_file():
        whole = integrity.read(src)
    else:
        return src
    conditions = sorted(path.name for path in whole.path.iterdir() if path.is_dir())
    if len(conditions) != 1:
        raise MillError(
            f"{whole.path} holds {', '.join(conditions)}: name one of them, such as"
            f" {whole.path / conditions[0]}."
        )
    return whole.path / conditions[0]


def _unet_config(folder: Path) -> Config:
    from train import kinds

    for path in (folder / "config.json", folder / "unet" / "config.json"):
        if path.is_file():
            config = kinds.read_object(path)
            if "down_block_types" in config and "cross_attention_dim" in config:
                return config
    raise MillError(
        f"--base-config {folder}: neither that folder nor its unet/ has the config.json of a UNet."
    )


def _write_original(dest: Path, weights: dict[str, "Tensor"], config: Config) -> None:
    from train import original

    if not write_whole(dest, lambda path: original.write_controlnet(path, weights, config), replace=False):
        _must_be_free(dest)


def _write_diffusers(dest: Path, weights: dict[str, "Tensor"], config: Config) -> None:
    from safetensors.torch import save_file

    from train import weights_file

    work = dest.with_name(f"{TEMPORARY}{os.getpid()}-{dest.name}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        (work / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()},
            work / weights_file.WEIGHTS,
            metadata={"format": "pt"},
        )
        os.sync()  # a power cut must not leave a whole folder of empty files
        _must_be_free(dest)
        work.rename(dest)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _must_be_free(dest: Path) -> None:
    if dest.exists() or dest.is_symlink():
        raise MillError(
            f"{dest} is there already, and nothing is written over: name another place, or remove it first."
        )
