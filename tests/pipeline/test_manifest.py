"""A manifest is checked before anything runs; each mistake is one sentence with file, line, key and fix."""

from pathlib import Path

import pytest

from pipeline import MillError
from pipeline.manifest import Run, dump, load

GOOD = """
name: x
workspace: w
source: {kind: folder, path: photos}
conditions: {canny: {low: 50}}
"""
RUN = "train: {base: random, runs: [{conditions: [canny], images: 8"  # open, for more keys


def problem(tmp_path: Path, text: str) -> str:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(MillError) as caught:
        load(path)
    return str(caught.value)


def test_a_good_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(GOOD)
    given = load(path)
    assert given.conditions["canny"].params == {"low": 50}
    path.write_text(dump(given))
    assert load(path) == given


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("folder, path", "folder, pth"), "m.yaml:4: source.path: missing; add it."),
        (("path: photos", "path: photos, capions: sidecar"), "m.yaml:4: source.capions: unknown key; did you mean 'captions'?"),
        (("kind: folder", "kind: zip"), "must be one of folder, list, webdataset, img2dataset, parquet, huggingface, scenes."),
        (("kind: folder, ", ""), "m.yaml:4: source: `kind:` must be one of folder, list, webdataset, img2dataset, parquet, huggingface, scenes."),
        (("name: x", "name: x\nname: y"), "m.yaml:3: the key 'name' stands twice; keep one."),
        (("name: x", "name: x\nimage: {resolution: 500}"), "m.yaml:3: image.resolution: input should be a multiple of 64 (found 500)."),
        (("name: x", "name: x\nimage: {resolution: big}"), "m.yaml:3: image.resolution: input should be a valid integer (found 'big')."),
        (("name: x", "name: x\nsplit: {test: 0.7, validation: 0.3}"), "m.yaml:3: split: validation + test must leave something to train on"),
        (("name: x", "name: x\ntrain: {base: random, runs: [{conditions: [hed], images: 8}]}"), "'hed', which `conditions:` does not make"),
        (("name: x", "name: x\ntrain: {base: random, runs: [{conditions: [canny], images: 8, lr: -1}]}"), "train.runs[0].lr: input should be"),
        (("name: x", f"name: x\n{RUN}, unlock: base}}]}}"), "train.runs[0].unlock: input should be 'none', 'decoder' or 'all' (found 'base')."),
        (("name: x", f"name: x\n{RUN}, unlock_lr: 2.0e-6}}]}}"), "train.runs[0]: unlock_lr says nothing while unlock is none"),
        (("name: x", f"name: x\n{RUN}, ema: 0.9999}}]}}"), "train.runs[0]: ema is a half-life in images, not a decay per step (0.9999)"),
        (("name: x", f"name: x\n{RUN}, min_snr: 0}}]}}"), "train.runs[0].min_snr: input should be greater than 0"),
        (("name: x", "name: x\nevaluate: {}"), "`evaluate:` needs a base model to sample from: set evaluate.base, or add a `train:` section"),
        (("name: x", "name: x\nevaluate: {base: b, readers: {hed: {detector: mlsd}}}"), "evaluate.readers reads 'hed', which `conditions:` does"),
        (("name: x", "name: x\nevaluate: {base: b, external: [{name: a, condition: hed, checkpoint: c}]}"), "evaluate.external[0] follows 'hed'"),
        (("name: x", f"name: x\n{RUN}, ema: .inf}}]}}"), "train.runs[0].ema: input should be a finite number (found inf)."),
        (("name: x", f"name: x\n{RUN}, min_snr: .inf}}]}}"), "train.runs[0].min_snr: input should be a finite number (found inf)."),
        (("name: x", "name: x\n" + RUN.replace("[canny]", "[canny, canny]") + "}]}"), "train.runs[0]: conditions names canny twice: keep one."),
        (("name: x", f"name: x\n{RUN}, gpus: 3}}]}}"), "train.runs[0]: batch (4) must be a multiple of gpus (3), which share it: set it to 6."),
        (("name: x", f"name: x\n{RUN}, compile: often}}]}}"), "train.runs[0].compile: input should be 'auto', True or False (found 'often')."),
        (("name: x", f"name: x\n{RUN}, flip: 2}}]}}"), "train.runs[0].flip: input should be less than or equal to 1 (found 2)."),
        (("name: x", f"name: x\n{RUN}, warm_start: canny}}]}}"), "m.yaml:3: train: runs[0].warm_start: this run trains 'canny' itself: name a"),
        (("{canny: {low: 50}}", "[canny]"), "m.yaml:5: conditions: input should be a valid dictionary"),
        (("name: x", "- name"), "not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_says_where(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    assert expected in problem(tmp_path, GOOD.replace(*change))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = problem(tmp_path, GOOD.replace("name: x", "name: x\nimage: {resolution: 1, fit: squash}"))
    assert len(told.splitlines()) == 2


def test_a_missing_manifest_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="can't be read: No such file"):
        load(tmp_path / "none.yaml")


