"""People with known keypoints, and the fields that a perfect OpenPose network would give for them."""

import numpy as np

from annotate.openpose import BOX, FIELDS, LIMBS, PARTS, STRIDE

SPREAD = 7.0  # standard deviation of a part's heat, network pixels, as in training
HALF_WIDTH = 8.0  # of a limb's field, network pixels: one cell

# a standing figure: x from the middle and y from the nose, in heights of a figure
FIGURE = np.array(
    [
        (0, 0),
        (0, 0.12),
        (-0.1, 0.12),
        (-0.16, 0.28),
        (-0.18, 0.42),
        (0.1, 0.12),
        (0.16, 0.28),
        (0.18, 0.42),
        (-0.07, 0.45),
        (-0.08, 0.66),
        (-0.09, 0.86),
        (0.07, 0.45),
        (0.08, 0.66),
        (0.09, 0.86),
        (-0.025, -0.025),
        (0.025, -0.025),
        (-0.055, 0),
        (0.055, 0),
    ]
)


def figure(
    x: float, y: float, height: float, rng: np.random.Generator | None = None, missing: tuple[int, ...] = ()
) -> np.ndarray:
    """float32 [18, 3] with the nose at x, y; a generator moves each joint by up to 2 % of the height; missing
    keypoints are 0.
    """
    points = np.concatenate([FIGURE * height + (x, y), np.ones((PARTS, 1))], axis=1)
    if rng is not None:
        points[:, :2] += rng.uniform(-0.02, 0.02, (PARTS, 2)) * height
    points[list(missing)] = 0
    return points.astype(np.float32)


def network_size(size: tuple[int, int], scale: float = 0.5) -> tuple[int, int]:
    """(h, w) of the network's input before padding, for an image of `size`."""
    factor = scale * BOX / size[0]
    return int(size[0] * factor), int(size[1] * factor)


def fields_of(
    people: np.ndarray, size: tuple[int, int], scale: float = 0.5
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Heat float32 [19, h, w], affinity float32 [38, h, w] and the network's size, for people [P, 18, 3] in
    an image of `size` (h, w).

    Made as the network's training targets were (Cao et al. 2017, sections 2.2 and 2.3): the highest of
    Gaussians, the mean of unit vectors.
    """
    network = network_size(size, scale)
    cells = [-(-side // STRIDE) for side in network]
    # cell i of a field sees the network's pixels STRIDE * i to STRIDE * i + STRIDE - 1
    y, x = np.indices(cells) * STRIDE + (STRIDE - 1) / 2
    factor = np.array([network[1] / size[1], network[0] / size[0]])
    points = np.concatenate([(people[..., :2] + 0.5) * factor - 0.5, people[..., 2:]], axis=-1)
    heat = np.zeros((PARTS + 1, *cells))
    affinity = np.zeros((2 * len(LIMBS), *cells))
    for part in range(PARTS):
        for px, py, seen in points[:, part]:
            if seen > 0:
                heat[part] = np.maximum(
                    heat[part], np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * SPREAD**2))
                )
    heat[PARTS] = 1 - heat[:PARTS].max(axis=0)
    for (a, b), channel in zip(LIMBS, FIELDS, strict=True):
        count = np.zeros(cells)
        for person in points:
            if person[a, 2] <= 0 or person[b, 2] <= 0:
                continue
            way = person[b, :2] - person[a, :2]
            length = max(float(np.hypot(*way)), 1e-6)
            ux, uy = way / length
            along = (x - person[a, 0]) * ux + (y - person[a, 1]) * uy
            across = np.abs((x - person[a, 0]) * uy - (y - person[a, 1]) * ux)
            inside = (along >= -HALF_WIDTH) & (along <= length + HALF_WIDTH) & (across <= HALF_WIDTH)
            affinity[channel] += ux * inside
            affinity[channel + 1] += uy * inside
            count += inside
        affinity[channel : channel + 2] /= np.maximum(count, 1)
    return heat.astype(np.float32), affinity.astype(np.float32), network
