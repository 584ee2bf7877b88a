"""Attention of timm's transformers one head at a time: for bf16 on a CPU without AMX, where torch's fused
attention is slower in bf16 than in fp32.

A head's products go to the matrix instructions that AVX512-BF16 has, which the fused attention leaves unused.
Of MiDaS's DPT-Hybrid at 512 (1025 tokens, 12 heads, one thread) a layer's attention took 57 ms fused, in fp32
44 ms, and by heads 33 ms; the depth was no further from fp32 than before.
"""

from types import MethodType
from typing import TYPE_CHECKING

from annotate import inference

if TYPE_CHECKING:
    import torch
    from timm.layers import Attention


def by_heads(model: "torch.nn.Module") -> None:
    """Give every attention of a bf16 model on the CPU this way to compute, unless the CPU has AMX."""
    from timm.layers import Attention

    if "amx_bf16" in inference.cpu_flags():
        return
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.forward = MethodType(attend, layer)  # type: ignore[method-assign]


def attend(
    layer: "Attention", x: "torch.Tensor", attn_mask: None = None, is_causal: bool = False
) -> "torch.Tensor":
    """[n, tokens, width] -> the same shape; the layer's own projections, without masks, gates and norms of
    queries, which no network here has.
    """
    import torch

    assert attn_mask is None and not is_causal
    images, tokens, _ = x.shape
    parts = layer.qkv(x).reshape(images, tokens, 3, layer.num_heads, layer.head_dim)
    queries, keys, values = parts.unbind(2)
    seen = torch.empty_like(values)
    for image in range(images):
        for head in range(layer.num_heads):
            scores = (queries[image, :, head] * layer.scale) @ keys[image, :, head].T
            seen[image, :, head] = scores.softmax(-1) @ values[image, :, head]
    projected: torch.Tensor = layer.proj(seen.flatten(2))
    return projected
