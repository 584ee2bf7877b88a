"""Images of Hugging Face datasets: of the hub, or of a folder here.

A stream is kept in Parquet, since its rows can't be read at random.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import MillError
from pipeline.manifest import HuggingFaceSource, Image
from pipeline.sources import spool
from pipeline.sources.columns import first_line
from pipeline.sources.far.addresses import far
from pipeline.sources.files import resolve, stamp
from pipeline.sources.raw import ListingContext, RawImage, TablePlace
from pipeline.sources.row_stamps import RowStamps, arrow_paths
from pipeline.sources.spool import Stream
from pipeline.sources.tables import TableColumns, arrow, list_rows
from pipeline.storage.workspace import stopping

if TYPE_CHECKING:
    import datasets

SPOOLED_ROWS = 256  # of one Parquet file
LISTED_ROWS = 4096  # whose light columns are read at a time


def list_dataset(source: HuggingFaceSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each row of the split, at most `count`:
    huggingface://name@commit/configuration/split/row.

    MillError where a stream has no folder that keeps its rows; and while rows are read, where
    the dataset can't be loaded or lacks a column.
    """
    if source.streaming:
        if context.spool is None:
            raise MillError(
                "source.streaming: rows of a stream are kept in a workspace, and there is none here: remove"
                " `streaming`."
            )
        return _list_stream(source, context.spool)
    return islice(_list_split(source), source.count)


def _list_split(source: HuggingFaceSource) -> Iterator[RawImage]:
    """The rows of the Arrow files under a dataset that is on this disk, or is brought here now."""
    wanted = TableColumns.of(source)
    with _loading(source):
        import datasets

        splits, commit = _splits(source)
        pieces = datasets.ReadInstruction.from_spec(source.split).to_absolute(
            {name: len(split) for name, split in splits.items()}
        )
    address, folder = _address(source, commit), _folder(source)
    for piece in pieces:
        files = [file["filename"] for file in splits[piece.splitname].cache_files]
        tables = [arrow(file, stamp(file)) for file in files]
        if sum(table.num_rows for table in tables) != len(splits[piece.splitname]):
            raise MillError(
                f"source.path: {source.path} keeps a choice of rows beside its files: save it again with"
                " flatten_indices()."
            )
        start = 0
        for file, table in zip(files, tables, strict=True):
            lacking = wanted.lacking(table.schema.names)
            if lacking:
                raise MillError(f"{source.path}: {lacking}.")
            average = {
                name: table.column(name).nbytes / max(table.num_rows, 1) for name in table.schema.names
            }
            columns, left_out = wanted.light(table.schema, average)
            # a commit's files may be written anew in the cache, and hold the same
            version = commit or stamp(file)
            first, last = max(piece.from_ - start, 0), min(piece.to - start, table.num_rows)
            for at in range(first, last, LISTED_ROWS):
                slab = table.slice(at, min(LISTED_ROWS, last - at))
                rows = wanted.read(slab.select(columns), left_out)
                stamps = RowStamps(
                    version, folder or Path(file).parent, arrow_paths(slab, wanted.pictures), start + at
                )
                for row, (captions, fields) in enumerate(rows, start=at):
                    uri = f"{address}/{piece.splitname}/{start + row}"
                    place: TablePlace = {
                        "file": file,
                        "row": row,
                        "column": source.image_column,
                        "folder": str(folder or Path(file).parent),
                    }
                    raw = RawImage(
                        uri,
                        next(iter(captions), ""),
                        fields,
                        reader="huggingface",
                        place=place,
                        provided=dict(wanted.provided),
                        stamp=stamps.of(source.image_column, row - at),
                        more_captions=captions[1:],
                        map_stamps=stamps.of_maps(wanted.provided, row - at),
                    )
                    yield far(raw, stamps.path(source.image_column, row - at), source.download)
            start += table.num_rows


def _address(source: HuggingFaceSource, commit: str | None) -> str:
    path = str(_folder(source) or source.path)
    return f"huggingface://{path}{f'@{commit}' if commit else ''}{f'/{source.name}' if source.name else ''}"


def _folder(source: HuggingFaceSource) -> Path | None:
    """The local folder that the path names; None: it is a name on the hub."""
    path = resolve(source.path)
    if path.exists():
        return path
    if source.path.startswith(("/", "~", ".")) or source.path.count("/") > 1:
        raise MillError(
            f"source.path: the folder {path} does not exist: set it to one, or to a dataset's name on the"
            " hub."
        )
    return None


