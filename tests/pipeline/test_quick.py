"""The small demo, as it is shipped: scenes, maps, latents, four ControlNets that go on from shipped ones,
samples, scores, a table.
"""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.catalog import Catalog
from pipeline.storage.workspace import Workspace
from tests.conftest import COMMAND, OPEN

pytestmark = pytest.mark.slow

QUICK = Path(__file__).parents[2] / "manifests" / "quick.yaml"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, address: str) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("quick")
    done = subprocess.run(
        [*COMMAND, "run", str(QUICK), "--address", address],
        cwd=root,
        env=OPEN,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root / manifest.load(QUICK).workspace, done.stdout


def test_it_ends_with_a_row_for_each_condition_and_the_place_of_the_report(ran: tuple[Path, str]) -> None:
    workspace, told = ran
    table = told[told.index("  condition") :]
    for name in ("canny", "pose_openpose", "seg_ade20k", "depth_large"):
        row = re.search(rf"^[* ] {name} .*$", table, re.M)
        assert row and len(re.findall(r"\d±\d", row.group())) >= 5, (
            f"a conditioning gain and scores with their reach: {table}"
        )
    assert (
        f"{workspace.name}/report/index.html shows all of it" in table
        and (workspace / "report/leaderboard/leaderboard.html").is_file()
    )


def test_what_is_shipped_follows_its_hints(ran: tuple[Path, str]) -> None:
    """Each hint saves more of the loss than another image's: before the short training and after it."""
    from pipeline.experiment.logs import read_log

    catalog = Catalog(Workspace(ran[0]))
    seen = {}
    for (run,) in catalog.query("SELECT run FROM runs"):
        held_out = [row["held_out"] for row in read_log(Workspace(ran[0]).run(run)) if "held_out" in row]
        seen |= {
            condition: [measured[condition] for measured in (held_out[0], held_out[-1])]
            for condition in held_out[0]
        }
    assert len(seen) == 4 and all(
        told["control"] > 0 and told["gap"] > 0 for both in seen.values() for told in both
    ), seen


def test_depth_and_labels_of_samples_are_nearer_to_their_own_hint_than_to_anothers(
    ran: tuple[Path, str],
) -> None:
    scores = Catalog(Workspace(ran[0])).query("SELECT condition, metric, variant, value FROM scores")
    found = {(condition, metric, arm): value for condition, metric, arm, value in scores}
    assert found["seg_ade20k", "miou", "control"] > found["seg_ade20k", "miou", "shuffled_condition"]
    assert (
        found["depth_large", "depth_rmse", "control"]
        < found["depth_large", "depth_rmse", "shuffled_condition"]
    )
