"""The ControlNets that are shipped beside the mini base to start others from: taken out of a workspace with
what they are known to do.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from annotate import maps
from evaluate import fidelity
from pipeline import MillError
from pipeline import plan as plans
from pipeline.benchmark import evidence
from pipeline.benchmark.systems import ALONE, CONTROL, System, systems
from pipeline.catalog import Catalog
from pipeline.experiment.logs import follows, held_out_rows, read_log
from pipeline.plan import Plan
from pipeline.storage.workspace import DAMAGED_CHECKPOINT, Workspace, write_text

COLUMNS = 8  # pictures of a row of the grid
NOTE = "controlmill.json"


def export_roots(
    workspace: Workspace,
    wanted: Collection[str],  # conditions; none = all that are trained
    dest: Path,
) -> dict[str, Any]:  # by condition
    """Writes DEST/<condition> in the diffusers layout, bfloat16, each with a note, and a card of them all."""
    from train import average, checkpoint

    plan, catalog = plans.load_saved(workspace), Catalog(workspace)
    facts = {}
    for system in _trained(plan, catalog, wanted):
        condition = system.condition
        try:
            checkpoint.check_controlnet(workspace.root / system.checkpoint)
        except checkpoint.Damaged as error:
            raise MillError(f"{error}: {DAMAGED_CHECKPOINT}.") from error
        folder = average.folder_to_sample(workspace.root / system.checkpoint)
        checkpoint.write_rounded(folder, dest / condition)
        facts[condition] = (
            _facts(plan, catalog, system)
            | _sampling(plan)
            | {"weights": checkpoint.weights_hash(dest / condition)}
        )
        write_text(dest / condition / NOTE, json.dumps(facts[condition], indent=1) + "\n")
    write_text(dest / "README.md", _card(facts))
    return facts


def _sampling(plan: Plan) -> dict[str, Any]:
    """How it was drawn with when its fidelity was measured: what `controlmill sample` takes where nothing is
    said.
    """
    evaluated = plan.manifest.evaluate
    return (
        {"sampling": evaluated.benchmark.stored("steps", "guidance", "scale", "guide_hint")}
        if evaluated
        else {}
    )


def _trained(plan: Plan, catalog: Catalog, wanted: Collection[str]) -> list[System]:
    """ControlNets of runs that are complete."""
    made = [
        it for it in systems(plan, catalog) if it.arm == CONTROL and not Path(it.checkpoint).is_absolute()
    ]
    lacking = [name for name in wanted if all(it.condition != name for it in made)]
    if lacking or not made:
        what = f"no run of {' or '.join(lacking)}" if lacking else "no run of its manifest"
        raise MillError(f"{plan.workspace.root}: {what} is complete: `controlmill run` goes on with them.")
    return [it for it in made if not wanted or it.condition in wanted]


def _facts(plan: Plan, catalog: Catalog, system: System) -> dict[str, Any]:
    run = Path(system.checkpoint).parent.parent.name
    log = read_log(plan.workspace.run(run))
    kept = ("n", "gap", "gap_error", "control", "control_z")
    curve = [
        {"images": images, **{key: told.get(key) for key in kept}}
        for images, told in held_out_rows(log, system.condition)
    ]
    images, seconds, options = catalog.row("SELECT images, seconds, options FROM runs WHERE run = ?", [run])
    return {
        "images": images,
        "seconds": round(seconds),
        "options": json.loads(options),
        "curve": curve,
        "follows_since": follows(log).get(system.condition),
        "fidelity": _fidelity(catalog, system),
    }


def _fidelity(catalog: Catalog, system: System) -> dict[str, Any]:
    """The telling measure of its kind, beside everything else of the same benchmark."""
    rows = catalog.query(
        "SELECT variant, model, metric, value, low, high, n FROM scores WHERE condition = ? AND benchmark = ?"
        " ORDER BY ALL",
        [system.condition, system.benchmark],
    )
    telling = [row for row in rows if row[2] in fidelity.METRICS and fidelity.METRICS[row[2]].primary]
    found = {
        arm: [value, low, high]
        for arm, model, _, value, low, high, _ in telling
        if arm in ALONE or model == system.model
    }
    return {"metric": telling[0][2], "n": telling[0][6], **found} if telling else {}


def _card(facts: dict[str, Any]) -> str:  # Markdown
    arms = ("control", "shuffled_condition", "no_control", "vae_round_trip", "real_image")
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
        f"| condition | measure | n | {' | '.join(arm.replace('_', ' ') for arm in arms)} |",
        f"|---|---|---|{'---|' * len(arms)}",
        *(
            _fidelity_row(condition, it["fidelity"], arms)
            for condition, it in facts.items()
            if it["fidelity"]
        ),
        "",
        (
            "**Loss gap against images seen**: by how much a thousandth of held-out loss is lower with the"
            " image's own hint than with another's."
        ),
        "",
        *(line for condition, it in facts.items() for line in _curve(condition, it)),
        "**Licence.** Apache-2.0.",
        "",
    ]
    return "\n".join(lines)


def _fidelity_row(condition: str, found: dict[str, Any], arms: tuple[str, ...]) -> str:
    cells = [
        f"{found[arm][0]:.3f} ({found[arm][1]:.3f} to {found[arm][2]:.3f})" if found.get(arm) else "–"
        for arm in arms
    ]
    return f"| `{condition}` | {found['metric']} | {found['n']} | {' | '.join(cells)} |"


def _curve(condition: str, it: dict[str, Any]) -> Iterator[str]:
    since = (
        f"follows its hints since {it['follows_since']:,} images"
        if it["follows_since"] is not None
        else "the alarm has not told yet"
    )
    yield (
        f"- `{condition}`, {it['images']:,} images, {it['seconds'] / 60:.0f} minutes; {since}: "
        + ", ".join(f"{1000 * (point['control'] or 0):.1f} at {point['images']:,}" for point in it["curve"])
    )
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
        found = list(
            {
                it.image_id: it for it in reversed(evidence.samples(plan, catalog, [system])[system.name])
            }.values()
        )[-COLUMNS:]
        places = evidence.photographs(catalog, [it.image_id for it in found])
        asked = [items[it.image_id] for it in found]
        hints = [
            maps.render(evidence.truth(workspace, system, item), size=(item.height, item.width))
            for item in asked
        ]
        rows += [np.hstack(hints), np.hstack([evidence.drawn(workspace, it) for it in found])]
        rows += [
            np.hstack([evidence.photograph(workspace, places[it.image_id]) for it in found]),
            np.full((8, rows[-1].shape[1], 3), 255, np.uint8),
        ]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows[:-1]]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, quality=90)
