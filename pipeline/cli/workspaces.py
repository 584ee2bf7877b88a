"""The commands on a manifest and its workspace: made, looked at, asked, checked, taken out."""

import json
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipeline import NOT_COMPLETE, MillError, manifest
from pipeline import plan as plans
from pipeline.catalog import Catalog, snapshots
from pipeline.cli.group import open_workspace, say
from pipeline.cli.watching import watch
from pipeline.cluster.watchdog import begin_again, give_up
from pipeline.commands import preflight, requirements, weights
from pipeline.run import STAGES, RunOptions, rebuild, run
from pipeline.storage import events, requests
from pipeline.storage.workspace import Workspace


@click.command("run")
@click.argument("path", metavar="MANIFEST", type=click.Path(path_type=Path))
@click.option("--stages", metavar="A,B", help=f"Only these of {','.join(STAGES)}.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N addresses of the source.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes at work; default: every core.")
@click.option("--address", help="A running Ray cluster; default: one is started here.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed in earlier runs.")
@click.option("--keep-gone", is_flag=True, help="Keep the pairs of images that the sources no longer have.")
@click.option("--get-weights", is_flag=True, help="First download what is missing and the hub has.")
@click.option("--dry-run", is_flag=True, help="Check the manifest and print the plan; touch nothing.")
def run_command(
    path: Path,
    stages: str | None,
    limit: int | None,
    workers: int | None,
    address: str | None,
    retry_failed: bool,
    keep_gone: bool,
    get_weights: bool,
    dry_run: bool,
) -> None:
    """Do what the manifest asks for and its workspace lacks.

    Exit status 0: complete; 3: complete, with failed rows; 1: not complete. Stopped or killed, the same
    command goes on where it was.

    Example: controlmill run manifests/photos.yaml
    """
    given = manifest.load(path)
    chosen = tuple(stages.split(",")) if stages else _stages_of(given)
    for stage in chosen:
        if stage not in STAGES:
            raise MillError(f"--stages: unknown stage {stage!r}; the stages are {', '.join(STAGES)}.")
    if dry_run:
        plan = plans.make(given, here=False)
        found = weights.of_plan(plan, chosen) if get_weights else []
        doubts = preflight.check(plan, chosen, limit)
        absent = requirements.missing(plan, chosen)
        click.echo(
            "\n".join(
                [
                    f"{given.name}: would work in {plan.workspace.address}: {', '.join(chosen)}",
                    *plans.lines(plan),
                    *preflight.changes(plan, chosen, limit),
                    *doubts,
                    *(weights.lines(found) if get_weights else ()),
                ]
            )
        )
        click.echo(
            "\n".join(["missing here:", *(f"  {line}" for line in absent)])
            if absent
            else "Nothing is missing here."
        )
        sys.exit(NOT_COMPLETE if absent else 0)
    if get_weights:
        weights.fetch(weights.of_plan(plans.make(given, here=False), chosen), say)
    signal.signal(signal.SIGTERM, _interrupt)
    lost = give_up if address else begin_again
    options = RunOptions(chosen, limit, workers, address, retry_failed, keep_gone, lost)
    sys.exit(run(given, options, say))


@click.command()
@click.argument("target", metavar="MANIFEST|WORKSPACE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--watch", "watched", is_flag=True, help="Again every few seconds, until the run has ended.")
def status(target: Path, as_json: bool, watched: bool) -> None:
    """Rows per stage and condition: done, skipped, failed, to do. Works while a run is going.

    Example: controlmill status runs/photos --watch
    """
    workspace = open_workspace(target)
    if watched:
        under_way = partial(requests.is_under_way, workspace)
        watch(lambda: "\n".join(_status(workspace, as_json)), under_way, whole=as_json)
    else:
        for part in _status(workspace, as_json):
            click.echo(part)


def _status(workspace: Workspace, as_json: bool) -> Iterator[str]:
    """What the run says of itself first, since it may hold the catalog for a while."""
    from pipeline.commands.status import progress_text, text
    from pipeline.report.counts import workspace_counts

    progress = events.read_progress(workspace.root) if requests.is_under_way(workspace) else None
    if progress and not as_json:
        yield "\n".join(progress_text(progress))
    counts = workspace_counts(Catalog(workspace))
    under_way = {"under way": vars(progress) if progress else None}
    yield json.dumps(counts.as_json() | under_way, indent=2) if as_json else text(counts)


@click.command()
@click.argument("target", metavar="MANIFEST|WORKSPACE", type=click.Path(path_type=Path))
def stop(target: Path) -> None:
    """Ask the run that is under way to end: what it is at is finished and committed, training saves a
    checkpoint. The same `run` goes on from there, also in a copy of the workspace on another machine.

    Example: controlmill stop runs/photos
    """
    workspace = open_workspace(target)
    requests.ask_to_stop(workspace)
    say(f"Asked the run in {workspace.address} to stop: it ends when what is under way is committed.")


