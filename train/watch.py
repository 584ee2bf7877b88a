"""What a run tells while it trains: one JSON line per log, the loss gap and its alarm, grids of samples,
TensorBoard.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from train import grids, held_out, meter, precision
from train.base import Base
from train.batches import Pair, Pairs
from train.board import Board
from train.log import LOG as LOG
from train.log import lines_text, read_log, write_log
from train.options import Options

GRIDS = "grids"
BOARD = "tensorboard"


class Watch:
    """Of the one process that writes; the log is the truth, and what can be told from it (the alarm) is."""

    def __init__(
        self,
        base: Base,
        unet: Any,  # as it computes, on the device
        pairs: Pairs | None,  # held out
        conditions: list[str],
        options: Options,
        out: Path,
        images: int,  # seen so far: rows beyond are of steps that are now done again
        *,
        like: Pair,  # any pair that trains: what an image costs is told from its size
        device: str,
        processes: int,
    ) -> None:
        self.base, self.pairs, self.options, self.out, self.device = base, pairs, options, out, device
        self.like, self.processes = like, processes
        damaged = read_log(out / LOG)[1]
        self.rows = truncate(out / LOG, images)
        self.board = Board(out / BOARD, images)
        if damaged:
            self.note(
                images,
                f"{LOG} was damaged: {lines_text(damaged)} told nothing and"
                f" {'is' if len(damaged) == 1 else 'are'} left out",
            )
        locked = unet if options.unlock == "none" else precision.locked(base.unet, options.precision, device)
        self.held_out: held_out.HeldOut | None = None
        if pairs is not None and len(pairs) and options.held_out:
            self.held_out = held_out.HeldOut(
                base,
                locked,
                pairs,
                conditions,
                count=options.held_out,
                seed=options.seed,
                device=device,
                connect=options.connect,
            )
        self.flops: float | None = None

    def write(
        self,
        row: dict[str, Any],  # images, step, losses, …
        unet: Any,
        controlnets: Mapping[str, Any],
        speed: float,  # images per second
        *,
        measure: bool,  # the loss gap
        draw: bool,  # the grids
    ) -> dict[str, Any]:  # the row as it was logged
        row["mfu"] = self._utilisation(unet, controlnets, speed)
        if measure and self.held_out is not None:
            row["held_out"] = self.held_out.measure(unet, controlnets)
            row["alarm"] = held_out.alarms([*self.rows, row])
        self._tell(row)
        if draw and self.options.grids and self.pairs is not None and len(self.pairs):
            try:
                self._draw(row["images"], unet, controlnets)
            except torch.OutOfMemoryError:  # the checkpoint comes next, and matters more
                print(
                    f"no memory is left to draw {self.out / GRIDS} at {row['images']} images: lower grids, or"
                    " set it to 0"
                )
        return row

    # the row as it was logged; None = there is one, or no need
    def begin(self, unet: Any, controlnets: Mapping[str, Any]) -> dict[str, Any] | None:
        """The loss gap that warm starts bring along, as a row of no images: what the training itself adds is
        told from there.
        """
        if self.held_out is None or any("note" not in row for row in self.rows):
            return None
        row: dict[str, Any] = {"images": 0, "step": 0, "held_out": self.held_out.measure(unet, controlnets)}
        return self._tell(row)

    # the row as it was logged; None = there is one
    def note(self, images: int, sentence: str) -> dict[str, Any] | None:
        """What a person should know of the run: a row of its own, so that it is said by whoever follows the
        log, and stays.
        """
        row = {"images": images, "step": images // self.options.batch, "note": sentence}
        return None if row in self.rows else self._tell(row)

    def _tell(self, row: dict[str, Any]) -> dict[str, Any]:
        self.rows.append(row)
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.board.add(row)
        return row

    def _draw(self, images: int, unet: Any, controlnets: Mapping[str, Any]) -> None:
        assert self.pairs is not None
        for condition, controlnet in controlnets.items():
            picture = grids.write(
                self.out / GRIDS / condition / f"images-{images:09d}.png",
                self.base,
                unet,
                controlnet,
                self.pairs,
                condition,
                count=self.options.grids,
                seed=self.options.seed,
                images=images,
            )
            self.board.picture(f"grid/{condition}", picture, images)

    def _utilisation(self, unet: Any, controlnets: Mapping[str, Any], speed: float) -> float:
        """Model FLOP/s as a share of what a matrix product reaches here, in the precision of the passes."""
        if self.flops is None:
            channels = [net.config["conditioning_channels"] for net in controlnets.values()]
            height, width = self.like.mean.shape[1:]
            self.flops = meter.flops_per_image(
                unet,
                channels,
                height=height,
                width=width,
                tokens=len(self.like.text),
                connect=self.options.connect,
                unlock=self.options.unlock,
            )
        return (
            self.flops
            * speed
            / self.processes
            / meter.matmul_rate(self.device, precision.dtype_of(self.options.precision))
        )


def truncate(
    path: Path,
    images: int,  # seen at the checkpoint
) -> list[dict[str, Any]]:  # the rows that stay
    """Rows beyond the checkpoint belong to steps that are now done again; a torn last line goes with them,
    and what is no row.
    """
    if not path.exists():
        return []
    kept = [row for row in read_log(path)[0] if row["images"] <= images]
    write_log(path, kept)
    return kept
