import json

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from tests.train.conftest import tiny_unet
from train.controlnet import ADDED, ControlNet, HintEncoder, empty_controlnet, transfer_weights, widths_for
from train.original import SD15, SD21
from train.unet_parts import unet_decoder, unet_encoder


def inputs(batch: int = 2, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, side, side, generator=generator)
    text = torch.randn(batch, 5, 8, generator=generator)
    hint = torch.rand(batch, 3, 8 * side, 8 * side, generator=generator)
    return x, torch.arange(batch) * 400 + 7, text, hint


def test_stable_diffusion_15_gives_361279120_parameters_in_340_tensors() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )
        controlnet, transfer = ControlNet.from_unet(unet)
    state = controlnet.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (340, 361_279_120)
    assert len(transfer.new) == 16 + 26  # eight convolutions of the hint encoder, thirteen zero convolutions
    channels = [conv.weight.shape[0] for conv in controlnet.controlnet_down_blocks]
    assert channels == [320] * 4 + [640] * 3 + [1280] * 5


@pytest.mark.parametrize(("base", "parameters"), [("SD 1.5", 361_279_120), ("SD 2.1", 364_228_240)])
def test_at_full_size_names_and_shapes_are_those_of_diffusers(base: str, parameters: int) -> None:
    config = {"SD 1.5": SD15, "SD 2.1": SD21}[base]
    with torch.device("meta"):
        theirs = ControlNetModel.from_unet(UNet2DConditionModel(**config), load_weights_from_unet=False)
    ours = empty_controlnet(config)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert (len(shapes), sum(shape.numel() for shape in shapes.values())) == (340, parameters)


def test_at_full_size_outputs_equal_diffusers_on_the_same_weights() -> None:
    """Both hold the same memory; a small picture, since it too takes every tensor of the network."""
    ours = empty_controlnet(SD15)
    # the largest tensor has 1280 x 2560 x 9
    pool = torch.randn(29_500_000, generator=torch.Generator().manual_seed(0))
    weights = {}
    for name, tensor in ours.state_dict().items():
        drawn = pool[: tensor.numel()].reshape(tensor.shape)
        gain = 0.1 if name.startswith(ADDED[1:]) else 1.0  # residuals as small as those of a trained one
        weights[name] = (
            1 + 0.1 * drawn
            if tensor.ndim == 1 and name.endswith("weight")
            else drawn * gain * max(tensor[0].numel(), 8) ** -0.5
        )
    ours.load_state_dict(weights, assign=True)
    with torch.device("meta"):
        theirs = ControlNetModel.from_config(json.loads(json.dumps(ours.config))).eval()
    theirs.load_state_dict(weights, assign=True)
    x, t, text, hint = (
        torch.randn(1, 4, 8, 8),
        torch.tensor([261]),
        torch.randn(1, 77, 768),
        torch.rand(1, 3, 64, 64),
    )
    with torch.no_grad():
        downs, mid = ours(x, t, text, hint)
        their_downs, their_mid = theirs(x, t, text, hint, return_dict=False)
    for mine, other in zip((*downs, mid), (*their_downs, their_mid), strict=True):
        assert mine.std() > 0.02
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_names_and_shapes_are_those_of_diffusers() -> None:
    unet = tiny_unet()
    ours, _ = ControlNet.from_unet(unet, hint_widths=(4, 4, 8, 8))
    theirs = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    "changes", [{}, {"use_linear_projection": True, "attention_head_dim": (1, 2, 2, 4)}], ids=["sd15", "sd21"]
)
def test_outputs_equal_diffusers_on_the_same_weights(changes: dict) -> None:
    ours, _ = ControlNet.from_unet(tiny_unet(**changes))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    theirs = ControlNetModel.from_config(json.loads(json.dumps(ours.config))).eval()
    theirs.load_state_dict(ours.state_dict())
    x, t, text, hint = inputs()
    with torch.no_grad():
        downs, mid = ours(x, t, text, hint, scale=0.7)
        their_downs, their_mid = theirs(x, t, text, hint, conditioning_scale=0.7, return_dict=False)
    assert mid.abs().max() > 1e-3
    for mine, other in zip((*downs, mid), (*their_downs, their_mid), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [16, 20])
@pytest.mark.parametrize("only_cross_attention", [False, (True, True, False, False)])
def test_the_two_halves_equal_the_whole_unet(
    side: int, only_cross_attention: bool | tuple[bool, ...]
) -> None:
    unet = tiny_unet(only_cross_attention=only_cross_attention)
    x, t, text, _ = inputs(side=side)
    with torch.no_grad():
        skips, mid, emb = unet_encoder(unet, x, t, text)
        assert torch.equal(unet_decoder(unet, skips, mid, emb, text), unet(x, t, text).sample)
        residuals = (tuple(torch.full_like(skip, 0.3) for skip in skips), torch.full_like(mid, 0.2))
        controlled = unet(
            x,
            t,
            text,
            down_block_additional_residuals=residuals[0],
            mid_block_additional_residual=residuals[1],
        ).sample
        assert torch.equal(unet_decoder(unet, skips, mid, emb, text, residuals), controlled)