@click.command()
@click.argument("workspace", type=click.Path(path_type=Path))
@click.argument("query")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row.")
@click.option("--csv", "as_csv", is_flag=True, help="A header and a line a row; NULL is empty.")
def sql(workspace: Path, query: str, as_json: bool, as_csv: bool) -> None:
    """Ask the catalog, read-only. Tables: images, sources, captions, annotations, detectors, shards, pairs,
    runs, samples, scores, sample_scores; docs/catalog.md has their columns.

    Example: controlmill sql runs/photos "SELECT condition, status, count(*) FROM annotations GROUP BY ALL"
    """
    from pipeline.report import text

    if as_json and as_csv:
        raise MillError("--json and --csv are two ways to print the same rows: leave one of them out.")
    names, rows = Catalog(open_workspace(workspace)).table(query)
    if as_json:
        for row in rows:
            click.echo(json.dumps(dict(zip(names, row, strict=True)), default=str, ensure_ascii=False))
    elif as_csv:
        click.echo(text.csv_table(names, rows), nl=False)
    else:
        click.echo(text.table(names, rows))


@click.command()
@click.argument("workspace", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Remove what is broken, so that the next run makes it again.")
@click.option(
    "--rescore",
    default=0,
    metavar="N",
    help="Score about N stored samples again, chosen at random, and compare.",
)
@click.option(
    "--libraries",
    "by_libraries",
    is_flag=True,
    help="With --rescore: compare about N samples, and every set, with torchmetrics, clean-fid, pycocotools.",
)
def verify(workspace: Path, repair: bool, rescore: int, by_libraries: bool) -> None:
    """Check every shard and checkpoint against its checksums and the catalog, and with --rescore some scores
    against their pictures.

    Example: controlmill verify runs/photos --rescore 100 --libraries
    """
    from pipeline.commands import verify as verifier

    catalog = Catalog(open_workspace(workspace))
    problems = verifier.problems(catalog, repair=repair, say=say)
    if by_libraries and not rescore:
        raise MillError("--libraries goes with --rescore N: how many samples to compare.")
    if rescore:
        from pipeline.commands.rescore import rescored

        plan = plans.load_saved(catalog.workspace)
        problems += rescored(plan, catalog, rescore, say=say)
    if by_libraries:
        from pipeline.commands import libraries

        agreements = libraries.compared(plan, catalog, rescore)
        libraries.save(catalog, agreements)
        say("\n".join(libraries.lines(agreements)))
        say("`controlmill run MANIFEST --stages report` puts it on the page.")
    sys.exit(NOT_COMPLETE if problems and not repair else 0)


@click.command()
@click.argument("workspace", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--condition",
    "names",
    required=True,
    multiple=True,
    help="A condition's name; may be given several times.",
)
@click.option("--to", required=True, metavar="huggingface|webdataset|diffusers", help="The layout.")
@click.option(
    "--split", default="all", show_default=True, metavar="train|validation|test|all", help="Which images."
)
@click.option(
    "--protocol",
    default="cn10",
    show_default=True,
    metavar="cn10|cn11",
    help="How hints are drawn: as for ControlNet 1.0 or 1.1.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Of what cn11 draws at random: which soft edges are drawn in three steps.",
)
@click.option(
    "--raw",
    is_flag=True,
    help="Put the stored maps beside their drawings: a drawing does not tell everything.",
)
@click.option(
    "--flip", is_flag=True, help="Follow each pair by its mirror image, unless its caption names a side."
)
def export(
    workspace: Path,
    dest: Path,
    names: tuple[str, ...],
    to: str,
    split: str,
    protocol: str,
    seed: int,
    raw: bool,
    flip: bool,
) -> None:
    """Write the pairs as a dataset that other tools load: a new folder DEST, whole or not at all.

    huggingface and diffusers load with datasets.load_dataset(DEST), webdataset also with the package of that
    name.

    Example: controlmill export runs/photos exports/canny --condition canny --to huggingface
    """
    from pipeline.commands import export as exporter

    catalog = Catalog(open_workspace(workspace))
    options = exporter.ExportOptions(
        to=to, conditions=names, split=split, protocol=protocol, seed=seed, raw=raw, flip=flip
    )
    exporter.export(catalog, dest, options, say=say)


@click.group()
def catalog() -> None:
    """The DuckDB catalog of a workspace."""


@catalog.command("rebuild")
@click.argument("workspace", type=click.Path(path_type=Path))
def rebuild_command(workspace: Path) -> None:
    """Make the catalog again from the shards.

    Example: controlmill catalog rebuild runs/photos
    """
    plan = plans.load_saved(open_workspace(workspace))
    with plan.workspace.lock(say) as is_held:
        whole = rebuild(plan, say)
        snapshots.save(Catalog(plan.workspace), is_held)
    sys.exit(0 if whole else NOT_COMPLETE)


def _stages_of(given: manifest.Manifest) -> tuple[str, ...]:
    wanted = {
        "caption": given.captioner,
        "encode": given.train,
        "train": given.train,
        "generate": given.evaluate,
        "score": given.evaluate,
    }
    return tuple(stage for stage in STAGES if wanted.get(stage, True))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
