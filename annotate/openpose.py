"""OpenPose's body keypoints (Cao et al. 2017, part affinity fields) by the network and the rules that
ControlNet used.
"""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from annotate import inference
from annotate.drawing import scale_points
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.skeletons import SKELETONS
from annotate.weights import PINNED, WeightFile, WeightsError, find, tensors

WEIGHTS = WeightFile(
    name="body_pose_model.pth",
    sha256="25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746",
    repo="lllyasviel/Annotators",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
)
LAYOUT = "openpose_18"
PARTS = 18
# the drawn limbs, then the two that only help to assemble: shoulder to ear on the right and on the left
LIMBS = (*SKELETONS[LAYOUT].limbs, (2, 16), (5, 17))
DRAWN = len(SKELETONS[LAYOUT].limbs)
# each limb's x component among 38; y is the next
FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
STRIDE = 8  # network pixels per cell of a field
BOX = 368  # rows of the image at scale 1
GREY = 128  # fills the network's input up to a multiple of STRIDE
SIGMA = 3.0  # of the smoothing in which peaks are sought, pixels of the detection size
SAMPLES = 10  # points along a limb where its field is read
MOST_PEAKS = 127  # of one part, the strongest; OpenPose's own limit of people (POSE_MAX_PEOPLE)

# heat float32 [18 or 19, h, w] and affinity float32 [38, h, w], one cell per STRIDE pixels
Fields = tuple[np.ndarray, np.ndarray]


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> people [P, 18, 3]; confidence is the height of the heat map at the
    peak, at most 1.
    """
    forward = load(params["precision"], device, params.get("weights", PINNED))
    whole = inference.at_resolution(images, params["resolution"])
    sizes = [(each.shape[0], each.shape[1]) for each in whole]
    seen = [shrink(each, params["scale"]) for each in whole]
    fields = inference.run([pad(image) for image in seen], forward, device, f"openpose {params['precision']}")
    maps = []
    for image, size, smaller, (heat, affinity) in zip(images, sizes, seen, fields, strict=True):
        height, width = image.shape[:2]
        people = decode(heat, affinity, size, (smaller.shape[0], smaller.shape[1]), params)
        moved = scale_points(people[..., :2], size, (height, width)).clip(0, (width - 1, height - 1))
        people[..., :2] = np.where(people[..., 2:] > 0, moved, 0)
        maps.append(RawMap("people", people, {"size": [height, width], "layout": LAYOUT}))
    return maps


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> Callable[[np.ndarray], Sequence[Fields]]:
    """The network, once per process: uint8 [n, h, w, 3] RGB, sides multiples of STRIDE -> the fields of each
    image.

    WeightsError: the file is absent, is not the pinned one, or lacks a tensor of this network.
    """
    import torch

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        # the library tells what it lacks for detectors that are not used here
        warnings.simplefilter("ignore")
        from controlnet_aux.open_pose.model import bodypose_model

    kind = inference.dtype(precision)
    place = find(WEIGHTS, weights)
    stored = tensors(place)
    with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
        network = bodypose_model()
    # the file names a layer without the block that it stands in
    named = {name: name.split(".", 1)[1] for name in network.state_dict()}
    absent = [inner for inner in named.values() if inner not in stored]
    if absent:
        raise WeightsError(
            f"{place} lacks {absent[0]}: it holds no weights of OpenPose's body network; get others"
        )
    network.load_state_dict({name: stored[inner] for name, inner in named.items()}, assign=True)
    network = network.to(device, kind, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def forward(images: np.ndarray) -> list[Fields]:
        with torch.inference_mode():
            # BGR of -0.5 to 0.5, (n, 3, h, w) seen through channels-last memory
            x = (
                (torch.from_numpy(images).to(device).flip(-1).float() / 256 - 0.5)
                .to(kind)
                .permute(0, 3, 1, 2)
            )
            affinity, heat = (each.float().cpu().numpy() for each in network(x))
        return list(zip(heat, affinity, strict=True))

    return forward


def shrink(image: np.ndarray, scale: float) -> np.ndarray:
    """uint8 HW3 at the height that the network sees, BOX * scale; by area, or by Lanczos where it grows."""
    height, width = image.shape[:2]
    factor = scale * BOX / height
    return _resize(image, (max(int(height * factor), 1), max(int(width * factor), 1)))


def pad(image: np.ndarray) -> np.ndarray:
    """Grey on the right and below, up to multiples of STRIDE."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), constant_values=GREY)


