"""ControlNet's HED against controlnet_aux, with trained layers: those of BSDS500, written as a ControlNetHED
file.
"""

from pathlib import Path

import numpy as np
import pytest

from annotate import controlnet_hed, hed, hed_float, hed_int8
from annotate.annotator import Annotation, annotate, resolve
from annotate.inference import cpu_flags, detection_size, resize
from annotate.maps import RawMap, render
from annotate.weights import find
from benchmarks.weights import controlnet_hed as controlnet_hed_tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The two networks have the same layers; the fused sum of BSDS500 becomes five times the mean, and BGR
    becomes RGB.
    """
    import torch

    from annotate.annotator import missing

    if missing("hed-bsds500"):
        pytest.skip(str(missing("hed-bsds500")))
    place = tmp_path_factory.mktemp("weights") / "ControlNetHED.pth"
    torch.save(controlnet_hed_tensors(), place)
    return str(place)


def found(images: list[np.ndarray], weights: str, **params: object) -> list[Annotation]:
    step = resolve("hed", "controlnet-hed", {"weights": weights, "precision": "fp32", **params})
    return annotate(images, [str(i) for i in range(len(images))], [step])["hed"]


def published(image: np.ndarray, weights: str, **options: object) -> np.ndarray:
    """uint8 [h, w] of the library's own detector on the same file."""
    import torch
    from controlnet_aux.hed import ControlNetHED_Apache2, HEDdetector

    network = ControlNetHED_Apache2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    return HEDdetector(network.eval())(image, output_type="np", **options)[..., 0]


def test_the_map_is_controlnet_auxs_to_the_pixel(astronaut: np.ndarray, weights: str) -> None:
    """But where a sum in another order falls on the other side of a whole number: by one, 2 of 82,000 pixels
    measured.
    """
    image = np.ascontiguousarray(astronaut[:256, 64:384])
    wanted = published(image, weights, detect_resolution=256, image_resolution=256)
    array = found([image], weights)[0].map.array
    apart = np.abs(array.astype(int) - wanted)
    assert array.dtype == np.uint8 and wanted.std() > 50, "trained weights draw a picture"
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


def test_seen_at_another_resolution_the_map_still_has_the_size_of_the_image(
    small: np.ndarray, weights: str
) -> None:
    image = small[:100, :75]
    wanted = published(image, weights, detect_resolution=256, image_resolution=256)
    size = detection_size(100, 75, 256)
    assert wanted.shape == size and size[0] % 64 == size[1] % 64 == 0
    array = found([image], weights, resolution=256)[0].map.array
    again = found([resize(image, size)], weights)[0].map.array
    assert array.shape == (100, 75) and again.shape == size
    assert np.abs(again.astype(int) - wanted).max() <= 1


def test_safe_edges_are_controlnet_auxs_when_version_1_1_draws_them(small: np.ndarray, weights: str) -> None:
    """The stored map is continuous; its truncated bytes keep both thresholds, so that no pixel changes its
    level.
    """
    wanted = published(small, weights, detect_resolution=128, image_resolution=128, safe=True)
    raw = found([small], weights)[0].map
    drawn = render(raw, protocol="cn11")[..., 0]
    assert len(np.unique(raw.array)) > 100 and set(np.unique(wanted)) == set(np.unique(drawn)) == {
        0,
        127,
        255,
    }
    assert (drawn != wanted).mean() < 1e-3, "a threshold that is cut otherwise moves five in a thousand"


def test_the_three_levels_are_those_of_safe_step_for_every_strength() -> None:
    from controlnet_aux.util import safe_step

    strengths = np.linspace(0, 1, 200_001)
    stored = RawMap("soft_edges", (strengths * 255).astype(np.uint8)[None])
    drawn = render(stored, protocol="cn11")[0, :, 0]
    wanted = (safe_step(strengths) * 255.0).clip(0, 255).astype(np.uint8)
    wrong = strengths[drawn != wanted]
    assert np.abs(wrong * 3 - np.rint(wrong * 3)).max(initial=0) < 1e-6, (
        "only where float32 puts a third on the other side"
    )
    np.testing.assert_array_equal(render(stored, protocol="cn10")[0, :, 0], stored.array[0])


