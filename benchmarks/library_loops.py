"""What a user of a detector's own library writes in a loop: a row for each detector, which
`benchmarks/annotate.py` compares with ours on the same weights.

A new detector is one row: how its library is called, and who writes weights of its true architecture where
the published ones are out of reach (the arithmetic of a layer does not depend on its numbers).
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import weights

Loop = Callable[[np.ndarray], Any]  # one image, uint8 HW3 RGB -> the PIL picture that its user saves


@dataclass(frozen=True, kw_only=True)
class Row:
    """A detector beside its library."""

    detector: str
    condition: str
    library: str
    load: Callable[[Path, str], Loop]  # folder with the weights, device
    # writes the weights into a folder; True = of a tiny network, where the library can make one
    write: Callable[[Path, bool], None] | None = None
    params: dict[str, Any] = field(default_factory=dict)  # ours, so that both see pictures of one size
    by_name: bool = False  # measured only if asked for: a row of the same network has been measured


@contextmanager
def quiet() -> Iterator[None]:
    """controlnet_aux warns of much when it is imported, and its files are loaded as tensors only."""
    import torch

    load = torch.load
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load = lambda *given, **more: load(*given, **{"weights_only": True, **more})
        try:
            yield
        finally:
            torch.load = load


def aux(kind: str, *file: str, **options: Any) -> Callable[[Path, str], Loop]:
    """A class of controlnet_aux, loaded by its own `from_pretrained`, with the file that it must be told."""

    def load(folder: Path, device: str) -> Loop:
        with quiet():
            import controlnet_aux

            detector = getattr(controlnet_aux, kind).from_pretrained(str(folder), *file).to(device)
        return functools.partial(detector, output_type="pil", **options)

    return load


def aux_canny(folder: Path, device: str) -> Loop:
    with quiet():
        from controlnet_aux import CannyDetector
    return functools.partial(CannyDetector(), output_type="pil")


def aux_openpose(folder: Path, device: str) -> Loop:
    """The body alone, as our row finds it."""
    with quiet():
        from controlnet_aux.open_pose import Body, OpenposeDetector

        return OpenposeDetector(Body(str(folder / "body_pose_model.pth")).to(device))  # type: ignore[no-any-return]


def depth_pipeline(folder: Path, device: str) -> Loop:
    """transformers' pipeline, as the model cards show it."""
    from PIL import Image
    from transformers import pipeline

    pipe = pipeline("depth-estimation", model=str(folder), device=device)
    return lambda image: pipe(Image.fromarray(image))["depth"]


def segmentation_recipe(detector: str) -> Callable[[Path, str], Loop]:
    """Processor, network and post-processing of the model card, then a picture of ids."""

    def load(folder: Path, device: str) -> Loop:
        import torch
        import transformers
        from PIL import Image

        from annotate.segmentation import MODELS

        model = MODELS[detector]
        # OneFormer's processor would download a list of class names that only training needs
        none = {"class_info_file": None} if model.prompted else {}
        processor = getattr(transformers, model.processor).from_pretrained(str(folder), **none)
        call = processor
        if model.prompted:
            call = transformers.OneFormerProcessor(
                processor, transformers.CLIPTokenizer.from_pretrained(str(folder)), task_seq_length=77
            )
        network = getattr(transformers, model.network).from_pretrained(str(folder)).eval().to(device)
        task = {"task_inputs": ["semantic"]} if model.prompted else {}

        def one(image: np.ndarray) -> Any:
            with torch.inference_mode():
                outputs = network(**call(images=image, return_tensors="pt", **task).to(device))
            (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])
            return Image.fromarray(labels.to(torch.uint8).cpu().numpy())

        return one

    return load


def segmentation(detector: str, condition: str, *, by_name: bool = False) -> Row:
    return Row(
        detector=detector, condition=condition, library="transformers", by_name=by_name,
        write=functools.partial(weights.write_segmentation, detector), load=segmentation_recipe(detector),
    )  # fmt: skip


