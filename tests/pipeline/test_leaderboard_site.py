"""The leaderboard: whole, sortable, open to doubt, safe to open, free of any network."""

import csv
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from annotate.conditions import CONDITIONS
from benchmarks.chromium import PROGRAM, Page, chromium
from evaluate.replicates import BY_CHANCE, NO_CEILING, NOT_BETTER
from pipeline import MillError
from pipeline.report import leaderboard, stored
from pipeline.report.figures import above, bar, digits, share_text
from pipeline.report.leaderboard import render
from pipeline.report.leaderboard_data import (
    PROTOCOL,
    EvidenceSample,
    FrozenBenchmark,
    Leaderboard,
    LeaderboardModel,
    Measure,
    Published,
    Score,
    Speed,
    published,
)
from pipeline.report.leaderboard_view import tables
from pipeline.report.pareto import pareto
from pipeline.report.protocol import differences
from pipeline.report.provenance import provenance
from tests.conftest import Command
from tests.pages import HtmlPage

EVIL = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>| a"
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "leaderboard.schema.json").read_text(encoding="utf-8")
)
F1 = Measure(
    name="edge_f1_bsds",
    title="Edge F1",
    definition="F1 of edges matched one to one",
    higher_is_better=True,
    column="corrected",
    level="sample",
    version="1",
    primary=True,
)
EXACT = replace(
    F1, name="edge_f1", title="Edge F1, exact", column="paper", primary=False, quirks="no tolerance"
)
FD = replace(
    F1, name="fd (mini)", title="Fréchet distance (mini)", higher_is_better=False, level="set", primary=False
)
KD = replace(FD, name="kd (mini)", title="Kernel distance (mini)")
CHAMFER = replace(
    F1,
    name="edge_chamfer",
    title="Chamfer distance",
    unit="px",
    higher_is_better=False,
    column="diagnostic",
    primary=False,
)
BIASED = "biased: n = 200 < 10 × 64 dimensions; rank by kd"
# the picture is decoded when it is, not after so many milliseconds
OPENED = "document.querySelector('#viewer img').decode()"


