"""Numbers from elsewhere in a file of the user's own: checked before any work, shown with their source."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import MillError
from pipeline.commands import preflight
from pipeline.manifest import load, published
from pipeline.report import leaderboard_scores
from pipeline.report.leaderboard_data import Leaderboard, Published
from pipeline.report.leaderboard_view import tables
from pipeline.report.protocol import sampling
from tests.pipeline.test_leaderboard_site import EXACT, benchmark, score

ROW: dict[str, Any] = {
    "condition": "canny",
    "metric": "F1 × 100",
    "higher_is_better": True,
    "model": "Theirs",
    "value": 31.2,
    "source": "Doe et al. 2026, table 2",
    "url": "https://example.org/paper",
}
MANIFEST = """name: x
workspace: w
source: {kind: folder, path: photos}
conditions: {canny: {}}
evaluate: {base: random, published: theirs.yaml}
"""


def given(tmp_path: Path, *rows: Any, text: str | None = None) -> Any:
    """A manifest that names a file with these rows."""
    (tmp_path / "m.yaml").write_text(MANIFEST.replace("theirs.yaml", str(tmp_path / "theirs.yaml")))
    told = yaml.safe_dump({"published": list(rows)}, allow_unicode=True) if text is None else text
    (tmp_path / "theirs.yaml").write_text(told, encoding="utf-8")
    return load(tmp_path / "m.yaml")


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key not in keys}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (without("source"), "published[0].source: missing; add it."),
        (without("url"), "published[0].url: missing; add it."),
        (ROW | {"url": "javascript:alert(1)"}, "published[0].url: "),
        (ROW | {"value": float("nan")}, "published[0].value: "),
        (ROW | {"value": "31,2"}, "published[0].value: "),
        (ROW | {"vale": 1}, "published[0].vale: unknown key; did you mean 'value'?"),
        (ROW | {"condition": "cany"}, "published[0].condition: is none of canny, "),
        (ROW | {"beside": "edge_f2"}, "published[0].beside: is no measure of docs/measures.md"),
        (ROW | {"beside": "miou"}, "published[0].beside: is no measure of canny"),
        (ROW | {"beside": "edge_chamfer"}, "published[0].higher_is_better: is false for edge_chamfer"),
        (ROW | {"low": 30.0}, "published[0].low: an interval has `low` and `high`"),
        (ROW | {"low": 32.0, "high": 33.0}, "published[0].value: lies outside"),
    ],
)
def test_a_row_without_source_or_with_a_mistake_is_refused_by_file_line_and_key(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    (sentence,) = preflight._published(given(tmp_path, row))
    assert sentence.startswith(f"{tmp_path / 'theirs.yaml'}:") and said in sentence and sentence[-1] in ".?"


def test_a_number_that_stands_twice_or_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    assert not preflight._published(given(tmp_path, ROW, ROW | {"source": "another"}))
    (twice,) = preflight._published(given(tmp_path, ROW, ROW | {"value": 2.0}))
    assert "published[1]: stands in row 1 too: keep one, or name another source." in twice
    for text in ("", "[1, 2]", "published: []", "published: {", "\x00"):
        assert len(preflight._published(given(tmp_path, text=text))) == 1, text
    asked = given(tmp_path, ROW)
    (tmp_path / "theirs.yaml").unlink()
    (gone,) = preflight._published(asked)
    assert "m.yaml:5: evaluate.published: " in gone and gone.endswith("of published numbers.")
    with pytest.raises(MillError, match="is no file"):
        published.read(str(tmp_path), "here")


def test_json_is_read_too(tmp_path: Path) -> None:
    import json

    assert not preflight._published(given(tmp_path, text=json.dumps({"published": [ROW]}, indent=2)))


def test_a_row_stands_apart_with_what_differs_and_beside_ours_only_by_the_same_protocol(
    tmp_path: Path,
) -> None:
    task = benchmark("canny", resolution=512, data="folder photos: 200 images of the test split")
    same = {"beside": "edge_f1", "times": 100, "base": "mini", "resolution": 512, "data": task.data,
            "reader": "opencv-canny", "sampler": sampling(task)}  # fmt: skip
    manifest = given(tmp_path, ROW | same, ROW | {"model": "Others"}, ROW | {"condition": "hed"})
    rows = tuple(leaderboard_scores._own_published(manifest, ["canny"]))
    assert [(row.model, row.source) for row in rows] == [("Theirs", ROW["source"]), ("Others", ROW["source"])]
    board = Leaderboard(
        name="x", metrics=(EXACT,), benchmarks=(task,), scores=(score("ours", 0.4, EXACT),), published=rows
    )

    def shown(data: Leaderboard) -> list[tuple[bool, list[str], bool]]:
        (table,) = tables(data, {"canny": "c.html"})
        return [(it.comparable, list(it.models), any(it.ours)) for it in table.reported]

    assert shown(board) == [(True, ["Theirs"], True), (False, ["Others"], False)]
    for name in ("base", "resolution", "data", "reader", "sampler"):
        moved = replace(rows[0], **{name: 768 if name == "resolution" else "another"})
        assert shown(replace(board, published=(moved,))) == [(False, ["Theirs"], False)], name


def test_no_shipped_number_rests_on_a_guess_of_its_column() -> None:
    from annotate.conditions import CONDITIONS
    from pipeline.report.leaderboard_data import published as shipped

    rows: tuple[Published, ...] = shipped(CONDITIONS)
    assert rows and not any("merged" in row.note for row in rows)
