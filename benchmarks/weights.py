"""Weight files of the true architecture, laid out as the hub's, where the hub itself is out of reach."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def controlnet_hed() -> dict[str, "torch.Tensor"]:
    """ControlNetHED.pth with trained layers: those of BSDS500, which have the same shapes.

    The fused sum of BSDS500 becomes five times the mean, and its BGR becomes RGB.
    """
    import torch

    from annotate import hed
    from annotate.weights import find

    layers = hed.read_layers(find(hed.WEIGHTS))
    assert layers.mean is not None
    tensors = {"norm": torch.tensor(layers.mean[::-1]).reshape(1, 3, 1, 1)}
    for n, block in enumerate(layers.blocks, 1):
        for i, (weight, bias) in enumerate(block):
            flipped = np.ascontiguousarray(weight[:, ::-1]) if (n, i) == (1, 0) else weight
            tensors |= {
                f"block{n}.convs.{i}.weight": torch.tensor(flipped),
                f"block{n}.convs.{i}.bias": torch.tensor(bias),
            }
        weight, bias = layers.sides[n - 1]
        tensors[f"block{n}.projection.weight"] = torch.tensor(5 * weight)
        tensors[f"block{n}.projection.bias"] = torch.tensor(5 * bias + layers.bias)
    return tensors


def midas(seed: int = 0) -> dict[str, "torch.Tensor"]:
    """dpt_hybrid-midas-501f0c75.pt at random, its last layer lifted so that depth is not all zero."""
    import torch
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    torch.manual_seed(seed)
    model = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    with torch.no_grad():
        model.scratch.output_conv[4].bias.fill_(1.0)
    return model.state_dict()
