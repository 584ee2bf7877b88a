"""PiDiNet, TEED, AnyLine and informative drawings against controlnet_aux's own detectors, on the same random
weights of the true architectures.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate import lineart, pidinet, teed
from annotate.annotator import DETECTORS, Annotation, annotate, resolve
from annotate.conditions import CONDITIONS
from annotate.inference import resize
from annotate.maps import RawMap, render
from annotate.networks import quiet

torch = pytest.importorskip("torch")
pytest.importorskip("controlnet_aux")

SIDE = 256  # of what the networks see here; AnyLine's release has 1280, the others 512
SOFT = ("pidinet", "teed", "anyline", "lineart-realistic")  # lineart-coarse: the same code, another file


def networks() -> dict[str, Any]:
    """The library's own, at random, in evaluation mode."""
    with quiet():
        from controlnet_aux.lineart import Generator
        from controlnet_aux.pidi.model import pidinet as make_pidinet
        from controlnet_aux.teed.ted import TED
    torch.manual_seed(0)
    return {
        "pidinet": make_pidinet().eval(),
        "teed": TED().eval(),
        "lineart-realistic": Generator(3, 1, 3).eval(),
    }


def spread(network: Any, sides: tuple[Any, ...], image: np.ndarray, scale: float) -> None:
    """Scale and shift the last layers so that their logits spread by 2 around 0: all strengths appear."""
    for side in sides:
        seen: list[Any] = []
        hook = side.register_forward_hook(lambda _, given, out, seen=seen: seen.append(out))
        network(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / scale)
        hook.remove()
        factor = 2 / seen[0].std()
        side.weight *= factor
        side.bias.copy_((side.bias - seen[0].mean()) * factor)


@pytest.fixture(scope="module")
def library(astronaut: np.ndarray) -> dict[str, Any]:
    made, image = networks(), resize(astronaut, (SIDE, SIDE))
    with torch.no_grad():
        spread(made["pidinet"], (made["pidinet"].classifier,), image, 255)
        ups = (made["teed"].up_block_1, made["teed"].up_block_2, made["teed"].up_block_3)
        spread(made["teed"], tuple(up.features[-1] for up in ups), image, 1)
        spread(made["lineart-realistic"], (made["lineart-realistic"].model4[1],), image, 255)
    return made | {"anyline": made["teed"], "lineart-coarse": made["lineart-realistic"]}


