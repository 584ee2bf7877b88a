"""A list of URLs through `controlmill run`, beside img2dataset on the same list.

A server on loopback, in a process of its own, serves JPEGs of 256 pixels, about 30 KB each, under as many
addresses as are asked for; one in a hundred is answered by 404. Both systems download, decode, scale to 256,
encode and store with as many processes and with the same number of requests at a time, in turns, each as a
command timed from start to end. What starting takes is measured apart with a shorter list, so that the
slope tells the cost of an image.

    python benchmarks/urls.py --images 10000 --img2dataset-python ../img2dataset/bin/python --out urls.json
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent.parent
# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from pipeline.catalog import Catalog
from pipeline.storage.workspace import Workspace

FEW = 512  # addresses of the list that tells what starting takes: a part for each of two processes
PICTURES = 64  # that differ; the address's number is written into the last byte block of each
MISSING = 100  # every so-manyth address is answered by 404
MANIFEST = """
name: benchmark
workspace: {workspace}
source:
  kind: list
  path: {list}
  image_column: url
  download: {{private_networks: true, concurrency: {concurrency}, per_host: {concurrency}, retries: 0}}
image: {{resolution: 256, fit: crop}}
split: {{near: null}}
conditions: {{canny: {{}}}}
"""
IMG2DATASET = """
import os, sys
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network whether it is new
from img2dataset import download
if __name__ == "__main__":
    url_list, out, processes, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    download(
        url_list=url_list, input_format="jsonl", url_col="url", output_folder=out, output_format="parquet",
        image_size=256, resize_mode="center_crop", encode_quality=95, processes_count=processes,
        thread_count=threads, number_sample_per_shard=SHARD, retries=0, compute_hash="sha256",
        enable_wandb=False,
    )
"""
SHARD = 256  # images of one shard, as a manifest's default


def pictures() -> list[bytes]:
    """JPEGs of 256×256, about 30 KB each."""
    draw = np.random.default_rng(0)
    out = []
    for _ in range(PICTURES):
        coarse = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((256, 256))
        noise = draw.normal(0, 12, (256, 256, 3))
        file = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(
            file, "JPEG", quality=85
        )
        out.append(file.getvalue())
    return out


class _Served(asyncio.Protocol):
    """One connection: as little work as an answer takes, so that the clients are what is measured."""

    bodies: ClassVar[list[bytes]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport, self.waiting = transport, b""

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while b"\r\n\r\n" in self.waiting:
            head, self.waiting = self.waiting.split(b"\r\n\r\n", 1)
            number = int(head.split(b" ", 2)[1].strip(b"/").removesuffix(b".jpg"))
            self.transport.write(self._answer(number))
            if b"connection: close" in head.lower():
                self.transport.close()

    def _answer(self, number: int) -> bytes:
        if number % MISSING == MISSING - 1:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        # a comment behind the picture makes each address's bytes its own
        body = self.bodies[number % PICTURES] + b"%012d" % number
        head = b'HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nETag: "%d"\r\nContent-Length: %d\r\n\r\n'
        return head % (number, len(body)) + body


def serve(pipe: Connection) -> None:
    """Tells its port through the pipe, and serves until it is ended."""

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(_Served, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    _Served.bodies = pictures()
    asyncio.run(forever())


def timed(command: list[str], folder: Path, **environment: str) -> float:
    """Seconds of a command, which may end with rows that failed."""
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=given)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{command[0]} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def ours(url_list: Path, folder: Path, workers: int, concurrency: int) -> tuple[float, dict[str, int]]:
    """Seconds of `controlmill run --stages ingest`, and images by status."""
    workspace = folder / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    given = {"workspace": workspace, "list": url_list, "concurrency": concurrency // workers}
    (folder / "manifest.yaml").write_text(MANIFEST.format(**given))
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "run", "manifest.yaml"]
    command += ["--stages", "ingest", "--workers", str(workers)]
    seconds = timed(command, folder, PYTHONPATH=str(HERE))
    statuses = "SELECT status, count(*) FROM images GROUP BY status"
    return seconds, dict(Catalog(Workspace(workspace)).query(statuses))


def theirs(
    python: str, url_list: Path, folder: Path, workers: int, concurrency: int
) -> tuple[float, dict[str, int]]:
    """Seconds of img2dataset's `download`, and images by status."""
    out = folder / "img2dataset"
    shutil.rmtree(out, ignore_errors=True)
    script = folder / "rival.py"
    script.write_text(IMG2DATASET.replace("SHARD", str(SHARD)))
    threads = concurrency // workers
    seconds = timed([python, str(script), str(url_list), str(out), str(workers), str(threads)], folder)
    counts = {"ok": 0, "failed": 0}
    for path in out.glob("*_stats.json"):
        stats = json.loads(path.read_text())
        counts["ok"] += stats["successes"]
        counts["failed"] += stats["count"] - stats["successes"]
    return seconds, counts


