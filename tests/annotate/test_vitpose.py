"""ViTPose in boxes of RT-DETR: against the library's own calls, with networks of the true classes and random
weights.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from annotate import vitpose
from annotate.annotator import annotate, identity, lack, missing, resolve
from annotate.skeletons import SKELETONS
from annotate.weights import WeightsError

LACK = missing("vitpose", str(Path(__file__).parent))
if LACK and "pip install" in LACK:
    pytest.skip(LACK, allow_module_level=True)


def networks(experts: int = 6) -> tuple[Any, Any]:
    """ViTPose and RT-DETR, small; heat and scores are spread so that some pass their thresholds."""
    torch.manual_seed(0)
    backbone = {
        "model_type": "vitpose_backbone", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_experts": experts, "part_features": 8, "out_indices": [2],
    }  # fmt: skip
    pose = transformers.VitPoseForPoseEstimation(
        transformers.VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=False)
    )
    resnet = {"model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 24, 32],
              "depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"]}  # fmt: skip
    boxes = transformers.RTDetrForObjectDetection(
        transformers.RTDetrConfig(
            backbone_config=resnet, encoder_in_channels=[16, 24, 32], encoder_hidden_dim=32, d_model=32,
            encoder_ffn_dim=32, encoder_attention_heads=2, decoder_in_channels=[32, 32, 32],
            decoder_ffn_dim=32, decoder_attention_heads=2, decoder_layers=2, num_queries=12, num_labels=2,
            num_denoising=0,
        )
    )  # fmt: skip
    for network in (pose, boxes):
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter, gain=1.5)
    torch.nn.init.normal_(pose.head.conv.weight, std=1.5)
    for head in boxes.model.decoder.class_embed:
        head.bias.data = torch.tensor([9.0, -9.0])  # all are people
    return pose.eval(), boxes.eval()


@functools.cache
def library() -> tuple[Any, Any, Any, Any]:
    pose, boxes = networks()
    return pose, transformers.VitPoseImageProcessor(), boxes, transformers.RTDetrImageProcessor()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each of the two repositories, as transformers writes them."""
    root = tmp_path_factory.mktemp("weights")
    pose, pose_processor, boxes, boxes_processor = library()
    for files, network, processor in (
        (vitpose.POSE, pose, pose_processor),
        (vitpose.BOXES, boxes, boxes_processor),
    ):
        network.save_pretrained(root / files[0].repo)
        processor.save_pretrained(root / files[0].repo)
    return root


def theirs(image: np.ndarray, box_threshold: float) -> np.ndarray:
    """float32 [P, 17, 3] as the library's documentation has it."""
    from PIL import Image

    pose, pose_processor, boxes, boxes_processor = library()
    picture = Image.fromarray(image)
    with torch.inference_mode():
        outputs = boxes(**boxes_processor(images=picture, return_tensors="pt"))
        (found,) = boxes_processor.post_process_object_detection(
            outputs, target_sizes=torch.tensor([(picture.height, picture.width)]), threshold=box_threshold
        )
        people = found["boxes"][found["labels"] == 0].numpy()
        people[:, 2:] -= people[:, :2]
        inputs = pose_processor(picture, boxes=[people], return_tensors="pt")
        heat = pose(**inputs, dataset_index=torch.zeros(len(people), dtype=torch.long))
        (found,) = pose_processor.post_process_pose_estimation(heat, boxes=[people])
    return np.stack([np.concatenate([one["keypoints"], one["scores"][:, None]], axis=1) for one in found])


def found(images: list[np.ndarray], place: Path, condition: str = "pose_openpifpaf", **params: Any) -> list:
    params = {"weights": str(place), "min_confidence": 0.0, "box_threshold": 0.0} | params
    step = resolve(condition, "vitpose", params)
    return annotate(images, [str(n) for n in range(len(images))], [step])[condition]


def test_the_people_are_those_of_the_librarys_own_calls(small: np.ndarray, place: Path) -> None:
    image = small[:, :104]
    known = theirs(image, 0.0)
    raw = vitpose.detect([image], params(place), [], [], "cpu")[0]
    inside = vitpose.keep_inside(known, image.shape[:2])
    assert len(inside) >= 2 and raw.array.shape == inside.shape
    np.testing.assert_allclose(raw.array, inside, atol=0.02)


def params(place: Path, **others: Any) -> dict[str, Any]:
    given = {"weights": str(place), "min_confidence": 0.0, "box_threshold": 0.0} | others
    return dict(resolve("pose_openpifpaf", "vitpose", given).params)