def picture(seed: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(
        file, "PNG"
    )
    return file.getvalue()


def score(model: str, value: float, metric: Measure = F1, *, condition: str = "canny", **more: Any) -> Score:
    told = {
        "arm": "control",
        "low": value - 0.01,
        "high": value + 0.01,
        "n": 200,
        "share": value,
        "share_low": value - 0.02,
        "share_high": value + 0.02,
        "provenance": {
            "system": f"{model}/{condition}",
            "checkpoint": "sha256 1a2b3c",
            "software": "torch 2.12",
        },
    }
    return Score(model=model, condition=condition, metric=metric.name, value=value, **told | more)


def witness(model: str, which: Any, number: int, value: float, **more: Any) -> EvidenceSample:
    told: dict[str, Any] = {
        "hint": picture(number),
        "source": picture(100 + number),
        "reread": picture(number + 200),
        "difference": picture(7),
        "prompt": EVIL,
    }
    return EvidenceSample(
        condition="canny",
        model=model,
        metric=F1.name,
        which=which,
        image_id=f"{number:064x}",
        seed=5,
        score=value,
        generated=picture(zlib.crc32(f"{model} {which}".encode())),
        **told | more,
    )


def benchmark(condition: str, **more: Any) -> FrozenBenchmark:
    row = CONDITIONS[condition]
    return replace(
        FrozenBenchmark(
            condition=condition,
            title=row.title,
            kind=row.kind,
            fingerprint="4f5e6d7c8b9a0011",
            split="test",
            images=200,
            samples=200,
            seeds=(5,),
            sampler="DDIM, eta 0",
            steps=20,
            guidance=7.5,
            scale=1.0,
            negative="",
            base="mini",
            detector="opencv-canny 00ff",
            reader="opencv-canny 00ff",
        ),
        **more,
    )


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    """Three models on canny, the last with markup for a name; one of them on hed, with no score of the first
    measure.
    """
    names = ("alpha", "beta", EVIL)
    scores = [
        score("real_image", 0.95, arm="real_image", share=1.0),
        score("no_control", 0.2, arm="no_control", share=0.0),
        score("alpha", 0.7, rank=(1, 2)),
        score("beta", 0.72, rank=(1, 2), n_failed=3),
        score(EVIL, 0.5, rank=(3, 3)),
        score("alpha", 0.15, arm="shuffled_condition", share=-0.07),
        score("alpha", 0.3, EXACT, rank=(1, 1)),
        score("alpha", 41.5, FD, marks=(BIASED,)),
        score("beta", 38.25, FD, marks=(BIASED,)),
        score(EVIL, 90.0, FD, marks=(BIASED,)),
        score("alpha", 0.02, KD),
        score("beta", 0.03, KD),
        score(EVIL, 0.01, KD),
        score("no_control", 0.05, KD, arm="no_control"),
        score("beta", 4.5, CHAMFER, low=None, high=None, share=None),
        score("beta", 0.6, condition="hed"),
    ]
    evidence = [witness(name, "same", 1, value) for name, value in zip(names, (0.6, 0.8, 0.1), strict=True)]
    evidence += [
        witness("alpha", which, 10 + place, value)
        for place, (which, value) in enumerate((("best", 0.9), ("median", 0.6), ("worst", 0.1)))
    ]
    evidence.append(witness("beta", "worst", 12, 0.0, reread="no edge found", difference=None, source=None))
    return Leaderboard(
        name="demo",
        made_at="2026-11-23 00:14 UTC",
        version="controlmill 0.1.0",
        notes=(f"Read {EVIL} first.",),
        machine="x86_64",
        metrics=(EXACT, F1, FD, KD, CHAMFER),
        benchmarks=(
            benchmark("canny", detectable=0.01234),
            benchmark("hed", reader="other 11aa", negative=EVIL),
        ),
        models=(
            *(
                LeaderboardModel(name=name, kind="run", base="mini", checkpoint="c", note=EVIL)
                for name in names
            ),
            *(LeaderboardModel(name=name, kind="baseline") for name in ("no_control", "real_image")),
        ),
        scores=tuple(scores),
        speeds=(Speed(model="alpha", condition="canny", seconds_per_image=1.25),),
        evidence=tuple(evidence),
        published=published(["canny", "hed"]),
    )


@pytest.fixture(scope="module")
def site(board: Leaderboard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(board, tmp_path_factory.mktemp("board"))


def test_the_page_shows_every_number_with_its_interval_share_rank_and_failures(site: Path) -> None:
    text = HtmlPage(site).text
    for words in (
        "0.720 1–2",
        "72 %",
        "0.710 – 0.730 · n 200",
        "3 failed",
        "41.50",
        BIASED,
        "no interval",
        "1.25",
        "real image",
        "no control",
        "shuffled condition",
        "the same detector : its agreement with itself",
        "another detector , other 11aa",
        "tied with alpha",
        "Reported elsewhere",
        "34.65",
    ):
        assert words in text, words


def test_the_least_difference_that_can_be_told_stands_below_the_table(site: Path) -> None:
    words = "Differences of Edge F1 below 0.0123 can't be told apart with n = 200: at 200 prompts"
    assert HtmlPage(site).text.count(words) == 1 and words in (site.parent / "leaderboard.md").read_text(
        encoding="utf-8"
    )
    told = json.loads((site.parent / "leaderboard.json").read_text(encoding="utf-8"))["benchmarks"]
    assert [row["detectable"] for row in told] == [0.01234, None], "hed has no two models to tell apart"


def test_names_and_captions_with_markup_stay_text(site: Path, board: Leaderboard) -> None:
    for page in site.parent.glob("*.html"):
        read = HtmlPage(page)
        assert not any("onerror" in attributes for _, attributes in read.tags)
        assert len([tag for tag, _ in read.tags if tag == "script"]) == (3 if page == site else 1), page.name
        assert EVIL in read.text.replace("\n", " ")
    told = (site.parent / "leaderboard.md").read_text(encoding="utf-8")
    assert "<script" not in told and "<img" not in told
    rows = [line for line in told.splitlines() if line.startswith("|")]
    tables = re.split(r"\n(?!\|)", told)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, table
    assert any("img src" in row for row in rows)


def test_every_file_that_a_page_names_is_there_and_only_sources_lie_elsewhere(site: Path) -> None:
    for page in site.parent.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "@import" not in text and "url(" not in text and str(site.parent) not in text
        for tag, attributes in HtmlPage(page).tags:
            for name in {attributes.get("src"), attributes.get("href")} - {None, "", "data:,", "x"}:
                assert name is not None
                if name.startswith("https://"):
                    assert tag == "a" and attributes["rel"] == "noreferrer"
                elif not name.startswith("#"):
                    assert (page.parent / name.partition("#")[0]).is_file(), name


def test_pictures_are_files_that_load_when_they_are_seen(site: Path) -> None:
    images = [
        attributes
        for tag, attributes in HtmlPage(site.parent / "evidence-canny.html").tags
        if tag == "img" and attributes.get("src")
    ]
    # one question and three answers, three samples of five pictures, a worst one without a map
    assert len(images) == 2 + 3 * 3 + 3 * 5 + 2
    assert all(
        image["loading"] == "lazy" and image["alt"] and (image["width"], image["height"]) == ("32", "24")
        for image in images
    )
    assert not (site.parent / "evidence-hed.html").exists()


def test_ceilings_stand_above_the_models_and_floors_below(board: Leaderboard) -> None:
    canny, hed = tables(board, {"canny": "c.html", "hed": "h.html"})
    assert [row.model for row in canny.models] == ["beta", "alpha", EVIL]
    assert [row.arm for row in (*canny.ceiling, *canny.floor)] == [
        "real_image",
        "no_control",
        "shuffled_condition",
    ]
    assert [column.metric for column in canny.columns] == [F1, EXACT, FD, KD, CHAMFER]
    assert [row.model for row in canny.leaders] == ["beta", "alpha"]  # a tie is led by all who may be first
    assert canny.marks == (BIASED,) and (canny.evidence, hed.evidence) == ("c.html", "")
    assert [row.model for row in hed.leaders] == ["beta"]  # unranked: the best number


def test_a_measure_that_is_another_one_at_this_size_has_no_column_and_the_page_says_so(
    board: Leaderboard, tmp_path: Path
) -> None:
    said = "Edge F1, exact is Edge F1 here: in pictures of this size both reach the same pixels."
    canny, hed = board.benchmarks
    few = replace(board, benchmarks=(replace(canny, repeats=(EXACT.name,), notes=(said,)), hed))
    shown, _ = tables(few, {"canny": "c.html", "hed": "h.html"})
    assert [column.metric for column in shown.columns] == [F1, FD, KD, CHAMFER]
    assert {len(row.cells) for row in (*shown.ceiling, *shown.models, *shown.floor)} == {4}
    page = render(few, tmp_path)
    assert said in HtmlPage(page).text and said in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    told = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    jsonschema.validate(told, SCHEMA)
    assert any(row["metric"] == EXACT.name for row in told["scores"]), "machines find it all the same"
    assert stored.read(tmp_path).benchmarks[0].repeats == (EXACT.name,)


def test_what_a_run_started_from_stands_below_it_and_leads_nothing(board: Leaderboard) -> None:
    before = score("beta", 0.99, arm="warm_start", rank=None)
    canny, _ = tables(replace(board, scores=(*board.scores, before)), {"canny": "c.html", "hed": "h.html"})
    assert [(row.model, row.arm) for row in canny.models[:3]] == [
        ("beta", "control"),
        ("beta", "warm_start"),
        ("alpha", "control"),
    ]
    assert [(row.model, row.arm) for row in canny.leaders] == [("beta", "control"), ("alpha", "control")]


def test_the_bar_of_a_normalized_score_runs_from_floor_to_ceiling() -> None:
    # the ceiling lies at 1 / 1.08 of the bar
    assert bar(score("a", 0.54, share_low=None)) == "--x:0.0%;--w:50.0%"
    assert (
        bar(score("a", 0.0, share=1.08, share_low=1.0, share_high=2.0))
        == "--x:0.0%;--w:100.0%;--l:92.6%;--h:7.4%"
    )
    assert (
        bar(score("a", 0.0, share=-0.5, share_low=-1.0, share_high=-0.1))
        == "--x:0.0%;--w:0.0%;--l:0.0%;--h:0.0%"
    )
    assert bar(score("a", 0.54, share_low=None), 1.0) == "--x:0.0%;--w:50.0%;--v:92.6%", (
        "the VAE's own ceiling"
    )
    assert bar(score("a", 0.0, share=None)) == bar(score("a", 0.0, share=math.nan)) == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.95, 0.1], 3), ([32.5, 4.0], 2), ([-120.0], 1), ([4096.0], 0), ([0.02], 4), ([], 3), ([math.inf], 3)],
)
def test_the_numbers_of_a_column_have_the_same_digits(values: list[float], expected: int) -> None:
    assert digits(values) == expected


