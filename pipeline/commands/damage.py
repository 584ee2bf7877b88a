"""What of a workspace is not what was written, beside its catalog and its shards: the copy of the manifest,
the base, streams, the report's pictures, checkpoints and what their runs tell.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import plan as plans
from pipeline.catalog import Catalog
from pipeline.sources import spool
from pipeline.sources.columns import first_line
from pipeline.storage import folders
from pipeline.storage.workspace import ASIDE, TEMPORARY, Workspace, set_aside

A_FOLDER = "a folder lies in its place"
AGAIN = "the next run makes it again"
TRAINED_AGAIN = "the next run makes it again, where the manifest still asks for its training"


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written, or a folder that is of use only as a whole."""

    place: str  # below the workspace
    sentences: list[str]
    then: str  # what becomes of it, once it is taken out
    take_out: Callable[[], object]


def damaged(
    workspace: Workspace, path: Path, what: str, then: str, take_out: Callable[[], object] | None = None
) -> Damage:
    """One that a sentence tells of; by default the file is taken out alone."""
    place = workspace.relative(path)
    return Damage(place, [f"{place}: {what}"], then, take_out or partial(set_aside, path))


def other_files(workspace: Workspace) -> Iterator[Damage]:
    """Of all but catalog, shards and checkpoints."""
    path = workspace.manifest
    if what := plans.damage(workspace):
        then = "`controlmill run MANIFEST` with yours goes on and writes it again"
        yield damaged(workspace, path, f"damaged: {what}", then)
    yield from _base(workspace)
    for path in spool.problems(workspace.spool):
        what = A_FOLDER if path.is_dir() else "damaged" if path.exists() else "missing"
        then = "the next run reads the stream again"
        yield damaged(workspace, path, what, then, partial(spool.take_out, path))
    if not workspace.is_remote:  # whose pictures are written from elsewhere
        yield from _pictures(workspace)


def _base(workspace: Workspace) -> Iterator[Damage]:
    from train import sums

    folders.bring_each(workspace.root / "base")
    for folder in sorted((workspace.root / "base").glob("*/")):
        wrong = sums.problems(folder)
        if wrong and not folder.name.startswith(TEMPORARY):
            yield Damage(workspace.relative(folder), wrong, AGAIN, partial(folders.remove, folder))


def _pictures(workspace: Workspace) -> Iterator[Damage]:
    """Each is called after the hash of its bytes."""
    for folder in (workspace.report / "pictures", workspace.report / "leaderboard" / "pictures"):
        for path in sorted(folder.glob("*")):
            what = A_FOLDER if path.is_dir() else "" if _is_named_after(path) else "damaged"
            if what and not path.name.startswith((TEMPORARY, ASIDE)):
                yield damaged(workspace, path, what, "the next report writes it again")


def _is_named_after(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem)


def runs(workspace: Workspace) -> list[Path]:
    """The folder of each training run."""
    every = (workspace.root / "checkpoints").glob("*/")
    return sorted(path for path in every if not path.name.startswith(TEMPORARY))


def checkpoints_of(catalog: Catalog, out: Path) -> Iterator[Damage]:
    """Damaged files of the checkpoints of a run, of its log, and of the pictures that it drew."""
    from train import checkpoint, integrity

    steps = checkpoint.folders(out)
    for folder in steps:
        wrong = integrity.problems(folder)
        if wrong and folder.exists():  # a run under way keeps the newest only
            then = TRAINED_AGAIN if folder == steps[-1] else "its run goes on without it"
            place = catalog.workspace.relative(folder)
            yield Damage(place, wrong, then, partial(_remove_checkpoint, catalog, folder))
    if steps:
        yield from _log(catalog.workspace, out)
    for path in sorted((out / "grids").rglob("*.png")):
        if what := _not_drawn(path):
            then = "the picture is lost, and nothing is made from it"
            yield damaged(catalog.workspace, path, what, then, partial(_remove_from_run, path, out))


def _remove_checkpoint(catalog: Catalog, folder: Path) -> None:
    shutil.rmtree(folder)
    folders.save(folder.parent)
    with catalog.transaction() as connection:
        place = catalog.workspace.relative(folder)
        connection.execute("UPDATE runs SET status = 'incomplete' WHERE checkpoint = ?", [place])


def _log(workspace: Workspace, out: Path) -> Iterator[Damage]:
    """Lines that are none, and an end before the newest checkpoint, which is written after its line."""
    from train import checkpoint, log_file

    path, newest = out / log_file.LOG, checkpoint.newest(out)
    rows, lines = log_file.read_log(path)
    told = max((row["images"] for row in rows), default=0)
    is_short = newest is not None and told < newest.images
    what = f"{log_file.lines_text(lines)}: damaged, and passed over by whoever reads it" if lines else ""
    if is_short and newest is not None:
        what = f"ends at {told} of {newest.images} images"
    if path.is_dir():
        what = A_FOLDER

    def take_out() -> None:
        set_aside(path)
        note: log_file.LogRow = {"images": 0, "note": f"{path.name} was damaged, and some of it is lost"}
        if newest is not None:
            note |= {"images": newest.images, "step": newest.step}
        log_file.write_log(path, [*rows, note] if is_short else rows)
        folders.save(out)

    if what:
        then = "what stood there is lost, and nothing is made from it but curves"
        yield damaged(workspace, path, what, then, take_out)


def _not_drawn(path: Path) -> str:
    """What is wrong with a PNG; '' = it has the sums that it was written with."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()
    except IsADirectoryError:
        return A_FOLDER
    except (OSError, ValueError, SyntaxError) as error:
        return f"damaged: {first_line(error)}"
    return ""


def _remove_from_run(path: Path, out: Path) -> None:
    set_aside(path)
    folders.save(out)