def test_a_new_controlnet_leaves_the_base_bit_for_bit_as_it_is() -> None:
    unet = tiny_unet()
    controlnet, transfer = ControlNet.from_unet(unet)
    x, t, text, hint = inputs()
    with torch.no_grad():
        skips, mid, emb = unet_encoder(unet, x, t, text)
        assert torch.equal(
            unet_decoder(unet, skips, mid, emb, text, controlnet(x, t, text, hint)), unet(x, t, text).sample
        )
    base = unet.state_dict()
    assert all(torch.equal(controlnet.state_dict()[name], base[name]) for name in transfer.copied)
    assert all(controlnet.state_dict()[name].data_ptr() != base[name].data_ptr() for name in transfer.copied)


def test_gradient_reaches_the_network_in_three_waves() -> None:
    """Zero convolutions first, then the trunk and the hint encoder's end, then all of it."""
    unet = tiny_unet()
    controlnet, _ = ControlNet.from_unet(unet)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-2)
    x, t, text, hint = inputs()
    reached: list[set[str]] = []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.no_grad():
            skips, mid, emb = unet_encoder(unet, x, t, text)
        unet_decoder(unet, skips, mid, emb, text, controlnet(x, t, text, hint)).square().mean().backward()
        reached.append(
            {
                name
                for name, p in controlnet.named_parameters()
                if p.grad is not None and p.grad.abs().max() > 0
            }
        )
        optimizer.step()
    zero = {
        name
        for name, _ in controlnet.named_parameters()
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block"))
    }
    hint_names = {
        name for name, _ in controlnet.named_parameters() if name.startswith("controlnet_cond_embedding")
    }
    last = {name for name in hint_names if ".conv_out." in name}
    assert reached[0] == zero and len(zero) == 26
    trunk = {name for name, _ in controlnet.named_parameters()} - zero - hint_names
    assert trunk | last <= reached[1] and not reached[1] & (hint_names - last)
    assert hint_names <= reached[2]
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_a_base_without_the_topology_of_stable_diffusion_is_refused() -> None:
    with pytest.raises(ValueError, match="class_embed_type"):
        ControlNet.from_unet(tiny_unet(class_embed_type="timestep"))


def test_the_structure_can_be_built_from_its_config_alone() -> None:
    controlnet, _ = ControlNet.from_unet(tiny_unet(), hint_channels=5)
    empty = empty_controlnet(json.loads(json.dumps(controlnet.config)))
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in controlnet.state_dict().items()
    }


def test_hint_widths_are_the_papers_at_320_channels_and_narrower_below() -> None:
    assert widths_for(320) == (16, 32, 96, 256)
    assert widths_for(32) == (8, 8, 8, 24)


@pytest.mark.parametrize("width", [48, 320])
def test_what_tells_one_hint_from_another_survives_the_fresh_encoder(width: int) -> None:
    """PyTorch's default leaves a thousandth of it behind, and for thousands of steps the network hears
    nothing of its condition.
    """
    torch.manual_seed(0)
    encoder = HintEncoder(3, widths_for(width), width)
    hints = (torch.rand(8, 1, 64, 64) < 0.1).float().expand(-1, 3, -1, -1)  # edges
    seen: list[torch.Tensor] = []
    encoder.conv_out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        encoder(hints)
    assert 0.3 < seen[0].std(0).mean() / hints.std(0).mean() < 3


@pytest.mark.parametrize("hint_channels", [1, 5])
def test_a_hint_may_have_any_number_of_channels(hint_channels: int) -> None:
    unet = tiny_unet()
    ours, transfer = ControlNet.from_unet(unet, hint_channels=hint_channels)
    widths = ours.config["conditioning_embedding_out_channels"]
    theirs = ControlNetModel.from_unet(
        unet, conditioning_channels=hint_channels, conditioning_embedding_out_channels=widths
    )
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert set(transfer.copied) | set(transfer.new) == set(ours.state_dict()) and not set(
        transfer.copied
    ) & set(transfer.new)
    x, t, text, _ = inputs()
    downs, mid = ours(x, t, text, torch.rand(2, hint_channels, 128, 128))
    assert (len(downs), mid.shape) == (12, (2, 12, 2, 2))


def test_the_transfer_copies_the_base_and_lists_the_rest_as_new() -> None:
    base = tiny_unet().state_dict()
    other = ControlNet.from_unet(tiny_unet())[0]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7.0)
    transfer = transfer_weights(base, other)
    assert all(torch.equal(other.state_dict()[name], base[name]) for name in transfer.copied)
    assert all(bool((other.state_dict()[name] == 7.0).all()) for name in transfer.new)
    assert transfer.new and all(name.startswith(ADDED) for name in transfer.new)


@pytest.mark.parametrize("wrong", ["missing", "of another shape"])
def test_a_base_that_would_leave_a_copied_layer_new_is_refused(wrong: str) -> None:
    base = dict(tiny_unet().state_dict())
    name = "mid_block.resnets.0.conv1.weight"
    tensor = base.pop(name)
    if wrong == "of another shape":
        base[name] = tensor[:-1]
    with pytest.raises(ValueError, match=rf"no weights for 1 tensors of the copy, for example {name}"):
        transfer_weights(base, ControlNet.from_unet(tiny_unet())[0])
