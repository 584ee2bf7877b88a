"""Raw images as Arrow record batches and back: how a long listing is kept in a file."""

import json
from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa

from pipeline.sources.raw import RawImage

SCHEMA = pa.schema([
    ("uri", pa.string()),
    ("caption", pa.string()),  # null: it is read with the image
    ("more_captions", pa.list_(pa.string())),  # null: none
    ("fields", pa.string()),  # canonical JSON, as the catalog keeps it
    ("stamp", pa.string()),
    ("caption_stamp", pa.string()),
    ("marks", pa.uint8()),
    ("rest", pa.string()),  # JSON of [problem, reader, place, provided, map_stamps], mostly equal in all rows
])  # fmt: skip
# what a comparison with the catalog must know of a row
PROBLEM, FAR, UNTOLD, BARE = 1, 2, 4, 8
FAR_READERS = {"url", "object"}

# canonical_json without the cost of an encoder for each value
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_decode = json.JSONDecoder().decode


def fields_text(fields: dict[str, Any]) -> str:
    """`canonical_json` of an image's fields, a few times faster for a few plain columns."""
    if not fields:
        return "{}"
    pieces = []
    for name in sorted(fields):
        value = fields[name]
        kind = type(value)
        if kind is str:
            text = encode_basestring(value)
        elif kind is int or (kind is float and value - value == 0):
            text = repr(value)
        else:
            return _encode(fields)
        pieces.append(f"{encode_basestring(name)}:{text}")
    return "{" + ",".join(pieces) + "}"


def marks_of(raw: RawImage) -> int:
    """PROBLEM: there is nothing to read; FAR: only its server tells what it looks like; UNTOLD: its captions
    are read with it; BARE: a file beside which no caption lies.
    """
    marks = PROBLEM if raw.problem else 0
    if raw.reader in FAR_READERS:
        marks |= FAR
    if raw.caption is None:
        marks |= UNTOLD | (BARE if raw.reader == "file" and not raw.caption_stamp else 0)
    return marks


# of one image: the columns of SCHEMA
Row = tuple[str, str | None, Sequence[str] | None, str, str, str, int, str]


def merged(captions: Sequence[str], others: Sequence[str | None]) -> Sequence[str]:
    """The captions of an image with those of the same address further down: each once."""
    new = [text for text in others if text and text not in captions]
    return [text for text in (*captions, *new) if text] if new else captions


def rest_of(raw: RawImage) -> str:
    return json.dumps([raw.problem, raw.reader, raw.place, raw.provided, raw.map_stamps])


class Rows:
    """Raw images on their way into a record batch."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._before: RawImage | None = None
        self._rest = ""  # of the image before

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, raw: RawImage) -> None:
        before = self._before
        if (
            before is None
            or raw.place is not before.place
            or raw.provided is not before.provided
            or raw.reader != before.reader
            or raw.problem != before.problem
            or raw.map_stamps != before.map_stamps
        ):
            self._before, self._rest = raw, rest_of(raw)
        more = raw.more_captions or None
        texts = (raw.uri, raw.caption, more, fields_text(raw.fields), raw.stamp, raw.caption_stamp)
        self.append((*texts, marks_of(raw), self._rest))

    def append(self, row: Row) -> None:
        """An address that stands there twice in a row is one image with the captions of both."""
        if self.rows and self.rows[-1][0] == row[0]:
            uri, caption, more, fields, stamp, caption_stamp, marks, rest = self.rows[-1]
            if caption is not None:
                caption, *texts = merged((caption, *(more or ())), (row[1], *(row[2] or ())))
                self.rows[-1] = (uri, caption, texts or None, fields, stamp, caption_stamp, marks, rest)
                return
        self.rows.append(row)

    def take(self) -> pa.RecordBatch:
        """What was added, as a batch; then there is nothing."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(SCHEMA)
        self.rows.clear()
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def batch_of(raw_images: Sequence[RawImage]) -> pa.RecordBatch:
    rows = Rows()
    for raw in raw_images:
        rows.add(raw)
    return rows.take()


def raw_images_of(batch: pa.RecordBatch) -> Iterator[RawImage]:
    """The images of a batch, in order; rows that say the same share the dicts."""
    before, parts = "", tuple[Any, ...]()
    columns = [column.to_pylist() for column in batch.columns]
    for uri, caption, more, fields, stamp, caption_stamp, _, rest in zip(*columns, strict=True):
        if rest != before:
            before, parts = rest, tuple(_decode(rest))
        problem, reader, place, provided, map_stamps = parts
        yield RawImage(
            uri,
            caption,
            _decode(fields) if fields != "{}" else {},
            problem,
            reader,
            place,
            provided,
            tuple(more) if more else (),
            stamp,
            caption_stamp,
            map_stamps,
        )