def decode(
    heat: np.ndarray, affinity: np.ndarray, size: tuple[int, int], network: tuple[int, int], params: Values
) -> np.ndarray:
    """Fields -> people float32 [P, 18, 3] at `size` (h, w); `network` is the size of the network's input
    before padding.

    The published rules (controlnet_aux Body.__call__), with two differences: pixels that tie make one peak
    and not several, and a part has at most MOST_PEAKS peaks. A shoulder that leads to another ear than the
    nose did still takes that ear, as theirs does. ValueError where a field is not finite.
    """
    if not (np.isfinite(heat).all() and np.isfinite(affinity).all()):
        raise ValueError("the network's fields have values that are not finite")
    shrinks = sum(size) < sum(network)
    rows, smooth_rows = _enlarging(heat.shape[1], network[0], size[0], shrinks)
    cols, smooth_cols = _enlarging(heat.shape[2], network[1], size[1], shrinks)
    parts = find_peaks(smooth_rows @ heat[:PARTS] @ smooth_cols.T, params["peak_threshold"])
    peaks = []
    for part, (x, y) in enumerate(parts):
        peaks.append(np.stack([x, y, ((rows[y] @ heat[part]) * cols[x]).sum(axis=1)], axis=1))
    limbs = [
        connect(peaks[a], peaks[b], affinity[c : c + 2], rows, cols, params["limb_threshold"])
        for (a, b), c in zip(LIMBS, FIELDS, strict=True)
    ]
    return assemble(peaks, limbs, params["min_parts"], params["min_score"])