def compare(args: argparse.Namespace, folder: Path, port: int) -> list[dict[str, Any]]:
    """One row for each system and concurrency: medians of `--repeats` runs in turns."""
    lists = {}
    for count in (FEW, args.images):
        lists[count] = folder / f"{count}.jsonl"
        rows = [json.dumps({"url": f"http://127.0.0.1:{port}/{number}.jpg"}) for number in range(count)]
        lists[count].write_text("\n".join(rows) + "\n")
    rows = []
    for concurrency in args.concurrency:
        systems = {"controlmill": lambda path, at=concurrency: ours(path, folder, args.workers, at)}
        if args.img2dataset_python:
            systems["img2dataset"] = lambda path, at=concurrency: theirs(
                args.img2dataset_python, path, folder, args.workers, at
            )
        seconds: dict[tuple[str, int], list[float]] = {}
        statuses = {}
        for _ in range(args.repeats):
            for count, path in lists.items():
                for name, system in systems.items():
                    took, counts = system(path)
                    seconds.setdefault((name, count), []).append(took)
                    statuses[name] = counts
        for name in systems:
            rows.append(_row(name, concurrency, args.images, seconds, statuses[name]))
            known = rows[-1]["slope_images_per_second"]
            slope = f"{known:6.0f}" if known else "unknown"
            print("{system:<12} {concurrency:>4} at a time: {seconds:6.1f} s, {images_per_second:6.0f} "
                  "images/s; without starting {slope}; {statuses}".format(**rows[-1], slope=slope),
                  flush=True)  # fmt: skip
    return rows


def _row(
    name: str,
    concurrency: int,
    images: int,
    seconds: dict[tuple[str, int], list[float]],
    statuses: dict[str, int],
) -> dict[str, Any]:
    whole, few = (statistics.median(seconds[name, count]) for count in (images, FEW))
    return {
        "system": name,
        "concurrency": concurrency,
        "seconds": whole,
        "seconds_of_few": few,
        "images_per_second": images / whole,
        # on a machine that others use, the shorter run may take longer: then nothing is known
        "slope_images_per_second": (images - FEW) / (whole - few) if whole > few else None,
        "statuses": statuses,
        "runs": {str(count): seconds[name, count] for count in (FEW, images)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of both systems")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--img2dataset-python", help="of an environment that has img2dataset")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.img2dataset_python:
        args.img2dataset_python = str(Path(args.img2dataset_python).absolute())
    if args.img2dataset_python and not shutil.which(args.img2dataset_python):
        parser.error(f"{args.img2dataset_python} is no Python: leave the option out, and it is not compared")
    if not args.img2dataset_python:
        print("img2dataset is left out: name an environment that has it with --img2dataset-python")
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args, Path(folder), here.recv())
    server.terminate()
    result = {
        "images": args.images,
        "workers": args.workers,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
