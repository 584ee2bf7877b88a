"""The showcase that lies in docs/ is whole, was made by the manifest beside it, and says on its page what its
leaderboard says.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from annotate import annotator
from annotate.conditions import CONDITIONS
from benchmarks import convergence
from evaluate import fidelity
from pipeline import manifest
from pipeline.report import stored
from pipeline.report.leaderboard import render
from pipeline.report.leaderboard_scores import data
from tests.pages import HtmlPage
from tests.test_docs import ROOT, blocks, text

PAGE = "docs/showcase/README.md"
FOLDER = ROOT / "docs" / "showcase"
LARGEST = 16 * 1024**2


def board() -> dict[str, Any]:
    return json.loads((FOLDER / "leaderboard" / "leaderboard.json").read_text(encoding="utf-8"))


def test_no_picture_is_missing_or_idle_and_all_are_small() -> None:
    pages = list(FOLDER.rglob("*.html"))
    shown = {(page.parent / link).resolve() for page in pages for link in HtmlPage(page).local}
    assert len(pages) > len(CONDITIONS) and all(path.is_file() for path in shown)
    pictures = {path for path in FOLDER.rglob("*") if path.suffix in (".png", ".jpg")}
    assert len(pictures) > 100 and pictures <= shown
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < LARGEST


def test_it_was_made_by_the_manifest_that_the_page_names(tmp_path: Path) -> None:
    assert "](docs/showcase/README.md)" in text(
        "README.md"
    ) and "controlmill run manifests/showcase.yaml" in text(PAGE)
    (shown,) = re.findall(
        r"<pre>(name: .*?)</pre>", (FOLDER / "index.html").read_text(encoding="utf-8"), re.S
    )
    (tmp_path / "manifest.yaml").write_text(html.unescape(shown))  # as an earlier version saved it
    saved = manifest.load_saved(tmp_path / "manifest.yaml")
    today = manifest.load(ROOT / "manifests" / "showcase.yaml")
    for name, condition in today.conditions.items():
        of_then = saved.conditions[name]
        assert of_then.select == condition.select
        if of_then.detector == annotator.PROVIDED:  # by the renderer
            assert condition.params == {}
            continue
        # the same maps, by the detector that `auto` came to
        then, now = (
            annotator.identity(annotator.resolve(name, of_then.detector, params, here=False))
            for params in (annotator.as_before(of_then.detector, of_then.params), condition.params)
        )
        assert (now["version"], now["params"]) == (then["version"], then["params"]), name
    made, asked = saved.model_dump(), today.model_dump(exclude={"conditions"})
    assert asked == {key: value for key, value in made.items() if key != "conditions"}


def test_its_table_is_that_of_its_leaderboard() -> None:
    """A line for each of the thirteen; a star is a condition whose leaderboard puts it above both floors
    beyond chance.
    """
    lines = [line for block in blocks(PAGE, "text") for line in block.splitlines()]
    rows = {
        line[2:].split()[0]: line for line in lines if line[2:].split() and line[2:].split()[0] in CONDITIONS
    }
    assert list(rows) == list(CONDITIONS)
    scores = {(it["condition"], it["metric"]): it for it in board()["scores"] if it["arm"] == "control"}
    for condition, line in rows.items():
        score = scores[condition, line[2:].split()[1]]
        values = [float(it) for it in re.findall(r"(\d+\.\d+)±", line)]
        assert any(
            abs(score["value"] - value) < 10 ** -len(str(value).partition(".")[2]) for value in values
        ), condition
        assert f"{100 * score['share']:.0f}±" in line, condition


def test_its_pages_are_what_its_leaderboard_gives_today(tmp_path: Path) -> None:
    """To the byte; no share points the wrong way, and what was taken out is not shown."""
    place = FOLDER / "leaderboard"
    render(stored.read(place), tmp_path)
    made, shown = (
        {str(it.relative_to(root)): it.read_bytes() for it in root.rglob("*") if it.is_file()}
        for root in (tmp_path, place)
    )
    assert made.keys() == shown.keys() and [name for name in made if made[name] != shown[name]] == []
    told = board()
    assert not any(fidelity.retired(it["metric"]) for it in told["scores"])
    better = {it["name"]: 1 if it["higher_is_better"] else -1 for it in told["metrics"]}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for it in told["scores"]:
        groups.setdefault((it["condition"], it["metric"]), []).append(it)
    for (_, metric), rows in groups.items():
        real = [it["value"] for it in rows if it["arm"] == "real_image"]
        for it in rows:
            assert (it["share"] is None) == bool(it["share_reason"])
            assert it["share"] is None or better[metric] * real[0] > max(
                better[metric] * other["value"]
                for other in rows
                if other["arm"] == "no_control"
                or (other["arm"], other["model"]) == ("shuffled_condition", it["model"])
            )


def test_what_it_says_of_its_normalized_scores_is_in_its_leaderboard() -> None:
    told = board()
    first = {it["name"] for it in told["metrics"] if it["primary"]}
    shares = {(it["condition"], it["arm"]): it["share"] for it in told["scores"] if it["metric"] in first}
    page = " ".join(text(PAGE).split())
    assert (
        sum(share >= 0.5 for (_, arm), share in shares.items() if arm == "control") == 9
        and "**nine have come half of the way**" in page
    )
    for name, through in re.findall(r"(\d+) % on `(\w+)`", page.partition("Measured against that")[0]):
        assert round(100 * shares[through, "vae_round_trip"]) == int(name), through
    against = page.partition("Measured against that")[2].partition("The poses")[0]
    found = re.findall(r"`(\w+)` (?:is )?at (\d+) %", against)
    assert len(found) == 4
    for name, percent in found:
        assert round(100 * shares[name, "control"] / shares[name, "vae_round_trip"]) == int(percent), name


def test_its_benchmarks_name_the_images_of_its_manifest() -> None:
    asked = manifest.load(ROOT / "manifests" / "showcase.yaml")
    assert {(it["resolution"], it["data"]) for it in board()["benchmarks"]} == {
        (asked.image.resolution, data(asked, 80))
    }


def test_what_it_says_of_convergence_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "convergence.json").read_text(encoding="utf-8"))
    page = text(PAGE)
    for name in CONDITIONS:
        row = found[name]
        assert (
            f"| `{name}` | {row['alarm']:,} | {row['half']:,} | {100 * row['largest_rise']:.0f} % |"
            f" {row['shown']:,} |" in page
        )
    fresh = [row for row in found.values() if row["alarm"]]
    assert f"more than {100 * max(row['largest_rise'] for row in fresh):.0f} %" in page
    for name in ("alarm", "half"):
        values = [row[name] for row in fresh]
        assert re.search(f"{min(values):,} (and|to) {max(values):,} images", page), name


def test_a_hint_that_saves_nothing_at_the_end_has_no_half_and_no_share_of_it() -> None:
    def saving(*values: float) -> dict[str, Any]:
        log = [
            {"images": 800 * k, "held_out": {"canny": {"control": value}}} for k, value in enumerate(values)
        ]
        return convergence._saving(log, "canny")

    assert (
        saving(0.0, 0.001, 0.002, 0.002, 0.002)["half"],
        saving(0.0, 0.001, 0.002, 0.002, 0.002)["largest_rise"],
    ) == (800, 0.5)
    for values in ((0.0, 0.003, -0.001, -0.001, -0.001), (0.0, 0.0, 0.0, 0.0)):
        assert (saving(*values)["half"], saving(*values)["largest_rise"]) == (None, None)


def test_what_it_says_of_guidance_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "guidance.json").read_text(encoding="utf-8"))
    page = " ".join(text(PAGE).split())
    assert list(found) == list(CONDITIONS)
    for row in found.values():
        sign = 1 if fidelity.METRICS[row["prompt"]["measure"]].higher_is_better else -1
        assert sign * row["prompt and hint"]["fidelity"] > max(
            sign * row[name]["fidelity"] for name in ("prompt", "prompt, scale 2")
        )
    for name in ("canny", "cartoon"):
        before, scaled, after = (
            found[name][key]["fidelity"] for key in ("prompt", "prompt, scale 2", "prompt and hint")
        )
        assert (
            f"`{name}` {'goes ' * (name == 'canny')}from {before:.2f} to {after:.2f}" in page
            and f"{scaled:.2f}" in page
        )
    rises = {name: row["prompt and hint"]["fd"] - row["prompt"]["fd"] for name, row in found.items()}
    worst, best = max(rises, key=lambda name: rises[name]), min(rises, key=lambda name: rises[name])
    assert (
        f"rises for six, by {rises[worst]:.1f} at most" in page
        and sum(rise > 0 for rise in rises.values()) == 6
    )
    for name in (worst, best):
        assert (
            f"`{name}` from {found[name]['prompt']['fd']:.1f} to {found[name]['prompt and hint']['fd']:.1f}"
            in page
        )


def test_every_score_names_its_benchmark_and_the_card_of_the_shipped_lacks_none() -> None:
    told = board()
    frozen = {it["condition"]: it["fingerprint"] for it in told["benchmarks"]}
    assert all(it["passport"]["benchmark"] == frozen[it["condition"]] for it in told["scores"])
    assert "–" not in text("train/mini/roots/README.md")
