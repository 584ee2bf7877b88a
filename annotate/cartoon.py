"""Line drawings by the extended difference of Gaussians (Winnemöller 2012), guided along the edges' flow
(Kang 2007).
"""

import numpy as np

from annotate.maps import RawMap
from annotate.parameters import Values


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB -> white lines on black, at image size."""
    return [RawMap("edges", line_drawing(image, params)) for image in images]


def line_drawing(image: np.ndarray, params: Values) -> np.ndarray:
    """uint8 [h, w, 3] RGB -> uint8 [h, w] in {0, 255}; lengths are for a short side of 512."""
    import cv2

    scale = min(image.shape[:2]) / 512
    smooth = image
    for _ in range(2):  # texture goes, contours stay
        smooth = cv2.bilateralFilter(smooth, 0, 18, 3 * scale)
    light = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB)[..., 0].astype(np.float32) / 255
    along = flow(light, 4 * scale)
    sigma = params["sigma"] * scale
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    wide = _blur_along(light, across, 1.6 * sigma)
    # the sharpened difference: (1 + p) G_sigma - p G_1.6 sigma, blurred along the flow so that lines cohere
    sharpened = wide + (1 + params["sharpness"]) * (_blur_along(light, across, sigma) - wide)
    sharpened = _blur_along(sharpened, along, 3 * sigma)
    dark = wide - sharpened  # how much darker than its surroundings, in units of lightness
    strong, weak = dark > params["threshold"], dark > params["threshold"] / 2
    return _clean(_grow(strong, weak), round(params["min_stroke"] * scale))


def flow(light: np.ndarray, sigma: float) -> np.ndarray:
    """Unit vectors x, y along the edges: the minor eigenvector of the smoothed structure tensor, float32 [h,
    w, 2].
    """
    import cv2

    gx, gy = (cv2.Sobel(light, cv2.CV_32F, dx, dy, ksize=3) for dx, dy in ((1, 0), (0, 1)))
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), sigma) for product in (gx * gx, gy * gy, gx * gy))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.float32(np.pi / 2)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _blur_along(values: np.ndarray, direction: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of samples on the straight line through each pixel along `direction`."""
    import cv2

    height, width = values.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    total, weights = values.copy(), 1.0
    step = max(1.0, sigma / 2)
    for k in range(1, int(np.ceil(2 * sigma / step)) + 1):
        weight = float(np.exp(-0.5 * (k * step / sigma) ** 2))
        weights += 2 * weight
        for offset in (k * step, -k * step):
            at_x, at_y = (
                x + np.float32(offset) * direction[..., 0],
                y + np.float32(offset) * direction[..., 1],
            )
            total += weight * cv2.remap(
                values, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
    return total / np.float32(weights)


def _grow(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """Weak lines that touch a strong one (Canny's hysteresis)."""
    import cv2

    _, piece = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    keep = np.zeros(int(piece.max()) + 1, bool)
    keep[piece[strong & weak]] = True
    keep[0] = False
    return keep[piece]


def _clean(lines: np.ndarray, smallest: int) -> np.ndarray:
    """Without specks of fewer than `smallest` pixels, white on black."""
    import cv2

    count, piece, stats, _ = cv2.connectedComponentsWithStats(lines.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return np.where(keep[piece], np.uint8(255), np.uint8(0)) if count > 1 else np.zeros(lines.shape, np.uint8)
