"""A manifest is checked before anything runs; each mistake is one sentence with file, line, key and fix."""

import copy
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError
from pydantic_core import core_schema

from pipeline import MillError, manifest
from pipeline.manifest import Manifest, Run, dump, load, places, wording, yaml_errors

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
        (
            ("path: photos", "path: photos, capions: sidecar"),
            "m.yaml:4: source.capions: unknown key; did you mean 'captions'?",
        ),
        (
            ("kind: folder", "kind: zip"),
            "must be one of folder, list, webdataset, img2dataset, parquet, huggingface, scenes.",
        ),
        (
            ("kind: folder, ", ""),
            (
                "m.yaml:4: source: `kind:` must be one of folder, list, webdataset, img2dataset, parquet,"
                " huggingface, scenes."
            ),
        ),
        (("name: x", "name: x\nname: y"), "m.yaml:3: the key 'name' stands twice; keep one."),
        (
            ("name: x", "name: x\nimage: {resolution: 500}"),
            "m.yaml:3: image.resolution: write a multiple of 64, not 500; left out, it is 512.",
        ),
        (
            ("name: x", "name: x\nimage: {resolution: big}"),
            "m.yaml:3: image.resolution: write a whole number, not 'big'; left out, it is 512.",
        ),
        (
            ("name: x", "name: x\nsplit: {test: 0.7, validation: 0.3}"),
            "m.yaml:3: split: validation + test must leave something to train on",
        ),
        (
            ("name: x", "name: x\ntrain: {base: random, runs: [{conditions: [hed], images: 8}]}"),
            "'hed', which `conditions:` does not make",
        ),
        (
            ("name: x", "name: x\ntrain: {base: random, runs: [{conditions: [canny], images: 8, lr: -1}]}"),
            "lr: write a number above 0, not -1; left",
        ),
        (
            ("name: x", f"name: x\n{RUN}, unlock: base}}]}}"),
            "train.runs[0].unlock: write none, decoder or all, not 'base'; left out, it is none.",
        ),
        (
            ("name: x", f"name: x\n{RUN}, unlock_lr: 2.0e-6}}]}}"),
            "train.runs[0].unlock_lr: says nothing while unlock is none",
        ),
        (
            ("name: x", f"name: x\n{RUN}, ema: 0.9999}}]}}"),
            "train.runs[0].ema: a half-life in images is wanted, not a decay per step (0.9999)",
        ),
        (
            ("name: x", f"name: x\n{RUN}, min_snr: 0}}]}}"),
            "train.runs[0].min_snr: write a number above 0 or null, not 0.",
        ),
        (
            ("name: x", "name: x\nevaluate: {}"),
            "m.yaml:3: evaluate: samples need a base model: set evaluate.base, or add a `train:` section",
        ),
        (
            ("name: x", "name: x\nevaluate: {base: b, readers: {hed: {detector: mlsd}}}"),
            "m.yaml:3: evaluate.readers.hed: `conditions:` does",
        ),
        (
            ("name: x", "name: x\nevaluate: {base: b, external: [{name: a, condition: hed, checkpoint: c}]}"),
            "external[0].condition: follows 'hed'",
        ),
        (
            ("name: x", f"name: x\n{RUN}, ema: .inf}}]}}"),
            "train.runs[0].ema: write a finite number or null, not .inf.",
        ),
        (
            ("name: x", f"name: x\n{RUN}, min_snr: .inf}}]}}"),
            "train.runs[0].min_snr: write a finite number or null, not .inf.",
        ),
        (
            ("name: x", "name: x\n" + RUN.replace("[canny]", "[canny, canny]") + "}]}"),
            "train.runs[0].conditions: names canny twice: keep one.",
        ),
        (
            ("name: x", f"name: x\n{RUN}, gpus: 3}}]}}"),
            "train.runs[0].batch: batch (4) must be a multiple of gpus (3), which share it: set it to 6.",
        ),
        (
            ("name: x", f"name: x\n{RUN}, compile: often}}]}}"),
            "train.runs[0].compile: write auto, true or false, not 'often'; left out, it is auto.",
        ),
        (
            ("name: x", f"name: x\n{RUN}, flip: 2}}]}}"),
            "train.runs[0].flip: write a number of at most 1, not 2; left out, it is 0.0.",
        ),
        (
            ("name: x", f"name: x\n{RUN}, warm_start: canny}}]}}"),
            "m.yaml:3: train.runs[0].warm_start: this run trains 'canny' itself: name a",
        ),
        (
            ("{canny: {low: 50}}", "[canny]"),
            "m.yaml:5: conditions: write a mapping of keys, not a list: {canny: {}}.",
        ),
        (("name: x", "- name"), "not YAML"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_where(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert expected in problem(tmp_path, GOOD.replace(*change))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = problem(tmp_path, GOOD.replace("name: x", "name: x\nimage: {resolution: 1, fit: stretch}"))
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
        GOOD
        + RUN
        + ", connect: middle, unlock: all, unlock_lr: 2.0e-6, min_snr: 5, ema: 20000, gradient_checkpointing:"
        " true}]}"
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
        told = ", ".join(
            f"{{conditions: [{name}], images: 8, warm_start: {source}}}" for name, source in each
        )
        return (
            GOOD.replace("{canny: {low: 50}}", "{canny: {}, hed: {}, hough: {}}")
            + f"train: {{base: random, runs: [{told}]}}"
        )

    circle = problem(tmp_path, runs(("canny", "hough"), ("hed", "canny"), ("hough", "hed")))
    assert (
        "train.runs[0].warm_start: runs 0, 2, 1 wait for each other in a circle: take one warm_start out."
        in circle
    )
    path = tmp_path / "m.yaml"
    path.write_text(
        runs(
            ("hough", "canny"), ("canny", "null"), ("canny", "canny"), ("hed", "canny"), ("hed", "elsewhere")
        )
    )
    train = load(path).train
    assert train and [train.waits_for(number) for number in range(5)] == [
        {"hough": 1},
        {},
        {"canny": 1},
        {"hed": 2},
        {},
    ]


def test_each_condition_of_a_run_may_start_from_elsewhere(tmp_path: Path) -> None:
    def runs(*each: str) -> str:
        conditions = GOOD.replace("{canny: {low: 50}}", "{canny: {}, hed: {}, hough: {}, sketch: {}}")
        return (
            conditions
            + f"train: {{base: random, runs: [{', '.join(f'{{images: 8, {run}}}' for run in each)}]}}"
        )

    both = "conditions: [hed, hough, sketch], warm_start: {hed: canny, hough: mini/canny}"
    path = tmp_path / "m.yaml"
    path.write_text(runs("conditions: [canny]", both))
    train = load(path).train
    assert (
        train
        and train.runs[1].starts == {"hed": "canny", "hough": "mini/canny"}
        and train.waits_for(1) == {"hed": 0}
    )
    assert Run(conditions=["hed", "hough"], images=8, warm_start="canny").starts == {
        "hed": "canny",
        "hough": "canny",
    }
    assert Run(conditions=["hed"], images=8).starts == {}
    stray = problem(tmp_path, runs("conditions: [canny], warm_start: {hed: mini/canny}"))
    assert (
        "train.runs[0].warm_start: names hed, which this run does not train: take it out, or add it to"
        " conditions." in stray
    )
    circle = problem(
        tmp_path,
        runs(
            "conditions: [canny], warm_start: {canny: hough}",
            "conditions: [hed, hough], warm_start: {hed: canny}",
        ),
    )
    assert "train.runs[0].warm_start: runs 0, 1 wait for each other in a circle" in circle
    own = problem(tmp_path, runs("conditions: [canny, hed], warm_start: {hed: canny}"))
    assert "train.runs[0].warm_start: this run trains 'canny' itself" in own


def test_a_key_left_alone_leaves_a_runs_name_alone() -> None:
    """Runs trained before a key was there must be found again under their names."""
    plain = Run(conditions=["canny"], images=8)
    assert set(plain.identity) == {
        "conditions",
        "images",
        "batch",
        "micro_batch",
        "lr",
        "prompt_drop",
        "seed",
        "checkpoint_every",
        "warm_start",
    }
    for operational in (
        {"gradient_checkpointing": True},
        {"held_out": 8},
        {"watch_every": 8},
        {"grids": 2},
        {"keep_every": 8},
        {"checkpoint_every": 4},
        {"micro_batch": 2},
    ):
        assert Run(conditions=["canny"], images=8, **operational).identity == plain.identity
    changes = [
        {"connect": "middle"},
        {"unlock": "all"},
        {"unlock": "all", "unlock_lr": 1e-6},
        {"min_snr": 5},
        {"ema": 100},
        {"precision": "fp32"},
        {"compile": True},
        {"compile": False},
        {"optimizer": "adamw8bit"},
        {"flip": 0.5},
        {"join": True},
        {"gpus": 2},
    ]
    found = [Run(conditions=["canny"], images=8, **change).identity for change in changes]
    assert all(
        one != other
        for i, one in enumerate([plain.identity, *found])
        for other in found[i:]
        if one is not other
    )


WRONG = (
    "null", "yes", "3", "-1", "1.5", ".inf", ".nan", "1e6", "a text", "2024-01-01", "[]", "[1]", "[a, b]",
    "{}", "{a: b}", "{1: 2}",
    "''", r'"\ud800"',
)  # fmt: skip
EVERYTHING = """name: x
workspace: w
source:
  - {kind: folder, path: p, captions: none, provided: {canny: {path: a, mask: b}}}
  - {kind: list, path: p, image_column: a, captions: {column: c}}
  - {kind: webdataset, path: p, captions: {member: txt}}
  - {kind: img2dataset, path: p, captions: none}
  - {kind: parquet, path: p, image_column: a, captions: none}
  - {kind: huggingface, path: p, name: n, split: s, revision: r, streaming: false, count: 3,
     image_column: a, captions: none}
  - {kind: scenes, count: 3, seed: 0, most_objects: 2, least_box: 0.1, least_visible: 0.1}
image: {resolution: 64, fit: crop, store: png, max_pixels: 5000}
split: {validation: 0.1, test: 0.1, salt: 0, near: 1}
shard_images: 4
captions: {model: blip-base, when: missing}
where: "true"
conditions: {canny: {detector: auto, select: {where: "true", order_by: part, limit: 4}}, hed: {}}
train:
  base: mini
  runs:
    - conditions: [canny]
      name: mine
      warm_start: mini/canny
      images: 8
      lr: 1.0e-3
    - {conditions: [hed], images: 8, batch: 4, micro_batch: 4, prompt_drop: 0.5, seed: 0, checkpoint_every: 8,
       connect: full, unlock: none, min_snr: 5, ema: 20, gradient_checkpointing: false, precision: auto,
       compile: auto, deterministic: false, optimizer: adamw, flip: 0, join: false, gpus: 1,
       held_out: 4, watch_every: 8, keep_every: 8, grids: 0}
evaluate:
  benchmark: {split: test, samples: 4, seeds: [0], sampler: unipc, num_inference_steps: 4, guidance_scale: 3,
              precision: fp32, negative_prompt: a, controlnet_conditioning_scale: 1, cfg_hint: both}
  baselines: [no_control]
  external: [{name: a, condition: canny, checkpoint: c}]
  readers: {hed: {detector: mini}}
  features: [{extractor: mini, weights: w}]
  clip: mini
"""
PYDANTICS = ("input should", "valid dictionary", "instance of", "field required", "unable to", "keys should",
             "valid string", "valid integer", "should match",
             "after validation", "expected tag", "discriminator", "extra inputs",
             "permitted", "got a", "greater than", "less than", "another value")  # fmt: skip


REMEDIES = (
    r"\b(write|rename|add it|take|set|keep|remove|known keys|did you mean|one of|give|may name|change"
    r"|a decay)\b"
)


def steps_of(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every key and entry of a YAML file's value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, it in inner:
        yield (*above, step)
        yield from steps_of(it, (*above, step))


def changed(value: Any, steps: tuple[str | int, ...], wrong: Any) -> Any:
    whole = copy.deepcopy(value)
    section = functools.reduce(lambda section, step: section[step], steps[:-1], whole)
    section[steps[-1]] = wrong
    return whole


def test_whatever_stands_where_another_value_is_wanted_is_told_in_plain_words_with_file_line_and_key(
    tmp_path: Path,
) -> None:
    """Every key of a manifest that spells every key, with every kind of wrong value: none of pydantic's
    phrases, and what to do.
    """
    path = tmp_path / "m.yaml"
    path.write_text(EVERYTHING)
    place, value = places.read(path)
    Manifest.model_validate(value)
    told = 0
    for steps, wrong in itertools.product(steps_of(value), map(yaml.safe_load, WRONG)):
        try:
            Manifest.model_validate(changed(value, steps, wrong))
        except ValidationError as error:
            told += 1
            for line in yaml_errors.sentences(error, place, Manifest).splitlines():
                assert not any(phrase in line.lower() for phrase in PYDANTICS), (steps, wrong, line)
                where, key, sentence = line.split(": ", 2)
                assert re.fullmatch(rf"{re.escape(str(path))}:[1-9]\d*", where) and key, (steps, wrong, line)
                assert re.search(REMEDIES, sentence), line
    assert told > 1000


def test_the_words_are_for_mistakes_that_pydantic_knows() -> None:
    """One that it calls otherwise in another version would fall through; that all are there, the test above
    shows.
    """
    assert set(wording.WANTED) <= set(get_args(core_schema.ErrorType))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "m.yaml:5: aliases make more than 20,000 values of this file: write out what is meant."),
        (
            GOOD + "a: &a {b: {<<: *a}}",
            "the alias *a stands inside what it stands for: write out what is meant.",
        ),
        ("a: " + "[" * 5000 + "]" * 5000, "m.yaml:1: nested more than 40 levels deep"),
        ("a: " + "{a: " * 5000, "m.yaml:1: nested more than 40 levels deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(300)), "m.yaml:41: nested more than 40 levels deep"),
        (
            (
                "a: &a [[[[[[[[[[[1]]]]]]]]]]]\nb: &b [[[[[[[[[[[[*a]]]]]]]]]]]]\nc:"
                " [[[[[[[[[[[[[[[[[[*b]]]]]]]]]]]]]]]]]]"
            ),
            "m.yaml:3: nested more",
        ),
        ("# " + "x" * 300_000, "m.yaml is larger than 256 KiB, which no manifest is: name the right file."),
        (
            "",
            (
                "m.yaml:1: a manifest is a mapping of keys, and this file is empty: begin with `name: …`,"
                " `workspace: …`, `source: …`."
            ),
        ),
        ("- a", "m.yaml:1: a manifest is a mapping of keys, and this file holds a list: begin with"),
        ("a word", "m.yaml:1: a manifest is a mapping of keys, and this file holds one value: begin with"),
        ("name: x\n\tworkspace: w", "m.yaml:2: not YAML: a tab: indent with spaces."),
        (
            "name: [x\nworkspace: w",
            "not YAML: a bracket that is not closed, or a comma that is missing, before this line: add it.",
        ),
        ("name: a: b", "m.yaml:1: not YAML: a second `:` in one line: put the value in quotes"),
        ("name: x\nworkspace: 'w", "not YAML: a quote that is not closed"),
        ("name: x\nwhere: *b", "m.yaml:2: not YAML: an alias (*) of a name that no anchor (&) has above it"),
        (
            "name: x\nwhere: !!python/object:os.system a",
            "m.yaml:2: not YAML: a tag (!) that a manifest does not know",
        ),
        (
            "name: x\nwhere: 2024-13-45",
            "m.yaml:2: not YAML: a value that is no date and no number, but looks like one: mend it",
        ),
        (f"name: x\nwhere: {'9' * 5000}", "m.yaml:2: not YAML: a value that is no date and no number"),
        (f"name: x\nwhere: 0x{'f' * 5000}", "m.yaml:2: not YAML: a value that is no date and no number"),
        ("name: x\nwhere: !!bool maybe", "m.yaml:2: not YAML: a value that is no date and no number"),
        ("name: x\nwhere: !!timestamp soon", "m.yaml:2: not YAML: a value that is no date and no number"),
        (
            "name: x\nwhere: !!float {a: 1}",
            "m.yaml:2: not YAML: a tag (!!) that its value does not fit: take it out.",
        ),
        ("name: x\nimage: {<<: jpeg}", "m.yaml:2: not YAML: `<<` beside something that is no mapping"),
        ("name: &a x\nwhere: &a y", "m.yaml:2: not YAML: an anchor (&) of a name that another has above it"),
        ("name: x\nwhere: \0", "m.yaml: not YAML: a character that no text has"),
        (GOOD.replace("path: photos", "path: ''"), "source.path: write a text that is not empty, not ''."),
        (
            GOOD.replace("folder, path: photos", "list, path: l, captions: {1: 2}"),
            "captions.1: unknown key 1: write column or template.",
        ),
        (
            GOOD + "where: !!binary |\n  YWI=\nshard_images: !!binary |\n  YWI=",
            "shard_images: write auto or a whole number, not YWI=; left out, it is auto.",
        ),
        (
            GOOD + "evaluate: {base: mini, benchmark: {negative_prompt: 3}}",
            'negative_prompt: write a text, not 3: "3"; left out, it is empty.',
        ),
        (
            GOOD + "evaluate:\n  base: mini\n  benchmark: {guidance: 3}",
            "m.yaml:8: evaluate.benchmark.guidance: is called guidance_scale now: rename it.",
        ),
        (
            GOOD + "evaluate: {base: mini, benchmark: {guide_hint: true}}",
            "benchmark.guide_hint: is called cfg_hint now: rename it, and write both, conditional or"
            " weighted.",
        ),
        (
            GOOD + "train: {base: mini, runs: [{name: canny-0123abcd, conditions: [canny], images: 4}]}",
            "train.runs[0].name: 'canny-0123abcd' ends as the names that runs have by themselves: change its",
        ),
        (
            GOOD + "train: {base: mini, runs: [{name: a/b, conditions: [canny], images: 4}]}",
            "train.runs[0].name: write a name of letters, digits and any of _ . - (the first one a letter or",
        ),
        (
            GOOD + f"train: {{base: mini, runs: [{{name: {'a' * 41}, conditions: [canny], images: 4}}]}}",
            "train.runs[0].name: write a text of at most 40 characters or null, not",
        ),
        (
            GOOD + "train: {base: mini, runs: [&a {name: b, conditions: [canny], images: 4}, *a]}",
            "train.runs[0].name: two runs are called 'b': change one.",
        ),
        (
            GOOD
            + "evaluate: {}\ntrain: {base: mini, runs: [{name: earlier, conditions: [canny], images: 4}]}",
            "train.runs[0].name: 'earlier' is the name of a baseline or an external ControlNet: change it.",
        ),
        (GOOD + "train: {base: mini, runs: null}", "train.runs: write a list in brackets, not nothing."),
        ("name: x\n---\nname: y", "m.yaml:2: not YAML: a second document begins there"),
        ("name: x\n{[a]: b}: c", "m.yaml:2: not YAML: "),
        (
            GOOD.replace("low: 50", "low: 50, low: 60"),
            "m.yaml:5: the key 'low' of conditions.canny stands twice; keep one.",
        ),
        (
            GOOD.replace("{canny: {low: 50}}", "[canny, hed]"),
            "m.yaml:5: conditions: write a mapping of keys, not a list: {canny: {}, hed: {}}.",
        ),
        (
            GOOD.replace("{kind: folder, path: photos}", "photos"),
            "source: write a mapping of keys, not 'photos': {kind: folder, path: …}.",
        ),
        (GOOD.replace("name: x", "name: 12"), 'm.yaml:2: name: write a text, not 12: "12".'),
        (
            GOOD + "split: {near: no}",
            (
                "m.yaml:6: split.near: write a whole number or null, not no, which YAML reads as false; left"
                " out, it is 6."
            ),
        ),
        (
            GOOD + RUN.replace("8", "1e6") + "}]}",
            "train.runs[0].images: write a whole number, not '1e6': 1000000.",
        ),
        (
            GOOD + RUN + ", lr: yes}]}",
            "train.runs[0].lr: write a number, not yes, which YAML reads as true; left out, it is 1e-05.",
        ),
        (
            GOOD.replace("path: photos", "path: photos, captions: {colum: x}"),
            "source.captions.colum: unknown key 'colum': write template.",
        ),
        (
            GOOD.replace("folder, path", "parquet, image_colum: a, path"),
            "source.image_colum: unknown key; did you mean 'image_column'?",
        ),
    ],
)
def test_a_file_that_is_no_manifest_is_one_sentence_at_once(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem(tmp_path, text)


def test_a_manifest_that_no_file_holds_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(GOOD.encode() + b"where: \xff\n")
    for path, expected in (
        (tmp_path, "can't be read: it is a folder. Name the .yaml file in it."),
        (tmp_path / "none.yaml", "can't be read: No such file or directory. Check its name."),
        (
            tmp_path / "latin.yaml",
            "latin.yaml:6: the manifest can't be read: it is not UTF-8 there. Save it as UTF-8.",
        ),
    ):
        with pytest.raises(MillError, match=re.escape(expected)):
            load(path)


def test_a_number_that_yaml_takes_for_text_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(GOOD + RUN + ", lr: 1e-5}]}")
    train = load(path).train
    assert train and train.runs[0].lr == 1e-5


def test_a_section_knows_its_line_through_aliases_and_merged_keys_and_is_equal_wherever_it_stands(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "m.yaml", tmp_path / "other.yaml"
    text = (
        "train:\n  base: random\n  runs:\n    - &one\n      conditions: [canny]\n      images: 8\n    - {<<:"
        " *one, images: 16}\n"
    )
    path.write_text(GOOD + text)
    other.write_text("\n\n" + GOOD + text)
    given = load(path)
    assert str(given.at("train", "runs", 1, "images")) == f"{path}:12: train.runs[1].images"
    assert str(given.at("train", "runs", 1, "conditions")) == f"{path}:10: train.runs[1].conditions"
    assert str(given.at("conditions", "canny", "high")) == f"{path}:5: conditions.canny.high"
    assert str(given.source[0].at("path")) == f"{path}:4: source.path"
    assert given == load(other) and given.split == load(other).split
    assert str(given.model_copy(update={"name": "y"}).at("name")) == f"{path}:2: name"
    assert str(Run(conditions=["canny"], images=8).at("images")) == "images"


def test_a_workspaces_copy_of_an_earlier_version_is_read_with_the_keys_of_today(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    old = "steps: 9, guidance: 2.5, negative: blurry, scale: 0.8, guide_hint: true"
    path.write_text(GOOD + f"evaluate: {{base: mini, benchmark: {{{old}}}}}")
    with pytest.raises(MillError, match="is called num_inference_steps now"):
        manifest.load(path)
    read = manifest.load_saved(path)
    assert read.evaluate and read.evaluate.benchmark == manifest.Benchmark(
        num_inference_steps=9,
        guidance_scale=2.5,
        negative_prompt="blurry",
        controlnet_conditioning_scale=0.8,
        cfg_hint="conditional",
    )
    path.write_text(manifest.dump(read))
    assert manifest.load(path) == read == manifest.load_saved(path)


def test_the_name_of_a_run_is_no_part_of_what_decides_its_weights() -> None:
    common = {"conditions": ["canny"], "images": 8}
    assert Run(**common, name="mine").identity == Run(**common).identity
    assert "name" not in Run(**common).identity
