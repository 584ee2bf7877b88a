"""From a manifest to a detector with its card."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import MillError, scenes
from pipeline.mini import detector

TEXT = """
name: toy
scenes: {count: 6, seed: 3, held_out: {count: 3, seed: 4}, resolution: 64}
recipe: {images: 4, figures: 2, batch: 2, widths: [16, 16, 16, 16], bf16: false}
"""


def test_a_detector_is_made_and_exported_from_a_manifest_alone(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    path = tmp_path / "detector.yaml"
    path.write_text(TEXT)
    with pytest.raises(MillError, match="holds no training yet"):
        detector.export_detector(path, tmp_path / "work", tmp_path / "out")
    assert not detector.make_detector(path, tmp_path / "work", seconds=0)
    assert detector.make_detector(path, tmp_path / "work")
    found = detector.export_detector(path, tmp_path / "work", tmp_path / "out")
    assert found["scenes"]["n"] == 3
    page, told = (
        (tmp_path / "out" / "README.md").read_text(),
        json.loads((tmp_path / "out" / "detector.json").read_text()),
    )
    assert (
        "held out: seed 4" in page
        and told["sha256"] in page
        and told["spent"]["images"] == 4
        and told["spent_on_figures"]["images"] == 2
    )


def test_the_truth_is_that_of_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "detector.yaml"
    path.write_text(TEXT)
    training, _ = detector.render(detector.load(path), tmp_path)
    vocabulary = detector.vocabulary()
    for row in range(6):
        scene, truth = scenes.render(3, row, 64), training.truth([row])
        assert (truth.images[0] == scene.image).all()
        for column, name, space in ((1, "seg_coco", "coco_stuff_171"), (2, "seg_ade20k", "ade20k_150")):
            from annotate.label_spaces import SPACES

            table = np.array([SPACES[space].names.index(word[column]) for word in vocabulary.classes])
            assert (table[truth.classes[0]] == scene.maps[name].array).all(), (
                "the joint classes say what both label spaces say"
            )
        assert training.wanted[row].objects == tuple((one.shape, one.colour) for one in scene.graph.objects)
        assert training.wanted[row].person == bool(scene.graph.person) == bool(truth.joints.any())
        assert vocabulary.wanted(scene.caption) == training.wanted[row], (
            "the caption names what the graph knows"
        )
        assert np.allclose(truth.depth[0], scene.maps["depth_large"].array, rtol=1e-3)
    monkeypatch.setattr(scenes, "render", None)
    again, _ = detector.render(detector.load(path), tmp_path)
    assert again.wanted == training.wanted


def test_pictures_through_a_vae_are_made_once_for_each_vae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.mini import autoencoder, base

    path = tmp_path / "detector.yaml"
    path.write_text(TEXT.replace("recipe:", f"base: {tmp_path}\nrecipe:"))
    with pytest.raises(MillError, match="base: there is no"):
        detector.render(detector.load(path), tmp_path / "work")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / base.VAE_FILE).write_text("one")
    monkeypatch.setattr(base, "load_vae", lambda folder: None)
    monkeypatch.setattr(autoencoder, "reconstruct", lambda vae, images: 255 - images)
    training, held_out = detector.render(detector.load(path), tmp_path / "work")
    truth = training.truth([0, 1], returned=np.array([False, True]))
    assert (truth.images[0] == scenes.render(3, 0, 64).image).all() and (
        truth.images[1] == 255 - scenes.render(3, 1, 64).image
    ).all()
    assert (held_out.returned == 255 - held_out.truth([0, 1, 2]).images).all()
    monkeypatch.setattr(autoencoder, "reconstruct", lambda vae, images: images)
    assert (detector.render(detector.load(path), tmp_path / "work")[1].returned == held_out.returned).all()
    (tmp_path / "vae" / base.VAE_FILE).write_text("another")
    assert (detector.render(detector.load(path), tmp_path / "work")[1].returned != held_out.returned).any()


def test_the_shipped_detector_reads_scenes_that_it_has_never_seen() -> None:
    from annotate.mini import detect, scores

    seen = [scenes.render(912, index) for index in range(12)]
    net = detect.load()
    readings = detect.read(net, [scene.image for scene in seen])
    hits = [
        hit
        for one, scene in zip(readings, seen, strict=True)
        for hit in scores.recall_hits(one, net.vocabulary.wanted(scene.caption))
    ]
    assert len(hits) > 20 and np.mean(hits) >= 0.9
    ratios = [one.depth / scene.maps["depth_large"].array for one, scene in zip(readings, seen, strict=True)]
    assert np.mean([np.maximum(ratio, 1 / ratio) < 1.25 for ratio in ratios]) >= 0.95
    people = [
        (one.joints, scene.maps["pose_openpose"].array[0])
        for one, scene in zip(readings, seen, strict=True)
        if scene.graph.person
    ]
    near = [hit for made, true in people for hit in scores.near(made, true)]
    assert len(near) > 30 and np.mean(near) >= 0.85
    assert net.vocabulary == detector.vocabulary(), "made again, it would learn the same classes"
