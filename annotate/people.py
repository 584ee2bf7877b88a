"""People's keypoints, whatever found them: the order of another layout, what lies outside of the image, one
person who was found twice.
"""

from collections.abc import Sequence

import numpy as np

from annotate.skeletons import SKELETONS

SAME = 0.15  # of a person's size: two findings whose keypoints lie nearer are one person


def arranged(people: np.ndarray, names: Sequence[str], layout: str) -> np.ndarray:
    """float32 [P, len(names), 3] -> [P, K, 3] in the order of a layout; a neck that nobody found is
    mid-shoulder, as sure as the less sure shoulder. Hands and face, which stand behind the names, stay there.
    """
    found = {name: people[:, k] for k, name in enumerate(names)}
    if "neck" not in found:
        a, b = found["left_shoulder"], found["right_shoulder"]
        neck = np.concatenate([(a[:, :2] + b[:, :2]) / 2, np.minimum(a[:, 2:], b[:, 2:])], axis=1)
        found["neck"] = np.where(neck[:, 2:] > 0, neck, np.float32(0))
    joints = np.stack([found[name] for name in SKELETONS[layout].names], axis=1)
    return np.concatenate([joints, people[:, len(names) :]], axis=1).astype(np.float32)


def keep_inside(people: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [P, K, 3] without the keypoints that lie outside of an image of `size` (h, w), and without
    people who have none left.
    """
    x, y = people[..., 0], people[..., 1]
    inside = (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5) & (people[..., 2] > 0)
    return np.where(inside[..., None], people, 0)[inside.any(axis=1)].astype(np.float32)


def distinct(people: np.ndarray) -> np.ndarray:
    """Indices of the people float32 [P, K, 3], the surest first, who are nobody before them: half of the
    keypoints that both have lie farther apart than SAME of the larger one's size.
    """
    kept: list[int] = []
    for n, person in enumerate(people):
        if not any(_same(person, people[k]) for k in kept):
            kept.append(n)
    return np.array(kept, int)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    both = (a[:, 2] > 0) & (b[:, 2] > 0)
    if not both.any():
        return False
    size = max(np.hypot(*np.ptp(person[person[:, 2] > 0, :2], axis=0)) for person in (a, b))
    return bool(np.median(np.hypot(*(a - b)[both, :2].T)) < SAME * size)
