"""Listing a source and noticing that nothing changed, beside catalogs of more and more addresses.

A JSONL list with an address, a caption and two columns a row; none of its files exists, so each costs a look
that fails. The catalog, filled by bulk inserts, knows all of them as they are. Each size is measured in a
process of its own, which does what the first stage of a run does: seconds of the clock and of all processors,
and the resident memory at its peak, of the driver and of the largest of the processes that read the list for
it. Beside it the figures of before: 43 s and 1.6 GB for a million addresses, on two cores.

    python benchmarks/listing_growth.py --addresses 100000,1000000,10000000 --out listing_growth.json
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from pipeline import manifest, plan
from pipeline.catalog import Catalog
from pipeline.catalog.schema import migrate
from pipeline.cluster import Cluster
from pipeline.stages.changes import notice
from pipeline.stages.stage import StageContext

HERE = Path(__file__).resolve().parent.parent
ADDRESSES = "100000,1000000,10000000"
CHECK = "50000,200000"
SHARD = 256  # images
MANIFEST = """
name: benchmark
workspace: {folder}/ws
source: {{kind: list, path: {folder}/list.jsonl}}
conditions: {{canny: {{}}}}
"""
# address, caption and fields of image i, as the list has them
URI = "'/data/photos/' || lpad((i // 1000)::VARCHAR, 4, '0') || '/' || lpad(i::VARCHAR, 9, '0') || '.jpg'"
CAPTION = "'a photograph number ' || i || ' of a thing'"
FIELDS = """'{"similarity":' || i % 1000 || ',"source":"internet"}'"""


@dataclass(frozen=True)
class Row:
    addresses: int
    listing: float  # seconds
    noticing: float  # seconds
    microseconds: float  # an address, of both
    processor: float  # seconds, of all processes
    driver_mb: int  # resident, at the peak
    reader_mb: int  # of the largest of the processes that read the list for the driver


def make_list(path: Path, addresses: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(addresses):
            uri, caption = f"/data/photos/{i // 1000:04d}/{i:09d}.jpg", f"a photograph number {i} of a thing"
            row = {"image": uri, "caption": caption, "similarity": i % 1000, "source": "internet"}
            file.write(json.dumps(row) + "\n")


def make_catalog(path: Path, image_key: str, addresses: int) -> None:
    """The catalog of a workspace whose images are all read."""
    shards = -(-addresses // SHARD)
    with duckdb.connect(str(path)) as connection:
        migrate(connection)
        connection.execute("INSERT INTO settings VALUES ('image_key', ?)", [image_key])
        connection.execute(
            f"""
            INSERT INTO shard_rows BY NAME
            SELECT i + 1 AS shard_number, 'images' AS kind, $key AS key, $key AS image_key, i AS part,
                   'shards/images/' || i AS shard, {SHARD} AS rows
            FROM range({shards}) numbers(i)""",
            {"key": image_key},
        )
        place = f"i + 1 AS image, i // {SHARD} + 1 AS shard_number, i % {SHARD} AS row"
        connection.execute(f"""
            INSERT INTO image_rows BY NAME
            SELECT {place}, sha256(i::VARCHAR) AS image_id, 'ok' AS status, 'train' AS split,
                   sha256(i::VARCHAR) AS group_id
            FROM range({addresses}) numbers(i)""")
        connection.execute(f"""
            INSERT INTO source_rows BY NAME
            SELECT {place}, {URI} AS uri, {CAPTION} AS caption, [{CAPTION}] AS captions, {FIELDS} AS fields,
                   '-' AS stamp, '' AS caption_stamp
            FROM range({addresses}) numbers(i)""")


def prepare(folder: Path, addresses: int) -> None:
    """A list, a manifest, and a workspace with a catalog that knows it."""
    make_list(folder / "list.jsonl", addresses)
    (folder / "manifest.yaml").write_text(MANIFEST.format(folder=folder))
    prepared = plan.make(manifest.load(folder / "manifest.yaml"))
    prepared.workspace.create()
    make_catalog(prepared.workspace.catalog, prepared.image_key, addresses)


def measured(folder: Path) -> Row:
    """In a process of its own. AssertionError where anything looks changed."""
    prepared = plan.make(manifest.load(folder / "manifest.yaml"))
    context = StageContext(prepared, Catalog(prepared.workspace), Cluster())
    start = time.perf_counter()
    addresses = len(context.raw_images)
    listed = time.perf_counter()
    noticed = notice(context)
    end = time.perf_counter()
    assert noticed.sentence == "0 new addresses", noticed.sentence
    own, readers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Row(
        addresses,
        listing=round(listed - start, 2),
        noticing=round(end - listed, 2),
        microseconds=round((end - start) / addresses * 1e6, 2),
        processor=round(sum(each.ru_utime + each.ru_stime for each in (own, readers)), 2),
        driver_mb=peak(),
        reader_mb=readers.ru_maxrss // 1024,
    )


def peak() -> int:
    """MB of this process; `ru_maxrss` begins with what the process had that started it."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) // 1024


def table(sizes: Sequence[int], room: Path | None = None) -> list[Row]:
    """Measures and prints a row for each number of addresses; `room` is a folder with 300 bytes for each."""
    heads = "addresses", "listing s", "noticing s", "us each", "processor s", "driver MB", "reader MB"
    print(("{:>12}" * len(heads)).format(*heads))
    rows = []
    for addresses in sizes:
        with tempfile.TemporaryDirectory(dir=room) as name:
            prepare(Path(name), addresses)
            environment = os.environ | {"PYTHONPATH": str(HERE)}
            words = [sys.executable, str(Path(__file__).resolve()), "--measure", name]
            answer = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(Row(**json.loads(answer.stdout)))
        print("".join(f"{value:>12,}" for value in asdict(rows[-1]).values()), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--addresses", default=ADDRESSES, help=f"of the lists (default {ADDRESSES})")
    parser.add_argument("--check", action="store_true", help=f"{CHECK} addresses: under a minute")
    parser.add_argument(
        "--room", type=Path, default=None, help="folder for lists and catalogs while they last"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(asdict(measured(options.measure))))
        return
    sizes = [int(number) for number in (CHECK if options.check else options.addresses).split(",")]
    rows = table(sizes, options.room)
    if options.out:
        result = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
