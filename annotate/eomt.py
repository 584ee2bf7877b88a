"""Labels by EoMT (2503.19108): a plain vision transformer whose last blocks also hold queries of masks."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from annotate import inference, pretrained
from annotate.label_spaces import disagreement, nameless
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder

NAME = "eomt-coco"
SPACE = "coco_panoptic_133"
REPO = "tue-mps/coco_panoptic_eomt_large_640"
FILES = (
    WeightFile(name="config.json", repo=REPO),
    WeightFile(name="preprocessor_config.json", repo=REPO),
    WeightFile(name="model.safetensors", also="pytorch_model.bin", repo=REPO),
)

# uint8 [n, h, w, 3] RGB -> uint8 ids [n, h, w]
LabelNetwork = Callable[[np.ndarray], np.ndarray]


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> label maps at image size."""
    network = load(params["precision"], device, params.get("weights", PINNED))
    labels = inference.run(images, network, device, f"{NAME} {params['precision']}")
    return [RawMap("labels", ids, {"label_space": SPACE}) for ids in labels]


@functools.cache
def load(precision: str, device: str, weights: str = PINNED) -> LabelNetwork:
    """Processor and network from local files, once per process; each picture is scaled and padded to the
    square that the network was trained at.

    WeightsError: a file is absent or does not fit.
    """
    import torch
    import transformers

    folder = find_folder(FILES, weights)
    network = pretrained.load("EomtForUniversalSegmentation", folder, NAME, file=find(FILES[-1], weights)).to(
        device
    )
    processor = transformers.EomtImageProcessor.from_pretrained(folder, local_files_only=True)
    if problem := _problem(network, processor, folder):
        raise WeightsError(f"{NAME}: {problem}")

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = processor(
                images=list(images), input_data_format="channels_last", return_tensors="pt"
            ).pixel_values.to(device)
            with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16"):
                outputs = network(pixel_values=pixels)
            return decode(processor, outputs, images.shape[1:3])

    return run


def decode(processor: Any, outputs: Any, size: tuple[int, ...]) -> np.ndarray:
    """A network's outputs for n images -> uint8 ids [n, h, w] at size = (h, w), in fp32: of each pixel the
    class with the most of all queries' masks.

    It is the library's rule for labels, and the library's cut for panoptic maps: its own function for labels
    leaves the padding in, which shifts the labels of every picture that is not a square.
    """
    import torch

    side = (processor.size["shortest_edge"], processor.size["longest_edge"])
    masks = torch.nn.functional.interpolate(outputs.masks_queries_logits.float(), side, mode="bilinear")
    classes = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1]  # the last is that of no class
    scores = torch.einsum("nqc,nqhw->nchw", classes, masks.sigmoid())
    cut = processor.unpad_image(scores, [tuple(size)] * len(scores), processor.size)
    return np.stack([each.argmax(dim=0).byte().cpu().numpy() for each in cut])


def _problem(network: Any, processor: Any, folder: Path) -> str:
    """Why these files are not the detector's; '' = they are."""
    classes = network.config.id2label
    # the published config names none; the authors number them as the space does (datasets/coco_panoptic.py)
    if (other := disagreement(classes, SPACE)) and not nameless(classes, SPACE):
        return f"{folder / 'config.json'}: {other}; its labels would mean something else, get others"
    if processor.do_split_image or not processor.do_pad:
        where = folder / "preprocessor_config.json"
        return f"{where}: it does not pad pictures to a square, as panoptic networks do; get {REPO}"
    masked = network.attn_mask_probs
    if ((masked > 0) & (masked < 1)).any():
        return (
            f"{folder}: attn_mask_probs is neither 0 nor 1: a training that had not ended, and whose network"
            " draws at random; get one that has"
        )
    return ""
