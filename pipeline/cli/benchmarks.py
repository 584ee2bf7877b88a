"""The commands on a benchmark that others enter, and on leaderboards that were written."""

import sys
from pathlib import Path

import click

from annotate.conditions import CONDITIONS
from annotate.parameters import near
from pipeline import NOT_COMPLETE, MillError, manifest
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.cli.group import open_workspace, say
from pipeline.run import RunOptions, run


@click.group("benchmark")
def benchmark_group() -> None:
    """A frozen benchmark that anybody's pictures may enter."""


@benchmark_group.command("export")
@click.argument("target", metavar="MANIFEST|WORKSPACE", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--condition", "names", multiple=True, help="Only this one; may be given several times.")
@click.option("--with-images", is_flag=True, help="The held-out photographs too, which can then be copied.")
def export_command(target: Path, out: Path, names: tuple[str, ...], with_images: bool) -> None:
    """Write the benchmark of each condition as a new folder OUT: prompts, hints, and what a picture must be
    to be compared. Of a manifest, its images and maps are made first, where the workspace lacks them.

    Example: controlmill benchmark export manifests/public.yaml benchmarks-public
    """
    from pipeline.commands import benchmark

    for name in names:
        if name not in CONDITIONS:
            raise MillError(
                f"--condition: unknown condition {name!r}{near(name, CONDITIONS)}; `controlmill conditions`"
                " lists them."
            )
    if target.is_file():
        given = manifest.load(target)
        stages = ("ingest", *["caption"] * bool(given.captioner), "annotate")
        if run(given, RunOptions(stages), say) == NOT_COMPLETE:
            sys.exit(NOT_COMPLETE)
    plan = plans.load_saved(workspace := open_workspace(target))
    if plan.manifest.evaluate is None:
        raise MillError(f"{target} has no `evaluate:` section, which freezes a benchmark: add one.")
    if lacking := [name for name in names if name not in plan.manifest.conditions]:
        raise MillError(f"--condition: {target} does not make {', '.join(lacking)}: add it to `conditions:`.")
    wanted = [name for name in CONDITIONS if name in (names or plan.manifest.conditions)]
    benchmark.export(plan, Catalog(workspace), out, wanted, with_images=with_images, say=say)


@benchmark_group.command("check")
@click.argument("benchmark", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
def check_command(benchmark: Path, images: Path) -> None:
    """Say of pictures that were made for an exported benchmark whether they may enter it. No workspace is
    needed. Exit status 1: they would be refused.

    Example: controlmill benchmark check benchmarks-public/canny pictures
    """
    from pipeline.commands import benchmark as checker

    sys.exit(NOT_COMPLETE if checker.check(benchmark, images, say) else 0)


@click.group("leaderboard")
def leaderboard_group() -> None:
    """A leaderboard that was written."""


@leaderboard_group.command("render")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Another folder; default: the same.")
def render_command(folder: Path, out: Path | None) -> None:
    """Write the pages and tables again from leaderboard.json and the pictures beside it; no workspace is
    needed, nothing is scored.

    Example: controlmill leaderboard render runs/photos/report/leaderboard
    """
    from pipeline.report import leaderboard, stored

    click.echo(str(leaderboard.render(stored.read(folder), out or folder)))


@leaderboard_group.command("export")
@click.argument("workspace", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", default="zip", show_default=True, metavar="zip|lm-eval", help="Which shape.")
def results_command(workspace: Path, out: Path, to: str) -> None:
    """Write the results of a workspace's leaderboard to one file that others merge with theirs; or, with
    `--to lm-eval`, to a folder with a JSON for each model in the shape of lm-evaluation-harness.

    Example: controlmill leaderboard export runs/quick quick-results.zip
    """
    from pipeline.commands import leaderboard

    if to not in ("zip", "lm-eval"):
        raise MillError(f"--to: {to!r} is unknown; set zip or lm-eval.")
    plan = plans.load_saved(place := open_workspace(workspace))
    write = leaderboard.export if to == "zip" else leaderboard.lm_eval
    write(plan, Catalog(place), out, say)


@leaderboard_group.command("merge")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the board.")
def merge_command(results: tuple[Path, ...], out: Path) -> None:
    """Write one leaderboard of the RESULTS of several, which `leaderboard export` wrote. Only what was asked
    and read alike is compared, by the replicates of all.

    Example: controlmill leaderboard merge quick-results.zip theirs.zip --out board
    """
    from pipeline.commands import leaderboard

    leaderboard.merge(results, out, say)