@pytest.fixture(scope="module")
def weights(library: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files in the layouts of the releases: PiDiNet's holds the number of its last epoch and, below
    `state_dict`, names of a training on several devices.
    """
    home = tmp_path_factory.mktemp("weights")
    for name, network in library.items():
        tensors = network.state_dict()
        if name == "pidinet":
            tensors = {
                "epoch": 19,
                "state_dict": {f"module.{each}": tensor for each, tensor in tensors.items()},
            }
        torch.save(tensors, home / f"{name}.pth")
    return {name: str(home / f"{name}.pth") for name in library}


def found(
    images: list[np.ndarray], name: str, weights: str, condition: str = "hed", **params: object
) -> list[Annotation]:
    settings = {"precision": "fp32", "resolution": SIDE, "weights": weights, **params}
    step = resolve(condition, name, settings)
    return annotate(images, [str(i) for i in range(len(images))], [step])[condition]


def map_of(image: np.ndarray, name: str, weights: dict[str, str], **params: object) -> np.ndarray:
    one = found([image], name, weights[name], **params)[0]
    assert one.map is not None, one.reason
    return one.map.array


def published(image: np.ndarray, name: str, library: dict[str, Any], **options: object) -> np.ndarray:
    """uint8 [h, w] of the library's own detector at the resolution of detection."""
    with quiet():
        from controlnet_aux.anyline import AnylineDetector
        from controlnet_aux.lineart import LineartDetector
        from controlnet_aux.pidi import PidiNetDetector
        from controlnet_aux.teed import TEEDdetector
    calls: dict[str, Callable[..., np.ndarray]] = {
        "pidinet": lambda *given, **more: PidiNetDetector(library[name])(
            *given, image_resolution=SIDE, **more
        ),
        "teed": lambda *given, **more: TEEDdetector(library[name])(*given, **{"safe_steps": 0} | more),
        "anyline": AnylineDetector(library[name]),
        "lineart-realistic": lambda *given, **more: LineartDetector(library[name], None)(
            *given, image_resolution=SIDE, **more
        ),
        "lineart-coarse": lambda *given, **more: LineartDetector(torch.nn.Linear(1, 1), library[name])(
            *given, coarse=True, image_resolution=SIDE, **more
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-image, about a parameter that the library uses
        return calls[name](image, detect_resolution=SIDE, output_type="np", **options)[..., 0]


@pytest.mark.parametrize("name", ["pidinet", "teed", "lineart-realistic"])
def test_the_map_is_controlnet_auxs_to_the_pixel(
    astronaut: np.ndarray, library: dict[str, Any], weights: dict[str, str], name: str
) -> None:
    """But where a sum in another order falls on the other side of a whole number: by one, a pixel in a
    thousand.
    """
    image = resize(astronaut, (SIDE, SIDE + 64))
    wanted, ours = published(image, name, library), map_of(image, name, weights)
    apart = np.abs(ours.astype(int) - wanted)
    assert wanted.shape == ours.shape == (SIDE, SIDE + 64)
    assert wanted.std() > 20 and np.ptp(wanted) > 150, "not a trivial picture"
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


def test_coarse_lines_are_those_of_the_second_network(
    small: np.ndarray, library: dict[str, Any], weights: dict[str, str]
) -> None:
    image = resize(small, (SIDE, SIDE))
    apart = map_of(image, "lineart-coarse", weights).astype(int) - published(image, "lineart-coarse", library)
    assert np.abs(apart).max() <= 1
    assert [DETECTORS[f"lineart-{one}"].weights for one in ("realistic", "coarse")] == [
        (lineart.FINE,),
        (lineart.COARSE,),
    ]


def test_anyline_is_controlnet_auxs_where_bytes_are_blended(
    astronaut: np.ndarray, library: dict[str, Any], weights: dict[str, str]
) -> None:
    """A strength at a third of 1 falls on the one or the other side: a whole level, two pixels in a
    thousand.
    """
    image = np.ascontiguousarray(astronaut[:SIDE, 64 : 64 + SIDE])
    wanted = published(image, "anyline", library)
    ours = map_of(image, "anyline", weights, blend="bytes")
    assert len(np.unique(wanted)) > 100 and wanted.std() > 30
    assert (np.abs(ours.astype(int) - wanted) > 1).mean() < 2e-3


def test_seen_larger_a_map_of_teed_and_anyline_comes_back_as_the_library_brings_it(
    small: np.ndarray, library: dict[str, Any], weights: dict[str, str]
) -> None:
    image = np.ascontiguousarray(small[:100, :75])
    for name, params in (("teed", {}), ("anyline", {"blend": "bytes"})):
        wanted, ours = published(image, name, library), map_of(image, name, weights, **params)
        assert wanted.shape == ours.shape == (100, 75)
        assert (np.abs(ours.astype(int) - wanted) > 1).mean() < 5e-3, name


def test_dark_lines_over_edges_brighten_them_as_the_authors_of_anyline_say() -> None:
    edges, lines = (each.astype(np.uint8) for each in np.meshgrid(np.array([0, 127, 255]), np.arange(256)))
    wanted = 255 * (1 - (1 - edges / 255) * (1 - lines / 255))
    blended = teed.BLENDS["screen"](edges, lines)
    assert np.abs(blended - wanted).max() <= 0.5 + 1e-4
    assert (blended >= np.maximum(edges, lines)).all()
    apart = teed.BLENDS["bytes"](edges, lines) != blended
    assert apart[1:, 1:].mean() > 0.5 and not apart[:, 0].any() and not apart[0].any()


def test_thirds_of_the_strength_are_the_librarys_three_levels() -> None:
    from controlnet_aux.util import safe_step

    strengths = np.linspace(0, 1, 100_001)
    wanted = (safe_step(strengths, 2) * 255.0).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(teed.three_levels(strengths), wanted)


def test_safe_edges_are_the_librarys_when_version_1_1_draws_them(
    small: np.ndarray, library: dict[str, Any], weights: dict[str, str]
) -> None:
    image = resize(small, (SIDE, SIDE))
    for name, safe in (("pidinet", {"safe": True}), ("teed", {"safe_steps": 2})):
        wanted = published(image, name, library, **safe)
        drawn = render(RawMap("soft_edges", map_of(image, name, weights)), protocol="cn11")[..., 0]
        assert set(np.unique(wanted)) == {0, 127, 255}
        assert (drawn != wanted).mean() < 2e-3, name


@pytest.mark.parametrize("kind", ["cd", "ad", "rd", "cv"])
def test_a_plain_convolution_gives_what_pixel_differences_give(kind: str) -> None:
    from controlnet_aux.pidi.model import createConvFunc
    from torch.nn.functional import conv2d

    torch.manual_seed(0)
    x, weight = torch.randn(1, 6, 9, 11), torch.randn(6, 1, 3, 3)
    number = pidinet.TURNS.index(kind)
    name = f"block1_{number}.conv1.weight" if number else "block1_4.conv1.weight"
    converted = pidinet.plain(name, weight)
    ours = conv2d(x, converted, padding=converted.shape[-1] // 2, groups=6)
    torch.testing.assert_close(ours, createConvFunc(kind)(x, weight, padding=1, groups=6))


def test_a_line_drawing_is_cut_at_the_threshold_where_a_condition_keeps_edges(
    astronaut: np.ndarray, weights: dict[str, str]
) -> None:
    image = resize(astronaut, (SIDE, SIDE))
    assert CONDITIONS["cartoon"].kind == "edges"
    for name in ("anyline", "lineart-realistic"):
        greys = map_of(image, name, weights)
        for threshold in (64, 200):
            edges = map_of(image, name, weights, condition="cartoon", threshold=threshold)
            np.testing.assert_array_equal(edges, np.where(greys >= threshold, 255, 0))


@pytest.mark.parametrize("name", SOFT)
def test_an_image_has_the_same_map_alone_and_among_others(
    astronaut: np.ndarray, weights: dict[str, str], name: str
) -> None:
    images = [np.ascontiguousarray(astronaut[:128, x : x + 128]) for x in (0, 200)]
    images.append(astronaut[:97, :140].copy())
    for image, one in zip(images, found(images, name, weights[name], resolution=128), strict=True):
        assert one.map is not None and one.map.array.shape == image.shape[:2]
        alone = found([image], name, weights[name], resolution=128)[0]
        np.testing.assert_array_equal(one.map.array, alone.map.array)


@pytest.mark.parametrize("name", SOFT)
def test_bf16_stays_close_to_fp32(small: np.ndarray, weights: dict[str, str], name: str) -> None:
    """Measured on these weights: 1.0 to 1.8 of 255 on average, 16 at most, or a level of AnyLine."""
    image = resize(small, (SIDE, SIDE))
    exact, fast = (map_of(image, name, weights, precision=one).astype(int) for one in ("fp32", "bf16"))
    assert 0 < np.abs(exact - fast).mean() < 6


@pytest.mark.parametrize("name", SOFT)
def test_a_network_that_finds_nothing_gives_a_row_with_a_reason_and_a_broken_one_fails(
    flat: np.ndarray, library: dict[str, Any], weights: dict[str, str], tmp_path: Path, name: str
) -> None:
    last = {
        "pidinet": ("classifier",),
        "teed": ("up_block_1.features.2", "up_block_2.features.2", "up_block_3.features.5"),
        "lineart-realistic": ("model4.1",),
    }["teed" if name == "anyline" else name]
    tensors = {each: tensor.clone() for each, tensor in library[name].state_dict().items()}
    for layer in last:
        tensors[f"{layer}.weight"][:] = 0
        tensors[f"{layer}.bias"][:] = 60 if name == "lineart-realistic" else -60  # paper is white there
    for each in tensors:  # the fourth side of TEED is made from the other three
        if each.startswith("block_cat."):
            tensors[each][:] = 0
    torch.save(tensors, tmp_path / "nothing.pth")
    empty = found([flat], name, str(tmp_path / "nothing.pth"))[0]
    assert empty.status == "skipped" and "no edge stronger than" in empty.reason
    tensors[f"{last[0]}.bias"][:] = float("nan")
    torch.save(tensors, tmp_path / "broken.pth")
    broken = found([flat], name, str(tmp_path / "broken.pth"))[0]
    assert broken.status == "failed" and "not finite" in broken.reason
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    wrong = found([flat], name, str(tmp_path / "other.pth"))[0]
    assert wrong.status == "failed" and "other.pth holds no weights of" in wrong.reason


def test_the_file_of_anyline_is_found_in_its_own_folder_and_without_it(
    weights: dict[str, str], tmp_path: Path
) -> None:
    from annotate.weights import find

    for inner in ("MTEED.pth", "Anyline/MTEED.pth"):
        place = tmp_path / inner.replace("/", "-") / inner
        place.parent.mkdir(parents=True)
        place.write_bytes(Path(weights["anyline"]).read_bytes())
        assert find(teed.MTEED, str(tmp_path / inner.replace("/", "-"))) == place