def test_an_image_has_the_same_people_alone_and_among_others(small: np.ndarray, place: Path) -> None:
    images = [small, small[:96], np.ascontiguousarray(small[:, ::-1])]
    together = vitpose.detect(images, params(place), [], [], "cpu")
    assert len({len(raw.array) for raw in together}) >= 1 and sum(len(raw.array) for raw in together) > 3
    for image, raw in zip(images, together, strict=True):
        alone = vitpose.detect([image], params(place), [], [], "cpu")[0]
        np.testing.assert_array_equal(alone.array, raw.array)


def test_where_nobody_is_the_map_is_empty(small: np.ndarray, place: Path) -> None:
    (one,) = found([small], place, box_threshold=1.0)
    assert one.status == "skipped" and one.map.array.shape == (0, 17, 3)


def test_the_neck_of_the_other_layout_is_mid_shoulder(small: np.ndarray, place: Path) -> None:
    (one,) = found([small], place, "pose_openpose")
    names = SKELETONS["openpose_18"].names
    for person in one.map.array:
        neck, a, b = (person[names.index(k)] for k in ("neck", "left_shoulder", "right_shoulder"))
        if neck[2] > 0:
            np.testing.assert_allclose(neck[:2], (a[:2] + b[:2]) / 2, rtol=1e-5)


def test_the_weights_of_both_networks_are_identity(place: Path, tmp_path: Path) -> None:
    import shutil

    name = lambda root: identity(resolve("pose_openpose", "vitpose", {"weights": str(root)}))["weights"]
    for files in (vitpose.POSE, vitpose.BOXES):
        copy = tmp_path / files[0].repo.replace("/", "-")
        shutil.copytree(place, copy)
        config = copy / files[0].repo / "config.json"
        config.write_text(config.read_text() + "\n")
        assert name(copy) != name(place)
    step = resolve("pose_openpose", "vitpose", {"weights": str(tmp_path)}, here=False)
    assert "needs model.safetensors" in str(lack(step))


def test_a_network_without_experts_loads_and_one_that_lacks_a_tensor_does_not(
    place: Path, tmp_path: Path, small: np.ndarray
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(place, tmp_path / "plain")
    pose = networks(experts=1)[0]
    pose.save_pretrained(tmp_path / "plain" / vitpose.POSE[0].repo)
    assert len(vitpose.detect([small], params(tmp_path / "plain"), [], [], "cpu")) == 1
    for files in (vitpose.POSE, vitpose.BOXES):
        root = tmp_path / files[0].repo.replace("/", "-")
        shutil.copytree(place, root)
        path = root / files[0].repo / "model.safetensors"
        tensors = load_file(path)
        tensors.pop(
            next(name for name in tensors if name.endswith("layernorm_before.weight") or "fc1.weight" in name)
        )
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match="lack 1 of its tensors"):
            vitpose.detect([small], params(root), [], [], "cpu")


def test_files_with_the_names_of_transformers_4_and_of_5_load(
    place: Path, tmp_path: Path, small: np.ndarray
) -> None:
    """save_pretrained writes the names of 4.57.3, whose files gave that version's outputs; the network's own
    names in version 5 are others.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(place, tmp_path / "own")
    path = Path(vitpose.BOXES[0].repo, "model.safetensors")
    stored = load_file(place / path)
    assert "model.encoder.encoder.0.layers.0.self_attn.out_proj.weight" in stored
    own = {name: value.clone() for name, value in library()[2].state_dict().items()}
    assert "model.encoder.aifi.0.layers.0.self_attn.o_proj.weight" in own
    save_file(own, tmp_path / "own" / path, metadata={"format": "pt"})
    there, here = (
        vitpose.detect([small], params(root), [], [], "cpu")[0] for root in (place, tmp_path / "own")
    )
    np.testing.assert_array_equal(there.array, here.array)


def test_heat_that_is_known_gives_its_keypoints_back() -> None:
    """A Gaussian of 2 cells at a place between cells, in a box that the crop widens by a quarter."""
    processor = transformers.VitPoseImageProcessor()
    boxes = np.array([[100, 50, 120, 160, 0.9]], np.float32)  # 3 : 4, as the crop
    centre, size = np.array([160.0, 130.0]), np.array([150.0, 200.0])
    wanted = np.random.default_rng(0).uniform(-0.35, 0.35, (17, 2)) * size + centre
    cells = (wanted - centre + size / 2) / size * (47, 63)
    y, x = np.mgrid[:64, :48]
    heat = np.exp(-((x - cells[:, 0, None, None]) ** 2 + (y - cells[:, 1, None, None]) ** 2) / 8)
    (person,) = vitpose.decode(processor, heat[None].astype(np.float32), boxes)
    assert np.abs(person[:, :2] - wanted).max() < 0.5
    with pytest.raises(ValueError, match="not finite"):
        vitpose.decode(processor, np.full((1, 17, 64, 48), np.nan, np.float32), boxes)
