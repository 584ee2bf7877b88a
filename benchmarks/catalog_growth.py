"""Whether the catalog's costs follow what is new, not what there is: commits, counts, plans and selections
beside one, three and ten million images.

Catalogs are made up by bulk inserts, with the plans of a manifest of three or of all thirteen conditions;
what is committed to them are records of shards as workers return them, of which no file exists. Each row is
measured in a process of its own.

    python benchmarks/catalog_growth.py --out catalog_growth.json
    python benchmarks/catalog_growth.py --check
"""

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from annotate.conditions import CONDITIONS
from pipeline import manifest as manifests
from pipeline import plan as plans
from pipeline import run
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.report import counts
from pipeline.stages import annotate, stage
from pipeline.storage import shards
from pipeline.storage.shards import Shard

PART = 256  # images in a shard
TOGETHER = 100  # shards of each kind in a commit: what comes together in a second at the rates asked for
COMMITS = 8
FOLLOWERS = 20  # one image in so many follows the one before it
FLAT = 1.25  # with `--check`: times as long, at most, beside four times as many images
CHOSEN = {
    "canny": "",
    "hough": "select: {where: 'n_lines >= 1', limit: 600_000}",
    "hed": "select: {order_by: sharpness DESC, limit: 200_000}",
}
MANIFEST = """
name: growth
workspace: {root}/ws
source: {{kind: list, path: {root}/list.jsonl}}
split: {{validation: 0.001, test: 0.001, near: null}}
where: "first_of_group AND least(raw_width, raw_height) >= 512"
conditions: {{{conditions}}}
"""
Row = dict[str, float | int | str]


# --- a catalog, made up ---


def planned(root: Path, count: int) -> Plan:
    """A plan of so many conditions, in `root`."""
    names = [*CHOSEN, *(name for name in CONDITIONS if name not in CHOSEN)][:count]
    path = root / "manifest.yaml"
    chosen = ", ".join(f"{name}: {{{CHOSEN.get(name, '')}}}" for name in names)
    path.write_text(MANIFEST.format(root=root, conditions=chosen))
    return plans.make(manifests.load(path), here=False)


def fill(root: Path, images: int, conditions: int) -> None:
    """A workspace with so many images and all their maps, of which the catalog alone is there; adds what is
    missing of it.
    """
    plan = planned(root, conditions)
    plan.workspace.create()
    catalog = Catalog(plan.workspace)
    catalog.create()
    plans.save(plan)
    run.activate(plan, catalog)
    (there,) = catalog.row("SELECT count(*) FROM image_rows")
    first, parts = there // PART, -(-images // PART)
    (last,) = catalog.row("SELECT coalesce(max(shard_number), 0) FROM shard_rows")
    # conditions that share maps have them once
    makers = list({(it.maps, it.fingerprint): it for it in plan.conditions.values()}.values())
    for number, it in enumerate([None, *makers]):
        kind = "maps" if it else "images"
        start = last + 1 + number * (parts - first)
        given = {
            "kind": kind, "key": it.fingerprint if it else plan.image_key, "name": it.maps if it else None,
            "image_key": plan.image_key, "start": start, "first": first, "parts": parts,
            "folder": f"shards/{kind}/{it.maps if it else plan.image_key}", "rows": PART,
        }  # fmt: skip
        numbers = {name: given[name] for name in ("start", "first", "parts", "rows")}
        with catalog.transaction(limited=False) as connection:
            connection.execute(SHARDS, given)
            for sql in (MAP_ROWS,) if it else (IMAGE_ROWS, SOURCE_ROWS):
                connection.execute(sql, numbers)
    catalog.checkpoint()


SHARDS = """
    INSERT INTO shard_rows BY NAME
    SELECT $start + i - $first AS shard_number, $kind AS kind, $key AS key, $name AS name,
           $image_key AS image_key, i AS part, $folder || '/part-' || lpad(i::VARCHAR, 6, '0') AS shard,
           $rows AS rows, 2500000 AS bytes, sha256(i::VARCHAR) AS sha256, now()::TIMESTAMP AS committed
    FROM range($first, $parts) t(i)"""
ALL = """range($first * $rows, $parts * $rows) t(i)"""
OF_SHARD = "(i + 1)::INTEGER AS image, $start + i // $rows - $first AS shard_number, i % $rows AS row"
IMAGE_ROWS = f"""
    INSERT INTO image_rows BY NAME
    SELECT {OF_SHARD}, sha256(i::VARCHAR) AS image_id, 'ok' AS status, '' AS reason,
           512 AS width, 512 AS height, 1024 AS raw_width, 768 AS raw_height, 'JPEG' AS raw_format,
           200000 AS raw_bytes, sha256((i - (i % {FOLLOWERS} = 7)::INT)::VARCHAR) AS group_id,
           CASE WHEN i % 1000 = 0 THEN 'test' WHEN i % 1000 = 1 THEN 'validation' ELSE 'train' END AS split,
           hash(i) % 1000003 / 1000 AS sharpness, 0.2 AS contrast, hash(i, 1) % 3000 / 100 AS colour,
           false AS grey, hash(i, 2) AS phash, 1 AS frames, 1024 AS upright_width, 768 AS upright_height,
           0 AS crop_left, 0 AS crop_top, 768 AS crop_width, 768 AS crop_height
    FROM {ALL}"""
