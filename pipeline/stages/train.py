"""Pairs -> ControlNets: each of the manifest's runs, one after the other, resumed where it was cut off."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import MillError, shards
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job, JobsFailed
from pipeline.manifest import Run
from pipeline.plan import Plan
from pipeline.stages.annotate import read_annotation
from pipeline.stages.encode import base_fingerprint, base_spec, device, latent_key, load_base, unpack
from pipeline.workspace import Workspace, fingerprint

SMALLEST_SHARE = 0.9  # of each condition's pairs that a joint run must keep


@dataclass(frozen=True)
class PairAddress:
    """Where one pair's pieces lie: shards relative to the workspace; images, maps and latents share the row."""

    image_id: str
    row: int
    latents: str
    maps: dict[str, str]


@dataclass(frozen=True)
class PlannedRun:
    name: str  # conditions and 8 hex of everything that decides its weights
    run: Run
    base: str
    base_fingerprint: str
    pairs: list[PairAddress]


class ShardPairs:
    """train.batches.Pairs over shards; drawing a hint happens here, so training reads what the catalog stores."""

    def __init__(self, workspace: Workspace, addresses: list[PairAddress], empty_text: np.ndarray) -> None:
        self.workspace, self.addresses, self.empty_text = workspace, addresses, empty_text
        self.ids = [address.image_id for address in addresses]
        self._read = functools.lru_cache(maxsize=512)(self._read_pair)

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, index: int) -> Any:
        return self._read(index)

    def _read_pair(self, index: int) -> Any:
        from annotate import maps
        from train.batches import Pair

        address = self.addresses[index]
        stored = shards.read_row(self.workspace.root / address.latents, address.row, ["mean", "std", "text"])
        hints = {}
        for condition, shard in address.maps.items():
            made = read_annotation(self.workspace, shard, address.row, condition)
            assert made.map is not None  # pairs hold `ok` rows only
            hints[condition] = maps.render(made.map)
        return Pair(image_id=address.image_id, hints=hints, **{name: unpack(stored[name]) for name in ("mean", "std", "text")})


def planned_runs(plan: Plan, catalog: Catalog) -> list[PlannedRun]:
    """The manifest's runs with their pairs and names; MillError where a run has nothing to train on."""
    if plan.manifest.train is None:
        return []
    spec = base_spec(plan)
    mark = base_fingerprint(spec)
    return [_planned(plan, catalog, run, spec, mark) for run in plan.manifest.train.runs]


def _planned(plan: Plan, catalog: Catalog, run: Run, spec: str, mark: str) -> PlannedRun:
    key = latent_key(plan, mark)
    latents = dict(catalog.query("SELECT part, path FROM shards WHERE kind = 'latents' AND key = ?", [key]))
    members: dict[str, dict[str, tuple[int, int, str]]] = {}
    for name in run.conditions:
        rows = catalog.query("SELECT image_id, part, row, map_shard FROM pairs WHERE condition = ? AND split = 'train'", [name])
        members[name] = {image_id: (part, row, shard) for image_id, part, row, shard in rows if part in latents}
        if not members[name]:
            raise MillError(
                f"train: {name} has no pairs in the train split: `controlmill status {plan.workspace.root}` shows why; "
                f"loosen conditions.{name}.select, or add images."
            )
    shared = sorted(set.intersection(*(set(rows) for rows in members.values())))
    for name, found in members.items():
        if len(shared) < SMALLEST_SHARE * len(found):
            raise MillError(
                f"train: {' + '.join(run.conditions)} share {len(shared)} pairs, under 90 % of the {len(found)} of {name}: train them apart."
            )
    addresses = [
        PairAddress(
            image_id, members[run.conditions[0]][image_id][1], latents[members[run.conditions[0]][image_id][0]],
            {name: members[name][image_id][2] for name in run.conditions},
        )
        for image_id in shared
    ]  # fmt: skip
    identity = {
        "base": mark, "latents": key, "run": run.identity, "pairs": shared, "version": 2,
        "conditions": {name: plan.conditions[name].fingerprint for name in run.conditions},
    }  # fmt: skip
    return PlannedRun(f"{'+'.join(run.conditions)}-{fingerprint(identity)[:8]}", run, spec, mark, addresses)


