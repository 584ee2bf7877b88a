"""A leaderboard's results out, as one file or in the shape of another tool; several of them as one board."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import MillError
from pipeline.benchmark.systems import ALONE, CONTROL, EARLIER, System, systems
from pipeline.benchmark.tasks import frozen_task, protocol
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.report import leaderboard, listings, results, stored
from pipeline.report.leaderboard_data import Score
from pipeline.report.leaderboard_scores import catalog_scores
from pipeline.report.merging import merged, sources_of
from pipeline.report.placing import CatalogScore
from pipeline.report.results import BOARD, SAMPLE_COLUMNS, Mark, Results
from pipeline.report.site import PICTURES
from pipeline.storage.workspace import fingerprint, write_text

RESULTS = "results.zip"  # beside a merged board, so that it can be merged again
SAMPLES = """SELECT system, $origin AS origin, condition, image_id, seed, status, reason, metric, value
             FROM sample_scores WHERE system IN (SELECT unnest($systems)) ORDER BY ALL"""


def export(plan: Plan, catalog: Catalog, out: Path, say: Callable[[str], None]) -> None:
    """The results of a workspace whose report was written. MillError where it was not, or is an older one."""
    found, samples = _of_workspace(plan, catalog)
    folder = plan.workspace.root / "report" / "leaderboard"
    board = (folder / BOARD).read_bytes()
    pictures = {path.name: path.read_bytes() for path in _pictures(folder, board)}
    results.write(out, found, samples, board, pictures)
    say(f"{out}: {len(found.scores):,} scores of {len(found.weights)} systems on {', '.join(found.marks)}")


def merge(paths: Sequence[Path], out: Path, say: Callable[[str], None]) -> None:
    """A leaderboard of all of them, and its results. MillError where they can't be compared."""
    read = [(path, results.read(path)) for path in paths]
    found = merged(read)
    tables = [results.samples_of(it.path, it.names, it.origins) for it in sources_of(read)]
    page = leaderboard.render(found.board, out)
    board = (out / BOARD).read_bytes()
    pictures = {path.name: path.read_bytes() for path in _pictures(out, board)}
    results.write(out / RESULTS, found, pa.concat_tables(tables), board, pictures)
    say(f"{page}: {len(found.scores):,} scores of {len(paths)} leaderboards")


def lm_eval(plan: Plan, catalog: Catalog, out: Path, say: Callable[[str], None]) -> None:
    """A JSON for each model in the shape of lm-evaluation-harness: a task for each condition."""
    found, _ = _of_workspace(plan, catalog)
    by_model: dict[str, list[CatalogScore]] = {}
    for each in found.scores:
        if each.variant == CONTROL:
            by_model.setdefault(each.model, []).append(each)
    for model, scores in by_model.items():
        text = json.dumps(_lm_eval(found, model, scores), indent=2, ensure_ascii=False)
        write_text(out / f"results_{model}.json", text + "\n")
    say(f"{out}: {len(by_model)} files, one for each model")


def _lm_eval(found: Results, model: str, scores: Sequence[CatalogScore]) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    better: dict[str, dict[str, bool]] = {}
    counts: dict[str, dict[str, int]] = {}
    for each in scores:
        task = tasks.setdefault(each.condition, {"alias": each.condition})
        task[f"{each.metric},none"] = each.value
        task[f"{each.metric}_stderr,none"] = "N/A" if each.score.error is None else each.score.error
        better.setdefault(each.condition, {})[each.metric] = each.higher_is_better
        counts[each.condition] = {"original": each.n, "effective": each.n - each.n_failed}
    benchmarks = {benchmark.condition: vars(benchmark) for benchmark in found.board.benchmarks}
    return {
        "results": tasks,
        "versions": {name: found.marks[name].task for name in tasks},
        "configs": {name: benchmarks[name] for name in tasks},
        "n-samples": counts,
        "higher_is_better": better,
        "task_hashes": {name: found.marks[name].task for name in tasks},
        "model_name": model,
        "date": found.board.made_at,
        "controlmill_version": found.board.version,
    }


def _of_workspace(plan: Plan, catalog: Catalog) -> tuple[Results, pa.Table]:
    again = "`controlmill run MANIFEST --stages report` writes it"
    try:
        board = stored.read(plan.workspace.root / "report" / "leaderboard")
    except MillError as error:
        raise MillError(f"{plan.workspace.address} has no leaderboard yet: {again}.") from error
    with catalog.reading():
        compared = {it.name: it for it in systems(plan, catalog) if it.variant != EARLIER}
        scores = tuple(each for each in catalog_scores(catalog) if each.system in compared)
        origin = plan.manifest.name
        table = catalog.arrow(SAMPLES, {"origin": origin, "systems": list(compared)})
    if {_key(compared, each) for each in scores} != {_shown_key(score) for score in board.scores}:
        raise MillError(f"The leaderboard of {plan.workspace.address} is older than its scores: {again}.")
    scores = tuple(replace(each, model=compared[each.system].shown) for each in scores)
    names = list(dict.fromkeys(each.condition for each in scores))
    assert plan.manifest.evaluate is not None
    shared = fingerprint(protocol(plan.manifest.evaluate.benchmark, plan.manifest.base or "none"))
    found = Results(
        board=board,
        marks={name: _mark(plan, catalog, name, scores) for name in names},
        weights={
            name: _weights(plan, compared[name]) for name in dict.fromkeys(each.system for each in scores)
        },
        scores=scores,
        origins={each.system: origin for each in scores},
        protocols={each.system: "" if compared[each.system].pictures else shared for each in scores},
    )
    return found, table.cast(pa.schema(SAMPLE_COLUMNS))


def _key(compared: Mapping[str, System], of: CatalogScore) -> tuple[str, str, str, str, float]:
    return compared[of.system].shown, of.variant, of.condition, of.metric, of.value


def _shown_key(score: Score) -> tuple[str, str, str, str, float]:
    return score.model, score.arm, score.condition, score.metric, score.value


def _mark(plan: Plan, catalog: Catalog, condition: str, scores: Sequence[CatalogScore]) -> Mark:
    reader = plan.reader(condition)
    prompts = next(each.prompts for each in scores if each.condition == condition)
    return Mark(
        task=frozen_task(plan, catalog, condition).identity,
        reader=f"{reader.step.detector} {reader.fingerprint}",
        prompts=prompts,
        draws=results.draws_hash(prompts),
    )


def _weights(plan: Plan, system: System) -> str:
    """By content: of a ControlNet its file, of pictures theirs, of a baseline what it is asked for."""
    from train import integrity, pretrained

    if system.checkpoint:
        place = plan.workspace.root / system.checkpoint
        try:
            return pretrained.weights_hash(integrity.folder_to_sample(place))
        except OSError:  # taken away since it was scored
            return system.weights
    return system.key if system.variant in ALONE else system.weights


def _pictures(folder: Path, board: bytes) -> list[Path]:
    """Those that a board's evidence shows."""
    shown = json.loads(board)["evidence"]
    names = {row[name] for row in shown for name in listings.PICTURES if row[name]}
    return sorted(folder / name for name in names if name.startswith(f"{PICTURES}/"))