def test_the_front_is_what_no_model_beats_in_both(board: Leaderboard) -> None:
    canny = [it for it in board.scores if it.condition == "canny"]
    plot = pareto(F1, {F1: 3, FD: 2, KD: 3}, canny, {"alpha": 1.25})
    assert plot is not None and plot.distance == KD  # every Fréchet distance is marked
    assert [(point.model, point.front) for point in plot.points] == [
        ("beta", True),
        ("alpha", True),
        (EVIL, True),
        ("no_control", False),
    ]
    beta, alpha, last, floor = plot.points
    # better is up and to the right
    assert floor.x < beta.x < alpha.x < last.x and floor.y < last.y < alpha.y < beta.y
    assert (alpha.seconds, beta.seconds, alpha.distance, alpha.fidelity) == (1.25, None, 0.02, 0.7)
    assert plot.steps[0] == (0.0, beta.y, beta.x, beta.y) and plot.steps[-1] == (last.x, last.y, last.x, 0.0)
    worse = [replace(it, value=0.04) if (it.model, it.metric) == ("beta", KD.name) else it for it in canny]
    worse = [replace(it, value=0.69) if (it.model, it.metric) == ("beta", F1.name) else it for it in worse]
    beaten = pareto(F1, {F1: 3, FD: 2, KD: 3}, worse, {})
    assert beaten is not None and {point.model: point.front for point in beaten.points}["beta"] is False
    lacking = [
        replace(it, marks=(*it.marks, "1 missing: of 200"))
        if (it.model, it.metric[:2]) != (EVIL, "kd")
        else it
        for it in canny
    ]
    found = pareto(F1, {F1: 3, FD: 2, KD: 3}, lacking, {})
    assert found is not None and found.distance == KD, "what both lack makes the biased one no better"
    unmarked = [replace(it, marks=()) for it in canny]
    found = pareto(F1, {F1: 3, FD: 2, KD: 3}, unmarked, {})
    assert found is not None and found.distance == FD
    assert pareto(F1, {F1: 3}, canny, {}) is None


