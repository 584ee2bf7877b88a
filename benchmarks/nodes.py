"""Two nodes of one core each against one node of two cores: the same run of `controlmill run --address`.

Both are Ray clusters on this machine, started before the clock runs. A run reads JPEGs, and makes canny and
hough of them, in a workspace of its own; it starts with an empty one each time. The runs take turns, so that
what else the machine does meets both. The seconds are those of the stages, as the log of events tells.

    python benchmarks/nodes.py --images 600 --repeats 5 --out benchmarks/results/nodes.json
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]
HEAD = """
import sys
from ray.cluster_utils import Cluster
first, *others = [int(cores) for cores in sys.argv[1].split(",")]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": first, "include_dashboard": False})
for cores in others:
    cluster.add_node(num_cpus=cores)
print(cluster.address, flush=True)
sys.stdin.read()
"""
CONTESTANTS = {"one node of two cores": "2", "two nodes of one core": "1,1"}
STAGES = ("ingest", "annotate")
OPEN = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
TARGET = 0.95


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from benchmarks.annotate import machine, photographs
    from benchmarks.overhead import crops

    rates: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        for number, picture in enumerate(crops(photographs(6, 1024), options.images, options.size)):
            cv2.imwrite(str(root / "photos" / f"{number:05d}.jpg"), picture[..., ::-1])
        for turn in range(options.repeats):
            for name, cores in CONTESTANTS.items():
                rates[name].append(measure(root, f"{turn}-{len(cores)}", cores, options))
                print(f"{turn + 1} of {options.repeats}, {name}: {rates[name][-1]}", file=sys.stderr)
    rows = {
        name: {stage: round(statistics.median(each[stage] for each in of_name), 2) for stage in of_name[0]}
        for name, of_name in rates.items()
    }
    one, two = rows.values()
    ratio = round(two["both"] / one["both"], 3)
    print("cluster                  ingest/s  annotate/s     both/s")
    for name, row in rows.items():
        print(f"{name:<24}{row['ingest']:>9.2f}{row['annotate']:>12.2f}{row['both']:>11.2f}")
    print(f"two nodes against one: {ratio} (target: {TARGET})")
    if options.out:
        told = {"images": options.images, "size": options.size, "repeats": options.repeats}
        found = {"ratio": ratio, "target": TARGET, "images_per_s": rows, "runs": rates}
        options.out.write_text(json.dumps({**told, "machine": machine("cpu"), **found}, indent=2) + "\n")


def measure(root: Path, name: str, cores: str, options: argparse.Namespace) -> dict[str, float]:
    """Images per second of each stage, and of both together."""
    from pipeline.storage import events

    path = root / f"{name}.yaml"
    path.write_text(
        f"name: b{name}\nworkspace: {root / name}\nsource: {{kind: folder, path: {root / 'photos'}, captions:"
        f" none}}\nimage: {{resolution: {options.size}}}\nsplit: {{near: null}}\nshard_images: 16\n"
        "conditions: {canny: {}, hough: {}}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, cores],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=OPEN,
        start_new_session=True,
    ) as cluster:
        assert cluster.stdout
        try:
            address = cluster.stdout.readline().strip()
            # the first run starts the workers' processes, which is not what is compared
            warm = path.with_name(f"{name}-warm.yaml")
            warm.write_text(path.read_text().replace(str(root / name), str(root / f"{name}-warm")))
            for each in (warm, path):
                words = [*COMMAND, "run", str(each), "--stages", ",".join(STAGES), "--address", address]
                words += ["--limit", str(32 if each is warm else options.images)]
                done = subprocess.run(words, capture_output=True, text=True, env=OPEN)
                if done.returncode:
                    raise RuntimeError(f"it ended with {done.returncode}: {done.stdout}{done.stderr}")
        finally:
            os.killpg(cluster.pid, signal.SIGKILL)
    spent = {one["stage"]: one["seconds"] for one in events.read(root / name) if one["event"] == "stage ends"}
    count = options.images
    return {stage: count / spent[stage] for stage in STAGES} | {"both": count / sum(spent.values())}


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
