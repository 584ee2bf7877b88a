"""Held-out pairs -> samples: the frozen benchmark through every system, with the same noise for
all of them.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from pipeline import MillError
from pipeline.benchmark.admission import Taken, admit, taken
from pipeline.benchmark.evidence import Place, photographs
from pipeline.benchmark.resemblance import Code
from pipeline.benchmark.submissions import Submission
from pipeline.benchmark.systems import REAL, ROUND_TRIP, Item, System
from pipeline.benchmark.tasks import PART, Task, tasks_of
from pipeline.cluster import position
from pipeline.cluster.jobs import Job
from pipeline.cluster.position import Limit
from pipeline.dataset.maps import read_map
from pipeline.experiment.base import base_spec, device, device_name, load_base, load_sampler
from pipeline.experiment.runs import controlnet_here
from pipeline.manifest import Benchmark
from pipeline.stages.stage import StageContext, StageResult, make_missing, of_one_size, result, work
from pipeline.storage import codec, shards
from pipeline.storage.shards import Row, Shard
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, Workspace
from train.samplers import Precision

# samples that pass the networks together; halved where memory runs out
BATCH = {"cpu": 4, "cuda": 16}
MOST, PIXELS = 16, 2**20  # on a CPU more of them while they are small

LOADING = 120.0  # seconds on top of the limit, where the networks may have to be loaded first


@dataclass(frozen=True)
class GeneratePart:
    """One shard of a system's samples, for a worker."""

    root: Path  # of the workspace
    path: Path  # of the shard to write
    part: int
    key: str
    system: System
    base: str
    tasks: tuple[Task, ...]
    images: dict[str, tuple[str, int]]  # image id -> shard and row, where the system needs the real image
    benchmark: Benchmark
    made_from: str
    pictures: tuple[Taken, ...] = ()  # row for row, of what was submitted
    time_limit: float = 3600.0  # seconds that one sample may take


def generate(context: StageContext) -> StageResult:
    if context.plan.manifest.evaluate is None:
        return StageResult("nothing asked for")
    to_do = make_missing(context, generate_part, _jobs(context), label="generate", gpus=1)
    counts = dict(context.catalog.query("SELECT status, count(*) FROM samples GROUP BY status"))
    return result(f"{work(to_do, 'samples')}; {sum(counts.values())} samples", to_do, counts)


def _jobs(context: StageContext) -> Iterator[Job]:
    plan, catalog = context.plan, context.catalog
    assert plan.manifest.evaluate is not None
    benchmark = plan.manifest.evaluate.benchmark
    seen: set[Path] = set()  # systems that can't differ share their samples
    admitted: dict[tuple[str, str], Submission] = {}  # by model and condition
    codes: dict[str, Code] = {}  # of the photographs that these must not copy
    for system in context.systems:
        images: dict[str, Place] = {}
        if system.variant in (REAL, ROUND_TRIP):
            images = photographs(catalog, [item.image_id for item in system.items])
        tasks = tasks_of(system, benchmark)
        committed = catalog.committed("samples", system.key, system.sample_set)
        pictures: tuple[Taken, ...] = ()
        if system.pictures and len(committed) < math.ceil(len(tasks) / PART):
            of = system.model, system.condition
            admitted[of] = admitted.get(of) or admit(plan, catalog, system, codes)
            pictures = taken(admitted[of], system, tasks)
        for part, start in enumerate(range(0, len(tasks), PART)):
            path = plan.workspace.samples(system.sample_set, system.key, part)
            if part in committed or path in seen:
                continue
            seen.add(path)
            chunk = tuple(tasks[start : start + PART])
            args = GeneratePart(
                root=plan.workspace.root,
                path=path,
                part=part,
                key=system.key,
                system=replace(system, items=()),  # what is asked for is in the tasks
                base=base_spec(plan) if plan.manifest.base else "",
                tasks=chunk,
                images={item.image_id: images[item.image_id] for item, *_ in chunk if images},
                benchmark=benchmark,
                made_from=shards.made_from(system.key, part),
                time_limit=plan.manifest.evaluate.time_limit,
                pictures=pictures[start : start + PART],
            )
            name = f"generate {system.sample_set} part {part}"
            yield Job(name, args, tuple(range(len(chunk))), alike=True)


@functools.cache
def load_trained(folder: str, base: str, precision: Precision = "fp32") -> Any:
    """The base and the ControlNet, read once a process and hashed then: a run that unlocked the base has its
    own. MillError where a file of the checkpoint is missing or is not what was written.
    """
    from train import integrity, sample

    place = controlnet_here(Path(folder))
    try:
        integrity.check_controlnet(place)
    except integrity.Damaged as error:
        raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
    return sample.load_trained(place, load_sampler(base, device(), precision))


