"""What a run of many pairs costs before its first batch, once the catalog has told them: seconds, the bytes
that its job carries through Ray's object store, and the memory of a reader.

The pairs are columns with an image id, a row, shards of 256 and a text each. Their run is named, their file
is written, and a fresh process opens it and finds the addresses of the first batch.

    python benchmarks/run_start.py --pairs 3000000 --out run_start.json
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import numpy as np
import pyarrow as pa

from pipeline.experiment.addresses import PairAddresses, fingerprint_with, schema_of

PART = 256  # rows of a shard
READER = """
import re, sys, time
from pathlib import Path
import numpy as np
from pipeline.experiment.addresses import PairAddresses
from pipeline.experiment.reading import ShardPairs
from pipeline.storage.workspace import Workspace
from train.batches import Order

def own():  # KiB that are this process's alone: pages of the file are everybody's
    return int(re.search("RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path = Path(sys.argv[1])
before, start = own(), time.perf_counter()
pairs = ShardPairs(Workspace(path.parent), PairAddresses.open(path), np.zeros((77, 768), np.float32))
order = Order(pairs.sizes, 0, 16)
pairs.addresses.take([order[counter][1] for counter in range(16)])
seconds = time.perf_counter() - start
print(seconds, (own() - before) / 1024)
"""


def main() -> None:
    """Measure, print the figures, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--conditions", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from benchmarks.annotate import machine

    pairs = made(options.pairs, [f"condition{number}" for number in range(options.conditions)])
    with tempfile.TemporaryDirectory() as folder:
        path, times = Path(folder) / "pairs.arrow", [time.perf_counter()]
        fingerprint_with({"version": 2, "run": {}}, "pairs", pairs.ids)
        times.append(time.perf_counter())
        pairs.save(path)
        times.append(time.perf_counter())
        carried = len(pickle.dumps(PairAddresses.open(path)))
        read = subprocess.run(
            [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True
        )
        size = path.stat().st_size
    name, write = np.diff(times)
    opened, memory = map(float, read.stdout.split())
    row = {
        "pairs": options.pairs, "conditions": options.conditions,
        "seconds": {"name": round(name, 2), "write": round(write, 2), "open and order": round(opened, 2)},
        "job_bytes": carried, "file_mb": round(size / 1e6, 1), "reader_mb": round(memory, 1),
    }  # fmt: skip
    print(json.dumps(row, indent=2))
    if options.out:
        options.out.write_text(json.dumps({"machine": machine("cpu")} | row, indent=2) + "\n")


def made(count: int, conditions: list[str]) -> PairAddresses:
    """Columns as the catalog gives them: the order of the ids has nothing to do with that of the shards."""
    draw = np.random.default_rng(0)
    places = draw.permutation(count)
    ids = pa.array([f"{number * 2**200 // count:064x}" for number in range(count)])
    shards = [f"part-{part:06d}.parquet" for part in range(-(-count // PART))]
    of_shard = pa.DictionaryArray.from_arrays(pa.array(places // PART, pa.int32()), pa.array(shards))
    sides = pa.array(np.full(count, 64, np.int32))
    starts = pa.array(np.arange(count + 1, dtype=np.int32))
    texts = pa.ListArray.from_arrays(starts, pa.array(places // PART << 32 | places % PART, pa.int64()))
    columns = [ids, pa.array(places % PART, pa.int32()), of_shard, sides, sides, texts, pa.nulls(count)]
    schema = schema_of(conditions)
    table = pa.Table.from_arrays([*columns, *(of_shard for _ in conditions)], names=schema.names)
    return PairAddresses(table.cast(schema), "encoder")


if __name__ == "__main__":
    main()
