"""One image from one ControlNet, with no workspace: what a trainer tries first with a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotate import annotator, maps
from annotate.conditions import CONDITIONS
from pipeline import MillError, canonical, manifest, sources
from pipeline.canonical import Unreadable
from pipeline.detect import chain
from pipeline.manifest import Image
from pipeline.sources import RawImage
from pipeline.stages.encode import RANDOM_BASE, device, load_base
from pipeline.workspace import write_whole


@dataclass(frozen=True)
class Settings:
    """How to sample; the same settings and seed give the same image on the same device."""

    seed: int = 0
    steps: int = 20
    guidance: float = 7.5
    scale: float = 1.0  # of the ControlNet's residuals
    guide_hint: bool = False  # guidance strengthens the hint too
    guess: bool = False  # the hint leads instead of the prompt
    start: float = 0.0  # shares of the steps between which the ControlNet works
    end: float = 1.0
    resolution: int = 512
    protocol: str = "cn10"


def sample(
    checkpoint: Path,  # a ControlNet in the diffusers layout: step-…/<condition> of a run, or anyone's
    image: Path,
    prompt: str,  # "" with settings.guess: then the hint alone says what to draw
    out: Path,  # a PNG; the hint is written beside it
    *,
    condition: str | None,  # None: as the checkpoint's folder is called
    base: str | None,  # None: as the run's own record says
    is_hint: bool,  # the image is a drawn condition already
    settings: Settings,
) -> list[Path]:
    """Annotates the image, samples, and returns what was written; MillError with one sentence where that can't be."""
    from train import base as bases
    from train import sample as sampling

    if not 0 <= settings.start < settings.end <= 1:
        raise MillError(f"--start and --end are shares of the steps, 0 <= start < end <= 1, not {settings.start} and {settings.end}.")
    hint = _hint(image, condition or checkpoint.name, is_hint, settings)
    try:
        loaded = load_base(base or _recorded_base(checkpoint), ("unet", "vae", "text_encoder"), device())
        loaded, net = sampling.load_trained(checkpoint, loaded)
    except (OSError, ValueError) as error:
        raise MillError(f"{error}.") from error
    made = sampling.generate(
        loaded, net, hints=hint[None], text=bases.encode_text(loaded, [prompt]), empty_text=bases.encode_text(loaded, [""])[0],
        seeds=[settings.seed], height=hint.shape[0], width=hint.shape[1], steps=settings.steps, guidance=settings.guidance, scale=settings.scale,
        guide_hint=settings.guide_hint, guess=settings.guess, start=settings.start, end=settings.end,
    )[0]  # fmt: skip
    beside = out.with_name(f"{out.stem}.hint.png")
    for path, pixels in ((out, made), (beside, hint)):
        data = canonical.encode(pixels, "png")
        write_whole(path, lambda temporary, data=data: temporary.write_bytes(data), replace=True)  # type: ignore[misc]
    return [out, beside]


def _hint(image: Path, condition: str, is_hint: bool, settings: Settings) -> np.ndarray:
    try:
        data, _ = sources.read(RawImage(str(image), ""))
        pixels = canonical.decode(canonical.canonical(data, Image(resolution=settings.resolution, store="png")).encoded)
    except Unreadable as error:
        raise MillError(f"{image}: {error}.") from error
    if is_hint:
        return pixels
    if condition not in CONDITIONS:
        raise MillError(
            f"The checkpoint's folder {condition!r} is no condition's name: say which it is with --condition, or give a --hint."
        )
    found = annotator.annotate([pixels], [sources.image_id(data)], chain(condition))[condition][0]
    if found.map is None or found.status != "ok":
        raise MillError(f"{image}: {condition}: {found.reason}.")
    return maps.render(found.map, protocol=settings.protocol)


def _recorded_base(checkpoint: Path) -> str:
    """Of the workspace in which the checkpoint lies: <workspace>/checkpoints/<run>/step-…/<condition>."""
    places = checkpoint.resolve().parents
    saved = places[3] / "manifest.yaml" if len(places) > 3 else None
    train = manifest.load(saved).train if saved is not None and saved.is_file() else None
    if train is None or saved is None:
        raise MillError(f"{checkpoint} lies in no workspace that says on which base it was trained: name it with --base.")
    return str(saved.parent / "base" / RANDOM_BASE) if train.base == RANDOM_BASE else train.base
