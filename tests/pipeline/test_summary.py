"""The table at the end: its numbers by hand, what excludes chance, and a line for each of thirteen on one
screen.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from annotate.conditions import CONDITIONS
from evaluate import measures
from evaluate.replicates import NOT_BETTER, bootstrap_weights, of_means
from pipeline.benchmark.systems import BEFORE, CONTROL, EARLIER, NO_CONTROL, REAL, SHUFFLED, Item, System
from pipeline.catalog import Catalog
from pipeline.experiment.pairs import called
from pipeline.report import summary, verdicts
from pipeline.report.contents import Estimate, Gains, ReportData
from pipeline.report.site import render
from pipeline.storage.workspace import Workspace

PROMPTS = 24
ITEMS = tuple(Item(f"{k:064d}", "", 64, 64, "", k) for k in range(PROMPTS))
OWN = np.random.default_rng(0).normal(0, 0.1, PROMPTS)  # how hard each prompt is, for all systems alike
SHAKEN = np.random.default_rng(1).normal(0, 0.02, PROMPTS)
SHAKEN -= SHAKEN.mean()
HIGHER = {
    CONTROL: 0.5 + OWN,
    BEFORE: 0.5 + OWN + SHAKEN,
    SHUFFLED: 0.2 + OWN,
    NO_CONTROL: 0.1 + OWN,
    REAL: 0.8 + OWN,
}


def system(arm: str, condition: str = "canny", model: str = "run") -> System:
    return System(
        model if arm in (CONTROL, BEFORE, SHUFFLED) else arm, condition, arm, "", "", "b" * 16, ITEMS
    )


def score_row(it: System, values: Any) -> dict[str, Any]:  # of each prompt
    score = of_means(np.asarray(values, np.float64), np.arange(PROMPTS), bootstrap_weights(PROMPTS))
    return {
        "system": it.name,
        "model": it.model,
        "variant": it.variant,
        "condition": it.condition,
        "value": score.value,
        "metric": measures.primary(CONDITIONS[it.condition].kind).name,
        "replicates": score.replicates.tobytes(),
        "method": score.method,
        "prompts": PROMPTS,
        "higher_is_better": True,
    }


def scored(
    tmp_path: Path, values: dict[str, Any], conditions: tuple[str, ...] = ("canny",), model: str = "run"
) -> tuple[Any, Catalog, list[System]]:
    """A workspace whose table of scores holds these values of each prompt."""
    workspace = Workspace(tmp_path)
    catalog = Catalog(workspace)
    catalog.create()
    made = [system(arm, condition, model) for condition in conditions for arm in values]
    rows = [score_row(it, values[it.variant]) for it in made]
    catalog.record_scores(rows, [it.name for it in made])
    return SimpleNamespace(workspace=workspace), catalog, made


def watched(
    tmp_path: Path, rows: list[dict[str, Any]], model: str = "run", warm_start: dict[str, str] | None = None
) -> None:
    folder = tmp_path / "checkpoints" / model / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(
        json.dumps({"images": 8, "step": 1, "files": {}, "warm_start": warm_start or {}})
    )
    (folder.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(images: int, gap: float, condition: str = "canny") -> dict[str, Any]:
    return {"images": images, "held_out": {condition: {"gap": gap, "gap_error": 0.001, "n": 16}}}


def test_a_row_by_hand(tmp_path: Path) -> None:
    watched(
        tmp_path, [measured(0, 0.004), measured(40, 0.01), measured(80, 0.012)], warm_start={"canny": "w"}
    )
    (row,) = summary.summary(*scored(tmp_path, HIGHER))
    assert (row.condition, row.model, row.metric) == ("canny", "run", "edge_f1_bsds")
    assert row.trained and row.trained.value == pytest.approx(HIGHER[CONTROL].mean())
    reach = stats.t.ppf(0.975, PROMPTS - 1) * HIGHER[CONTROL].std(ddof=1) / np.sqrt(PROMPTS)
    assert row.trained.reach == pytest.approx(reach, rel=0.1), (
        "the bootstrap's standard error is that of a mean"
    )
    assert {arm: it.value for arm, it in row.baselines.items()} == pytest.approx(
        {arm: HIGHER[arm].mean() for arm in (BEFORE, SHUFFLED, NO_CONTROL)}
    )
    assert row.normalized and row.normalized.value == pytest.approx(100 * (0.5 - 0.2) / (0.8 - 0.2)), (
        "from the better floor to the ceiling"
    )
    start, end = row.gains.start, row.gains.end
    assert start and end and (start.value, end.value) == pytest.approx((4.0, 12.0))
    assert end.reach == pytest.approx(1000 * 0.001 * stats.t.ppf(0.975, 15))
    assert row.verdicts == {BEFORE: "", SHUFFLED: "<", NO_CONTROL: "<"} and row.beyond_both


def test_a_gain_is_compared_with_that_of_the_start_pair_by_pair(tmp_path: Path) -> None:
    # of timesteps far apart: their spread hides what each of them gained
    losses = np.random.default_rng(3).uniform(0.01, 1.0, 16)

    def rows(after: np.ndarray, z: float | None) -> list[dict[str, Any]]:
        out = [measured(0, 0.1), measured(80, 0.101)]
        for row, its in zip(out, (losses, after), strict=True):
            row["held_out"]["canny"] |= {"losses": its.tolist(), "control_z": z}
        return out

    gains = np.random.default_rng(4).normal(0.02, 0.02, 16)
    for number, (after, z, verdict, beyond) in enumerate(
        (
            (losses * (1 - gains), 3.0, "<", True),
            (losses * (1 + gains), 1.0, ">", False),
            (np.roll(losses, 1), None, "", False),
            (losses, -3.0, "", False),
        )
    ):
        watched(tmp_path / str(number), rows(after, z), warm_start={"canny": "w"})
        (row,) = summary.summary(*scored(tmp_path / str(number), HIGHER))
        assert (row.gains.verdict, row.gains.beyond_shuffled) == (verdict, beyond), number


def test_a_verdict_is_of_the_paired_difference_and_the_better_may_be_lower() -> None:
    """Prompts differ far more than systems do: only image by image does the difference exclude chance."""

    def of(values: np.ndarray) -> Any:
        return of_means(values, np.arange(PROMPTS), bootstrap_weights(PROMPTS))

    hard = np.random.default_rng(2).normal(0, 1, PROMPTS)

    def sign(trained: np.ndarray, other: np.ndarray, higher_is_better: bool = True) -> str:
        it = verdicts.against(of(trained), of(other), higher_is_better=higher_is_better)
        return verdicts.signs({(0, "it"): it})[0, "it"]

    assert sign(hard + 0.1 + SHAKEN, hard) == "<"
    assert sign(hard + 0.1 + SHAKEN, hard, False) == ">"
    assert sign(hard + 0.1, np.roll(hard, 1)) == "", "unpaired, nothing is seen"
    assert sign(hard, hard) == ""


def test_two_equal_systems_have_a_sign_in_few_tables_of_thirteen_conditions() -> None:
    """At 5 % for each condition every other table would have one."""
    rng, drawn = np.random.default_rng(5), bootstrap_weights(20, count=300)
    alone = wrong = 0
    for _ in range(100):
        pairs = [[of_means(rng.exponential(size=20), np.arange(20), drawn) for _ in "ab"] for _ in CONDITIONS]
        compared = {
            (row, "start"): verdicts.against(*pair, higher_is_better=True) for row, pair in enumerate(pairs)
        }
        wrong += any(verdicts.signs(compared).values())
        alone += any(any(verdicts.signs({key: it}).values()) for key, it in compared.items())
    assert wrong <= 10 and alone >= 30


def test_what_is_sure_keeps_its_sign_beside_twelve_that_are_not(tmp_path: Path) -> None:
    compared = {(row, "start"): verdicts.Compared(True, 0.03) for row in range(13)}
    assert set(verdicts.signs(compared).values()) == {""}
    compared[4, "start"] = verdicts.Compared(False, 1e-6)
    compared[5, "start"] = verdicts.Compared(True, None)
    told = {key: sign for key, sign in verdicts.signs(compared).items() if sign}
    assert told == {(4, "start"): ">"}


def test_a_learning_curve_goes_from_what_it_began_with_over_the_checkpoints_on_the_way_to_the_end(
    tmp_path: Path,
) -> None:
    _, catalog, made = scored(tmp_path, HIGHER)
    own = next(it for it in made if it.variant == CONTROL)
    kept = [replace(own, variant=EARLIER, seen=seen) for seen in (800, 400, 1200)]
    more = [score_row(kept[0], 0.45 + OWN), score_row(kept[1], 0.3 + OWN)]  # the third is not scored yet
    catalog.record_scores(more, [it.name for it in [*made, *kept]])
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO runs (run, images) VALUES ('run', 1600)")
    ((key, curve),) = summary.learning_curves(catalog, [*made, *kept]).items()
    assert key == ("run", "canny") and curve.higher_is_better
    assert curve.floor == pytest.approx(HIGHER[SHUFFLED].mean()), "the better of the two"
    assert [images for images, *_ in curve.points] == [0, 400, 800, 1600]
    assert [value for _, value, *_ in curve.points] == pytest.approx(
        [level + OWN.mean() for level in (0.5, 0.3, 0.45, 0.5)]
    )
    assert all(low < value < high for _, value, low, high in curve.points)
    (fresh,) = summary.learning_curves(
        catalog, [it for it in [*made, *kept] if it.variant != BEFORE]
    ).values()
    assert fresh.points[0][:2] == (
        0,
        pytest.approx(HIGHER[NO_CONTROL].mean()),
    ), "who starts from the base begins where the base is"


def test_one_baseline_that_is_not_beaten_takes_the_star(tmp_path: Path) -> None:
    (row,) = summary.summary(*scored(tmp_path, HIGHER | {SHUFFLED: HIGHER[CONTROL] + SHAKEN}))
    assert not row.beyond_both and row.verdicts[NO_CONTROL] == "<" and row.verdicts[SHUFFLED] == ""


def test_what_was_not_measured_is_left_open_and_a_fresh_controlnet_saved_nothing_before(
    tmp_path: Path,
) -> None:
    watched(tmp_path, [measured(40, 0.01)], "fresh")
    watched(tmp_path, [measured(40, 0.01)], "warm", warm_start={"canny": "w"})
    plan, catalog, made = scored(tmp_path, {CONTROL: HIGHER[CONTROL]}, model="fresh")
    (row,) = summary.summary(plan, catalog, made)
    assert row.gains.start == Estimate(value=0.0)
    assert (row.ceiling, row.normalized, row.baselines, row.verdicts, row.beyond_both) == (
        None,
        None,
        {},
        {},
        False,
    )
    (row,) = summary.summary(*scored(tmp_path, {CONTROL: HIGHER[CONTROL]}, model="warm"))
    assert row.gains.start is None and row.gains.end and row.gains.end.value == pytest.approx(10)
    (row,) = summary.summary(*scored(tmp_path, {CONTROL: HIGHER[CONTROL]}, model="theirs"))
    assert row.gains == Gains(), "an external checkpoint has no log"


def test_thirteen_lines_fit_a_screen_and_name_the_page(tmp_path: Path) -> None:
    name = "+".join(CONDITIONS) + "-0123abcd"
    watched(
        tmp_path,
        [
            {"images": at, "held_out": {it: measured(at, -0.2468, it)["held_out"][it] for it in CONDITIONS}}
            for at in (0, 80)
        ],
        name,
    )
    plan, catalog, made = scored(
        tmp_path, {arm: 100 * value for arm, value in HIGHER.items()}, tuple(CONDITIONS), name
    )
    text = list(summary.lines(plan, catalog, made, Path("runs/demo/report/index.html")))
    assert [line.removeprefix("*").split()[0] for line in text[1:14]] == list(CONDITIONS)
    assert max(map(len, text)) <= 150 and text[-1].startswith("runs/demo/report/index.html")
    assert all(word in text[1] for word in ("* canny", "edge_f1_bsds ↑", "-246.8±2.1", "<", "50±")), text[1]


def test_what_must_be_known_of_a_number_stands_below_the_table(tmp_path: Path) -> None:
    plan, catalog, made = scored(tmp_path, HIGHER, ("pose_openpose", "pose_openpifpaf"))
    assert not any("high for few" in line for line in summary.lines(plan, catalog, made, Path("x")))
    mark = "high for few: 20 people < 500"
    rows = [score_row(it, HIGHER[it.variant]) | {"caveats": json.dumps([mark])} for it in made]
    rows.append(rows[0] | {"metric": "people_ap50", "caveats": json.dumps(["not in the table"])})
    catalog.record_scores(rows, [it.name for it in made])
    told = list(summary.lines(plan, catalog, made, Path("x")))
    assert f"people_ap of pose_openpifpaf, pose_openpose: {mark}" in told
    assert not any("not in the table" in line for line in told)


def test_a_run_of_many_conditions_has_a_short_name_on_a_page() -> None:
    assert called("+".join(CONDITIONS) + "-0123abcd") == "canny+12-0123abcd"
    assert all(called(name) == name for name in ("canny+hed-0123abcd", "theirs", "sd-controlnet-canny"))


def test_without_a_normalized_score_the_table_and_the_page_say_why(tmp_path: Path) -> None:
    """The real image scores below the shuffled condition: nothing is 572 % of such a way."""
    turned = HIGHER | {REAL: HIGHER[SHUFFLED] - 0.01 + SHAKEN}
    plan, catalog, made = scored(tmp_path, turned)
    (row,) = summary.summary(plan, catalog, made)
    assert row.normalized is None and row.normalized_reason == NOT_BETTER and row.trained and row.ceiling
    text = list(summary.lines(plan, catalog, made, Path("x")))
    assert text[1].split()[-1] == "–" and f"no normalized score of canny: {NOT_BETTER}" in text
    page = render(ReportData(name="job", summary=(row,)), tmp_path / "report").read_text(encoding="utf-8")
    assert f'title="{NOT_BETTER}">–<' in page and f"no normalized score of canny: {NOT_BETTER}" in page


def test_with_nothing_scored_there_is_no_table(tmp_path: Path) -> None:
    plan, catalog, _ = scored(tmp_path, {})
    assert list(summary.lines(plan, catalog, [system(CONTROL)], Path("x"))) == []
