"""Which colour a point has in even light: patterns of floors, walls and bodies."""

import numpy as np

from pipeline.scenes.bodies import SOLIDS, Part
from pipeline.scenes.props import Surface


def surface(place: np.ndarray, surface: Surface, look: str, noise: np.ndarray) -> np.ndarray:
    """float32 [N, 3] RGB of points of a floor or wall in metres along and across."""
    a, b = place[:, 0], place[:, 1]
    first, second = (np.array(c, np.float32) for c in surface.looks[look])
    strength, *period = surface.grain
    cells = _floor(a / period[0]) * 57 + _floor(b / period[1]) * 1117
    bright = 1 + np.float32(strength) * noise[cells & 4095]
    seam = np.zeros(len(a), bool)
    if surface.cell[0]:
        row, column, within, across = _cells(a, b, surface, noise)
        seam = np.minimum(within, surface.cell[0] - within) < surface.seam / 2
        if surface.cell[1]:
            seam |= np.minimum(across, surface.cell[1] - across) < surface.seam / 2
        bright += np.float32(surface.tones / 2) * noise[(column * 71 + row * 313) & 4095]
        if surface.chequered:
            colour = np.where(((column + row) & 1)[:, None] == 1, second, first) * bright[:, None]
            colour[seam] = 0.45
            return colour
    colour = first * bright[:, None]
    colour[seam] = second
    return colour


def _cells(
    a: np.ndarray, b: np.ndarray, surface: Surface, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each point's cell, and the metres from its beginning along and across."""
    row = _floor(b / surface.cell[1]) if surface.cell[1] else np.zeros(len(b), np.int32)
    moved = a - surface.cell[0] * row_shift(row, surface, noise)
    column = _floor(moved / surface.cell[0])
    return row, column, moved - column * surface.cell[0], b - row * surface.cell[1]


def row_shift(row: np.ndarray, surface: Surface, noise: np.ndarray) -> np.ndarray:
    """By which share of a cell each row is moved."""
    return noise[(row * 37) & 4095] if surface.shift < 0 else np.float32(surface.shift) * (row & 1)


def pattern(place: np.ndarray, part: Part) -> np.ndarray:
    """float32 [N, 3] RGB of points of a body in its own space."""
    pattern, first, second, _ = part.paint
    x, y, z = place.T
    other = np.zeros(len(place), bool)
    if pattern == "striped":
        other = _floor(y * 2.5 + 0.25) & 1 == 1
    elif pattern == "checked":
        if part.form == "box":
            around = _floor(x * 1.2 + 0.27) + _floor(z * 1.2 + 0.27)
        elif part.form == "pyramid":
            around = _floor(np.where(np.abs(x) > np.abs(z), z, x) * 2.5)
        else:
            around = _floor(np.arctan2(z, x) * (3 / np.pi))
        other = (around + _floor(y * (1.4 if part.form in SOLIDS else 2.0) + 0.27)) & 1 == 1
    elif pattern == "head":
        other = (z < -0.1) | (y > 0.5)
    colour = np.where(other[:, None], np.float32(second), np.float32(first))
    if pattern == "head":
        colour[((np.abs(x) - 0.37) ** 2 + (y - 0.15) ** 2 < 0.035) & (z > 0)] = 0.08
        colour[(np.abs(x) < 0.3) & (np.abs(y + 0.48) < 0.07) & (z > 0)] = (0.6, 0.15, 0.15)
    return colour


def _floor(x: np.ndarray) -> np.ndarray:
    return np.floor(x).astype(np.int32)
