"""What anyone must be able to do with the pages: read colours, reach parts, press controls."""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chromium import PROGRAM, Page, chromium
from pipeline.report import leaderboard
from pipeline.report.contents import ConditionRow, Estimate, Gains, LibraryRow, ReportData, SummaryRow
from pipeline.report.leaderboard_data import Leaderboard
from pipeline.report.site import TEMPLATES, render, score_groups
from tests.pages import HtmlPage
from tests.pipeline.test_leaderboard_site import F1, benchmark, witness
from tests.pipeline.test_leaderboard_site import score as board_score
from tests.pipeline.test_report_site import score

SHOWCASE = Path(__file__).parents[2] / "docs" / "showcase" / "leaderboard"
BACKGROUNDS = ("paper", "card", "wash")
ENOUGH = 4.5  # WCAG 2.2, 1.4.3: of text that is not large


def schemes() -> dict[str, dict[str, str]]:
    """The variables of the style sheet that are colours, in light and in dark."""
    sheet = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block))
        for block in re.findall(r":root \{(.*?)\}", sheet, re.S)
    )
    return {"light": light, "dark": light | dark}


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: of their relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
        return sum(weight * it for weight, it in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def texts() -> set[str]:
    """Variables that colour text, in either style sheet."""
    sheets = "".join((TEMPLATES / name).read_text() for name in ("style.css", "leaderboard.css"))
    return set(re.findall(r"(?<![\w-])color: var\(--([\w-]+)\)", sheets))


def test_contrast_is_measured_as_wcag_measures_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_can_be_read_on_every_background(scheme: str) -> None:
    colours, used = schemes()[scheme], texts()
    assert {"ink", "soft", "accent", "ok-text", "failed-text", "skipped-text"} <= used
    pairs = [
        *itertools.product(used - {"paper"}, BACKGROUNDS),
        ("paper", "accent"),
        ("accent", "accent-wash"),
    ]
    pairs += [("ink", "warn-wash"), ("ink", "accent-wash"), ("soft", "accent-wash")]
    poor = {
        pair: round(found, 2)
        for pair in pairs
        if (found := contrast(*(colours[name] for name in pair))) < ENOUGH
    }
    assert poor == {}


def report(folder: Path) -> Path:
    """A report with every table but those of pictures."""
    summary = SummaryRow(
        condition="canny",
        model="canny-full-0123abcd",
        metric="edge_f1_bsds",
        higher_is_better=True,
        gains=Gains(start=Estimate(value=1.0, reach=0.5), end=Estimate(value=2.0, reach=0.5)),
        trained=Estimate(value=0.69, reach=0.05),
        ceiling=Estimate(value=1.0, reach=0.0),
        normalized_reason="the real image scores no better than the better baseline",
        baselines={
            name: Estimate(value=0.3, reach=0.01)
            for name in ("warm_start", "shuffled_condition", "no_control")
        },
    )
    condition = ConditionRow(name="canny", title="Canny edges", kind="edges", state="made", ok=3)
    data = ReportData(
        name="demo",
        conditions=(condition,),
        summary=(summary,),
        scores=(score("canny-full", 0.3), score("no_control", 0.1, baseline=True)),
        libraries=(LibraryRow(measure="edge_ssim", library="torchmetrics", values=3, difference=1e-7),),
    )
    return render(data, folder)


def test_every_table_has_a_caption(tmp_path: Path) -> None:
    for page in (report(tmp_path), *SHOWCASE.glob("*.html")):
        assert all(re.findall(r"<table[^>]*>\s*(<caption)?", page.read_text(encoding="utf-8"))), page.name
    for template in TEMPLATES.glob("*.html"):
        html = template.read_text(encoding="utf-8")
        assert html.count("<table") == html.count("<caption"), template.name


def test_the_ruler_has_a_tick_at_the_vaes_own_ceiling(tmp_path: Path) -> None:
    rows = (
        score("canny-full", 0.3),
        score("vae_round_trip", 0.75, baseline=True, ceiling=True, vae=True),
        score("real_image", 0.95, baseline=True, ceiling=True),
        score("no_control", 0.1, baseline=True),
    )
    (group,) = score_groups(rows)
    assert (group.vae, group.floor) == (0.75, 0.1)
    page = render(ReportData(name="demo", scores=rows), tmp_path).read_text(encoding="utf-8")
    assert page.count(f'<line class="vae" x1="{group.axis.place(0.75)}%"') == 4, "in every row"
    (without,) = score_groups(rows[2:])
    assert without.vae is None
    assert 'class="vae"' not in render(ReportData(name="demo", scores=rows[2:]), tmp_path).read_text()


def test_the_same_detector_is_said_only_where_it_read_the_map_again(tmp_path: Path) -> None:
    row = score("canny-full", 0.3)
    for maker, words in (
        (row.detector, "read again by the detector that made the conditions"),
        ("another", "read again by another detector, or another version or setting"),
        ("", ""),
    ):
        page = HtmlPage(render(ReportData(name="demo", scores=(replace(row, maker=maker),)), tmp_path))
        assert "the same detector" not in page.text and page.text.count("read again by") == bool(words)
        assert words in page.text


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        ("opencv-canny 00ff", "the same detector"),
        ("opencv-canny 11aa", "another version or setting"),
        ("other 11aa", "another detector"),
        ("", "no detector"),
    ],
)
def test_the_leaderboard_tells_who_read_a_condition_again_by_the_fingerprint(
    reader: str, words: str, tmp_path: Path
) -> None:
    board = Leaderboard(
        name="demo",
        metrics=(F1,),
        benchmarks=(benchmark("canny", reader=reader),),
        scores=(board_score("alpha", 0.7),),
        evidence=(witness("alpha", "best", 1, 0.9),),
    )
    page = leaderboard.render(board, tmp_path)
    numbers, evidence = (HtmlPage(it).text for it in (page, tmp_path / "evidence-canny.html"))
    assert f"read again by {words}" in numbers
    assert words in evidence.replace("The same", "the same").replace("another, other", "another detector")
    others = {"the same detector", "another version or setting", "another detector", "no detector"} - {words}
    assert not any(it in numbers for it in others)
    told = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert f"read again by {reader or 'no detector'}." in told


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if PROGRAM is None:
        pytest.skip("no chromium here")
    with chromium() as tab:
        yield tab