def test_a_saved_manifest_reads_as_what_was_saved_null_included(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(GOOD + "split: {near: null}\n")
    given = load(path)
    assert given.split.near is None
    path.write_text(dump(given))
    assert load(path) == given


def test_the_modes_of_a_run_are_read_and_only_a_run_of_one_condition_is_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        GOOD + RUN + ", connect: middle, unlock: all, unlock_lr: 2.0e-6, min_snr: 5, ema: 20000, gradient_checkpointing: true}]}"
    )
    run = load(path).train.runs[0]
    assert (run.connect, run.unlock, run.unlock_lr, run.min_snr, run.ema, run.gradient_checkpointing) == (
        "middle",
        "all",
        2e-6,
        5,
        20000,
        True,
    )
    two = GOOD.replace("{canny: {low: 50}}", "{canny: {}, hed: {}}") + RUN.replace("[canny]", "[canny, hed]")
    assert "canny and hed share one locked base" in problem(tmp_path, two + ", unlock: decoder}]}")


def test_a_warm_start_waits_for_the_nearest_run_above_and_runs_in_a_circle_are_told(tmp_path: Path) -> None:
    def runs(*each: tuple[str, str]) -> str:
        told = ", ".join(f"{{conditions: [{name}], images: 8, warm_start: {source}}}" for name, source in each)
        return GOOD.replace("{canny: {low: 50}}", "{canny: {}, hed: {}, hough: {}}") + f"train: {{base: random, runs: [{told}]}}"

    circle = problem(tmp_path, runs(("canny", "hough"), ("hed", "canny"), ("hough", "hed")))
    assert "train: runs[0].warm_start: runs 0, 2, 1 wait for each other in a circle: take one warm_start out." in circle
    path = tmp_path / "m.yaml"
    path.write_text(runs(("hough", "canny"), ("canny", "null"), ("canny", "canny"), ("hed", "canny"), ("hed", "elsewhere")))
    train = load(path).train
    assert train and [train.waits_for(number) for number in range(5)] == [{"hough": 1}, {}, {"canny": 1}, {"hed": 2}, {}]


def test_each_condition_of_a_run_may_start_from_elsewhere(tmp_path: Path) -> None:
    def runs(*each: str) -> str:
        conditions = GOOD.replace("{canny: {low: 50}}", "{canny: {}, hed: {}, hough: {}, sketch: {}}")
        return conditions + f"train: {{base: random, runs: [{', '.join(f'{{images: 8, {run}}}' for run in each)}]}}"

    both = "conditions: [hed, hough, sketch], warm_start: {hed: canny, hough: mini/canny}"
    path = tmp_path / "m.yaml"
    path.write_text(runs("conditions: [canny]", both))
    train = load(path).train
    assert train and train.runs[1].starts == {"hed": "canny", "hough": "mini/canny"} and train.waits_for(1) == {"hed": 0}
    assert Run(conditions=["hed", "hough"], images=8, warm_start="canny").starts == {"hed": "canny", "hough": "canny"}
    assert Run(conditions=["hed"], images=8).starts == {}
    stray = problem(tmp_path, runs("conditions: [canny], warm_start: {hed: mini/canny}"))
    assert "train.runs[0]: warm_start names hed, which this run does not train: take it out, or add it to conditions." in stray
    circle = problem(tmp_path, runs("conditions: [canny], warm_start: {canny: hough}", "conditions: [hed, hough], warm_start: {hed: canny}"))
    assert "train: runs[0].warm_start: runs 0, 1 wait for each other in a circle" in circle
    own = problem(tmp_path, runs("conditions: [canny, hed], warm_start: {hed: canny}"))
    assert "train: runs[0].warm_start: this run trains 'canny' itself" in own


def test_a_key_left_alone_leaves_a_runs_name_alone() -> None:
    """Runs trained before a key was there must be found again under their names."""
    plain = Run(conditions=["canny"], images=8)
    assert set(plain.identity) == {
        "conditions", "images", "batch", "micro_batch", "lr", "prompt_drop", "seed", "checkpoint_every", "warm_start"
    }  # fmt: skip
    for operational in (
        {"gradient_checkpointing": True}, {"held_out": 8}, {"watch_every": 8}, {"grids": 2}, {"keep_every": 8}, {"checkpoint_every": 4},
        {"micro_batch": 2},
    ):  # fmt: skip
        assert Run(conditions=["canny"], images=8, **operational).identity == plain.identity
    changes = [
        {"connect": "middle"}, {"unlock": "all"}, {"unlock": "all", "unlock_lr": 1e-6}, {"min_snr": 5}, {"ema": 100}, {"precision": "fp32"},
        {"compile": True}, {"compile": False}, {"optimizer": "adamw8bit"}, {"flip": 0.5}, {"join": True}, {"gpus": 2},
    ]  # fmt: skip
    found = [Run(conditions=["canny"], images=8, **change).identity for change in changes]
    assert all(one != other for i, one in enumerate([plain.identity, *found]) for other in found[i:] if one is not other)
