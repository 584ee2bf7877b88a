"""How many images go into one part: so many that a part is made in about half a minute."""

from collections.abc import Iterable

from annotate.annotator import DETECTORS, Detector, Step
from pipeline.manifest import Image
from pipeline.plan.records import Plan

SECONDS = 30.0  # of work in a part: so often something is committed
BYTES = 64 * 2**20  # of images in a part
LEAST, MOST = 16, 256  # images in a part
PARTS = 16_384  # of one source, about: more files are slow to list and to keep in mind
PIXELS = 512 * 512  # to which the seconds of detectors are declared
CONTEXT = 0.5  # GB that a process takes on a GPU before anything else
DECODED = 0.02  # seconds that reading, decoding and storing one image takes, on a core
PER_PIXEL = {"jpeg": 0.6, "png": 2.0}  # bytes of a stored image


def part_size(
    seconds: float,  # of work on one image
    size: float,  # bytes of one stored image
    images: int,  # to cut into parts
) -> int:
    """How many of them go into one part."""
    by_time = min(MOST, max(LEAST, int(SECONDS / max(seconds, 1e-9))))
    by_bytes = max(1, int(BYTES / max(size, 1.0)))
    return max(min(by_time, by_bytes), -(-images // PARTS), 1)


def images_of_part(plan: Plan, device: str, images: int) -> int:
    """As the manifest says, else by what its conditions cost on this device."""
    given, image = plan.manifest.shard_images, plan.manifest.image
    if given != "auto":
        return given
    steps = [planned.step for planned in plan.conditions.values()]
    size = PER_PIXEL[image.store] * image.resolution**2
    return part_size(seconds_of(steps, image, device), size, images)


def seconds_of(steps: Iterable[Step], image: Image, device: str) -> float:
    """Of work on one image, roughly: each detector's pass counts once, whatever conditions share it."""
    costs = _passes(steps)
    on_gpu = device.startswith("cuda")
    each = sum(row.gpu_seconds if on_gpu and row.gpu_seconds is not None else row.seconds for row in costs)
    return (DECODED + each) * image.resolution**2 / PIXELS


def gpu_memory_of(steps: Iterable[Step]) -> float:
    """GB of a GPU that a process takes which runs all these detectors."""
    every = sum(row.gpu_memory for row in _passes(steps))
    return every + CONTEXT if every else 0.0


def _passes(steps: Iterable[Step]) -> list[Detector]:
    """The detectors that run, each once however many conditions share it."""
    passes: list[Step] = []
    for step in steps:
        alike = (step.detector, step.params, step.parent)
        if step.detector in DETECTORS and all((it.detector, it.params, it.parent) != alike for it in passes):
            passes.append(step)
    return [DETECTORS[step.detector] for step in passes]