SOURCE_ROWS = f"""
    INSERT INTO source_rows BY NAME
    SELECT {OF_SHARD}, '/data/photos/' || lpad((i // 1000)::VARCHAR, 4, '0') || '/' || i || '.jpg' AS uri,
           'a photograph number ' || i || ' of a thing' AS caption, [caption] AS captions,
           '{{"similarity":' || i % 1000 / 1000 || ',"source":"internet"}}' AS fields, '' AS stamp
    FROM {ALL}"""
MAP_ROWS = f"""
    INSERT INTO annotation_rows BY NAME
    SELECT {OF_SHARD}, CASE WHEN i % 500 = 0 THEN 'skipped' WHEN i % 5001 = 0 THEN 'failed' ELSE 'ok' END
           AS status,
           CASE WHEN i % 500 = 0 THEN 'nothing in it' WHEN i % 5001 = 0 THEN 'ValueError: x' ELSE '' END
           AS reason, 0.01 AS seconds,
           map {{'edge_density': hash(i, 3) % 10007 / 10007, 'n_lines': (hash(i, 4) % 50)::DOUBLE}}
           AS measures
    FROM {ALL}"""


# --- what is measured ---


def commits(root: Path, images: int) -> Row:
    """Rows a second of commits of images and of three kinds of maps, the first commit apart: it loads what is
    known.
    """
    plan = planned(root, len(CHOSEN))
    catalog = Catalog(plan.workspace)
    first, seconds = -(-images // PART), []
    for turn in range(COMMITS + 1):
        parts = range(first + turn * TOGETHER, first + (turn + 1) * TOGETHER)
        of_images = [image_shard(plan, part) for part in parts]
        of_maps = [map_shard(plan, name, shard) for shard in of_images for name in plan.conditions]
        start = time.perf_counter()
        catalog.commit(*of_images)
        catalog.commit(*of_maps)
        seconds.append(time.perf_counter() - start)
    rows = TOGETHER * PART * (1 + len(plan.conditions))
    return {
        "images": images, "rows_per_s": round(rows * COMMITS / sum(seconds[1:])),
        "first_s": round(seconds[0], 2), "longest_s": round(max(seconds[1:]), 3),
        "peak_mb": peak(), "file_mb": catalog.path.stat().st_size // 10**6,
    }  # fmt: skip


def image_shard(plan: Plan, part: int) -> Shard:
    """As a worker returns it, but for the file."""
    numbers = np.arange(part * PART, (part + 1) * PART)
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
    draw = np.random.default_rng(part)
    values = {
        "image_id": ids, "status": ["ok"] * PART, "reason": [""] * PART, "group_id": ids,
        "uri": [f"/data/photos/{number // 1000:04d}/{number}.jpg" for number in numbers],
        "caption": [f"a photograph number {number} of a thing" for number in numbers],
        "captions": [[f"a photograph number {number} of a thing"] for number in numbers],
        "fields": ['{"similarity":0.5,"source":"internet"}'] * PART, "split": ["train"] * PART,
        "width": [512] * PART, "height": [512] * PART, "raw_width": [1024] * PART, "raw_height": [768] * PART,
        "raw_format": ["JPEG"] * PART, "sharpness": draw.random(PART), "colour": draw.random(PART),
        "phash": draw.integers(0, 2**64, PART, dtype=np.uint64), "thumbnail": [draw.bytes(384)] * PART,
        "stamp": [""] * PART, "caption_stamp": [""] * PART,
    }  # fmt: skip
    metadata = {
        "kind": "images", "key": plan.image_key, "image_key": plan.image_key, "part": part, "near": None,
    }  # fmt: skip
    return record(plan.workspace.images(plan.image_key, part), "images", values, metadata)


def map_shard(plan: Plan, name: str, images: Shard) -> Shard:
    """The maps of a part, as a worker returns them, but for the file."""
    it, part = plan.conditions[name], images.metadata["part"]
    values = {
        "image_id": images.light["image_id"], "status": ["ok"] * PART, "reason": [""] * PART,
        "seconds": np.full(PART, 0.01), "measures": [[("edge_density", 0.1), ("n_lines", 7.0)]] * PART,
    }  # fmt: skip
    metadata = {
        "kind": "maps", "key": it.fingerprint, "name": it.maps, "image_key": plan.image_key, "part": part,
        "detector": it.record(),
    }  # fmt: skip
    return record(plan.workspace.maps(it.maps, it.fingerprint, part), "maps", values, metadata)


def record(path: Path, kind: str, values: dict[str, object], metadata: dict[str, object]) -> Shard:
    schema = pa.schema([shards.SCHEMAS[kind].field(name) for name in values])
    light = shards._light(pa.table(values, schema=schema), kind)
    return Shard(path, PART, 2_500_000, hashlib.sha256(path.name.encode()).hexdigest(), metadata, light)


def peak() -> int:
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def questions(root: Path) -> list[Row]:
    """Seconds of what is asked of a catalog of thirteen conditions, and the peak of the process."""
    plan = planned(root, len(CONDITIONS))
    catalog = Catalog(plan.workspace)
    asked: dict[str, Callable[[], object]] = {
        "activate": lambda: run.activate(plan, catalog),
        "status": lambda: counts.workspace_counts(catalog),
        "plan annotate": lambda: _left(plan, catalog),
        "pairs left of every condition": lambda: [catalog.has_pairs(name) for name in plan.conditions],
        "exit status": lambda: run.exit_status(plan, catalog, run.RunOptions()),
        "select of canny": lambda: catalog.row(SELECTED, ["canny"]),
        "select of hough": lambda: catalog.row(SELECTED, ["hough"]),
        "select of hed": lambda: catalog.row(SELECTED, ["hed"]),
    }
    rows: list[Row] = []
    for name, ask in asked.items():
        start = time.perf_counter()
        ask()
        rows.append({"asked": name, "seconds": round(time.perf_counter() - start, 2), "peak_mb": peak()})
    return rows


SELECTED = "SELECT count(*), bit_xor(hash(image_id)) FROM pair_rows WHERE condition = ?"


def _left(plan: Plan, catalog: Catalog) -> int:
    """What annotate asks where nothing is left to do."""
    committed = [catalog.committed("maps", it.fingerprint, it.maps) for it in plan.conditions.values()]
    parts = stage.readable_parts(catalog)
    catalog.query(annotate.OF_STATUS, {"status": "skipped", "reason": stage.GONE})
    return sum(part not in done for done in committed for part in parts)


# --- in processes of their own ---


def measured(what: str, root: Path, images: int) -> list[Row]:
    """`fill`, `commits` or `questions` in a fresh process, whose peak is its own."""
    code = [sys.executable, __file__, "--one", what, str(root), str(images)]
    answer = subprocess.run(code, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows: list[Row] = json.loads(answer.splitlines()[-1])
    return rows


def one(what: str, root: Path, images: int) -> list[Row]:
    if what == "commits":
        return [commits(root, images)]
    if what == "questions":
        return questions(root)
    fill(root, images, len(CONDITIONS) if what == "fill 13" else len(CHOSEN))
    return []


def growth(sizes: list[int], asked: list[int], folder: Path) -> dict[str, list[Row]]:
    """Commits beside three conditions, and questions beside thirteen."""
    told: dict[str, list[Row]] = {"commits": [], "questions": []}
    for what, conditions, numbers in (("commits", "3", sizes), ("questions", "13", asked)):
        root = folder / conditions
        root.mkdir(exist_ok=True)
        for images in numbers:
            measured(f"fill {conditions}", root, images)
            told[what] += [{"images": images} | row for row in measured(what, root, images)]
        shutil.rmtree(root)
    return told


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", default="1000000,3000000,10000000", help="images beside which is committed"
    )
    parser.add_argument("--asked", default="10000000", help="images of the catalogs that are asked")
    parser.add_argument("--folder", type=Path, default=None, help="for the catalogs, of up to 5 GB each")
    parser.add_argument("--check", action="store_true", help="50,000 and 200,000; fails where it is not flat")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    parser.add_argument("--one", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, root, images = options.one
        print(json.dumps(one(what, Path(root), int(images))))
        return
    sizes, asked = ([int(n) for n in text.split(",") if n] for text in (options.sizes, options.asked))
    if options.check:
        sizes, asked = [50_000, 200_000], [200_000]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        told = growth(sizes, asked, Path(folder))
    for rows in filter(None, told.values()):
        print("  ".join(f"{name:>12}" for name in rows[0]))
        for row in rows:
            print("  ".join(f"{value!s:>12}" for value in row.values()))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    rates = [float(row["rows_per_s"]) for row in told["commits"]]
    if options.check and rates[0] > FLAT * rates[-1]:
        sys.exit(f"commits: {rates[0]:,.0f} rows/s beside {sizes[0]:,} images, {rates[-1]:,.0f} beside more")


if __name__ == "__main__":
    main()
