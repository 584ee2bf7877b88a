"""docs/catalog.md: its tables are those of a catalog, and its questions have answers in a small workspace."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.catalog import Catalog, Selection
from pipeline.plan import MEASURES
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs/catalog.md").read_text(encoding="utf-8")
VIEWS, QUESTIONS = PAGE.split("## Ten questions\n")
INTERNAL = r"settings|migrations|lost_rows|\w+_rows|candidate_\w+"
MANIFEST = """
name: page
workspace: ws
source: {{kind: folder, path: photos}}
image: {{resolution: 64}}
split: {{validation: 0.1, test: 0.4, salt: 3, near: null}}
shard_images: 8
conditions: {{canny: {{low: {low}}}, pose_openpose: {{detector: mini}}}}
train:
  base: random
  runs: [{{name: tiny, conditions: [canny], images: 4, batch: 4, grids: 0, held_out: 0}}]
evaluate:
  benchmark: {{samples: 2, seeds: [0, 1], num_inference_steps: 1}}
  baselines: [no_control, real_image]
"""
ASKED = re.findall(r"\n([^\n]+\?)\n\n```sql\n(.+?)```", QUESTIONS, re.S)


@pytest.fixture(scope="module")
def workspace(ask: Command, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A dozen pictures, two plain and one twice, and two broken, for two cannies, trained and scored."""
    root = tmp_path_factory.mktemp("page")
    (root / "photos").mkdir()
    for number in range(12):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        plain = Image.new("RGB", (96, 96), (number, number, number))
        (plain if number > 9 else picture).save(root / "photos" / f"{number:02d}.png")
    (root / "photos/again.png").write_bytes((root / "photos/03.png").read_bytes())
    (root / "photos/empty.jpg").write_bytes(b"")
    (root / "photos/text.JPG").write_bytes(b"no picture")
    for low, stages in ((20, ("--stages", "ingest,annotate")), (100, ())):
        (root / "m.yaml").write_text(MANIFEST.format(low=low))
        ran = ask(root, "run", "m.yaml", *stages)
        assert ran.returncode == 3, ran.stdout + ran.stderr
    return Workspace(root / "ws")


@pytest.fixture(scope="module")
def rows(workspace: Workspace) -> Callable[[str], list[dict[str, Any]]]:
    """The answer to the question that has these words."""

    def answer(words: str) -> list[dict[str, Any]]:
        (sql,) = [sql for question, sql in ASKED if words in question]
        names, found = Catalog(workspace).table(sql)
        return [dict(zip(names, row, strict=True)) for row in found]

    return answer


def test_every_view_and_column_of_a_catalog_is_on_the_page_in_its_order(tmp_path: Path) -> None:
    catalog = Catalog(Workspace(tmp_path))
    catalog.create()
    catalog.define_pairs({"canny": Selection((("where", "true"),))}, MEASURES)
    names = [name for (name,) in catalog.query("SELECT table_name FROM information_schema.tables")]
    shown = dict(re.findall(r"### (\w+)\n(.+?)(?=\n##|\Z)", VIEWS, re.S))
    assert set(shown) == {name for name in names if not re.fullmatch(INTERNAL, name)}
    for name, text in shown.items():
        columns = re.findall(r"^\| `(\w+)` \| ([^|\n]+) \|[^|\n]+\|[^|\n]+\|$", text, re.M)
        assert columns == catalog.query(f"SELECT column_name, column_type FROM (DESCRIBE {name})"), name


def test_ten_questions_are_asked_and_all_have_an_answer(workspace: Workspace) -> None:
    assert len(ASKED) == 10 == QUESTIONS.count("```sql")
    for question, sql in ASKED:
        assert Catalog(workspace).table(sql)[1], question


def test_failures_are_told_by_reason_and_format(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    found = rows("by reason and format")
    assert {row["format"] for row in found} == {"jpg"} and sum(row["files"] for row in found) == 2
    assert all(row["reason"] for row in found)


def test_plain_pictures_have_no_pose(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    found = rows("have no pose")
    assert [(Path(row["uri"]).name, row["reason"]) for row in found] == [
        ("10.png", "no person"),
        ("11.png", "no person"),
    ]


def test_the_hardest_come_first(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    found = [row["edge_f1"] for row in rows("the hardest")]
    assert len(found) == 2 and found == sorted(found)


def test_every_stage_takes_disk(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    assert {row["kind"] for row in rows("disk")} == {
        "images", "maps", "texts", "latents", "samples", "scores",
    }  # fmt: skip


def test_a_lower_threshold_gives_more_edges(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    before, after = rows("another version of a detector")
    assert (before["current"], after["current"]) == (False, True) and before["params"] != after["params"]
    assert before["edges"] > after["edges"] and before["ok"] + before["skipped"] == 12


def test_pairs_name_who_made_them(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    found = [row for row in rows("under which licence") if row["condition"] == "canny"]
    assert sum(row["pairs"] for row in found) > 5 and {row["detector"] for row in found} == {"opencv-canny"}


def test_a_file_that_lies_twice_is_told(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    (row,) = rows("several addresses")
    assert row["addresses"] == 2 and [Path(uri).name for uri in row["uris"]] == ["03.png", "again.png"]


def test_a_run_stands_beside_its_baselines(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    found = {row["variant"]: row for row in rows("beside its baselines")}
    assert set(found) >= {"control", "no_control", "real_image"} and found["control"]["trained_on"] == 4
    assert found["control"]["model"] == "tiny"
    assert found["real_image"]["value"] == max(row["value"] for row in found.values())


def test_samples_are_timed_and_scored_by_seed(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    found = {(row["variant"], row["seed"]): row["n"] for row in rows("How long does a sample take")}
    assert found == {
        ("control", 0): 2, ("control", 1): 2,
        ("no_control", 0): 2, ("no_control", 1): 2,
        ("real_image", 0): 2,
    }  # fmt: skip


def test_a_sample_its_image_and_its_map_are_files(
    workspace: Workspace, rows: Callable[[str], list[dict[str, Any]]]
) -> None:
    found = rows("Where do a sample")
    assert len(found) == 4
    assert all((workspace.root / row[key]).is_file() for row in found for key in ("sample", "image", "map"))
    joined = Catalog(workspace).row("""
        SELECT count(*), count(*) FILTER (kind = 'samples' AND run IN (SELECT run FROM runs))
        FROM samples JOIN shards USING (shard) WHERE variant = 'control'""")
    assert joined == (4, 4)


def test_a_run_is_shown_by_the_name_that_its_manifest_gives_it_and_stored_by_its_own(
    workspace: Workspace, ask: Command
) -> None:
    ((run, name),) = Catalog(workspace).query("SELECT run, name FROM runs")
    assert name == "tiny" and run.startswith("canny-") and workspace.run(run).is_dir()
    assert f"run        {name}: complete" in ask(workspace.root.parent, "status", "ws").stdout
    page = (workspace.report / "index.html").read_text()
    board = json.loads((workspace.report / "leaderboard/leaderboard.json").read_text())
    assert f">{name}<" in page and name in {model["name"] for model in board["models"]}
    assert {score["model"] for score in board["scores"]} == {name, "no_control", "real_image"}
