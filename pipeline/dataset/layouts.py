"""The layouts of exported datasets: each writer takes one split's samples as they come and
holds few of them.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.json import read_json

from annotate.drawing import MapMeta
from annotate.parameters import Values
from pipeline import MillError

MOST_SAMPLES, MOST_BYTES = 10_000, 10**9  # of one tar or Parquet file
ROWS_A_GROUP = 100  # Hugging Face's viewer and streaming read a whole group for one row
HEAD = 320 * 1024  # bytes of a metadata.jsonl from which `datasets` guesses the types
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"\x93NUMPY": "npy"}


@dataclass(frozen=True)
class Origin:
    """What made one condition's hints."""

    condition: str
    detector: str
    fingerprint: str
    licence: str
    protocol: str


@dataclass(frozen=True)
class Hint:
    """One condition of one image: the drawing as RGB PNG, the raw map as other programs read it (empty where
    no raw maps go along), and what is known of it.
    """

    png: bytes
    raw: bytes
    kind: str
    meta: MapMeta
    random_params: Values
    measures: dict[str, float]


@dataclass(frozen=True)
class Crop:
    """The upright raw image and the rectangle of it that the canonical image shows, in its pixels.

    Unknown of images that an earlier version stored.
    """

    upright_width: int | None = None
    upright_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    crop_width: int | None = None
    crop_height: int | None = None

    def mirrored(self) -> "Crop":
        """The same of the mirror image."""
        if self.upright_width is None or self.crop_left is None or self.crop_width is None:
            return self
        return replace(self, crop_left=self.upright_width - self.crop_left - self.crop_width)


CROP = tuple(field.name for field in fields(Crop))


@dataclass(frozen=True)
class ExportSample:
    """One canonical image, its bytes as stored, with the hints of every exported condition."""

    image_id: str
    image: bytes
    width: int
    height: int
    text: str
    uri: str
    hints: dict[str, Hint]
    crop: Crop = Crop()
    captions: tuple[str, ...] = ()  # all that the image has; `text` is the first

    @property
    def size(self) -> int:
        return len(self.image) + sum(len(hint.png) + len(hint.raw) for hint in self.hints.values())


def suffix_of(data: bytes) -> str:
    return next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), "bin")


# the export's folder, a split and its samples, what made the hints, whether the raw maps go along
Writer = Callable[[Path, str, Iterator[ExportSample], list[Origin], bool], None]


def write_parquet(
    folder: Path, split: str, samples: Iterator[ExportSample], origins: list[Origin], raw: bool
) -> None:
    """data/<split>-00000-of-00001.parquet with Hugging Face's features in the schema, so that pictures load
    as pictures.
    """
    schema = _schema(origins, raw)
    (folder / "data").mkdir(exist_ok=True)
    files = []
    for number, pack in enumerate(_packs(samples)):
        files.append(folder / "data" / f"{split}-{number:05d}.parquet")
        with pq.ParquetWriter(files[-1], schema) as writer:
            while rows := [_record(sample, origins, raw) for sample in islice(pack, ROWS_A_GROUP)]:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    for file in files:
        file.rename(file.with_name(f"{file.stem}-of-{len(files):05d}.parquet"))


def _schema(origins: list[Origin], raw: bool) -> pa.Schema:
    import datasets

    text, whole = datasets.Value("string"), datasets.Value("int32")
    features: dict[str, object] = {"image": datasets.Image()}
    for end, _ in _endings(origins):
        features[f"conditioning_image{end}"] = datasets.Image()
    features |= {"text": text, "captions": [text], "image_id": text, "width": whole, "height": whole}
    features |= dict.fromkeys(CROP, whole)
    for end, _ in _endings(origins):
        features |= {
            f"{name}{end}": text for name in ("detector", "fingerprint", "licence", "protocol", "draws")
        }
        features |= (
            {f"raw{end}": datasets.Value("binary"), f"raw_kind{end}": text, f"raw_meta{end}": text}
            if raw
            else {}
        )
    return datasets.Features(features).arrow_schema


