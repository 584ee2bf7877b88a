"""Pictures with captions in a folder of parts: rendered once, read as memory maps ever after."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pictures:
    """The order is that of the parts' names; picture i + len(captions) is picture i mirrored."""

    parts: tuple[NDArray[np.uint8], ...]  # NHWC RGB each
    captions: tuple[str, ...]
    mirrored: tuple[str, ...]  # captions of the mirrored pictures

    def __len__(self) -> int:
        return 2 * len(self.captions)

    @property
    def side(self) -> int:
        return int(self.parts[0].shape[1])

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:  # [N, s, s, 3]
        """Copies, mirrored where the index says so."""
        ends = np.cumsum([len(part) for part in self.parts])
        out = np.empty((len(indices), self.side, self.side, 3), np.uint8)
        for image, index in zip(out, indices, strict=True):
            flip, i = divmod(int(index), len(self.captions))
            part = int(np.searchsorted(ends, i, side="right"))
            picture = self.parts[part][i - ends[part]]
            image[:] = picture[:, ::-1] if flip else picture
        return out

    def caption(self, index: int) -> str:
        """Left and right are swapped with the picture."""
        flip, i = divmod(index, len(self.captions))
        return (self.mirrored if flip else self.captions)[i]


def read(folder: Path) -> Pictures:
    """All complete parts; ValueError where there is none."""
    names = sorted(folder.glob("*.json"))
    if not names:
        raise ValueError(f"{folder} holds no pictures: render them first")
    rows = [json.loads(name.read_text()) for name in names]
    parts = tuple(np.load(name.with_suffix(".npy"), mmap_mode="r") for name in names)
    for name, part, row in zip(names, parts, rows, strict=True):
        if len(part) != len(row["captions"]):
            raise ValueError(
                f"{name} has {len(row['captions'])} captions for {len(part)} pictures: delete the part and"
                " render it again"
            )
    return Pictures(
        parts, *(tuple(text for row in rows for text in row[key]) for key in ("captions", "mirrored"))
    )


def has_part(folder: Path, name: str) -> bool:
    """The captions are written last."""
    return (folder / f"{name}.json").is_file()


def write_part(
    folder: Path,
    name: str,
    # picture [s, s, 3], its caption, the caption of its mirror image
    rows: Iterable[tuple[NDArray[np.uint8], str, str]],
) -> int:  # pictures
    """A part is there as a whole or not at all. ValueError: `rows` has no picture."""
    images, captions, mirrored = [], [], []
    for image, caption, other in rows:
        images.append(image)
        captions.append(caption)
        mirrored.append(other)
    if not images:
        raise ValueError(
            f"part {name} of {folder} would be empty: ask for less of the pictures, or for more of them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / f".tmp-{name}-{os.getpid()}"
    with work.open("wb") as file:
        np.save(file, np.stack(images))
    work.rename(folder / f"{name}.npy")
    work.write_text(json.dumps({"captions": captions, "mirrored": mirrored}))
    work.rename(folder / f"{name}.json")
    return len(images)
