"""The report: whole, safe to open, honest about what has not run, and free of any network."""

import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotate.maps import RawMap
from pipeline.report import dataset_rows, learning
from pipeline.report.contents import (
    ConditionRow,
    ContactRow,
    Estimate,
    EvidenceRow,
    Gains,
    Generated,
    Ingest,
    LearningCurve,
    LegendEntry,
    PairedDifference,
    Reason,
    ReportData,
    RunRow,
    ScoreRow,
    Stage,
    SummaryRow,
)
from pipeline.report.learning import told
from pipeline.report.plots import axis, gain_plot, learning_plot, loss_plot
from pipeline.report.site import PICTURES, render, score_groups
from tests.pages import HtmlPage

EVIL = "<script>alert('caption')</script>\" onerror=\"x"


def picture(seed: int, kind: str = "PNG") -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def score(
    system: str, value: float, *, baseline: bool = False, metric: str = "edge_f1", **more: object
) -> ScoreRow:
    row = ScoreRow(
        system=system,
        baseline=baseline,
        condition="canny",
        metric=metric,
        value=value,
        low=value - 0.05,
        high=value + 0.05,
        n=12,
        n_failed=1,
        higher_is_better=True,
        definition="F1 of edges",
        detector="1a2b3c4d5e6f7788",
        seeds=(0,),
    )
    return replace(row, **more)


@pytest.fixture
def data() -> ReportData:
    return ReportData(
        name="demo",
        made_at="2026-11-23 00:14 UTC",
        version="controlmill 0.1.0",
        manifest=f"name: demo\n# {EVIL}\n",
        machine={"cpu": "2 cores"},
        notes=("The base model has random weights.",),
        stages=(Stage(name="ingest", state="done", detail="3 images"), Stage(name="train", state="running")),
        ingest=Ingest(
            by_status={"ok": 3, "failed": 1},
            by_split={"train": 2, "test": 1},
            by_size={"512×512": 3},
            n_sources=5,
            n_duplicates=1,
            reasons=(Reason(text="truncated file", count=1, examples=(f"photos/{EVIL}.jpg",)),),
        ),
        conditions=(
            ConditionRow(
                name="canny",
                title="Canny edges",
                kind="edges",
                state="made",
                detector="opencv-canny",
                version="1",
                licence="Apache-2.0",
                fingerprint="00ff00ff00ff00ff",
                ok=2,
                skipped=1,
                seconds=0.004,
                measures={"edge_fraction": 0.1},
                reasons=(Reason(text="no edge found", count=1, status="skipped"),),
            ),
            ConditionRow(
                name="depth_large",
                title="Depth",
                kind="depth",
                state="lacking",
                lacks="MiDaS weights from the hub",
            ),
        ),
        get="controlmill weights get midas-dpt-hybrid",
        contact=(
            ContactRow(
                image_id="a" * 64,
                uri="photos/cat.png",
                caption=EVIL,
                split="train",
                image=picture(0, "JPEG"),
                maps={"canny": picture(1)},
                legends={"canny": (LegendEntry(name="wall-other", colour="#c0c0c0", share=0.25),)},
            ),
            ContactRow(
                image_id="b" * 64,
                uri="photos/sky.png",
                caption="sky",
                split="test",
                image=picture(2),
                maps={"canny": "no edge found"},
            ),
        ),
        runs=(
            RunRow(
                name="canny-full",
                conditions=("canny",),
                base="tiny",
                random_weights=True,
                images_seen=800,
                steps=200,
                seconds=65.0,
                images_per_second=12.3,
                loss=tuple((4.0 * i, 1 / (1 + i)) for i in range(200)),
                checkpoint="checkpoints/canny-full",
                gains={"canny": ((400.0, 0.0, 0.0), (800.0, 0.2, -0.1)), "hed": ((400.0, 0.0, None),)},
                convergence_step={"canny": 800},
                followed={"canny": learning.followed(800, [])},
            ),
        ),
        scores=(
            score("no_control", 0.1, baseline=True),
            score(
                "canny-full",
                0.3,
                comparisons=(
                    PairedDifference(against="no_control", difference=0.2, low=0.1, high=0.3, p=0.0005),
                ),
            ),
        ),
        evidence=(
            EvidenceRow(
                condition="canny",
                image_id="b" * 64,
                prompt="sky",
                seed=7,
                hint=picture(1),
                source=picture(2),
                outputs=(
                    Generated(
                        system="canny-full",
                        baseline=False,
                        image=picture(3),
                        reread=picture(4),
                        values={"edge_f1": 0.31},
                    ),
                    Generated(
                        system="no_control",
                        baseline=True,
                        image=picture(5),
                        reread="the detector found nothing",
                        values={"edge_f1": 0.0},
                    ),
                ),
            ),
        ),
    )


