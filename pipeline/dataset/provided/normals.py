"""Normals that come with the images, in any of the known axes, as unit vectors in our own."""

import numpy as np

from annotate.maps import RawMap
from pipeline.dataset.provided.frames import Given
from pipeline.dataset.provided.pixels import pixels

# coding -> signs that turn its x, y, z into ours: x right, y up, z to the viewer
AXES: dict[str, tuple[int, int, int]] = {
    "x right, y up, z to the viewer": (1, 1, 1),
    "x right, y down, z away": (1, -1, -1),
    "x left, y up, z to the viewer": (-1, 1, 1),  # ScanNet, StableNormal
    "x right, y down, z to the viewer": (1, -1, 1),  # Omnidata
    "cn11": (-1, 1, 1),  # our drawing: red is left, green is up, blue is to the viewer
    "cn10": (-1, 1, 1),  # the same with red and blue exchanged
}
UNEVEN = 0.2  # how far a length may be from the usual one: pictures are resized and JPEG-coded
MOST = 0.2  # share of the pixels that may be further
SLACK = 0.02  # of a number, where it is rounded


def read(given: Given) -> RawMap:
    """What is 0 0 0 is invalid: black in a picture of normals too, which no unit vector gives.

    ValueError: the numbers are no unit vectors as they are declared, or look away from the viewer.
    """
    coding = given.required("normals")
    array = pixels(given.value)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ValueError(f"a map of shape {array.shape} where 3 channels are wanted")
    array = given.frame.plane(array[..., :3])
    valid = (array[..., 0] != 0) | (array[..., 1] != 0) | (array[..., 2] != 0)
    array, exact = _numbers(given, array)
    array = array[..., :: -1 if coding == "cn10" else 1] * np.array(AXES[coding], np.float32)
    x, y, z = (array[..., axis] for axis in range(3))
    length = np.sqrt(x * x + y * y + z * z)  # np.linalg.norm along so short an axis takes five times as long
    valid &= given.valid() & np.isfinite(length)
    usual = 1.0 if exact or not valid.any() else float(np.median(_some(length)[_some(valid)]))
    valid &= length > usual / 2
    array = np.divide(array, length[..., None], out=np.zeros_like(array), where=valid[..., None])
    few = _some(valid)
    if few.any():
        _check_lengths(given, _some(array)[few], _some(length)[few], None if exact else usual)
        _check_facing(coding, _some(array)[few])
    note = _upside_down(coding, _some(array)[..., 1], few)
    array = given.frame.vectors(array)
    return RawMap("normals", array, {"note": note} if note else {})


def _some(array: np.ndarray) -> np.ndarray:
    """A sixteenth of the pixels, which tells as much of a map's coding as all."""
    return array[::4, ::4]


def _numbers(given: Given, array: np.ndarray) -> tuple[np.ndarray, bool]:
    """The stored numbers as float32 from -1 to 1, and whether their length must be one: it is in a picture.

    Numbers from -1 to 1 may be directions of any length.
    """
    if array.dtype.kind == "u":
        return array.astype(np.float32) / np.iinfo(array.dtype).max * 2 - 1, True
    array = array.astype(np.float32)
    if given.settings.values != "0 to 1":
        return array, False
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(
            f'normals from {low:.2g} to {high:.2g}, where `values: "0 to 1"` is declared: set it to "-1 to 1"'
        )
    return array * 2 - 1, True


def _check_lengths(given: Given, units: np.ndarray, length: np.ndarray, usual: float | None) -> None:
    """Directions have one length: `usual`, or None where it must be one."""
    stored = units * length[:, None] * np.array(AXES[str(given.settings.normals)], np.float32)
    if usual is not None and stored.min() >= 0:
        other = np.linalg.norm(stored * 2 - 1, axis=1)
        if np.abs(other - 1).mean() < SLACK < np.abs(length - 1).mean():
            raise ValueError(
                f"normals from 0 to 1 where -1 to 1 is meant: set `provided.{given.condition}.values` to"
                ' "0 to 1"'
            )
    share = float((np.abs(length / (usual or 1) - 1) > UNEVEN).mean())
    if share > MOST:
        raise ValueError(
            f"{share:.0%} of the normals are no unit vectors (lengths from {length.min():.2g} to"
            f" {length.max():.2g}): this is another kind of map, or `provided.{given.condition}.values` is"
            " wrong"
        )


def _check_facing(coding: str, units: np.ndarray) -> None:
    """What a camera sees faces it."""
    away = float((units[:, 2] < 0).mean())
    first = units[:, 0] * AXES[coding][0]  # the first channel of three, as it would be z
    facing = (first > -SLACK).mean() > 0.95 and first.mean() > 0.3
    if facing and AXES[coding][2] > 0 and first.mean() - units[:, 2].mean() > 0.3:
        other = {"cn11": "cn10", "x left, y up, z to the viewer": "cn10", "cn10": "cn11"}.get(coding)
        remedy = f"set `normals` to {other!r}" if other else "save the maps in the order red, green, blue"
        raise ValueError(
            f"as `normals: {coding}` reads them, the normals face sideways, and with red and blue exchanged"
            f" they would face the viewer: {remedy}"
        )
    if away > 0.5:
        signs = (*AXES[coding][:2], -AXES[coding][2])
        likely = next((name for name, axes in AXES.items() if axes == signs), None)
        likely = likely or next(name for name, axes in AXES.items() if axes[2] == signs[2])
        raise ValueError(
            f"{away:.0%} of the normals face away from the viewer as `normals: {coding}` reads them: set it"
            f" to {likely!r} if that is what they are"
        )


def _upside_down(coding: str, y: np.ndarray, valid: np.ndarray) -> str | None:
    """A doubt where the lower third of the picture faces down and nothing there is a floor."""
    lower, seen = y[-(len(y) // 3) :], valid[-(len(y) // 3) :]
    upper, above = y[: len(y) // 3], valid[: len(y) // 3]
    if not seen.any() or lower[seen].mean() > -0.3 or (above.any() and upper[above].mean() < -0.3):
        return None
    signs = (AXES[coding][0], -AXES[coding][1], AXES[coding][2])
    likely = [name for name, axes in AXES.items() if axes == signs]
    other = f": perhaps they are {likely[0]!r}" if likely else ""
    return f"the lower third faces down as `normals: {coding}` reads it{other}"
