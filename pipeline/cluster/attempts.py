"""What follows when a job loses its worker: which rows are tried again, and which of them is to blame."""

from dataclasses import dataclass, replace

from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Position

DEATH = "killed its worker every time it was tried ({})"
RAN_OUT = "ran out of memory"  # how the reason of such a row begins: the next run tries it again
ALONE = RAN_OUT + ", also with nothing beside it ({})"
SHORT = "ran out of memory row by row, also with nothing beside it ({}): it needs a machine with more memory"
ROWS_RAN_OUT = 3  # of one job: more of them are no fault of theirs
DEATHS_RETRIED = 3  # how often a job is tried again whose worker died and no row was to blame
NODES_RETRIED = 5  # the same where its node was gone
LOST = "lost its worker {} times ({}) although no single row does it: give it more memory or fewer --workers"


@dataclass(frozen=True)
class Attempt:
    """One try of a job: the whole of it, or some rows with nothing written, to find the one that kills."""

    job: Job
    rows: tuple[int, ...]
    dry_run: bool = False
    singly: bool = False
    alone: bool = False  # with nothing beside it on its machine, for memory ran out
    suspects: tuple[tuple[int, ...], ...] = ()  # what is tried after these rows
    struck: tuple[int, str] | None = None  # the row that died alone last, and in what
    found: int = 0  # rows to blame since the job died

    @property
    def name(self) -> str:
        return f"{self.job.name} (looking for the row that kills)" if self.dry_run else self.job.name


def first(job: Job) -> Attempt:
    return Attempt(job, job.rows)


def after_death(attempt: Attempt, position: Position, death: str, *, memory: bool = False) -> Attempt | str:
    """The next try, or why there is none. `death` is what the cluster said; `memory`: it ran out."""
    if memory and not attempt.alone:  # what was beside it may have taken it: this try proves nothing
        attempt = replace(attempt, alone=True, struck=None)
        if attempt.dry_run:
            return replace(attempt, rows=_from_first(attempt, position))
    if attempt.dry_run:
        return _after_probe(attempt, position, death, ALONE if memory else DEATH)
    if not attempt.job.rows:
        return again(attempt, death)
    known = position.rows or tuple(row for row in attempt.rows if row not in attempt.job.poison_rows)
    return replace(attempt, rows=known, dry_run=True, singly=True, found=0)


def again(attempt: Attempt, death: str) -> Attempt | str:
    """The whole job, of which no row is to blame; a row at a time where memory may be short, or at last, for
    rows that are computed together have other last bits.
    """
    job = replace(attempt.job, deaths=attempt.job.deaths + 1)
    if job.deaths > DEATHS_RETRIED:
        return LOST.format(job.deaths, death) if job.rows else DEATH.format(death)
    singly = bool(job.rows) and (attempt.alone or job.deaths == DEATHS_RETRIED)
    return Attempt(job, job.rows, singly=singly, alone=attempt.alone)


def after_node(attempt: Attempt, death: str) -> Attempt | str:
    """The same once more: where it was is gone."""
    job = replace(attempt.job, nodes_lost=attempt.job.nodes_lost + 1)
    if job.nodes_lost > NODES_RETRIED:
        return f"lost its node {job.nodes_lost} times ({death}): look at the nodes' memory and disks"
    return replace(attempt, job=job)


def after_life(attempt: Attempt, death: str) -> Attempt | str:
    """When a probe came to its end: the next one, or the whole job."""
    if attempt.suspects:
        return replace(attempt, rows=attempt.suspects[0], suspects=attempt.suspects[1:])
    if attempt.found:
        return Attempt(attempt.job, attempt.job.rows)
    return again(attempt, death)


def _from_first(attempt: Attempt, position: Position) -> tuple[int, ...]:
    """What a probe has still to try: those before the row that it was at came through."""
    first = position.rows[0] if position.rows else attempt.rows[0]
    return attempt.rows[attempt.rows.index(first) :] if first in attempt.rows else attempt.rows


def _after_probe(attempt: Attempt, position: Position, death: str, blame: str) -> Attempt | str:
    rows = position.rows or attempt.rows
    if len(rows) > 1:  # the job's function does not tell where it is
        half = len(rows) // 2
        return replace(attempt, rows=rows[:half], suspects=(rows[half:], *attempt.suspects))
    row, place = rows[0], (rows[0], position.what)
    rest = attempt.rows[attempt.rows.index(row) + 1 :] if row in attempt.rows else ()
    if not position.over and attempt.struck != place:
        return replace(attempt, rows=(row, *rest), struck=place)
    reason = position.over or blame.format(death)
    if blame is ALONE and _is_short(attempt.job, row):
        return SHORT.format(death)
    if place in attempt.job.blamed:  # although it was left out there: the whole row is
        place = (row, "")
        if place in attempt.job.blamed:
            return f"row {row} kills its worker although it is left out ({death})"
    if place[1]:  # the row goes on in what comes after
        job = replace(attempt.job, kills=attempt.job.kills | {place: reason})
        return replace(attempt, job=job, rows=(row, *rest), struck=None, found=attempt.found + 1)
    job = replace(attempt.job, poison_rows=attempt.job.poison_rows | {row: reason})
    blamed = replace(attempt, job=job, rows=rest, struck=None, found=attempt.found + 1)
    return blamed if rest else after_life(blamed, death)


def _is_short(job: Job, row: int) -> bool:
    """Whether memory is short for the whole of a job, and not for a row that needs more than others."""
    known = {row for (row, _), reason in job.blamed.items() if reason.startswith(RAN_OUT)} | {row}
    return job.alike or len(known) > ROWS_RAN_OUT or len(known) == len(job.rows) > 1
