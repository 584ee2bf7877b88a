"""From a catalog and its shards to a leaderboard in a browser: what each step takes, for many models,
conditions and samples.

The workspace is made up, but it is one: a manifest, shards under the keys that the stages would give them,
committed by the functions that commit them. Held-out images and their maps are rendered scenes. Samples are
such scenes, moved aside, at full size where a page may show them and a pixel elsewhere. Values and counts are
what moved maps score, features are drawn at random. A shard has all samples of a system.

Of each kind of map one model and the real images are estimated by the code; the others take those scores,
moved by their errors at random.

    python benchmarks/board.py --models 20 --samples 1000 --out board.json
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [
    str(Path(__file__).resolve().parent.parent),
    *(it for it in sys.path if Path(it).resolve() != Path(__file__).resolve().parent),
]

from annotate import maps
from annotate.conditions import CONDITIONS
from annotate.maps import RawMap
from benchmarks.annotate import machine
from benchmarks.chromium import PROGRAM, chromium
from evaluate import fidelity, measures
from pipeline import plan, scenes
from pipeline.benchmark import estimates, networks
from pipeline.benchmark.systems import (
    CONTROL,
    NO_CONTROL,
    REAL,
    ROUND_TRIP,
    SHUFFLED,
    System,
    score_key,
    systems,
)
from pipeline.benchmark.tasks import tasks_of
from pipeline.catalog import Catalog
from pipeline.commands import leaderboard as board_commands
from pipeline.experiment.base import base_fingerprint, base_spec, latent_key
from pipeline.experiment.pairs import planned_runs
from pipeline.manifest import Manifest
from pipeline.plan import Plan
from pipeline.report import leaderboard_evidence, leaderboard_scores, listings, results, stored
from pipeline.report.site import picture_of
from pipeline.run import activate
from pipeline.storage import codec, shards
from pipeline.storage.shards import Shard
from pipeline.storage.workspace import Workspace

BASE = Path(__file__).resolve().parent.parent / "train" / "mini" / "base"
DETECTORS = {"hough": "opencv-lsd", "hed": "hed-bsds500", "cartoon": "xdog"} | dict.fromkeys(
    ("pose_openpifpaf", "pose_openpose", "seg_coco", "seg_ade20k", "depth_large", "depth_small", "normal"),
    "mini",
)  # all that a fresh machine has
BESIDE = {"train": 64, "validation": 32}  # images beside those of the benchmark
PART = 256  # images of a shard
SCENES = 8
# of pictures and stored maps; what pictures are rendered at; of the maps that are compared
SIDE, DRAWN, SMALL = 512, 256, 128
FLOOR = {NO_CONTROL: -40, SHUFFLED: -40}  # errors that a score lies below the models'
LIKENESS = 128  # width of the mini CLIP's embeddings
MOVED = (0, 1, 2, 4, 8, 16, 32)  # pixels of SMALL: the further a map is moved, the worse it scores


@dataclass(frozen=True)
class Seen:
    """A scene and how its maps score when they are moved; the lists go by MOVED."""

    picture: np.ndarray  # uint8 [SIDE, SIDE, 3]
    truth: dict[str, RawMap]  # condition -> at SIDE
    read: dict[str, list[RawMap]]
    compared: dict[str, list[tuple[dict[str, float], bytes]]]  # values and stored counts


# -- a workspace ---------------------------------------------------------------------------------------------


def manifest(root: Path, models: int, external: int, samples: int) -> Manifest:
    """Each model has all conditions."""
    names = list(CONDITIONS)
    runs = [
        {"conditions": names, "images": 8, "batch": 4, "seed": number} for number in range(models - external)
    ]
    theirs = [
        {"name": f"theirs-{number}", "condition": name, "checkpoint": str(root / "theirs")}
        for number in range(external)
        for name in names
    ]
    return Manifest.model_validate(
        {
            "name": "synthetic",
            "workspace": str(root / "workspace"),
            "source": {"kind": "folder", "path": str(root / "nothing")},
            "image": {"resolution": SIDE},
            "split": {"near": None},
            "conditions": {name: {"detector": DETECTORS.get(name, "auto")} for name in names},
            "train": {"base": str(BASE), "runs": runs},
            "evaluate": {
                "benchmark": {"samples": samples},
                "external": theirs,
                "features": [{"extractor": "mini"}],
                "clip": "mini",
            },
        }
    )


def make(root: Path, models: int, external: int, samples: int) -> None:
    """A workspace whose scores are not estimated yet."""
    (root / "theirs").mkdir(parents=True)
    (root / "theirs" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(2**20))
    made = plan.make(manifest(root, models, external, samples))
    catalog = Catalog(made.workspace)
    made.workspace.create()
    catalog.create()
    plan.save(made)
    pool = [seen(number) for number in range(SCENES)]
    put(catalog, images(made, pool, samples))
    activate(made, catalog)
    for it in planned_runs(made, catalog):
        catalog.record_run(
            run=it.name,
            conditions=it.run.conditions,
            base=it.base,
            base_fingerprint=it.base_fingerprint,
            random_weights=False,
            images=8,
            steps=2,
            seconds=1.0,
            checkpoint=f"checkpoints/{it.name}/step-00000008",
            options="{}",
            status="complete",
            reason="",
        )
    every = systems(made, catalog)
    put(
        catalog,
        (
            path
            for number, system in enumerate(every)
            for path in samples_of(made, system, pool, np.random.default_rng(number))
        ),
    )


def put(catalog: Catalog, written: Iterator[Shard]) -> None:
    """In one transaction, as a catalog is rebuilt."""
    catalog.commit(*written)


def seen(number: int) -> Seen:
    """Of each condition the scene's own map, or something of the same kind."""
    from safetensors.numpy import save

    scene = scenes.render(0, number, SMALL)
    grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY)
    lines = np.column_stack([scene.lines, np.linspace(1, 0.5, len(scene.lines))]).astype(np.float32)
    own = {
        "edges": RawMap("edges", cv2.Canny(grey, 100, 200)),
        "soft_edges": RawMap("soft_edges", cv2.GaussianBlur(scene.outlines, (9, 9), 0)),
        "lines": RawMap("lines", lines, {"size": [SMALL, SMALL]}),
        "normals": scene.maps["normal"],
    }
    truth = {name: scene.maps.get(name) or own[row.kind] for name, row in CONDITIONS.items()}
    compared: dict[str, list[tuple[dict[str, float], bytes]]] = {}
    for name, raw in truth.items():
        found = [
            fidelity.compare(
                CONDITIONS[name].compared_as,
                fidelity.Map(raw.array, raw.meta),
                fidelity.Map(moved(raw, by).array, raw.meta),
            )
            for by in MOVED
        ]
        compared[name] = [
            (dict(it.values), save({key: np.ascontiguousarray(array) for key, array in it.counts.items()}))
            for it in found
        ]
    read = {name: [enlarged(moved(raw, by)) for by in MOVED] for name, raw in truth.items()}
    picture = scenes.render(0, number, DRAWN).image.repeat(SIDE // DRAWN, 0).repeat(SIDE // DRAWN, 1)
    return Seen(picture, {name: found[0] for name, found in read.items()}, read, compared)


def moved(raw: RawMap, by: int) -> RawMap:
    """Aside by so many pixels; points are shaken as much."""
    if "size" not in raw.meta:
        return replace(raw, array=np.roll(raw.array, by, axis=1))
    shaken = raw.array.copy()
    shaken[..., : _places(raw)] += np.random.default_rng(by).normal(0, by, shaken[..., : _places(raw)].shape)
    return replace(raw, array=shaken)


def enlarged(raw: RawMap) -> RawMap:
    """To SIDE, in blocks: dense maps that were rendered at that size would take ten times the disk."""
    by = SIDE // SMALL
    if "size" not in raw.meta:
        return replace(raw, array=raw.array.repeat(by, 0).repeat(by, 1))
    larger = raw.array.copy()
    larger[..., : _places(raw)] *= by
    return replace(raw, array=larger, meta=raw.meta | {"size": [SIDE, SIDE]})


def _places(raw: RawMap) -> int:
    """How many columns of a list of points or lines are coordinates."""
    return raw.array.shape[-1] - 1


def images(made: Plan, pool: list[Seen], samples: int) -> Iterator[Shard]:
    """Images, their maps, and latents that nobody reads."""
    workspace, key, latents = (
        made.workspace,
        made.image_key,
        latent_key(made, base_fingerprint(base_spec(made))),
    )
    splits = ["test"] * samples + [name for name, count in BESIDE.items() for _ in range(count)]
    pictures = [codec.encode(it.picture, "jpeg") for it in pool]
    stored = {name: [_stored(it.truth[name]) for it in pool] for name in made.conditions}
    ready = {"status": "ok", "reason": ""}
    for part, start in enumerate(range(0, len(splits), PART)):
        numbers = range(start, min(start + PART, len(splits)))
        facts = {"image_key": key, "part": part, "made_from": "synthetic"}
        yield shards.write(
            workspace.images(key, part),
            [
                ready
                | {
                    "image_id": image_id(number),
                    "uri": f"{number}.png",
                    "caption": f"a room with {number} things",
                    "fields": "{}",
                    "width": SIDE,
                    "height": SIDE,
                    "raw_width": SIDE,
                    "raw_height": SIDE,
                    "raw_format": "PNG",
                    "raw_bytes": 1,
                    "group_id": image_id(number),
                    "split": splits[number],
                    "image": pictures[number % SCENES],
                }
                for number in numbers
            ],
            shards.IMAGES,
            facts | {"kind": "images", "key": key, "retry": False, "near": None},
        )
        for it in made.conditions.values():
            path = workspace.maps(it.maps, it.fingerprint, part)
            if not path.exists():  # another condition's maps are these
                rows = [
                    ready | {"image_id": image_id(number)} | stored[it.name][number % SCENES]
                    for number in numbers
                ]
                yield shards.write(
                    path,
                    rows,
                    shards.MAPS,
                    facts | {"kind": "maps", "key": it.fingerprint, "name": it.maps, "detector": it.record()},
                )
        rows = [
            ready | {"image_id": image_id(number), "caption": "", "mean": b"", "std": b"", "text": b""}
            for number in numbers
        ]
        yield shards.write(
            workspace.latents(latents, part),
            rows,
            shards.LATENTS,
            facts | {"kind": "latents", "key": latents},
        )


def image_id(number: int) -> str:
    """In the order of the numbers."""
    return f"{number:064x}"


def _stored(raw: RawMap) -> dict[str, Any]:
    return {
        "seconds": 0.1,
        "measures": list(maps.measures(raw).items()),
        "meta": json.dumps(raw.meta),
        "draws": "{}",
        "map": maps.encode(raw),
    }


def samples_of(made: Plan, system: System, pool: list[Seen], rng: np.random.Generator) -> Iterator[Shard]:
    """A shard of samples and one of what they score: the less skill, the further is what was read of them."""
    evaluation = made.manifest.evaluate
    assert evaluation is not None and evaluation.clip
    tasks = tasks_of(system, evaluation.benchmark)
    skill = {REAL: 1.0, ROUND_TRIP: 0.9, CONTROL: 0.3 + 0.5 * rng.random()}.get(system.variant, 0.1)
    spread = 0.0 if system.variant == REAL else 1.0
    levels = np.clip(
        rng.normal((len(MOVED) - 1) * (1 - skill), spread, len(tasks)).round(), 0, len(MOVED) - 1
    ).astype(int)
    failed = rng.random(len(tasks)) < 0.002 * spread
    widths = {
        "mini": networks.extractor("mini", None, "cpu").dimensions,
        measures.clip_image(evaluation.clip).name: LIKENESS,
    }
    real = np.random.default_rng(0)
    features = {
        net: (
            (
                skill * real.normal(size=(len(tasks), width))
                + (1 - skill) * rng.normal(size=(len(tasks), width))
            ).astype(np.float32)
        )
        for net, width in widths.items()
    }
    clip, alike = measures.clip(evaluation.clip).name, 10 * skill + rng.normal(20, 1, len(tasks))
    values, shaken = [], 1 + 0.01 * spread * rng.random(len(tasks))
    for place, level in enumerate(levels):
        found = pool[place % SCENES].compared[system.condition][level][0]
        own = {
            name: fidelity.METRICS[name].worst if failed[place] else value * shaken[place] + 1e-9 * place
            for name, value in found.items()
        }
        values.append([*own.items(), (clip, alike[place])])
    shown = _shown(system, values, failed) if system.variant == CONTROL else set()
    samples, scores = [], []
    for place, ((item, hint, seed), level) in enumerate(zip(tasks, levels, strict=True)):
        scene = pool[place % SCENES]
        read = scene.read[system.condition][level] if place in shown else None
        common = {"image_id": item.image_id, "seed": seed, "reason": ""}
        picture = (
            np.roll(scene.picture, int(rng.integers(SIDE)), axis=1)
            if place in shown
            else scene.picture[:1, :1]
        )
        samples.append(
            common
            | {
                "status": "ok",
                "hint_image_id": hint.image_id,
                "seconds": 1.0,
                "image": codec.encode(picture, "png"),
            }
        )
        scores.append(
            common
            | {
                "values": values[place],
                "counts": scene.compared[system.condition][level][1],
                "features": [(net, it[place].tobytes()) for net, it in features.items()],
                **(
                    {"status": "failed", "reason": "nothing found", "meta": "{}", "map": None}
                    if failed[place]
                    else {
                        "status": "ok",
                        "meta": json.dumps(read.meta) if read else "{}",
                        "map": maps.encode(read) if read else b"",
                    }
                ),
            }
        )
    for kind, name, key, rows, folder in (
        ("samples", system.sample_set, system.key, samples, made.workspace.samples),
        ("scores", system.name, score_key(made, system), scores, made.workspace.scores),
    ):
        path = folder(name, key, 0)
        if not path.exists():  # what several conditions ask for is drawn once
            yield shards.write(
                path,
                rows,
                shards.SCHEMAS[kind],
                {"kind": kind, "key": key, "name": name, "part": 0, "made_from": "synthetic"},
            )


def _shown(system: System, values: list[list[tuple[str, float]]], failed: np.ndarray) -> set[int]:
    """The samples that the page may choose: the first, the extremes and the median from either end."""
    headline = measures.headline(CONDITIONS[system.condition].kind).name
    told = np.array([dict(it)[headline] for it in values])
    ranked = np.sort(told)
    # and all that are tied with them
    chosen = np.isin(told, ranked[[0, (len(told) - 1) // 2, len(told) // 2, -1]])
    return {*range(leaderboard_evidence.SAME), *np.flatnonzero(chosen), *np.flatnonzero(failed)}


# -- the steps, each in a process of its own -----------------------------------------------------------------


def timed(work: Callable[[], Any]) -> dict[str, float]:
    start, used = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}


def estimated(root: Path) -> dict[str, Any]:
    """Fills the table of scores; what a system that is really estimated takes."""
    made = plan.load_saved(Workspace(root / "workspace"))
    known: dict[tuple[str, bool], list[estimates.Estimated]] = {}
    each: list[dict[str, float]] = []
    scores_of, rng = estimates._scores, np.random.default_rng(0)

    def quick(made: Plan, it: estimates.Scored, real: Any, drawn: Any) -> Iterator[Any]:
        which = CONDITIONS[it.system.condition].kind, it.system.variant == REAL
        if which not in known:
            each.append(timed(lambda: known.update({which: list(scores_of(made, it, real, drawn))})))
        for metric, score, said in known[which]:
            by = FLOOR.get(it.system.variant, 0) * (1 if metric.higher_is_better else -1)
            yield metric, score if it.system.variant == REAL else elsewhere(score, by, rng), said

    estimates._scores = quick  # type: ignore[assignment]
    catalog = Catalog(made.workspace)
    whole = timed(lambda: estimates.estimate(made, catalog, systems(made, catalog)))
    rows, systems_of = catalog.row("SELECT count(*), count(DISTINCT system) FROM scores")
    median = {name: statistics.median(it[name] for it in each) for name in whole}
    return {
        "scores": rows,
        "systems": systems_of,
        "systems_estimated": len(each),
        "median_of_a_system": median,
        "each": each,
        "whole": whole,
    }


def elsewhere(score: Any, by: float, rng: np.random.Generator) -> Any:
    """A score of another system on the same prompts: moved by so many of its errors, and at random."""
    error = score.error or 0.0
    aside = error * (by + rng.normal(0, 4))
    others = score.replicates + aside + rng.normal(0, error / 2, len(score.replicates))
    return replace(score, value=score.value + aside, replicates=others.astype(np.float32))


def written(root: Path, folder: Path) -> dict[str, Any]:
    """The leaderboard from the catalog, as the stage writes it; then again, with nothing changed."""
    parts: dict[str, float] = {}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*given)
            finally:
                parts[name] = time.perf_counter() - start

        return call

    def work() -> None:
        made = plan.load_saved(Workspace(root / "workspace"))
        catalog = Catalog(made.workspace)
        compared = watched("systems", systems)(made, catalog)
        assert leaderboard_scores.write(made, catalog, compared, folder)

    leaderboard_scores._leaderboard = watched("build", leaderboard_scores._leaderboard)
    leaderboard_scores.leaderboard.render = watched("render", leaderboard_scores.leaderboard.render)  # type: ignore[assignment]
    first = timed(work)
    peak, of_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, dict(parts)
    return {"first": first, "parts": of_first, "again": timed(work), "peak_mib": peak}


def joined(root: Path) -> dict[str, Any]:
    """Results of the workspace, those of a twin with other names, and one leaderboard of both."""
    made = plan.load_saved(Workspace(root / "workspace"))
    report = made.workspace.root / "report" / "leaderboard"
    if not (report / "leaderboard.json").exists():
        shutil.copytree(root / "pages-0", report)
    ours, twin = root / "ours.zip", root / "twin.zip"
    exporting = timed(lambda: board_commands.export(made, Catalog(made.workspace), ours, lambda line: None))
    of = results.read(ours)
    own = {each.model for each in of.scores if each.variant in (CONTROL, SHUFFLED)}
    called = {it.system: f"twin-{it.system}" if it.model in own else it.system for it in of.scores}
    name = {it.model: f"twin-{it.model}" if it.model in own else it.model for it in of.scores}
    scores = tuple(replace(it, system=called[it.system], model=name[it.model]) for it in of.scores)
    board = of.board
    other = replace(
        of,
        board=replace(
            board,
            name="twin",
            models=tuple(replace(it, name=name.get(it.name, it.name)) for it in board.models),
            scores=tuple(replace(it, model=name[it.model]) for it in board.scores),
            evidence=tuple(replace(it, model=name[it.model]) for it in board.evidence),
            speeds=(),
        ),
        weights={called[system]: mark for system, mark in of.weights.items()},
        protocols={called[system]: mark for system, mark in of.protocols.items()},
        scores=scores,
        origins={it.system: "twin" for it in scores},
    )
    table = results.samples_of(ours, called, dict.fromkeys(of.origins.values(), "twin"))
    pictures = {path.name: path.read_bytes() for path in (report / "pictures").iterdir()}
    text = listings.lines(listings.plain(other.board, picture_href))
    results.write(twin, other, table, text.encode(), pictures)
    merging = timed(lambda: board_commands.merge([ours, twin], root / "board", lambda line: None))
    found = stored.read(root / "board")
    placed = {it.model for it in found.scores if it.rank}
    return {"export": exporting, "merge": merging, "models": len(placed), "bytes": ours.stat().st_size}


def picture_href(content: Any) -> str | None:
    filed = picture_of(content, {})
    return filed.href if filed else None


def opened(page: Path) -> float:
    """In a new browser: no cache."""
    with chromium() as tab:
        return tab.open(page)


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """In a fresh process: with imports, and its own memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument(
        "--external", type=int, default=4, help="of them somebody else's; the others are runs"
    )
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--keep",
        type=Path,
        help=(
            "put the workspace and the pages here and leave them; one that is there already is measured again"
        ),
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        told_of = root / "estimate.json"
        if not told_of.exists():
            apart(make, root, args.models, args.external, args.samples)
            told_of.write_text(json.dumps(apart(estimated, root)))
        found: dict[str, Any] = {name: getattr(args, name) for name in ("models", "external", "samples")} | {
            "conditions": len(CONDITIONS)
        }
        found |= {
            "estimate": json.loads(told_of.read_text()),
            "machine": machine("cpu"),
            "load": [os.getloadavg()[0]],
        }
        runs = []
        for number in range(args.repeats):
            runs.append(apart(written, root, root / f"pages-{number}"))
            found["load"].append(os.getloadavg()[0])
        pages = root / "pages-0"
        found["merge"] = apart(joined, root)
        shown = {"leaderboard.html": "page", "evidence-canny.html": "evidence"} if PROGRAM else {}
        opening = {name: [opened(pages / file) for _ in range(args.repeats)] for file, name in shown.items()}
        found |= {
            "bytes": {it.name: it.stat().st_size for it in pages.glob("leaderboard.*")},
            "pictures": len(list((pages / "pictures").iterdir())),
        }
    found["write"] = {
        name: statistics.median(run[name]["seconds"] for run in runs) for name in ("first", "again")
    }
    found["write"] |= {
        f"{name} cpu": statistics.median(run[name]["cpu"] for run in runs) for name in ("first", "again")
    }
    found["write"] |= {
        name: statistics.median(run["parts"][name] for run in runs) for name in runs[0]["parts"]
    }
    found |= {
        "open": {name: statistics.median(values) for name, values in opening.items()},
        "peak_mib": max(run["peak_mib"] for run in runs),
    }
    found |= {
        "runs": runs,
        "openings": opening,
        "synthetic": " ".join((__doc__ or "").split("\n\n    ")[0].split()),
    }
    told(found)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


def told(found: dict[str, Any]) -> None:
    text = (
        "{models} models × {conditions} conditions × {samples:,} samples: {systems} systems, {scores:,}"
        " scores, {pictures:,} pictures"
    )
    print(text.format(**found, **found["estimate"]))
    for name, seconds in {
        **found["write"],
        **{f"open the {name}": seconds for name, seconds in found["open"].items()},
    }.items():
        print(f"  {name:20} {seconds:6.2f} s")
    joining = found["merge"]
    print(
        f"  {'export results':20} {joining['export']['seconds']:6.2f} s, {joining['bytes'] / 2**20:.0f} MiB"
    )
    print(f"  {'merge two':20} {joining['merge']['seconds']:6.2f} s, {joining['models']} models")
    one = found["estimate"]["median_of_a_system"]
    print(
        f"  estimate of a system {one['seconds']:6.2f} s, {one['cpu']:.2f} s of CPU (median of"
        f" {found['estimate']['systems_estimated']})"
    )
    print(
        f"  at most {found['peak_mib']:.0f} MiB; load {', '.join(f'{it:.1f}' for it in found['load'])} on"
        f" {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
