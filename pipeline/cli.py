"""The command line: parse, call, print. What a command does lives in the modules it calls."""

import importlib.util
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import NOT_COMPLETE, MillError, __version__, manifest
from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.commands import preflight
from pipeline.commands.mini import mini
from pipeline.run import STAGES, RunOptions, rebuild, run
from pipeline.storage.workspace import Workspace, stopping

HOUSE = ("pipeline", "annotate", "train", "evaluate")


class Mill(click.Group):
    """Turns what a person can mend into one sentence and exit status 1; anything else is a bug and keeps its
    traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_house()
            return super().invoke(ctx)
        except MillError as error:
            click.echo(f"controlmill: {error}", err=True)
            ctx.exit(NOT_COMPLETE)
        except OSError as error:
            sentence = stopping(error)
            if sentence is None:
                raise
            click.echo(f"controlmill: {sentence}", err=True)
            ctx.exit(NOT_COMPLETE)
        except (KeyboardInterrupt, RuntimeError) as error:
            # DuckDB's word for Ctrl-C
            if isinstance(error, RuntimeError) and "Query interrupted" not in str(error):
                raise
            click.echo(
                "controlmill: stopped; what was committed is kept, the same command goes on from there.",
                err=True,
            )
            ctx.exit(NOT_COMPLETE)


@click.group(cls=Mill, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="controlmill")
def main() -> None:
    """Paired condition datasets, ControlNet training and leaderboards.

    Example: controlmill run manifests/photos.yaml
    """


@main.command("run")
@click.argument("path", metavar="MANIFEST", type=click.Path(path_type=Path))
@click.option("--stages", metavar="A,B", help=f"Only these of {','.join(STAGES)}.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N addresses of the source.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes at work; default: every core.")
@click.option("--address", help="A running Ray cluster; default: one is started here.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed in earlier runs.")
@click.option("--dry-run", is_flag=True, help="Check the manifest and print the plan; touch nothing.")
def run_command(
    path: Path,
    stages: str | None,
    limit: int | None,
    workers: int | None,
    address: str | None,
    retry_failed: bool,
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
        doubts = preflight.check(plan, chosen, limit)
        absent = preflight.missing(plan, chosen)
        click.echo(
            "\n".join(
                [
                    f"{given.name}: would work in {plan.workspace.root}: {', '.join(chosen)}",
                    *plans.lines(plan),
                    *doubts,
                ]
            )
        )
        click.echo(
            "\n".join(["missing here:", *(f"  {line}" for line in absent)])
            if absent
            else "Nothing is missing here."
        )
        sys.exit(NOT_COMPLETE if absent else 0)
    signal.signal(signal.SIGTERM, _interrupt)
    options = RunOptions(chosen, limit=limit, workers=workers, address=address, retry_failed=retry_failed)
    sys.exit(run(given, options, _say))


@main.command()
@click.argument("target", metavar="MANIFEST|WORKSPACE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(target: Path, as_json: bool) -> None:
    """Rows per stage and condition: done, skipped, failed, to do. Works while a run is going.

    Example: controlmill status runs/photos
    """
    from pipeline.commands.status import text
    from pipeline.report.counts import facts

    told = facts(Catalog(_workspace(target)))
    click.echo(json.dumps(told, indent=2) if as_json else text(told))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def conditions(as_json: bool) -> None:
    """The thirteen conditions: detector, licence, and what is missing here.

    Example: controlmill conditions
    """
    from pipeline.commands import status as told

    rows = told.conditions()
    click.echo(json.dumps(rows, indent=2) if as_json else told.conditions_text(rows))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(as_json: bool) -> None:
    """What this machine has: packages, GPU, weights, disk.

    Example: controlmill doctor
    """
    from pipeline.commands import status as told

    facts = told.machine()
    click.echo(
        json.dumps(facts, indent=2)
        if as_json
        else "\n".join(f"{name:<22} {value}" for name, value in facts.items())
    )


@main.command()
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--condition",
    "names",
    required=True,
    multiple=True,
    help="A condition's name; may be given several times.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the rendered maps.")
@click.option("--resolution", default=512, show_default=True, type=click.IntRange(64, 4096))
def detect(images: tuple[Path, ...], names: tuple[str, ...], out: Path, resolution: int) -> None:
    """Draw conditions of a few images, without a workspace.

    The files written go to standard output. Standard error names each image that failed, or whose map is
    empty or flat ("skipped"), and why. Exit status 0: nothing failed; 3: something failed; 1: all of it
    failed.

    Example: controlmill detect photo.jpg --condition canny --condition hed --out maps/
    """
    from pipeline.commands.detect import detect as draw

    failed = done = 0
    for it in draw(images, names, out, resolution):
        if it.path:
            click.echo(str(it.path))
        if it.status != "ok":
            told = (str(it.image), it.condition, "" if it.status == "failed" else it.status, it.reason)
            click.echo(
                f"{': '.join(filter(None, told))}{f'; kept as {it.path}' if it.path else ''}", err=True
            )
        failed += it.status == "failed"
        done += it.status != "failed"
    sys.exit(0 if not failed else 3 if done else NOT_COMPLETE)


def _renamed(old: str, new: str, *, is_flag: bool = False) -> Callable[[Any], Any]:
    """An option of an earlier version, which tells the new one."""

    def tell(context: click.Context, option: click.Parameter, value: Any) -> None:
        if value:
            raise MillError(f"{old} is called {new} now.")

    name = f"former_{old.strip('-').replace('-', '_')}"
    return click.option(
        old, name, hidden=True, expose_value=False, is_eager=True, callback=tell, is_flag=is_flag
    )


@main.command("sample")
@click.option(
    "--checkpoint",
    required=True,
    help="A run's step-…/CONDITION, mini/canny, or anyone's: a folder, a file, a hub id.",
)
@click.option(
    "--image",
    required=True,
    type=click.Path(path_type=Path),
    help="Is annotated, unless --hint says that it is drawn already.",
)
@click.option("--prompt", help="What to draw; only --guess-mode does without.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A PNG; the hint is written beside it."
)
@click.option("--condition", help="Default: the name of the checkpoint's folder.")
@click.option("--base", help="A diffusers folder or hub id; default: the base of the checkpoint's workspace.")
@click.option("--hint", "is_hint", is_flag=True, help="The image is a drawn condition, not a photograph.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--num-inference-steps",
    type=click.IntRange(1, 1000),
    help="Default: as its workspace evaluates it, else 20.",
)
@click.option(
    "--guidance-scale", type=click.FloatRange(min=0), help="Default: as its workspace evaluates it, else 7.5."
)
@click.option(
    "--controlnet-conditioning-scale",
    type=float,
    help="Of the ControlNet's residuals; default: as its workspace evaluates it, else 1.",
)
@click.option(
    "--cfg-hint",
    type=click.Choice(["both", "conditional"]),
    help="The branches that see the hint; conditional: guidance strengthens the hint too; default: as its"
    " workspace evaluates it, else both.",
)
@click.option(
    "--guess-mode",
    "guess",
    is_flag=True,
    help="The hint leads instead of the prompt; goes with --guidance-scale 3 to 5.",
)
@click.option(
    "--control-guidance-start",
    "start",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the steps before the ControlNet works.",
)
@click.option(
    "--control-guidance-end",
    "end",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the steps after which it rests.",
)
@click.option(
    "--resolution",
    type=click.IntRange(64, 4096),
    help="Default: what it was trained at, else the size of its base.",
)
@click.option(
    "--protocol", default="cn10", show_default=True, metavar="cn10|cn11", help="How the hint is drawn."
)
@_renamed("--steps", "--num-inference-steps")
@_renamed("--guidance", "--guidance-scale")
@_renamed("--scale", "--controlnet-conditioning-scale")
@_renamed("--guide-hint", "--cfg-hint conditional", is_flag=True)
@_renamed("--no-guide-hint", "--cfg-hint both", is_flag=True)
@_renamed("--guess", "--guess-mode", is_flag=True)
@_renamed("--start", "--control-guidance-start")
@_renamed("--end", "--control-guidance-end")
def sample_command(
    checkpoint: str,
    image: Path,
    prompt: str | None,
    out: Path,
    condition: str | None,
    base: str | None,
    is_hint: bool,
    **settings: Any,
) -> None:
    """Draw one image with a ControlNet.

    With --guess-mode --guidance-scale 3 in place of --prompt the ControlNet has to tell from the hint alone
    what the image shows: the unconditional branch gets no control, and the finer residuals get less.

    Example: controlmill sample --checkpoint models/canny --base models/sd15 --image photo.jpg --prompt "a red
    bird" --out bird.png
    """
    from pipeline.commands.sample import Settings, sample

    if prompt is None and not settings["guess"]:
        raise MillError("--prompt is missing: say what to draw; only --guess-mode does without.")
    chosen = Settings(**settings)
    made = sample(
        checkpoint,
        image,
        prompt or "",
        out,
        condition=condition,
        base=base,
        is_hint=is_hint,
        settings=chosen,
        say=_warn,
    )
    for path in made:
        click.echo(str(path))


@main.command()
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
    names, rows = Catalog(_workspace(workspace)).table(query)
    if as_json:
        for row in rows:
            click.echo(json.dumps(dict(zip(names, row, strict=True)), default=str, ensure_ascii=False))
    elif as_csv:
        click.echo(text.csv_table(names, rows), nl=False)
    else:
        click.echo(text.table(names, rows))


@main.command()
@click.argument("workspace", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Remove what is broken, so that the next run makes it again.")
@click.option(
    "--rescore",
    default=0,
    metavar="N",
    help="Score about N stored samples again, chosen at random, and compare.",
)
def verify(workspace: Path, repair: bool, rescore: int) -> None:
    """Check every shard and checkpoint against its checksums and the catalog, and with --rescore some scores
    against their pictures.

    Example: controlmill verify runs/photos --rescore 100
    """
    from pipeline import plan as plans
    from pipeline.commands import verify as verifier

    catalog = Catalog(_workspace(workspace))
    problems = verifier.problems(catalog, repair=repair, say=_say)
    if rescore:
        problems += verifier.rescored(plans.load_saved(catalog.workspace), catalog, rescore, say=_say)
    sys.exit(NOT_COMPLETE if problems and not repair else 0)


@main.command()
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
    raw: bool,
    flip: bool,
) -> None:
    """Write the pairs as a dataset that other tools load: a new folder DEST, whole or not at all.

    huggingface and diffusers load with datasets.load_dataset(DEST), webdataset also with the package of that
    name.

    Example: controlmill export runs/photos exports/canny --condition canny --to huggingface
    """
    from pipeline.commands import export as exporter

    catalog = Catalog(_workspace(workspace))
    exporter.export(
        catalog, dest, to=to, conditions=names, split=split, protocol=protocol, raw=raw, flip=flip, say=_say
    )


@main.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="diffusers|original",
    help="The layout of DEST: a folder, or one .safetensors file.",
)
@click.option(
    "--base-config",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Config of the base's UNet, where it is not SD 1.5 or 2.1.",
)
@click.option(
    "--weights",
    metavar="average|trained",
    help="Of a run that kept an average; default: the average, as `sample` does.",
)
def convert(src: Path, dest: Path, to: str, base_config: Path | None, weights: str | None) -> None:
    """Change a ControlNet's layout, tensor by tensor the same: DEST is written whole or not at all, never
    over what is there.

    SRC is a diffusers folder, a single file of the original layout (.safetensors, .pth, .ckpt), or a run's
    checkpoint. Where the run kept an average of the weights, that is what is converted; --weights trained
    takes those that learned.

    Example: controlmill convert runs/photos/checkpoints/canny/step-00001000/canny canny.safetensors --to
    original
    """
    from pipeline.commands import convert as converter

    converter.convert(src, dest, to=to, base_config=base_config, which=weights, say=_say, warn=_warn)


@main.group("leaderboard")
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


@main.group()
def catalog() -> None:
    """The DuckDB catalog of a workspace."""


@catalog.command("rebuild")
@click.argument("workspace", type=click.Path(path_type=Path))
def rebuild_command(workspace: Path) -> None:
    """Make the catalog again from the shards.

    Example: controlmill catalog rebuild runs/photos
    """
    plan = plans.load_saved(_workspace(workspace))
    with plan.workspace.lock():
        whole = rebuild(plan, _say)
    sys.exit(0 if whole else NOT_COMPLETE)


main.add_command(mini)


def _workspace(target: Path) -> Workspace:
    root = Path(manifest.load(target).workspace).expanduser() if target.is_file() else target
    workspace = Workspace(root.resolve())
    if not workspace.manifest.is_file():
        raise MillError(
            f"{root} is no workspace (it has no manifest.yaml): `controlmill run MANIFEST` makes one."
        )
    return workspace


def _stages_of(given: manifest.Manifest) -> tuple[str, ...]:
    wanted = {
        "caption": given.captions,
        "encode": given.train,
        "train": given.train,
        "generate": given.evaluate,
        "score": given.evaluate,
    }
    return tuple(stage for stage in STAGES if wanted.get(stage, True))


def _say(line: str) -> None:
    click.echo(line)


def _warn(line: str) -> None:
    click.echo(line, err=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _check_house() -> None:
    """The name `evaluate` is also a Hugging Face package; a mixture of the two would import the wrong one."""
    home = Path(__file__).resolve().parent.parent
    for name in HOUSE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home:
            raise MillError(
                f"The package {name!r} that Python finds ({spec.origin if spec else 'nowhere'}) is not"
                " ControlMill's: another project of that name is installed. Give ControlMill an environment"
                " of its own (`make setup`)."
            )


if __name__ == "__main__":  # python -m pipeline.cli
    main(prog_name="controlmill")