def train(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    told, problems = [], []
    for planned in planned_runs(plan, catalog):
        found = catalog.query("SELECT status, images, checkpoint FROM runs WHERE run = ?", [planned.name])
        if found and found[0][0] == "complete" and (plan.workspace.root / found[0][2]).exists():
            told.append(f"{planned.name} is trained")
            continue
        out = plan.workspace.run(planned.name)
        args = {
            "root": str(plan.workspace.root), "out": str(out), "base": planned.base, "run": planned.run.model_dump(),
            "pairs": planned.pairs, "warm_start": _warm_start(plan, catalog, planned.run),
        }  # fmt: skip
        cores = 1 if cluster.gpus else cluster.workers
        try:
            cluster.run(
                train_run, [Job(f"train {planned.name}", args, (0,))], lambda *_: None, label="train", total=planned.run.images,
                cpus=cores, gpus=min(1, cluster.gpus), watch=functools.partial(_images_seen, out),
            )  # fmt: skip
        except JobsFailed as error:  # one run's failure is not the others'
            problems.append(str(error))
            record(plan, catalog, planned.name, reason=str(error))
            continue
        record(plan, catalog, planned.name)
        told.append(f"{planned.name}: {planned.run.images} images of {len(planned.pairs)} pairs")
    if problems:
        raise MillError("\n".join(problems))
    return "; ".join(told)


def record(plan: Plan, catalog: Catalog, name: str, reason: str = "") -> None:
    """What the run's newest checkpoint says, in the catalog."""
    from train import checkpoint

    newest = checkpoint.newest(plan.workspace.run(name))
    meta = newest.meta if newest else {}
    options = meta.get("options", {})
    log = read_log(plan.workspace.run(name))
    catalog.record_run(
        run=name, conditions=meta.get("conditions", []), base=meta.get("base_name", ""), base_fingerprint=meta.get("base", ""),
        random_weights=bool(meta.get("random_weights")), images=newest.images if newest else 0, steps=newest.step if newest else 0,
        seconds=log[-1].get("seconds", 0.0) if log else 0.0, checkpoint=plan.workspace.relative(newest.path) if newest else "",
        options=json.dumps(options), status="complete" if newest and newest.images >= options.get("images", 0) and not reason else "incomplete",
        reason=reason,
    )  # fmt: skip


def record_all(plan: Plan, catalog: Catalog) -> None:
    for folder in sorted((plan.workspace.root / "checkpoints").glob("*/")):
        record(plan, catalog, folder.name)


def read_log(out: Path) -> list[dict[str, Any]]:
    path = out / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the last line of a process that was killed while writing it
    return rows


def _images_seen(out: Path) -> int:
    log = read_log(out)
    return int(log[-1]["images"]) if log else 0


def _warm_start(plan: Plan, catalog: Catalog, run: Run) -> dict[str, str] | None:
    """The ControlNet that the run starts from, its average where one was kept: of a condition trained earlier here, or a folder."""
    from train.average import folder_to_sample

    if run.warm_start is None:
        return None
    rows = catalog.query(
        "SELECT checkpoint FROM runs WHERE list_contains(conditions, ?) AND status = 'complete' ORDER BY images DESC", [run.warm_start]
    )
    folder = plan.workspace.root / rows[0][0] / run.warm_start if rows else Path(run.warm_start)
    if not folder.exists():
        what = "is neither a condition trained before in this workspace nor a ControlNet's folder or file"
        raise MillError(f"train: warm_start {run.warm_start!r} {what}.")
    return {name: str(folder_to_sample(folder)) for name in run.conditions}


def train_run(args: dict[str, Any], rows: tuple[int, ...], deadly: dict[int, str], probe: bool) -> str:
    """In a worker: fits one run, going on from its newest checkpoint."""
    from train import base as bases
    from train.fit import Options, fit

    if probe:
        return ""
    loaded = load_base(args["base"], ("unet", "text_encoder"), device())
    empty = np.asarray(bases.encode_text(loaded, [""])[0])
    pairs = ShardPairs(Workspace(Path(args["root"])), args["pairs"], empty)
    run = Run(**args["run"])
    options = Options(
        images=run.images, batch=run.batch, micro_batch=run.micro_batch, lr=run.lr, prompt_drop=run.prompt_drop, seed=run.seed,
        checkpoint_every=run.checkpoint_every or max(run.batch, run.images // 4), log_every=max(run.batch, run.images // 100),
        connect=run.connect, unlock=run.unlock, unlock_lr=run.unlock_lr, min_snr=run.min_snr, ema=run.ema,
        gradient_checkpointing=run.gradient_checkpointing,
    )  # fmt: skip
    warm = {name: Path(path) for name, path in args["warm_start"].items()} if args["warm_start"] else None
    made = fit(loaded, pairs, run.conditions, options, Path(args["out"]), warm_start=warm, device=device())
    return str(made.path)
