"""Networks without training, on a GPU: sampling in two precisions, compiling, and every detector."""

import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_setting import Row, Setting, Tell

# --- sampling ---


def sampling(setting: Setting, tell: Tell) -> None:
    """The same images drawn in float32, in bf16, and in bf16 with compiled blocks, which `train.sample` does
    not do by itself: images a second, and what differs of 255.
    """
    import numpy as np

    rounds, (draw, count) = 3, drawing(setting)
    images: dict[str, Any] = {}
    rows: dict[str, Row] = {name: {"runs": []} for name in draw}
    for turn in range(1 + rounds):  # the first one compiles
        for name, row in rows.items():
            if not setting.left:
                break
            begun = time.perf_counter()
            images[name] = draw[name]().astype(int)
            seconds = time.perf_counter() - begun
            if turn:
                row["runs"].append(round(seconds, 3))
                row["images_per_s"] = round(count / statistics.median(row["runs"]), 4)
            else:
                row["first"] = round(seconds, 2)
            if name != "fp32":
                row["difference"] = round(float(np.abs(images[name] - images["fp32"]).mean()), 4)
            tell({"images": count, "rows": rows})


def drawing(setting: Setting) -> tuple[dict[str, Callable[[], Any]], int]:
    """Name -> draws all images; how many there are."""
    import numpy as np
    import torch

    from benchmarks.shapes import SHAPES, random_base
    from train import precision
    from train.controlnet import ControlNet
    from train.sample import SamplingSettings, generate

    # sampling knows networks of four levels only, which the tiny shape is not
    name, count = ("mini", 2) if setting.tiny else ("sd15", 8)
    shape = dataclasses.replace(SHAPES[name], pixels=64) if setting.tiny else SHAPES[name]
    base = random_base(name, shape, setting.device)
    controlnet = ControlNet.from_unet(base.unet)[0].to(setting.device).eval()
    parts = {name: getattr(base, name).to(setting.device) for name in ("unet", "vae")}
    base = dataclasses.replace(base, **parts, device=setting.device)
    nets = {"fp32": (base, controlnet)}
    for name in ("bf16", "bf16, compiled"):
        low = {part: precision.locked(net, "bf16", setting.device) for part, net in parts.items()}
        nets[name] = (
            dataclasses.replace(base, **low, dtype=torch.bfloat16),
            precision.locked(controlnet, "bf16", setting.device),
        )
    compile_blocks(setting, *nets["bf16, compiled"])
    numbers, width = np.random.default_rng(0), shape.unet["cross_attention_dim"]
    hints = numbers.integers(0, 256, (count, shape.pixels, shape.pixels, 3), dtype=np.uint8)
    texts = numbers.standard_normal((count + 1, shape.tokens, width), dtype=np.float32)
    settings = SamplingSettings(
        height=shape.pixels, width=shape.pixels, num_inference_steps=2 if setting.tiny else 20
    )

    def draw(base: Any, controlnet: Any) -> Any:
        return generate(
            base,
            controlnet,
            hints=hints,
            prompt_embeds=texts[1:],
            negative_prompt_embeds=texts[0],
            seeds=list(range(count)),
            settings=settings,
        )

    return {name: functools.partial(draw, *pair) for name, pair in nets.items()}, count


def compile_blocks(setting: Setting, base: Any, controlnet: Any) -> None:
    """In place, each block of the networks; at tiny size one of them, since each takes seconds."""
    for network in (base.unet, controlnet):
        blocks = [*network.down_blocks, network.mid_block, *getattr(network, "up_blocks", [])]
        for block in blocks[:1] if setting.tiny else blocks:
            block.compile(dynamic=False, backend=backend_of(setting))


# --- compiling ---


