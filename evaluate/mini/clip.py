"""The mini scorer as the measures use it: pictures and captions in, points on one sphere out."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from evaluate.extractors import Images, together
from evaluate.mini.network import NOTHING, UNKNOWN, Scorer, Sizes
from evaluate.mini.note import NAME, NOTE, VERSION, WEIGHTS, described
from evaluate.weights import file_sha256

BATCH = 32  # rows at a time; bounds memory, changes no result beyond rounding


@dataclass(frozen=True)
class MiniClip:
    """`clip_score (mini-clip)` and `fd (mini features)`; it knows rendered scenes only."""

    net: Scorer
    sha256: str  # of the weights
    device: str = "cpu"
    name: str = NAME
    version: str = VERSION

    def images(self, images: Images) -> NDArray[np.float32]:  # RGB, of any sizes => [N, d] unit length
        return self._pictured(images, self.net.of_cells, self.net.sizes.width)

    def features(self, images: Images) -> NDArray[np.float32]:  # RGB, of any sizes => [N, f]
        """Means of the last map over its cells, as FID takes Inception's: what a picture shows,
        hardly where.
        """
        return self._pictured(images, lambda cells: cells.mean((2, 3)), self.net.sizes.features)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:  # [N, d] unit length
        """ValueError for a caption without words or with too many."""
        return batched(
            self.net.numbered(texts, self.net.sizes.length),
            self.net.of_texts,
            self.device,
            self.net.sizes.width,
        )

    def known(self, texts: Sequence[str]) -> NDArray[np.float64]:  # [N]
        """Share of each caption's words that it has learned; a score of a caption that has few of them says
        nothing.
        """
        numbers = self.net.numbered(texts).numpy()
        return (numbers > UNKNOWN).sum(1) / (numbers > NOTHING).sum(1)

    def _pictured(self, images: Images, then: Callable[[Tensor], Tensor], width: int) -> NDArray[np.float32]:
        def encode(some: Tensor) -> Tensor:
            return then(self.net.cells(scaled(some, self.net.sizes.side) / 127.5 - 1))

        encoded = [batched(batch, encode, self.device, width) for batch in together(images, BATCH)]
        return np.concatenate([np.zeros((0, width), np.float32), *encoded])


def scaled(
    images: Tensor,  # [N, h, w, 3] uint8
    side: int,
) -> Tensor:  # [N, 3, side, side] float32 0..255
    """CLIP's way: the shorter side by an antialiased bicubic, then the middle square."""
    x = images.permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    if min(height, width) != side:
        size = [max(side, round(one * side / min(height, width))) for one in (height, width)]
        x = functional.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    return x[:, :, top : top + side, left : left + side]


@torch.inference_mode()
def batched(
    rows: NDArray[np.uint8] | Tensor,  # [N, ...]: uint8 pictures [N, h, w, 3], or numbers of words
    encode: Callable[[Tensor], Tensor],
    device: str,
    width: int,  # of what comes out, which no rows must tell too
) -> NDArray[np.float32]:  # [N, width]
    """ValueError for pictures in floats or with their channels first, which would give numbers too, and wrong
    ones.
    """
    if isinstance(rows, np.ndarray) and (rows.dtype != np.uint8 or rows.ndim != 4 or rows.shape[-1] != 3):
        raise ValueError(f"images must be uint8 [N, h, w, 3], found {rows.dtype} {list(rows.shape)}")
    out = [np.zeros((0, width), np.float32)]
    for first in range(0, len(rows), BATCH):
        some = torch.tensor(np.asarray(rows[first : first + BATCH]))  # a copy: a memory map can't be written
        out.append(encode(some.to(device)).float().cpu().numpy())
    return np.concatenate(out)


def write(
    net: Scorer,
    folder: Path,
    facts: Mapping[str, Any],  # JSON-able: how it was made, what it scores
) -> None:
    """bfloat16 weights; the note beside them has their hash, so the two can't be taken from different
    trainings.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.to(torch.bfloat16).contiguous() for name, value in net.state_dict().items()},
        folder / WEIGHTS,
    )
    note = {"sha256": file_sha256(folder / WEIGHTS), "sizes": asdict(net.sizes), "words": net.words, **facts}
    (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n")


def read(folder: Path, device: str = "cpu") -> MiniClip:
    """ValueError where the weights are not those that the note describes."""
    from safetensors.torch import load_file

    note = described(folder)
    net = Scorer(note["words"], Sizes(**{**note["sizes"], "widths": tuple(note["sizes"]["widths"])}))
    net.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return MiniClip(net.eval().requires_grad_(False).to(device), note["sha256"], device)
