"""TensorBoard, from the rows of train.jsonl: the same numbers, as curves over images seen."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.log_file import LogRow

AXIS = ("images", "step")  # what the curves run over, and its twin


class TensorBoard:
    """Silent where tensorboard is not installed: a run needs it for nothing."""

    def __init__(
        self,
        folder: Path,
        seen: int,  # images so far; what an earlier process wrote beyond them is taken back
    ) -> None:
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print(f"tensorboard is not installed, so {folder} stays empty; train.jsonl has the same numbers")
            return
        self.writer = SummaryWriter(str(folder), purge_step=seen + 1)

    def add(self, row: LogRow) -> None:
        """At once on disk, as train.jsonl is, or a killed run would show a hole between two checkpoints."""
        if self.writer is None:
            return
        for tag, value in flatten(row):
            if tag not in AXIS:
                self.writer.add_scalar(tag, value, global_step=row["images"])
        self.writer.flush()

    def picture(
        self,
        tag: str,  # e.g. grid/canny
        array: NDArray[np.uint8],  # HWC RGB
        images: int,  # seen so far
    ) -> None:
        if self.writer is not None:
            self.writer.add_image(tag, array, global_step=images, dataformats="HWC")
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def flatten(row: Mapping[str, object], above: str = "") -> Iterator[tuple[str, float]]:
    """Tags such as held_out/canny/gap; what is not a finite number (None, text, lists) has no place on a
    curve.
    """
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{above}{name}", float(value)
