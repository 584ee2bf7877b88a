"""What all commands share: mistakes as one sentence, the workspace that is meant, lines for a person."""

import importlib.util
from pathlib import Path
from typing import Any

import click

from pipeline import NOT_COMPLETE, MillError, manifest
from pipeline.catalog import snapshots
from pipeline.storage import copies, folders, stores
from pipeline.storage.workspace import Workspace, misplaced, stopping, workspace_at

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
        except (Exception, KeyboardInterrupt) as error:
            # not every library raises the system's errors as such
            if sentence := stopping(error) or (misplaced(error) if isinstance(error, OSError) else None):
                click.echo(f"controlmill: {sentence}", err=True)
                ctx.exit(NOT_COMPLETE)
            # DuckDB's word for Ctrl-C
            if not _was_interrupted(error) and "Query interrupted" not in str(error):
                raise
            click.echo(
                "controlmill: stopped; what was committed is kept, the same command goes on from there.",
                err=True,
            )
            ctx.exit(NOT_COMPLETE)


def _was_interrupted(error: BaseException) -> bool:
    """Whether it was raised by Ctrl-C or SIGTERM, or on the way out after that."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, KeyboardInterrupt):
        at = at.__context__
    return at is not None


def open_workspace(target: Path) -> Workspace:
    """The workspace that `target` is, or that the manifest `target` names. MillError where that folder is no
    workspace, or the manifest has a mistake.
    """
    root = manifest.load(target).workspace if target.is_file() else target
    workspace = workspace_at(root)
    stores.reach(workspace.root)
    if not copies.has_copy(workspace.manifest):
        place = workspace.address if workspace.is_remote else root
        raise MillError(
            f"{place} is no workspace (it has no manifest.yaml): `controlmill run MANIFEST` makes one."
        )
    snapshots.fetch(workspace)
    folders.bring_each(workspace.root / "checkpoints", lambda name: name.endswith(".jsonl"))
    return workspace


def say(line: str) -> None:
    click.echo(line)


def warn(line: str) -> None:
    click.echo(line, err=True)


def _check_house() -> None:
    """The name `evaluate` is also a Hugging Face package; a mixture of the two would import the wrong one."""
    home = Path(__file__).resolve().parents[2]
    for name in HOUSE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home:
            raise MillError(
                f"The package {name!r} that Python finds ({spec.origin if spec else 'nowhere'}) is not"
                " ControlMill's: another project of that name is installed. Give ControlMill an environment"
                " of its own (`make setup`)."
            )
