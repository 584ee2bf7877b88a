"""The commands on single images and single ControlNets, which need no workspace."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import NOT_COMPLETE, MillError
from pipeline.cli.group import say, warn
from train.samplers import TITLES


@click.command()
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


@click.command("sample")
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
    "--sampler", type=click.Choice(list(TITLES)), help="Default: as its workspace evaluates it, else ddim."
)
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
    type=click.Choice(["both", "conditional", "weighted"]),
    help="The branches that see the hint; conditional: guidance strengthens the hint too; weighted: with the"
    " paper's resolution weights; default: as its workspace evaluates it, else both.",
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
    from pipeline.commands.sample import Request, Settings, sample

    if prompt is None and not settings["guess"]:
        raise MillError("--prompt is missing: say what to draw; only --guess-mode does without.")
    request = Request(
        checkpoint=checkpoint,
        image=image,
        prompt=prompt or "",
        out=out,
        condition=condition,
        base=base,
        is_hint=is_hint,
    )
    for path in sample(request, Settings(**settings), warn):
        click.echo(str(path))


@click.command()
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

    converter.convert(src, dest, to=to, base_config=base_config, which=weights, say=say, warn=warn)
