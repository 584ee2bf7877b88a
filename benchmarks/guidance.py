"""Shall guidance strengthen the hint as well as the prompt, and by the paper's resolution weights? Every
ControlNet of a workspace drawn with all settings of `cfg_hint`, on the validation split, which decides the
setting so that the test split need not.

For each: the condition's own measure, the Fréchet and kernel distances of its samples to the real images of
the split, how well they suit their captions, and a processor's seconds for a sample. `scale` is the other way
to make more of a hint; it is measured beside. The paper lowers the guidance where it weights the residuals
(section 3.5), so they are weighted at half of the guidance too. Without a workspace the four ControlNets that
are shipped draw scenes that are rendered for it, within ten minutes of two cores.

    python benchmarks/guidance.py --count 24 --out benchmarks/results/guidance-weights.json
    python benchmarks/guidance.py runs/showcase --out guidance.json
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

from annotate import annotator, maps
from annotate.conditions import CONDITIONS
from evaluate import alignment, distribution, fidelity, measures
from evaluate.features import Images
from evaluate.frechet import Moments, frechet
from evaluate.replicates import blocks
from pipeline import plan as plans
from pipeline.benchmark import evidence, networks
from pipeline.benchmark.scoring import as_map, reader_steps
from pipeline.benchmark.systems import CONTROL, Item, System, systems
from pipeline.catalog import Catalog
from pipeline.dataset.maps import read_annotation
from pipeline.experiment.base import base_spec, load_base
from pipeline.manifest.evaluation import cfg_hint_of
from pipeline.plan import Plan
from pipeline.stages.generate import BATCH
from pipeline.storage.workspace import Workspace

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {},
    "prompt, scale 2": {"scale": 2.0},
    "prompt and hint": {"guide_hint": True},
    "weighted": {"guide_hint": "weighted"},
    "weighted, half": {"guide_hint": "weighted", "guidance": 0.5},  # times the benchmark's own
}
SHIPPED = ("canny", "seg_ade20k", "depth_large", "pose_openpose")
# as the showcase's, but for the scenes, of which none was trained on
MANIFEST = """
name: guidance
workspace: {workspace}
source: {{kind: scenes, count: {count}, seed: 911, most_objects: 2, least_box: 0.06, least_visible: 0.7}}
image: {{resolution: 128, store: png}}
split: {{validation: 0.95, test: 0.01, near: null}}
conditions:
  canny: {{low: [50, 100], high: [120, 200]}}
  seg_ade20k: {{}}
  depth_large: {{}}
  pose_openpose: {{}}
evaluate:
  base: mini
  benchmark: {{split: validation, num_inference_steps: 10, guidance_scale: 3.0}}
  external: [{external}]
  readers:
    seg_ade20k: {{detector: mini}}
    depth_large: {{detector: mini}}
    pose_openpose: {{detector: mini}}
  features: [{{extractor: mini}}]
  clip: mini
