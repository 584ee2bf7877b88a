"""The command line: parse, call, print. What a command does lives in `pipeline/commands/` and the stages."""

import click

from pipeline import __version__
from pipeline.cli import benchmarks, images, machine, weights, workspaces
from pipeline.cli.group import Mill
from pipeline.commands.mini import mini


@click.group(cls=Mill, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="controlmill")
def main() -> None:
    """Paired condition datasets, ControlNet training and leaderboards.

    Example: controlmill run manifests/photos.yaml
    """


for _command in (
    workspaces.run_command,
    workspaces.status,
    workspaces.stop,
    workspaces.sql,
    workspaces.verify,
    workspaces.export,
    benchmarks.benchmark_group,
    benchmarks.leaderboard_group,
    workspaces.catalog,
    machine.conditions,
    weights.weights_group,
    machine.doctor,
    images.detect,
    images.sample_command,
    images.convert,
    mini,
):
    main.add_command(_command)