def test_the_page_shows_every_part_of_the_data(data, tmp_path):
    text = HtmlPage(render(data, tmp_path)).text
    for words in (
        "demo",
        "5 addresses read, 1 of them exact duplicates",
        "truncated file",
        "2 train",
        "opencv-canny",
        "250",
        "MiDaS weights from the hub",
        "cat.png",
        "canny-full",
        "800 in 200 steps",
        "1 min 05 s",
        "random weights",
        "canny: conditioning gain",
        "Convergence step: it follows its condition since 800 images.",
        "Words of this page",
        "0.300",
        "0.250 – 0.350",
        "+0.200",
        "p < 0.001",
        "baseline",
        "seed 7",
        "the detector found nothing",
        "2 cores",
        "The resolved manifest",
        "no edge found",
    ):
        assert words in text, words


def test_a_label_map_has_a_legend_of_its_largest_classes(data, tmp_path):
    assert 'title="25.0 % of the map"' in (text := render(data, tmp_path).read_text())
    assert "background:#c0c0c0" in text and "wall-other</li>" in text
    ids = np.zeros((10, 10), np.uint8)
    ids[5:], ids[9] = 2, 255
    entries = list(dataset_rows.legend(RawMap("labels", ids, {"label_space": "ade20k_150"})))
    assert [(it.name, it.share) for it in entries] == [("wall", 0.5), ("sky", 0.4), ("void", 0.1)]
    assert [it.colour for it in entries] == ["#787878", "#06e6e6", "#000000"]


def test_one_that_followed_before_its_training_is_not_said_to_have_begun_at_image_0(data, tmp_path):
    told = {"convergence_step": {"canny": 0}, "followed": {"canny": learning.followed(0, [])}}
    text = HtmlPage(render(replace(data, runs=(replace(data.runs[0], **told),)), tmp_path)).text
    assert "Followed its condition before this training." in text and "since 0 images" not in text


def test_one_that_is_beyond_chance_but_too_few_for_a_convergence_step_is_told_as_such():
    assert learning.followed(None, []) == "Not seen to follow its condition yet."
    for z in (None, 2.0, -4.2):
        sentence = learning.followed(None, [(640, {"control_z": z, "n_shuffled": 24})])
        assert sentence == "Not seen to follow its condition yet.", z
    sentence = learning.followed(None, [(320, {}), (640, {"control_z": 4.2, "n_shuffled": 24})])
    assert sentence.startswith("At 640 images its own hints gain more than shuffled ones, beyond chance.")
    assert "24 pairs may be too few" in sentence


def test_captions_names_and_manifests_are_escaped(data, tmp_path):
    page = HtmlPage(render(replace(data, name=EVIL), tmp_path))
    assert len(list(page.all("script"))) == 1  # the page's own
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert EVIL in page.text


def test_the_page_needs_nothing_from_elsewhere_and_every_file_it_names_is_there(data, tmp_path):
    index = render(data, tmp_path)
    text = index.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    named = {
        attributes[key]
        for tag, attributes in HtmlPage(index).tags
        for key in ("src", "href")
        if key in attributes
    }
    files = {name for name in named if not name.startswith(("#", "data:"))}
    assert len(files) == 6 and all(
        (tmp_path / name).is_file() and not Path(name).is_absolute() for name in files
    )
    assert str(tmp_path) not in text


def test_pictures_have_alternative_text_and_size_and_link_to_themselves_without_scripts(data, tmp_path):
    page = HtmlPage(render(data, tmp_path))
    images = [attributes for attributes in page.all("img") if attributes.get("src")]
    assert images and all(image["alt"] for image in images)
    framed = [image for image in images if image.get("width")]
    assert all((image["width"], image["height"]) == ("48", "32") for image in framed)
    assert {link["href"] for link in page.all("a") if "frame" in link.get("class", "")} == {
        image["src"] for image in framed
    }
    assert all(header.get("scope") for header in page.all("th"))


def test_an_empty_report_says_what_has_not_run_yet(tmp_path):
    text = HtmlPage(render(ReportData(name="new"), tmp_path)).text
    for words in (
        "No images have been read yet",
        "No maps have been made yet",
        "Training has not run yet",
        "Nothing has been scored yet",
    ):
        assert words in text


def test_a_picture_that_is_none_is_said_in_words_and_does_not_stop_the_report(data, tmp_path):
    rows = (
        replace(data.contact[0], image=b"not a picture", maps={"canny": b"\x89PNG broken"}),
        *data.contact[1:],
    )
    assert HtmlPage(render(replace(data, contact=rows), tmp_path)).text.count("unreadable picture") == 2


