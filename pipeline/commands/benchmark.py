"""The frozen benchmark as a folder for others: written from a workspace, and pictures checked against it."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from annotate import maps
from annotate.conditions import CONDITIONS
from pipeline import MillError, __version__
from pipeline.benchmark import admission, artifact, submissions
from pipeline.benchmark.artifact import PublishedTask
from pipeline.benchmark.evidence import photographs
from pipeline.benchmark.resemblance import Code, Codes
from pipeline.benchmark.systems import Item, held_out
from pipeline.benchmark.tasks import FrozenTask, frozen_task, name_of, protocol
from pipeline.catalog import Catalog
from pipeline.cluster.progress import Progress
from pipeline.dataset.layouts import suffix_of
from pipeline.dataset.maps import read_map
from pipeline.plan import Plan
from pipeline.storage import codec, shards
from pipeline.storage.new_folder import new_folder
from pipeline.storage.workspace import sha256_file, write_text

TEMPLATES = Path(__file__).parent / "templates"
SCENES_LICENCE = "CC0-1.0 (rendered scenes)"
UNKNOWN_LICENCE = "not stated by the makers of this benchmark: ask them"


def export(
    plan: Plan,
    catalog: Catalog,
    dest: Path,
    names: list[str],  # conditions
    *,
    with_images: bool,
    say: Callable[[str], None],
) -> list[PublishedTask]:
    """A folder per condition below `dest`, whole or not at all. MillError where it can't."""
    place = dest.expanduser().resolve()
    published: list[PublishedTask] = []
    codes: dict[str, Code] = {}
    with new_folder(place) as folder, Progress("benchmark", len(names)) as progress:
        for name in names:
            published.append(_export_condition(plan, catalog, folder / name, name, with_images, codes))
            progress.add(1)
        _write_readme(folder, published, with_images)
    for each in published:
        task = each.task
        count = f"{len(task.items)} prompts with {len(task.seeds)} seeds"
        say(f"{dest / task.condition}: {count}, task {task.identity}")
    return published


def _export_condition(
    plan: Plan,
    catalog: Catalog,
    folder: Path,
    condition: str,
    with_images: bool,
    codes: dict[str, Code],  # of photographs that other conditions have too
) -> PublishedTask:
    assert plan.manifest.evaluate is not None
    task, items = frozen_task(plan, catalog, condition), held_out(plan, catalog, condition)
    if len({name_of(item.image_id) for item in items}) < len(items):
        raise MillError(f"{condition}: two held-out images share the first 16 digits of their id.")
    for inside in (artifact.HINTS, artifact.RAW_HINTS, *[artifact.IMAGES] * with_images):
        (folder / inside).mkdir(parents=True)

    def write(item: Item) -> None:
        stored, name = read_map(plan.workspace, item.map_shard, item.row, condition), name_of(item.image_id)
        raw = maps.portable(maps.encode(stored))
        drawn = codec.encode(maps.render(stored, size=(item.height, item.width)), "png")
        (folder / artifact.HINTS / f"{name}.png").write_bytes(drawn)
        (folder / artifact.RAW_HINTS / f"{name}.{suffix_of(raw)}").write_bytes(raw)
        about = json.dumps({"kind": stored.kind, "meta": stored.meta}, sort_keys=True)
        (folder / artifact.RAW_HINTS / f"{name}.json").write_text(about)
        if with_images:
            shard, row = places[item.image_id]
            image = shards.read_row(plan.workspace.root / shard, row, ["image"])["image"]
            (folder / artifact.IMAGES / f"{name}.{suffix_of(image)}").write_bytes(image)

    ids = [item.image_id for item in items]
    places = photographs(catalog, ids) if with_images else {}
    with ThreadPoolExecutor() as pool:  # drawing and PNG coding mostly run outside Python's lock
        list(pool.map(write, items))
    rows = list(_rows(task))
    write_text(folder / artifact.PROMPTS, _csv(rows))
    _write_parquet(folder, rows)
    frozen, reader = plan.manifest.evaluate.benchmark, plan.reader(condition)
    published = PublishedTask(
        name=plan.manifest.name,
        title=CONDITIONS[condition].title,
        kind=CONDITIONS[condition].kind,
        task=task,
        reader=f"{reader.step.detector} {reader.fingerprint}",
        protocol=protocol(frozen, plan.manifest.base or "none"),
        licence=_licence(plan),
        made_by=f"controlmill {__version__}",
        held_out=admission.codes_of(plan, catalog, ids, codes),
        files={},
    )
    published = replace(published, files=dict(sorted(_hashes(folder))))
    write_text(folder / artifact.FILE, json.dumps(published.as_json(), indent=1, ensure_ascii=False) + "\n")
    return published


