"""The network of the paper (section 3): a trainable copy of the locked encoder, a hint encoder, thirteen zero convolutions."""

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.halves import encode_half

PAPER_WIDTHS = (16, 32, 96, 256)  # of the hint encoder on a base that is 320 wide
ADDED = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")  # hint encoder, zero convolutions
# What the copied half of a UNet is built from; the same names stand in diffusers' ControlNetModel config.
SHARED_CONFIG = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "mid_block_type", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
    "transformer_layers_per_block", "attention_head_dim", "num_attention_heads", "use_linear_projection", "upcast_attention",
    "resnet_time_scale_shift",
)  # fmt: skip
UNSUPPORTED = ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim")


@dataclass(frozen=True)
class Transfer:
    """What the weight transfer did, by the names of the ControlNet's tensors."""

    copied: tuple[str, ...]
    new: tuple[str, ...]


class HintEncoder(nn.Module):
    """Eight 3x3 convolutions, three of stride 2, the last one zero: the layers of cldm/cldm.py, not of the paper's text."""

    def __init__(self, hint_channels: int, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(hint_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = _zero(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:  # [B, 3, 8h, 8w] float 0..1 => [B, C, h, w]
        # Few channels at full resolution: channels_last makes these layers three to four times faster, on a CPU too.
        x = functional.silu(self.conv_in(hint.contiguous(memory_format=torch.channels_last)))
        for conv in self.blocks:
            x = functional.silu(conv(x))
        return self.conv_out(x).contiguous()


class ControlNet(nn.Module):
    """Submodules carry diffusers' names, so that the state dict is the diffusers checkpoint as it is."""

    def __init__(self, unet: Any, *, hint_channels: int = 3, hint_widths: tuple[int, ...] | None = None) -> None:
        super().__init__()
        _check_supported(unet)
        widths = hint_widths or widths_for(unet.config.block_out_channels[0])
        self.config: dict[str, Any] = {name: unet.config[name] for name in SHARED_CONFIG}
        self.config |= {"conditioning_channels": hint_channels, "conditioning_embedding_out_channels": widths}
        self.conv_in = copy.deepcopy(unet.conv_in)
        self.time_proj = copy.deepcopy(unet.time_proj)
        self.time_embedding = copy.deepcopy(unet.time_embedding)
        self.down_blocks = copy.deepcopy(unet.down_blocks)
        self.mid_block = copy.deepcopy(unet.mid_block)
        sides = _skip_channels(unet.config.block_out_channels, unet.config.layers_per_block)
        device, dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        with torch.device(device):
            self.controlnet_cond_embedding = HintEncoder(hint_channels, widths, sides[0]).to(dtype)
            self.controlnet_down_blocks = nn.ModuleList(_zero(nn.Conv2d(side, side, 1)) for side in sides).to(dtype)
            self.controlnet_mid_block = _zero(nn.Conv2d(sides[-1], sides[-1], 1)).to(dtype)
        self.requires_grad_(True).train()

    @classmethod
    def from_unet(
        cls,
        unet: Any,  # UNet2DConditionModel, any width
        hint_channels: int = 3,
        hint_widths: tuple[int, ...] | None = None,  # None = the paper's widths, scaled to the base's width
    ) -> tuple["ControlNet", Transfer]:
        """A copy that is new anywhere but in the hint encoder and the zero convolutions is a bug, so it is an error."""
        controlnet = cls(unet, hint_channels=hint_channels, hint_widths=hint_widths)
        theirs = {name: tensor.shape for name, tensor in unet.state_dict().items()}
        mine = {name: tensor.shape for name, tensor in controlnet.state_dict().items()}
        copied = tuple(name for name, shape in mine.items() if theirs.get(name) == shape)
        new = tuple(name for name in mine if name not in set(copied))
        stray = [name for name in new if not name.startswith(ADDED)]
        if stray:
            raise ValueError(f"the base has no weights for {len(stray)} tensors of the copy, for example {stray[0]}")
        return controlnet, Transfer(copied, new)

    def forward(
        self,
        noisy_latents: Tensor,  # [B, 4, h, w]
        timesteps: Tensor,  # [B] int64
        text: Tensor,  # [B, T, D]
        hint: Tensor,  # [B, 3, 8h, 8w] float 0..1 RGB
        scale: float = 1.0,
    ) -> tuple[tuple[Tensor, ...], Tensor]:  # residuals of the skips and of the middle
        return self.residuals(noisy_latents, timesteps, text, self.controlnet_cond_embedding(hint), scale)

    def residuals(
        self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, features: Tensor, scale: float = 1.0
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Behind the hint encoder, whose features [B, C, h, w] are the same at every step of sampling."""
        skips, mid, _ = encode_half(self, noisy_latents, timesteps, text, features)
        downs = tuple(zero(skip) * scale for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True))
        return downs, self.controlnet_mid_block(mid) * scale


def widths_for(base_width: int) -> tuple[int, ...]:
    """The paper's widths at 320 channels, the same shares of a narrower base, never under 4."""
    return tuple(max(4, 4 * round(width * base_width / 320 / 4)) for width in PAPER_WIDTHS)


def empty_controlnet(config: dict[str, Any]) -> ControlNet:
    """The structure of a ControlNet file without weights (on the meta device), from its config.json."""
    from diffusers import UNet2DConditionModel

    shared = {name: config[name] for name in SHARED_CONFIG if name in config}
    ups = tuple(name.replace("Down", "Up") for name in reversed(config["down_block_types"]))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shared, up_block_types=ups)
    return ControlNet(
        unet,
        hint_channels=config.get("conditioning_channels", 3),
        hint_widths=tuple(config.get("conditioning_embedding_out_channels", PAPER_WIDTHS)),
    )


def _skip_channels(widths: tuple[int, ...], layers: int) -> list[int]:
    """Channels of conv_in, of each layer and of each downsampler: 320 x4, 640 x3, 1280 x5 for SD 1.5."""
    sides = [widths[0]]
    for level, width in enumerate(widths):
        sides += [width] * (layers + (level < len(widths) - 1))
    return sides


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def _check_supported(unet: Any) -> None:
    odd = [name for name in UNSUPPORTED if unet.config.get(name) is not None]
    if unet.config.center_input_sample or unet.config.time_embedding_type != "positional":
        odd.append("center_input_sample or time_embedding_type")
    if odd or unet.mid_block is None:
        what = ", ".join(odd) or "no middle block"
        raise ValueError(f"this UNet has {what}: ControlMill trains bases with the topology of SD 1.5 and 2.1")
