"""Depth, normals and ADE20K labels of a picture in one pass: TIPSv2 with DPT heads (2604.12012)."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate import inference, pretrained
from annotate.conditions import Condition
from annotate.depth import from_metres, run_in_fp32
from annotate.label_spaces import disagreement, nameless
from annotate.maps import RawMap
from annotate.normals import FLIP, unit
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder

if TYPE_CHECKING:
    import torch

SIDE = 448  # of the square into which its processor presses every picture
PATCH = 14
SPACE = "ade20k_150"
NETWORK = "Tipsv2DptForDensePrediction"
ATTENTION_HEAD = 64  # channels, in the networks of all sizes


@dataclass(frozen=True, kw_only=True)
class TipsModel:
    """One published network; the last of its files is the weights."""

    name: str
    title: str
    files: tuple[WeightFile, ...]
    # of one image at 512 x 512: seconds, seconds on a GPU, and GB that it takes there
    cost: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """All that one pass tells of one picture, at its size."""

    metres: np.ndarray  # float32 [h, w]
    normals: np.ndarray  # float32 [h, w, 3] unit vectors, x right, y up, z to the viewer
    labels: np.ndarray  # uint8 [h, w]: of SPACE


@dataclass(frozen=True, kw_only=True)
class SceneMap(RawMap):
    """The map of depth, which carries the whole scene to `adapt`."""

    scene: Scene


# uint8 [n, h, w, 3] RGB -> one scene per image
SceneNetwork = Callable[[np.ndarray], list[Scene]]


def detect(
    model: TipsModel,
    images: list[np.ndarray],
    params: Values,
    random_params: list[Values],
    parents: list[RawMap],
    device: str,
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes; one pass serves all conditions."""
    place, side = params.get("weights", PINNED), params["resolution"]
    network = load(model, params["precision"], device, side, place)
    scenes = inference.run(images, network, device, f"{model.name} {side}")
    depths = [from_metres(scene.metres) for scene in scenes]
    return [
        SceneMap(depth.kind, depth.array, depth.meta, scene=scene)
        for depth, scene in zip(depths, scenes, strict=True)
    ]


def adapt(raw: RawMap, condition: Condition, params: Values) -> RawMap:
    """The condition's own map of the scene."""
    assert isinstance(raw, SceneMap)
    if condition.kind == "normals":
        return RawMap("normals", raw.scene.normals)
    if condition.kind == "labels":
        return RawMap("labels", raw.scene.labels, {"label_space": SPACE})
    return RawMap(raw.kind, raw.array, raw.meta)


@functools.cache
def load(model: TipsModel, precision: str, device: str, side: int, weights: str = PINNED) -> SceneNetwork:
    """The network, once per process; it sees a square, with `side` rounded to its patches, and its answers
    are scaled back, both bilinearly, as by its image processor.

    WeightsError: a file is absent, a tensor is absent or has another shape, or its classes are others.
    """
    import torch
    from torch.nn.functional import interpolate

    network = _network(model, weights).to(
        device, inference.dtype(precision), memory_format=torch.channels_last
    )
    for last in (network.depth_decoder, network.normals_decoder, network.segmentation_decoder):
        run_in_fp32(last.head)
    kind, seen = inference.dtype(precision), max(1, round(side / PATCH)) * PATCH

    def run(images: np.ndarray) -> list[Scene]:
        with torch.inference_mode():
            # in bytes and on the CPU, so that its rounding is the image processor's on every device
            x = interpolate(
                torch.from_numpy(images).permute(0, 3, 1, 2), (seen, seen), mode="bilinear", antialias=True
            ).to(device)
            found = network((x / 255).to(kind))
            of_each = (
                found.predicted_depth[:, None],
                torch.nn.functional.normalize(found.normals, dim=1),
                found.segmentation_logits,
            )
            return [_scene(*each, images.shape[1:3]) for each in zip(*of_each, strict=True)]

    return run


def _scene(
    metres: "torch.Tensor", normals: "torch.Tensor", logits: "torch.Tensor", size: tuple[int, ...]
) -> Scene:
    """Of one image, each [channels, h, w]; the vectors of the network point left, up and to the viewer, as
    the pictures in its authors' notebook show (google-deepmind/tips, TIPS_decoder_inference.ipynb).
    """
    from torch.nn.functional import interpolate

    depth, directions, scores = (
        interpolate(each[None], size, mode="bilinear")[0] for each in (metres, normals, logits)
    )
    return Scene(
        depth[0].cpu().numpy(),
        unit(directions.permute(1, 2, 0).cpu().numpy() * FLIP),
        scores.argmax(dim=0).byte().cpu().numpy(),
    )


def _network(model: TipsModel, weights: str) -> Any:
    folder = find_folder(model.files, weights)
    config = _config(folder / "config.json")
    network = pretrained.load(NETWORK, folder, model.name, file=find(model.files[-1], weights), config=config)
    classes = network.config.id2label
    # the config of the release names none; the notebook's list of names is in the order of the space
    if (problem := disagreement(classes, SPACE)) and not nameless(classes, SPACE):
        raise WeightsError(
            f"{model.name}: {folder / 'config.json'}: {problem}; its labels would mean something else, get"
            " others"
        )
    return network


def _config(path: Path) -> Any:
    """The config of transformers from that of the release's own code, which has other words and leaves out
    the backbone; None = the file has transformers' words.
    """
    import transformers

    said = json.loads(path.read_text(encoding="utf-8"))
    if "block_indices" not in said:
        return None
    blocks, width = said["block_indices"], said["embed_dim"]
    backbone = {
        "hidden_size": width,
        "num_hidden_layers": blocks[-1] + 1,
        "num_attention_heads": max(1, width // ATTENTION_HEAD),
        "out_indices": [block + 1 for block in blocks],
        "reshape_hidden_states": False,
    }
    heads = {
        "neck_hidden_sizes": said["post_process_channels"],
        "fusion_hidden_size": said["channels"],
        "num_labels": said["num_seg_classes"],
        **{name: said[name] for name in ("num_depth_bins", "min_depth", "max_depth") if name in said},
    }
    of_backbone: Any = transformers.Tipsv2VisionConfig(**backbone)
    return transformers.Tipsv2DptConfig(backbone_config=of_backbone, **heads)


def _files(repo: str) -> tuple[WeightFile, ...]:
    return (
        WeightFile(name="config.json", repo=repo),
        WeightFile(name="model.safetensors", also="pytorch_model.bin", repo=repo),
    )


_ROWS = (
    TipsModel(
        name="tipsv2-dpt", title="TIPSv2-DPT B/14 (depth and normals learned indoors)",
        files=_files("google/tipsv2-b14-dpt"), cost=(10.0, 0.04, 4.0),
    ),
    TipsModel(
        name="tipsv2-dpt-large", title="TIPSv2-DPT L/14 (depth and normals learned indoors)",
        files=_files("google/tipsv2-l14-dpt"), cost=(20.0, 0.08, 6.0),
    ),
)  # fmt: skip

MODELS: dict[str, TipsModel] = {row.name: row for row in _ROWS}
