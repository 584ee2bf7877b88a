"""Many people's keypoints by ViTPose+ (2212.04246), one person at a time, in the boxes that RT-DETR
(2304.08069) finds; both by transformers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from annotate import inference, pretrained
from annotate.conditions import Condition
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.people import arranged, keep_inside
from annotate.skeletons import SKELETONS
from annotate.weights import PINNED, WeightFile, find, find_folder

NAMES = ("model.safetensors", "config.json", "preprocessor_config.json")
POSE = tuple(WeightFile(name=name, repo="usyd-community/vitpose-plus-base") for name in NAMES)
BOXES = tuple(WeightFile(name=name, repo="PekingU/rtdetr_r50vd_coco_o365") for name in NAMES)
LAYOUT = "coco_17"
PERSON = 0  # RT-DETR's class
COCO = 0  # of the data sets that a ViTPose+ was trained on, each with an expert of its own

# uint8 [n, h, w, 3] RGB -> for each image float32 [p, 5] of its people: x y width height score
Boxes = Callable[[np.ndarray], Sequence[np.ndarray]]
# float32 [n, 3, h, w], a person each as the processor makes them -> heat float32 [n, 17, h / 4, w / 4]
Heat = Callable[[np.ndarray], np.ndarray]


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> people [P, 17, 3], those of the surest boxes first; a keypoint
    that lies outside the image is missing.
    """
    weights, precision = params.get("weights", PINNED), params["precision"]
    boxes = load_boxes(params["box_threshold"], precision, device, weights)
    processor, heat = load_pose(precision, device, weights)
    found = inference.run(images, boxes, device, f"rt-detr {precision}")
    crops = [people(processor, image, each) for image, each in zip(images, found, strict=True)]
    # all of one size, so that people of several images share a pass
    read = iter(
        inference.run([crop for each in crops for crop in each], heat, device, f"vitpose {precision}")
    )
    maps = []
    for image, each in zip(images, found, strict=True):
        heats = np.array([next(read) for _ in each])
        keypoints = decode(processor, heats, each)
        sure = keypoints[..., 2:] >= params["min_confidence"]
        inside = keep_inside(np.where(sure, keypoints, 0), image.shape[:2])
        maps.append(RawMap("people", inside, {"size": list(image.shape[:2]), "layout": LAYOUT}))
    return maps


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The condition's keypoints of COCO's 17."""
    layout = str(condition.layout)
    people = arranged(raw.array, SKELETONS[LAYOUT].names, layout)
    return RawMap("people", people, {**raw.meta, "layout": layout})


@functools.cache
def load_boxes(threshold: float, precision: str, device: str, weights: str = PINNED) -> Boxes:
    """RT-DETR with its processor, once per process; WeightsError where a file is absent or does not fit."""
    import torch
    import transformers

    folder = find_folder(BOXES, weights)
    network = pretrained.load("RTDetrForObjectDetection", folder, "vitpose", file=find(BOXES[0], weights))
    network = network.to(device)
    processor = transformers.RTDetrImageProcessor.from_pretrained(folder, local_files_only=True)

    def forward(images: np.ndarray) -> list[np.ndarray]:
        inputs = processor(images=list(images), input_data_format="channels_last", return_tensors="pt").to(
            device
        )
        with torch.inference_mode(), _autocast(precision, device):
            outputs = network(**inputs)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        sizes = [images.shape[1:3]] * len(images)
        found = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return [_of_people(each) for each in found]

    return forward


def _of_people(found: Any) -> np.ndarray:
    mine = found["labels"] == PERSON
    corners, scores = found["boxes"][mine].cpu().numpy(), found["scores"][mine].cpu().numpy()
    sides = corners[:, 2:] - corners[:, :2]
    boxes = np.concatenate([corners[:, :2], sides, scores[:, None]], axis=1)
    return np.asarray(boxes[(sides >= 1).all(axis=1)])


@functools.cache
def load_pose(precision: str, device: str, weights: str = PINNED) -> tuple[Any, Heat]:
    """ViTPose's processor and network, once per process; WeightsError where a file is absent or does not
    fit.
    """
    import torch
    import transformers

    folder = find_folder(POSE, weights)
    network = pretrained.load("VitPoseForPoseEstimation", folder, "vitpose", file=find(POSE[0], weights))
    network = network.to(device)
    processor = transformers.VitPoseImageProcessor.from_pretrained(folder, local_files_only=True)
    experts = network.config.backbone_config.num_experts > 1

    def forward(people: np.ndarray) -> np.ndarray:
        chosen = {"dataset_index": torch.full((len(people),), COCO, device=device)} if experts else {}
        with torch.inference_mode(), _autocast(precision, device):
            heat = network(torch.from_numpy(people).to(device), **chosen).heatmaps
        return np.asarray(heat.float().cpu().numpy())

    return processor, forward


def _autocast(precision: str, device: str) -> Any:
    import torch

    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16")


def people(processor: Any, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """float32 [3, h, w] of each box of an image, as the network sees a person; none where there is no box."""
    if not len(boxes):
        return []
    made = processor(
        images=[image], boxes=[boxes[:, :4]], input_data_format="channels_last", return_tensors="np"
    )
    return [np.asarray(each, np.float32) for each in made["pixel_values"]]


def decode(processor: Any, heat: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Heat float32 [P, 17, h, w] in boxes [P, 5] -> people float32 [P, 17, 3] in pixels of the image, by the
    library's own rule (DARK). ValueError where heat is not finite.
    """
    import torch
    from transformers.models.vitpose.modeling_vitpose import VitPoseEstimatorOutput

    if not len(boxes):
        return np.zeros((0, len(SKELETONS[LAYOUT].names), 3), np.float32)
    if not np.isfinite(heat).all():
        raise ValueError("the network's heat maps have values that are not finite")
    outputs = VitPoseEstimatorOutput(heatmaps=torch.from_numpy(heat))
    (found,) = processor.post_process_pose_estimation(outputs, boxes=[boxes[:, :4]])
    return np.stack(
        [np.concatenate([one["keypoints"], one["scores"].reshape(-1, 1)], axis=1) for one in found]
    ).astype(np.float32)