def test_published_numbers_have_their_source_and_are_never_ranked(site: Path, board: Leaderboard) -> None:
    rows = published(CONDITIONS)
    assert all(row.source and row.url.startswith("https://") and row.condition in CONDITIONS for row in rows)
    found = {(row.condition, row.metric, row.model): row for row in rows}
    assert found["canny", "F1 × 100 (Canny, exact pixels)", "ControlNet v1.1"].value == 34.65
    assert found["depth_large", "RMSE of 0–255 (DPT-Large)", "ControlNet++"].value == 28.32
    iou = found["seg_ade20k", "IoU (OneFormer), mean over images", "ControlNet"]
    assert (iou.value, iou.low, iou.high) == (0.35, 0.21, 0.49)
    doubted = [row for row in rows if row.note.startswith("†")]
    assert [(row.condition, row.value) for row in doubted] == [("seg_coco", 13.31), ("seg_coco", 13.13)]
    assert published([]) == ()
    page = site.read_text(encoding="utf-8")
    results = "".join(re.findall(r'<div class="results".*?</table>', page, re.S))
    assert "Uni-ControlNet" in page and results and "Uni-ControlNet" not in results
    assert (
        "Reported elsewhere, by another protocol" in page
        and 'class="ours"' not in page
        and "by the protocol of this benchmark" not in page
    )
    told = [found for table in tables(board, {"canny": "", "hed": ""}) for found in table.reported]
    assert told and not any(found.comparable or any(found.ours) for found in told)
    assert all("Another protocol:" in note and "base: " in note for found in told for *_, note in found.notes)


SAME = Published(
    condition="canny",
    metric="F1 × 100",
    higher_is_better=True,
    model="theirs",
    value=31.0,
    source="paper",
    url="https://x.org",
    beside="edge_f1",
    times=100,
    base="mini",
    resolution=64,
    data="scenes",
    reader="opencv-canny",
    sampler="DDIM, eta 0, 20 steps, guidance 7.5, no negative prompt",
)


def test_ours_stands_beside_what_was_got_by_the_same_protocol_and_by_no_other(
    board: Leaderboard, tmp_path: Path
) -> None:
    frozen = replace(board.benchmarks[0], resolution=64, data="scenes")
    other = replace(SAME, model="others", base="Stable Diffusion 1.5")
    same, apart = tables(replace(board, benchmarks=(frozen,), published=(SAME, other)), {"canny": ""})[
        0
    ].reported
    assert (same.comparable, list(same.models), apart.comparable, list(apart.models)) == (
        True,
        ["theirs"],
        False,
        ["others"],
    )
    ((named, cell, times),) = same.ours  # type: ignore[misc]
    assert (named, cell.score.metric, times) == ("alpha", "edge_f1", 100) and apart.ours == (None,)
    assert apart.notes == (
        ("paper", "https://x.org", "Another protocol: base: Stable Diffusion 1.5 (here: mini)."),
    )
    page = render(replace(board, benchmarks=(frozen,), published=(SAME, other)), tmp_path).read_text(
        encoding="utf-8"
    )
    ours = re.search(r'<tr class="ours">.*?</table>', page, re.S)
    assert ours and "<b>30.00</b>" in ours[0] and "theirs" in ours[0] and "others" not in ours[0], (
        "0.3 as they print it"
    )
    told = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert (
        told.index("by the protocol of this benchmark")
        < told.index("| theirs |")
        < told.index("by another protocol")
        < told.index("| others |")
    )


@pytest.mark.parametrize("name", PROTOCOL)
def test_what_differs_or_is_not_known_keeps_two_numbers_apart(name: str) -> None:
    frozen = benchmark("canny", resolution=64, data="scenes")
    assert differences(SAME, frozen) == ()
    for value in ("another", None):
        (told,) = differences(replace(SAME, **{name: value}), frozen)
        assert told.startswith(f"{name}: {value or 'not known'} (here: "), told
    if name in ("resolution", "data"):
        (told,) = differences(SAME, replace(frozen, **{name: None}))
        assert told.endswith("(here: not known)")
    assert "measure: none here has its definition" in differences(replace(SAME, beside=""), frozen)


