"""The command line of the mini models: `controlmill mini …`."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import NOT_COMPLETE
from pipeline.storage.workspace import workspace_at


@click.group()
def mini() -> None:
    """The small models that do the whole job without a GPU or a hub."""


def _trained(command: Callable[..., bool | None]) -> Callable[..., None]:
    """What trainings have in common; the command says whether all is done, or None when it has only written
    the model.
    """

    @click.argument("given", metavar="MANIFEST", type=click.Path(path_type=Path))
    @click.option(
        "--work",
        type=click.Path(path_type=Path),
        required=True,
        help="Where scenes, states and log.jsonl lie.",
    )
    @click.option(
        "--seconds", type=float, default=float("inf"), help="Stop after so long, with everything saved."
    )
    @click.option(
        "--export",
        "dest",
        type=click.Path(path_type=Path),
        help="Write the model as it is now to this folder, and train nothing.",
    )
    @click.option("--threads", default=1, show_default=True)
    @functools.wraps(command)
    def trained(*, threads: int, **given: Any) -> None:
        import torch

        torch.set_num_threads(threads)
        done = command(**given)
        if done is not None:
            click.echo(
                "The training is complete."
                if done
                else "The training is not complete; the same command goes on."
            )
            sys.exit(0 if done else NOT_COMPLETE)

    return trained


def _make_or_export(
    make: Callable[..., bool],
    export: Callable[..., Any],
    given: Path,
    work: Path,
    seconds: float,
    dest: Path | None,
) -> bool | None:
    if dest is None:
        return make(given, work, seconds=seconds)
    click.echo(json.dumps(export(given, work, dest)))
    return None


@mini.command("base")
@_trained
@click.option(
    "--older", type=click.Path(path_type=Path), help="A base to go on from where --work has no state."
)
@click.option("--polish", is_flag=True, help="Train the decoder of the VAE alone; may run beside the other.")
@click.option(
    "--grid", type=click.Path(path_type=Path), help="With --export: a PNG of reconstructions and samples."
)
def mini_base(
    given: Path,
    work: Path,
    seconds: float,
    dest: Path | None,
    older: Path | None,
    polish: bool,
    grid: Path | None,
) -> bool | None:
    """Train the mini base on rendered scenes. Stop it at any time: the same command goes on.

    Example: controlmill mini base manifests/mini/base.yaml --work runs/mini-base --seconds 3600
    """
    from pipeline.mini.base import draw_grid, export_base, make_base

    make = functools.partial(make_base, older=older, polish=polish)
    export = functools.partial(export_base, older=older)
    complete = _make_or_export(make, export, given, work, seconds, dest)
    if dest is not None and grid is not None:
        draw_grid(given, work, dest, grid)
    return complete


@mini.command("detector")
@_trained
def mini_detector(given: Path, work: Path, seconds: float, dest: Path | None) -> bool | None:
    """Train the mini detector on rendered scenes. Stop it at any time: the same command goes on.

    Example: controlmill mini detector manifests/mini/detector.yaml --work runs/mini-detector
    """
    from pipeline.mini.detector import export_detector, make_detector

    return _make_or_export(make_detector, export_detector, given, work, seconds, dest)


@mini.command("scorer")
@_trained
def mini_scorer(given: Path, work: Path, seconds: float, dest: Path | None) -> bool | None:
    """Train the mini scorer on rendered scenes. Stop it at any time: the same command goes on.

    Example: controlmill mini scorer manifests/mini/scorer.yaml --work runs/mini-scorer
    """
    from pipeline.mini.scorer import export_scorer, make_scorer

    return _make_or_export(make_scorer, export_scorer, given, work, seconds, dest)


@mini.command("roots")
@click.argument("root", metavar="WORKSPACE", type=click.Path(path_type=Path))
@click.option(
    "--condition",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Only this one; may be repeated. Without it, all that are trained.",
)
@click.option(
    "--export", "dest", type=click.Path(path_type=Path), required=True, help="The folder to write them to."
)
@click.option("--grid", type=click.Path(path_type=Path), help="A JPEG or PNG of hints, samples and pictures.")
def mini_roots(root: Path, wanted: tuple[str, ...], dest: Path, grid: Path | None) -> None:
    """Take a workspace's trained ControlNets out, to be shipped beside the mini base: small, with a card of
    what they do.

    Example: controlmill mini roots runs/showcase --condition canny --export train/mini/roots
    """
    from pipeline.commands import roots as stage

    workspace = workspace_at(root)
    stage.export_roots(workspace, wanted, dest)
    if grid is not None:
        stage.draw_grid(workspace, wanted, grid)
