"""Canonical images -> VAE moments and text embeddings of the locked base, once for all conditions."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import MillError, canonical, shards
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.plan import Plan
from pipeline.stages.parts import make_missing, told
from pipeline.workspace import fingerprint

BATCH = 4
RANDOM_BASE = "random"  # `base: random`


def base_spec(plan: Plan) -> str:
    """What train.base.load takes; the random base is made in the workspace when first asked for."""
    from train import base

    assert plan.manifest.train is not None
    spec = plan.manifest.train.base
    if spec != RANDOM_BASE:
        return spec
    folder = plan.workspace.root / "base" / RANDOM_BASE
    if not folder.exists():
        base.build_random(folder)
    return str(folder)


def base_fingerprint(spec: str) -> str:
    from train import base

    try:
        return base.fingerprint(spec)
    except (ValueError, OSError) as error:
        raise MillError(f"train.base: {error}") from error


def latent_key(plan: Plan, base_mark: str) -> str:
    captions = {"captions": [plan.captions.key, plan.captions.when]} if plan.captions else {}
    return fingerprint({"base": base_mark, "image_key": plan.image_key} | captions)


@functools.cache
def load_base(spec: str, parts: tuple[str, ...], device: str) -> Any:
    """Once a process: workers keep the networks between their tasks."""
    from train import base

    return base.load(spec, device=device, parts=parts)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def encode(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    workspace, spec = plan.workspace, base_spec(plan)
    key = latent_key(plan, base_fingerprint(spec))
    parts: dict[int, list[tuple[int, str, str]]] = {}
    for part, row, image_id, caption in catalog.query(CAPTIONED):
        parts.setdefault(part, []).append((row, image_id, caption))
    committed = catalog.committed("latents", key)
    jobs: dict[Path, Job] = {}
    for part, members in parts.items():
        if part in committed:
            continue
        path = workspace.latents(key, part)
        args = {
            "path": str(path), "images": str(workspace.images(plan.image_key, part)), "base": spec,
            "captions": {row: caption for row, _, caption in members},
            "facts": {"kind": "latents", "key": key, "image_key": plan.image_key, "part": part, "made_from": shards.made_from(key, members)},
        }  # fmt: skip
        jobs[path] = Job(f"encode part {part}", args, tuple(row for row, *_ in members))
    return told(make_missing(catalog, cluster, encode_part, jobs, label="encode", gpus=1), "images")


CAPTIONED = """SELECT shards.part, images.row, image_id, coalesce(caption, '') FROM images JOIN shards ON shards.path = images.shard
               LEFT JOIN captions USING (image) WHERE status = 'ok' ORDER BY ALL"""


def encode_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: posterior mean and standard deviation (unscaled) and text embeddings, as float16."""
    from train import base as bases

    loaded = load_base(args["base"], ("vae", "text_encoder"), device())
    pictures = shards.read(Path(args["images"]), ["image_id", "image"])
    table: list[dict[str, Any]] = [{"image_id": image_id} for image_id in pictures.column("image_id").to_pylist()]
    alive = [row for row in rows if row not in deadly]
    for start in range(0, len(alive), BATCH):
        batch = alive[start : start + BATCH]
        images = [canonical.decode(one["image"]) for one in pictures.take(batch).to_pylist()]
        captions = [args["captions"][row] for row in batch]
        text = bases.encode_text(loaded, captions)
        moments = [bases.encode_images(loaded, image[None]) for image in images]  # one by one: sizes may differ
        for row, caption, (mean, std), embedding in zip(batch, captions, moments, text, strict=True):
            arrays = {"mean": mean[0], "std": std[0], "text": embedding}
            table[row] |= {"status": "ok", "reason": "", "caption": caption} | {name: pack(array) for name, array in arrays.items()}
    for row, reason in deadly.items():
        table[row] |= {"status": "failed", "reason": reason}
    if not probe:
        shards.write(Path(args["path"]), table, shards.LATENTS, args["facts"])
    return args["path"]


def pack(array: Any) -> bytes:
    """float16 .npy bytes of an array or CPU tensor."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, dtype=np.float16), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """float32 array that `pack` stored."""
    import io

    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