def test_a_published_protocol_is_that_of_its_row_and_names_this_projects_words() -> None:
    found = {(row.condition, row.metric, row.model): row for row in published(CONDITIONS)}
    rmse = "RMSE of 0–255 (DPT-Large)"
    plus, older, own = (
        found["depth_large", rmse, name] for name in ("ControlNet++", "GLIGEN (SD 1.4)", "T2I-Adapter")
    )
    assert (plus.base, plus.resolution, plus.reader) == (
        "Stable Diffusion 1.5",
        512,
        "DPT-Large",
    ) and "UniPC, 20 steps" in (plus.sampler or "")
    assert (older.base, older.sampler) == ("Stable Diffusion 1.4", None)
    assert (own.base, own.resolution, own.sampler) == (plus.base, None, "50 steps of its own code")
    assert not any(row.beside == "edge_ms_ssim_uint8" for row in found.values())
    assert {row.beside for row in found.values() if row.metric == "FID"} == {""}, "whose groups are not known"
    iou = found["seg_ade20k", "mIoU (Mask2Former)", "ControlNet v1.1"]
    ours = {
        "base": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "resolution": 512,
        "reader": "mask2former-ade20k 00ff",
        "detector": "provided 00ff",
        "data": iou.data,
    }
    there = benchmark("seg_ade20k", **ours)
    assert [told.partition(":")[0] for told in differences(iou, there)] == ["sampler"]
    made = replace(there, detector="oneformer-ade20k 00ff")
    assert "(here: mask2former-ade20k, of maps by oneformer-ade20k)" in differences(iou, made)[0]
    clip = found["seg_ade20k", "CLIP score (ViT-B/16)", "ControlNet v1.1"]
    assert [
        told.partition(":")[0] for told in differences(clip, replace(there, reader="upernet-ade20k 00ff"))
    ] == ["sampler"]


def test_where_there_is_no_normalized_score_the_page_says_why(board: Leaderboard, tmp_path: Path) -> None:
    # beta's first measure: it leads
    told = replace(board.scores[3], share=None, share_low=None, share_high=None, share_reason=NOT_BETTER)
    page = render(replace(board, scores=(*board.scores[:3], told, *board.scores[4:])), tmp_path)
    text = HtmlPage(page).text
    assert f"0.710 – 0.730 – {NOT_BETTER}" in text, "the overview"
    assert f"No normalized score of Edge F1: {NOT_BETTER}." in text
    assert f'title="no normalized score: {NOT_BETTER}">–<' in page.read_text(encoding="utf-8")
    assert f"No normalized score of Edge F1: {NOT_BETTER}." in (tmp_path / "leaderboard.md").read_text(
        encoding="utf-8"
    )
    row = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))["scores"][3]
    assert (row["share"], row["share_reason"]) == (None, NOT_BETTER)
    jsonschema.validate(json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8")), SCHEMA)
    assert f"none: {NOT_BETTER}" in provenance(replace(board, scores=(told,))).words


def test_more_than_the_real_image_is_marked(board: Leaderboard, tmp_path: Path) -> None:
    for share, low, words in (
        (1.2, 1.1, "better than the real image"),
        (1.2, 0.9, "better than the real image, within chance"),
        (1.0, 0.9, ""),
    ):
        it = score("alpha", 0.9, share=share, share_low=low, share_high=2 * share)
        assert above(it) == words
        told = HtmlPage(render(replace(board, scores=(it,), evidence=()), tmp_path)).text
        assert told.count(words) == 2 if words else "better than" not in told, (
            "in the overview and in the table"
        )
    assert share_text(score("a", 0.0, share=-0.001)) == "0 %", "there is no −0 %"


def test_the_provenance_says_what_its_number_depends_on(board: Leaderboard) -> None:
    stored = provenance(board)
    line = [stored.words[place] for place in stored.lines[3]]
    told = dict(zip(line[::2], line[1::2], strict=True))
    assert (
        told["value"] == "0.72" and told["samples"] == "200, of which 3 failed and count as the worst value"
    )
    assert (
        told["normalized score"] == "72 % (70 % – 74 %) of the way from floor to ceiling"
        and told["rank"] == "1–2"
    )
    assert (
        told["checkpoint"] == "sha256 1a2b3c"
        and told["system"] == "beta/canny"
        and told["measure"] == "Edge F1, higher is better"
    )
    biased = [stored.words[place] for place in stored.lines[7]]
    assert BIASED in biased and "no tolerance" in [stored.words[place] for place in stored.lines[6]]


def test_the_json_keeps_to_its_schema_and_holds_every_score(
    site: Path, board: Leaderboard, tmp_path: Path
) -> None:
    told = json.loads((site.parent / "leaderboard.json").read_text(encoding="utf-8"))
    check = jsonschema.Draft202012Validator(SCHEMA)
    check.validate(told)
    assert [(row["model"], row["value"], row["rank"]) for row in told["scores"]] == [
        (it.model, it.value, list(it.rank) if it.rank else None) for it in board.scores
    ]
    for row in told["evidence"]:
        assert (site.parent / row["generated"]).read_bytes().startswith(b"\x89PNG")
    assert [row["reason"] for row in told["evidence"]][-2:] == [None, "no edge found"]
    for wrong in (
        {"scores": [told["scores"][0] | {"value": "0.7"}]},
        {"layout": 1},
        {"models": [told["models"][0] | {"more": 1}]},
    ):
        assert not check.is_valid(told | wrong), wrong
    nothing = replace(board, scores=(score("alpha", math.nan), score("beta", math.inf)), evidence=())
    page = render(nothing, tmp_path)
    told = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    check.validate(told)
    assert [row["value"] for row in told["scores"]] == [None, None] and ">–</button>" in page.read_text(
        encoding="utf-8"
    )


def test_the_csv_has_a_row_for_each_score(site: Path, board: Leaderboard) -> None:
    rows = list(csv.DictReader(StringIO((site.parent / "leaderboard.csv").read_text(encoding="utf-8"))))
    assert [
        (row["model"], row["arm"], row["metric"], float(row["value"]), int(row["n_failed"])) for row in rows
    ] == [(it.model, it.arm, it.metric, it.value, it.n_failed) for it in board.scores]
    assert (rows[3]["rank_first"], rows[3]["rank_last"], rows[3]["higher_is_better"], rows[7]["marks"]) == (
        "1",
        "2",
        "True",
        BIASED,
    )


def test_writing_twice_gives_the_same_files_and_an_older_board_goes(
    board: Leaderboard, tmp_path: Path
) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(path.relative_to(tmp_path)): path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file()
        }

    render(board, tmp_path)
    first = files()
    torn = next((tmp_path / "pictures").iterdir())
    torn.write_bytes(torn.read_bytes()[:10])  # a crash
    render(board, tmp_path)
    assert files() == first
    render(replace(board, evidence=()), tmp_path)
    assert set(files()) == {f"leaderboard.{suffix}" for suffix in ("html", "json", "csv", "md", "parquet")}