def test_pictures_of_an_older_report_go_once_the_new_page_is_there(data, tmp_path):
    render(data, tmp_path)
    before = set((tmp_path / PICTURES).iterdir())
    render(replace(data, contact=(), evidence=()), tmp_path)
    assert before and not list((tmp_path / PICTURES).iterdir())


def test_writing_twice_gives_the_same_page_and_rewrites_no_picture(data, tmp_path):
    first = render(data, tmp_path).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / PICTURES).iterdir()}
    assert render(data, tmp_path).read_bytes() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / PICTURES).iterdir()} == times


def test_a_report_that_fails_half_way_leaves_the_older_one_whole(data, tmp_path, monkeypatch):
    index = render(data, tmp_path)
    before = index.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render(replace(data, name="other", contact=(replace(data.contact[0], image=picture(99)),)), tmp_path)
    assert index.read_bytes() == before
    named = [attributes["src"] for attributes in HtmlPage(index).all("img") if attributes.get("src")]
    assert named and all((tmp_path / name).is_file() for name in named)


def test_scores_put_systems_before_baselines_and_mark_the_best_baseline():
    rows = (
        score("shuffled_condition", 0.2, baseline=True),
        score("canny-full", 0.4),
        score("no_control", 0.1, baseline=True),
        score("canny-full", 0.5, metric="edge_f1_1px", low=None, high=None),
    )
    first, second = score_groups(rows)
    assert [row.system for row in first.rows] == ["canny-full", "shuffled_condition", "no_control"]
    assert first.floor == 0.2 and (first.axis.low, first.axis.high) == (0, 0.5)
    assert second.metric == "edge_f1_1px" and second.floor is None
    errors = (
        score("no_control", 9.0, baseline=True, higher_is_better=False),
        score("other", 7.0, baseline=True, higher_is_better=False),
    )
    assert score_groups(errors)[0].floor == 7.0
    assert score_groups((score("canny-full", 0.0, low=None, high=None),))[0].axis.high > 0


def test_the_real_image_is_no_floor():
    (group,) = score_groups(
        (
            score("run", 0.3),
            score("no_control", 0.1, baseline=True),
            score("real_image", 1.0, baseline=True, ceiling=True),
        )
    )
    assert group.floor == 0.1


def test_the_page_begins_with_what_the_training_changed(data, tmp_path):
    canny = SummaryRow(
        condition="canny",
        model=EVIL,
        metric="edge_f1",
        higher_is_better=True,
        gains=Gains(start=Estimate(value=1.25, reach=0.5), end=Estimate(value=12.0)),
        trained=Estimate(value=0.5, reach=0.034),
        ceiling=Estimate(value=0.9),
        normalized=Estimate(value=-5.4, reach=7.0),
        beyond_both=True,
        baselines={"warm_start": Estimate(value=0.4, reach=0.02), "no_control": Estimate(value=0.1)},
        verdicts={"warm_start": "<", "no_control": ">"},
    )
    path = render(replace(data, summary=(canny,)), tmp_path)
    page = HtmlPage(path)
    head = page.text.split("Read this first")[0]
    assert all(
        text in head
        for text in (
            "1.2 ± 0.5",
            "12.0",
            "0.500 ± 0.034",
            "0.400 ± 0.020 <",
            "0.100 >",
            "0.900",
            "−5 ± 7 %",
            "*",
        )
    ), head
    assert "Model" not in head, "one model a condition needs no name"
    head = HtmlPage(
        render(replace(data, summary=(canny, replace(canny, model="other"))), tmp_path)
    ).text.split("Read this first")[0]
    assert "Model" in head and EVIL in head and "other" in head and "<script>alert" not in path.read_text()


def test_a_score_without_interval_says_why(data, tmp_path):
    alone = replace(data, scores=(score("canny-full", 0.3, low=None, high=None, n=1),))
    assert "too few images" in HtmlPage(render(alone, tmp_path)).text


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 0.31, ["0.0", "0.1", "0.2", "0.3", "0.4"]),
        (0, 1000, ["0", "200", "400", "600", "800", "1,000"]),
        (0.11, 0.14, ["0.11", "0.12", "0.13", "0.14"]),
        (-0.5, 0.5, ["-0.6", "-0.4", "-0.2", "0.0", "0.2", "0.4", "0.6"]),
    ],
)
def test_axes_have_round_ticks_that_hold_the_data(low, high, labels):
    made = axis(low, high)
    assert [label for _, label in made.ticks] == labels
    assert made.low <= low and made.high >= high
    assert [made.ticks[0][0], made.ticks[-1][0]] == [0, 100]


