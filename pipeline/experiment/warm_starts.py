"""What a run starts from in place of the base: another run, or a ControlNet that is there."""

from pathlib import Path

from pipeline import MillError
from pipeline.catalog import Catalog
from pipeline.experiment.pairs import PlannedRun
from pipeline.plan import Plan


def warm_starts(
    plan: Plan,
    catalog: Catalog,
    runs: list[PlannedRun],
    number: int,
    # by condition: a run's folder of checkpoints or a ControlNet's folder or file; the run here that makes
    # it, or ''
) -> dict[str, tuple[str, str]]:
    """What the conditions of run `number` start from; those that start from the base are left out.

    MillError where a `warm_start` is neither a condition that a run trains, here or before, nor a ControlNet
    that is on this disk and can be read.
    """
    from train import pretrained

    assert plan.manifest.train is not None
    sources = plan.manifest.train.waits_for(number)
    out = {}
    for name, wanted in runs[number].run.starts.items():
        if name in sources:
            source = runs[sources[name]].name
            out[name] = (str(plan.workspace.run(source)), source)
            continue
        rows = catalog.query(
            "SELECT run FROM runs WHERE list_contains(conditions, ?) AND status = 'complete' ORDER BY images"
            " DESC, run",
            [wanted],
        )
        try:
            out[name] = (
                str(
                    plan.workspace.run(rows[0][0])
                    if rows
                    else pretrained.locate(wanted, download=False).resolve()
                ),
                "",
            )
        except (OSError, ValueError) as error:
            what = (
                "is neither a condition that a run trains, here or before in this workspace, nor a"
                " ControlNet's folder or file"
            )
            raise MillError(
                f"{plan.manifest.at('train', 'runs', number, 'warm_start')}: {wanted!r} {what} ({error})."
            ) from error
    return out


def warm_folder(
    place: str,  # of `warm_starts`
    wanted: str,  # the condition, where it is a run's folder of checkpoints
) -> Path:
    """The ControlNet to start from, the average where one was kept."""
    from train import checkpoint, integrity
    from train.integrity import folder_to_sample

    steps = checkpoint.folders(Path(place))
    newest = integrity.read(steps[-1]) if steps else None  # and no other in its stead
    return folder_to_sample(newest.path / wanted if newest else Path(place))
