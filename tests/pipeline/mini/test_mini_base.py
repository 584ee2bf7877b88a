"""What the mini models are made of: a manifest, and scenes that are simple enough."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import MillError, scenes
from pipeline.mini import base as mini
from pipeline.mini.scenes import render
from pipeline.scenes import description
from pipeline.scenes.description import SceneObject

ROOT = Path(__file__).parents[3]
GOOD = """
name: toy
scenes: {count: 12, seed: 3, held_out: {count: 6, seed: 4}, resolution: 64, most_objects: 2,
         least_box: 0.06, least_visible: 0.7}
recipe: {autoencoder: {images: 8}, denoiser: {widths: [8, 16, 16, 16], lr: 1.0e-4}}
"""


def written(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "mini.yaml"
    path.write_text(text)
    return path


def test_the_shipped_manifest_is_complete_and_asks_for_held_out_scenes_of_another_seed() -> None:
    path = ROOT / "manifests" / "mini" / "base.yaml"
    plan = mini.load(path)
    recipe = mini.recipe_of(plan)
    assert plan.scenes.seed != plan.scenes.held_out.seed and recipe.autoencoder.latent_channels in (4, 8)


def test_what_a_recipe_says_reaches_the_trainer_and_the_rest_is_default(tmp_path: Path) -> None:
    path = written(tmp_path)
    recipe = mini.recipe_of(mini.load(path))
    assert (recipe.autoencoder.images, recipe.denoiser.widths, recipe.denoiser.lr) == (
        8,
        (8, 16, 16, 16),
        1e-4,
    )
    assert recipe.denoiser.batch == type(recipe.denoiser)().batch


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lr: 1.0e-4", "rate: 1.0e-4", ":[0-9]+: recipe.denoiser.rate: unknown key"),
        ("lr: 1.0e-4", "lr: fast", ":[0-9]+: recipe.denoiser.lr: write a number, not 'fast'"),
        ("count: 12", "count: 0", ":[0-9]+: scenes.count: write a number of at least 1, not 0"),
        ("name: toy", "title: toy", "title: unknown key; known keys: name, recipe, scenes"),
    ],
)
def test_a_mistake_in_a_manifest_is_named_by_file_and_key(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    path = written(tmp_path, GOOD.replace(before, after))
    with pytest.raises(MillError, match=message) as caught:
        mini.recipe_of(mini.load(path))
    assert str(path) in str(caught.value)


def test_only_simple_scenes_are_kept_and_they_are_rendered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = mini.load(written(tmp_path)).scenes
    seen, held_out = render(plan, tmp_path)
    kept = [index for index in range(12) if plan.limits.hold(scenes.render(3, index, 64).graph)]
    assert 0 < len(kept) < 12 and len(seen.captions) == len(kept)
    last = scenes.render(3, kept[-1], 64)
    assert (seen.images([len(kept) - 1])[0] == last.image).all()
    assert seen.caption(len(kept) - 1) == last.caption and seen.caption(
        2 * len(kept) - 1
    ) == description.mirrored(last.caption)
    monkeypatch.setattr(scenes, "render", None)
    again, _ = render(plan, tmp_path)
    assert again.captions == seen.captions and len(held_out.captions) > 0


def test_a_scene_is_simple_by_number_size_and_sight_of_its_objects(tmp_path: Path) -> None:
    limits = mini.load(written(tmp_path)).scenes.limits
    good = SceneObject("box", "red", "matte", 2, "in the middle", (0.1, 0.1, 0.5, 0.5), visible=0.9)
    graph = scenes.render(3, 0, 64).graph
    assert limits.hold(replace(graph, objects=(good, good)))
    hidden, small = replace(good, visible=0.5), replace(good, box=(0.1, 0.1, 0.3, 0.3))
    for bad in ((good, good, good), (good, hidden), (small,)):
        assert not limits.hold(replace(graph, objects=bad))


def test_a_base_can_be_made_and_exported_from_a_manifest_alone(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    text = GOOD.replace(
        "images: 8", "images: 8, polish: 0, batch: 4, widths: [16, 48, 48, 32], bf16: false"
    ).replace(
        "lr: 1.0e-4", "lr: 1.0e-4, groups: 4, heads: 2, text_width: 16, text_layers: 1, images: 8, batch: 4"
    )
    path = written(tmp_path, text)
    assert not mini.make_base(path, tmp_path / "work", seconds=0)
    assert mini.make_base(path, tmp_path / "work")
    found = mini.export_base(path, tmp_path / "work", tmp_path / "base", count=2)
    assert found["n"] == 2 and np.isfinite(found["reconstruction_psnr"][0])
    page = (tmp_path / "base" / "README.md").read_text()
    assert "Training is complete" in page and "rendered scenes (seed 3, 64x64) with at most 2 objects" in page