def test_a_board_that_fails_half_way_leaves_the_older_page_and_its_pictures(
    board: Leaderboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = render(board, tmp_path)
    before, pictures = page.read_bytes(), set((tmp_path / "pictures").iterdir())

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leaderboard, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render(replace(board, name="other", evidence=()), tmp_path)
    assert page.read_bytes() == before and pictures <= set((tmp_path / "pictures").iterdir())


def test_pages_are_written_again_from_what_lies_beside_them(
    board: Leaderboard, tmp_path: Path, controlmill: Command
) -> None:
    """To the byte, evidence included; numbers that are none come back as such."""
    none = dict.fromkeys(("low", "high", "share", "share_low", "share_high"))
    odd = replace(
        board, scores=(*board.scores, score("alpha", math.nan, CHAMFER, arm="shuffled_condition", **none))
    )
    render(odd, tmp_path / "first")
    again = controlmill("leaderboard", "render", str(tmp_path / "first"), "--out", str(tmp_path / "again"))
    assert again.returncode == 0 and again.stdout.strip() == str(tmp_path / "again" / "leaderboard.html"), (
        again.stderr
    )
    first, second = (
        {str(it.relative_to(root)): it.read_bytes() for it in root.rglob("*") if it.is_file()}
        for root in (tmp_path / "first", tmp_path / "again")
    )
    assert first == second and any(name.startswith("pictures") for name in first)


def test_an_older_leaderboard_loses_what_was_wrong_with_it_and_nothing_else(
    board: Leaderboard, tmp_path: Path
) -> None:
    """Layout 1: a real image below the shuffled condition made 572 %, and a measure that told nothing stood
    beside the others.
    """
    gone = replace(F1, name="edge_ms_ssim_uint8", primary=False)
    wrong = [
        score("real_image", 0.3974, EXACT, arm="real_image", share=None),
        score("alpha", 0.4013, EXACT, arm="shuffled_condition", share=0.0),
        score("beta", 0.3789, EXACT, share=None),
        score("alpha", 0.3789, EXACT, share=5.72),
        score("alpha", 0.1, gone, share=5.72),
    ]
    kept = [it for it in board.scores if it.metric == F1.name and it.condition == "canny"]
    kept = [replace(it, share=None) if it.model == "beta" else it for it in kept]
    render(
        replace(
            board,
            metrics=(*board.metrics, gone),
            scores=(*kept, *wrong, score("alpha", 0.02, KD, share=None)),
        ),
        tmp_path,
    )
    file = tmp_path / "leaderboard.json"
    old = json.loads(file.read_text(encoding="utf-8")) | {"layout": 1}
    for part, new in (
        ("scores", ("share_reason",)),
        ("benchmarks", ("resolution", "data")),
        ("published", PROTOCOL),
    ):
        for row in old[part]:
            for name in new:
                del row[name]
    file.write_text(json.dumps(old), encoding="utf-8")
    found = stored.read(tmp_path)
    assert [it.name for it in found.metrics] == [
        it.name for it in board.metrics
    ] and found.published == board.published
    assert [it.value for it in found.scores] == [it.value for it in (*kept, *wrong[:-1], found.scores[-1])]
    told = {(it.model, it.arm, it.metric): (it.share, it.share_reason) for it in found.scores}
    assert told["alpha", "control", EXACT.name] == (None, NOT_BETTER) and told[
        "alpha", "control", KD.name
    ] == (None, NO_CEILING)
    assert told["alpha", "control", F1.name] == (0.7, "") and told["beta", "control", F1.name] == (
        None,
        BY_CHANCE,
    )
    page = render(found, tmp_path).read_text(encoding="utf-8")
    assert "572" not in page and "edge_ms_ssim_uint8" not in page + file.read_text(encoding="utf-8")
    jsonschema.validate(json.loads(file.read_text(encoding="utf-8")), SCHEMA)


def test_what_is_no_leaderboard_is_refused_with_a_sentence(
    board: Leaderboard, tmp_path: Path, controlmill: Command
) -> None:
    render(board, tmp_path)
    file = tmp_path / "leaderboard.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    for text, words in (
        ("{", "is no leaderboard"),
        ("[]", "is no leaderboard"),
        (json.dumps(whole | {"layout": 99}), "reads up to 2"),
        (json.dumps(whole | {"scores": [{}]}), "docs/leaderboard.schema.json"),
        (
            json.dumps(whole | {"evidence": [whole["evidence"][0] | {"hint": "pictures/none.png"}]}),
            "pictures/none.png",
        ),
        (json.dumps(whole | {"evidence": [whole["evidence"][0] | {"hint": "../x.png"}]}), "../x.png"),
    ):
        file.write_text(text, encoding="utf-8")
        (tmp_path.parent / "x.png").write_bytes(picture(1))
        with pytest.raises(MillError, match=re.escape(words)):
            stored.read(tmp_path)
    lost = controlmill("leaderboard", "render", str(tmp_path / "nowhere"))
    assert (
        lost.returncode == 1
        and "name the folder that holds leaderboard.json" in lost.stderr
        and lost.stderr.count("\n") == 1
    )


