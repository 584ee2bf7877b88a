"""Bases and ControlNets in the layouts of their publishing load: folders of diffusers, whose VAE and text
encoder have the names of 2022, and files of the original repositories.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import layouts
from train import base, single_file
from train.pretrained import load_controlnet

# part of a base -> its layouts
PARTS = {
    "unet": ("sd15-unet", "sd21-unet"),
    "vae": ("sd-vae",),
    "text_encoder": ("sd15-text_encoder", "sd21-text_encoder"),
}
SINGLE = {"sd15-single": "model_ema.decay", "sd21-single": "model_ema.num_updates"}


def load_part(folder: Path, part: str) -> Any:
    """What `base.load` reads, in half precision, which takes half the memory."""
    return base._load_part(folder, part, torch.float16)


@pytest.mark.slow  # networks of up to 866 million weights
@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in PARTS.items() for name in names])
def test_a_published_part_of_a_base_loads_and_nothing_is_drawn_at_random(
    part: str, name: str, tmp_path: Path
) -> None:
    layouts.write_folder(tmp_path, name, part)
    assert layouts.drawn(load_part(tmp_path, part)) == []


@pytest.mark.parametrize(("part", "name"), [("unet", "sd15-unet"), ("vae", "sd-vae")])
def test_a_part_that_lacks_one_published_tensor_is_refused_before_it_is_read(
    part: str, name: str, tmp_path: Path
) -> None:
    path = layouts.write_folder(tmp_path, name, part)
    told = layouts.read(name)["tensors"]
    lost = next(each for each in told if ".attentions.0." in each and each.endswith("weight"))
    layouts.write(path, {each: shape for each, shape in told.items() if each != lost})
    with pytest.raises(ValueError, match="lacks the tensor"):
        load_part(tmp_path, part)


@pytest.mark.slow  # a text encoder of 340 million weights is drawn before it is filled
@pytest.mark.parametrize("name", SINGLE)
def test_a_published_single_file_loads_part_by_part(name: str, tmp_path: Path) -> None:
    told = layouts.read(name)["tensors"]
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": layouts.zeros(told | {SINGLE[name]: []}), "global_step": 470000}, path)
    for part in PARTS:
        assert layouts.drawn(single_file.load_part(path, part, torch.float32)) == [], part
    prefix = single_file.CLIP if name == "sd15-single" else single_file.OPEN_CLIP
    lost = next(each for each in told if each.startswith(prefix) and each.endswith("bias"))
    torch.save({"state_dict": layouts.zeros({key: told[key] for key in told if key != lost})}, path)
    with pytest.raises(ValueError, match="lacks the tensor"):
        single_file.load_part(path, "text_encoder", torch.float32)


@pytest.mark.slow  # 361 million weights
def test_a_published_controlnet_loads_from_a_folder_of_diffusers(tmp_path: Path) -> None:
    layouts.write_folder(tmp_path, "controlnet-sd15")
    assert layouts.drawn(load_controlnet(tmp_path)) == []


def test_a_published_controlnet_loads_from_its_original_file(tmp_path: Path) -> None:
    told = layouts.read("controlnet-sd15-single")["tensors"]
    path = layouts.write(tmp_path / "control_v11p_sd15_canny.pth", told)
    assert layouts.drawn(load_controlnet(path)) == []
    bare = {name.removeprefix("control_model."): shape for name, shape in told.items()}
    assert layouts.drawn(load_controlnet(layouts.write(tmp_path / "bare.pth", bare))) == []
    del told["control_model.input_hint_block.14.bias"]
    with pytest.raises(ValueError, match=r"lacks the tensor control_model\.input_hint_block\.14\.bias"):
        load_controlnet(layouts.write(path, told))
