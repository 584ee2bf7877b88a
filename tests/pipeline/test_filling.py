"""The report while a job is under way: often enough to be looked at, seldom enough to cost nothing."""

import contextlib
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import MillError
from pipeline import run as flow
from pipeline.stages.stage import StageContext


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(flow, "time", made)
    return made


def filling(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, takes: float, evaluate: bool = True
) -> tuple[flow.Filling, list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []

    def write(context: Any) -> None:
        told.append(("report", clock.now))
        clock.now += takes

    monkeypatch.setattr(flow, "report", write)
    monkeypatch.setattr(flow, "estimate", lambda *_: told.append(("scores", clock.now)))
    monkeypatch.setattr("pipeline.stages.stage.systems", lambda plan, catalog: [])
    plan: Any = SimpleNamespace(manifest=SimpleNamespace(evaluate=evaluate or None))
    catalog: Any = SimpleNamespace(at_most=lambda seconds: contextlib.nullcontext())
    cluster: Any = None
    context = StageContext(plan, catalog, cluster)
    return flow.Filling(context, lambda text: told.append((text, clock.now))), told


def test_it_is_renewed_every_half_minute(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    page, told = filling(clock, monkeypatch, takes=0.5, evaluate=False)
    for _ in range(120):
        page.renew()
        clock.now += 1.0
    assert [name for name, _ in told] == ["report"] * 3
    assert all(30 <= later - earlier <= 32 for (_, earlier), (_, later) in itertools.pairwise(told))


def test_a_report_that_takes_long_is_renewed_less_often(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, told = filling(clock, monkeypatch, takes=10.0, evaluate=False)
    while clock.now < 2000:
        page.renew()
        clock.now += 1.0
    assert len(told) * 10.0 / clock.now < 0.06


def test_a_stage_that_ends_renews_it_sooner_and_scores_are_brought_up_to_date_first(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, told = filling(clock, monkeypatch, takes=0.1)
    page.renew(flow.WORTH_A_REPORT)
    assert told == []
    clock.now = 16.0
    page.renew()
    assert told == []
    page.renew(flow.WORTH_A_REPORT)
    assert told == [("scores", 16.0), ("report", 16.0)]


def test_before_there_is_something_to_compare_the_page_shows_what_there_is(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, told = filling(clock, monkeypatch, takes=0.1)
    monkeypatch.setattr(flow, "write_page", lambda context: told.append(("page alone", clock.now)))

    def lacks(plan: Any, catalog: Any) -> None:
        raise MillError("no pairs yet")

    monkeypatch.setattr("pipeline.stages.stage.systems", lacks)
    clock.now = 31.0
    page.renew()
    assert told == [("page alone", 31.0)] and page.written == 31.0


def test_a_report_that_fails_is_told_once_and_stops_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, told = filling(clock, monkeypatch, takes=0.1)
    monkeypatch.setattr(flow, "report", lambda context: 1 / 0)
    for now in (31.0, 62.0, 93.0):
        clock.now = now
        page.renew()
    assert [text for text, _ in told if text != "scores"] == [
        "report    not renewed: ZeroDivisionError: division by zero"
    ]
    assert page.written == 93.0, "and it is not tried again at once"


def test_the_systems_are_derived_once_when_everything_is_trained_and_anew_before(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, _ = filling(clock, monkeypatch, takes=0.1)
    derived: list[float] = []
    monkeypatch.setattr("pipeline.stages.stage.systems", lambda *_: derived.append(clock.now) or [])
    for settled, now in ((False, 31.0), (False, 62.0), (True, 93.0), (True, 124.0)):
        page.settled, clock.now = settled, now
        page.renew()
    assert derived == [31.0, 62.0, 93.0]
    assert page.context.systems == [] and len(derived) == 3, "the stages take what the report derived"
