"""Depth Pro (Bochkovskii et al. 2024): sharp depth in metres, and the angle of view that gives its scale."""

import functools

import numpy as np

from annotate import inference, pretrained
from annotate.depth import DepthNetwork, run_in_fp32
from annotate.maps import RawMap, depth_map
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder

# The weights' page names Apple's licence for its research models, which allows research alone; the
# repository of its first code, ml-depth-pro, names the one that Apple has for sample code.
LICENCE = "Apache-2.0 (code), Apple Machine Learning Research Model (weights: research only)"
REPO = "apple/DepthPro-hf"
FILES = (
    WeightFile(name="config.json", repo=REPO),
    WeightFile(name="model.safetensors", also="pytorch_model.bin", repo=REPO),
)
LEAST, MOST = 1e-4, 1e4  # 1/m: what its image processor lets a depth be


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images -> inverse depth in 1/m, at image size."""
    network = load(params["precision"], device, params.get("weights", PINNED))
    return [depth_map(each, unit="1/m") for each in inference.run(images, network, device, "depth-pro")]


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> DepthNetwork:
    """The network, once per process; every picture is pressed into its square, of 1536 pixels as published,
    and the answer is scaled back, both bilinearly, as by its image processor.

    WeightsError: a file is absent, a tensor is absent or has another shape, or no angle of view is found.
    """
    import torch
    from torch.nn.functional import interpolate

    kind = inference.dtype(precision)
    folder = find_folder(FILES, weights)
    model = pretrained.load("DepthProForDepthEstimation", folder, "depth-pro", file=find(FILES[-1], weights))
    if not model.use_fov_model:
        raise WeightsError(
            f"depth-pro: {folder / 'config.json'}: use_fov_model is off: without the angle of view its depth"
            f" has no unit; get {REPO}"
        )
    side = round(model.config.patch_size / min(model.config.scaled_images_ratios))
    model = model.to(device, kind)
    for last in (model.head.layers[4], model.fov_model.head.layers[-1]):
        run_in_fp32(last)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # the pixels are scaled as numbers, not as bytes, and without a filter against aliasing
            x = (torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() - 127.5) / 127.5
            found = model(interpolate(x, (side, side), mode="bilinear").to(kind))
            # the network's own inverse depth is that of a camera whose focal length is the picture's width
            wide = 2 * torch.tan(torch.deg2rad(found.field_of_view) / 2)
            inverse = (found.predicted_depth * wide[:, None, None])[:, None]
            scaled = interpolate(inverse, images.shape[1:3], mode="bilinear")
            return scaled[:, 0].clamp(LEAST, MOST).cpu().numpy()

    return run
