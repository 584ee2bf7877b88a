"""The locked base of the manifest: where it is, its fingerprint, loaded once a process, and the key of its
latents.
"""

import functools
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.experiment.texts import TextKeys
from pipeline.plan import Plan
from pipeline.storage import folders, stores
from pipeline.storage.workspace import fingerprint
from train.samplers import Precision

RANDOM_BASE = "random"  # `base: random`
ON_RANDOM_WEIGHTS = (
    "The base model has random weights: it was never trained. What is generated and scored here shows that"
    " every step of the job runs, not what a ControlNet can do. Set train.base to a trained model for results"
    " that mean something."
)


def base_spec(plan: Plan) -> str:
    """What train.base.load takes; the random base is made in the workspace when first asked for."""
    from train import mini, sums

    spec = plan.manifest.base
    assert spec is not None
    if spec != RANDOM_BASE:
        here = Path(spec).expanduser()
        # workers may stand in another folder
        return str(here.resolve()) if spec != mini.NAME and here.exists() else spec
    folder = plan.workspace.root / "base" / RANDOM_BASE
    folders.bring(folder)
    if not folder.exists():
        from train.random_base import build_random

        build_random(folder)
        folders.save(folder)
    for wrong in sums.problems(folder):
        raise MillError(
            f"train.base: {wrong}: `controlmill verify {plan.workspace.address} --repair` takes the base out,"
            " and the next run makes it again."
        )
    return str(folder)


def base_fingerprint(spec: str) -> str:
    """16 hex digits that tell a base from others, by its configs and weights. MillError where there is no
    such base, or it can't be read.
    """
    from train import base

    try:
        return base.fingerprint(spec)
    except (ValueError, OSError) as error:
        raise MillError(f"train.base: {error}") from error


def latent_key(
    plan: Plan,
    base_mark: str,
    *,
    # whether the shards hold mirror images too; None = as the manifest's runs need
    mirrored: bool | None = None,
) -> str:
    captions = {"captions": [plan.captions.key, plan.captions.when]} if plan.captions else {}
    both = {"flips": True} if (flips(plan) if mirrored is None else mirrored) else {}
    return fingerprint({"base": base_mark, "image_key": plan.image_key} | captions | both)


def text_keys(plan: Plan, spec: str) -> TextKeys:
    """Which texts the manifest's runs see, and where they lie. MillError as of `base_fingerprint`."""
    from train import base

    mark = base_fingerprint(spec)
    return TextKeys(
        encoder=fingerprint({"text_encoder": base.text_fingerprint(spec)}),
        latents=latent_key(plan, mark),
        drawn=plan.manifest.draws_captions,
        flips=flips(plan),
    )


def flips(plan: Plan) -> bool:
    """Whether some run sees mirrored images, whose latents are no mirrored latents."""
    return plan.manifest.train is not None and any(run.flip > 0 for run in plan.manifest.train.runs)


@functools.cache
def load_base(spec: str, parts: tuple[str, ...], device: str) -> Any:
    """Once a process: workers keep the networks between their tasks."""
    return _load(spec, parts, device)


def _load(spec: str, parts: tuple[str, ...], device: str) -> Any:
    from train import base

    if stores.address_of(spec):  # of another machine
        folders.bring(Path(spec))
        spec = str(stores.located(Path(spec)))
    return base.load(spec, device=device, parts=parts)


@functools.cache
def load_sampler(spec: str, device: str, precision: Precision) -> Any:
    """The base as it draws. In bf16 it has networks of its own, of which `load_base` knows nothing."""
    from train.precision import for_sampling, settled

    parts, settled_here = ("unet", "vae", "text_encoder"), settled(precision, device)
    if settled_here == "fp32":
        return load_base(spec, parts, device)
    return for_sampling(_load(spec, parts, device), settled_here)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(which: str) -> str:
    """As provenance tells it: numbers of two kinds of GPU may differ in their last digits."""
    if which == "cpu":
        return which
    import torch

    return f"{which} ({torch.cuda.get_device_name(which)})"
