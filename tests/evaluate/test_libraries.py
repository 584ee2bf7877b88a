"""Our values are those of torchmetrics, clean-fid and pycocotools, wherever these have the measure."""

import numpy as np
import pytest

from evaluate import distribution, libraries
from evaluate.features import Images
from evaluate.fidelity import METRICS, Map, compare, pooled
from evaluate.frechet import Moments, frechet
from evaluate.libraries import NoLibrary

RNG = np.random.default_rng(0)
SIDE = 176  # pixels: torchmetrics takes five scales from 161


def shaken(array: np.ndarray, share: float, values: np.ndarray) -> np.ndarray:
    """With a share of the pixels drawn anew."""
    drawn = RNG.random(array.shape) < share
    return np.where(drawn, RNG.choice(values, array.shape), array).astype(np.uint8)


def maps(kind: str) -> list[tuple[Map, Map]]:
    if kind == "people":
        return [(people(number), people(number, 1.0 + 2 * number)) for number in range(8)]
    values = {"edges": [0] * 49 + [255], "soft_edges": np.arange(256), "labels": [*range(6), 255]}[kind]
    meta = {"label_space": "ade20k_150"} if kind == "labels" else {}
    blocks = [np.kron(RNG.choice(values, (22, 22)), np.ones((8, 8))).astype(np.uint8) for _ in range(4)]
    return [
        (Map(block, meta), Map(shaken(block, 0.02 if kind == "edges" else 0.2, values), meta))
        for block in blocks
    ]


def people(seed: int, moved: float = 0.0) -> Map:
    """One to three people of 17 keypoints; the same seed gives the same, moved by so many pixels."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 4)
    at = rng.uniform(50, 400, (count, 1, 2)) + rng.uniform(0, 100, (count, 17, 2))
    at += np.random.default_rng(seed + 100).normal(0, 1, at.shape) * moved
    sure = rng.uniform(0.5, 1.0, (count, 17, 1)) if moved else np.ones((count, 17, 1))
    return Map(np.concatenate([at, sure], 2).astype(np.float32), {"size": [512, 512], "layout": "coco_17"})


@pytest.mark.parametrize("kind", ["edges", "soft_edges", "labels"])
def test_the_values_of_a_sample_are_the_libraries(kind: str) -> None:
    compared = 0
    for truth, made in maps(kind):
        for name, ours in compare(kind, truth, made).values.items():
            try:
                theirs = libraries.of_sample(name, truth, made)
            except NoLibrary:
                continue
            assert ours == pytest.approx(theirs.value, abs=3e-5), name
            assert theirs.library.startswith("torchmetrics ")
            compared += 1
    assert compared == {"edges": 12, "soft_edges": 8, "labels": 8}[kind]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("labels", ["miou", "pixel_accuracy_pooled"]),
        ("edges", ["edge_f1_pooled"]),
        ("people", ["people_ap", "people_ap50", "people_ap75", "people_ar"]),
    ],
)
def test_the_values_of_a_set_are_the_libraries(kind: str, names: list[str]) -> None:
    pairs = maps(kind)
    if kind == "people":
        pytest.importorskip("pycocotools")
    counts = [compare(kind, truth, made).counts for truth, made in pairs]
    for name in names:
        ours = pooled(name, counts)
        assert ours == pytest.approx(libraries.of_set(name, pairs).value, abs=1e-6), name
        assert 0.05 < ours < 0.99, "a value that says something"


def test_the_distances_are_the_libraries() -> None:
    made, real = RNG.normal(0.3, 1, (120, 6)).astype(np.float32), RNG.normal(0, 1, (60, 6)).astype(np.float32)
    of_made, of_real = np.repeat(np.arange(60), 2), np.arange(60)
    ours = frechet(Moments.of(made), Moments.of(real))
    assert ours == pytest.approx(libraries.frechet(made, real).value, rel=1e-5)
    block = np.arange(60) % 20
    ours, _ = distribution.kernel_distance_without(Images(made, of_made), Images(real, of_real), block)
    assert ours == pytest.approx(libraries.kernel(made, of_made, real, of_real).value, rel=1e-5)


def test_the_clip_score_is_torchmetrics() -> None:
    from evaluate import alignment

    encoder = alignment.load("mini")
    image, caption = RNG.integers(0, 256, (64, 64, 3), np.uint8), "a red ball on a floor"
    ours = alignment.similarity(encoder.images([image]), encoder.texts([caption])).clip(0)[0]
    theirs = libraries.clip_score(encoder, image, caption)
    assert ours == pytest.approx(theirs.value, abs=1e-4) and theirs.library.startswith("torchmetrics ")


def test_where_no_library_has_a_measure_the_reason_is_told() -> None:
    edges = Map(np.zeros((128, 128), np.uint8), {})
    with pytest.raises(NoLibrary, match="refuses MS-SSIM below 161 pixels"):
        libraries.of_sample("edge_ms_ssim", edges, edges)
    with pytest.raises(NoLibrary, match="no library has this measure"):
        libraries.of_sample("edge_f1_bsds", edges, edges)
    with pytest.raises(NoLibrary, match="no library has this measure"):
        libraries.of_set("line_sap_10", [])
    one = Map(np.eye(128, dtype=np.uint8) * 255, {})
    with pytest.raises(NoLibrary, match="read again empty scores the worst"):
        libraries.of_sample("edge_ssim", one, edges)
    assert METRICS["edge_f1_bsds"].primary


def test_a_number_names_the_software_that_it_is_computed_with_and_no_other() -> None:
    from evaluate.measures import software

    assert software("edge_f1_bsds") == ("numpy", "opencv-python-headless", "scikit-image", "scipy")
    assert "scikit-image" in software("soft_ms_ssim")
    assert software("depth_rmse") == ("numpy", "scipy")
    assert {"clean-fid", "pillow", "torch"} <= set(software("fd (inception)"))
    assert {"transformers", "pillow"} <= set(software("clip_score (clip-vit-base-patch16)"))
    assert not {"clean-fid", "transformers"} & set(software("fd (mini)"))
    assert not any("torchmetrics" in software(name) for name in (*METRICS, "fd (inception)", "kd (mini)"))
