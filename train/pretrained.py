"""A ControlNet from wherever it lies: a diffusers folder, a single file, the hub, or a shipped one."""

import functools
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import hub, kinds, mini, original, weights_file
from train.weights_file import WEIGHTS, content_of, tensors_of

if TYPE_CHECKING:
    from train.controlnet import ControlNet

FILES = ["config.json", WEIGHTS]  # of a folder in the diffusers layout


def locate(spec: str | Path, *, download: bool = True) -> Path:
    """The folder or single file behind `spec`: `mini/canny` and the like, a path, or a hub id owner/name, of
    which the local cache is asked first.

    FileNotFoundError: nothing is there, or the hub's files are neither in the cache nor to be had.
    ValueError: the file can't be read, or is another kind by its tensors' names or by the folder's config.
    """
    if root := mini.root(str(spec)):
        return root
    here = Path(spec).expanduser()
    if here.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(spec)):
        if not here.exists():
            raise FileNotFoundError(
                f"{spec}: no such ControlNet: neither a folder, nor a file, nor a hub id of the form"
                " owner/name"
            )
        _check_kind(here)
        return here
    cached_folder = hub.folder(
        str(spec),
        str(spec),
        FILES,
        download,
        "name its path",
        lambda cached: [name for name in FILES if not (cached / name).is_file()],
    )
    _check_kind(cached_folder)
    return cached_folder


def bytes_to_get(name: str) -> int:
    """What a download of the ControlNet owner/name would bring, beside what is in the cache; 0 also where it
    is none. OSError: the hub can't be reached, or refuses.
    """
    return hub.bytes_to_get(name, FILES)


def _check_kind(controlnet: Path) -> None:
    """Before any work: a plan asks, and little but names is read."""
    if controlnet.is_file():
        weights_file.read_file(
            controlnet,
            (original.PREFIX + original.FIRST_HINT,),
            look=functools.partial(kinds.check_names, controlnet),
        )
    elif (controlnet / "config.json").is_file():
        kinds.read_config(controlnet)


def load_controlnet(
    # in the diffusers layout: config.json and diffusion_pytorch_model.safetensors; or a single file in the
    # original layout
    folder: Path,
    unet: Any = None,  # a UNet2DConditionModel to check the topology against; None = as config.json says
) -> "ControlNet":  # float32 on the CPU, trainable
    """Strict in both directions: a ControlNet with a tensor missing would run, and run wrongly.

    FileNotFoundError: the folder lacks its config or its weights. ValueError: another kind of file, a damaged
    one, weights that do not fit their config, or a ControlNet of another base than `unet`.
    """
    from train.controlnet import empty_controlnet

    if folder.is_file():
        tensors, config = original.read_controlnet(folder, None if unet is None else unet.config)
        controlnet = empty_controlnet(config)
        controlnet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        return controlnet.requires_grad_(True)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no ControlNet in the diffusers layout: it has no"
                f" {name}{kinds.in_place_of(folder / name)}"
            )
    controlnet = empty_controlnet(kinds.read_config(folder))
    if unet is not None:
        theirs = {
            name: unet.state_dict()[name].shape
            for name in unet.state_dict()
            if name in controlnet.state_dict()
        }
        odd = [name for name, shape in theirs.items() if controlnet.state_dict()[name].shape != shape]
        if odd:
            raise ValueError(
                f"the ControlNet in {folder} belongs to another base: {len(odd)} tensors differ in shape,"
                f" first {odd[0]}"
            )
    # Copies: a file's tensors lie at any address, and products of matrices depend in their last bits on how
    # their operands are aligned.
    weights = {name: tensor.float().clone() for name, tensor in tensors_of(folder / WEIGHTS).items()}
    kinds.check_names(folder, weights)
    expected = {name: tensor.shape for name, tensor in controlnet.state_dict().items()}
    wrong = sorted(
        name
        for name in expected.keys() | weights.keys()
        if name not in weights or expected.get(name) != weights[name].shape
    )
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit its config.json: {len(wrong)} tensors differ, first {wrong[0]}"
        )
    controlnet.load_state_dict(weights, assign=True)
    return controlnet.requires_grad_(True)


def write_rounded(
    folder: Path,  # a ControlNet in the diffusers layout
    dest: Path,
) -> None:
    """The same ControlNet in bfloat16: half the bytes, for what is shipped."""
    from safetensors.torch import save_file

    dest.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in tensors_of(folder / WEIGHTS).items()}
    save_file(weights, dest / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(folder / "config.json", dest / "config.json")


def weights_hash(folder: Path) -> str:  # 16 hex
    """Identity of the weights of a ControlNet's folder or single file, wherever it lies.

    FileNotFoundError: the folder has no file of weights.
    """
    if folder.is_file():
        return content_of(folder)[:16]
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} is no ControlNet in the diffusers layout: it has no {WEIGHTS}")
    return content_of(folder / WEIGHTS)[:16]
