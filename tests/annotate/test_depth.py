"""Depth networks give what their libraries give on the same weights, at the image's size, as numbers and not
as pictures.
"""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("controlnet_aux")

from annotate import attention, depth
from annotate.annotator import annotate, missing, resolve
from annotate.maps import RawMap, depth_map, render

GOLDEN = Path(__file__).parent / "golden" / "depth"


def only(images: list[np.ndarray], detector: str, **params: Any) -> list:
    return annotate(images, [str(i) for i in range(len(images))], [resolve("depth_large", detector, params)])[
        "depth_large"
    ]


@pytest.fixture(scope="module")
def image(astronaut: np.ndarray) -> np.ndarray:
    """uint8 [128, 192, 3] RGB."""
    return np.ascontiguousarray(astronaut[:256:2, 100:484:2])


@pytest.fixture(scope="module")
def midas(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The library's network with random weights whose depth of the picture runs from 100 to 1500, and their
    file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

        torch.manual_seed(0)
        model = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True).eval()
    with torch.inference_mode():
        last = model.scratch.output_conv[4]
        last.bias += 10  # ReLU cuts nothing off
        found = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1)
        gain = 1400 / (found.max() - found.min())
        last.weight *= gain
        last.bias.copy_((last.bias - found.min()) * gain + 100)
    path = tmp_path_factory.mktemp("midas") / depth.MIDAS.name
    torch.save(model.state_dict(), path)
    yield model, str(path)
    depth.load_midas.cache_clear()
    path.unlink()  # half a gigabyte


def test_attention_by_heads_is_the_librarys_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, where both compute the same; a CPU with AMX keeps the library's."""
    from timm.layers import Attention

    torch.manual_seed(0)
    model = torch.nn.Sequential(Attention(96, num_heads=3, qkv_bias=True), Attention(96, num_heads=3)).eval()
    x = 5 * torch.randn(2, 37, 96)
    with torch.inference_mode():
        wanted = model(x)
        for flags, times in (({"amx_bf16", "avx512_bf16"}, 0), ({"avx512_bf16"}, 12)):
            monkeypatch.setattr(attention.inference, "cpu_flags", lambda flags=flags: frozenset(flags))
            attention.by_heads(model)
            with torch.profiler.profile() as seen:
                found = model(x)
            assert torch.allclose(found, wanted, atol=1e-5)
            softmaxes = [each for each in seen.events() if each.name == "aten::softmax"]
            assert len(softmaxes) == times


def test_midas_draws_the_picture_of_controlnet_aux(image: np.ndarray, midas: tuple[Any, str]) -> None:
    """Within 1 of 255: the library cuts decimals off, our drawing rounds; the numbers themselves are within
    1e-4 of their range.
    """
    from controlnet_aux.midas import MidasDetector

    model, weights = midas
    wanted = MidasDetector(model)(image, detect_resolution=128, image_resolution=128)
    found = only([image], "midas-dpt-hybrid", weights=weights, precision="fp32", resolution=128)[0]
    assert found.status == "ok" and found.map.meta["unit"] == "midas"
    assert wanted.std() > 10 and np.abs(render(found.map).astype(int) - wanted).max() <= 1
    with torch.inference_mode():
        raw = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1)[0].numpy()
    assert np.ptp(raw) > 1000 and np.abs(found.map.array - raw).max() < 1e-4 * np.ptp(raw)


def test_bf16_stays_close_and_has_no_terraces(image: np.ndarray, midas: tuple[Any, str]) -> None:
    exact, found = (
        only([image], "midas-dpt-hybrid", weights=midas[1], precision=p, resolution=128)[0].map.array
        for p in ("fp32", "bf16")
    )
    error = np.abs(found - exact) / np.ptp(exact)
    assert error.mean() < 0.01 and error.max() < 0.05
    assert len(np.unique(found)) > found.size / 2, "a last layer in bf16 leaves a few hundred values"


def test_the_map_has_the_images_size_whatever_the_network_saw(
    image: np.ndarray, midas: tuple[Any, str]
) -> None:
    """controlnet_aux resizes twice and returns another aspect ratio (its issue 84)."""
    params = {"weights": midas[1], "precision": "fp32"}
    wide = np.ascontiguousarray(image[:100, :190])
    found = only([wide], "midas-dpt-hybrid", **params, resolution=64)[0].map
    assert found.array.shape == (100, 190) and found.meta["seen"] == [64, 128]
    small = only(
        [cv2.resize(wide, (128, 64), interpolation=cv2.INTER_AREA)],
        "midas-dpt-hybrid",
        **params,
        resolution=64,
    )[0].map
    np.testing.assert_allclose(found.array, cv2.resize(small.array, (190, 100)), rtol=1e-5)


def test_a_map_is_the_same_alone_and_among_others(image: np.ndarray, midas: tuple[Any, str]) -> None:
    params = {"weights": midas[1], "precision": "fp32", "resolution": 64}
    flat = np.full((64, 96, 3), 120, np.uint8)
    among = only([image[::-1].copy(), flat, image], "midas-dpt-hybrid", **params)
    alone = only([image], "midas-dpt-hybrid", **params)[0]
    np.testing.assert_array_equal(among[2].map.array, alone.map.array)
    assert np.isfinite(among[1].map.array).all(), "one grey divides by zero elsewhere"
    assert (among[0].map.array != among[2].map.array).any()


