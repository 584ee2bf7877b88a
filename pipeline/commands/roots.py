"""The ControlNets that are shipped beside the mini base to start others from: taken out of a workspace with
what they are known to do.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from evaluate import fidelity
from pipeline import MillError
from pipeline import plan as plans
from pipeline.benchmark import evidence
from pipeline.benchmark.systems import ALONE, CONTROL, System, systems
from pipeline.catalog import Catalog, snapshots
from pipeline.experiment.logs import follows, held_out_rows, read_log
from pipeline.plan import Plan
from pipeline.report.summary import thousandths
from pipeline.storage import folders
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, Workspace, write_text

COLUMNS = 8  # pictures of a row of the grid
NOTE = "controlmill.json"
ARMS = ("control", "shuffled_condition", "no_control", "vae_round_trip", "real_image")


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """The headline metric of a condition's benchmark."""

    metric: str
    n: int
    by_variant: dict[str, tuple[float, float | None, float | None]]  # value, 95 % interval

    def as_json(self) -> dict[str, object]:
        return {"metric": self.metric, "n": self.n, **self.by_variant}


@dataclass(frozen=True, kw_only=True)
class GainPoint:
    """What the held-out pairs said, as the log has it."""

    images: int
    n: int | None
    gap: float | None  # conditioning gain, and its standard error
    gap_error: float | None
    control: float | None  # the gain over a shuffled condition
    control_z: float | None


@dataclass(frozen=True, kw_only=True)
class ShippedControlNet:
    """What is known of a ControlNet; written beside its weights."""

    images: int
    seconds: int
    options: dict[str, Any]  # train.options.Options of its run
    curve: list[GainPoint]
    follows_since: int | None  # convergence step
    fidelity: Fidelity | None  # None = not scored
    sampling: dict[str, Any] | None  # how it was drawn when it was scored; `controlmill sample` takes it
    weights: str  # hash

    def as_json(self) -> dict[str, object]:
        stored = {each.name: getattr(self, each.name) for each in fields(self)}
        stored |= {
            "curve": [asdict(point) for point in self.curve],
            "fidelity": self.fidelity.as_json() if self.fidelity else {},
        }
        return {key: value for key, value in stored.items() if key != "sampling" or value is not None}


def export_roots(
    workspace: Workspace,
    wanted: Collection[str],  # conditions; none = all that are trained
    dest: Path,
) -> None:
    """Writes DEST/<condition> in the diffusers layout, bfloat16, each with a note, and a card of them all.

    MillError where a wanted condition has no complete run, there is no complete run at all, or a checkpoint
    is damaged.
    """
    from train import integrity, pretrained

    snapshots.fetch(workspace)
    folders.bring_each(workspace.root / "checkpoints")
    plan, catalog = plans.load_saved(workspace), Catalog(workspace)
    shipped = {}
    for system in _trained(plan, catalog, wanted):
        condition = system.condition
        try:
            integrity.check_controlnet(workspace.root / system.checkpoint)
        except integrity.Damaged as error:
            raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
        folder = integrity.folder_to_sample(workspace.root / system.checkpoint)
        pretrained.write_rounded(folder, dest / condition)
        weights = pretrained.weights_hash(dest / condition)
        shipped[condition] = _shipped(plan, catalog, system, weights)
        note = json.dumps(shipped[condition].as_json(), indent=1)
        write_text(dest / condition / NOTE, note + "\n")
    write_text(dest / "README.md", _card(shipped))


def _trained(plan: Plan, catalog: Catalog, wanted: Collection[str]) -> list[System]:
    """ControlNets of runs that are complete."""
    trained = [
        system
        for system in systems(plan, catalog)
        if system.variant == CONTROL and not Path(system.checkpoint).is_absolute()
    ]
    lacking = [name for name in wanted if all(system.condition != name for system in trained)]
    if lacking or not trained:
        what = f"no run of {' or '.join(lacking)}" if lacking else "no run of its manifest"
        raise MillError(f"{plan.workspace.address}: {what} is complete: `controlmill run` goes on with them.")
    return [system for system in trained if not wanted or system.condition in wanted]


