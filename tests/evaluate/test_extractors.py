"""Extractors: clean-fid's resizing, the networks of the libraries at random, weights that are those they say,
kept features.
"""

import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import small_networks
from evaluate import extractors
from evaluate.extractors import EXTRACTORS, load, mark, resize

torch.set_num_threads(1)
DRAW = np.random.default_rng(0)
IMAGES = [DRAW.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (33, 33), (80, 20))]


@pytest.mark.parametrize("side", [17, 299])
def test_resizing_is_clean_fids(side: int) -> None:
    from cleanfid.resize import make_resizer

    theirs = make_resizer("PIL", False, "bicubic", (side, side))
    for image in IMAGES:
        assert np.array_equal(resize(image, side), theirs(image))


def test_clip_and_dinov2_see_what_their_libraries_networks_see(tmp_path: Path) -> None:
    from transformers import CLIPModel, Dinov2Model

    clip, dino = small_networks.clip(tmp_path / "clip"), small_networks.dinov2(tmp_path / "dino")

    def prepared(side: int) -> torch.Tensor:
        pixels = np.stack([resize(image, side) for image in IMAGES]) / 255
        return torch.from_numpy(
            ((pixels - [0.48, 0.45, 0.4]) / [0.26, 0.25, 0.27]).transpose(0, 3, 1, 2)
        ).float()

    with torch.inference_mode():
        net = CLIPModel.from_pretrained(str(clip))
        wanted = net.visual_projection(net.vision_model(prepared(32)).pooler_output).numpy()
        seen = Dinov2Model.from_pretrained(str(dino))(prepared(28)).last_hidden_state[:, 0].numpy()
    for name, folder, expected in (("clip", clip, wanted), ("dinov2", dino, seen)):
        extractor = load(name, folder)
        found = extractor(IMAGES)
        assert found.dtype == np.float32 and found.shape == (3, extractor.dimensions)
        assert np.allclose(found, expected, atol=1e-4) and expected.std(0).min() > 1e-3
        assert (
            extractor.weights_sha256
            == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        )


def test_an_extractor_is_identified_as_it_is_when_it_is_loaded(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, dino = small_networks.clip(tmp_path / "clip"), small_networks.dinov2(tmp_path / "dino")
    published(inception, monkeypatch)
    given = {"clip": clip, "dinov2": dino, "inception": inception, "mini": None}
    assert given.keys() | {"efficientnet"} == EXTRACTORS.keys()
    for name, weights in given.items():
        extractor = load(name, weights)
        assert mark(name, weights) == (extractor.name, extractor.version, extractor.weights_sha256)
    with pytest.raises(ValueError, match="holds no network of transformers"):
        mark("clip", tmp_path)
    (dino / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        mark("dinov2", dino)


def test_an_image_has_the_same_features_alone_and_among_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors, "BATCH", 2)
    extractor = load("dinov2", small_networks.dinov2(tmp_path / "dino"))
    together = extractor(IMAGES)
    assert np.allclose(together, [extractor([image])[0] for image in IMAGES], atol=1e-5)
    assert extractor([]).shape == (0, 16)
    same = np.stack([IMAGES[1]] * 3)
    assert np.allclose(extractor(same), extractor(list(same)))


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_networks.inception(tmp_path_factory.mktemp("inception"))


def published(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the file that everybody has."""
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def test_inception_is_clean_fids_program_on_its_own_resizing(
    inception: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(inception, monkeypatch)
    found = load("inception", inception)(IMAGES)
    layers = torch.jit.load(str(inception)).layers
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([resize(image, 299) for image in IMAGES])).permute(0, 3, 1, 2)
        wanted = layers((batch - 128) / 128).numpy()
    assert np.allclose(found, wanted, atol=1e-4) and found.shape == (3, 2048) and found.std() > 0.1
    assert np.array_equal(found, load("inception", inception.parent)(IMAGES)), "a folder will do"


def test_a_torchscript_file_is_run_only_if_it_is_the_published_one(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*given: object) -> None:
        raise AssertionError("nothing is loaded before its sha256 is known")

    with monkeypatch.context() as patched:
        patched.setattr(torch.jit, "load", run)
        with pytest.raises(ValueError, match=r"not the published Inception .* no other program is run"):
            load("inception", inception)
    published(inception, monkeypatch)
    renamed = tmp_path / "fid.pt"
    renamed.write_bytes(inception.read_bytes())
    with pytest.raises(ValueError, match=r"looks for a file of the name inception-2015-12-05\.pt: rename it"):
        load("inception", renamed)
    with pytest.raises(ValueError, match=r"inception-2015-12-05\.pt is not there: download it"):
        load("inception", tmp_path)


def test_weights_are_found_below_the_folder_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_networks.clip(tmp_path / "openai" / "clip-vit-base-patch16")
    monkeypatch.setenv("CONTROLMILL_WEIGHTS", str(tmp_path))
    assert load("clip").dimensions == 8
    with pytest.raises(
        ValueError,
        match=(
            r"'dinov2' needs .*dinov2-large is not there\. Download them \(hf download facebook/dinov2-large"
            r" --exc"
        ),
    ):
        load("dinov2")
    monkeypatch.delenv("CONTROLMILL_WEIGHTS")
    with pytest.raises(
        ValueError,
        match=(
            r"none are named.*inception-2015-12-05\.pt.*put them below the folder that \$CONTROLMILL_WEIGHTS"
            r" names"
        ),
    ):
        load("inception")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not those of a Dinov2Model"):
        load("dinov2", small_networks.clip(tmp_path / "clip"))
    with pytest.raises(ValueError, match="holds no network of transformers"):
        load("clip", tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "clip" / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no weights of a CLIPModel"):
        load("clip", tmp_path)
    with pytest.raises(
        ValueError, match="no extractor 'vgg': choose one of inception, clip, dinov2, mini, efficientnet"
    ):
        load("vgg")


def test_images_in_another_form_are_refused_before_they_give_numbers(tmp_path: Path) -> None:
    extractor = load("dinov2", small_networks.dinov2(tmp_path / "dino"))
    for wrong in (IMAGES[0] / np.float32(255), IMAGES[0].transpose(2, 0, 1), IMAGES[0][..., :1]):
        with pytest.raises(ValueError, match="image 0 is"):
            extractor([wrong])


def test_a_network_of_ones_own_code_is_an_extractor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = types.SimpleNamespace(
        version="3", sha256="abc", features=lambda images: images.mean((1, 2)).astype(np.float32)
    )
    monkeypatch.setitem(sys.modules, "evaluate.efficientnet", types.SimpleNamespace(load=lambda device: net))
    extractor = load("efficientnet")
    assert (extractor.name, extractor.version, extractor.weights_sha256, extractor.dimensions) == (
        "efficientnet",
        "3",
        "abc",
        3,
    )
    assert np.allclose(extractor(IMAGES), [image.mean((0, 1)) for image in IMAGES])
