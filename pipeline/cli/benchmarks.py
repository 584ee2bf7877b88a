"""The commands on a benchmark that others enter."""

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
        stages = ("ingest", *["caption"] * bool(given.captions), "annotate")
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
