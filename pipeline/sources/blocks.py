"""A long list of JSON lines, read in blocks by processes of their own.

Run as a program it is such a process: it is told the list on its first line of input and a block on each
further one, and answers each with a line of JSON and the rows as an Arrow stream.
"""

import io
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from pipeline import MillError
from pipeline.manifest import ListSource
from pipeline.sources.batches import Rows
from pipeline.sources.columns import encoding_of
from pipeline.sources.far.lists import Copy, near
from pipeline.sources.lists import ListColumns, list_file
from pipeline.sources.raw import RawImage
from pipeline.sources.rows import JSON_SUFFIXES, Line, json_line

LONG = 2**24  # bytes from which on a list is worth other processes, which take half a second to start
BLOCK = 2**21  # bytes
MOST = 4  # processes
AHEAD = 2  # blocks that each of them knows of

_decode = json.JSONDecoder(parse_constant=lambda name: None).raw_decode


@dataclass(frozen=True)
class Block:
    """Whole lines of a file."""

    offset: int
    size: int
    line: int  # number of its first line, from 1
    encoding: str


@dataclass(frozen=True)
class BlockRows:
    batch: pa.RecordBatch
    columns: set[str]  # names that its rows had


def list_rows(source: ListSource) -> Iterator[RawImage | pa.RecordBatch]:
    """What `list_table` lists; of a long list of JSON lines in batches."""
    with near(source) as copy:
        columns = ListColumns(source, list_file(copy.path if copy else source.path), copy)
        if is_long(columns.file):
            yield from read_blocks(columns, copy)
            columns.check()
        else:
            yield from columns.raw_images()


def is_long(file: Path) -> bool:
    """Whether the file is one that `read_blocks` reads, and large enough to be worth it."""
    if file.suffix.lower() not in JSON_SUFFIXES:
        return False
    with suppress(OSError), file.open("rb") as opened:
        return os.fstat(opened.fileno()).st_size >= LONG and encoding_of(opened.read(4), "") in ENCODINGS
    return False


ENCODINGS = ("", "utf-8-sig")  # of which every newline is one byte


def read_blocks(columns: ListColumns, copy: Copy | None) -> Iterator[pa.RecordBatch]:
    """The rows of a long list in their order. MillError where it is not UTF-8 or can't be read."""
    workers = min(MOST, os.cpu_count() or 1)
    told = {
        "source": columns.source.model_dump(mode="json"),
        "file": str(columns.file),
        "copy": asdict(copy) if copy else None,
    }
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(columns, told)) for _ in range(workers)]
        under_way: deque[tuple[_Reader, Block]] = deque()
        for number, block in enumerate(_blocks(columns.file)):
            if len(under_way) >= AHEAD * workers:
                yield _taken(columns, *under_way.popleft())
            reader = readers[number % workers]
            reader.ask(block)
            under_way.append((reader, block))
        while under_way:
            yield _taken(columns, *under_way.popleft())


def _taken(columns: ListColumns, reader: "_Reader", block: Block) -> pa.RecordBatch:
    try:
        rows = reader.answer() or rows_of(columns, block)  # a process that died is not missed
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        raise MillError(f"source.path: {columns.file} is not UTF-8 ({reason}): save it as UTF-8.") from error
    columns.seen |= rows.columns
    return rows.batch


def _blocks(file: Path) -> Iterator[Block]:
    try:
        with file.open("rb") as opened:
            encoding = encoding_of(opened.read(4), "utf-8")
            opened.seek(0)
            offset, line = 0, 1
            while data := opened.read(BLOCK):
                data += opened.readline()  # a block ends with a line, however long that is
                yield Block(offset, len(data), line, encoding)
                offset, encoding = offset + len(data), "utf-8"
                line += data.count(b"\n") + (data.count(b"\r") - data.count(b"\r\n"))
    except OSError as error:
        raise MillError(f"source.path: {file} can't be read: {error.strerror}.") from error


def rows_of(columns: ListColumns, block: Block) -> BlockRows:
    """UnicodeError where the block is not UTF-8."""
    with columns.file.open("rb") as file:
        file.seek(block.offset)
        data = file.read(block.size)
    rows = Rows()
    text = io.TextIOWrapper(io.BytesIO(data), encoding=block.encoding, newline="")
    for number, line in enumerate(text, block.line):
        try:
            cells, end = _decode(line)
            whole = type(cells) is dict and (end == len(line) or not line[end:].strip(" \t\r\n"))
        except (ValueError, RecursionError):
            whole = False
        if whole:
            columns.add(Line(number, cells), rows)
        elif line.strip():
            columns.add(json_line(number, line), rows)
    return BlockRows(rows.take(), columns.seen)


class _Reader:
    """A process that reads blocks; one that dies answers None from then on."""

    def __init__(self, columns: ListColumns, told: Mapping[str, object]) -> None:
        self.columns = columns
        self._told = json.dumps(told)

    def __enter__(self) -> "_Reader":
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sources.blocks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self._say(self._told)
        return self

    def __exit__(self, *exception: object) -> None:
        process = self._process
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                assert pipe
                pipe.close()
        process.wait()

    def ask(self, block: Block) -> None:
        self._say(json.dumps(asdict(block)))

    def _say(self, line: str) -> None:
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def answer(self) -> BlockRows | None:
        assert self._process.stdout
        try:
            head = json.loads(self._process.stdout.readline())
            data = self._process.stdout.read(head["bytes"])
            if len(data) != head["bytes"] or not data:  # what went wrong is found out here
                return None
            return BlockRows(pa.ipc.open_stream(data).read_next_batch(), set(head["columns"]))
        except (OSError, ValueError, pa.ArrowException):
            return None


def _serve(given: IO[bytes], answers: IO[bytes]) -> None:
    told = json.loads(given.readline())
    copy = Copy(**told["copy"]) if told["copy"] else None
    columns = ListColumns(ListSource.model_validate(told["source"]), Path(told["file"]), copy)
    for line in given:
        columns.seen = set()
        data = b""
        with suppress(UnicodeError, OSError):
            batch = rows_of(columns, Block(**json.loads(line))).batch
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            data = sink.getvalue()
        answers.write(json.dumps({"bytes": len(data), "columns": sorted(columns.seen)}).encode() + b"\n")
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    with suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, sys.stdout.buffer)
