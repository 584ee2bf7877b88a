"""The commands that tell what there is: conditions with their detectors, and this machine."""

import dataclasses
import json

import click


@click.command()
@click.option("--details", is_flag=True, help="What each detector lacks, and where it may lie.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def conditions(as_json: bool, details: bool) -> None:
    """The thirteen conditions: detector, licence, and what is missing here.

    Example: controlmill conditions
    """
    from pipeline.commands import status

    rows = status.conditions()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        click.echo(status.conditions_text(rows, details))


@click.command()
@click.option("--details", is_flag=True, help="What each condition lacks, and where it may lie.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(as_json: bool, details: bool) -> None:
    """What this machine has: packages, GPU, weights, disk.

    Example: controlmill doctor
    """
    from pipeline.commands import status as told

    rows = told.conditions()
    facts = told.machine(rows)
    click.echo(json.dumps(facts, indent=2) if as_json else told.machine_text(facts, rows, details))
