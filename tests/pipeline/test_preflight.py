"""What can be known before the work that would be lost is told before it, by the dry run and by the run
alike.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import MillError, run
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.cli import main
from pipeline.manifest import load
from pipeline.plan import Planned
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

GOOD = """name: x
workspace: ws
source: {kind: scenes, count: 40}
image: {resolution: 64}
conditions:
  canny:
    low: 50
"""
RUN = "train: {base: random, runs: [{conditions: [canny], images: 8}]}\n"
SCORED = "evaluate: {base: random, benchmark: {split: test, samples: 20}}\n"


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *options: str) -> str:
    """What the dry run prints; where it refuses, the run refuses with the same words, and both
    touch nothing.
    """
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(text)
    dry = CliRunner().invoke(main, ["run", "m.yaml", "--dry-run", *options])
    if dry.exit_code:
        ran = CliRunner().invoke(main, ["run", "m.yaml", *options])
        lines = [
            line.strip(" .")
            for line in (dry.stderr or dry.stdout.partition("missing here:\n")[2]).splitlines()
        ]
        assert ran.exit_code == 1 and lines and all(line in ran.stderr for line in lines), ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.yaml"]
    return dry.stdout + dry.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD + "where: sharpnes > 3\n",
            'm.yaml:8: where does not work: Binder Error: Referenced column "sharpnes" not found',
        ),
        (GOOD + "where: width >\n", "m.yaml:8: where "),
        (
            GOOD + "    select: {where: height > 64, order_by: edge_densit DESC}\n",
            "m.yaml:8: conditions.canny.select.order_by does not work: ",
        ),
        (GOOD + "    select:\n      where: random() < 0.5\n", "m.yaml:9: conditions.canny.select.where "),
        (
            GOOD.replace("50", "-5"),
            "m.yaml:7: conditions.canny.low: canny (opencv-canny): low: -5 is out of range",
        ),
        (
            GOOD.replace("low: 50", "lo: 50"),
            "m.yaml:7: conditions.canny.lo: canny (opencv-canny) has no parameter 'lo' (did you mean 'low'?)",
        ),
        (
            GOOD.replace("low: 50", "detector: cany"),
            "m.yaml:7: conditions.canny.detector: canny has no detector 'cany'",
        ),
        (
            GOOD + "  cany: {}\n",
            "m.yaml:8: conditions.cany: unknown condition 'cany' (did you mean 'canny'?)",
        ),
        (GOOD + "captions:\n  model: blipp\n", "m.yaml:9: captions.model: unknown captioner 'blipp'"),
        (
            GOOD + SCORED.replace("}}", "}, readers: {canny: {detector: auto}}}"),
            "evaluate.readers.canny: name the detector that reads",
        ),
        (
            GOOD + "split: {test: 0}\n" + RUN + SCORED.replace("base: random, ", ""),
            "m.yaml:10: evaluate.benchmark.split: asks for the",
        ),
        (
            GOOD.replace("count: 40", "count: 1") + RUN + SCORED.replace("base: random, ", ""),
            "needs 2 images of the test split, and there is 1",
        ),
        (
            GOOD.replace("scenes, count: 40", "folder, path: nowhere") + RUN,
            "m.yaml:3: source.path: nowhere does not exist",
        ),
        (GOOD.replace("scenes, count: 40", "folder, path: m.yaml"), "m.yaml:3: source.path: "),
        (
            GOOD.replace("scenes, count: 40", "parquet, path: m.yaml"),
            "m.yaml:3: source.path: m.yaml names no .parquet file",
        ),
        (GOOD.replace("scenes, count: 40", "list, path: m.yaml"), "m.yaml is neither .jsonl nor .csv"),
        (GOOD.replace("workspace: ws", "workspace: m.yaml/ws"), "m.yaml:2: workspace: "),
        (
            GOOD.replace("workspace: ws", "workspace: ''"),
            "m.yaml:2: workspace: write a text that is not empty, not ''.",
        ),
        (GOOD + RUN.replace("random", "./nowhere"), "m.yaml:8: train.base: "),
        (
            GOOD + RUN.replace("8}", "8, warm_start: theirs}"),
            "m.yaml:8: train.runs[0].warm_start: theirs is neither a condition of this",
        ),
    ],
)
def test_a_mistake_is_told_by_the_dry_run_and_the_run_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    assert expected in told(tmp_path, monkeypatch, text)


def test_a_run_names_everything_that_is_missing_for_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROLMILL_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    text = (
        GOOD.replace("scenes, count: 40", "folder, path: nowhere")
        + "  hed: {detector: controlnet-hed}\n"
        + RUN.replace("random", "./nowhere")
    )
    text += SCORED.replace("base: random, ", "").replace(
        "}}", "}, features: [{extractor: nono}], clip: ./nowhere}"
    )
    lines = told(tmp_path, monkeypatch, text).partition("missing here:\n")[2].splitlines()
    wanted = ["conditions.hed", "source.path", "evaluate.features[0]", "evaluate.clip", "train.base"]
    assert [key for key in wanted if any(f": {key}: " in line for line in lines)] == wanted and len(
        lines
    ) == 5, lines
    only = (
        told(tmp_path, monkeypatch, text, "--stages", "ingest").partition("missing here:\n")[2].splitlines()
    )
    assert len(only) == 1 and "source.path" in only[0]


@pytest.mark.parametrize(
    ("condition", "settings", "expected"),
    [
        (
            "seg_ade20k",
            "path: a",
            "m.yaml:3: source.provided.seg_ade20k: `labels:` is missing, which says what",
        ),
        (
            "seg_ade20k",
            "path: a, labels: coco_stuff_171",
            "labels: seg_ade20k takes labels of ade20k_150, not of coco_stuff_171",
        ),
        (
            "pose_openpose",
            "path: a",
            "source.provided.pose_openpose: `keypoints:` is missing, which says what the numbers mean: add"
            " one of coco, openpose.",
        ),
        (
            "depth_small",
            "path: a, depth_scale: 5000",
            "source.provided.depth_small: `depth:` is missing, which says what the numbers mean: add"
            " one of metres, millimetres, distance, inverse, disparity.",
        ),
        (
            "normal",
            "path: a",
            "source.provided.normal: `normals:` is missing, which says what the numbers mean",
        ),
        (
            "depth_large",
            "path: a, depth: millimetres, depth_scale: 5000",
            "depth_large.depth_scale: millimetres are 1000 to a metre: remove it, or set `depth: metres`.",
        ),
        ("depth_large", "path: a, depth: metres, depth_scale: 0", "depth_large.depth_scale: write"),
        (
            "normal",
            "path: a, normals: cn11, ink: dark",
            "normal.ink: normal is no map of edges or soft_edges",
        ),
        (
            "seg_coco",
            "path: 'stuff_train2017_pixelmaps/{stem}.png', labels: coco_stuff_png",
            "seg_coco.labels: stuff_*_pixelmaps are another coding",
        ),
        (
            "canny",
            "path: a, depth: inverse",
            "source.provided.canny.depth: canny is no map of depth: take it out.",
        ),
        (
            "depth_large",
            "path: a, labels: ade20k_150",
            "source.provided.depth_large.labels: depth_large is no map of labels: take it out.",
        ),
        ("hed", "path: a, normals: 'x right, y down, z away'", "hed is no map of normals: take it out."),
        (
            "hough",
            "path: a, mask: b",
            "source.provided.hough.mask: hough is no map of labels or depth or normals: take it out.",
        ),
        (
            "depth_small",
            "column: a",
            (
                "source.provided.depth_small.column: the files of a folder have no columns: write `path:`"
                " instead."
            ),
        ),
        (
            "cany",
            "path: a",
            "m.yaml:3: source.provided.cany: unknown condition 'cany' (did you mean 'canny'?)",
        ),
    ],
)
def test_what_does_not_fit_a_provided_map_is_refused_before_a_row_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, settings: str, expected: str
) -> None:
    source = f"folder, path: ., provided: {{{condition}: {{{settings}}}}}"
    text = GOOD.replace("scenes, count: 40", source).replace("canny:\n    low: 50", "canny: {}")
    assert expected in told(tmp_path, monkeypatch, text)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            "image_column: picture",
            "no row has 'picture': set `source.image_column` to the column that names the image",
        ),
        (
            "captions: {column: text}",
            "no row has 'text': set `source.captions.column` to a column that is there",
        ),
        (
            "provided: {canny: {column: edges}}",
            "no row has 'edges': set `source.provided.canny.column` to a column that is there",
        ),
        (
            "provided: {depth_small: {column: words, depth: inverse, mask: m}}",
            "no row has 'm': set `source.provided.depth_small.mask` to a column",
        ),
        ("captions: {column: words}", "Nothing is missing here."),
        ("captions: {column: caption}", "Nothing is missing here."),
        ("captions: {template: a photograph}", "Nothing is missing here."),
    ],
)
def test_a_column_that_no_row_of_a_list_has_is_missing(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    expected: str,
) -> None:
    data = tmp_path_factory.mktemp("data") / "list.csv"
    data.write_text("image,words\na.png,a cat\n")
    text = GOOD.replace("scenes, count: 40", f"list, path: {data}, {settings}").replace(
        "canny:\n    low: 50", "canny: {}"
    )
    assert expected in told(tmp_path, monkeypatch, text)


def test_what_fails_on_the_rows_alone_is_told_by_its_key_and_then_by_the_dry_run_too(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path]
) -> None:
    folder(2)
    where = "chr(-width) = 'a'"
    expected = r"manifest.yaml:\d+: where does not work: Invalid Input Error: Invalid UTF8"
    ran = controlmill("run", manifest(where=f'"{where}"'), "--stages", "ingest,annotate")
    assert (
        ran.returncode == 1
        and "ingest " in ran.stdout
        and re.search(expected, ran.stderr)
        and "Traceback" not in ran.stderr
    ), ran.stderr
    for words in (
        ("run", manifest(where=f'"{where}"'), "--dry-run"),
        ("run", manifest(where=f'"{where}"'), "--stages", "ingest"),
    ):
        ran = controlmill(*words)
        assert ran.returncode == 1 and "ingest " not in ran.stdout and re.search(expected, ran.stderr), (
            ran.stderr
        )
    told = controlmill("export", "ws", "out", "--condition", "canny", "--to", "diffusers").stderr
    assert told.startswith(
        "controlmill: A `where` or `select:` of the manifest fails on the data: Invalid Input Error"
    ), told


def test_the_plan_says_what_is_likely_to_disappoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD + "split: {validation: 0, test: 0.1}\n" + RUN + SCORED.replace("base: random, ", "")
    out = told(tmp_path, monkeypatch, text)
    assert (
        "m.yaml:10: evaluate.benchmark.samples: about 4 of 40 images fall into the test split, and 20 are"
        " asked for" in out
    )
    assert (
        "m.yaml:9: train.runs[0].held_out: split.validation is 0, so no conditioning gain is measured" in out
    )
    assert "about 1 of 10 images" in told(tmp_path, monkeypatch, text, "--limit", "10")
    bare = GOOD.replace("scenes, count: 40", "folder, path: ., captions: none") + RUN
    assert (
        "m.yaml:3: source.captions: no pair will have a caption, and training sees an empty prompt"
        in told(tmp_path, monkeypatch, bare)
    )
    plain = told(tmp_path, monkeypatch, GOOD + RUN)
    assert "Nothing is missing here." in plain and "m.yaml" not in plain


@pytest.mark.slow
@pytest.mark.parametrize("stages", ["encode", "train"])
def test_a_base_of_another_size_is_told(stages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD + RUN.replace("random", "mini")
    told_of = told(tmp_path, monkeypatch, text, "--stages", stages)
    sentence = (
        "m.yaml:4: image.resolution: the base mini was trained on images of 128 pixels, and these have 64"
    )
    assert sentence in told_of
    fits = told(tmp_path, monkeypatch, text.replace("resolution: 64", "resolution: 128"), "--stages", stages)
    assert "was trained on images of" not in fits
    assert "was trained on images of" not in told(tmp_path, monkeypatch, text, "--stages", "annotate")


@pytest.mark.slow
def test_too_few_pairs_are_refused_after_annotate_and_before_anything_is_encoded(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(12)
    sections = {
        "train": "{base: random, runs: [{conditions: [canny], images: 8}]}",
        "evaluate": "{benchmark: {split: test}}",
    }
    ran = controlmill("run", manifest(**sections, conditions="{canny: {select: {where: split = 'train'}}}"))
    assert ran.returncode == 1 and "annotate " in ran.stdout and "encode " not in ran.stdout
    assert re.search(
        r"manifest.yaml:\d+: evaluate.benchmark.split: canny has 0 pairs in the test split and a benchmark"
        r" needs 2: add",
        ran.stderr,
    )
    ran = controlmill("run", manifest(**sections, where="split = 'test'"))
    assert ran.returncode == 1 and "encode " not in ran.stdout
    assert re.search(
        r"manifest.yaml:\d+: conditions.canny.select: canny has no pairs in the train split", ran.stderr
    )
    assert Catalog(Workspace(tmp_path / "ws")).query("SELECT count(*) FROM latent_rows") == [(0,)]
    assert (
        controlmill(
            "run", manifest(**sections, where="split = 'test'"), "--stages", "ingest,annotate"
        ).returncode
        == 0
    )


@pytest.mark.slow
def test_pairs_without_a_caption_are_counted_before_training_after_it_and_in_the_plan(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    photos = folder(12)
    for number in range(1, 12):
        (photos / f"{number:03d}.txt").unlink()
    (photos / "001.txt").write_text("  ")
    train = "{base: random, runs: [{conditions: [canny], images: 4, batch: 4, held_out: 0}]}"
    path = manifest(train=train, split="{validation: 0, test: 0}")  # so that the one caption is trained on
    ran = controlmill("run", path, "--stages", "ingest,annotate,encode,train")
    assert ran.returncode == 0, ran.stderr
    ((bare, count),) = Catalog(Workspace(tmp_path / "ws")).query(
        "SELECT count(*) FILTER (trim(caption) = ''), count(*) FROM pairs WHERE split = 'train'"
    )
    sentence = (
        f"{bare} of {count} pairs of canny have no caption and train with an empty prompt: give the images"
        " captions"
    )
    assert count > bare > 5
    lines = [line for line in ran.stdout.splitlines() if sentence in line]
    assert [line.split()[0] for line in lines] == ["annotate", "train", str(bare)]
    assert sentence in controlmill("run", path, "--dry-run").stdout
    for number in range(1, 12):
        (photos / f"{number:03d}.txt").write_text("a picture")
    assert (
        "have no caption"
        not in controlmill("run", manifest(workspace="other"), "--stages", "ingest,annotate").stdout
    )


def test_a_damaged_manifest_of_a_workspace_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(GOOD)
    Path("ws").mkdir()
    Path("ws/manifest.yaml").write_text("name: [x")
    with pytest.raises(
        MillError, match=r"ws/manifest.yaml:1: not YAML(.|\n)*is the workspace's own copy (.|\n)*delete it"
    ):
        run.run(load(Path("m.yaml")), run.RunOptions(), print)


@pytest.mark.parametrize("module", ["pipeline", "pipeline.cli"])
def test_the_command_is_its_module_too(module: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", module, "run", "nowhere.yaml"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert ran.returncode == 1 and ran.stderr.startswith(
        "controlmill: The manifest nowhere.yaml can't be read"
    )


def test_a_workspace_of_before_keeps_its_sketches_until_its_manifest_asks_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pen` came later: neither the workspace's own manifest nor one that names all else has it."""
    named = "threshold: [64, 192], masked: [0.0, 0.5], thin: 0.5, width: [1, 7]"

    def planned(sketch: str) -> Planned:
        (tmp_path / "m.yaml").write_text(
            f"name: x\nworkspace: {tmp_path}/ws\nsource: {{kind: scenes, count: 4, seed: 1}}\n"
            f"conditions: {{sketch: {{{sketch}}}}}\n"
        )
        return plans.make(load(tmp_path / "m.yaml"), here=False).conditions["sketch"]

    before, fresh = planned(f"{named}, pen: none").fingerprint, planned(named).fingerprint
    assert before != fresh, "in a new workspace a pen draws"
    plan = plans.make(load(tmp_path / "m.yaml"), here=False)
    plan.workspace.create()
    plans.save(plan)
    text = plan.workspace.manifest.read_text().partition("\n")[2]
    assert text.count("    pen: round\n") == 1
    plan.workspace.manifest.write_text(text.replace("    pen: round\n", ""))  # as it was saved then
    assert plans.load_saved(plan.workspace).conditions["sketch"].fingerprint == before
    assert planned(named).fingerprint == before
    assert planned("").step.params["pen"] == "round" and planned("").step.params["width"] == [1, 24]
    assert planned("preset: published").step.params["pen"] == "blurred"
