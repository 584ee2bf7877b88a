"""Pairs read from their shards as training asks for them: many at a time, each shard opened once for all."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import MillError
from pipeline.dataset.maps import OF_MAP, read_maps
from pipeline.experiment.addresses import PairAddress, PairAddresses
from pipeline.experiment.packing import unpack
from pipeline.storage import shards
from pipeline.storage.workspace import Workspace

if TYPE_CHECKING:
    from train.batches import Draw, Pair

MOMENTS, TEXT = ("mean", "std"), "text"
ENCODE = "run the stage encode; `controlmill sql` shows in `texts` whether it failed"
ROW = 2**32 - 1  # of a place, below the part
Asked = dict[tuple[str, tuple[str, ...]], set[int]]  # shard and columns -> rows


class ShardPairs:
    """train.batches.Pairs over shards; drawing a hint happens here, so training reads what the catalog
    stores.
    """

    def __init__(self, workspace: Workspace, addresses: PairAddresses, empty_text: np.ndarray) -> None:
        self.workspace, self.addresses, self.empty_text = workspace, addresses, empty_text
        self.ids, self.sizes = addresses.ids, addresses.sizes

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardPairs, (self.workspace, self.addresses, self.empty_text)

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, index: int) -> "Pair":
        from train.batches import Draw

        return self.read([Draw(index)])[0]

    def read(self, draws: Sequence["Draw"]) -> "list[Pair]":
        """The pairs of the draws, in their order; MillError where a shard is missing or broken."""
        chosen = [*self._chosen(draws)]
        rows = {
            (shard, columns): shards.read_rows(self.workspace.root / shard, numbers, [*columns])
            for (shard, columns), numbers in _asked(chosen).items()
        }
        wanted: dict[tuple[str, str], list[int]] = {}  # condition and shard of maps -> rows
        for it in chosen:
            for condition, shard in it.address.maps.items():
                wanted.setdefault((condition, shard), []).append(it.address.row)
        maps = {
            (condition, shard): read_maps(self.workspace, shard, numbers, condition)
            for (condition, shard), numbers in wanted.items()
        }
        return [self._pair(it, rows, maps) for it in chosen]

    def ahead(self, draws: Sequence["Draw"]) -> None:
        """Has what `read` will want on its way: objects of a bucket, and pages of files."""
        chosen = [*self._chosen(draws)]
        asked = _asked(chosen)
        for it in chosen:
            for shard in it.address.maps.values():
                asked.setdefault((shard, OF_MAP), set()).add(it.address.row)
        for (shard, columns), rows in asked.items():
            shards.ahead(self.workspace.root / shard, rows, columns)

    def _chosen(self, draws: Sequence["Draw"]) -> Iterator["_Chosen"]:
        for draw, address in zip(draws, self.addresses.take([it.index for it in draws]), strict=True):
            yield _Chosen(self.workspace, self.addresses.encoder, draw, address)

    def _pair(self, it: "_Chosen", rows: dict[Any, Any], maps: dict[Any, Any]) -> "Pair":
        from annotate import flips
        from annotate.maps import render
        from train.batches import Pair

        address = it.address
        stored = rows[it.latents][address.row]
        # earlier shards have no mirror image where a caption would have been wrong of it
        mirror = it.mirror and stored["mean_mirrored"] is not None
        mean, std = (stored[f"{name}_mirrored" if mirror else name] for name in MOMENTS)
        if it.dropped:
            text = self.empty_text
        elif it.text is None:
            if stored[TEXT] is None:
                raise MillError(f"The caption of image {it.address.image_id} is not encoded: {ENCODE}.")
            text = unpack((stored["text_mirrored"] if mirror else None) or stored[TEXT])
        else:
            shard, row = it.text_of(it.twin if mirror and it.twin is not None else it.text)
            text = unpack(rows[shard, (TEXT,)][row][TEXT])
        hints = {}
        for condition, shard in address.maps.items():
            made = maps[condition, shard][address.row]
            hints[condition] = render(flips.flip(made) if mirror else made)
        return Pair(image_id=address.image_id, mean=unpack(mean), std=unpack(std), text=text, hints=hints)


class _Chosen:
    """What one draw takes of its pair: which text, and whether the mirror image, which is there only where
    the chosen text is true of it.
    """

    def __init__(self, workspace: Workspace, encoder: str, draw: "Draw", address: PairAddress) -> None:
        self.workspace, self.encoder, self.address = workspace, encoder, address
        turn = draw.text(len(address.texts))
        self.text = address.texts[turn] if address.texts else None
        self.twin = address.mirrored_texts[turn] if address.mirrored_texts else None
        self.mirror = draw.mirrored and (self.text is None or self.twin is not None)
        self.dropped = draw.dropped

    @property
    def latents(self) -> tuple[str, tuple[str, ...]]:
        columns = MOMENTS + ((TEXT,) if self.text is None else ())
        mirrored = (f"{name}_mirrored" for name in (columns if self.mirror else ()))
        return self.address.latents, (*columns, *mirrored)

    def text_of(self, place: int) -> tuple[str, int]:
        return self.workspace.relative(self.workspace.texts(self.encoder, place >> 32)), place & ROW


def _asked(chosen: Sequence[_Chosen]) -> Asked:
    """Of latents and texts."""
    asked: Asked = {}
    for it in chosen:
        asked.setdefault(it.latents, set()).add(it.address.row)
        for place in () if it.dropped or it.text is None else {it.text, it.twin if it.mirror else it.text}:
            if place is not None:
                shard, row = it.text_of(place)
                asked.setdefault((shard, (TEXT,)), set()).add(row)
    return asked