def test_a_board_without_scores_says_so(tmp_path: Path) -> None:
    assert "Nothing has been scored yet" in HtmlPage(render(Leaderboard(name="new"), tmp_path)).text
    waiting = Leaderboard(
        name="new",
        benchmarks=(benchmark("canny"),),
        metrics=(F1,),
        models=(LeaderboardModel(name="alpha", kind="run"),),
    )
    assert "not scored" in HtmlPage(render(waiting, tmp_path)).text
    jsonschema.validate(json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8")), SCHEMA)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if PROGRAM is None:
        pytest.skip("no chromium here")
    with chromium() as tab:
        yield tab


@pytest.fixture
def page(browser: Page, site: Path) -> Iterator[Page]:
    """The leaderboard, freshly opened; whatever a test does there, the page neither errs nor asks anyone."""
    browser.resize(1400, 1000)
    browser.open(site)
    # what is out of sight is not laid out, and has no text for innerText
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<style>.group { content-visibility: visible"
        " !important }</style>')"
    )
    yield browser
    assert browser.complaints == []
    assert browser.requests and all(address.startswith(("file://", "data:")) for address in browser.requests)
    assert "taken" not in browser.run("document.title")


def shown(page: Page, what: str) -> list[str]:
    """The first lines of all elements of a kind that a person can see."""
    code = (
        f"[...document.querySelectorAll({what!r})].filter(it => it.getClientRects().length).map(it =>"
        " it.innerText.split('\\n')[0])"
    )
    found: list[str] = page.run(code)
    return found


def models(page: Page) -> list[str]:
    return shown(page, "#canny .ranked tr:not(.band) th")


def sort(page: Page, column: str) -> None:
    page.run(
        "[...document.querySelectorAll('#canny .results thead button')].find(it =>"
        f" it.innerText.startsWith({column!r})).click()"
    )


def test_a_heading_sorts_its_column_best_first_and_again_the_other_way(page: Page) -> None:
    assert models(page) == ["beta", "alpha", EVIL]
    sort(page, "Kernel")
    assert models(page) == [EVIL, "alpha", "beta"]
    sort(page, "Kernel")
    assert models(page) == ["beta", "alpha", EVIL]
    sort(page, "s/image")
    assert models(page)[0] == "alpha"  # who has none comes last
    sort(page, "s/image")
    assert models(page)[0] == "alpha"
    sort(page, "model")
    assert models(page) == [EVIL, "alpha", "beta"]
    assert (
        page.run("[...document.querySelectorAll('#canny .results tbody')].map(it => it.className).join()")
        == "ceiling,ranked,floor"
    )
    assert page.run(
        "[...document.querySelectorAll('#canny .results tbody')].every(it => it.rows[0].className === 'band')"
    )
    assert (
        page.run(
            "[...document.querySelectorAll('#canny th[aria-sort]')].filter(it => it.ariaSort !=="
            " 'none').length"
        )
        == 1
    )


def choose(page: Page, field: str, value: str) -> None:
    page.run(
        f"(() => {{ const it = document.getElementById('tools').elements[{field!r}]; it.value = {value!r};"
        " (it[0] && it[0].type === 'radio' ? it[0] : it).dispatchEvent(new Event('input', {bubbles:"
        " true})); })()"
    )


def test_conditions_measures_and_models_can_be_chosen(page: Page) -> None:
    def headings() -> list[str]:
        return [words.split(" ↑")[0].split(" ↓")[0] for words in shown(page, "#canny .results thead th")]

    assert shown(page, ".group h3") == ["Canny edges", "HED boundaries"]
    assert headings() == ["model", "Edge F1", "Fréchet distance (mini)", "Kernel distance (mini)", "s/image"]
    choose(page, "columns", "paper")
    assert headings() == ["model", "Edge F1", "Edge F1, exact", "s/image"]  # the first measure always stays
    assert shown(page, ".none") == ["No further measure of this kind for this condition."]  # hed
    choose(page, "columns", "all")
    assert len(headings()) == 7 and shown(page, ".none") == []
    choose(page, "model", "ALPH")
    assert models(page) == ["alpha"] and shown(page, ".group h3") == ["Canny edges"]  # hed has no alpha
    assert shown(page, "#canny .ceiling th")[1:] == ["real image"]
    choose(page, "model", "")
    choose(page, "condition", "hed")
    assert shown(page, ".group h3") == ["HED boundaries"]
    choose(page, "condition", "")
    assert "alpha" in shown(page, "#canny .floor th")
    page.run("document.querySelector('[name=shuffled]').click()")
    assert "alpha" not in shown(page, "#canny .floor th")


def test_a_number_opens_its_provenance(page: Page) -> None:
    page.run("document.querySelector('#canny .ranked .number').click()")
    told = page.run("document.getElementById('provenance').innerText")
    assert page.run("document.getElementById('provenance').open")
    for words in (
        "beta · Canny edges",
        "higher is better",
        "sha256 1a2b3c",
        "of which 3 failed",
        "torch 2.12",
    ):
        assert words in told
    page.run("document.querySelector('#provenance button').click()")
    assert not page.run("document.getElementById('provenance').open")
    page.run(
        "[...document.querySelectorAll('#canny .ranked"
        " tr:not(.band)')].at(-1).querySelector('.number').click()"
    )
    # a name with markup is a name
    assert EVIL in page.run("document.querySelector('#provenance h3').textContent")
    assert page.run("document.querySelectorAll('#provenance img').length") == 0


def test_evidence_is_one_click_away_and_a_picture_enlarges(page: Page, site: Path) -> None:
    address = page.run("document.querySelector('#canny .ranked th a').href")
    # beta's
    assert address.startswith((site.parent / "evidence-canny.html").as_uri()) and address.endswith("#m1")
    page.open(site.parent / "evidence-canny.html")
    assert shown(page, "#same .answer p") == ["beta", "alpha", EVIL]  # best first, all of one image and seed
    assert len(shown(page, "#same .asked")) == 1 and EVIL in page.run(
        "document.querySelector('.asked .caption').textContent"
    )
    assert shown(page, "#m0 .answer p") == ["best", "median", "worst"] and "no edge found" in page.run(
        "document.querySelector('#m1').innerText"
    )
    page.run("document.querySelector('#same .answer a.frame').click()")
    page.run(OPENED)
    assert page.run("document.getElementById('viewer').open")
    assert page.run("document.querySelector('#viewer img').naturalWidth") == 32
    assert (
        page.run("document.querySelector('#viewer figcaption').textContent") == "beta: generated  ·  3 of 11"
    )


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(page: Page, site: Path, width: int) -> None:
    page.resize(width, 900)
    for name in ("leaderboard.html", "evidence-canny.html"):
        page.open(site.parent / name)
        assert page.run("document.documentElement.scrollWidth") <= width, name


def test_without_scripts_every_row_and_column_is_there(site: Path) -> None:
    text = site.read_text(encoding="utf-8")
    # filters are set by the script alone
    assert 'id="tools" hidden' in text and not re.search(r"<html[^>]*data-columns", text)
