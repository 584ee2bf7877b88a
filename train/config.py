"""What the config.json of a UNet or ControlNet says, under diffusers' names."""

from typing import Any

Config = dict[str, Any]  # a config.json of diffusers; open, since each class and version has keys of its own
PAPER_WIDTHS = (16, 32, 96, 256)  # of the hint encoder on a base that is 320 wide
# What the copied half of a UNet is built from; the same names stand in diffusers' ControlNetModel config.
SHARED_CONFIG = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "mid_block_type",
    "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups",
    "norm_eps", "cross_attention_dim",
    "transformer_layers_per_block", "attention_head_dim", "num_attention_heads", "use_linear_projection",
    "upcast_attention",
    "resnet_time_scale_shift",
)  # fmt: skip
# diffusers' names of two settings that change no tensor; they stand in a config only where they are not as
# usual
BGR, POOLED = "controlnet_conditioning_channel_order", "global_pool_conditions"
UNSUPPORTED = (
    "encoder_hid_dim_type",
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "time_cond_proj_dim",
)


def unsupported(
    config: Config,  # of a UNet
) -> list[str]:
    """What in it is beyond the topology of SD 1.5 and 2.1; empty = nothing."""
    odd = [name for name in UNSUPPORTED if config.get(name) is not None]
    if config.get("center_input_sample") or config.get("time_embedding_type", "positional") != "positional":
        odd.append("center_input_sample or time_embedding_type")
    return odd if config.get("mid_block_type", "usual") else [*odd, "no middle block"]