_ROWS = (
    Row(detector="opencv-canny", condition="canny", library="controlnet_aux", load=aux_canny),
    Row(
        detector="controlnet-hed", condition="hed", library="controlnet_aux", load=aux("HEDdetector"),
        write=weights.write_hed,
    ),
    Row(
        detector="midas-dpt-hybrid", condition="depth_large", library="controlnet_aux",
        load=aux("MidasDetector"), write=weights.write_midas, params={"resolution": 0},
    ),
    Row(
        detector="normal-bae", condition="normal", library="controlnet_aux", load=aux("NormalBaeDetector"),
        write=weights.write_bae,
    ),
    Row(
        detector="mlsd", condition="hough", library="controlnet_aux", load=aux("MLSDdetector"),
        write=weights.write_mlsd,
    ),
    Row(
        detector="anime2sketch", condition="cartoon", library="controlnet_aux",
        load=aux("LineartAnimeDetector"), write=weights.write_anime2sketch,
    ),
    Row(
        detector="pidinet", condition="hed", library="controlnet_aux", load=aux("PidiNetDetector"),
        write=weights.write_pidinet,
    ),
    Row(
        detector="teed", condition="hed", library="controlnet_aux", load=aux("TEEDdetector", "5_model.pth"),
        write=functools.partial(weights.write_teed, "5_model.pth"),
    ),
    Row(
        detector="anyline", condition="hed", library="controlnet_aux",
        load=aux("AnylineDetector", "MTEED.pth"), write=functools.partial(weights.write_teed, "MTEED.pth"),
    ),
    Row(
        detector="lineart-realistic", condition="hed", library="controlnet_aux", load=aux("LineartDetector"),
        write=weights.write_lineart,
    ),
    Row(
        detector="lineart-coarse", condition="hed", library="controlnet_aux",
        load=aux("LineartDetector", coarse=True), write=weights.write_lineart, by_name=True,
    ),
    Row(
        detector="openpose", condition="pose_openpose", library="controlnet_aux", load=aux_openpose,
        write=weights.write_openpose,
    ),
    Row(
        detector="depth-anything-v2", condition="depth_large", library="transformers", load=depth_pipeline,
        write=weights.write_depth_anything,
    ),
    Row(
        detector="dpt-large", condition="depth_large", library="transformers", load=depth_pipeline,
        write=weights.write_dpt_large,
    ),
    segmentation("upernet-ade20k", "seg_ade20k"),
    segmentation("mask2former-coco", "seg_coco"),
    segmentation("oneformer-coco", "seg_coco"),
    segmentation("mask2former-ade20k", "seg_ade20k", by_name=True),
    segmentation("oneformer-ade20k", "seg_ade20k", by_name=True),
)  # fmt: skip

ROWS: dict[str, Row] = {row.detector: row for row in _ROWS}

# Detectors that have no row, and why.
WITHOUT_LOOP = {
    "openpifpaf": "it runs in a process of its own",
    "mediapipe-pose": "its network is another package's, called as there",
    "mini": "it reads rendered scenes, no photographs",
    "hed-bsds500": "the network of controlnet-hed",
    "tipsv2-dpt": "benchmarks/shared_pass.py compares one pass with three",
    "tipsv2-dpt-large": "as tipsv2-dpt",
    "depth-anything-v2-base": "the loop of depth-anything-v2, at another size",
    "depth-anything-v2-large": "the loop of depth-anything-v2, at another size",
    **{
        f"depth-anything-v2-metric-{place}{size}": "the loop of depth-anything-v2, at another size"
        for place in ("indoor", "outdoor")
        for size in ("", "-base", "-large")
    },
    "depth-pro": "not written yet",
    "eomt-coco": "not written yet",
    "movenet": "its library is TensorFlow",
    "vitpose": "not written yet",
    "dwpose": "ours calls onnxruntime on the published graphs, as its library",
    "marigold-depth": "ours calls the library's own pipeline",
    "marigold-normals": "ours calls the library's own pipeline",
}
