"""The mini base and the ControlNets that are shipped beside it to start others from: what lies here by which
name.
"""

from pathlib import Path

NAME = "mini"  # the base, wherever a base is asked for; `mini/canny` is a ControlNet on it
BASE = Path(__file__).parent / "base"
ROOTS = Path(__file__).parent / "roots"


def root(name: str) -> Path | None:
    """The folder of a shipped ControlNet; None = that is no name of one.

    FileNotFoundError: there is none for this condition.
    """
    where, _, condition = name.partition("/")
    if where != NAME or not condition:
        return None
    known = sorted(path.parent.name for path in ROOTS.glob("*/config.json"))
    if condition not in known:
        raise FileNotFoundError(
            f"{name}: no such ControlNet is shipped; there are"
            f" {', '.join(f'{NAME}/{each}' for each in known) or 'none'}"
        )
    return ROOTS / condition
