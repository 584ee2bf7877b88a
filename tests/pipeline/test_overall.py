"""All models on all conditions in one table, what can be taken from the page, and how it is cited."""

import csv
import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from annotate.conditions import CONDITIONS
from evaluate.replicates import NOT_BETTER
from pipeline.report import listings
from pipeline.report.citation import bibtex
from pipeline.report.leaderboard import render
from pipeline.report.leaderboard_data import Leaderboard, LeaderboardModel
from pipeline.report.leaderboard_view import tables
from pipeline.report.overall import Overall, overall
from tests.pages import HtmlPage
from tests.pipeline.test_leaderboard_site import EXACT, F1, benchmark, score

ROOT = Path(__file__).parents[2]
NONE = {"share": None, "share_low": None, "share_high": None}


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    """alpha is first on canny alone; beta and gamma tie on hed, where alpha is not scored; on sketch the
    first measure has no normalized score.
    """
    scores = [
        score("alpha", 0.9, rank=(1, 1)),
        score("beta", 0.5, rank=(2, 3)),
        score("gamma", 0.4, rank=(2, 3)),
        score("vae_round_trip", 0.95, arm="vae_round_trip", share=0.97),
        score("alpha", 0.1, EXACT, rank=(3, 3)),
        score("beta", 0.7, condition="hed", rank=(1, 2)),
        score("gamma", 0.75, condition="hed", rank=(1, 2), share=1.02),
        score("gamma", 0.2, condition="hed", arm="shuffled_condition", share=0.0),
        score(
            "beta", 0.6, condition="sketch", marks=("few prompts: n = 4",), share_reason=NOT_BETTER, **NONE
        ),
        score("gamma", math.nan, condition="sketch", low=None, high=None, **NONE),
    ]
    return Leaderboard(
        name="demo",
        version="controlmill 3.2.1",
        metrics=(F1, EXACT),
        benchmarks=tuple(benchmark(name) for name in ("canny", "hed", "sketch", "cartoon")),
        models=tuple(LeaderboardModel(name=name, kind="run") for name in ("alpha", "beta", "gamma")),
        scores=tuple(scores),
    )


def whole(board: Leaderboard) -> Overall:
    found = overall(tables(board, {}))
    assert found
    return found


def test_every_model_has_a_row_and_every_scored_condition_a_column(board: Leaderboard) -> None:
    found = whole(board)
    assert [it.benchmark.condition for it in found.conditions] == ["canny", "hed", "sketch"]
    told = {row.model: [cell and cell.score.value for cell in row.cells] for row in found.models}
    assert told["alpha"] == [0.9, None, None] and told["beta"] == [0.5, 0.7, 0.6], "by the first measure"
    assert told["gamma"][:2] == [0.4, 0.75] and math.isnan(told["gamma"][2] or 0)
    assert [row.model for row in found.ceiling] == ["vae_round_trip"]
    assert overall(tables(replace(board, scores=()), {})) is None


def test_rows_stand_by_how_often_a_model_may_be_first_then_by_their_mean(board: Leaderboard) -> None:
    rows = whole(board).models
    assert [(row.model, row.first, row.ranked) for row in rows] == [
        ("alpha", 1, 1),
        ("gamma", 1, 2),
        ("beta", 1, 2),
    ]
    unranked = replace(board, scores=tuple(replace(it, rank=None) for it in board.scores))
    assert [(row.model, row.first, row.ranked) for row in whole(unranked).models] == [
        ("alpha", 0, 0),
        ("gamma", 0, 0),
        ("beta", 0, 0),
    ]


def test_the_page_begins_with_the_overall_table_and_tells_its_ties(
    board: Leaderboard, tmp_path: Path
) -> None:
    page = render(board, tmp_path)
    html = page.read_text(encoding="utf-8")
    found = re.search(r'<section id="overall".*?</section>', html, re.S)
    assert found and html.index('id="overall"') == min(
        html.index(f'id="{name}"') for name in ("overall", "overview", "results")
    )
    assert found[0].count('title="rank 1–2"') == 2 and found[0].count('title="rank 2–3"') == 2
    assert found[0].count("the VAE's own ceiling") == 3, "a tick for each model on canny"
    assert f'title="no normalized score: {NOT_BETTER}">–<' in found[0] and "⚠" not in found[0]
    assert "few prompts" in found[0] and "102 %" in found[0] and ">nan" not in found[0]
    assert "1 of 2" in HtmlPage(page).text


def test_the_overall_table_is_in_the_markdown_too(board: Leaderboard, tmp_path: Path) -> None:
    render(board, tmp_path)
    told = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"## Overall\n.*?\n\n(\|.*?)\n\n", told, re.S)[:1] or [""]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == [
        "model",
        *(CONDITIONS[it].title for it in ("canny", "hed", "sketch")),
        "may be first in",
    ]
    assert rows[2] == ["real image through the VAE", "97 %", "", "", ""]
    assert rows[3:] == [
        ["alpha", "90 %, rank 1", "", "", "1 of 1"],
        ["gamma", "40 %, rank 2–3", "102 %, rank 1–2", "–", "1 of 2"],
        ["beta", "50 %, rank 2–3", "70 %, rank 1–2", "–, few prompts: n = 4", "1 of 2"],
    ]
    assert told.index("## Overall") < told.index(f"## {CONDITIONS['canny'].title}")


def test_the_parquet_file_has_the_rows_of_the_csv_with_types_and_provenance(
    board: Leaderboard, tmp_path: Path
) -> None:
    render(board, tmp_path)
    table = pq.read_table(tmp_path / "leaderboard.parquet")
    rows = list(csv.DictReader(StringIO((tmp_path / "leaderboard.csv").read_text(encoding="utf-8"))))
    assert table.column_names == [*rows[0], "provenance"] and table.num_rows == len(rows) == len(board.scores)
    for typed, written, it in zip(table.to_pylist(), rows, board.scores, strict=True):
        assert typed["value"] == (None if math.isnan(it.value) else it.value)
        assert typed["marks"] == list(it.marks) and dict(typed["provenance"]) == it.provenance
        assert (typed["rank_first"], typed["rank_last"]) == (it.rank or (None, None))
        assert typed["higher_is_better"] is True and written["model"] == typed["model"]
    first = listings.parquet(board)
    assert first == listings.parquet(board) and listings.parquet(replace(board, scores=())), "to the byte"


def test_the_page_links_every_file_of_its_numbers_and_says_how_to_cite(
    board: Leaderboard, tmp_path: Path
) -> None:
    page = HtmlPage(render(board, tmp_path))
    taken = {it["href"] for it in page.all("a") if "download" in it}
    assert taken == {f"leaderboard.{suffix}" for suffix in ("csv", "json", "md", "parquet")}
    assert all((tmp_path / name).is_file() for name in taken)
    assert "version = {3.2.1}" in page.text and "#cite" in {it.get("href") for it in page.all("a")}


def test_the_citation_is_that_of_the_repository() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entry, paper = bibtex(told["version"]).split("\n\n")
    (author,), (reference,) = told["authors"], told["references"]
    for words in (told["title"], author["name"], told["version"], told["license"]):
        assert f"{{{words}}}" in entry, words
    assert str(told["preferred-citation"]["year"]) in entry and "version" not in bibtex("").split("\n\n")[0]
    names = " and ".join(f"{it['family-names']}, {it['given-names']}" for it in reference["authors"])
    number = reference["identifiers"][0]["value"].removeprefix("arXiv:")
    for words in (reference["title"], names, str(reference["year"]), reference["collection-title"], number):
        assert f"{{{words}}}" in paper, words