"""


def main() -> None:
    """Draw, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workspace", type=Path, nargs="?", default=None, help="default: scenes, and what is shipped"
    )
    parser.add_argument(
        "--count", type=int, default=96, help="pairs of the validation split, for each condition"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = _compared(options.workspace or _rendered(Path(folder), options.count), options.count)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _rendered(folder: Path, count: int) -> Path:  # a workspace
    """Three scenes for each pair that is wanted, since not every scene has somebody whose pose is a pair."""
    external = ", ".join(f"{{name: shipped, condition: {name}, checkpoint: mini/{name}}}" for name in SHIPPED)
    text = MANIFEST.format(workspace=folder / "workspace", count=3 * count, external=external)
    (folder / "guidance.yaml").write_text(text, encoding="utf-8")
    asked = ["run", str(folder / "guidance.yaml"), "--stages", "ingest,annotate"]
    subprocess.run([sys.executable, "-m", "pipeline", *asked], check=True)
    return folder / "workspace"


def _compared(place: Path, count: int) -> dict[str, Any]:  # by condition and setting
    workspace = Workspace(place.resolve())
    catalog, plan = Catalog(workspace), _on_validation(plans.load_saved(workspace), count)
    made = {it.condition: it for it in systems(plan, catalog) if it.variant == CONTROL}
    found: dict[str, Any] = {}
    print(
        f"{'condition':16} {'guidance of':16} {'measure':14} {'fidelity':>8} {'fd':>6} {'kd':>6}"
        f" {'captions':>9} {'s/image':>8}"
    )
    for condition in (name for name in CONDITIONS if name in made):
        wanted = [item.image_id for item in made[condition].items]
        places = evidence.photographs(catalog, wanted)
        real = [evidence.photograph(workspace, places[image_id]) for image_id in wanted]
        found[condition] = {
            name: _measured(plan, made[condition], real, more) for name, more in SETTINGS.items()
        }
        for name, row in found[condition].items():
            numbers = (
                f"{row['fidelity']:>8.3f} {row['fd']:>6.1f} {row['kd']:>6.1f} {row['captions']:>9.3f}"
                f" {row['seconds']:>8.2f}"
            )
            print(f"{condition:16} {name:16} {row['measure']:14} {numbers}", flush=True)
    return found


def _on_validation(plan: Plan, count: int) -> Plan:
    evaluation = plan.manifest.evaluate
    if evaluation is None or not evaluation.features or not evaluation.clip:
        raise SystemExit("the workspace's manifest needs evaluate: with features and clip")
    frozen = evaluation.benchmark.model_copy(
        update={
            "split": "validation",
            "samples": count,
            "cfg_hint": "both",
            "controlnet_conditioning_scale": 1.0,
        }
    )
    return dataclasses.replace(
        plan,
        manifest=plan.manifest.model_copy(
            update={"evaluate": evaluation.model_copy(update={"benchmark": frozen})}
        ),
    )


def _measured(plan: Plan, system: System, real: list[np.ndarray], more: dict[str, Any]) -> dict[str, Any]:
    evaluation = plan.manifest.evaluate
    assert evaluation is not None and evaluation.clip is not None
    truths = [
        read_annotation(plan.workspace, item.map_shard, item.row, system.condition) for item in system.items
    ]
    start = time.process_time()
    images = _drawn(
        plan,
        system,
        [maps.render(truth.map, size=image.shape[:2]) for truth, image in zip(truths, real, strict=True)],
        more,
    )  # type: ignore[arg-type]
    seconds = (time.process_time() - start) / len(images)
    ids, random_params = (
        [item.image_id for item in system.items],
        {system.condition: [truth.random_params for truth in truths]},
    )
    read = annotator.annotate(
        images, ids, reader_steps(plan, system.condition), random_params=random_params, device="cpu"
    )[system.condition]
    kind = CONDITIONS[system.condition].compared_as
    compared = [
        fidelity.compare(kind, as_map(truth.map), as_map(again.map) if again.map else None)  # type: ignore[arg-type]
        for truth, again in zip(truths, read, strict=True)
    ]
    metric = measures.primary(kind)
    if metric.level == "set":
        value = fidelity.pooled(metric.name, [it.counts for it in compared])
    else:
        value = float(np.mean([it.values[metric.name] for it in compared]))
    prompts = np.arange(len(images))
    extractor = networks.extractor(evaluation.features[0].extractor, evaluation.features[0].weights, "cpu")
    made, known = (Images(extractor(those), prompts) for those in (images, real))
    encoder = networks.dual_encoder(evaluation.clip, "cpu")
    suits = alignment.similarity(
        encoder.images(images), encoder.texts([item.caption for item in system.items])
    ).clip(0)
    return {
        "measure": metric.name,
        "fidelity": round(value, 4),
        "captions": round(float(suits.mean()), 4),
        "seconds": round(seconds, 3),
        "fd": round(frechet(*(Moments.of(it.features) for it in (made, known))), 2),
        "kd": round(distribution.kernel_distance_without(made, known, blocks(len(images)))[0], 2),
        "pairs": len(images),
    }


def _drawn(plan: Plan, system: System, hints: list[np.ndarray], more: dict[str, Any]) -> list[np.ndarray]:
    from train import encoders, sample

    assert plan.manifest.evaluate is not None
    frozen = plan.manifest.evaluate.benchmark
    base, net = sample.load_trained(
        plan.workspace.root / system.checkpoint,
        load_base(base_spec(plan), ("unet", "vae", "text_encoder"), "cpu"),
    )
    settings = frozen.stored("steps", "guidance", "scale", "guide_hint") | more
    if "guidance" in more:
        settings["guidance"] = frozen.guidance_scale * more["guidance"]
    empty = encoders.encode_text(base, [frozen.negative_prompt])[0]

    def part(items: tuple[Item, ...], shown: list[np.ndarray]) -> np.ndarray:
        return sample.generate(
            base,
            net,
            hints=np.stack(shown),
            prompt_embeds=encoders.encode_text(base, [item.caption for item in items]),
            negative_prompt_embeds=empty,
            seeds=[frozen.seeds[0]] * len(items),
            noise_keys=[item.image_id for item in items],
            settings=sample.SamplingSettings(
                height=shown[0].shape[0],
                width=shown[0].shape[1],
                sampler=frozen.sampler,
                num_inference_steps=settings["steps"],
                guidance_scale=settings["guidance"],
                controlnet_conditioning_scale=settings["scale"],
                cfg_hint=cfg_hint_of(settings["guide_hint"]),
            ),
        )

    size = BATCH["cpu"]
    starts = range(0, len(hints), size)
    return [
        image
        for start in starts
        for image in part(system.items[start : start + size], hints[start : start + size])
    ]


if __name__ == "__main__":
    main()
