"""The same values by the field's libraries: what `controlmill verify --rescore N --libraries` compares.

torchmetrics gives SSIM, MS-SSIM, F1, confusion matrices, the kernel of KID and the CLIP score; clean-fid the
Fréchet distance; pycocotools, if it is installed, COCO's keypoint AP and AR.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate import oks
from evaluate.alignment import DualEncoder
from evaluate.comparison import Map
from evaluate.labels import VOID

Pair = tuple[Map, Map]  # the map that an image was made from, the map that was read from it
MS_SSIM_SIDE = 161  # pixels, below which torchmetrics refuses five scales


class NoLibrary(LookupError):
    """No library computes this; the message says why."""


@dataclass(frozen=True)
class LibraryValue:
    value: float
    library: str  # name and version


def of_sample(metric: str, truth: Map, made: Map) -> LibraryValue:
    """One sample's value of a measure of level "sample". NoLibrary where no library has it."""
    if metric not in _OF_SAMPLE:
        raise NoLibrary("no library has this measure")
    nothing = VOID if truth.meta.get("label_space") else 0
    if (made.array == nothing).all() and (truth.array != nothing).any():
        raise NoLibrary("a map that was read again empty scores the worst here, whatever a library says")
    return LibraryValue(_OF_SAMPLE[metric](truth.array, made.array), _named("torchmetrics"))


def of_set(metric: str, pairs: Sequence[Pair]) -> LibraryValue:
    """A measure of level "set" over all samples, each of which was read. NoLibrary where none has it."""
    if metric in _OF_CONFUSION:
        matrix = sum(_confusion(truth.array, made.array) for truth, made in pairs)
        return LibraryValue(_OF_CONFUSION[metric](np.asarray(matrix)), _named("torchmetrics"))
    if metric == "edge_f1_pooled":
        arrays = [np.concatenate([pair[side].array.ravel() for pair in pairs]) for side in (0, 1)]
        return LibraryValue(_f1(*arrays), _named("torchmetrics"))
    if metric in _COCO_STATS:
        return LibraryValue(_keypoint_stats(pairs)[_COCO_STATS[metric]], _named("pycocotools"))
    raise NoLibrary("no library has this measure")


def frechet(made: NDArray[np.float32], real: NDArray[np.float32]) -> LibraryValue:  # [n, d], [m, d]
    """The Fréchet distance of two sets of features by clean-fid.

    NoLibrary: clean-fid calls what the installed SciPy does not have.
    """
    from cleanfid.fid import frechet_distance

    moments = [part for rows in (made, real) for part in (rows.mean(0), np.cov(rows, rowvar=False))]
    try:
        return LibraryValue(float(frechet_distance(*moments)), _named("clean-fid"))
    except TypeError as error:
        raise NoLibrary(f"clean-fid calls what this SciPy lacks ({error})") from error


def kernel(
    made: NDArray[np.float32],  # [n, d]
    of_made: NDArray[np.int64],  # [n]: number of each sample's prompt
    real: NDArray[np.float32],  # [m, d]
    of_real: NDArray[np.int64],
) -> LibraryValue:
    """KID's kernel by torchmetrics, averaged over all pairs of different prompts."""
    import torch
    from torchmetrics.image.kid import poly_kernel

    def mean(a: NDArray[np.float32], of_a: Any, b: NDArray[np.float32], of_b: Any) -> float:
        first, second = (torch.from_numpy(rows.astype(np.float64)) for rows in (a, b))
        gram = poly_kernel(first, second).numpy()
        return float(gram[of_a[:, None] != of_b[None, :]].mean())

    value = (
        mean(made, of_made, made, of_made)
        + mean(real, of_real, real, of_real)
        - 2 * mean(made, of_made, real, of_real)
    )
    return LibraryValue(value, _named("torchmetrics"))


def clip_score(encoder: DualEncoder, image: NDArray[np.uint8], caption: str) -> LibraryValue:
    """torchmetrics' score with this encoder in place of a model from the hub, which torchmetrics 1.9 can't
    call with transformers 5: it takes the pictures and texts, the cosine is the library's.
    """
    import torch
    from torchmetrics.functional.multimodal import clip_score as theirs

    asked: Any = _Encoder(encoder)
    picture = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return LibraryValue(float(theirs([picture], [caption], lambda: (asked, asked))), _named("torchmetrics"))


class _Encoder:
    """Model and processor at once, as torchmetrics calls them, over one of our encoders."""

    config = None

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder, self.texts = encoder, [""]

    def to(self, device: Any) -> "_Encoder":
        return self

    def __call__(self, *, images: Any = None, text: Any = None, **more: Any) -> dict[str, Any]:
        import torch

        if images is not None:
            return {"pixel_values": torch.stack(images)}
        self.texts = list(text)
        ones = torch.ones(len(self.texts), 1, dtype=torch.int64)
        return {"input_ids": ones, "attention_mask": ones}

    def get_image_features(self, pixels: Any) -> Any:
        import torch

        return torch.from_numpy(self.encoder.images(list(pixels.numpy().transpose(0, 2, 3, 1))))

    def get_text_features(self, ids: Any, mask: Any) -> Any:
        import torch

        return torch.from_numpy(self.encoder.texts(self.texts))


