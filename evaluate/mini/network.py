"""The two towers of the mini scorer, contrastive as CLIP's (arXiv 2103.00020), and the words
that it reads.
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NOTHING, UNKNOWN = 0, 1  # numbers of no word and of a word that no caption of the training had
WORD = re.compile(r"[a-z]+|[0-9]+|;")  # a semicolon parts the objects from the figure and the room


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the weights fit."""

    side: int = 128  # pixels; a multiple of 32
    # of the convolutions, at a half, a quarter, ... of the side
    widths: tuple[int, ...] = (24, 48, 96, 128, 160)
    features: int = 64  # few, so that 640 images are enough for a Frechet distance
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    length: int = 96  # words of the longest caption
    width: int = 128  # of both embeddings


def words_of(captions: Iterable[str]) -> tuple[str, ...]:
    """Sorted, so that their numbers do not depend on the captions' order."""
    return tuple(sorted({word for caption in captions for word in WORD.findall(caption.lower())}))


class Scorer(nn.Module):
    """Pictures and captions => points on one sphere; near each other where a caption tells what a picture
    shows.
    """

    def __init__(self, words: Sequence[str], sizes: Sizes) -> None:
        super().__init__()
        self.words, self.sizes = tuple(words), sizes
        self.numbers = {word: number for number, word in enumerate(words, UNKNOWN + 1)}
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # log of the inverse temperature
        self.trunk = nn.Sequential(
            nn.Conv2d(3, sizes.widths[0], 5, stride=2, padding=2),
            *itertools.starmap(DownBlock, itertools.pairwise(sizes.widths)),
            nn.Conv2d(sizes.widths[-1], sizes.features, 1),
        )
        self.image = nn.Linear(sizes.features * (sizes.side >> len(sizes.widths)) ** 2, sizes.width)
        self.word = nn.Embedding(UNKNOWN + 1 + len(words), sizes.text_width, padding_idx=NOTHING)
        self.place = nn.Parameter(0.02 * torch.randn(sizes.length, sizes.text_width))
        layer = nn.TransformerEncoderLayer(
            sizes.text_width,
            sizes.heads,
            4 * sizes.text_width,
            0.0,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.reader = nn.TransformerEncoder(
            layer, sizes.text_layers, nn.LayerNorm(sizes.text_width), enable_nested_tensor=False
        )
        self.text = nn.Linear(sizes.text_width, sizes.width)
        nn.init.normal_(self.word.weight, std=0.02)

    def cells(
        self,
        images: Tensor,  # [B, 3, s, s] in -1..1
    ) -> Tensor:  # [B, features, s/32, s/32]
        return nn.functional.silu(self.trunk(images))

    def of_cells(self, cells: Tensor) -> Tensor:  # [B, width] unit length
        """Not of their mean: captions say what stands left and right."""
        return nn.functional.normalize(self.image(cells.flatten(1)).float(), dim=1)

    def of_texts(
        self,
        numbers: Tensor,  # [B, T] int64, see `numbered`
    ) -> Tensor:  # [B, width] unit length
        empty = numbers == NOTHING
        x = self.reader(self.word(numbers) + self.place[: numbers.shape[1]], src_key_padding_mask=empty)
        there = (~empty)[..., None].to(x.dtype)
        return nn.functional.normalize(self.text((x * there).sum(1) / there.sum(1)).float(), dim=1)

    def numbered(
        self,
        captions: Sequence[str],
        length: int | None = None,  # of each row; None = of the longest caption
    ) -> Tensor:  # [N, T] int64
        """ValueError where a caption has no words or too many, because it would then be scored for what it
        does not say.
        """
        rows = [
            [self.numbers.get(word, UNKNOWN) for word in WORD.findall(caption.lower())]
            for caption in captions
        ]
        for caption, row in zip(captions, rows, strict=True):
            if not 0 < len(row) <= self.sizes.length:
                raise ValueError(
                    f"the caption {caption!r} has {len(row)} words: the mini scorer reads from 1 to"
                    f" {self.sizes.length}"
                )
        length = length or max(map(len, rows))
        return torch.tensor([row + [NOTHING] * (length - len(row)) for row in rows], dtype=torch.int64)


class DownBlock(nn.Module):
    """Half the size, then two convolutions around which the input is carried."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.carry = nn.Conv2d(before, after, 1)
        self.body = nn.Sequential(
            nn.GroupNorm(8, before),
            nn.Conv2d(before, after, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(x, 2)
        return self.carry(x) + self.body(x)
