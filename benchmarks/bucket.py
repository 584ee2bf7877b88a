"""A folder of JPEGs to canny at 512 in a workspace on the disk and in a bucket: moto's S3 server on loopback.

Each run is `controlmill run` in a process of its own, and the two kinds take turns. The slope between two
numbers of images tells the cost of an image without that of starting and stopping. The server is Python and
runs on the same cores: its seconds of CPU are told apart, as are those of all processes of the run, so that
the share of it in the difference shows. Requests are counted by kind.

    python benchmarks/bucket.py --out bucket.json
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

HERE = Path(__file__).resolve().parent.parent
TARGET = 0.8  # of the speed in a folder
MANIFEST = """
name: benchmark
workspace: {workspace}
source: {{kind: folder, path: {photos}}}
image: {{resolution: 512, fit: crop}}
split: {{near: null}}
conditions: {{canny: {{}}}}
"""
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs=2, default=[256, 2048], help="the two numbers of images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), args.images, args.repeats, args.workers)
    print(text(facts))
    if args.out:
        args.out.write_text(json.dumps(facts, indent=1) + "\n")


def serve() -> None:
    """In a process of its own: tells its port, then requests and CPU seconds at each line of its input."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    counts: Counter[str] = Counter()
    app = DomainDispatcherApplication(create_backend_app)

    def counted(environ: dict[str, Any], start: Any) -> Any:
        query = environ.get("QUERY_STRING", "")
        counts["LIST" if "list-type" in query else environ["REQUEST_METHOD"]] += 1
        return app(environ, start)

    class Silent(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any, **__: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    before = time.process_time()
    for _ in sys.stdin:
        now = time.process_time()
        print(json.dumps({"requests": dict(counts), "cpu": now - before}), flush=True)
        counts.clear()
        before = now


def measure(folder: Path, sizes: list[int], repeats: int, workers: int) -> dict[str, Any]:
    import boto3

    photos = {count: folder / f"photos-{count}" for count in sizes}
    for count, place in photos.items():
        draw(place, count)
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        environment = os.environ | KEYS | {"AWS_ENDPOINT_URL": endpoint}
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="bucket")
        runs: list[dict[str, Any]] = []
        for number in range(repeats):
            for count in sizes:
                for kind in ("folder", "bucket"):
                    name = f"{kind}-{count}-{number}"
                    workspace = f"s3://bucket/{name}" if kind == "bucket" else str(folder / name)
                    environment["CONTROLMILL_CACHE"] = str(folder / f"cache-{name}")
                    print("\n", file=server.stdin, end="", flush=True)
                    server.stdout.readline()
                    facts = timed(folder, workspace, photos[count], workers, environment)
                    print("\n", file=server.stdin, end="", flush=True)
                    told = json.loads(server.stdout.readline())
                    runs.append({"kind": kind, "images": count} | facts | {"server": told})
                    print(f"{name}: {facts['seconds']:.1f} s", file=sys.stderr)
                    for place in (folder / name, folder / f"cache-{name}"):
                        shutil.rmtree(place, ignore_errors=True)
        server.stdin.close()
        server.terminate()
    return summary(runs, sizes, workers)


def draw(place: Path, count: int) -> None:
    """Textures with edges of many sizes, 768×576, about 60 kB each."""
    place.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = sum(
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                    (768, 576), Image.Resampling.NEAREST if side < 20 else Image.Resampling.BILINEAR
                ),
                dtype=np.float32,
            )
            for side in (6, 16, 48)
        )
        Image.fromarray((picture / 3).astype(np.uint8)).save(place / f"{number:06d}.jpg", quality=88)


def timed(
    folder: Path, workspace: str, photos: Path, workers: int, environment: dict[str, str]
) -> dict[str, float]:
    """Seconds of a run, and CPU seconds of all its processes."""
    manifest = folder / "manifest.yaml"
    manifest.write_text(MANIFEST.format(workspace=workspace, photos=photos))
    command = [
        *(sys.executable, "-c", "from pipeline.cli import main; main()", "run", str(manifest)),
        *("--stages", "ingest,annotate", "--workers", str(workers)),
    ]
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        spent: dict[int, float] = {}
        while run.poll() is None:
            with suppress(psutil.Error):
                root = psutil.Process(run.pid)
                for process in (root, *root.children(recursive=True)):
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        spent[process.pid] = times.user + times.system
            time.sleep(0.1)
        seconds = time.monotonic() - began
        assert run.stdout
        told = run.stdout.read()
    if run.returncode:
        raise SystemExit(told)
    return {"seconds": seconds, "cpu": sum(spent.values())}


def summary(runs: list[dict[str, Any]], sizes: list[int], workers: int) -> dict[str, Any]:
    small, large = sizes

    def slope(kind: str, value: Any) -> float:
        """Milliseconds an image: of medians."""
        first, last = (
            statistics.median(value(it) for it in runs if (it["kind"], it["images"]) == (kind, count))
            for count in sizes
        )
        return float(1000 * (last - first) / (large - small))

    facts = {
        kind: {
            "milliseconds_an_image": slope(kind, lambda it: it["seconds"]),
            "cpu_milliseconds_an_image": slope(kind, lambda it: it["cpu"]),
            "server_cpu_milliseconds_an_image": slope(kind, lambda it: it["server"]["cpu"]),
            "seconds": {
                str(count): [it["seconds"] for it in runs if (it["kind"], it["images"]) == (kind, count)]
                for count in sizes
            },
        }
        for kind in ("folder", "bucket")
    }
    plain, bucket = facts["folder"], facts["bucket"]
    speeds = (plain["milliseconds_an_image"], bucket["milliseconds_an_image"])
    cpu = (plain["cpu_milliseconds_an_image"], bucket["cpu_milliseconds_an_image"])
    requests = {
        str(count): [
            it["server"]["requests"] for it in runs if (it["kind"], it["images"]) == ("bucket", count)
        ][-1]
        for count in sizes
    }
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[1],  # of the last five minutes: other work on the machine
        "workers": workers,
        "images": sizes,
        **facts,
        "ratio": round(speeds[0] / speeds[1], 3),
        "ratio_of_cpu": cpu[0] / (cpu[1] + bucket["server_cpu_milliseconds_an_image"]),
        "ratio_of_cpu_without_the_server": cpu[0] / cpu[1],
        "target": TARGET,
        "requests": requests,
        "requests_an_image": sum(requests[str(large)].values()) / large,
    }


def text(facts: dict[str, Any]) -> str:
    lines = [f"{'':10}{'ms/image':>10}{'CPU ms':>10}{'server CPU ms':>15}"]
    for kind in ("folder", "bucket"):
        it = facts[kind]
        lines.append(
            f"{kind:10}{it['milliseconds_an_image']:10.2f}{it['cpu_milliseconds_an_image']:10.2f}"
            f"{it['server_cpu_milliseconds_an_image']:15.2f}"
        )
    alone = facts["ratio_of_cpu_without_the_server"]
    lines.append(
        f"speed in the bucket: {facts['ratio']:.2f} of that in a folder (target {facts['target']}), by CPU"
        f" seconds {facts['ratio_of_cpu']:.2f}, without the server's {alone:.2f}"
    )
    lines += [f"requests of {count} images: {counts}" for count, counts in facts["requests"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
