"""What benchmarks/gpu.py measures: a function a part, which tells all it has found after every figure."""

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu_networks import compiling, detectors, sampling
from benchmarks.gpu_runs import nccl, resume
from benchmarks.gpu_setting import Row, Setting, Tell

GIB = 2**30
LIMITS = (8, 24)  # GiB of memory, as of the small cards that people have
TARGETS = {  # in words -> of the row "ours, K = 1": key, at least
    "images/s, half of what the matrix rate allows on an H100": ("images_per_s", 120.0),
    "share of a matrix product's rate": ("share", 0.5),
    "times the live loop": ("times_live", 2.5),
    "times the cached loop": ("times_cached", 1.5),
}


# --- training ---


def training(setting: Setting, tell: Tell) -> None:
    """The rows of benchmarks/train.py that targets were set for: diffusers' loops; K = 1, 4, 8, joined."""
    from benchmarks import train

    report = train.measured(train_options(setting, "K =,diffusers"), tell)
    one: Row = next(row for row in report["rows"] if row["name"] == train.ONE)
    targets = {
        words: {"at_least": least, "measured": one.get(key)} for words, (key, least) in TARGETS.items()
    }
    tell(report | {"targets": targets})


def train_options(setting: Setting, only: str, share: float = 1.0) -> Any:  # argparse.Namespace
    """Of benchmarks/train.py, for a share of the time that is left."""
    from benchmarks import train

    given = ["--shape", setting.shape, "--device", setting.device, "--repeats", "1", "--only", only]
    quick = ["--steps", "1", "--readings", "1", "--threads", "1"] if setting.tiny else []
    return train.parse([*given, *quick, "--budget", f"{share * setting.left:.0f}"])


# --- memory ---


def memory(setting: Setting, tell: Tell) -> None:
    """What fits where PyTorch may take 8 and 24 GB, as on small cards: the micro-batch that is found, or the
    sentence of what ran out.
    """
    from benchmarks import train

    found: dict[str, Any] = {}
    for number, gib in enumerate(LIMITS):
        given = train_options(
            setting, "ours, K = 1,small scale,diffusers, cached", 1 / (len(LIMITS) - number)
        )
        with limited(setting, gib):
            report = train.measured(given, lambda part, gib=gib: tell(found | {f"{gib} GB": part}))
        found[f"{gib} GB"] = report | {"limited": setting.cuda}
        tell(found)


@contextlib.contextmanager
def limited(setting: Setting, gib: int) -> Iterator[None]:
    """A CPU knows no such limit, and goes without."""
    if not setting.cuda:
        yield
        return
    import torch

    whole = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / whole))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- loading ---


def loading(setting: Setting, tell: Tell) -> None:
    """Batches a second as training reads them, without training: each condition with one thread and with as
    many processes as there are cores, by the clock.
    """
    from types import SimpleNamespace

    import cv2
    import torch

    from benchmarks import loader
    from pipeline.storage.workspace import Workspace

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scenes, copies, size, batch = (2, 4, 64, 4) if setting.tiny else (16, 32, 512, 32)
    workspace = Workspace(setting.folder / "workspace")
    workspace.create()
    made = {name: raws * copies for name, raws in loader.maps_of_scenes(scenes, size).items()}
    stored = loader.write(workspace, made, size)
    options: Any = SimpleNamespace(size=size, pairs=scenes * copies)
    cores = os.cpu_count() or 1
    rows: list[Row] = [{"maps": label, "runs": {}} for label in stored.maps if not label.endswith(" as PNG")]
    for _ in range(3):
        for row in rows:
            for workers in (1, cores):
                if setting.left:
                    pairs = loader.pairs_of(workspace, stored, row["maps"], options)
                    speed = round(loader.by_the_clock(pairs, workers, batch), 1)
                    row["runs"].setdefault("a thread" if workers == 1 else f"{workers} processes", []).append(
                        speed
                    )
            row["pairs_per_s"] = {readers: statistics.median(runs) for readers, runs in row["runs"].items()}
            tell({"cores": cores, "pairs": options.pairs, "wanted": loader.WANTED, "rows": rows})


PARTS: dict[str, Callable[[Setting, Tell], None]] = {
    "training": training,
    "resume": resume,
    "memory": memory,
    "sampling": sampling,
    "compiling": compiling,
    "loading": loading,
    "nccl": nccl,
    "detectors": detectors,
}
