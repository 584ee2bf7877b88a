"""User sketches from HED by the paper's four random steps: threshold, masking of strokes, morphology,
non-maximum suppression.

Every draw of an image is stored, and a draw names no pixel of that image: strokes are masked by a field of
random numbers over the picture plane, so the same draw masks the same places of another image.
"""

import random

import numpy as np

from annotate.maps import RawMap
from annotate.parameters import Values

SHORTEST = 8  # pixels of a stroke
CELLS = 24  # the masking field has CELLS x CELLS values
# What the morphology is drawn from, by the pen. With none, strokes are as wide as they are found, and half of
# the sketches are dilated or closed by `width`; until there were pens all sketches were made so.
MORPHOLOGIES = {
    "none": ("none", "dilate", "close", "erode"),
    "round": ("none", "close"),
    "blurred": ("none",),
}
SIGMA, LEVEL, WIDTH = 3.0, 4, 13  # ControlNet 1.0's blur and threshold: they make 13 pixels of a line of one
# ControlNet 1.0's scribble: non-maximum suppression at 127, blur 3, over 4, and no random number
PUBLISHED: Values = {"pen": "blurred", "threshold": 127, "thin": 1.0, "masked": 0.0, "width": WIDTH}


def draw_params(params: Values, rng: random.Random) -> Values:
    """All four draws of one image."""
    drawn = {
        "threshold": _whole(params["threshold"], rng),
        "thin": rng.random() < params["thin"],
        "sigma": round(rng.uniform(1.0, 3.0), 3),
        "masked": round(_real(params["masked"], rng), 4),
        "mask_seed": rng.randrange(2**31),
        "morphology": rng.choice(MORPHOLOGIES[params["pen"]]),
        "width": _whole(params["width"], rng),
    }
    return drawn | {"sigma": SIGMA} if params["pen"] == "blurred" else drawn


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """Soft edges of the parents -> strokes in {0, 255} of the same size."""
    return [
        RawMap("edges", sketch(parent.array, drawn, params["pen"]))
        for parent, drawn in zip(parents, random_params, strict=True)
    ]


def sketch(soft: np.ndarray, drawn: Values, pen: str = "none") -> np.ndarray:
    """uint8 [h, w] soft edges, one draw and how strokes get their width -> uint8 [h, w] in {0, 255}.

    Lengths are drawn for a short side of 512 and scale with it.
    """
    import cv2

    scale = min(soft.shape) / 512
    edge = cv2.GaussianBlur(soft.astype(np.float32), (0, 0), 0.8 * scale)  # less jagged outlines
    # faint images keep their strongest strokes
    wide = edge >= min(drawn["threshold"], 0.9 * float(edge.max()))
    ridge = wide & ridges(cv2.GaussianBlur(edge, (0, 0), drawn["sigma"] * scale))
    if pen == "blurred":
        ridge = suppressed(soft, drawn["threshold"], drawn["sigma"] * scale)
    kept = mask_strokes(ridge if drawn["thin"] else wide, ridge, drawn["masked"], drawn["mask_seed"])
    if pen == "blurred":
        return _blurred(kept, scale, drawn["width"])
    size = max(1, round(drawn["width"] * scale))
    if pen == "round":
        kept = _inked(kept, ridge, size, drawn["thin"])
        size = (size + 1) // 2  # closing gaps as wide as the pen would fill whole areas
    strokes = kept.astype(np.uint8) * 255
    return MORPHOLOGY[drawn["morphology"]](strokes, _disc(size), drawn["thin"])


def suppressed(soft: np.ndarray, threshold: float, sigma: float) -> np.ndarray:
    """ControlNet 1.0's `nms` (annotator/util.py): bool [h, w], where the blurred edges are over the threshold
    and the largest of their three in one of the four directions.
    """
    import cv2

    smooth = cv2.GaussianBlur(soft.astype(np.float32), (0, 0), sigma)
    return np.any([cv2.dilate(smooth, line) == smooth for line in _lines()], axis=0) & (smooth > threshold)


