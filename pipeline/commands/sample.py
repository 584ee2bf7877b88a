"""One image from one ControlNet: what a trainer tries first with a checkpoint.

What is known of it is not asked for.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from annotate import annotator, maps
from annotate.annotator import Step
from annotate.conditions import CONDITIONS
from pipeline import MillError, sources
from pipeline import plan as plans
from pipeline.benchmark.systems import readable
from pipeline.commands.detect import chain
from pipeline.dataset import canonical
from pipeline.experiment.base import RANDOM_BASE, device, load_base
from pipeline.manifest import Image
from pipeline.plan import Plan
from pipeline.sources import RawImage
from pipeline.sources.raw import Unreadable
from pipeline.storage import codec
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, Workspace, write_whole

NOTE = "controlmill.json"  # of a ControlNet that is shipped


@dataclass(frozen=True)
class Settings:
    """How to sample; the same settings and seed give the same image on the same device.

    None = as the checkpoint is known to, else usual.
    """

    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    controlnet_conditioning_scale: float | None = None  # of the ControlNet's residuals
    cfg_hint: Literal["both", "conditional"] | None = None  # as of the manifest's benchmark
    guess: bool = False  # the hint leads instead of the prompt
    start: float = 0.0  # shares of the steps between which the ControlNet works
    end: float = 1.0
    resolution: int | None = None  # a multiple of 64
    protocol: str = "cn10"


# under the names that notes of shipped ControlNets have
USUAL: dict[str, Any] = {"steps": 20, "guidance": 7.5, "scale": 1.0, "guide_hint": False}


@dataclass(frozen=True)
class Known:
    """What is recorded of a ControlNet beside its weights."""

    condition: str  # as its folder is called
    plan: Plan | None  # of the workspace in which it lies
    meta: dict[str, Any]  # of its checkpoint
    note: dict[str, Any]  # of one that is shipped


def sample(
    # mini/canny, a folder in the diffusers layout (step-…/<condition> of a run, or anyone's), a file, a hub
    # id
    checkpoint: str | Path,
    image: Path,
    prompt: str,  # "" with settings.guess: then the hint alone says what to draw
    out: Path,  # a PNG; the hint is written beside it
    *,
    condition: str | None,  # None: as the checkpoint's folder is called
    base: str | None,  # None: as the run's own record says
    is_hint: bool,  # the image is a drawn condition already
    settings: Settings,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Annotates the image, samples, and returns what was written; MillError with one sentence where that
    can't be.
    """
    from train import base as bases
    from train import checkpoint as checkpoints
    from train import sample as sampling

    if not 0 <= settings.start < settings.end <= 1:
        raise MillError(
            "--control-guidance-start and --control-guidance-end are shares of the steps,"
            f" 0 <= start < end <= 1, not {settings.start} and {settings.end}."
        )
    if settings.resolution is not None and settings.resolution % 64:
        raise MillError(
            f"--resolution {settings.resolution} is no multiple of 64: the VAE and the UNet halve a side six"
            " times."
        )
    try:
        folder = checkpoints.locate(checkpoint)
        checkpoints.check_controlnet(folder)
        known = _known(folder)
        loaded = load_base(
            base or _recorded_base(checkpoint, known), ("unet", "vae", "text_encoder"), device()
        )
        loaded, net = sampling.load_trained(folder, loaded)
    except checkpoints.Damaged as error:
        raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
    except (OSError, ValueError) as error:
        raise MillError(f"{error}.") from error
    if known.meta.get("base", loaded.fingerprint) != loaded.fingerprint:
        trained_on = known.meta.get("base_name", known.meta["base"])
        say(
            f"warning: {folder} was trained on the base {trained_on}, of which {loaded.name} is another"
            " version, or quite another base"
        )
    size, why = _size(known, loaded, settings)
    chosen, told = _chosen(known, settings)
    say(f"{size.resolution} pixels{', aspect ratio kept' if size.fit == 'bucket' else ''}, {why}; {told}")
    hint = _hint(image, condition, known, is_hint, size, settings.protocol, say)
    made = sampling.generate(
        loaded,
        net,
        hints=hint[None],
        text=bases.encode_text(loaded, [prompt]),
        empty_text=bases.encode_text(loaded, [""])[0],
        seeds=[settings.seed],
        height=hint.shape[0],
        width=hint.shape[1],
        guess=settings.guess,
        start=settings.start,
        end=settings.end,
        **chosen,
    )[0]
    beside = out.with_name(f"{out.stem}.hint.png")
    for path, pixels in ((out, made), (beside, hint)):
        data = codec.encode(pixels, "png")
        write_whole(path, lambda temporary, data=data: temporary.write_bytes(data), replace=True)  # type: ignore[misc]
    return [out, beside]


