"""How many trainings share a GPU, by what the first of them measured."""

from typing import Any

import pytest

from pipeline.cluster.jobs import Job, Resources
from pipeline.cluster.sharing import ALONE, BESIDE, GpuShares, Measured, share
from pipeline.experiment.logs import measured_on_gpu

GPU = 80 * 2**30


def job(name: str, processes: int = 1) -> Job:
    return Job(name, None, (), processes=processes)


@pytest.mark.parametrize(
    ("gigabytes", "utilisation", "wanted"),
    [
        (6, 0.1, 1 / 8),  # by arithmetic
        (6, 0.3, BESIDE),
        (6, 0.5, ALONE),
        (30, 0.1, BESIDE),  # by memory
        (50, 0.1, ALONE),
        (0, 0.0, 1 / 10),
    ],
)
def test_as_many_share_a_gpu_as_its_memory_and_its_arithmetic_take(
    gigabytes: int, utilisation: float, wanted: float
) -> None:
    assert share(Measured(gigabytes * 2**30, GPU, utilisation)) == pytest.approx(wanted)


def test_nothing_is_shared_before_something_was_measured() -> None:
    assert share(None) == ALONE > 0.5
    assert ALONE + BESIDE <= 1, "what is measured has room beside what is not"


def test_each_gpu_has_one_job_until_something_is_measured_and_then_as_many_as_it_takes() -> None:
    known: list[Measured] = []
    shares = GpuShares(1, lambda: 8, lambda job: known[0] if known else None)
    jobs = [job(str(number)) for number in range(16)]
    assert not shares.full(jobs[:7]) and shares.full(jobs[:8])
    known.append(Measured(20 * 2**30, GPU, 0.2))
    assert not shares.full(jobs[:13]) and shares.of(jobs[13]) == Resources(1, pytest.approx(1 / 3))
    known[0] = Measured(70 * 2**30, GPU, 0.2)
    assert shares.full(jobs[:8])


def test_each_process_of_several_has_a_gpu_of_its_own() -> None:
    shares = GpuShares(2, lambda: 8, lambda job: Measured(2**30, GPU, 0.1))
    assert shares.of(job("wide", processes=4)) == Resources(2, 1)
    assert shares.full([job("a", 4), job("b", 4)]) and not shares.full([job("a", 4), job("b", 2)])


def test_what_is_measured_is_not_the_interval_in_which_everything_was_compiled() -> None:
    row: dict[str, Any] = {"images": 8, "peak_memory": 5, "gpu_memory": 50, "mfu": 0.01}
    assert measured_on_gpu([row, {"images": 8, "note": "told"}]) is None
    assert measured_on_gpu([row, {"images": 8, "note": "told"}, row | {"mfu": 0.4}, row]) == row | {
        "mfu": 0.4
    }
    assert measured_on_gpu([{"images": 8, "peak_memory": 5, "mfu": 0.3}] * 3) is None, "of a CPU"
