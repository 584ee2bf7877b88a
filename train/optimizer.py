"""The optimizers: AdamW, and the same with its two moments in eight bits."""

import importlib.util
from collections.abc import Sequence

from torch import nn, optim

from train.options import Options


def make(
    # float32, on the device; those of an 8-bit optimizer are made contiguous
    parameters: Sequence[nn.Parameter],
    options: Options,
    lr: float,
) -> optim.Optimizer:
    """AdamW keeps 8 bytes a parameter, and its 8-bit form (Dettmers et al. 2022) 2.03; tensors under 4096
    values stay in float32.
    """
    if options.optimizer == "adamw":
        return optim.AdamW(parameters, lr=lr, weight_decay=options.weight_decay, fused=True)
    absent = lacking(options.optimizer)
    if absent is not None:
        raise ValueError(absent)
    import bitsandbytes

    # bitsandbytes does so at its first step, too late: the moments, made before, would lie in another order
    # than the weights.
    for parameter in parameters:
        parameter.data = parameter.data.contiguous()
    return bitsandbytes.optim.AdamW8bit(parameters, lr=lr, weight_decay=options.weight_decay)


# what to install, in a sentence without its full stop; None = it works here
def lacking(optimizer: str) -> str | None:
    if optimizer == "adamw" or importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return (
        f"optimizer: {optimizer} needs the package bitsandbytes: `pip install 'controlmill[lean]'`, or set"
        " optimizer to adamw"
    )
