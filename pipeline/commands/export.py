"""Paired datasets out: the view `pairs` with its hints drawn, in the layouts that other trainers read."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from annotate import flips, maps
from annotate.annotator import Annotation
from annotate.conditions import CONDITIONS
from annotate.drawing import PROTOCOLS, draw
from annotate.parameters import near
from pipeline import MillError, sources
from pipeline.catalog import Catalog
from pipeline.cluster.progress import Progress
from pipeline.dataset.layouts import CROP, WRITERS, Crop, ExportSample, Hint, Origin
from pipeline.dataset.maps import annotation
from pipeline.storage import codec, shards
from pipeline.storage.new_folder import new_folder
from pipeline.storage.workspace import OWN_FOLDERS, stopping

SPLITS = ("train", "validation", "test")
BATCH = 32  # samples drawn at a time


@dataclass(frozen=True)
class Chosen:
    """What goes from one part of the images into one split; shards relative to the workspace."""

    split: str
    shard: str  # of the images
    maps: dict[str, str]  # condition -> shard
    rows: list[int]  # in all those shards
    images: list[int]  # the catalog's keys, row for row


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which pairs are written, and how."""

    to: str  # a key of WRITERS
    conditions: tuple[str, ...]  # an image goes along where every one of them has a pair
    split: str = "all"
    protocol: str = "cn10"
    seed: int = 0  # of what the protocol draws at random for each image
    raw: bool = False  # the stored maps beside their drawings
    flip: bool = False  # each pair is followed by its mirror image, where its caption allows

    @property
    def names(self) -> list[str]:  # each condition once
        return list(dict.fromkeys(self.conditions))

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.split == "all" else (self.split,)


def export(catalog: Catalog, dest: Path, options: ExportOptions, say: Callable[[str], None]) -> int:
    """Writes the pairs to the folder `dest`, whole or not at all, in a stable order; returns how many images.
    MillError where it can't.
    """
    names, place, root = options.names, dest.expanduser().resolve(), catalog.workspace.root
    _check(options)
    if any(place.is_relative_to(root / own) for own in OWN_FOLDERS):
        raise MillError(
            f"{dest} belongs to the workspace, which sweeps it: name a folder of your own, such as"
            f" {root / 'exports' / names[0]}."
        )
    chosen = _choose(catalog, names, options.splits, say)
    origins = [_origin(catalog, name, options.protocol) for name in names]
    counts = {
        split: sum(len(part.rows) for part in chosen if part.split == split) for split in options.splits
    }
    try:
        with new_folder(place) as folder, Progress("export", sum(counts.values())) as progress:
            for split, count in counts.items():
                if count:
                    parts = [part for part in chosen if part.split == split]
                    samples = _samples(catalog, parts, options, progress)
                    WRITERS[options.to](folder, split, samples, origins, options.raw)
    except OSError as error:  # pyarrow's too
        raise stopping(error, str(dest)) or error from error
    by_split = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
    say(f"{dest}: {sum(counts.values())} images with {', '.join(names)} ({by_split})")
    return sum(counts.values())


def _check(options: ExportOptions) -> None:
    for option, value, known in (
        ("--to", options.to, WRITERS),
        ("--split", options.split, (*SPLITS, "all")),
        ("--protocol", options.protocol, PROTOCOLS),
    ):
        if value not in known:
            raise MillError(
                f"{option}: {value!r} is unknown{near(value, known)}; set one of {', '.join(known)}."
            )
    for name in options.names:
        if name not in CONDITIONS:
            raise MillError(
                f"--condition: unknown condition {name!r}{near(name, CONDITIONS)}; `controlmill conditions`"
                " lists them."
            )
    if options.to == "diffusers" and len(options.names) > 1:
        raise MillError(
            f"--to diffusers holds one condition, not {len(options.names)}: export each to a folder of its"
            " own, or use --to huggingface."
        )
    if options.to == "diffusers" and options.raw:
        raise MillError(
            "--to diffusers has no place for --raw maps: leave --raw out, or use --to huggingface or"
            " webdataset."
        )


def _choose(
    catalog: Catalog, names: list[str], splits: tuple[str, ...], say: Callable[[str], None]
) -> list[Chosen]:
    """What goes along, in the order of splits and parts; MillError where that is nothing."""
    wanted = [list(splits), names]
    where = "list_contains(?, split) AND list_contains(?, condition)"
    counts = dict(
        catalog.query(f"SELECT condition, count(*) FROM pairs WHERE {where} GROUP BY condition", wanted)
    )
    place = "" if splits == SPLITS else f" in the {splits[0]} split"
    for name in names:
        if name not in counts:
            raise MillError(
                f"--condition {name} has no pairs{place}: `controlmill status {catalog.workspace.address}`"
                f" shows which have; add {name} to the manifest's conditions and run it, loosen its select,"
                " or export another."
            )
    parts = catalog.query(
        f"""SELECT split, part, min(image_shard), list(row ORDER BY row), list(image ORDER BY row)
            FROM (SELECT split, part, row, image, image_shard FROM pairs WHERE {where}
                  GROUP BY ALL HAVING count(DISTINCT condition) = {len(names)})
            GROUP BY split, part""",
        wanted,
    )
    if not parts:
        raise MillError(f"{' + '.join(names)} share no image{place}: export them apart.")
    if len(names) > 1:
        sizes = ", ".join(f"{name} {counts[name]}" for name in names)
        say(f"pairs: {sizes}; {sum(len(images) for *_, images in parts)} images have all of them")
    held: dict[int, dict[str, str]] = {}
    for condition, part, shard in catalog.query(
        f"SELECT DISTINCT condition, part, map_shard FROM pairs WHERE {where}", wanted
    ):
        held.setdefault(part, dict.fromkeys(names, ""))[condition] = shard
    parts.sort(key=lambda row: (SPLITS.index(row[0]), row[1]))
    return [Chosen(split, shard, held[part], rows, images) for split, part, shard, rows, images in parts]


