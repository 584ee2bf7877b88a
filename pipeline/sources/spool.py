"""What a workspace keeps of streams, since their rows may be read only once: a folder for each, with a record
and files of rows.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.manifest import HuggingFaceSource
from pipeline.storage.workspace import fingerprint, set_aside, stopping, write_text, write_whole

RECORD, FILES = "stream.json", "rows-*.parquet"
GROUP = 32  # rows of a row group


@dataclass
class Stream:
    """What RECORD keeps of a stream beside its rows."""

    path: str
    name: str | None
    split: str
    revision: str | None
    commit: str | None = None  # of the hub, that the first run met
    complete: bool = False  # whether the stream was read to its end
    rows: int | None = None  # that it has; None = its end is not reached, or an earlier version did not count

    @classmethod
    def of(cls, path: str, source: HuggingFaceSource) -> "Stream":
        return cls(path, source.name, source.split, source.revision)

    @property
    def key(self) -> str:
        """The name of its folder."""
        return fingerprint({name: getattr(self, name) for name in ("path", "name", "split", "revision")})

    def load(self, record: Path) -> None:
        stored = _recorded(record)
        self.commit, self.complete, self.rows = stored["commit"], stored["complete"], stored.get("rows")

    def save(self, record: Path) -> None:
        write_text(record, json.dumps(asdict(self)))


def _recorded(record: Path) -> dict[str, Any]:
    try:
        stored = json.loads(record.read_bytes().decode())
        kinds = (stored["commit"], str | None), (stored["complete"], bool), (stored.get("rows"), int | None)
        if all(isinstance(value, kind) for value, kind in kinds):
            return dict(stored)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IsADirectoryError):
        pass  # told below
    raise _damaged(record)


def rows_kept(folder: Path, stream: Stream) -> tuple[list[Path], int]:
    """The files in the order of their rows, and how many rows they hold; each file is named after its first
    row. MillError where one is damaged or missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, rows = sorted(folder.glob(FILES)), 0
    for path in files:
        if path != _file(folder, rows):
            raise _damaged(_file(folder, rows))
        try:
            rows += pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise stopping(error) or _damaged(path) from error
    if stream.complete and stream.rows not in (None, rows):
        raise _damaged(_file(folder, rows))
    return files, rows


def write_rows(folder: Path, first: int, table: Any) -> None:
    import pyarrow.parquet as pq

    write_whole(
        _file(folder, first),
        lambda temporary: pq.write_table(table, temporary, row_group_size=GROUP, write_page_checksum=True),
    )


def problems(place: Path) -> Iterator[Path]:
    """Each file in the folders of the streams that is damaged or missing, every row read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for folder in sorted(place.glob("*/")):
        stored: dict[str, Any] = {}
        files = sorted(folder.glob(FILES))
        try:
            stored = _recorded(folder / RECORD)
        except FileNotFoundError:
            if files:
                yield folder / RECORD
        except MillError:
            yield folder / RECORD
        rows, last = 0, None
        for path in files:
            if last is None and path != _file(folder, rows):
                yield (last := _file(folder, rows))
            try:
                rows += pq.read_table(path, page_checksum_verification=True, memory_map=False).num_rows
            except (pa.ArrowException, OSError, ValueError) as error:
                if sentence := stopping(error):
                    raise sentence from error
                yield (last := path)
        if last is None and stored.get("rows") not in (None, rows):
            yield _file(folder, rows)


def take_out(path: Path) -> None:
    """A damaged file, and the rows that came after it: the next run reads the stream on from there. Without
    its record, all of the stream.
    """
    folder, record = path.parent, path.parent / RECORD
    gone = [other for other in folder.glob(FILES) if path == record or other >= path]
    for other in (*gone, *([record] if path == record else [])):
        set_aside(other)
    if path != record and record.is_file():
        stored = _recorded(record)
        write_text(record, json.dumps(stored | {"complete": False, "rows": None}))


def _file(folder: Path, first: int) -> Path:
    return folder / f"rows-{first:09d}.parquet"


def _damaged(path: Path) -> MillError:
    what = "damaged" if path.exists() else "missing"
    return MillError(
        f"{path}, kept of a stream, is {what}: delete the folder {path.parent}, and the stream is read again."
    )
