"""The import rules of the house, kept by reading every file's imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ("pipeline", "annotate", "train", "evaluate")
ONLY_IN = {  # library -> the files that may import it
    "ray": ["pipeline/cluster.py"],
    "duckdb": ["pipeline/catalog.py"],
    "diffusers": ["train/"],
    "controlnet_aux": ["annotate/"],
    "openpifpaf": ["annotate/"],
    "mediapipe": ["annotate/"],
}
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
            assert any(place.startswith(allowed) for allowed in ONLY_IN[library]), f"{place} imports {library}"


def test_no_module_is_called_by_what_is_no_job() -> None:
    assert not [path for path in modules() if path.stem in NOT_A_JOB or path.parent.name in NOT_A_JOB]


def test_the_conditions_need_only_the_standard_library() -> None:
    assert imported(ROOT / "annotate" / "conditions.py") <= set(sys.stdlib_module_names)


def test_no_other_file_compares_condition_names() -> None:
    names = {
        line.split('"')[1] for line in (ROOT / "annotate" / "conditions.py").read_text().splitlines() if line.strip().startswith('name="')
    }
    assert len(names) == 13
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                literals = {
                    part.value for part in [node.left, *node.comparators] if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
                assert not literals & names, f"{path.relative_to(ROOT)}:{node.lineno} compares a condition's name"


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.stages.ingest", "pipeline.stages.annotate", "annotate.annotator"])
def test_importing_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"
