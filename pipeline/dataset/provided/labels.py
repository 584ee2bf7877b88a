"""Label maps that come with the images: ids of a published coding, checked against its codebook."""

from pathlib import Path

import numpy as np

from annotate import label_spaces
from annotate.conditions import CONDITIONS
from annotate.label_spaces import SOURCES, SPACES, VOID
from annotate.maps import RawMap
from pipeline.dataset.provided import coco, files
from pipeline.dataset.provided.frames import Given
from pipeline.dataset.provided.pixels import one_channel, pixels

LACKING = (
    0.001  # share of a map that may have ids which its coding lacks: they become void, and the row says so
)
MUCH_VOID = 0.5  # of a map, from which on the row says so: ADE20K's and COCO-Stuff's own have a tenth
# beginnings of the names of classes that lie high, and low, in most photographs
HIGH = ("sky", "ceiling", "cloud")
LOW = ("floor", "road", "sidewalk", "pavement", "ground", "earth", "runway", "playingfield")


def read(given: Given) -> RawMap:
    """Ids of the space that the coding belongs to, void 255; what is doubtful about them is in the note.

    ValueError: a lossy format, a picture in colours, or ids that the coding lacks.
    """
    doubts: list[str] = []
    coding = given.required("labels")
    space, row = SOURCES[coding], CONDITIONS[given.condition]
    if space not in row.label_spaces:
        raise ValueError(f"{given.condition} takes labels of {' or '.join(row.label_spaces)}, not of {space}")
    if isinstance(given.value, coco.Record):
        array = given.frame.plane(coco.labels(given.value, space, _png))
    else:
        stored = given.frame.plane(one_channel(pixels(given.value, ids=True), "labels"))
        array, doubts = _translate(stored, coding, row.label_spaces)
    valid = given.valid()
    array = np.where(valid, array, VOID).astype(np.uint8)
    void = float((array[valid] == VOID).mean()) if valid.any() else 0.0
    if void > MUCH_VOID:
        doubts.append(f"more than half of the map is void as `labels: {coding}` reads it")
    raw = RawMap("labels", array, {"label_space": space})
    if doubts:
        raw.meta["note"] = "; ".join(doubts)
    return raw


def _png(path: Path) -> np.ndarray:
    return pixels(files.read_file(path), ids=True)


def _translate(stored: np.ndarray, coding: str, spaces: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Ids of the coding's space, and what is doubtful; ValueError where another coding must be meant."""
    if stored.dtype.kind not in "iu":
        raise ValueError(f"labels are integers, not {stored.dtype.name}")
    doubts: list[str] = []
    others = [name for name, space in SOURCES.items() if space in spaces and name != coding]
    present = np.flatnonzero(np.bincount(stored.ravel())) if stored.dtype == np.uint8 else np.unique(stored)
    unknown = bool(label_spaces.lacking(present, coding).any())
    if unknown:
        lacking = label_spaces.lacking(stored, coding)
        ids, counts = np.unique(stored[lacking], return_counts=True)
        sentence = (
            f"{coding} has no id {ids[counts.argmax()]}: {counts.sum() / stored.size:.2%} of the map are ids"
            " that it lacks"
        )
        likely = [name for name in others if not label_spaces.lacking(present, name).any()]
        if likely:
            raise ValueError(f"{sentence}, and {likely[0]} has them all: set `labels` to what the maps are")
        if lacking.mean() > LACKING:
            raise ValueError(f"{sentence}; set `labels` to what the maps are")
        doubts.append(f"{sentence}; they became void")
        stored = np.where(lacking, VOID, stored)
    array = label_spaces.translate(stored, coding)
    if other := _other_way_up(stored[::4, ::4], coding, others):
        doubts.append(
            f"floors lie high or the sky low as `labels: {coding}` reads the map, and not as {other} would"
        )
    if coding == "ade20k_png" and VOID in present and not unknown:
        doubts.append(f"it has the id {VOID}, which ade20k_png does not use and ade20k_150 has for void")
    if coding == "coco_stuff_png" and present.min() >= 92 and present.max() <= 183:
        doubts.append("it has stuff alone, as coco_stuff_pixelmaps has, whose ids are one higher")
    return array, doubts


def _other_way_up(stored: np.ndarray, coding: str, others: list[str]) -> str | None:
    """The coding that would put the sky above and the ground below, where this one does the reverse."""
    own = _uprightness(label_spaces.translate(stored, coding), SOURCES[coding])
    if own > -0.03:
        return None
    for name in others:
        if not label_spaces.lacking(stored, name).any():
            other = _uprightness(label_spaces.translate(stored, name), SOURCES[name])
            if other > max(0.0, own + 0.06):
                return name
    return None


def _uprightness(array: np.ndarray, space: str) -> float:
    """How far classes of the sky lie above the middle, and those of the ground below it; from -0.5 to 0.5."""
    weights = np.zeros(256, np.float32)
    for number, name in enumerate(SPACES[space].names):
        weights[number] = name.startswith(HIGH) * 1.0 - name.startswith(LOW)
    height = np.linspace(0.5, -0.5, len(array), dtype=np.float32)
    return float((weights[array] * height[:, None]).mean())