def _tensor(array: np.ndarray) -> Any:
    """uint8 [h, w] -> float64 [1, 1, h, w] in 0..1."""
    import torch

    return torch.from_numpy(array.astype(np.float64) / 255)[None, None]


def _ssim(truth: np.ndarray, made: np.ndarray) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    value: Any = structural_similarity_index_measure(_tensor(made), _tensor(truth), data_range=1.0)
    return float(value)


def _ms_ssim(truth: np.ndarray, made: np.ndarray) -> float:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as theirs

    if min(truth.shape) < MS_SSIM_SIDE:
        raise NoLibrary(f"torchmetrics refuses MS-SSIM below {MS_SSIM_SIDE} pixels")
    return float(theirs(_tensor(made), _tensor(truth), data_range=1.0))


def _f1(truth: np.ndarray, made: np.ndarray) -> float:
    import torch
    from torchmetrics.functional.classification import binary_f1_score

    found, true = (torch.from_numpy((array > 0).astype(np.int64)).ravel() for array in (made, truth))
    return float(binary_f1_score(found, true, zero_division=1.0))


def _confusion(truth: np.ndarray, made: np.ndarray) -> NDArray[np.int64]:  # [VOID + 1, VOID + 1]
    """Pixels by class of the truth and class read; those without a class in the truth are left out."""
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix as theirs

    seen = truth != VOID
    found, true = (torch.from_numpy(array[seen].astype(np.int64)) for array in (made, truth))
    return theirs(found, true, num_classes=VOID + 1).numpy().astype(np.int64)


def _accuracy(matrix: NDArray[np.int64]) -> float:
    return float(np.trace(matrix) / matrix.sum()) if matrix.any() else 1.0


def _miou(matrix: NDArray[np.int64]) -> float:
    """Over the classes that occur; torchmetrics' own macro average has another rule for the others."""
    both = np.diag(matrix)
    union = (matrix.sum(0) + matrix.sum(1) - both)[:VOID]
    occurs = union > 0
    return float((both[:VOID][occurs] / union[occurs]).mean()) if occurs.any() else 1.0


_OF_SAMPLE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "soft_ssim": _ssim,
    "edge_ssim": _ssim,
    "soft_ms_ssim": _ms_ssim,
    "edge_ms_ssim": _ms_ssim,
    "edge_f1": _f1,
    "pixel_accuracy": lambda truth, made: _accuracy(_confusion(truth, made)),
    "miou_sample": lambda truth, made: _miou(_confusion(truth, made)),
}
_OF_CONFUSION = {"miou": _miou, "pixel_accuracy_pooled": _accuracy}
# place in COCOeval's stats for keypoints; its sizes are of square pixels at another scale than ours
_COCO_STATS = {"people_ap": 0, "people_ap50": 1, "people_ap75": 2, "people_ar": 5}


def _keypoint_stats(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    import contextlib
    import io

    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise NoLibrary("pycocotools is not installed: pip install 'controlmill[coco]'") from error

    true, found = COCO(), []
    annotations: list[dict[str, Any]] = []
    for number, (truth, made) in enumerate(pairs, start=1):
        for person in oks.coco(truth, "truth"):
            box = {"id": len(annotations) + 1, "bbox": [0.0, 0.0, 1.0, 1.0]}
            annotations.append(_annotation(person, number) | box)
        (height, width), (h, w) = truth.meta["size"], made.meta["size"]
        scale = np.array([width / w, height / h, 1], np.float32)
        found += [_annotation(person * scale, number) for person in oks.coco(made, "made")]
    true.dataset = {
        "images": [{"id": number} for number in range(1, len(pairs) + 1)],
        "annotations": annotations,
        "categories": [{"id": 1}],
    }
    if not found or not annotations:
        raise NoLibrary("nobody is in the pictures, or nobody was found")
    with contextlib.redirect_stdout(io.StringIO()):
        true.createIndex()
        evaluation = COCOeval(true, true.loadRes(found), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def _annotation(person: NDArray[np.float32], image: int) -> dict[str, Any]:  # [17, 3]
    """As COCO's files have it."""
    visible = person[:, 2] > 0
    return {
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": [float(value) for x, y, c in person for value in (x, y, 2 if c > 0 else 0)],
        "num_keypoints": int(visible.sum()),
        "area": oks.area(person),
        "score": float(person[visible, 2].mean()),
    }


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