def _origin(catalog: Catalog, condition: str, protocol: str) -> Origin:
    detector, fingerprint, licence = catalog.row(
        "SELECT detector, fingerprint, licence FROM detectors WHERE condition = ? AND current", [condition]
    )
    return Origin(condition, detector, fingerprint, licence, protocol)


# -- reading -------------------------------------------------------------------------------------------------


# a range reaches the tables' scans
CAPTIONS = """SELECT image, CASE WHEN source_caption = caption AND len(source_captions) > 0
                              THEN source_captions ELSE [coalesce(caption, '')] END
              FROM captions WHERE image BETWEEN ? AND ?"""
CROPS = f"SELECT image, {', '.join(CROP)} FROM images WHERE image BETWEEN ? AND ?"


def _samples(
    catalog: Catalog, parts: list[Chosen], options: ExportOptions, progress: Progress
) -> Iterator[ExportSample]:
    """Holds one part's shards at a time."""
    root = catalog.workspace.root
    with ThreadPoolExecutor() as pool:  # drawing and PNG coding mostly run outside Python's lock
        for part in parts:
            span = [min(part.images), max(part.images)]
            captions = dict(catalog.query(CAPTIONS, span))
            crops = {image: Crop(*box) for image, *box in catalog.query(CROPS, span)}
            pictures = shards.read(root / part.shard, ["image_id", "uri", "width", "height", "image"])
            tables = {name: shards.read(root / shard) for name, shard in part.maps.items()}
            draw = functools.partial(_sample, pictures, tables, captions, crops, options)
            for start in range(0, len(part.rows), BATCH):
                rows, images = part.rows[start : start + BATCH], part.images[start : start + BATCH]
                plain = pool.map(draw, rows, images, [False] * len(rows))
                none = [None] * len(rows)
                twins = pool.map(draw, rows, images, [True] * len(rows)) if options.flip else none
                for sample, twin in zip(plain, twins, strict=True):
                    yield from (one for one in (sample, twin) if one is not None)
                progress.add(len(rows))


def _sample(
    pictures: pa.Table,
    tables: dict[str, pa.Table],
    captions: dict[int, list[str]],
    crops: dict[int, Crop],
    options: ExportOptions,
    row: int,
    image: int,
    mirror: bool,
) -> ExportSample | None:
    """One pair or its mirror image; None where the caption would be wrong of that."""
    picture, texts = pictures.slice(row, 1).to_pylist()[0], captions[image]
    stored = {
        name: _stored(table.slice(row, 1).to_pylist()[0], name, picture["image_id"])
        for name, table in tables.items()
    }
    if not mirror:
        return ExportSample(
            **picture,
            text=texts[0],
            captions=tuple(filter(None, texts)),
            hints={
                name: _hint(picture["image_id"], one, maps.portable(data) if options.raw else b"", options)
                for name, (one, data) in stored.items()
            },
            crop=crops[image],
        )
    twins = [sources.mirrored_caption(picture["uri"], text) for text in texts]
    if twins[0] is None:
        return None
    pixels = np.ascontiguousarray(codec.decode(picture["image"])[:, ::-1])
    picture |= {"image_id": f"{picture['image_id']}-mirrored", "image": codec.encode(pixels, "png")}
    hints = {}
    for name, (one, _) in stored.items():
        assert one.map is not None
        flipped = flips.flip(one.map)
        data = maps.portable(maps.encode(flipped)) if options.raw else b""
        hints[name] = _hint(picture["image_id"], replace(one, map=flipped), data, options)
    return ExportSample(
        **picture,
        text=twins[0],
        captions=tuple(filter(None, twins)),
        hints=hints,
        crop=crops[image].mirrored(),
    )


def _stored(row: dict[str, Any], condition: str, image_id: str) -> tuple[Annotation, bytes]:
    """An annotation and its map as stored."""
    if row["image_id"] != image_id or row["map"] is None:
        raise MillError(
            f"The maps of {condition} changed while they were exported: wait for the run to end, then run the"
            " same command again."
        )
    return annotation(row, condition), row["map"]


def _hint(image_id: str, stored: Annotation, raw: bytes, options: ExportOptions) -> Hint:
    assert stored.map is not None
    drawn = draw(stored.map.kind, options.protocol, options.seed, image_id)
    png = codec.encode(maps.render(stored.map, protocol=options.protocol, drawn=drawn), "png")
    draws = dict(stored.random_params) | drawn
    return Hint(png, raw, stored.map.kind, stored.map.meta, draws, stored.measures)