def check(benchmark: Path, images: Path, say: Callable[[str], None]) -> int:
    """Of pictures that were made for an exported benchmark: how many sentences there are about what is wrong
    with them. `benchmark` is the folder of a condition, or holds such folders; `images` likewise.
    """
    pairs = [(benchmark, images)]
    if not (benchmark / artifact.FILE).exists():
        below = sorted(path.parent for path in benchmark.glob(f"*/{artifact.FILE}"))
        if not below:
            artifact.read(benchmark)  # says that it is none
        pairs = [(folder, images / folder.name) for folder in below if (images / folder.name).is_dir()]
        if not pairs:
            raise MillError(
                f"{images} has no folder of a condition of {benchmark}: name its folders"
                f" {', '.join(folder.name for folder in below)}, or check one of them at a time."
            )
    count = 0
    for folder, pictures in pairs:
        found = list(_faults(folder, pictures))
        count += len(found)
        for sentence in found:
            say(f"{pictures}: {sentence}")
        if not found:
            say(f"{pictures}: may enter the benchmark {folder.name} as it is.")
    return count


def _faults(folder: Path, pictures: Path) -> Iterator[str]:
    published = artifact.read(folder)
    yield from artifact.changed(folder, published.files)
    try:
        given = submissions.read(pictures)
    except MillError as error:
        yield str(error)
        return
    yield from admission.faults(published.task, given, Codes(published.held_out))


def _rows(task: FrozenTask) -> Iterator[dict[str, Any]]:
    for sample in task.samples():
        item = sample.item
        yield {
            "file": sample.file,
            "hint": f"{artifact.HINTS}/{name_of(item.image_id)}.png",
            "shuffled_hint": f"{artifact.HINTS}/{name_of(sample.other.image_id)}.png",
            "prompt": item.caption,
            "seed": sample.seed,
            "width": item.width,
            "height": item.height,
        }


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, artifact.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The same rows with the hints inside, which `datasets.load_dataset` shows as pictures."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole = datasets.Value("string"), datasets.Value("int64")
    features = dict.fromkeys(artifact.COLUMNS, text) | dict.fromkeys(("seed", "width", "height"), whole)
    features |= dict.fromkeys(("hint", "shuffled_hint"), datasets.Image())
    pictures = {
        path.name: {"bytes": path.read_bytes(), "path": path.name}
        for path in (folder / artifact.HINTS).iterdir()
    }
    table = [
        row | {name: pictures[Path(row[name]).name] for name in ("hint", "shuffled_hint")} for row in rows
    ]
    schema = datasets.Features(features).arrow_schema
    pq.write_table(pa.Table.from_pylist(table, schema=schema), folder / artifact.PARQUET, row_group_size=100)


def _hashes(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), sha256_file(path)


def _licence(plan: Plan) -> str:
    assert plan.manifest.evaluate is not None
    if plan.manifest.evaluate.benchmark.licence:
        return plan.manifest.evaluate.benchmark.licence
    is_scenes = all(source.kind == "scenes" for source in plan.manifest.source)
    return SCENES_LICENCE if is_scenes else UNKNOWN_LICENCE


def _write_readme(folder: Path, published: list[PublishedTask], with_images: bool) -> None:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("benchmark.md").render(
        published=published, first=published[0], facts=submissions.TOLD, with_images=with_images
    )
    write_text(folder / "README.md", text)
