"""Points at which faults can be made to happen: named once each, counted over processes, nothing without a
schedule; and a few rounds of random faults on each set-up.
"""

import errno
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import torture, torture_results
from benchmarks.torture_setups import NAMES, SetUp
from pipeline.storage import faults
from pipeline.storage.faults import ERRORS, POINTS, WRITES, Fault, reached

ROOT = Path(__file__).parents[2]


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path / "faults"))
    return tmp_path / "faults"


def test_every_point_is_in_the_code_and_the_code_has_no_other() -> None:
    code = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    assert set(re.findall(r'faults\.reached\("([^"]+)"\)', code)) == set(POINTS) >= set(WRITES)


def test_nothing_happens_without_a_schedule(schedule: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached("file written")
    faults.write_schedule(schedule, [Fault("file written", 1, "full")])
    monkeypatch.delenv(faults.VARIABLE)
    reached("file written")
    assert not faults.visits(schedule) and not faults.happened(schedule)


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_is_raised_at_its_visit_alone(schedule: Path, what: str) -> None:
    fault = Fault("file written", 2, what)
    faults.write_schedule(schedule, [fault])
    reached("file written")
    reached("commit begins")
    with pytest.raises(OSError) as raised:
        reached("file written")
    assert raised.value.errno == {"full": errno.ENOSPC, "read-only": errno.EROFS}[what]
    reached("file written")
    assert faults.visits(schedule) == {"file written": 3, "commit begins": 1}
    assert faults.happened(schedule) == [fault]


def test_visits_are_counted_over_processes_and_a_signal_comes_to_who_is_there(schedule: Path) -> None:
    faults.write_schedule(schedule, [Fault("job ends", 7, "KILL")])
    code = "from pipeline.storage.faults import reached\nfor _ in range(4): reached('job ends')"
    ended = [subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode for _ in range(3)]
    assert ended == [0, -signal.SIGKILL, 0]
    assert faults.visits(schedule) == Counter({"job ends": 11})


def test_what_is_stopped_goes_on(schedule: Path) -> None:
    faults.write_schedule(schedule, [Fault("job ends", 1, "STOP", 0.1)])
    code = (
        "import time\nfrom pipeline.storage.faults import reached\nreached('job ends')\n"
        "start = time.monotonic()\nwhile time.monotonic() < start + 1: time.sleep(0.01)"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert time.monotonic() - start > faults.PAUSE


def test_a_round_is_drawn_from_its_seed_alone(tmp_path: Path) -> None:
    here = SetUp(tmp_path / "s")
    undisturbed = torture.Reference({}, Counter({"file written": 40, "job ends": 12}), 10.0)
    rounds = [torture.drawn(random.Random(seed), here, "maps", undisturbed) for seed in (0, 0, 1)]
    assert rounds[0] == rounds[1] != rounds[2]
    assert all(1 <= fault.visit <= undisturbed.visits[fault.point] for fault in rounds[0].faults)


def test_a_round_tells_what_is_lost_doubled_different_and_made_again() -> None:
    outcome = torture.Outcome(0, "maps")
    torture.compare(outcome, {"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    torture.compare_kept(outcome, {"x": 1, "y": 2}, {"x": 1, "y": 3})
    torture.judge(outcome, None, "")
    torture.judge(outcome, 1, "Traceback (most recent call last)")
    assert (outcome.lost, outcome.doubled, outcome.different) == (["a"], ["c"], ["b"])
    assert outcome.made_again == ["y"] and len(outcome.wrong) == 3


def test_what_is_written_down_of_a_round_names_no_place_of_this_machine() -> None:
    told = 'wrong: traceback: File "/home/me/x.py", line 3\nOSError: /tmp/a b: no room (s3://bucket/x)'
    assert torture_results.without_paths(told) == "OSError: PATH b: no room (s3://bucket/x)"


def test_rounds_that_go_on_are_added_to_those_before() -> None:
    outcomes = [torture.Outcome(number, "maps", tries=2, lost=["a"] * number) for number in range(4)]
    outcomes[1].happened["KILL of driver"] = 1
    outcomes[3].happened.update({"KILL of driver": 1, "another machine": 1})
    halves = [torture_results.summary(7, outcomes[:2]), torture_results.summary(7, outcomes[2:])]
    assert torture_results.added({}, halves[0]) == halves[0]
    assert torture_results.added(*halves) == torture_results.summary(7, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_faults_lose_double_and_change_nothing(name: str) -> None:
    if name == "bucket":
        pytest.importorskip("moto")
    outcomes = list(torture.play(name, 20, range(3)))
    told = {outcome.round: outcome.faults for outcome in outcomes if outcome.faults}
    assert not told, f"seed 20, {name}: {told}"
    assert sum(outcome.happened.total() for outcome in outcomes)


def test_rounds_of_one_seed_stand_beside_those_of_others(tmp_path: Path) -> None:
    every: dict[str, Any] = {}
    for seed, count in ((8, 1), (7, 2), (8, 3)):
        torture_results.put(every, "bucket", {"seed": seed, "rounds": count})
    assert every["rounds"]["bucket"] == [{"seed": 7, "rounds": 2}, {"seed": 8, "rounds": 3}]
    (tmp_path / "t.json").write_text(json.dumps(every))
    assert torture_results.known(tmp_path / "t.json", "bucket", 8) == {"seed": 8, "rounds": 3}
    assert torture_results.known(tmp_path / "t.json", "bucket", 9) == {}
