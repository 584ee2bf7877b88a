"""The first hour on a GPU: eight parts, each under eight minutes, each of which can be asked for alone.

A part runs in a process of its own, which is ended at its time limit: what crashes, hangs or runs out of
memory ends that part alone. The JSON file is written after every figure, and a call adds to a file that is
there, so parts may come from several calls. A part that lacks a package says so, and the next one runs.
Weights are random and of the true shapes (Stable Diffusion 1.5 at 512 pixels), so nothing is downloaded.

    python benchmarks/gpu.py --out gpu.json                          # all of them
    python benchmarks/gpu.py --parts training,resume --minutes 5 --out gpu.json
    python benchmarks/gpu.py --device cpu --tiny --out gpu.json      # does everything run at all?
    python benchmarks/gpu.py --pack gpu.tar                          # what a machine without network needs
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GRACE = 50.0  # seconds beyond its minutes before a part is ended: seven minutes stay under eight
TRAINS = ("torch", "diffusers", "transformers", "safetensors")
NEEDS: dict[
    str, tuple[str, ...]
] = {  # part of benchmarks/gpu_parts.py -> packages without which it can't run
    "training": TRAINS,
    "resume": TRAINS,
    "memory": TRAINS,
    "sampling": TRAINS,
    "compiling": TRAINS,
    "loading": ("torch", "pyarrow", "cv2"),
    "nccl": TRAINS,
    "detectors": ("torch", "cv2", "skimage", "sklearn"),
}
TOLD = (  # packages whose versions are told
    "torch", "torchvision", "diffusers", "transformers", "timm", "controlnet_aux", "bitsandbytes", "triton",
    "pyarrow", "numpy", "opencv-python-headless",
)  # fmt: skip
COMPLETE = "complete"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where every part asked for is complete."""
    given = parse(arguments)
    if given.pack:
        from benchmarks.gpu_pack import pack

        pack(given.pack, given.wheels)
        return 0
    ended = {}
    for name in given.parts:
        ended[name] = run_here(name, given) if given.in_process else run_apart(name, given)
        print(f"{name}: {ended[name]}", flush=True)
    return 0 if set(ended.values()) == {COMPLETE} else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(NEEDS), help="by commas, in this order; default: all")
    parser.add_argument("--device", default="cuda", help="cpu or cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest sizes, to see whether all of it runs"
    )
    parser.add_argument(
        "--minutes", type=float, default=7, help="for each part; then it ends with what it has"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; parts that it holds stay, unless asked for again"
    )
    parser.add_argument(
        "--in-process", action="store_true", help="no process for each part, and so no hard time limit"
    )
    parser.add_argument("--pack", type=Path, help="write this tar instead: what a GPU machine needs")
    parser.add_argument("--wheels", type=Path, help="of --pack: a folder of wheels, in place of a download")
    given = parser.parse_args(arguments)
    given.parts = given.parts.split(",")
    if unknown := set(given.parts) - set(NEEDS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(NEEDS)}")
    if not given.pack and not given.out:
        parser.error("--out FILE.json, or --pack FILE.tar")
    return given


def run_apart(name: str, given: argparse.Namespace) -> str:
    """In a process of its own, ended with all that it started where it is still there at the limit."""
    command = [sys.executable, str(Path(__file__).resolve()), "--parts", name, "--device", given.device,
               "--minutes", str(given.minutes), "--out", str(given.out), "--in-process"]  # fmt: skip
    begun = time.monotonic()
    running = subprocess.Popen([*command, *(["--tiny"] if given.tiny else [])], start_new_session=True)
    try:
        status = running.wait(60 * given.minutes + GRACE)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    record = records(given.out).get(name, {})
    if status in (0, 1) and "ended" in record:
        return str(record["ended"])
    seconds = time.monotonic() - begun
    how = "was still running" if status is None else f"ended with status {status}"
    ended = f"its process {how} after {seconds:.0f} s: what stands here was measured before"
    write(given.out, name, record | {"ended": ended})
    return ended


def run_here(name: str, given: argparse.Namespace) -> str:
    """How it ended, in words. Everything it tells is in the file at once."""
    begun = time.monotonic()
    record: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(),
        "device": given.device, "tiny": given.tiny, "minutes": given.minutes, "found": {},
    }  # fmt: skip
    write(given.out, name, record)

    def tell(found: dict[str, Any]) -> None:
        record.update(found=found, seconds=round(time.monotonic() - begun, 1))
        write(given.out, name, record)

    if missing := [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]:
        ended = f"not run: {', '.join(missing)} is not installed here"
    else:
        from benchmarks import gpu_parts
        from benchmarks.gpu_setting import Setting

        try:
            record |= machine(given.device)
            with tempfile.TemporaryDirectory() as folder:
                setting = Setting(given.device, given.tiny, Path(folder), begun + 60 * given.minutes)
                gpu_parts.PARTS[name](setting, tell)
            ended = COMPLETE
        except Exception as error:
            traceback.print_exc()
            ended = f"failed: {type(error).__name__}: {(str(error).splitlines() or ['no word'])[0][:300]}"
    write(given.out, name, record | {"ended": ended, "seconds": round(time.monotonic() - begun, 1)})
    return ended


def records(out: Path) -> dict[str, Any]:  # part -> what is known of it
    parts: dict[str, Any] = json.loads(out.read_text())["parts"] if out.exists() else {}
    return parts


def write(out: Path, name: str, record: dict[str, Any]) -> None:
    """Whole or not at all: a kill in the middle leaves the file of before."""
    text = json.dumps({"parts": records(out) | {name: record}}, indent=2) + "\n"
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(out)


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to know of where the figures were measured."""
    import torch

    from benchmarks.annotate import machine as words

    facts: dict[str, Any] = {
        "machine": words(device),
        "cpu": words("cpu"),
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError):
            facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
        cudnn = torch.backends.cudnn.version()
        memory = torch.cuda.get_device_properties(device).total_memory
        facts |= {"cuda": torch.version.cuda, "cudnn": cudnn, "gpu_memory": memory}
    facts["versions"] = {}
    for package in TOLD:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts["versions"][package] = importlib.metadata.version(package)
    return facts


def commit() -> str:
    """Of this tree, or of the one that it was packed from."""
    packed = ROOT / "COMMIT"
    if packed.exists():
        return packed.read_text().strip()
    git = ["git", "-C", str(ROOT)]
    with suppress(OSError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode == 1
        return head + (", with changes" if changed else "")
    return "unknown"


if __name__ == "__main__":
    # Python puts this file's folder first, where annotate.py would hide the package of that name
    sys.path[:] = [str(ROOT), *(place for place in sys.path if Path(place).resolve() != ROOT / "benchmarks")]
    sys.exit(main())
