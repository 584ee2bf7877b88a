"""Canonical images become latents: images of one size pass the VAE together, mirror images have their own,
keys stay as they were.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import plan
from pipeline.experiment.base import latent_key
from pipeline.experiment.packing import pack, unpack
from pipeline.manifest import load
from pipeline.stages import encode
from pipeline.storage import codec, shards

SIZES = [(64, 64), (64, 128), (64, 64), (128, 64), (64, 64)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    from train.random_base import build_random

    folder = tmp_path_factory.mktemp("bases") / "random"
    build_random(folder)
    return str(folder)


def pixels(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    height, width = SIZES[number]
    return np.kron(coarse, np.ones((height // 4, width // 4, 1), np.uint8))


def encoded(base: str, folder: Path, uris: list[str], *, flips: bool) -> list[dict[str, Any]]:
    rows = [
        {
            "image_id": str(i),
            "status": "ok",
            "uri": uri,
            "height": h,
            "width": w,
            "image": codec.encode(pixels(i), "png"),
        }
        for i, (uri, (h, w)) in enumerate(zip(uris, SIZES, strict=True))
    ]
    images = shards.write(
        folder / "images.parquet", rows, shards.IMAGES, {"kind": "images", "key": "k", "part": 0}
    ).path
    args = encode.EncodePart(
        path=folder / "latents.parquet",
        images=images,
        part=0,
        key="k",
        image_key="i",
        base=base,
        flips=flips,
        gone=frozenset(),
        again=None,
        made_from="m",
    )
    encoded = encode.encode_part(args, (0, 1, 2, 3, 4), {3: "killed its worker"}, False)
    assert encoded
    path = encoded.path
    return shards.read(path).to_pylist()


def test_images_of_one_size_pass_the_vae_together_and_each_keeps_its_own_latents(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import encoders

    monkeypatch.setitem(encode.BATCH, "cpu", 4)
    passes: list[tuple[int, ...]] = []
    plain = encoders.encode_images
    monkeypatch.setattr(
        encoders,
        "encode_images",
        lambda loaded, images: (passes.append(images.shape[:3]), plain(loaded, images))[1],
    )
    rows = encoded(base, tmp_path, ["x"] * 5, flips=False)
    assert sorted(passes) == [(1, 64, 128), (3, 64, 64)], "the poison row is left out"
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed", "ok"]
    assert not set(shards.MIRRORED) & set(rows[0]), "what is made without flips stays as it was"
    loaded = encode.load_vae(base, "cpu")
    for number in (0, 1, 2, 4):
        mean, std = (array[0] for array in plain(loaded, pixels(number)[None]))
        for name, expected in (("mean", mean), ("std", std)):
            found = unpack(rows[number][name])
            assert found.shape == expected.shape and np.allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_on_a_cpu_no_image_depends_on_its_neighbours(base: str, tmp_path: Path) -> None:
    from train import encoders

    rows, loaded = encoded(base, tmp_path, ["x"] * 5, flips=False), encode.load_vae(base, "cpu")
    for number in (0, 1, 2, 4):
        alone = encoders.encode_images(loaded, pixels(number)[None])
        for name, (expected,) in zip(("mean", "std"), alone, strict=True):
            assert rows[number][name] == pack(expected)


def test_a_batch_that_memory_is_too_small_for_is_encoded_in_halves(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import encoders

    monkeypatch.setitem(encode.BATCH, "cpu", 4)
    (tmp_path / "whole").mkdir()
    whole = encoded(base, tmp_path / "whole", ["x"] * 5, flips=False)
    tried: list[int] = []
    plain = encoders.encode_images

    def little(loaded: Any, images: np.ndarray) -> Any:
        tried.append(len(images))
        if len(images) > 1:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return plain(loaded, images)

    monkeypatch.setattr(encoders, "encode_images", little)
    rows = encoded(base, tmp_path, ["x"] * 5, flips=False)
    assert sorted(tried) == [1, 1, 1, 1, 2, 3]
    for one, other in zip(whole, rows, strict=True):
        assert one["status"] == other["status"] and one["caption"] == other["caption"]
        if one["status"] == "ok":
            assert np.allclose(unpack(one["mean"]), unpack(other["mean"]), rtol=2e-3, atol=2e-3)


def test_a_mirror_image_has_latents_of_its_own(base: str, tmp_path: Path) -> None:
    """Whatever the captions say of sides: those that are drawn are judged when they are."""
    from train import encoders

    rows = encoded(base, tmp_path, ["x", "scene://0/1", "x", "x", "x"], flips=True)
    loaded = encode.load_vae(base, "cpu")
    for number in (0, 1, 2, 4):
        mean, std = (array[0] for array in encoders.encode_images(loaded, pixels(number)[None, :, ::-1]))
        assert np.allclose(unpack(rows[number]["mean_mirrored"]), mean, rtol=2e-3, atol=2e-3)
        assert np.allclose(unpack(rows[number]["std_mirrored"]), std, rtol=2e-3, atol=2e-3)
        assert not np.allclose(unpack(rows[number]["mean"]), mean, rtol=2e-2, atol=2e-2)
    assert all(row[name] is None for row in rows for name in ("caption", "text", "text_mirrored"))


def test_a_row_that_is_made_again_keeps_the_moments_that_are_there(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of an earlier version has no mirror image where the caption of then named a side."""
    from train import encoders

    before = encoded(base, tmp_path, ["x"] * 5, flips=True)
    before[2] |= {"caption": "left-handed", "text": b"", "mean_mirrored": None, "std_mirrored": None}
    path, about = tmp_path / "latents.parquet", {"kind": "latents", "key": "k", "part": 0}
    shards.write(path, before, shards.FLIPPED_LATENTS, about, replace=True)
    args = encode.EncodePart(
        path=path,
        images=tmp_path / "images.parquet",
        part=0,
        key="k",
        image_key="i",
        base=base,
        flips=True,
        gone=frozenset({4}),
        again=frozenset({0, 2, 4}),
        made_from="m",
    )
    passes: list[int] = []
    plain = encoders.encode_images
    monkeypatch.setattr(
        encoders,
        "encode_images",
        lambda loaded, images: (passes.append(len(images)), plain(loaded, images))[1],
    )
    again = encode.encode_part(args, (0, 1, 2, 3, 4), {}, False)
    assert again
    after = shards.read(again.path).to_pylist()
    assert passes == [1], "only the mirror image that is missing"
    assert after[2]["mean_mirrored"] is not None and after[2]["caption"] is None and after[2]["text"] is None
    assert all(after[2][name] == before[2][name] for name in ("mean", "std"))
    assert all(after[number] == before[number] for number in (0, 1, 3, 4)), "4 is gone, and keeps what it has"


def test_only_a_run_that_flips_makes_new_latents(tmp_path: Path) -> None:
    def key(run: str) -> str:
        path = tmp_path / "m.yaml"
        path.write_text(
            f"name: x\nworkspace: {tmp_path / 'w'}\nsource: {{kind: folder, path: p}}\nconditions: {{canny:"
            f" {{}}}}\ntrain: {{base: random, runs: [{{conditions: [canny], images: 8, {run}}}]}}\n"
        )
        made = plan.make(load(path), here=False)
        assert latent_key(made, "mark", mirrored=False) == "a4cad53944ffd6e3", (
            "as before mirror images were stored"
        )
        return latent_key(made, "mark")

    assert key("flip: 0.0") == key("seed: 1") != key("flip: 0.5")
