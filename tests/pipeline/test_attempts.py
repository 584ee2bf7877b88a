"""Which row is to blame for a worker that died or hung, how often a job is tried, and which comes first."""

from dataclasses import replace

import pytest

from pipeline.cluster.attempts import (
    DEATHS_RETRIED,
    NODES_RETRIED,
    Attempt,
    after_death,
    after_life,
    after_node,
    first,
)
from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Position, allowance
from pipeline.cluster.queue import longest_first

JOB = Job("part 1", {}, tuple(range(16)))


def play(deadly: dict[int, str], *, tells: bool, hangs: bool = False, what: str = "") -> tuple[Attempt, int]:
    """Tries a job until all of it was done; a row of `deadly` kills. Gives how many tries there were."""
    attempt, tries = first(JOB), 0
    while True:
        tries += 1
        assert tries < 60
        blamed = attempt.job.blamed
        at = next((row for row in attempt.rows if row in deadly and (row, what) not in blamed), None)
        if at is None and not attempt.dry_run:
            return attempt, tries
        if at is None:
            following = after_life(attempt, "died")
        else:
            batch = (at,) if attempt.singly else tuple(range(at // 4 * 4, at // 4 * 4 + 4))
            over = "took longer than 1 s" if hangs and tells else ""
            following = after_death(attempt, Position(batch, what, over) if tells else Position(), "died")
        assert isinstance(following, Attempt)
        attempt = following


@pytest.mark.parametrize("rows", [(0,), (15,), (5,), (4, 5, 11)])
@pytest.mark.parametrize("tells", [True, False])
def test_exactly_the_rows_that_kill_are_blamed(rows: tuple[int, ...], tells: bool) -> None:
    done, tries = play(dict.fromkeys(rows, ""), tells=tells)
    assert set(done.job.poison_rows) == set(rows) and not done.job.kills
    assert all("killed its worker" in reason for reason in done.job.poison_rows.values())
    if tells:  # once with its part, twice alone, for the rest of the batch; then the whole
        assert tries <= 2 + 3 * len(rows) + len({row // 4 for row in rows})


def test_a_row_that_hangs_needs_one_try_alone_and_is_blamed_where_it_hung() -> None:
    done, tries = play({6: ""}, tells=True, hangs=True, what="hed")
    assert done.job.kills == {(6, "hed"): "took longer than 1 s"} and not done.job.poison_rows
    assert tries == 4  # the part, the row, the rest of its batch, the part


def test_a_row_that_kills_although_it_is_left_out_ends_its_job_and_not_the_run() -> None:
    at = Position((3,), "hed")
    job = replace(JOB, kills={(3, "hed"): "died"})
    probe = Attempt(job, (3, 4), dry_run=True, singly=True, struck=(3, "hed"))
    whole = after_death(probe, at, "died")
    assert isinstance(whole, Attempt) and 3 in whole.job.poison_rows
    again = replace(probe, job=whole.job)
    assert "although it is left out" in str(after_death(again, at, "died"))


def test_a_job_that_dies_with_no_row_to_blame_is_tried_as_before_and_at_last_one_row_at_a_time() -> None:
    attempt: Attempt | str = first(JOB)
    for tries in range(1, DEATHS_RETRIED + 1):
        assert isinstance(attempt, Attempt)
        probe = after_death(attempt, Position((4, 5)), "OutOfMemoryError")
        assert isinstance(probe, Attempt) and probe.dry_run and probe.rows == (4, 5)
        attempt = after_life(probe, "OutOfMemoryError")
        assert isinstance(attempt, Attempt) and not attempt.dry_run and attempt.rows == JOB.rows
        assert attempt.singly == (tries == DEATHS_RETRIED)  # other batches have other last bits
    probe = after_death(attempt, Position((4, 5)), "OutOfMemoryError")
    assert isinstance(probe, Attempt)
    assert "fewer --workers" in str(after_life(probe, "OutOfMemoryError"))


def test_a_job_without_rows_and_a_node_that_is_gone_are_tried_so_many_times() -> None:
    attempt: Attempt | str = first(Job("train", {}, ()))
    for _ in range(DEATHS_RETRIED):
        assert isinstance(attempt, Attempt)
        attempt = after_death(attempt, Position(), "died")
    assert isinstance(attempt, Attempt) and "every time it was tried" in str(
        after_death(attempt, Position(), "died")
    )
    attempt = first(JOB)
    for _ in range(NODES_RETRIED):
        assert isinstance(attempt, Attempt)
        attempt = after_node(attempt, "NodeDiedError")
        assert isinstance(attempt, Attempt) and attempt.rows == JOB.rows and not attempt.job.deaths
    assert "lost its node" in str(after_node(attempt, "NodeDiedError"))


@pytest.mark.parametrize(
    ("rows", "seconds", "whole"), [(1, 300, 300), (16, 300, 300), (16, 2, 32), (16, 30, 60), (0, 5, 5)]
)
def test_a_batch_has_the_time_of_its_rows_but_not_hours(rows: int, seconds: float, whole: float) -> None:
    assert allowance(rows, seconds) == whole


def test_memory_that_ran_out_proves_nothing_until_a_row_was_alone_on_its_machine() -> None:
    def out(attempt: Attempt | str, row: int) -> Attempt | str:
        assert isinstance(attempt, Attempt)
        return after_death(attempt, Position((row,), "hed"), "MemoryError: 40 GiB", memory=True)

    beside_others = after_death(first(JOB), Position((4, 5)), "WorkerCrashedError")
    assert isinstance(beside_others, Attempt) and not beside_others.alone
    alone = out(beside_others, 4)
    assert isinstance(alone, Attempt) and alone.alone and alone.rows == (4, 5) and alone.struck is None
    blamed = out(out(alone, 4), 4)
    assert isinstance(blamed, Attempt)
    assert blamed.job.kills == {
        (4, "hed"): "ran out of memory, also with nothing beside it (MemoryError: 40 GiB)"
    }
    whole = after_life(replace(blamed, rows=(4, 5)), "")
    assert isinstance(whole, Attempt) and whole.rows == JOB.rows and not whole.dry_run and not whole.alone


@pytest.mark.parametrize(
    ("job", "blamed"), [(JOB, 3), (replace(JOB, rows=(0, 1)), 1), (replace(JOB, alike=True), 0)]
)
def test_a_machine_without_memory_is_no_fault_of_the_rows(job: Job, blamed: int) -> None:
    attempt: Attempt | str = first(job)
    rows = [row for row in job.rows for _ in range(2)]
    attempt = after_death(first(job), Position(job.rows), "MemoryError", memory=True)
    for row in rows:
        if isinstance(attempt, str):
            break
        kills = attempt.job.kills
        attempt = after_death(attempt, Position((row,), "hed"), "MemoryError", memory=True)
    assert isinstance(attempt, str) and attempt.endswith("it needs a machine with more memory")
    assert len(kills) == blamed


def test_the_longest_job_comes_first_together_with_those_that_wait_for_it() -> None:
    jobs = [Job("a", {}, ()), Job("b", {}, ()), Job("root", {}, ()), Job("c", {}, (), after=("root",))]
    work = {"a": 3.0, "b": 3.0, "root": 1.0, "c": 4.0}
    assert [job.name for job in longest_first(jobs, work)] == ["root", "c", "a", "b"]


def test_eight_machines_end_soonest_where_the_longest_jobs_come_first() -> None:
    """Nine short jobs and four of four times their length."""
    work = {f"short {n}": 1.0 for n in range(9)} | {f"long {n}": 4.0 for n in range(4)}

    def length(order: list[Job]) -> float:
        free = [0.0] * 8
        for job in order:
            free.sort()
            free[0] += work[job.name]
        return max(free)

    jobs = [Job(name, {}, ()) for name in work]
    assert (length(jobs), length(longest_first(jobs, work))) == (5.0, 4.0)