# a link is followed from the end of the page; then nothing may move for ten frames
FOLLOWED = """(async (href) => {
    scrollTo({top: document.documentElement.scrollHeight, behavior: "instant"});
    const frame = () => new Promise(requestAnimationFrame);
    for (let n = 0; n < 3; n++) await frame();
    document.querySelector(`a[href="${href}"]`).click();
    while (location.hash !== href) await frame();  // a busy browser follows it later
    const target = document.querySelector(href);
    const place = () => target.getBoundingClientRect().top;
    for (let still = 0, last = NaN; still < 10; still = place() === last ? still + 1 : 0) {
        last = place();
        await frame();
    }
    const root = document.documentElement;
    const margin = [getComputedStyle(root).scrollPaddingTop, getComputedStyle(target).scrollMarginTop]
        .reduce((sum, it) => sum + parseFloat(it), 0);
    const atEnd = scrollY + innerHeight >= root.scrollHeight - 2;
    return [Math.abs(place() - margin), atEnd && place() < innerHeight];
})"""


@pytest.mark.parametrize("width", [400, 1400])
def test_links_within_a_page_land_where_they_point(browser: Page, width: int) -> None:
    browser.resize(width, 1000)
    browser.open(SHOWCASE / "leaderboard.html")
    for href in ("#canny", "#overview", "#normal", "#models", "#cartoon", "#results", "#about", "#cite"):
        aside, at_end = browser.run(f"{FOLLOWED}({href!r})")
        assert aside < 2 or at_end, (href, aside)


def test_a_link_into_an_evidence_page_shows_its_model(browser: Page) -> None:
    browser.resize(1400, 1000)
    browser.open(SHOWCASE / "leaderboard.html")
    address = browser.run("document.querySelector('#canny .ranked th a').getAttribute('href')")
    browser.run(f"location.href = {address!r}")
    hash_of = "#" + address.partition("#")[2]
    for _ in range(400):
        with suppress(AssertionError):  # the page that was asked has been left
            if browser.run("document.readyState === 'complete' && location.hash") == hash_of:
                break
        time.sleep(0.05)
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert 0 <= browser.run(f"document.querySelector({hash_of!r}).getBoundingClientRect().top") < 1000


CONTROLS = """[...document.querySelectorAll("a, button, input, select, summary")]
    .filter(it => it.getClientRects().length && !it.matches(".skip"))
    .map(it => [it.getBoundingClientRect().height, it.outerHTML.slice(0, 80)])"""
SAYING = ".hint, .legend, .lead, .task, legend, figcaption, caption:not(.unseen), .marks"
LEGENDS = f"""[...document.querySelectorAll({SAYING!r})]
    .filter(it => it.getClientRects().length)
    .map(it => [it.getBoundingClientRect(), it.outerHTML.slice(0, 80)])
    .map(([box, html]) => [box.left, box.right, html])"""
# what is out of sight is not laid out
SEEN = "<style>* { content-visibility: visible !important }</style>"
ALL = f"document.body.insertAdjacentHTML('beforeend', {SEEN!r})"
UNFOLDED = "document.querySelectorAll('details').forEach(it => it.open = true)"


def test_at_400_pixels_controls_are_24_high_and_no_legend_is_cut_off(browser: Page, tmp_path: Path) -> None:
    browser.resize(400, 900)
    for page in (SHOWCASE / "leaderboard.html", SHOWCASE / "evidence-canny.html", report(tmp_path)):
        browser.open(page)
        browser.run(ALL)
        browser.run(UNFOLDED)
        controls, legends = browser.run(CONTROLS), browser.run(LEGENDS)
        assert len(controls) > 5 and [it for it in controls if it[0] < 24] == [], page.name
        assert legends and [it for it in legends if it[0] < 0 or it[1] > 400] == [], page.name


def test_the_keyboard_alone_reaches_a_number_and_leaves_its_provenance(browser: Page) -> None:
    def press(key: str, code: int) -> None:
        for kind in ("rawKeyDown", "char", "keyUp") if key == "Enter" else ("rawKeyDown", "keyUp"):
            more = {"text": "\r"} if kind == "char" else {}
            browser.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    browser.resize(1400, 1000)
    browser.open(SHOWCASE / "leaderboard.html")
    press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0, (
        "seen while it has the focus"
    )
    for _ in range(60):
        press("Tab", 9)
        if browser.run("document.activeElement.className") == "number":
            break
    number = browser.run("document.activeElement.dataset.provenance")
    assert browser.run("document.activeElement.closest('#overall') !== null")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Enter", 13)
    assert browser.run("document.getElementById('provenance').open")
    assert "Canny edges" in browser.run("document.getElementById('holder').textContent")
    press("Escape", 27)
    assert not browser.run("document.getElementById('provenance').open")
    assert browser.run("document.activeElement.dataset.provenance") == number
