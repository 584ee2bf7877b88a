"""How the mini scorer is made: captions with one thing changed, a toy from a manifest alone, and what the
shipped one tells.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline import MillError, scenes
from pipeline.mini import scorer as stage
from pipeline.mini.scorer import CHANGES, changed
from pipeline.scenes import camera, description
from pipeline.scenes.props import CLASSES, COLOURS

ROOT = Path(__file__).parents[3]
TOY = """
name: toy
scenes: {count: 6, seed: 3, held_out: {count: 34, seed: 4}, resolution: 64}
recipe: {images: 16, batch: 8, lr: 1.0e-3}
"""
ONE = (
    "one object: a white matte sphere on the left; a person in a green shirt and white trousers walking on"
    " the left, facing us; white brick wall"
)
TWO = (
    "two objects: an orange glossy sphere in the middle, a purple checked box on the left; a person in a"
    " purple shirt and orange trousers crouching on the left, facing right; the orange sphere in front of the"
    " purple box; red carpet, plain blue wall, light from the left"
)


def written(tmp_path: Path, text: str = TOY) -> Path:
    path = tmp_path / "scorer.yaml"
    path.write_text(text)
    return path


def all_changes(caption: str, kind: str) -> set[str]:
    return {str(changed(caption, kind, np.random.default_rng(seed))) for seed in range(300)}


def test_the_shipped_manifest_is_complete_and_asks_for_held_out_scenes_of_another_seed() -> None:
    path = ROOT / "manifests" / "mini" / "scorer.yaml"
    plan = stage.load(path)
    assert plan.scenes.seed != plan.scenes.held_out.seed and stage.recipe_of(plan).images > 0
    assert (plan.scenes.most_objects, plan.scenes.least_box, plan.scenes.least_visible) == (4, 0, 0)


def test_a_mistake_in_its_recipe_is_named_by_file_and_key(tmp_path: Path) -> None:
    path = written(tmp_path, TOY.replace("lr:", "rate:"))
    with pytest.raises(MillError, match=r"recipe\.rate: unknown key; known keys: .*lr"):
        stage.recipe_of(stage.load(path))


def test_another_colour_is_one_that_no_object_has_wherever_it_is_said() -> None:
    fresh = set(COLOURS) - {"orange", "purple"}
    wanted = {
        TWO.replace("an orange glossy sphere", f"a {one} glossy sphere").replace(
            "the orange sphere", f"the {one} sphere"
        )
        for one in fresh
    }
    wanted |= {
        TWO.replace("purple checked box", f"{one} checked box").replace("purple box", f"{one} box")
        for one in fresh - {"white"}
    }
    assert all_changes(TWO, "another colour") == wanted  # a pattern on white would not be drawn


def test_another_shape_is_one_that_can_have_the_gloss() -> None:
    assert all_changes(TWO, "another shape") == {
        *(TWO.replace("sphere", one) for one in ("cylinder", "cone")),
        *(
            TWO.replace("purple checked box", f"purple checked {one}").replace("purple box", f"purple {one}")
            for one in ("sphere", "cylinder", "cone", "pyramid")
        ),
    }


def test_another_place_leaves_the_person_where_it_is() -> None:
    assert all_changes(ONE, "another place") == {
        ONE.replace("sphere on the left", f"sphere {one}") for one in ("in the middle", "on the right")
    }


def test_two_colours_are_exchanged_with_their_articles_and_one_can_not_be() -> None:
    wanted = TWO.replace("an orange glossy", "a purple glossy").replace(
        "a purple checked", "an orange checked"
    )
    wanted = wanted.replace(
        "the orange sphere in front of the purple box", "the purple sphere in front of the orange box"
    )
    assert all_changes(TWO, "two colours exchanged") == {wanted}
    assert all_changes(ONE, "two colours exchanged") == {"None"}
    same = "two objects: a red matte cone on the left, a blue matte cone on the left; red carpet"
    assert all_changes(same, "two colours exchanged") == {"None"}  # it would say the same


@pytest.mark.parametrize("kind", CHANGES[:3])
def test_every_caption_of_the_renderer_can_be_changed_into_another_with_as_many_words(kind: str) -> None:
    for index in range(8):
        caption = scenes.render(5, index, 64).caption
        other = changed(caption, kind, np.random.default_rng(index))
        assert (
            other and other != caption and len(re.findall(r"\w+", other)) == len(re.findall(r"\w+", caption))
        )


def test_the_words_that_can_change_are_the_renderers() -> None:
    assert set(stage.SHAPES) == set(CLASSES) - {"person"}
    view = camera.View(focal=1, height=1, pitch=0, wall=1, yaw=0)
    for colour in COLOURS:
        for shape in stage.SHAPES:
            one = description.SceneObject(
                shape, colour, "matte", 2, description.PLACES[1], (0.0, 0.0, 1.0, 1.0), visible=1.0
            )
            text = description.describe(description.SceneGraph(view, "f", "w", "l", (one,), None, None))
            match = stage.THING.search(text)
            assert match and match.groups()[1:] == (colour, "matte", shape, "in the middle")


def test_an_unknown_change_is_refused() -> None:
    with pytest.raises(ValueError, match="no change, known ones are another colour"):
        changed(ONE, "another sky", np.random.default_rng(0))


def test_a_scorer_is_made_in_two_sittings_and_exported_from_a_manifest_alone(tmp_path: Path) -> None:
    import torch

    from evaluate import mini

    torch.set_num_threads(1)
    path, work, dest = written(tmp_path), tmp_path / "work", tmp_path / "out"
    with pytest.raises(MillError, match="holds no training yet"):
        stage.export_scorer(path, work, dest)
    assert not stage.make_scorer(path, work, seconds=0)
    assert stage.make_scorer(path, work)
    found = stage.export_scorer(path, work, dest)
    scorer, note = mini.load(dest), json.loads((dest / "scorer.json").read_text())
    assert (
        note["spent"]["images"] == 16 and note["scores"] == found and note["made_from"]["scenes"]["seed"] == 3
    )
    assert found["caption first of 32"]["n"] == found["caption before one with another colour"]["n"] == 34
    assert scorer.net.sizes.side == 64 and scorer.sha256 in (dest / "README.md").read_text()
    assert "right" in scorer.net.words and scorer.known([scenes.render(3, 0, 64).caption]) == [1]


def test_the_shipped_scorer_tells_scenes_it_has_never_seen_by_their_captions() -> None:
    import torch

    from evaluate import mini
    from evaluate.mini import scores

    torch.set_num_threads(1)
    drawn = [scenes.render(4711, index, 128) for index in range(40)]
    scorer = mini.load()
    captions = [scene.caption for scene in drawn]
    assert (scorer.known(captions) == 1).all()
    found = scores.measure(scorer, np.stack([scene.image for scene in drawn]), captions, {})
    assert found["caption first of 32"].value >= 0.8 and found["picture first of 32"].value >= 0.8
