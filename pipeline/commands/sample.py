"""One image from one ControlNet: what a trainer tries first with a checkpoint.

What is known of it is not asked for.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from annotate import annotator, maps
from annotate.annotator import Step
from annotate.conditions import CONDITIONS
from pipeline import MillError, sources
from pipeline import plan as plans
from pipeline.benchmark.systems import readable
from pipeline.commands.detect import chain
from pipeline.dataset import images
from pipeline.experiment.base import RANDOM_BASE, device, load_base
from pipeline.experiment.runs import controlnet_here
from pipeline.manifest import Image
from pipeline.manifest.evaluation import GUIDE_HINT, cfg_hint_of
from pipeline.plan import Plan
from pipeline.sources import RawImage
from pipeline.sources.raw import Unreadable
from pipeline.storage import codec, copies, stores
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, Workspace, write_whole
from train.samplers import TITLES, CfgHint, Sampler, scheduler

NOTE = "controlmill.json"  # of a ControlNet that is shipped


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn from what."""

    # mini/canny, a folder in the diffusers layout (step-…/<condition> of a run, or anyone's), a file, a hub
    # id
    checkpoint: str | Path
    image: Path
    prompt: str  # "" with Settings.guess: then the hint alone says what to draw
    out: Path  # a PNG; the hint is written beside it
    condition: str | None = None  # None: as the checkpoint's folder is called
    base: str | None = None  # None: as the run's own record says
    is_hint: bool = False  # the image is a drawn condition already


@dataclass(frozen=True)
class Settings:
    """How to sample; the same settings and seed give the same image on the same device.

    None = as the checkpoint is known to, else usual.
    """

    seed: int = 0
    sampler: Sampler | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    controlnet_conditioning_scale: float | None = None  # of the ControlNet's residuals
    cfg_hint: CfgHint | None = None  # as of the manifest's benchmark
    guess: bool = False  # the hint leads instead of the prompt
    start: float = 0.0  # shares of the steps between which the ControlNet works
    end: float = 1.0
    resolution: int | None = None  # a multiple of 64
    protocol: str = "cn10"


@dataclass(frozen=True)
class Sampling:
    """What a workspace or a note may advise, under the names that notes of shipped ControlNets have; here
    what is usual.
    """

    steps: int = 20
    guidance: float = 7.5
    scale: float = 1.0
    guide_hint: bool | str = False  # a value of GUIDE_HINT
    sampler: Sampler = "ddim"


@dataclass(frozen=True)
class Known:
    """What is recorded of a ControlNet beside its weights."""

    condition: str  # as its folder is called
    plan: Plan | None  # of the workspace in which it lies
    base: str | None  # fingerprint of the base that it was trained on
    base_name: str | None
    sizes: tuple[tuple[int, int], ...]  # height, width of what it was trained on
    advice: Sampling | None  # of one that is shipped


@dataclass(frozen=True)
class Loaded:
    """A ControlNet and its base, ready to sample."""

    folder: Path
    known: Known
    base: Any  # train.base.Base
    controlnet: Any  # train.controlnet.ControlNet


