"""Progress that suits where it is shown: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

PATIENCE = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between plain lines


class Progress:
    def __init__(self, label: str, total: int, unit: str = "images") -> None:
        self.label, self.total, self.unit, self.count = label, total, unit, 0
        self.start = self.spoke = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"{label:<9}", unit=f" {unit}", delay=PATIENCE, leave=False)

    def add(self, count: int) -> None:
        self.count += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self.start > PATIENCE and now - self.spoke > EVERY:
            self.spoke = now
            rate = self.count / (now - self.start)
            left = (self.total - self.count) / rate if rate else 0
            print(f"{self.label:<9} {self.count} of {self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