def _splits(source: HuggingFaceSource) -> tuple[dict[str, "datasets.Dataset"], str | None]:
    """Every split of the dataset, and the commit of the hub that it is."""
    import datasets

    folder = _folder(source)
    if folder and (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder))), None
    if folder and (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        return {str(saved.split or source.split.partition("[")[0]): saved}, None
    builder = _builder(source, source.revision)
    builder.download_and_prepare()
    return dict(builder.as_dataset()), None if folder else builder.hash


def _builder(source: HuggingFaceSource, revision: str | None) -> Any:
    import datasets

    return datasets.load_dataset_builder(str(_folder(source) or source.path), source.name, revision=revision)


def _list_stream(source: HuggingFaceSource, place: Path) -> Iterator[RawImage]:
    """The rows kept so far, after as many more as are wanted have been read from the stream."""
    stream = Stream.of(str(_folder(source) or source.path), source)
    folder = place / stream.key
    record = folder / spool.RECORD
    if record.exists():
        stream.load(record)
    files, rows = spool.rows_kept(folder, stream)
    if not stream.complete and (source.count is None or rows < source.count):
        with _loading(source):
            _keep_more(source, folder, record, stream, rows)
        files, rows = spool.rows_kept(folder, stream)
    firsts = {path: int(path.stem.removeprefix("rows-")) for path in files}
    address = f"{_address(source, stream.commit)}/{source.split}"
    listed = list_rows(
        files,
        TableColumns.of(source),
        reader="huggingface",
        address=lambda path, row: f"{address}/{firsts[path] + row}",
        folder=_folder(source),
    )
    return islice(listed, source.count)


def _keep_more(source: HuggingFaceSource, folder: Path, record: Path, kept: Stream, rows: int) -> None:
    """Reads on where the last file ended, at the commit that the first run met."""
    import datasets

    builder = _builder(source, kept.commit or source.revision)
    if not _folder(source):
        kept.commit = kept.commit or builder.hash
    kept.save(record)
    stream = builder.as_streaming_dataset(source.split)
    for name, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(name, datasets.Image(decode=False))
    if rows:
        stream = stream.skip(rows)
    if source.count is not None:
        stream = stream.take(source.count - rows)
    for table in stream.with_format("arrow").iter(batch_size=SPOOLED_ROWS):
        spool.write_rows(folder, rows, _embed(table))
        rows += table.num_rows
    if source.count is None or rows < source.count:
        kept.complete, kept.rows = True, rows
        kept.save(record)


def _embed(table: Any) -> Any:
    """Brings in the bytes of images that the stream only names; one that can't be had keeps its name and
    becomes a row with a reason.
    """
    import pyarrow as pa
    from datasets.utils.file_utils import xopen

    def whole(cell: Any) -> Any:  # {bytes, path} or None
        if cell is None or cell["bytes"] is not None or not cell["path"]:
            return cell
        try:
            with xopen(cell["path"], "rb") as file:
                return cell | {"bytes": file.read()}
        except Exception as error:  # file systems raise what they like
            if "://" in cell["path"] and not isinstance(error, FileNotFoundError):
                raise  # the network's fault, not the row's: the next run goes on here
            return cell

    for number, field in enumerate(table.schema):
        if pa.types.is_struct(field.type) and {inner.name for inner in field.type} == {"bytes", "path"}:
            cells = pa.array([whole(cell) for cell in table.column(number).to_pylist()], field.type)
            table = table.set_column(number, field, cells)
    return table


@contextmanager
def _loading(source: HuggingFaceSource) -> Iterator[None]:
    """Whatever the library raises becomes one sentence; its bars and warnings stay out of the run's own
    lines.
    """
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    levels = {name: logging.getLogger(name).level for name in ("huggingface_hub", "datasets")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    except MillError:
        raise
    except Exception as error:
        if stop := stopping(error):
            raise stop from error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        if isinstance(error, ConnectionError) or "OfflineMode" in type(error).__name__:
            raise MillError(
                f"source.path: the dataset {source.path!r} is not here, and the hub can't be"
                f" reached{offline}: run once where it can, or save the dataset there with save_to_disk, copy"
                " the folder here and set `path` to it."
            ) from error
        raise MillError(
            f"source.path: the dataset {source.path!r} can't be loaded: {first_line(error)}; check `path`,"
            " `name`, `split` and `revision`."
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if shown:
            datasets.enable_progress_bars()