def _inked(strokes: np.ndarray, ridge: np.ndarray, size: int, thin: bool) -> np.ndarray:
    """Every stroke `size` pixels wide along its ridge; a wide one as wide as it was found, but not under
    three quarters of that.
    """
    import cv2

    kept = (ridge & strokes).astype(np.uint8)
    full, least = (cv2.dilate(kept, _disc(each)) > 0 for each in (size, -(-3 * size // 4)))
    return full if thin else (strokes & full) | least


def _blurred(strokes: np.ndarray, scale: float, width: int) -> np.ndarray:
    """ControlNet 1.0's pen (gradio_scribble.py), wider and narrower by one factor for blur and threshold."""
    import cv2

    factor = scale * width / WIDTH
    soft = cv2.GaussianBlur(strokes.astype(np.uint8) * 255, (0, 0), SIGMA * factor)
    return np.where(soft > LEVEL / factor, np.uint8(255), np.uint8(0))


def ridges(smooth: np.ndarray) -> np.ndarray:
    """Pixels that are the largest of their three in one of the four directions, and not just along a crest:
    bool [h, w].
    """
    import cv2

    return np.any(
        [
            (cv2.dilate(smooth, line) == smooth) & (cv2.erode(smooth, line) < 0.99 * smooth)
            for line in _lines()
        ],
        axis=0,
    )


def _lines() -> tuple[np.ndarray, ...]:
    """Three pixels in each of the four directions."""
    across, down = np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8)
    across[1, :], down[:, 1] = 1, 1
    return np.eye(3, dtype=np.uint8), np.fliplr(np.eye(3, dtype=np.uint8)), across, down


def _disc(size: int) -> np.ndarray:
    import cv2

    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))


def mask_strokes(strokes: np.ndarray, ridge: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Take away about `share` of the strokes; a stroke is a piece of ridge between junctions, and wide
    strokes go with their ridge.
    """
    import cv2

    if share <= 0 or not ridge.any():
        return strokes
    crowd = cv2.filter2D(
        ridge.astype(np.uint8), cv2.CV_8U, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT
    )
    # a pixel with four neighbours or more is a junction; ridges are up to two pixels wide
    pieces = (ridge & (crowd <= 4)).astype(np.uint8)
    _, piece_of, stats, centres = cv2.connectedComponentsWithStats(pieces, connectivity=8)
    pieces[stats[piece_of, cv2.CC_STAT_AREA] < SHORTEST] = 0  # a splinter goes with its neighbour
    if not pieces.any():
        return strokes
    height, width = ridge.shape
    chance = np.array(random.Random(seed).choices(range(1000), k=CELLS * CELLS)).reshape(CELLS, CELLS) / 1000
    rows = (centres[:, 1] * CELLS / height).astype(int).clip(0, CELLS - 1)
    columns = (centres[:, 0] * CELLS / width).astype(int).clip(0, CELLS - 1)
    gone = chance[rows, columns] < share
    # every pixel belongs to the nearest piece
    _, nearest = cv2.distanceTransformWithLabels(1 - pieces, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    piece_at = np.zeros(int(nearest.max()) + 1, np.int64)
    piece_at[nearest[pieces > 0]] = piece_of[pieces > 0]
    return strokes & ~gone[piece_at[nearest]]


def _dilate(strokes: np.ndarray, kernel: np.ndarray, thin: bool) -> np.ndarray:
    import cv2

    return cv2.dilate(strokes, kernel)


def _close(strokes: np.ndarray, kernel: np.ndarray, thin: bool) -> np.ndarray:
    import cv2

    return cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, kernel)


def _erode(strokes: np.ndarray, kernel: np.ndarray, thin: bool) -> np.ndarray:
    """Wide strokes get leaner but don't vanish; thin ones are as they are."""
    import cv2

    return strokes if thin else cv2.erode(strokes, _disc(3))


def _none(strokes: np.ndarray, kernel: np.ndarray, thin: bool) -> np.ndarray:
    return strokes


MORPHOLOGY = {"none": _none, "dilate": _dilate, "close": _close, "erode": _erode}


def _whole(value: int | list[int], rng: random.Random) -> int:
    return rng.randint(*value) if isinstance(value, list) else value


def _real(value: float | list[float], rng: random.Random) -> float:
    return rng.uniform(*value) if isinstance(value, list) else value
