"""The command, asked many times in one process that stays on Ray: its imports and Ray's workers take longer
than most tests.

What a command prints is caught where a process prints it, at the file descriptors. What this can't show, the
start and the end of a process, is seen by the tests that ask for one of their own (`process` in conftest.py).
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline import run
from pipeline.cli import main
from pipeline.cluster import Cluster

_open: dict[str | None, Cluster] = {}


@contextmanager
def kept(*, workers: int | None = None, address: str | None = None) -> Iterator[Cluster]:
    """In place of `cluster`: connected until a run ends badly, whose jobs must end with it."""
    made = _open.setdefault(address, Cluster(workers=workers, address=address))
    try:
        yield made
    except BaseException:
        made.close()
        raise


def call(arguments: list[str]) -> int:
    """The exit status; a traceback goes where a process would put it."""
    try:
        main(arguments, prog_name="controlmill")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def caught(arguments: list[str], folder: str) -> dict[str, int | str]:
    os.chdir(folder)
    own = os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        status = call(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)
        return {"returncode": status, "stdout": _text(out), "stderr": _text(err)}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def serve() -> None:
    """A line of JSON in, with `arguments` and `folder`; a line of JSON out."""
    run.cluster = kept
    home = Path.cwd()
    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            answers.write(json.dumps(caught(**json.loads(line))) + "\n")
            answers.flush()
            os.chdir(home)  # the test's folder may go
    for made in _open.values():
        made.close()