@pytest.mark.parametrize(
    ("value", "status", "reason"), [(0.0, "skipped", "flat"), (np.nan, "failed", "not finite")]
)
def test_depth_without_content_is_skipped_and_without_numbers_fails(
    value: float, status: str, reason: str, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / depth.MIDAS.name).touch()
    monkeypatch.setattr(
        depth, "load_midas", lambda *_: lambda images: np.full(images.shape[:3], value, np.float32)
    )
    found = only([image], "midas-dpt-hybrid", weights=str(tmp_path))[0]
    assert found.status == status and reason in found.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"a": Path}, "which could run code: get others (it asks for pathlib.Path)"), ({"a": 1}, "Missing key")],
)
def test_files_that_run_code_or_are_of_another_network_are_refused(
    content: Any, reason: str, image: np.ndarray, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pt")
    found = only([image], "midas-dpt-hybrid", weights=str(tmp_path / "x.pt"), precision="fp32")[0]
    assert found.status == "failed" and reason in found.reason and "can still be loaded" not in found.reason


@pytest.mark.parametrize("layer", [(3, 8, 3, 1), (3, 8, 3, 2), (4, 6, 1, 2), (3, 5, 7, 2)])
def test_weights_standardised_once_convolve_like_those_standardised_each_time(layer: tuple[int, ...]) -> None:
    from timm.layers import StdConv2dSame

    torch.manual_seed(1)
    network = torch.nn.Sequential(StdConv2dSame(layer[0], layer[1], layer[2], stride=layer[3], eps=1e-8))
    x = torch.randn(2, layer[0], 17, 22)
    with torch.inference_mode():
        wanted = network(x)
        depth.store_standardised(network)
        torch.testing.assert_close(network(x), wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 0.1 and (network[0].weight.detach().mean(dim=(1, 2, 3)).abs() < 1e-6).all(), (
        "standardised, and not only left alone"
    )


def test_the_enlargement_and_the_mixing_of_channels_commute() -> None:
    from controlnet_aux.midas.midas.blocks import FeatureFusionBlock_custom

    torch.manual_seed(2)
    block = FeatureFusionBlock_custom(16, torch.nn.ReLU(False))
    first, second = torch.randn(2, 1, 16, 9, 7)
    with torch.inference_mode():
        torch.testing.assert_close(depth._fuse(block, first), block(first), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            depth._fuse(block, first, second), block(first, second), rtol=1e-5, atol=1e-5
        )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """DPT-Large's architecture, thinner and shallower, with random weights whose depth stays above 0."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 12, 16, 16],
        fusion_hidden_size=16,
        use_auxiliary_head=False,
    )
    torch.manual_seed(4)
    model = transformers.DPTForDepthEstimation(config).eval()
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.ndim == 4:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
            if name == "head.head.4.bias":
                weight += 20
    folder = tmp_path_factory.mktemp("large")
    model.save_pretrained(folder)
    return model, str(folder)


def test_dpt_large_is_the_pipeline_of_transformers(image: np.ndarray, large: tuple[Any, str]) -> None:
    """Its image processor with the settings of Intel/dpt-large, which keep no aspect ratio, and the bilinear
    scaling behind it of ControlNet++.
    """
    from torch.nn.functional import interpolate
    from transformers import DPTImageProcessor

    model, weights = large
    processor = DPTImageProcessor(
        size={"height": 64, "width": 64},
        keep_aspect_ratio=False,
        ensure_multiple_of=1,
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    with torch.inference_mode():
        given = processor(image, return_tensors="pt")
        assert given["pixel_values"].shape[-2:] == (64, 64)
        raw = model(**given).predicted_depth
        wanted = interpolate(raw[:, None], image.shape[:2], mode="bilinear")[0, 0].numpy()
    found = only([image], "dpt-large", weights=weights, precision="fp32", resolution=64)[0]
    assert found.status == "ok" and found.map.array.shape == image.shape[:2]
    assert np.ptp(wanted) > 1 and np.abs(found.map.array - wanted).max() < 1e-4 * np.ptp(wanted)
    among = only([image[::-1].copy(), image], "dpt-large", weights=weights, precision="fp32", resolution=64)
    np.testing.assert_array_equal(among[1].map.array, found.map.array)
    rough = only([image], "dpt-large", weights=weights, precision="bf16", resolution=64)[0].map.array
    assert np.abs(rough - wanted).mean() < 0.02 * np.ptp(wanted)


@pytest.mark.parametrize(
    ("lost", "loads"),
    [("neck.fusion_stage.layers.0.residual_layer1.", True), ("neck.fusion_stage.layers.1.residual", False)],
)
def test_dpt_large_may_lack_the_tensors_that_its_published_file_lacks_and_no_others(
    image: np.ndarray, large: tuple[Any, str], tmp_path: Path, lost: str, loads: bool
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(large[1], "model.safetensors"))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(Path(large[1], "config.json").read_text())
    whole, found = (
        only([image], "dpt-large", weights=place, precision="fp32", resolution=64)[0]
        for place in (large[1], str(tmp_path))
    )
    if loads:
        np.testing.assert_array_equal(found.map.array, whole.map.array)
    else:
        assert found.status == "failed" and f"{lost}_layer1" in found.reason


def test_without_its_files_each_detector_says_what_to_get() -> None:
    if missing("midas-dpt-hybrid"):
        assert "hf download lllyasviel/Annotators dpt_hybrid-midas-501f0c75.pt" in str(
            missing("midas-dpt-hybrid")
        )
    if missing("dpt-large"):
        assert "hf download Intel/dpt-large config.json" in str(missing("dpt-large"))


def test_the_drawing_of_depth_is_the_stored_one() -> None:
    """A ramp to the right, so that an exchange of near and far, or of gamma, shows."""
    drawn = render(depth_map(np.add.outer(np.linspace(0, 300, 48), np.linspace(100, 1500, 64))))
    wanted = cv2.imread(str(GOLDEN / "ramp.png"), cv2.IMREAD_COLOR)
    assert wanted is not None and np.abs(drawn[..., ::-1].astype(int) - wanted).max() <= 1
    assert isinstance(depth_map(np.eye(3)), RawMap)
