"""What a run logs while it trains: rows of train.jsonl, with the conditioning gain and the convergence step;
grids of samples; TensorBoard.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from train import grids, held_out, precision
from train.base import Base
from train.batches import Pairs
from train.log_file import LOG, LogRow, lines_text, read_log, write_log
from train.options import Options
from train.out_of_memory import is_out_of_memory
from train.step import DiffusionModel
from train.tensorboard import TensorBoard

GRIDS = "grids"
TENSORBOARD = "tensorboard"


class TrainLogger:
    """Of the one process that writes; the convergence step follows from the rows, so no resume moves it."""

    def __init__(
        self,
        base: Base,
        model: DiffusionModel,  # as it trains
        pairs: Pairs | None,  # held out
        options: Options,
        out: Path,
        images: int,  # seen so far: rows beyond are of steps that are now done again
        log: Callable[[LogRow], None],  # gets every row too
    ) -> None:
        self.base, self.pairs, self.options, self.out = base, pairs, options, out
        self.images, self.log = images, log
        damaged = read_log(out / LOG)[1]
        self.rows = truncate(out / LOG, images)
        self.tensorboard = TensorBoard(out / TENSORBOARD, images)
        if damaged:
            self.note(
                images,
                f"{LOG} was damaged: {lines_text(damaged)} told nothing and"
                f" {'is' if len(damaged) == 1 else 'are'} left out",
            )
        self.held_out: held_out.HeldOut | None = None
        if pairs is not None and len(pairs) and options.held_out:
            locked = model.unet
            if options.unlock != "none":
                locked = precision.locked(base.unet, options.precision, base.device)
            self.held_out = held_out.HeldOut(
                base,
                locked,
                pairs,
                list(model.controlnets),
                count=options.held_out,
                seed=options.seed,
                connect=options.connect,
            )

    def write(
        self,
        row: LogRow,
        model: DiffusionModel,
        *,
        measure: bool,  # the conditioning gain
        draw: bool,  # the grids
        notes: Sequence[str] = (),  # of the steps behind the row
    ) -> None:
        if measure and self.held_out is not None:
            row["held_out"] = self.held_out.measure(model.unet, model.controlnets)
            row["alarm"] = held_out.convergence_steps([*self.rows, row])
        self._append(row)
        for sentence in notes:
            self.note(row["images"], sentence)
        if draw and self.options.grids and self.pairs is not None and len(self.pairs):
            try:
                self._draw(row["images"], model, self.pairs)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                print(  # the checkpoint comes next, and matters more
                    f"no memory is left to draw {self.out / GRIDS} at {row['images']} images: lower grids, or"
                    " set it to 0"
                )

    def start(self, model: DiffusionModel, notes: Sequence[str], *, warm: bool) -> None:
        """Before the first step: notes, and of a warm start the conditioning gain that it brings along, as a
        row of no images: what the training itself adds is counted from there.
        """
        fresh = not self.images and all("note" in row for row in self.rows)
        if warm and fresh and self.held_out is not None:
            gain = self.held_out.measure(model.unet, model.controlnets)
            self._append({"images": 0, "step": 0, "held_out": gain})
        for sentence in notes:
            self.note(self.images, sentence)

    def note(self, images: int, sentence: str) -> None:
        """What a person should know of the run: a row of its own, once, so that it is said by whoever follows
        the log, and stays.
        """
        row: LogRow = {"images": images, "step": images // self.options.batch, "note": sentence}
        if row not in self.rows:
            self._append(row)

    def _append(self, row: LogRow) -> None:
        self.rows.append(row)
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.tensorboard.add(row)
        self.log(row)

    def _draw(self, images: int, model: DiffusionModel, pairs: Pairs) -> None:
        for condition, controlnet in model.controlnets.items():
            picture = grids.write(
                self.out / GRIDS / condition / f"images-{images:09d}.png",
                self.base,
                model.unet,
                controlnet,
                pairs,
                grids.Grid(condition, self.options.grids, self.options.seed),
                images,
            )
            self.tensorboard.picture(f"grid/{condition}", picture, images)


def truncate(
    path: Path,
    images: int,  # seen at the checkpoint
) -> list[LogRow]:  # the rows that stay
    """Rows beyond the checkpoint belong to steps that are now done again; a torn last line goes with them,
    and what is no row.
    """
    if not path.exists():
        return []
    kept = [row for row in read_log(path)[0] if row["images"] <= images]
    write_log(path, kept)
    return kept
