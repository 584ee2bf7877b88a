"""Hostile manifests: the shipped ones, changed in what they say and in their bytes."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.hostile.mutations import Rng, mutated
from tests.hostile.sql import CLAUSES

ROOT = Path(__file__).parents[2] / "manifests"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**18), 0.5, 1e308, math.nan, math.inf,
    -math.inf, "",
    " ", "null", "yes", "\x07", "x" * 5000, "/etc/passwd", "../../..", "/", "~", "~nobody/x", "/dev/zero",
    "/proc/self/mem", "s3://", "http://127.0.0.1/", "file:///etc/passwd", "a\nb", "\u202e", "\U0001f600",
    "{stem",
    "{0.__class__}", "{folder.__init__}", "*" * 200, "**/" * 50, "[", [], {}, [[]], [{}], {"a": {"b": {}}},
    {"": ""}, {1: 2}, [None], ["canny"] * 50, {"column": "x"}, {"template": "{"}, "auto", "mini", "mini/none",
    "none", "2024-01-01", "1:30:00", "0x10", "1_000", "!!python/object:os.system", "latin-1", "rot13", "idna",
)  # fmt: skip
TEXTS = (
    "!!python/object/apply:os.system ['touch {marker}']", "!!python/name:os.system", "!!binary xx",
    "!!set {a, b}",
    "!!omap [a: 1]", "!!timestamp 9999-99-99", "!!float x", "!!int ''", "!unknown x", "*nowhere", "&a [*a]",
    "&a {<<: *a}", "<<: 1", "? [a, b]\n: c", "[" * 200, "{a: " * 200, "'", '"\\ud800"', '"\\0"', '"\\x"',
    "\t- a",
    "- a\nb: c", "%YAML 9.9", "---\n---", "...\nx", "a: b: c", "|\n  x", ">-\n", "@", "`", "\ufeff",
    "\x85", "\x00",
    "1" * 6000, "0o7777777777777777777777", ".inf", "-.INF", ".nan", "12e9999", "2024-13-45", "1:1:1:1:1",
    "=", "~:",
)  # fmt: skip


def bombs() -> Iterator[str]:
    """Small texts that stand for much."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    yield "\n".join(lines)
    merged = ["a0: &a0 {x: 1}"]
    merged += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
    yield "\n".join(merged)
    yield "a: &a [" + "x, " * 9000 + "]\nb: [*a, *a]"
    yield "".join(f"key{n}: x\n" for n in range(15_000))
    yield "name: " + "x" * 300_000
    yield "[" * 10_000
    yield "- " * 10_000
    yield "? " * 10_000
    yield "&a " * 10_000
    yield "!a " * 10_000
    yield "{" + "a, " * 40_000
    yield "a: '" + "''" * 100_000
    yield 'a: "' + "\\\n" * 80_000
    yield "a: |\n" + " \n" * 100_000
    yield "#" * 200_000
    yield "\n" * 200_000
    yield " " * 200_000


def make(folder: Path, seed: int, count: int, marker: Path) -> list[Path]:
    """So many; `marker` is a file that code from a manifest would make."""
    folder.mkdir(parents=True)
    shipped = [path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.yaml"))]
    made = []
    large = list(bombs())
    for number in range(count):
        rng = np.random.default_rng([seed, number, 3])
        text = shipped[int(rng.integers(len(shipped)))]
        if number < len(large):
            data = large[number].encode()
        else:
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            data = change(text, rng).replace("{marker}", str(marker)).encode("utf-8", "surrogatepass")
            data = mutated(data, rng) if rng.random() < 0.25 else data
        made.append(folder / f"{number:05d}.yaml")
        made[-1].write_bytes(data)
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(inner):
        yield value, key
        yield from _places(below)


def _changed(text: str, rng: Rng) -> str:
    """Up to three values replaced, keys renamed, doubled or left out."""
    value = copy.deepcopy(yaml.safe_load(text))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(value))
        if not places:
            break
        container, key = places[int(rng.integers(len(places)))]
        other = VALUES[int(rng.integers(len(VALUES)))]
        match int(rng.integers(6)):
            case 0 if isinstance(container, dict):
                container[str(other)[:50]] = container.pop(key)
            case 1:
                del container[key]
            case 2 if isinstance(container, dict):
                container[f"{key}s"] = copy.deepcopy(container[key])
            case 3:
                source, at = places[int(rng.integers(len(places)))]
                container[key] = (
                    copy.deepcopy(source[at]) if at in range(len(source)) or at in source else other
                )
            case _:
                container[key] = copy.deepcopy(other)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=bool(rng.integers(2)))


def _selected(text: str, rng: Rng) -> str:
    """Hostile SQL where a manifest has its own."""
    value = yaml.safe_load(text)
    clause = CLAUSES[int(rng.integers(len(CLAUSES)))]
    match int(rng.integers(3)):
        case 0:
            value["where"] = clause
        case 1:
            value["conditions"] = {"canny": {"select": {"where": clause}}}
        case _:
            value["conditions"] = {"canny": {"select": {"order_by": clause, "limit": 5}}}
    return yaml.safe_dump(value, sort_keys=False)


def _inserted(text: str, rng: Rng) -> str:
    """A text of YAML's own where a value or a line stands."""
    lines = text.splitlines()
    at = int(rng.integers(len(lines)))
    told = TEXTS[int(rng.integers(len(TEXTS)))]
    match int(rng.integers(3)):
        case 0 if ":" in lines[at]:
            lines[at] = f"{lines[at].split(':')[0]}: {told}"
        case 1:
            lines.insert(at, told)
        case _:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
    return "\n".join(lines)


CHANGES: tuple[Callable[[str, Rng], str], ...] = (
    _changed,
    _changed,
    _changed,
    _selected,
    _inserted,
    _inserted,
)
