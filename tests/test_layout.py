"""The import rules of the house, kept by reading every file's imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ("pipeline", "annotate", "train", "evaluate")
ONLY_IN = {  # library -> the files that may import it
    "ray": ["pipeline/cluster/"],
    "duckdb": ["pipeline/catalog/"],
    "diffusers": ["train/", "annotate/marigold.py"],
    "controlnet_aux": ["annotate/"],
    "openpifpaf": ["annotate/"],
    "mediapipe": ["annotate/"],
    "onnxruntime": ["annotate/"],
    "torchmetrics": ["evaluate/"],
    "cleanfid": ["evaluate/"],
}
ROOMS = (  # of pipeline/: imports run down this list only
    "__main__", "cli", "run", "commands", "stages", "mini", "report", "benchmark", "experiment", "dataset",
    "plan", "sources", "catalog",
    "manifest", "cluster", "storage", "scenes",
)  # fmt: skip
HEAVY = ("torch", "ray", "diffusers", "transformers", "mediapipe", "controlnet_aux")
NOT_A_JOB = {"utils", "helpers", "common", "core"}


def modules() -> list[Path]:
    return sorted(path for package in HOUSE for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Module of the house -> the modules of the house that it imports, wherever in the file."""
    known = {dotted(path): path for path in modules()}
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found[name].add(inner if inner in known else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
    return {
        name: {other for other in others if other in known and other != name}
        for name, others in found.items()
    }


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_within_the_pipeline_run_down_the_list_of_its_rooms() -> None:
    here = {
        path.stem
        for path in (ROOT / "pipeline").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert here - {"__init__"} == set(ROOMS)
    assert len(here - {"__init__", "__main__"}) <= 16
    inside = {
        name: {it for it in others if it.count(".")}
        for name, others in imports().items()
        if name.startswith("pipeline.")
    }
    up = [
        f"{name} imports {other}"
        for name, others in inside.items()
        for other in others
        if other.startswith("pipeline.") and ROOMS.index(room(other)) < ROOMS.index(room(name))
    ]
    assert not up


def test_nothing_imports_a_stage_but_the_flow() -> None:
    asking = {
        name for name, others in imports().items() if any(it.startswith("pipeline.stages") for it in others)
    }
    assert {room(name) for name in asking} <= {"run", "stages"}


def test_no_imports_go_in_a_circle() -> None:
    left = imports()
    while leaves := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in leaves}
    assert not left, "what stays imports each other, or something that does"


@pytest.mark.parametrize("package", ["annotate", "train", "evaluate"])
def test_a_library_knows_nothing_of_the_other_rooms(package: str) -> None:
    others = set(HOUSE) - {package}
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & others, f"{path.relative_to(ROOT)} imports {imported(path) & others}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_in_its_own_place_only(library: str) -> None:
    for path in modules():
        if library in imported(path):
            place = path.relative_to(ROOT).as_posix()
            assert any(place.startswith(allowed) for allowed in ONLY_IN[library]), (
                f"{place} imports {library}"
            )


def test_no_module_is_called_by_what_is_no_job() -> None:
    assert not [path for path in modules() if path.stem in NOT_A_JOB or path.parent.name in NOT_A_JOB]


def test_the_conditions_need_only_the_standard_library() -> None:
    assert imported(ROOT / "annotate" / "conditions.py") <= set(sys.stdlib_module_names)


def test_no_other_file_compares_condition_names() -> None:
    names = {
        line.split('"')[1]
        for line in (ROOT / "annotate" / "conditions.py").read_text().splitlines()
        if line.strip().startswith('name="')
    }
    assert len(names) == 13
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                literals = {
                    part.value
                    for part in [node.left, *node.comparators]
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
                assert not literals & names, (
                    f"{path.relative_to(ROOT)}:{node.lineno} compares a condition's name"
                )


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.cli",
        "pipeline.stages.ingest",
        "pipeline.stages.annotate",
        "annotate.annotator",
        "train.base",
        "train.checkpoint",
        "train.pretrained",
    ],
)
def test_importing_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.strip()
        == "[]"
    )


def test_bases_and_networks_that_score_are_identified_without_torch() -> None:
    """A leaderboard of scores that are there needs no more of them."""
    code = (
        "import sys; from evaluate import alignment, extractors; from train import base, pretrained;"
        " base.fingerprint('mini'); pretrained.weights_hash(pretrained.locate('mini/canny'));"
        " extractors.mark('mini'); alignment.mark('mini'); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == "False\n"


def test_no_benchmark_imports_a_test() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "tests" not in imported(path), path.name


# -- size: a reader holds a function in view -----------------------------------------------------------------

LONGEST, DEEPEST, MOST_PARAMETERS = 70, 4, 8  # lines of a function, blocks in blocks, without self
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef)


def depth(body: list[ast.stmt]) -> int:
    """How many blocks lie in one another; `elif` is no deeper than its `if`."""
    deepest = 0
    for statement in body:
        if not isinstance(statement, BLOCKS):
            continue
        inner = [statement.body, getattr(statement, "finalbody", [])]
        inner += [handler.body for handler in getattr(statement, "handlers", [])]
        otherwise = getattr(statement, "orelse", [])
        if isinstance(statement, ast.If) and len(otherwise) == 1 and isinstance(otherwise[0], ast.If):
            deepest = max(deepest, depth(otherwise))
        else:
            inner.append(otherwise)
        deepest = max(deepest, 1 + max(map(depth, inner)))
    return deepest


def test_no_function_is_long_or_deep_or_takes_many_parameters() -> None:
    found = []
    for path in modules():
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            given = function.args
            names = [it.arg for it in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            lines = (function.end_lineno or 0) - function.lineno + 1
            too_many = len([name for name in names if name not in ("self", "cls")]) > MOST_PARAMETERS
            # a command's parameters are its options
            command = any("click" in ast.unparse(it) for it in function.decorator_list)
            if lines > LONGEST or depth(function.body) > DEEPEST or (too_many and not command):
                found.append(f"{path.relative_to(ROOT)}: {function.name}")
    assert not found