def _record(sample: ExportSample, origins: list[Origin], raw: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "image": {"bytes": sample.image, "path": f"{sample.image_id}.{suffix_of(sample.image)}"}
    }
    row |= {"text": sample.text, "captions": list(sample.captions)}
    row |= {name: getattr(sample, name) for name in ("image_id", "width", "height")} | asdict(sample.crop)
    for end, origin in _endings(origins):
        hint = sample.hints[origin.condition]
        row[f"conditioning_image{end}"] = {
            "bytes": hint.png,
            "path": f"{sample.image_id}.{origin.condition}.png",
        }
        row |= {
            f"{name}{end}": getattr(origin, name)
            for name in ("detector", "fingerprint", "licence", "protocol")
        }
        row[f"draws{end}"] = _json(hint.random_params)
        row |= (
            {f"raw{end}": hint.raw, f"raw_kind{end}": hint.kind, f"raw_meta{end}": _json(hint.meta)}
            if raw
            else {}
        )
    return row


def _endings(origins: list[Origin]) -> list[tuple[str, Origin]]:
    """A single condition's columns have the plain names that trainers expect."""
    return [("" if len(origins) == 1 else f"_{origin.condition}", origin) for origin in origins]


def write_tars(
    folder: Path, split: str, samples: Iterator[ExportSample], origins: list[Origin], raw: bool
) -> None:
    """<split>/000000.tar …, the files of a sample side by side; equal samples give equal bytes."""
    (folder / split).mkdir()
    for number, pack in enumerate(_packs(samples)):
        with tarfile.open(folder / split / f"{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in pack:
                for suffix, data in _members(sample, split, origins, raw):
                    member = tarfile.TarInfo(f"{sample.image_id}.{suffix}")  # its date is 0, its owner root
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _members(
    sample: ExportSample, split: str, origins: list[Origin], raw: bool
) -> Iterator[tuple[str, bytes]]:
    yield suffix_of(sample.image), sample.image
    conditions: dict[str, object] = {}
    for origin in origins:
        hint = sample.hints[origin.condition]
        yield f"{origin.condition}.png", hint.png
        known = asdict(origin) | {"draws": hint.random_params, "measures": hint.measures}
        if raw:
            yield f"{origin.condition}.raw.{suffix_of(hint.raw)}", hint.raw
            known |= {"kind": hint.kind, "meta": hint.meta}
        conditions[known.pop("condition")] = known
    about = {name: getattr(sample, name) for name in ("image_id", "uri", "width", "height")}
    about |= {"captions": sample.captions} | asdict(sample.crop)
    yield "txt", sample.text.encode()
    yield "json", _json(about | {"split": split, "conditions": conditions}).encode()


def write_folder(
    folder: Path, split: str, samples: Iterator[ExportSample], origins: list[Origin], raw: bool
) -> None:
    """<split>/metadata.jsonl and the pictures that it names: the image-folder layout of `datasets`, columns
    image, text, conditioning_image, which the trainer takes by their place, then the crop.

    MillError, when all is written, where `datasets` would take the captions for dates.
    """
    place = folder / split
    for name in ("images", "conditioning_images"):
        (place / name).mkdir(parents=True)
    with (place / "metadata.jsonl").open("w", encoding="utf-8") as index:
        for sample in samples:
            image, hint = (
                f"images/{sample.image_id}.{suffix_of(sample.image)}",
                f"conditioning_images/{sample.image_id}.png",
            )
            (place / image).write_bytes(sample.image)
            (place / hint).write_bytes(sample.hints[origins[0].condition].png)
            row = {"file_name": image, "text": sample.text, "conditioning_image_file_name": hint}
            index.write(_json(row | asdict(sample.crop)) + "\n")
    with (place / "metadata.jsonl").open("rb") as index:
        head = index.read(HEAD) + index.readline()
    # "2024-01-31" and the like, in every line
    if not pa.types.is_string(read_json(io.BytesIO(head)).schema.field("text").type):
        raise MillError(
            f"`datasets` would read the captions of the {split} split as dates: use --to huggingface, which"
            " the trainer reads too."
        )


WRITERS: dict[str, Writer] = {
    "huggingface": write_parquet,
    "webdataset": write_tars,
    "diffusers": write_folder,
}


def _packs(samples: Iterator[ExportSample]) -> Iterator[Iterator[ExportSample]]:
    """The samples of one file after the other; each pack must be read to its end before the next is asked
    for.
    """
    waiting = list(islice(samples, 1))

    def pack() -> Iterator[ExportSample]:
        count = size = 0
        while waiting and (count == 0 or (count < MOST_SAMPLES and size + waiting[0].size <= MOST_BYTES)):
            sample = waiting.pop()
            yield sample
            count, size = count + 1, size + sample.size
            waiting.extend(islice(samples, 1))

    while waiting:
        yield pack()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