def test_an_axis_of_one_value_still_has_a_length():
    assert axis(3.0, 3.0).low < 3 < axis(3.0, 3.0).high
    tight = axis(0.0, 6400.0, tight=True)
    assert tight.high == 6400 and tight.ticks[-1] == (93.75, "6,000")


def test_a_long_loss_curve_is_thinned_without_losing_its_spike():
    points = [(float(i), 1.0) for i in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    points[40] = (40.0, float("nan"))
    plot = loss_plot(points)
    assert plot is not None and plot.n == 49_999
    assert plot.y.high >= 9 and plot.raw.count("L") <= 400 and plot.smooth.count("L") <= 400
    assert f" {100 - plot.y.place(9.0):g}" in plot.raw
    assert loss_plot([]) is loss_plot([(1.0, 2.0)]) is None


def test_the_conditioning_gain_shows_both_hints_and_waits_for_two_measures():
    plot = gain_plot([(400.0, 0.1, 0.1), (800.0, 0.3, -0.1), (1200.0, 0.5, None)])
    assert plot is not None and plot.last == 0.5 and plot.n == 3
    assert plot.y.low <= -0.1 and plot.y.high >= 0.5  # one scale for both
    assert plot.smooth.count("L") == 2 and plot.raw.count("L") == 1
    # one held-out pair has nobody to borrow a hint from
    alone = gain_plot([(400.0, 0.1, None), (800.0, 0.3, None)])
    assert alone is not None and alone.raw == ""
    assert gain_plot([(400.0, 0.1, 0.1)]) is None


def test_the_learning_curve_is_drawn_with_its_intervals_and_the_floor(data, tmp_path):
    points = ((0, 0.1, None, None), (400, 0.2, 0.15, 0.25), (800, 0.6, 0.5, 0.7))
    plot = learning_plot(points, 0.12)
    assert plot is not None and plot.last == 0.6 and plot.n == 3 and plot.y.low <= 0.1 and plot.y.high >= 0.7
    assert plot.smooth.count("L") == 2 and plot.raw.count("M") == 3 + 1, (
        "an interval at each point, and the floor"
    )
    assert learning_plot(points[:1], 0.12) is None
    curve = LearningCurve(metric="edge_f1", higher_is_better=True, floor=0.12, points=points)
    run = replace(data.runs[0], learning_curves={"canny": curve})
    path = render(replace(data, runs=(run,)), tmp_path)
    assert (
        "canny: learning curve" in HtmlPage(path).text
        and 'aria-label="Learning curve of canny over images seen' in path.read_text()
    )
    assert "It was still getting better when it ended" in HtmlPage(path).text
    assert "canny: learning curve" not in render(data, tmp_path).read_text()


def test_a_learning_curve_is_told_in_words() -> None:
    def curve(*points: tuple[int, float, float | None, float | None], better: bool = True) -> str:
        made = LearningCurve(metric="edge_f1", higher_is_better=better, floor=0.3, points=points)
        return " ".join(told(made))

    start, middle, end = (0, 0.1, 0.05, 0.15), (400, 0.5, 0.4, 0.6), (800, 0.55, 0.45, 0.65)
    assert curve(start, middle, end) == (
        "It got better: edge_f1 was 0.100 at 0 images and is 0.550 at 800. Beyond the better baseline (0.300)"
        " since 400 images. Since 400 images these samples tell no further gain: more training promises"
        " little."
    )
    rising = curve(start, middle, (800, 0.8, 0.7, 0.9))
    assert rising.endswith("It was still getting better when it ended: more images may bring more.")
    flat = curve(start, (400, 0.12, 0.06, 0.18))
    assert flat.startswith("No change that these samples can tell: edge_f1 was 0.100")
    assert "nowhere yet: it has not shown that it follows its condition" in flat
    lower = curve((0, 0.9, 0.8, 1.0), (400, 0.2, 0.1, 0.25), better=False)
    assert lower.startswith("It got better") and "since 400 images" in lower
    worse = curve(end, (900, 0.1, 0.0, 0.2))
    assert worse.startswith("It got worse") and "more training" not in worse
    assert curve((0, 0.1, None, None), middle).startswith("Too few images were scored")


def test_the_report_is_written_without_the_heavy_libraries():
    code = (
        "import sys, pipeline.report.site; print([m for m in ('duckdb', 'ray', 'torch', 'diffusers', 'cv2')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


def test_the_contact_sheet_says_what_gets_the_weights_of_the_other_conditions(
    data: ReportData, tmp_path: Path
) -> None:
    said = (
        "depth_large: not shown, for want of weights. controlmill weights get midas-dpt-hybrid brings them."
    )
    assert said in " ".join(HtmlPage(render(data, tmp_path)).text.split())
    assert "for want of weights" not in HtmlPage(render(replace(data, get=""), tmp_path)).text