def _known(folder: Path) -> Known:
    """Of <workspace>/checkpoints/<run>/step-…/<condition>, also where only the step's folder was taken
    elsewhere, and of what is shipped.
    """
    from train import checkpoint as checkpoints
    from train import kinds
    from train.average import FOLDER

    place = folder.resolve()
    place = place.parent if place.name == FOLDER else place
    meta: dict[str, Any] = {}
    # a run's own was checked before; this is somebody's file of the same name
    with contextlib.suppress(checkpoints.Damaged):
        meta = checkpoints.meta_of(place.parent)
    plan, above = None, list(place.parents)[2:4]
    workspace = Workspace(above[1]) if len(above) == 2 and above[0].name == "checkpoints" else None
    if workspace is not None and workspace.manifest.is_file():
        plan = plans.make(
            plans.saved(workspace).model_copy(update={"workspace": str(workspace.root)}), here=False
        )
    note = kinds.read_object(place / NOTE) if (place / NOTE).is_file() else {}
    return Known(place.stem if place.is_file() else place.name, plan, meta, note)


def _recorded_base(checkpoint: str | Path, known: Known) -> str:
    """Of the workspace in which the checkpoint lies; of a ControlNet that is shipped, the base beside it."""
    from train import mini

    if mini.root(str(checkpoint)):
        return mini.NAME
    if known.plan is None or known.plan.manifest.train is None:
        raise MillError(
            f"{checkpoint} lies in no workspace that says on which base it was trained: name it with --base."
        )
    base = known.plan.manifest.train.base
    return str(known.plan.workspace.root / "base" / RANDOM_BASE) if base == RANDOM_BASE else base


# how images are scaled and cropped, and why so
def _size(known: Known, base: Any, settings: Settings) -> tuple[Image, str]:
    """The size that was trained at: at others a small network draws blobs."""
    sizes, fit = known.meta.get("sizes"), "bucket"
    # all buckets have at most the area of a square of the resolution, and the largest has nearly that
    if sizes:
        largest = -(-math.sqrt(max(height * width for height, width in sizes)) // 64) * 64
        fit, side, why = "crop" if len(sizes) == 1 else fit, int(largest), "as it was trained at"
    elif known.plan is not None:
        image = known.plan.manifest.image
        fit, side, why = image.fit, image.resolution, "as its workspace trains at"
    else:
        own = base.unet.config.sample_size or 64
        own = own if isinstance(own, int) else min(own)
        scale = 2 ** (len(base.vae.config.block_out_channels) - 1)
        fit, side, why = "crop", max(64, own * scale // 64 * 64), "the size of its base"
    if settings.resolution is not None:
        side, why = settings.resolution, "as you say"
    return Image(resolution=side, fit=fit, store="png"), why  # type: ignore[arg-type]


# for generate; the same in words
def _chosen(known: Known, settings: Settings) -> tuple[dict[str, Any], str]:
    """As its workspace evaluates it, since that is what its scores are of; as its maker advises, where it is
    shipped.
    """
    evaluated = known.plan.manifest.evaluate if known.plan is not None else None
    advice = evaluated.benchmark.stored(*USUAL) if evaluated else known.note.get("sampling", {})
    given = {
        "steps": settings.num_inference_steps,
        "guidance": settings.guidance_scale,
        "scale": settings.controlnet_conditioning_scale,
        "guide_hint": settings.cfg_hint and settings.cfg_hint == "conditional",
    }
    chosen = USUAL | advice | {key: value for key, value in given.items() if value is not None}
    told = (
        f"{chosen['steps']} steps, guidance"
        f" {chosen['guidance']:g}{' of the hint too' if chosen['guide_hint'] else ''}"
    )
    return chosen, told + (f", scale {chosen['scale']:g}" if chosen["scale"] != 1 else "")


def _hint(
    image: Path,
    condition: str | None,
    known: Known,
    is_hint: bool,
    size: Image,
    protocol: str,
    say: Callable[[str], None],
) -> np.ndarray:
    condition = condition or known.condition
    try:
        data, _ = sources.read(RawImage(str(image), ""))
        pixels = codec.decode(canonical.canonical(data, size).encoded)
    except Unreadable as error:
        raise MillError(f"{image}: {error}.") from error
    if is_hint:
        return pixels
    if condition not in CONDITIONS:
        raise MillError(
            f"The checkpoint's folder {condition!r} is no condition's name: say which it is with --condition,"
            " or give a --hint."
        )
    steps = _steps(condition, known.plan)
    say(f"{condition} by the detector {steps[-1].detector}")
    found = annotator.annotate([pixels], [sources.image_id(data)], steps)[condition][0]
    if found.map is None or found.status != "ok":
        raise MillError(f"{image}: {condition}: {found.reason}.")
    return maps.render(found.map, protocol=protocol)


def _steps(condition: str, plan: Plan | None) -> list[Step]:  # parents first
    """What made the hints that it was trained on; maps that came with their images are drawn by what reads
    them again, else by `auto`.
    """
    if plan is None or condition not in plan.conditions or not readable(plan, condition):
        return chain(condition)
    planned = plan.reader(condition)
    if planned.lack:
        raise MillError(f"{condition}: {planned.lack}")
    return [*(_steps(planned.step.parent, plan) if planned.step.parent else []), planned.step]