def sample(
    request: Request, settings: Settings, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Annotates the image, samples, and returns what was written; MillError with one sentence where that
    can't be.
    """
    from train import encoders
    from train import sample as sampling

    _check(settings)
    loaded = _load(request, say)
    known = loaded.known
    size, why = _size(known, loaded.base, settings)
    chosen = _chosen(known, settings)
    try:
        scheduler(loaded.base.scheduler, chosen.sampler, chosen.steps)
    except ValueError as error:
        raise MillError(f"--num-inference-steps: {error}.") from error
    kept = {"bucket": ", aspect ratio kept", "squash": ", squashed"}.get(size.fit, "")
    say(f"{size.resolution} pixels{kept}, {why}; {_sentence(chosen)}")
    hint = _hint(request, known, size, settings.protocol, say)
    picture = sampling.generate(
        loaded.base,
        loaded.controlnet,
        hints=hint[None],
        prompt_embeds=encoders.encode_text(loaded.base, [request.prompt]),
        negative_prompt_embeds=encoders.encode_text(loaded.base, [""])[0],
        seeds=[settings.seed],
        settings=sampling.SamplingSettings(
            height=hint.shape[0],
            width=hint.shape[1],
            sampler=chosen.sampler,
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance,
            controlnet_conditioning_scale=chosen.scale,
            cfg_hint=cfg_hint_of(chosen.guide_hint),
            guess_mode=settings.guess,
            control_guidance_start=settings.start,
            control_guidance_end=settings.end,
        ),
    )[0]
    beside = request.out.with_name(f"{request.out.stem}.hint.png")
    for path, pixels in ((request.out, picture), (beside, hint)):
        data = codec.encode(pixels, "png")
        write_whole(path, lambda temporary, data=data: temporary.write_bytes(data), replace=True)  # type: ignore[misc]
    return [request.out, beside]


def _check(settings: Settings) -> None:
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


def _load(request: Request, say: Callable[[str], None]) -> Loaded:
    """Warns where the base is not the one that the ControlNet was trained on."""
    from train import integrity
    from train import sample as sampling

    try:
        folder = _located(request.checkpoint)
        integrity.check_controlnet(folder)
        known = _known(folder)
        base = load_base(
            request.base or _recorded_base(request.checkpoint, known),
            ("unet", "vae", "text_encoder"),
            device(),
        )
        base, controlnet = sampling.load_trained(folder, base)
    except integrity.Damaged as error:
        raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
    except (OSError, ValueError) as error:
        raise MillError(f"{error}.") from error
    if known.base not in (None, base.fingerprint):
        say(
            f"warning: {folder} was trained on the base {known.base_name or known.base}, of which {base.name}"
            " is another version, or quite another base"
        )
    return Loaded(folder, known, base, controlnet)


def _known(folder: Path) -> Known:
    """Of <workspace>/checkpoints/<run>/step-…/<condition>, also where only the step's folder was taken
    elsewhere, and of what is shipped.
    """
    from train import integrity, kinds
    from train.integrity import AVERAGE

    place = folder.resolve()
    place = place.parent if place.name == AVERAGE else place
    meta = {}
    # a run's own was checked before; this is somebody's file of the same name
    with contextlib.suppress(integrity.Damaged):
        meta = integrity.meta_of(place.parent)
    plan, above = None, list(place.parents)[2:4]
    workspace = Workspace(above[1]) if len(above) == 2 and above[0].name == "checkpoints" else None
    if workspace is not None and copies.has_copy(workspace.manifest):
        plan = plans.make(
            plans.saved(workspace).model_copy(update={"workspace": str(workspace.root)}), here=False
        )
    note = kinds.read_object(place / NOTE) if (place / NOTE).is_file() else {}
    return Known(
        condition=place.stem if place.is_file() else place.name,
        plan=plan,
        base=meta.get("base"),
        base_name=meta.get("base_name"),
        sizes=tuple((height, width) for height, width in meta.get("sizes") or ()),
        advice=Sampling(**note["sampling"]) if "sampling" in note else None,
    )


def _located(checkpoint: str | Path) -> Path:
    from train import pretrained

    if stores.address_of(checkpoint):
        return controlnet_here(Path(checkpoint))
    return pretrained.locate(checkpoint)


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
    fit = "bucket"
    # all buckets have at most the area of a square of the resolution, and the largest has nearly that
    if known.sizes:
        largest = -(-math.sqrt(max(height * width for height, width in known.sizes)) // 64) * 64
        fit, side, why = "crop" if len(known.sizes) == 1 else fit, int(largest), "as it was trained at"
    elif known.plan is not None:
        image = known.plan.manifest.image
        fit, side, why = image.fit, image.resolution, "as its workspace trains at"
    else:
        own = base.unet.config.sample_size or 64
        own = own if isinstance(own, int) else min(own)
        scale = 2 ** (len(base.vae.config.block_out_channels) - 1)
        fit, side, why = "crop", max(64, own * scale // 64 * 64), "the size of its base"
    if known.plan is not None and known.plan.manifest.image.fit == "squash":
        fit = "squash"  # all of it has one size, as what is cropped
    if settings.resolution is not None:
        side, why = settings.resolution, "as you say"
    return Image(resolution=side, fit=fit, store="png"), why  # type: ignore[arg-type]


def _chosen(known: Known, settings: Settings) -> Sampling:
    """As its workspace evaluates it, since that is what its scores are of; as its maker advises, where it is
    shipped.
    """
    evaluated = known.plan.manifest.evaluate if known.plan is not None else None
    names = [each.name for each in fields(Sampling)]
    if evaluated:
        advice = Sampling(**evaluated.benchmark.stored(*names))
    else:
        advice = known.advice or Sampling()
    given: dict[str, Any] = {
        "steps": settings.num_inference_steps,
        "guidance": settings.guidance_scale,
        "scale": settings.controlnet_conditioning_scale,
        "guide_hint": GUIDE_HINT[settings.cfg_hint] if settings.cfg_hint else None,
        "sampler": settings.sampler,
    }
    return replace(advice, **{name: value for name, value in given.items() if value is not None})


def _sentence(chosen: Sampling) -> str:
    weights = ", weighted by resolution" * (chosen.guide_hint == "weighted")
    of_hint = f" of the hint too{weights}" if chosen.guide_hint else ""
    scale = f", scale {chosen.scale:g}" if chosen.scale != 1 else ""
    return f"{TITLES[chosen.sampler]}, {chosen.steps} steps, guidance {chosen.guidance:g}{of_hint}{scale}"


def _hint(
    request: Request, known: Known, size: Image, protocol: str, say: Callable[[str], None]
) -> np.ndarray:
    image, condition = request.image, request.condition or known.condition
    try:
        data = sources.read(RawImage(str(image), ""))
        pixels = codec.decode(images.canonical(data, size).encoded)
    except Unreadable as error:
        raise MillError(f"{image}: {error}.") from error
    if request.is_hint:
        return pixels
    if condition not in CONDITIONS:
        raise MillError(
            f"The checkpoint's folder {condition!r} is no condition's name: say which it is with --condition,"
            " or give a --hint."
        )
    steps = _steps(condition, known.plan)
    say(f"{condition} by the detector {steps[-1].detector}")
    annotation = annotator.annotate([pixels], [sources.image_id(data)], steps)[condition][0]
    if annotation.map is None or annotation.status != "ok":
        raise MillError(f"{image}: {condition}: {annotation.reason}.")
    return maps.render(annotation.map, protocol=protocol)


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