def find_peaks(smooth: np.ndarray, threshold: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """x and y of the pixels above the threshold that no neighbour of four exceeds, in reading order; float
    [parts, h, w] -> one pair per part.
    """
    top = smooth > threshold
    # a tie goes to the first in reading order; outside the picture nothing exceeds
    top[:, :, 1:] &= smooth[:, :, 1:] > smooth[:, :, :-1]
    top[:, :, :-1] &= smooth[:, :, :-1] >= smooth[:, :, 1:]
    top[:, 1:] &= smooth[:, 1:] > smooth[:, :-1]
    top[:, :-1] &= smooth[:, :-1] >= smooth[:, 1:]
    part, y, x = np.unravel_index(np.flatnonzero(top), smooth.shape)
    height = smooth[part, y, x]
    peaks = []
    for k in range(len(smooth)):
        mine = np.flatnonzero(part == k)
        strongest = np.sort(mine[np.argsort(-height[mine], kind="stable")[:MOST_PEAKS]])
        peaks.append((x[strongest], y[strongest]))
    return peaks


def connect(
    a: np.ndarray, b: np.ndarray, field: np.ndarray, rows: np.ndarray, cols: np.ndarray, threshold: float
) -> list[Any]:
    """Pairs (index in a, index in b, score), surest first, each peak in one pair at most; field float32 [2,
    h, w] points from a to b.

    The score is the field's mean along the line, less what makes a limb longer than half the image's height
    unlikely.
    """
    if not len(a) or not len(b):
        return []
    i, j = (index.ravel() for index in np.indices((len(a), len(b))))
    way = b[j, :2] - a[i, :2]
    length = np.maximum(np.hypot(*way.T), 0.001)
    points = np.rint(np.linspace(a[i, :2], b[j, :2], SAMPLES, axis=1)).astype(int).reshape(-1, 2)
    x, y = points.T
    values = np.stack([((rows[y] @ each) * cols[x]).sum(axis=1) for each in field], axis=1)
    along = np.einsum("nsc,nc->ns", values.reshape(-1, SAMPLES, 2), way / length[:, None])
    score = along.mean(axis=1) + np.minimum(0.5 * len(rows) / length - 1, 0)
    good = np.flatnonzero(((along > threshold).sum(axis=1) > 0.8 * SAMPLES) & (score > 0))
    pairs: list[Any] = []
    taken_a, taken_b = set(), set()
    for n in good[np.argsort(-score[good], kind="stable")]:
        if i[n] not in taken_a and j[n] not in taken_b:
            pairs.append((int(i[n]), int(j[n]), float(score[n])))
            taken_a.add(i[n])
            taken_b.add(j[n])
    return pairs


def assemble(peaks: list[np.ndarray], limbs: list[list[Any]], min_parts: int, min_score: float) -> np.ndarray:
    """People float32 [P, 18, 3] out of the limbs, in order of their first limb; few parts or a low mean score
    make no person.
    """
    people: list[_Person] = []
    for k, ((a, b), pairs) in enumerate(zip(LIMBS, limbs, strict=True)):
        for i, j, score in pairs:
            # two at most
            sharing = [person for person in people if person.peaks[a] == i or person.peaks[b] == j]
            if len(sharing) == 2 and not ((sharing[0].peaks >= 0) & (sharing[1].peaks >= 0)).any():
                first, second = sharing
                first.peaks = np.maximum(first.peaks, second.peaks)
                first.parts += second.parts
                first.score += second.score + score
                people = [person for person in people if person is not second]
            elif sharing:
                # two that can't be one: the first takes the part; a limb that one person has already adds
                # nothing
                person = sharing[0]
                if len(sharing) == 2 or person.peaks[b] != j:
                    person.peaks[b] = j
                    person.parts += 1
                    person.score += peaks[b][j, 2] + score
            elif k < DRAWN:
                person = _Person(peaks[a][i, 2] + peaks[b][j, 2] + score)
                person.peaks[a], person.peaks[b] = i, j
                people.append(person)
    kept = [
        person for person in people if person.parts >= min_parts and person.score / person.parts >= min_score
    ]
    keypoints = np.zeros((len(kept), PARTS, 3), np.float32)
    for n, person in enumerate(kept):
        for part in np.flatnonzero(person.peaks >= 0):
            x, y, height = peaks[part][person.peaks[part]]
            keypoints[n, part] = x, y, np.clip(height, 1e-6, 1)
    return keypoints


class _Person:
    """A growing person: the index of each part's peak or -1, how many parts were added, and the sum of peaks
    and limbs.
    """

    def __init__(self, score: float) -> None:
        self.peaks = np.full(PARTS, -1)
        self.parts = 2
        self.score = score


@functools.lru_cache(maxsize=256)
def _enlarging(cells: int, network: int, side: int, shrinks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Matrices float32 [side, cells] that enlarge one axis of a field as the published code does: alone, and
    with the smoothing.

    Lanczos to network pixels, off with the padding, Lanczos or area to the image: all of it is linear and
    separable, and so is the Gaussian, so that one product of small matrices replaces three passes over large
    maps, and a value that is needed at one point costs one dot product.
    """
    from scipy.ndimage import gaussian_filter1d

    fine = _resize(np.eye(cells, dtype=np.float32), (cells * STRIDE, cells))[:network]
    plain = _resize(fine, (side, cells), shrinks)
    return plain, gaussian_filter1d(plain.astype(np.float64), SIGMA, axis=0).astype(np.float32)


def _resize(array: np.ndarray, size: tuple[int, int], shrinks: bool | None = None) -> np.ndarray:
    """At (height, width): by area where the sum of the sides shrinks, else Lanczos."""
    import cv2

    shrinks = sum(size) < sum(array.shape[:2]) if shrinks is None else shrinks
    return cv2.resize(
        array, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    )
