"""The network of the paper (section 3): a trainable copy of the locked encoder, a hint encoder, thirteen zero
convolutions.
"""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.config import BGR, PAPER_WIDTHS, POOLED, SHARED_CONFIG, Config, unsupported
from train.unet_parts import unet_encoder

Layer = TypeVar("Layer", bound=nn.Module)
GAIN = 3.0  # of variance, before a SiLU: 4 keeps what is near zero, 2.8 a standard normal
# hint encoder, zero convolutions
ADDED = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")


@dataclass(frozen=True)
class Transfer:
    """What the weight transfer did, by the names of the ControlNet's tensors."""

    copied: tuple[str, ...]
    new: tuple[str, ...]


class ControlledBlock(nn.Module):
    """Equation 2 of the paper for any block F: y = F(x) + Z(Fc(x + Z(c))), with F locked, Fc its trainable
    copy and each Z zero at first.
    """

    def __init__(
        self,
        # F: x -> y, both with channels on axis 1, or on the last axis when spatial is 0; it is locked in
        # place
        block: nn.Module,
        in_channels: int,  # of x
        out_channels: int,  # of y
        *,
        condition_channels: int | None = None,  # of c, which has x's other axes; None = in_channels
        # axes behind the channels: 2 for maps [B, C, H, W]; 0 for tokens [B, T, C], whose 1x1 convolution is
        # a linear layer
        spatial: int = 2,
    ) -> None:
        super().__init__()
        self.copy = copy.deepcopy(block).requires_grad_(True)
        self.locked = block.requires_grad_(False).eval()
        self.zero_in = _zero_layer(condition_channels or in_channels, in_channels, spatial)
        self.zero_out = _zero_layer(out_channels, out_channels, spatial)
        for parameter in itertools.islice(block.parameters(), 1):
            self.zero_in.to(parameter.device, parameter.dtype)
            self.zero_out.to(parameter.device, parameter.dtype)

    # `others` go to F and to its copy alike
    def forward(self, x: Tensor, condition: Tensor, *others: Any) -> Tensor:
        return self.locked(x, *others) + self.zero_out(self.copy(x + self.zero_in(condition), *others))

    def train(self, mode: bool = True) -> "ControlledBlock":
        """The locked block stays in evaluation mode, or the running means of a batch norm would move."""
        super().train(mode)
        self.locked.eval()
        return self


