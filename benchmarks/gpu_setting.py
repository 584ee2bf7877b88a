"""Where a part of benchmarks/gpu.py runs, and how long it may."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    device: str  # cpu | cuda
    tiny: bool
    folder: Path  # empty; goes when the part ends
    until: float  # time.monotonic() at which it should have ended

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def shape(self) -> str:  # a key of benchmarks.shapes.SHAPES
        return "tiny" if self.tiny else "sd15"

    @property
    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())


Tell = Callable[[dict[str, Any]], None]  # gets all that was found so far
Row = dict[str, Any]
