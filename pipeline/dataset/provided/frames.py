"""Where a map lies on its image: turned as EXIF turns the image, cropped and scaled with it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.dataset.images import Placement
from pipeline.dataset.provided.pixels import UNLIKE, one_channel, pixels
from pipeline.manifest import Provided

STRETCH = 0.05  # share by which a canvas of keypoints may have another aspect ratio than the image

# EXIF orientation -> whether rows and columns change places, then whether rows, and columns, are reversed
TURNS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """How a map's own frame is carried over to the canonical image."""

    to: Placement
    orientation: int = 1  # a key of TURNS: what turns the map's frame upright

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the raw image in the map's frame."""
        height, width = self.to.raw
        return (width, height) if TURNS[self.orientation][0] else (height, width)

    def upright(self, array: np.ndarray) -> np.ndarray:
        """[h, w] or [h, w, channels] of the map's frame, turned."""
        transposed, rows, columns = TURNS[self.orientation]
        array = array.swapaxes(0, 1) if transposed else array
        return array[:: -1 if rows else 1, :: -1 if columns else 1]

    def plane(self, array: np.ndarray) -> np.ndarray:
        """The canonical part of [h, w] or [h, w, channels] that covers the raw image in the map's frame.

        Nearest neighbour: no label and no depth is ever blended. ValueError: it covers something else.
        """
        import cv2

        to, array = self.to, self.upright(array)
        height, width = array.shape[:2]
        # another aspect ratio by more than a pixel
        if abs(height * to.raw[1] - width * to.raw[0]) > max(height, width, *to.raw):
            raise ValueError(
                f"the map has {width}×{height} pixels, its image {to.raw[1]}×{to.raw[0]}: they don't cover"
                " the same"
            )
        y, x = height / to.raw[0], width / to.raw[1]
        rows = slice(round(to.top * y), round((to.top + to.height) * y))
        columns = slice(round(to.left * x), round((to.left + to.width) * x))
        array = np.ascontiguousarray(array[rows, columns])
        if array.shape[:2] == to.size:
            return array
        wide = array.astype(np.float32) if array.dtype not in (np.uint8, np.uint16, np.float32) else array
        return cv2.resize(wide, to.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(array.dtype)

    def points(self, xy: np.ndarray) -> np.ndarray:
        """float [..., 2] pixels x, y of the raw image in the map's frame -> of the canonical image."""
        transposed, rows, columns = TURNS[self.orientation]
        (height, width), to = self.to.raw, self.to
        x, y = (xy[..., 1], xy[..., 0]) if transposed else (xy[..., 0], xy[..., 1])
        x, y = width - 1 - x if columns else x, height - 1 - y if rows else y
        scale_x, scale_y = to.size[1] / to.width, to.size[0] / to.height
        return np.stack(
            [(x - to.left + 0.5) * scale_x - 0.5, (y - to.top + 0.5) * scale_y - 0.5], axis=-1
        ).astype(np.float32)

    def vectors(self, normals: np.ndarray) -> np.ndarray:
        """float [h, w, 3] of the upright map: x right, y up of the map's frame -> of the upright image."""
        if self.orientation == 1:
            return normals
        transposed, rows, columns = TURNS[self.orientation]
        x, y, z = np.moveaxis(normals, 2, 0)
        x, y = (-y, -x) if transposed else (x, y)
        return np.stack([-x if columns else x, -y if rows else y, z], axis=2)


@dataclass(frozen=True)
class Given:
    """One map as its source gave it, and all that says how it is read."""

    condition: str
    settings: Provided
    value: Any  # bytes, the numbers of a cell or their JSON, or a coco.Record
    frame: Frame
    mask: np.ndarray | None = None  # bool [h, w] in the map's frame: False = invalid

    def required(self, key: str) -> str:
        """The coding that the manifest names under the key; ValueError where it is left out."""
        coding = getattr(self.settings, key)
        if coding is None:
            raise ValueError(f"provided.{self.condition}: set `{key}` to what the numbers mean")
        return str(coding)

    def grey(self, what: str) -> np.ndarray:
        """[h, w] at the canonical size; `what` the numbers are."""
        return self.frame.plane(one_channel(pixels(self.value), what, UNLIKE))

    def valid(self) -> np.ndarray:
        """bool [h, w] at the canonical size: where the mask does not call the map invalid."""
        if self.mask is None:
            return np.ones(self.frame.to.size, bool)
        return self.frame.plane(self.mask.astype(np.uint8)) > 0

    def on_image(self, xy: np.ndarray, canvas: tuple[int, int] | None) -> np.ndarray:
        """float [n, 2] x, y, as pixels of the raw image in the map's frame, from pixels of a canvas (height,
        width) that covers the same, or from fractions of it; None: the image itself.

        ValueError: not finite, or it can't be told what they count, or the canvas covers something else.
        """
        if not np.isfinite(xy).all():
            raise ValueError("a coordinate is not a finite number")
        height, width = self.frame.size
        tall, wide = canvas or (height, width)
        if min(tall, wide) <= 0 or abs(tall * width / (wide * height) - 1) > STRETCH:
            raise ValueError(
                f"the coordinates are of a canvas of {wide}×{tall} pixels, the image has {width}×{height}:"
                " they don't cover the same"
            )
        if self._fractions(xy):
            return xy * [width, height] - 0.5
        return (xy + 0.5) * [width / wide, height / tall] - 0.5

    def _fractions(self, xy: np.ndarray) -> bool:
        """Whether coordinates are fractions of the image: as declared, or because no pixels lie like that."""
        most = float(np.abs(xy).max(initial=0))
        match self.settings.coordinates:
            case "pixels":
                return False
            case "fractions" if most > 2:
                raise ValueError(
                    f"`coordinates: fractions`, and one is {most:g}: set it to `pixels`, or leave it out"
                )
            case "fractions":
                return True
        if not len(xy) or most > 2:
            return False
        spread = len(np.unique(xy, axis=0)) > 1 and (xy % 1).any()
        if most > 1 or xy.min() < 0 or not spread:
            raise ValueError(
                f"the coordinates go to {most:g} at most, so they may be pixels or fractions: set"
                f" `provided.{self.condition}.coordinates` to `pixels` or `fractions`"
            )
        return True
