"""Depth Anything V2 (Yang et al. 2024): inverse depth from one picture, by networks of three sizes, and
metres by those that were tuned to them.
"""

import functools
from dataclasses import dataclass

import numpy as np

from annotate import inference, pretrained
from annotate.depth import DEVIATION, MEAN, DepthNetwork, from_metres, run_in_fp32
from annotate.maps import RawMap, depth_map
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder

SHORT = 518  # 37 patches of 14 pixels, as trained
PATCH = 14
FREE = "Apache-2.0 (code and weights)"
# the authors' repository gives all Base and Large networks this licence; the hub's pages of metric ones say
# Apache-2.0
NOT_COMMERCIAL = "Apache-2.0 (code), CC-BY-NC-4.0 (weights: non-commercial)"


@dataclass(frozen=True, kw_only=True)
class AnythingModel:
    """One published network; the last of its files is the weights."""

    name: str
    title: str
    licence: str
    files: tuple[WeightFile, ...]
    metric: bool = False  # it gives metres, which are turned into 1/m
    # of one image at 512 x 512: seconds, seconds on a GPU, and GB that it takes there
    cost: tuple[float, float, float]


def detect(
    model: AnythingModel,
    images: list[np.ndarray],
    params: Values,
    random_params: list[Values],
    parents: list[RawMap],
    device: str,
) -> list[RawMap]:
    """uint8 HW3 RGB images -> inverse depth at image size, up to an unknown scale and shift or in 1/m."""
    place = params.get("weights", PINNED)
    network = load(model, params["precision"], device, params["resolution"], place)
    maps = inference.run(images, network, device, f"{model.name} {params['resolution']}")
    return [from_metres(each) if model.metric else depth_map(each, unit="relative") for each in maps]


@functools.cache
def load(
    model: AnythingModel, precision: str, device: str, short: int, weights: str = PINNED
) -> DepthNetwork:
    """The network, once per process, which gives inverse depth or metres; it scales the short side to `short`
    and the answer back, both bicubically, as its authors.

    WeightsError: a file is absent or is not the pinned one, a tensor is absent or has another shape, or the
    network gives metres where inverse depth is expected, or the reverse.
    """
    import torch
    from torch.nn.functional import interpolate

    kind = inference.dtype(precision)
    folder = find_folder(model.files, weights)
    network = pretrained.load(
        "DepthAnythingForDepthEstimation", folder, model.name, file=find(model.files[-1], weights)
    )
    if problem := _other_kind(model, network.config.depth_estimation_type):
        raise WeightsError(f"{model.name}: {folder / 'config.json'}: {problem}")
    network = network.to(device, kind, memory_format=torch.channels_last)
    run_in_fp32(network.head.conv3)
    mean, deviation = (torch.tensor(each, device=device)[:, None, None] for each in (MEAN, DEVIATION))

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            height, width = images.shape[1:3]
            size = inference.detection_size(height, width, short, PATCH)
            # in bytes and on the CPU, so that its rounding is the image processor's on every device
            x = interpolate(
                torch.from_numpy(images).permute(0, 3, 1, 2), size, mode="bicubic", antialias=True
            ).to(device)
            seen = network(((x / 255 - mean) / deviation).to(kind)).predicted_depth[:, None]
            found = interpolate(seen, (height, width), mode="bicubic")
            if model.metric:  # beside edges the filter goes below all that the network said, even below zero
                found = found.maximum(seen.amin(dim=(1, 2, 3), keepdim=True))
            return found[:, 0].cpu().numpy()

    return run


def _other_kind(model: AnythingModel, told: str) -> str:
    """Why a network of this kind is not the model's; '' = it is."""
    said = f"depth_estimation_type is {told!r}: this network gives"
    if told == "metric" and not model.metric:
        return (
            f"{said} metres, which grow with the distance, in place of inverse depth; name the detector"
            " depth-anything-v2-metric-indoor or -outdoor, or get a relative one"
        )
    if told == "relative" and model.metric:
        return f"{said} inverse depth, not metres; name the detector depth-anything-v2, or get a metric one"
    return ""


def _files(repo: str, revision: str = "main", sha256: str | None = None) -> tuple[WeightFile, ...]:
    repo = f"depth-anything/Depth-Anything-V2-{repo}-hf"
    return (
        WeightFile(name="config.json", repo=repo, revision=revision),
        WeightFile(
            name="model.safetensors", also="pytorch_model.bin", sha256=sha256, repo=repo, revision=revision
        ),
    )


_SMALL, _BASE, _LARGE = (1.5, 0.03, 2.0), (4.5, 0.05, 3.0), (14.0, 0.1, 5.0)
_ROWS = (
    AnythingModel(
        name="depth-anything-v2", title="Depth Anything V2 Small", licence=FREE,
        files=_files(
            "Small", "5426e4f0f36572d16453bbda7a8389317b1bef99",
            "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        ), cost=_SMALL,
    ),
    AnythingModel(
        name="depth-anything-v2-base", title="Depth Anything V2 Base", licence=NOT_COMMERCIAL,
        files=_files("Base"), cost=_BASE,
    ),
    AnythingModel(
        name="depth-anything-v2-large", title="Depth Anything V2 Large", licence=NOT_COMMERCIAL,
        files=_files("Large"), cost=_LARGE,
    ),
    *(
        AnythingModel(
            name=f"depth-anything-v2-metric-{place}{f'-{size}'.removesuffix('-small')}",
            title=f"Depth Anything V2 {size.title()}, metres {place}s", licence=licence,
            files=_files(f"Metric-{place.title()}-{size.title()}"), metric=True, cost=cost,
        )
        for place in ("indoor", "outdoor")
        for size, licence, cost in (
            ("small", FREE, _SMALL), ("base", NOT_COMMERCIAL, _BASE), ("large", NOT_COMMERCIAL, _LARGE),
        )
    ),
)  # fmt: skip

MODELS: dict[str, AnythingModel] = {row.name: row for row in _ROWS}