def generate_part(
    args: GeneratePart, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> Shard | None:
    """In a worker: a shard of samples of one system, those of one size together.

    Noise belongs to (seed, image id) alone.
    """
    poison_rows = {row: it.failed for row, it in enumerate(args.pictures) if it.failed} | poison_rows
    table: list[Row] = [
        {
            "image_id": item.image_id,
            "hint_image_id": hint.image_id if args.system.follows else "",
            "seed": seed,
            "status": "failed",
            "reason": poison_rows.get(row, ""),
        }
        for row, (item, hint, seed) in enumerate(args.tasks)
    ]
    from train.out_of_memory import in_parts

    draw = {REAL: _real, ROUND_TRIP: _returned}.get(args.system.variant, _sampled)
    draw = _submitted if args.pictures else draw
    size = lambda row: (args.tasks[row][0].height, args.tasks[row][0].width)
    todo = [row for row in rows if row not in poison_rows]
    limit = Limit(args.time_limit, "evaluate.time_limit")
    together = _together([args.tasks[row][0] for row in todo])
    for members in of_one_size(todo, size, position.at_a_time(together)):
        position.begin(members, "", limit, loading=LOADING)
        start = time.perf_counter()
        # an image does not depend on what else is in its batch
        encoded = in_parts(functools.partial(draw, args), [args.tasks[row] for row in members])
        each = (time.perf_counter() - start) / len(members)
        for row, image in zip(members, encoded, strict=True):
            table[row] |= {"status": "ok", "seconds": each, "image": image}
        position.end(len(members))
    if not dry_run:
        metadata = {
            "kind": "samples",
            "key": args.key,
            "name": args.system.sample_set,
            "part": args.part,
            "made_from": args.made_from,
            "device": _drawn_on(args),
        }
        return shards.write(args.path, table, shards.SAMPLES, metadata)
    return None


def _together(items: list[Item]) -> int:
    """As many as fill the processor: a small image alone leaves it waiting for the next layer."""
    largest = max((item.height * item.width for item in items), default=1)
    return max(BATCH[device()], min(MOST, PIXELS // largest))


def _drawn_on(args: GeneratePart) -> str:
    """Pictures that were given were not drawn here."""
    if args.pictures:
        return "as the submission says"
    if args.system.variant == REAL:
        return "no network"
    from train.precision import dtype_of, settled

    drawn = args.system.variant != ROUND_TRIP  # which the VAE makes in float32 always
    dtype = dtype_of(settled(args.benchmark.precision, device()) if drawn else "fp32")
    return f"{device_name(device())}, {str(dtype).removeprefix('torch.')}"


def _sampled(args: GeneratePart, tasks: list[Task]) -> list[bytes]:  # PNG
    from train import encoders, sample

    precision = args.benchmark.precision
    loaded, net = load_sampler(args.base, device(), precision), None
    hints = None
    height, width = tasks[0][0].height, tasks[0][0].width
    if args.system.checkpoint:
        # an absolute path stays what it is
        place = str(Workspace(args.root).root / args.system.checkpoint)
        loaded, net = load_trained(place, args.base, precision)
        condition, workspace = args.system.condition, Workspace(args.root)
        hints = np.stack([_hint(workspace, hint, condition, height, width) for _, hint, _ in tasks])
    images = sample.generate(
        loaded,
        net,
        hints=hints,
        prompt_embeds=encoders.encode_text(loaded, [item.caption for item, *_ in tasks]),
        negative_prompt_embeds=encoders.encode_text(loaded, [args.benchmark.negative_prompt])[0],
        seeds=[seed for *_, seed in tasks],
        noise_keys=[item.image_id for item, *_ in tasks],
        settings=sample.SamplingSettings(
            height=height,
            width=width,
            sampler=args.benchmark.sampler,
            num_inference_steps=args.benchmark.num_inference_steps,
            guidance_scale=args.benchmark.guidance_scale,
            controlnet_conditioning_scale=args.benchmark.controlnet_conditioning_scale,
            cfg_hint=args.benchmark.cfg_hint,
        ),
    )
    return [codec.encode(image, "png") for image in images]


def _real(args: GeneratePart, tasks: list[Task]) -> list[bytes]:
    """The held-out image itself, as it is stored: what the reader makes of it is the ceiling."""
    places = [args.images[item.image_id] for item, *_ in tasks]
    return [shards.read_row(args.root / shard, row, ["image"])["image"] for shard, row in places]


def _returned(args: GeneratePart, tasks: list[Task]) -> list[bytes]:  # PNG
    """There and back through the base's VAE: no sample can be better than this."""
    import torch

    from train import encoders

    loaded = load_base(args.base, ("vae",), device())
    pixels = np.stack([codec.decode(data) for data in _real(args, tasks)])
    mean, _ = encoders.encode_images(loaded, pixels)
    images = encoders.decode_latents(loaded, torch.from_numpy(mean) * loaded.scaling_factor)
    return [codec.encode(image, "png") for image in images]


def _submitted(args: GeneratePart, tasks: list[Task]) -> list[bytes]:  # PNG
    """The pixels as they are, without what else a file may hold."""
    rows = {task: row for row, task in enumerate(args.tasks)}
    return [codec.encode(args.pictures[rows[task]].read(task[0]), "png") for task in tasks]


def _hint(workspace: Workspace, item: Item, condition: str, height: int, width: int) -> np.ndarray:
    return maps.render(read_map(workspace, item.map_shard, item.row, condition), size=(height, width))