def compiling(setting: Setting, tell: Tell) -> None:
    """Seconds that the first step of a shape takes longer than the following ones, compiled for the first
    time and from the cache on disk; and a step without the compiler, for what that gains.
    """
    import torch

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(setting.folder / "inductor")
    sizes = [(8, 8)] if setting.tiny else [(64, 64), (72, 56), (56, 72), (80, 48)]
    batch = 2 if setting.tiny else 8
    rows: list[Row] = [{"batch": batch, "height": 8 * height, "width": 8 * width} for height, width in sizes]
    if not setting.tiny:
        rows.append(rows[0] | {"batch": batch // 2})
    options = {"precision": "bf16" if setting.cuda else "fp32", "workers": 0}
    for turn in ("eager", "first", "cached"):
        torch.compiler.reset()
        if setting.left:
            step = steps_of(setting, options, compiled=turn != "eager")
        for row in rows:
            if not setting.left:
                row[f"{turn}_not_run"] = "the time was over"
                continue
            seconds = [step(row) for _ in range(4)]
            later = statistics.median(seconds[1:])
            row[f"{turn}_step"] = round(later, 4)
            if turn != "eager":
                row[f"{turn}_compile"] = round(seconds[0] - later, 2)
            tell({"backend": backend_of(setting), "rows": rows})


def backend_of(setting: Setting) -> str:
    """At tiny size no kernels are written: that takes minutes on a CPU."""
    return "eager" if setting.tiny else "inductor"


def steps_of(setting: Setting, settings: dict[str, Any], *, compiled: bool) -> Callable[[Row], float]:
    """The gradients of a row's batch: seconds."""
    import torch

    from benchmarks.shapes import SHAPES, RandomPairs, random_base
    from train import throughput, train_state
    from train.batches import batch_at
    from train.fit import Options, diffusion_model
    from train.step import MicroBatch, gradients

    shape = SHAPES[setting.shape]
    if not setting.cuda:
        torch.set_num_threads(1)
    base = dataclasses.replace(random_base(setting.shape, shape, setting.device), device=setting.device)
    eager = Options(images=1, batch=1, **settings)
    example = RandomPairs(shape, ["condition"], 1)[0]
    states = train_state.build_all(base, example, ["condition"], eager, warm_start={}, done=None)
    model = diffusion_model(base, states, eager)
    model = model.compiled(backend_of(setting)) if compiled else model

    def step(row: Row) -> float:
        count = row["batch"]
        pairs = RandomPairs(shape, ["condition"], count, (row["height"] // 8, row["width"] // 8))
        options = Options(images=count, batch=count, **settings)
        places = [(0, index) for index in range(count)]
        parts = batch_at(pairs, ["condition"], places, options, scaling_factor=base.scaling_factor)
        throughput.wait(setting.device)
        begun = time.perf_counter()
        gradients(model, parts, options, MicroBatch(count, False))
        throughput.wait(setting.device)
        for state in states.values():
            train_state.zero_gradients(state)
        return time.perf_counter() - begun

    return step


# --- detectors ---


def detectors(setting: Setting, tell: Tell) -> None:
    """Every detector with a row in benchmarks/library_loops.py beside its own library on the same weights, as
    benchmarks/annotate.py measures it. What fails says why, and the next one runs.
    """
    from annotate.detectors import DETECTORS
    from benchmarks import annotate
    from benchmarks.library_loops import ROWS

    rows: dict[str, Row] = {
        name: {"not_run": "the time was over" if name in ROWS else "it has no row of its library's loop"}
        for name in DETECTORS
    }
    size = (
        ["--images", "2", "--size", "64", "--repeats", "1", "--tiny"] if setting.tiny else ["--images", "32"]
    )
    for name in ROWS:
        if not setting.left:
            break
        out = setting.folder / f"{name}.json"
        words = ["--device", setting.device, "--detectors", name, "--seconds", "10", "--out", str(out)]
        try:
            annotate.main([*words, *size])
            rows[name] = json.loads(out.read_text())[name]
        except Exception as error:
            rows[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or ['no word'])[0]}"}
        tell({"rows": rows})
