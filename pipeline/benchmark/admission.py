"""Whether submitted pictures are what a task asks for: else they are refused, each fault in one sentence."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import MillError
from pipeline.benchmark import entrants, resemblance
from pipeline.benchmark.evidence import photographs
from pipeline.benchmark.resemblance import Codes
from pipeline.benchmark.submissions import FACTS, FAILED, OWN, PLAIN, SHUFFLED, Submission, picture
from pipeline.benchmark.systems import ARM_OF, Item, System
from pipeline.benchmark.tasks import AskedSample, FrozenTask, Task, file_of, frozen_task
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.storage import codec, shards
from pipeline.storage.workspace import sha256_file

NAMED = 3  # files that a sentence names


@dataclass(frozen=True)
class Taken:
    """A picture that goes into the workspace, for a worker."""

    path: str = ""  # absolute
    sha256: str = ""
    failed: str = ""  # why there is none

    def read(self, item: Item) -> np.ndarray:  # uint8 [h, w, 3] RGB
        """MillError where it is not what was admitted."""
        path = Path(self.path)
        try:
            if sha256_file(path) == self.sha256:
                return picture(path, item.width, item.height)
        except (OSError, ValueError):
            pass
        raise MillError(f"{path} was changed while it was taken in: run the same command again.")


def admit(
    plan: Plan,
    catalog: Catalog,
    system: System,
    codes: dict[str, resemblance.Code],  # of photographs that are known, by image id; others are added
) -> Submission:
    """The pictures of a submitted system. MillError, a sentence for each fault, where they are refused."""
    it, submission = next(
        (it, submission)
        for it, submission in entrants.submitted(plan)
        if (it.name, it.condition) == (system.model, system.condition)
    )
    own = codes_of(plan, catalog, [item.image_id for item in system.items], codes)
    found = list(faults(frozen_task(plan, catalog, system.condition), submission, Codes(own)))
    if found:
        raise MillError("\n".join(f"{it.name}, {it.images}: {sentence}" for sentence in found))
    return submission


def codes_of(
    plan: Plan, catalog: Catalog, images: list[str], known: dict[str, resemblance.Code]
) -> dict[str, resemblance.Code]:
    """Of these held-out photographs, by image id; what is not known yet is made, and known from then on:
    conditions share their photographs.
    """
    by_shard: dict[str, dict[int, str]] = {}
    places = photographs(catalog, [image_id for image_id in images if image_id not in known])
    for image_id, (shard, row) in places.items():
        by_shard.setdefault(shard, {})[row] = image_id

    def coded(shard: str) -> list[tuple[str, resemblance.Code]]:
        found = shards.read_rows(plan.workspace.root / shard, by_shard[shard], ["image"])
        return [
            (by_shard[shard][row], resemblance.code(codec.decode(stored["image"])))
            for row, stored in found.items()
        ]

    with ThreadPoolExecutor() as pool:
        known |= itertools.chain.from_iterable(pool.map(coded, by_shard))
    return {image_id: known[image_id] for image_id in images}


def taken(submission: Submission, system: System, tasks: list[Task]) -> tuple[Taken, ...]:
    """Row for row of what a system is asked for."""
    folder = next(name for name, arm in ARM_OF.items() if arm == system.variant)
    hashes, failed = submission.hashes(folder), submission.failed.get(folder, {})
    files = [file_of(item.image_id, seed) for item, _, seed in tasks]
    place = submission.folders[folder].resolve()
    return tuple(
        Taken(failed=failed[file]) if file in failed else Taken(str(place / file), hashes[file])
        for file in files
    )


def faults(task: FrozenTask, submission: Submission, held_out: Codes) -> Iterator[str]:
    """A sentence for each kind of thing that is not as it was asked for; none = it may be compared."""
    if (given := submission.facts["task"]) != task.identity:
        yield (
            f"{FACTS}: the pictures were made for task {given[:40]!r}, and this is {task.identity}: make them"
            " from this benchmark's prompts.csv."
        )
        return
    asked = {sample.file: sample for sample in task.samples()}
    for name, folder in submission.folders.items():
        yield from _faults_of_folder(asked, submission, held_out, name, folder)


def _faults_of_folder(
    asked: Mapping[str, AskedSample],
    submission: Submission,
    held_out: Codes,
    name: str,
    folder: Path,
) -> Iterator[str]:
    where = f"{name}/: " if name else ""
    failed = submission.failed.get(name, {})
    if unknown := sorted(failed.keys() - asked.keys()):
        yield f"{where}{FAILED} names files that were not asked for: {_some(unknown)}."
    if len(failed) == len(asked):
        yield f"{where}{FAILED} names every file: nothing is left to be compared."
    own = {FACTS, FAILED, "README.md", *([SHUFFLED, PLAIN] if name == OWN else [])}
    there, extra = set(), []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in asked:
                there.add(entry.name)
            elif entry.name not in own and not entry.name.startswith("."):
                extra.append(entry.name)
    lower = {file.lower(): file for file in asked}
    cases = {file: lower[file.lower()] for file in extra if file.lower() in lower}
    if missing := sorted(asked.keys() - there - failed.keys() - set(cases.values())):
        count = f"{len(missing)} of {len(asked)} pictures"
        yield f"{where}{count} are missing: {_some(missing)}. Make each, or name it in {FAILED}."
    if cases:
        yield (
            f"{where}names in other cases than asked for: {_some(cases)}; the first is to be"
            f" {next(iter(cases.values()))}."
        )
    if unasked := sorted(set(extra) - set(cases)):
        yield f"{where}{len(unasked):,} files were not asked for: {_some(unasked)}. Take them out."
    if both := sorted(there & failed.keys()):
        yield f"{where}{_some(both)} is there and stands in {FAILED} too: keep one of the two."
    pictures = {file: folder / file for file in sorted(there - failed.keys())}
    yield from _faults_of_pictures(asked, pictures, None if name == PLAIN else held_out, name)


def _faults_of_pictures(
    asked: Mapping[str, AskedSample], pictures: Mapping[str, Path], held_out: Codes | None, name: str
) -> Iterator[str]:
    """Of each picture the first fault, told together where they are of one kind."""

    def look(file: str) -> tuple[str, str]:  # what is wrong, hash of the pixels
        sample = asked[file]
        try:
            pixels = picture(pictures[file], sample.item.width, sample.item.height)
        except ValueError as error:
            return str(error), ""
        if held_out is not None:
            given = sample.other if name == SHUFFLED else sample.item
            if (copied := held_out.copied(pixels, given.image_id)) is not None:
                return f"copies of held-out photographs, such as {copied[:16]}", ""
        return "", hashlib.sha256(pixels.tobytes()).hexdigest()

    with ThreadPoolExecutor() as pool:
        looked = dict(zip(pictures, pool.map(look, pictures), strict=True))
    where = f"{name}/: " if name else ""
    by_kind: dict[str, list[str]] = {}
    for file, (wrong, _) in looked.items():
        if wrong:
            kind = wrong.partition(", such as")[0]
            by_kind.setdefault(kind, []).append(file)
    for kind, files in by_kind.items():
        yield f"{where}{len(files)} of {len(pictures)} pictures are refused, {kind}: {_some(files)}."
    if name == PLAIN:  # nothing there depends on the hint
        return
    first: dict[str, str] = {}
    equal = [
        (file, first[mark])
        for file, (_, mark) in looked.items()
        if mark and first.setdefault(mark, file) != file
    ]
    if equal:
        yield (
            f"{where}{len(equal)} pictures are equal to others, such as {equal[0][0]} to {equal[0][1]}: each"
            " prompt and seed wants one of its own."
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(name[:80] for name in listed[:NAMED]) + more
