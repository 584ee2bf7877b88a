"""The joints of a figure: it is cut out, scaled to one size, and read by a network of its own."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from annotate.mini.network import JointNetwork

SIDE = 96  # of the picture that a figure is cut out to
FILL = 0.85  # share of it that the figure's longer side has
SURE = 0.25  # of a joint; hidden ones are learned as 0.5


class Cut(NamedTuple):
    """A pixel of the picture lies at scale * pixel + shift of the cut."""

    picture: np.ndarray  # uint8 [SIDE, SIDE, 3]
    scale: float
    shift: np.ndarray  # float64 [2]: x, y

    def moved(self, joints: np.ndarray) -> np.ndarray:  # float32 [18, 3]
        """From the picture into the cut; what falls outside is nowhere."""
        out = joints.copy()
        out[:, :2] = joints[:, :2] * self.scale + self.shift
        out[(joints[:, 2] == 0) | (out[:, :2] < 0).any(axis=1) | (out[:, :2] > SIDE - 1).any(axis=1)] = 0
        return out

    def returned(self, joints: np.ndarray) -> np.ndarray:  # float32 [18, 3]
        """From the cut into the picture."""
        out = joints.copy()
        out[:, :2] = np.where(joints[:, 2:] > 0, (joints[:, :2] - self.shift) / self.scale, 0)
        return out


def cut(
    picture: np.ndarray,  # uint8 HW3
    mask: np.ndarray,  # bool [h, w]: where the figure is; somewhere it must be
    *,
    fill: float = FILL,
    # x, y by which it lies beside the middle, in shares of its longer side
    aside: tuple[float, float] = (0.0, 0.0),
) -> Cut:
    """Beyond the frame its last pixels are repeated."""
    import cv2

    (top, bottom), (left, right) = (
        (where[0], where[-1]) for where in (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    )
    longer = max(right - left, bottom - top) + 1
    scale = SIDE * fill / longer
    middle = np.array([(left + right) / 2 + aside[0] * longer, (top + bottom) / 2 + aside[1] * longer])
    shift = (SIDE - 1) / 2 - scale * middle
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return Cut(
        cv2.warpAffine(
            picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        float(scale),
        shift,
    )


# float32 [18, 3]: x, y in pixels of the picture, confidence
def read(net: "JointNetwork", picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch

    one = cut(picture, mask)
    with torch.inference_mode():
        pixels = (
            torch.from_numpy(one.picture).permute(2, 0, 1)[None].to(next(net.parameters()).device).float()
            / 127.5
            - 1
        )
        spots = torch.sigmoid(net(pixels)[0].float()).cpu().numpy()
    return one.returned(find_joints(spots, (SIDE, SIDE)))


def find_joints(
    spots: np.ndarray,  # float [18, h / 2, w / 2] in 0..1 of the picture that the network saw
    size: tuple[int, int],  # width, height of the picture that was given
) -> np.ndarray:  # float32 [18, 3]
    """The highest cell, and the mean of its neighbourhood for what lies between cells."""
    out = np.zeros((len(spots), 3), np.float32)
    scale = np.array(size) / spots.shape[:0:-1]
    for one, spot in zip(out, spots, strict=True):
        row, column = np.unravel_index(spot.argmax(), spot.shape)
        if spot[row, column] < SURE:
            continue
        near = np.s_[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        y, x = (float((spot[near] * axis[near]).sum() / spot[near].sum()) for axis in np.indices(spot.shape))
        one[:2] = (np.array([x, y]) + 0.5) * scale - 0.5
        one[2] = spot[row, column]
    return out