class HintEncoder(nn.Module):
    """Eight 3x3 convolutions, three of stride 2, the last one zero: the layers of cldm/cldm.py, not of the
    paper's text.
    """

    def __init__(
        self, hint_channels: int, widths: tuple[int, ...], out_channels: int, bgr: bool = False
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(hint_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = _zero(nn.Conv2d(widths[-1], out_channels, 3, padding=1))
        self.bgr = bgr
        for conv in (self.conv_in, *self.blocks):
            # Gaussian, as the paper says, and of a spread that SiLU keeps. Under PyTorch's default each layer
            # halves what tells one hint from another, a thousandth is left behind eight of them, and the
            # network hears nothing of its condition for thousands of steps.
            nn.init.normal_(conv.weight, std=(GAIN / conv.weight[0].numel()) ** 0.5)
            nn.init.zeros_(conv.bias)

    def forward(self, hint: Tensor) -> Tensor:  # [B, hint_channels, 8h, 8w] float 0..1 => [B, C, h, w]
        hint = hint.flip(1) if self.bgr else hint
        # Few channels at full resolution: channels_last makes these layers three to four times faster, on a
        # CPU too.
        x = functional.silu(self.conv_in(hint.contiguous(memory_format=torch.channels_last)))
        for conv in self.blocks:
            x = functional.silu(conv(x))
        return self.conv_out(x).contiguous()


class ControlNet(nn.Module):
    """Submodules carry diffusers' names, so that the state dict is the diffusers checkpoint as it is."""

    def __init__(
        self,
        unet: Any,
        *,
        hint_channels: int = 3,
        hint_widths: tuple[int, ...] | None = None,
        bgr: bool = False,  # its weights were made for hints with red and blue swapped
        # each residual is its mean over the map, so that only what a hint shows counts, not where
        pooled: bool = False,
    ) -> None:
        super().__init__()
        _check_supported(unet)
        widths = hint_widths or widths_for(unet.config.block_out_channels[0])
        self.config: Config = {name: unet.config[name] for name in SHARED_CONFIG}
        self.config |= {"conditioning_channels": hint_channels, "conditioning_embedding_out_channels": widths}
        self.config |= {BGR: "bgr"} if bgr else {}
        self.config |= {POOLED: True} if pooled else {}
        self.conv_in = copy.deepcopy(unet.conv_in)
        self.time_proj = copy.deepcopy(unet.time_proj)
        self.time_embedding = copy.deepcopy(unet.time_embedding)
        self.down_blocks = copy.deepcopy(unet.down_blocks)
        self.mid_block = copy.deepcopy(unet.mid_block)
        sides = _skip_channels(unet.config.block_out_channels, unet.config.layers_per_block)
        device, dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        with torch.device(device):
            self.controlnet_cond_embedding = HintEncoder(hint_channels, widths, sides[0], bgr).to(dtype)
            self.controlnet_down_blocks = nn.ModuleList(_zero(nn.Conv2d(side, side, 1)) for side in sides).to(
                dtype
            )
            self.controlnet_mid_block = _zero(nn.Conv2d(sides[-1], sides[-1], 1)).to(dtype)
        self.requires_grad_(True).train()

    @classmethod
    def from_unet(
        cls,
        unet: Any,  # UNet2DConditionModel, any width
        hint_channels: int = 3,
        hint_widths: tuple[int, ...] | None = None,  # None = the paper's widths, scaled to the base's width
    ) -> tuple["ControlNet", Transfer]:
        """The copy with the base's weights, and what the transfer did."""
        controlnet = cls(unet, hint_channels=hint_channels, hint_widths=hint_widths)
        return controlnet, transfer_weights(unet.state_dict(), controlnet)

    def forward(
        self,
        noisy_latents: Tensor,  # [B, 4, h, w]
        timesteps: Tensor,  # [B] int64
        text: Tensor,  # [B, T, D]
        hint: Tensor,  # [B, hint_channels, 8h, 8w] float 0..1
        scale: float = 1.0,
        *,
        recompute: bool = False,  # gradient checkpointing
    ) -> tuple[tuple[Tensor, ...], Tensor]:  # residuals of the skips and of the middle
        encode = self.controlnet_cond_embedding
        features = checkpoint(encode, hint, use_reentrant=False) if recompute else encode(hint)
        return self.residuals(noisy_latents, timesteps, text, features, scale, recompute=recompute)

    def residuals(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        features: Tensor,
        scale: float = 1.0,
        *,
        recompute: bool = False,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Behind the hint encoder, whose features [B, C, h, w] are the same at every step of sampling."""
        skips, mid, _ = unet_encoder(self, noisy_latents, timesteps, text, features, recompute=recompute)
        downs = tuple(
            zero(skip) * scale for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        )
        middle = self.controlnet_mid_block(mid) * scale
        if self.config.get(POOLED):
            pooled = [point.mean(dim=(2, 3), keepdim=True).expand_as(point) for point in (*downs, middle)]
            downs, middle = tuple(pooled[:-1]), pooled[-1]
        return downs, middle


@torch.no_grad()
# base: the state dict of a UNet
def transfer_weights(base: Mapping[str, Tensor], controlnet: ControlNet) -> Transfer:
    """Copies by name.

    Anything new but the hint encoder and the zero convolutions would be an untrained layer, so it is an
    error.

    ValueError: the base lacks one of the other tensors, or has it in another shape.
    """
    mine = controlnet.state_dict()
    copied = tuple(
        name
        for name in mine
        if not name.startswith(ADDED) and name in base and base[name].shape == mine[name].shape
    )
    new = tuple(name for name in mine if name not in set(copied))
    stray = [name for name in new if not name.startswith(ADDED)]
    if stray:
        raise ValueError(
            f"the base has no weights for {len(stray)} tensors of the copy, for example {stray[0]}"
        )
    for name in copied:
        mine[name].copy_(base[name])
    return Transfer(copied, new)


def widths_for(base_width: int) -> tuple[int, ...]:
    """The paper's widths at 320 channels, the same shares of a narrower base, never under 8."""
    return tuple(max(8, 4 * round(width * base_width / 320 / 4)) for width in PAPER_WIDTHS)


def empty_controlnet(config: Config) -> ControlNet:
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
        bgr=config.get(BGR) == "bgr",
        pooled=bool(config.get(POOLED)),
    )


def _skip_channels(widths: tuple[int, ...], layers: int) -> list[int]:
    """Channels of conv_in, of each layer and of each downsampler: 320 x4, 640 x3, 1280 x5 for SD 1.5."""
    sides = [widths[0]]
    for level, width in enumerate(widths):
        sides += [width] * (layers + (level < len(widths) - 1))
    return sides


def _zero(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _zero_layer(in_channels: int, out_channels: int, spatial: int) -> nn.Module:
    if spatial == 0:
        return _zero(nn.Linear(in_channels, out_channels))
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    if spatial not in kinds:
        raise ValueError(f"a block has 0, 1, 2 or 3 spatial axes, not {spatial}")
    return _zero(kinds[spatial](in_channels, out_channels, 1))


def _check_supported(unet: Any) -> None:
    if odd := unsupported(unet.config):
        raise ValueError(
            f"this UNet has {', '.join(odd)}: ControlMill trains bases with the topology of SD 1.5 and 2.1"
        )