def _shipped(plan: Plan, catalog: Catalog, system: System, weights: str) -> ShippedControlNet:
    run = Path(system.checkpoint).parent.parent.name
    log = read_log(plan.workspace.run(run))
    kept = ("n", "gap", "gap_error", "control", "control_z")
    images, seconds, options = catalog.row("SELECT images, seconds, options FROM runs WHERE run = ?", [run])
    evaluated = plan.manifest.evaluate
    return ShippedControlNet(
        images=images,
        seconds=round(seconds),
        options=json.loads(options),
        curve=[
            GainPoint(images=seen, **{key: measured.get(key) for key in kept})
            for seen, measured in held_out_rows(log, system.condition)
        ],
        follows_since=follows(log).get(system.condition),
        fidelity=_fidelity(catalog, system),
        sampling=evaluated.benchmark.stored("steps", "guidance", "scale", "guide_hint", "sampler")
        if evaluated
        else None,
        weights=weights,
    )


def _fidelity(catalog: Catalog, system: System) -> Fidelity | None:
    """Beside everything else of the same benchmark."""
    rows = catalog.query(
        "SELECT variant, model, metric, value, low, high, n FROM scores WHERE condition = ? AND benchmark = ?"
        " ORDER BY ALL",
        [system.condition, system.benchmark],
    )
    headline = [row for row in rows if row[2] in fidelity.METRICS and fidelity.METRICS[row[2]].primary]
    if not headline:
        return None
    return Fidelity(
        metric=headline[0][2],
        n=headline[0][6],
        by_variant={
            arm: (value, low, high)
            for arm, model, _, value, low, high, _ in headline
            if arm in ALONE or model == system.model
        },
    )


def _card(shipped: dict[str, ShippedControlNet]) -> str:  # Markdown
    lines = [
        "# ControlNets on ControlMill's mini base",
        "",
        (
            "Made to start others from (`warm_start: mini/canny`), by `controlmill run"
            " manifests/showcase.yaml` and `controlmill mini roots runs/showcase --export train/mini/roots`."
            " They know rendered scenes and nothing else. Averages of the weights, in bfloat16."
        ),
        "",
        (
            "**Fidelity** on held-out scenes, with 95 % intervals: what is read again from samples, against"
            " the condition that they were made from."
        ),
        "",
        f"| condition | measure | n | {' | '.join(arm.replace('_', ' ') for arm in ARMS)} |",
        f"|---|---|---|{'---|' * len(ARMS)}",
        *(_fidelity_row(condition, one.fidelity) for condition, one in shipped.items() if one.fidelity),
        "",
        (
            "**Conditioning gain over a shuffled condition against images seen**: by how many thousandths the"
            " held-out loss is lower with the image's own hint than with another image's."
        ),
        "",
        *(line for condition, one in shipped.items() for line in _curve(condition, one)),
        "**Licence.** Apache-2.0.",
        "",
    ]
    return "\n".join(lines)


def _fidelity_row(condition: str, scored: Fidelity) -> str:
    cells = []
    for arm in ARMS:
        value, low, high = scored.by_variant.get(arm, (None, None, None))
        cells.append("–" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})")
    return f"| `{condition}` | {scored.metric} | {scored.n} | {' | '.join(cells)} |"


def _curve(condition: str, one: ShippedControlNet) -> Iterator[str]:
    since = (
        f"follows its hints since {one.follows_since:,} images"
        if one.follows_since is not None
        else "not seen to follow its hints yet"
    )
    points = ", ".join(f"{thousandths(point.control or 0):.1f} at {point.images:,}" for point in one.curve)
    yield f"- `{condition}`, {one.images:,} images, {one.seconds / 60:.0f} minutes; {since}: {points}"
    yield ""


def draw_grid(workspace: Workspace, wanted: Collection[str], path: Path) -> None:
    """For each condition: hints, what was made of them, and the pictures that they were read from, one below
    the other.
    """
    from PIL import Image

    plan, catalog = plans.load_saved(workspace), Catalog(workspace)
    rows: list[np.ndarray] = []
    for system in _trained(plan, catalog, wanted):
        items = {item.image_id: item for item in system.items}
        samples = evidence.samples(plan, catalog, [system])[system.name]
        shown = list({sample.image_id: sample for sample in reversed(samples)}.values())[-COLUMNS:]
        places = evidence.photographs(catalog, [sample.image_id for sample in shown])
        hints = [
            maps.render(evidence.truth(workspace, system, item), size=(item.height, item.width))
            for item in (items[sample.image_id] for sample in shown)
        ]
        rows += [np.hstack(hints), np.hstack([evidence.drawn(workspace, sample) for sample in shown])]
        rows += [
            np.hstack([evidence.photograph(workspace, places[sample.image_id]) for sample in shown]),
            np.full((8, rows[-1].shape[1], 3), 255, np.uint8),
        ]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows[:-1]]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, quality=90)
