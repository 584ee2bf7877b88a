"""What the tests share: photographs small enough to be quick, and the command run as a person runs it."""

import functools
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from benchmarks.s3_server import Gate
    from tests.hub_server import Hub

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started with `&`: what is tested can't be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)
# a token made by one process would not be known to the next
OPEN = os.environ | {"RAY_AUTH_MODE": "disabled"}
Command = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-c", "from pipeline.cli import main; main()"]


@pytest.fixture
def photograph() -> Callable[..., Image.Image]:
    """A textured RGB picture that depends on its number alone."""

    def make(number: int, width: int = 160, height: int = 120) -> Image.Image:
        draw = np.random.default_rng(number)
        coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)

    return make


@pytest.fixture
def folder(tmp_path: Path, photograph: Callable[..., Image.Image]) -> Callable[[int], Path]:
    """A folder of so many JPEGs, each with a caption beside it."""

    def make(count: int) -> Path:
        photos = tmp_path / "photos"
        photos.mkdir(exist_ok=True)
        for number in range(count):
            photograph(number).save(photos / f"{number:03d}.jpg", quality=95)
            (photos / f"{number:03d}.txt").write_text(f"picture {number}")
        return photos

    return make


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A Ray cluster that the tests share: starting one takes longer than most of them."""
    code = """from pipeline.cluster import Cluster
ray = Cluster(workers=2).ray
print(ray.get_runtime_context().gcs_address, flush=True)
input()"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=OPEN,
    ) as ray:
        assert ray.stdout and ray.stdin
        port = ray.stdout.readline().strip().split(":")[1]
        yield f"127.0.0.1:{port}"
        ray.stdin.close()


@pytest.fixture(scope="session")
def ask(address: str) -> Iterator[Command]:
    """Runs the command in a folder, in one process that stays (tests/answers.py); the result has returncode,
    stdout and stderr.
    """
    command, root = (
        [sys.executable, "-c", "from tests.answers import serve; serve()"],
        Path(__file__).parents[1],
    )
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=OPEN
    ) as answers:
        questions, told = answers.stdin, answers.stdout
        assert questions and told

        def run(
            folder: Path, *arguments: str | Path, patience: float = 300
        ) -> subprocess.CompletedProcess[str]:
            words = [*map(str, arguments), *(["--address", address] if arguments[0] == "run" else [])]
            print(json.dumps({"arguments": words, "folder": str(folder)}), file=questions, flush=True)
            if not select.select([told], [], [], patience)[0]:
                answers.kill()
                raise TimeoutError(f"controlmill {shlex.join(words)} did not end in {patience:.0f} s")
            return subprocess.CompletedProcess(words, **json.loads(told.readline()))

        yield run
        questions.close()


@pytest.fixture
def controlmill(tmp_path: Path, ask: Command) -> Command:
    """As `ask`, in the test's folder."""
    return functools.partial(ask, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A server on loopback in place of huggingface.co, with an empty cache."""
    from huggingface_hub import constants

    from tests.hub_server import hub_server

    with hub_server() as server:
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between retries
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", server.address)  # of commands that are started
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("CONTROLMILL_WEIGHTS", raising=False)
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator["Gate"]:
    """An S3 server on loopback with an empty bucket, `bucket`."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    import boto3

    from benchmarks.s3_server import s3_server

    with s3_server() as (_, gate):
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield gate


@pytest.fixture
def process(tmp_path: Path, address: str) -> Command:
    """As `controlmill`, in a process of its own, as a person runs it."""

    def run(*arguments: str | Path, patience: float = 300) -> subprocess.CompletedProcess[str]:
        words = [*COMMAND, *map(str, arguments), *(["--address", address] if arguments[0] == "run" else [])]
        return subprocess.run(words, cwd=tmp_path, env=OPEN, capture_output=True, text=True, timeout=patience)

    return run


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """A manifest over the folder `photos`; keyword arguments replace or add sections, as YAML text."""

    def write(name: str = "tiny", **sections: str) -> Path:
        parts = {
            "name": name,
            "workspace": "ws",
            "source": "{kind: folder, path: photos}",
            "image": "{resolution: 64}",
            "split": "{validation: 0.1, test: 0.3, salt: 0}",
            "shard_images": "4",
            "conditions": "{canny: {}}",
        }
        path = tmp_path / "manifest.yaml"
        path.write_text("\n".join(f"{key}: {value}" for key, value in (parts | sections).items()))
        return path

    return write
