"""The base's own weights where a run unlocks them: which train, and how a checkpoint's are read back."""

import copy
from pathlib import Path
from typing import Any

from train.weights_file import WEIGHTS, tensors_of

# In the ControlNet's folder: a whole UNet in the diffusers layout. Give diffusers the path of this folder
# itself: with `subfolder=` it takes the file of the same name in the folder above.
FOLDER = "unet"
DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")  # what cldm.py calls output_blocks and out


def unlocked_copy(
    unet: Any,  # UNet2DConditionModel
    unlock: str,  # decoder | all
) -> Any:
    """A copy, since the caller's base may serve other runs; parameters that train are those that require a
    gradient.
    """
    copied = copy.deepcopy(unet).requires_grad_(False)
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(unlock == "all" or name.startswith(DECODER))
    return copied


def has_unet(
    controlnet: Path,  # a ControlNet's folder
) -> bool:
    return (controlnet / FOLDER / "config.json").is_file()


def load_unet(
    controlnet: Path,  # a ControlNet's folder that has a unet/
    unet: Any,  # a UNet2DConditionModel of the same base; its weights are replaced in place
) -> None:
    """Strict in both directions, as for a ControlNet; ValueError where the weights belong to another base."""
    path = controlnet / FOLDER / WEIGHTS
    weights = tensors_of(path)
    theirs, ours = (
        {name: tensor.shape for name, tensor in tensors.items()} for tensors in (weights, unet.state_dict())
    )
    wrong = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if wrong:
        raise ValueError(f"{path} belongs to another base: {len(wrong)} tensors differ, first {wrong[0]}")
    unet.load_state_dict(weights)
