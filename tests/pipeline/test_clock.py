"""No clock is believed: a driver whose clock was set back goes on in files that seem to come from the
future.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.storage import events
from pipeline.storage.workspace import Workspace
from tests.conftest import OPEN, Command
from tests.kept import differences, kept

pytestmark = pytest.mark.slow

BACK = 3 * 86400  # seconds
# of the driver alone: its workers have another clock, as on another machine
SET_BACK = f"""
import datetime, sys, time
import pipeline.run
from pipeline.cli import main
seconds, nanoseconds, moment = time.time, time.time_ns, datetime.datetime
time.time = lambda: seconds() - {BACK}
time.time_ns = lambda: nanoseconds() - {BACK} * 10**9
class Earlier(moment):
    @classmethod
    def now(cls, tz=None):
        return moment.now(tz) - datetime.timedelta(seconds={BACK})
for name, module in list(sys.modules.items()):
    if name.startswith("pipeline") and getattr(module, "datetime", None) is moment:
        module.datetime = Earlier
main()
"""


def test_a_clock_that_was_set_back_changes_nothing(
    address: str,
    controlmill: Command,
    folder: Callable[[int], Path],
    manifest: Callable[..., Path],
    tmp_path: Path,
) -> None:
    photos, stages = folder(10), ("--stages", "ingest,annotate,report")
    job = manifest()
    assert controlmill("run", job, *stages, "--limit", "6").returncode == 0
    (photos / "003.txt").write_text("another caption")
    os.utime(photos / "003.txt", (time.time() - 9 * BACK,) * 2)  # older than what was read
    for path in (tmp_path / "ws").rglob("*"):
        os.utime(path, (time.time() + BACK,) * 2)
    words = [sys.executable, "-c", SET_BACK, "run", str(job), *stages, "--address", address]
    for _ in range(2):
        ran = subprocess.run(words, cwd=tmp_path, env=OPEN, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    assert "annotate  nothing to do" in ran.stdout
    told = [event["time"] for event in events.read(tmp_path / "ws")]
    assert told != sorted(told), "the clock went back"
    assert controlmill("verify", "ws").returncode == 0
    found = kept(Workspace(tmp_path / "ws").root)
    assert controlmill("run", manifest(workspace="other"), *stages).returncode == 0
    assert differences(found, kept(tmp_path / "other")) == []
