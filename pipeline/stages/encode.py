"""Canonical images -> VAE moments and text embeddings of the locked base, once for all conditions."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.experiment.base import base_fingerprint, base_spec, device, flips, latent_key, load_base, pack
from pipeline.plan import Plan
from pipeline.stages.parts import make_missing, of_one_size, told
from pipeline.storage import codec, shards

BATCH = {"cpu": 4, "cuda": 8}  # images of one size that pass the VAE together
# of a GPU: while one job decodes and writes, three others keep it busy; a VAE in bf16 leaves room for that
LEAST_SHARE = 0.25


@functools.cache
def load_encoders(spec: str, device: str) -> Any:
    """On a GPU the VAE, which is nine tenths of the work and more, in bf16; what comes out is stored as
    float16. Texts in float32.
    """
    import torch

    loaded = load_base(spec, ("vae", "text_encoder"), device)
    if device == "cpu":
        return loaded
    vae = loaded.vae.to(torch.bfloat16, memory_format=torch.channels_last)
    # a text encoder computes as its own weights are
    return dataclasses.replace(loaded, vae=vae, dtype=torch.bfloat16)


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
            "path": str(path),
            "images": str(workspace.images(plan.image_key, part)),
            "base": spec,
            "flips": flips(plan),
            "captions": {row: caption for row, _, caption in members},
            "facts": {
                "kind": "latents",
                "key": key,
                "image_key": plan.image_key,
                "part": part,
                "made_from": shards.made_from(key, members),
            },
        }
        jobs[path] = Job(f"encode part {part}", args, tuple(row for row, *_ in members))
    share = max(cluster.share, LEAST_SHARE) if jobs else 0
    return told(make_missing(catalog, cluster, encode_part, jobs, label="encode", gpus=share), "images")


CAPTIONED = """SELECT shards.part, images.row, image_id, coalesce(caption, '') FROM images JOIN shards ON
               shards.path = images.shard
               LEFT JOIN captions USING (image) WHERE status = 'ok' ORDER BY ALL"""


def encode_part(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: posterior mean and standard deviation (unscaled) and text embeddings, as float16; with
    flips the mirror image's too.
    """
    pictures = shards.read(Path(args["images"]), ["image_id", "uri", "width", "height", "image"])
    table: list[dict[str, Any]] = [
        {"image_id": image_id} for image_id in pictures.column("image_id").to_pylist()
    ]
    sizes = list(
        zip(pictures.column("height").to_pylist(), pictures.column("width").to_pylist(), strict=True)
    )
    for batch in of_one_size([row for row in rows if row not in deadly], sizes.__getitem__, BATCH[device()]):
        taken = pictures.take(batch).to_pylist()
        captions = [args["captions"][row] for row in batch]
        for row, caption, made in zip(
            batch, captions, _encoded(args["base"], taken, captions, mirror=args["flips"]), strict=True
        ):
            table[row] |= {"status": "ok", "reason": "", "caption": caption} | {
                name: pack(array) for name, array in made.items()
            }
    for row, reason in deadly.items():
        table[row] |= {"status": "failed", "reason": reason}
    if not probe:
        shards.write(
            Path(args["path"]),
            table,
            shards.FLIPPED_LATENTS if args["flips"] else shards.LATENTS,
            args["facts"],
        )
    return args["path"]


def _encoded(
    base: str, taken: list[dict[str, Any]], captions: list[str], *, mirror: bool
) -> list[dict[str, np.ndarray]]:
    """The arrays of each row; those of a mirror image are left out where the caption would be wrong of it."""
    from train import base as bases

    loaded = load_encoders(base, device())
    images = np.stack([codec.decode(one["image"]) for one in taken])
    texts = [
        sources.mirrored_caption(one["uri"], caption) if mirror else None
        for one, caption in zip(taken, captions, strict=True)
    ]
    turned = [number for number, text in enumerate(texts) if text is not None]
    other = [number for number in turned if texts[number] != captions[number]]
    made: list[dict[str, np.ndarray]] = [{} for _ in taken]
    for number, mean, std, text in zip(
        range(len(taken)),
        *bases.encode_images(loaded, images),
        bases.encode_text(loaded, captions),
        strict=True,
    ):
        made[number] |= {"mean": mean, "std": std, "text": text}
    if turned:
        for number, mean, std in zip(
            turned, *bases.encode_images(loaded, images[turned, :, ::-1]), strict=True
        ):
            made[number] |= {"mean_mirrored": mean, "std_mirrored": std}
    if other:  # a scene's caption that names sides
        for number, text in zip(
            other, bases.encode_text(loaded, [str(texts[number]) for number in other]), strict=True
        ):
            made[number]["text_mirrored"] = text
    return made
