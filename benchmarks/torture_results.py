"""What rounds of random faults came to, in a JSON file that several programs write."""

import fcntl
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.annotate import machine

if TYPE_CHECKING:
    from benchmarks.torture import Outcome


@contextmanager
def results(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON of several programs, which may end at the same time; what changes in the block is written."""
    path.touch()
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        every = {"machine": machine("cpu")} | json.loads(file.read() or "{}")
        yield every
        text = json.dumps(every, indent=1, ensure_ascii=False) + "\n"
        file.seek(0)
        file.truncate()
        file.write(text)


def summary(seed: int, outcomes: "list[Outcome]") -> dict[str, Any]:
    kinds = ("lost", "doubled", "different", "made_again", "left_behind", "wrong")
    happened: Counter[str] = Counter()
    for outcome in outcomes:
        happened.update(outcome.happened)
    return {
        "seed": seed,
        "rounds": len(outcomes),
        "rounds_of_all_stages": sum(outcome.stages == "all" for outcome in outcomes),
        "tries": sum(outcome.tries for outcome in outcomes),
        "faults": sum(happened.values()),
        "happened": dict(sorted(happened.items())),
        **{kind: sum(len(getattr(outcome, kind)) for outcome in outcomes) for kind in kinds},
        "failed": [
            {"round": each.round, "faults": [without_paths(one) for one in each.faults[:5]]}
            for each in outcomes
            if each.faults
        ],
        "seconds": round(sum(outcome.seconds for outcome in outcomes)),
    }


def without_paths(told: str) -> str:
    """The last line of what was said, which tells most, and no place of this machine."""
    return re.sub(r"(?<![\w.:/])/[^\s'\",:;)]*", "PATH", (told.strip().splitlines() or [""])[-1])[-300:]


def known(path: Path | None, name: str, seed: int) -> dict[str, Any]:
    """What earlier rounds of this seed came to."""
    every = json.loads(path.read_text()) if path and path.exists() else {}
    played: list[dict[str, Any]] = every.get("rounds", {}).get(name, [])
    return next((found for found in played if found["seed"] == seed), {})


def put(every: dict[str, Any], name: str, now: Mapping[str, Any]) -> None:
    """Among the results, in place of what there is of this seed; those of other seeds stay."""
    played = every.setdefault("rounds", {}).setdefault(name, [])
    played[:] = sorted(
        [*(found for found in played if found["seed"] != now["seed"]), now], key=lambda found: found["seed"]
    )


def added(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Two summaries of one seed as one."""

    def both(key: str, value: Any) -> Any:
        earlier = before.get(key, type(value)())
        if isinstance(value, dict):
            return dict(sorted((Counter(earlier) + Counter(value)).items()))
        return value if key == "seed" else earlier + value

    return {key: both(key, value) for key, value in now.items()}