@pytest.mark.parametrize(("precision", "mean"), [("bf16", 0.5), ("int8", 2.0)])
def test_fast_precisions_stay_close_to_fp32(
    astronaut: np.ndarray, weights: str, precision: str, mean: float
) -> None:
    """Measured on this picture of 512 x 512: 0.12 of 255 for bf16, 0.77 for int8, whose ranges come from the
    made-up picture.
    """
    if precision == "int8" and "avx512_vnni" not in cpu_flags():
        pytest.skip("int8 needs AVX512-VNNI")
    image = np.ascontiguousarray(astronaut[:256, 100:357])
    exact, fast = (found([image], weights, precision=p)[0].map.array.astype(int) for p in ("fp32", precision))
    assert exact.std() > 50 and 0 < np.abs(exact - fast).mean() < mean


def test_int8_is_refused_where_weights_do_not_stand_it(weights: str, tmp_path: Path) -> None:
    """A channel that is a million times as strong as the others leaves them no step of the scale."""
    import torch

    if "avx512_vnni" not in cpu_flags():
        pytest.skip("int8 needs AVX512-VNNI")
    tensors = torch.load(weights, weights_only=True)
    tensors["block1.convs.1.weight"][0] *= 1e6
    tensors["block2.convs.0.weight"][:, 0] *= 1e-6
    tensors["block1.projection.weight"][:, 0] = 0
    torch.save(tensors, tmp_path / "ControlNetHED.pth")
    failed = found([np.zeros((64, 64, 3), np.uint8)], str(tmp_path), precision="int8")[0]
    assert (
        failed.status == "failed"
        and "of 255 from fp32 with these weights; set precision: fp32 or bf16" in failed.reason
    )


def test_measured_ranges_do_as_well_as_the_pinned_ones(astronaut: np.ndarray, needs_hed: None) -> None:
    if "avx512_vnni" not in cpu_flags():
        pytest.skip("int8 needs AVX512-VNNI")
    image = np.ascontiguousarray(astronaut[None, :256, 100:356])
    layers = hed.read_layers(find(hed.WEIGHTS))
    exact = hed_float.float_network(layers, "cpu", "float32")(image)
    measured = np.abs(hed_int8.int8_network(layers)(image) - exact).mean()
    assert (
        0
        < measured
        < 1.2
        * np.abs(hed_int8.int8_network(hed.read_layers(find(hed.WEIGHTS), hed.LARGEST))(image) - exact).mean()
    )


def test_a_copy_of_the_pinned_weights_draws_the_same_bytes(
    small: np.ndarray, needs_hed: None, tmp_path: Path
) -> None:
    """Where weights lie is no part of a map's identity, so the ranges of int8 must not depend on it."""
    if "avx512_vnni" not in cpu_flags():
        pytest.skip("int8 needs AVX512-VNNI")
    copy = tmp_path / "copy.h5"
    copy.write_bytes(find(hed.WEIGHTS).read_bytes())
    np.testing.assert_array_equal(
        hed.load("int8", "cpu", str(copy))(small[None]), hed.load("int8", "cpu")(small[None])
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_image_has_the_same_map_alone_and_among_others(
    small: np.ndarray, weights: str, precision: str
) -> None:
    if precision == "int8" and "avx512_vnni" not in cpu_flags():
        pytest.skip("int8 needs AVX512-VNNI")
    images = [small, small[:97, :61].copy(), small[::-1].copy(), small[:, ::-1].copy()]
    together = found(images, weights, precision=precision)
    for image, one in zip(images, together, strict=True):
        assert one.map.array.shape == image.shape[:2]
        np.testing.assert_array_equal(
            one.map.array, found([image], weights, precision=precision)[0].map.array
        )
    assert controlnet_hed.load.cache_info().hits > 0


def test_a_margin_takes_the_frame_off_a_plain_picture(weights: str) -> None:
    plain = np.full((96, 128, 3), 255, np.uint8)
    framed, bare = found([plain], weights)[0], found([plain], weights, margin=16)[0]
    assert framed.map.array.max() > 32, "the release's own zero padding"
    assert bare.status == "skipped" and bare.map.array.shape == (96, 128)


def test_a_network_that_gives_nan_fails_and_is_no_black_map(
    small: np.ndarray, weights: str, tmp_path: Path
) -> None:
    import torch

    tensors = torch.load(weights, weights_only=True)
    tensors["block3.convs.0.bias"][0] = float("nan")
    torch.save(tensors, tmp_path / "ControlNetHED.pth")
    failed = found([small], str(tmp_path))[0]
    assert failed.status == "failed" and "not finite" in failed.reason


def test_a_file_of_another_network_is_refused_by_name(small: np.ndarray, tmp_path: Path) -> None:
    import torch

    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    failed = found([small], str(tmp_path / "other.pth"))[0]
    assert (
        failed.status == "failed"
        and "is no ControlNetHED file: it has no block1.convs.0.weight" in failed.reason
    )
