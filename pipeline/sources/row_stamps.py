"""What a table's row looks like from outside: its file's stamp, and those of files that its cells name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.sources.files import stamp_or_absent
from pipeline.sources.raw import ProvidedJson

MOST_PATH = 1024  # bytes of a cell, on average: longer text is no path


class RowStamps:
    """Of the rows of one piece of a table that were read together.

    `version` stands for the table, and `first` for the number of the first row; `cells` holds the paths that
    were read, by column.
    """

    def __init__(
        self, version: str, folder: Path, cells: dict[str, list[str | None]], first: int = 0
    ) -> None:
        self.version, self.folder, self.cells, self.first = version, folder, cells, first

    def of(self, column: str, row: int) -> str:
        """The stamp of a cell; a path is followed."""
        mark = f"{self.version}@{self.first + row}"
        path = self.path(column, row)
        if not path or "://" in path or path.lstrip()[:1] in ("[", "{"):
            return mark
        return f"{mark} {stamp_or_absent(str(self.folder / path))}"

    def path(self, column: str, row: int) -> str | None:
        """The path or address that a cell holds."""
        return self.cells[column][row] if column in self.cells else None

    def of_maps(self, provided: dict[str, ProvidedJson], row: int) -> dict[str, str]:
        """By condition: of the map and its mask."""
        return {
            condition: " ".join(
                self.of(name, row) for at in ("column", "mask") if (name := given.get(at)) is not None
            )
            for condition, given in provided.items()
        }


def parquet_leaves(file: Any, group: int, names: Sequence[str]) -> list[str]:
    """Of these columns of a Parquet file, what has to be read of a row group to know the paths in it: texts,
    and the paths of structs of which one lacks its bytes.
    """
    import pyarrow as pa

    schema, metadata = file.schema_arrow, file.metadata.row_group(group)
    leaves = {metadata.column(number).path_in_schema: number for number in range(metadata.num_columns)}
    wanted = []
    for name in names:
        if _is_text(schema.field(name).type) and name in leaves:
            size = metadata.column(leaves[name]).total_uncompressed_size
            if size <= MOST_PATH * metadata.num_rows:
                wanted.append(name)
        elif pa.types.is_struct(schema.field(name).type) and f"{name}.path" in leaves:
            statistics = metadata.column(leaves.get(f"{name}.bytes", leaves[f"{name}.path"])).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                wanted.append(f"{name}.path")
    return wanted


def arrow_paths(table: Any, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Column -> the paths in its cells, for those of these columns that hold any."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = {}
    for name in names:
        column = table.column(name)
        if pa.types.is_struct(column.type):
            inner = {field.name for field in column.type}
            if "path" not in inner or ("bytes" in inner and not pc.struct_field(column, "bytes").null_count):
                continue
            column = pc.struct_field(column, "path")
        if _is_text(column.type) and column.nbytes <= MOST_PATH * max(len(column), 1):
            paths[name] = column.to_pylist()
    return paths


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
