"""Label maps as pictures: flat, or with the white outlines of ControlNet 1.1."""

import functools

import numpy as np

from annotate.label_spaces import SPACES, VOID

# Alpha of a line of one point at 100 dots per inch, 1.39 pixels, that runs through the centres of pixels: its
# edge reaches 0.19 into the next pixel, and covers 0.48 of one that a diagonal passes.
BESIDE, DIAGONAL = 0.194, 0.48

# Stuff of COCO-Stuff that COCO panoptic made one class of (cocodataset.org, panoptic-eval). All other names
# are those of a panoptic class, or of none (UNDRAWN).
_MERGED = {
    "tree-merged": "branch, tree, bush, leaves",
    "fence-merged": "cage, fence, railing",
    "ceiling-merged": "ceiling-tile, ceiling-other",
    "sky-other-merged": "clouds, sky-other, fog",
    "cabinet-merged": "cupboard, cabinet",
    "table-merged": "desk-stuff, table",
    "floor-other-merged": "floor-marble, floor-other, floor-tile",
    "pavement-merged": "floor-stone, pavement",
    "mountain-merged": "hill, mountain",
    "grass-merged": "moss, grass, straw",
    "dirt-merged": "mud, dirt",
    "paper-merged": "napkin, paper",
    "food-other-merged": "salad, vegetable, food-other",
    "building-other-merged": "skyscraper, building-other",
    "rock-merged": "stone, rock",
    "wall-other-merged": "wall-other, wall-concrete, wall-panel",
    "rug-merged": "mat, rug, carpet",
}
UNDRAWN = (
    "furniture-other", "metal", "plastic", "solid-other", "structural-other", "waterdrops", "textile-other",
    "cloth", "clothes", "plant-other", "wood", "ground-other",
)  # fmt: skip


def flat(array: np.ndarray, space: str, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] RGB: each id in the colour of its label space, void black; another size takes the
    nearest pixel, so that no id is invented.

    ValueError: an unknown label space, or an id that the space does not have.
    """
    return _coloured(_ids(array, space, size), space)


def outlined(array: np.ndarray, space: str, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] RGB: class after class, the largest first, each with a white outline unless it has a
    hole; coco_stuff_171 becomes coco_panoptic_133, and what that has no class for is black like void.

    ValueError: an unknown label space, or an id that the space does not have.
    """
    ids = _ids(array, space, size)
    if space == "coco_stuff_171":
        ids, space = panoptic_of_stuff()[ids], "coco_panoptic_133"
    plain = _coloured(ids, space)
    canvas = plain.astype(np.float32)
    classes, areas = np.unique(ids[ids != VOID], return_counts=True)
    for label in classes[np.argsort(-areas, kind="stable")]:
        mask = ids == label
        canvas[mask] = plain[mask]  # over the outlines of larger classes that reach into it
        alpha = _outline(mask)
        if alpha is not None:
            touched = alpha > 0
            canvas[touched] += alpha[touched, None] * (255 - canvas[touched])
    return np.rint(canvas).astype(np.uint8)


@functools.cache
def panoptic_of_stuff() -> np.ndarray:
    """uint8 [256]: id of coco_stuff_171 -> id of coco_panoptic_133, or void."""
    panoptic = SPACES["coco_panoptic_133"].names
    merged = {name: into for into, names in _MERGED.items() for name in names.split(", ")}
    table = np.full(VOID + 1, VOID, np.uint8)
    for number, name in enumerate(SPACES["coco_stuff_171"].names):
        if name not in UNDRAWN:
            table[number] = panoptic.index(merged.get(name, name))
    return table


def _outline(mask: np.ndarray) -> np.ndarray | None:
    """float32 [h, w], how much of each pixel is white; None where the class has a hole, or is specks of one
    or two pixels.
    """
    import cv2

    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = [contour[:, 0] for contour in contours if len(contour) >= 3]
    if not polygons or (tree[0, :, 3] >= 0).any():
        return None
    line = np.zeros(mask.shape, np.uint8)
    passed = np.zeros(mask.shape, bool)  # beside a step from one pixel to the next over a corner
    for points in polygons:
        after = np.roll(points, -1, axis=0)
        line[points[:, 1], points[:, 0]] = 1
        corner = (points != after).all(axis=1)
        passed[points[corner, 1], after[corner, 0]] = passed[after[corner, 1], points[corner, 0]] = True
    near = cv2.dilate(line, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    alpha = near * np.float32(BESIDE)
    alpha[passed] = DIAGONAL
    alpha[line > 0] = 1
    return np.asarray(alpha)


def _ids(array: np.ndarray, space: str, size: tuple[int, int]) -> np.ndarray:
    import cv2

    if space not in SPACES:
        raise ValueError(f"unknown label space {space!r}; known: {', '.join(SPACES)}")
    count = len(SPACES[space].names)
    beyond = array[(array >= count) & (array != VOID)]
    if beyond.size:
        raise ValueError(
            f"{space} has no id {beyond.max()}; its ids are 0 to {count - 1}, and {VOID} for void"
        )
    if array.shape != size:
        array = cv2.resize(array, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return array.astype(np.uint8, copy=False)  # none is beyond VOID


def _coloured(ids: np.ndarray, space: str) -> np.ndarray:
    import cv2

    table = np.zeros((VOID + 1, 3), np.uint8)
    table[: len(SPACES[space].colours)] = SPACES[space].colours
    return cv2.LUT(cv2.merge([ids, ids, ids]), table[None])
