"""How the 16-bit codes of depth and normal maps are stored: size, and the processor time of encoding and
decoding a map on one core, for PNG as it was, for what is used now, and for what else was tried.

The maps are those of rendered scenes, which are exact and have flat walls, and smooth ones made of
photographs: the blurred brightness as inverse depth, and the normals that `normal-from-depth` has from it.
Every candidate must give the same codes back. The rounds alternate between the candidates; each figure is the
mean over the maps of the median over the rounds. JPEG XL, JPEG-LS and Blosc need `imagecodecs`, and are left
out with a line where that is missing.

    python benchmarks/map_codecs.py --maps 8 --rounds 7 --out map-codecs.json
"""

import argparse
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Python puts this file's folder first, where annotate.py would hide the package of that name
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from annotate import maps, planes
from annotate.maps import RawMap
from annotate.normals import from_depth
from pipeline import scenes

SETS = ("depth of scenes", "depth of photographs", "normals of scenes", "normals of photographs")
PNG, OURS = "PNG, level 1 (as before)", "bytes apart, zstd 6 (in use)"
Decoded = np.ndarray  # uint16 [planes, h, w], in any order of memory


@dataclass(frozen=True)
class Candidate:
    """One way to store uint16 [planes, h, w], C-contiguous."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, tuple[int, ...]], Decoded]  # also given the shape


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=8, help="of each of the four sets")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from benchmarks.annotate import machine

    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    made = make_maps(options.maps, options.size)
    codes = {name: [codes_of(raw) for raw in of_set] for name, of_set in made.items()}
    rows = measure(candidates(), codes, options.rounds)
    arrays = measure_arrays(made, options.rounds)
    show(rows, arrays)
    told = {"machine": machine("cpu"), "maps": options.maps, "size": options.size, "rounds": options.rounds}
    if options.out:
        options.out.write_text(json.dumps(told | {"rows": rows, "arrays": arrays}, indent=2) + "\n")


# --- the maps ---


def make_maps(count: int, size: int) -> dict[str, list[RawMap]]:
    """`count` maps of each set."""
    from benchmarks.annotate import photographs

    rendered = [scenes.render(0, index, size).maps for index in range(count)]
    smooth = []
    for photograph in photographs(count, size):
        grey = cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY).astype(np.float32)
        smooth.append(maps.depth_map(cv2.GaussianBlur(grey, (0, 0), size / 128)))
    return {
        "depth of scenes": [of_scene["depth_large"] for of_scene in rendered],
        "depth of photographs": smooth,
        "normals of scenes": [of_scene["normal"] for of_scene in rendered],
        "normals of photographs": [from_depth(raw, 2 * math.pi, 0.0, 600.0) for raw in smooth],
    }


def codes_of(raw: RawMap) -> np.ndarray:
    return planes.decode(maps.encode(raw))


# --- the candidates ---


def candidates() -> dict[str, Candidate]:
    known = {
        PNG: Candidate(lambda codes: png(codes, 1), read_png),
        "PNG, level 6": Candidate(lambda codes: png(codes, 6), read_png),
        "zstd 3": packed(lambda codes: codes, lambda stored, shape: stored.view(np.uint16).reshape(shape), 3),
        OURS: Candidate(planes.encode, lambda data, shape: planes.decode(data)),
        "bytes apart, zstd 1": packed(split, joined, 1),
        "bytes apart, zstd 19": packed(split, joined, 19),
        "bytes apart, LZ4": packed(split, joined, None, "lz4_raw"),
        "bytes apart, z predicted from x and y, zstd 6": z_from_x_and_y(),
        "bytes apart in Parquet (BYTE_STREAM_SPLIT), zstd 3": Candidate(to_parquet, read_parquet),
        "left, bytes apart, zstd 6": predicted((2,), 6),
        "upper, bytes apart, zstd 6": predicted((1,), 6),
        "gradient, bytes apart, zstd 6": predicted((1, 2), 6),
        "gradient, bytes apart, zlib 6": predicted((1, 2), 6, "gzip"),
        "gradient by integral images, bytes apart, zstd 6": packed(gradient, integral, 6),
    }
    try:
        import imagecodecs
    except ImportError:
        print("imagecodecs is not installed: no JPEG XL, JPEG-LS and Blosc")
        return known
    return known | of_imagecodecs(imagecodecs)


def png(codes: np.ndarray, level: int) -> bytes:
    picture = codes[0] if len(codes) == 1 else np.ascontiguousarray(codes[::-1].transpose(1, 2, 0))
    return bytes(cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, level])[1])


def read_png(data: bytes, shape: tuple[int, ...]) -> Decoded:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return picture[None] if picture.ndim == 2 else picture[..., ::-1].transpose(2, 0, 1)


def packed(
    before: Callable[[np.ndarray], np.ndarray],
    after: Callable[[np.ndarray, tuple[int, ...]], Decoded],
    level: int | None,
    codec: str = "zstd",
) -> Candidate:
    """A rearrangement, and a general codec behind it."""
    packer = pa.Codec(codec, level)

    def decode(data: bytes, shape: tuple[int, ...]) -> Decoded:
        return after(np.frombuffer(packer.decompress(data, 2 * math.prod(shape)), np.uint8), shape)

    return Candidate(lambda codes: packer.compress(before(codes).tobytes(), asbytes=True), decode)


def split(codes: np.ndarray) -> np.ndarray:
    return np.concatenate([(codes >> 8).astype(np.uint8), codes.astype(np.uint8)])


def joined(stored: np.ndarray, shape: tuple[int, ...]) -> Decoded:
    high, low = stored.reshape(2, -1, shape[2])  # of a little-endian machine
    return cv2.merge([low, high]).view(np.uint16).reshape(shape)


def predicted(axes: Sequence[int], level: int | None, codec: str = "zstd") -> Candidate:
    """Differences along axes, undone by numpy's sums."""

    def before(codes: np.ndarray) -> np.ndarray:
        for axis in axes:
            codes = np.diff(codes, axis=axis, prepend=np.zeros_like(codes.take([0], axis)))
        return split(codes + np.uint16(128))

    def after(stored: np.ndarray, shape: tuple[int, ...]) -> Decoded:
        codes = joined(stored, shape)
        codes -= np.uint16(128)
        for axis in axes:
            np.add.accumulate(codes, axis=axis, out=codes)
        return codes

    return packed(before, after, level, codec)


def gradient(codes: np.ndarray) -> np.ndarray:
    """Residuals of left + upper - upper left."""
    down = np.diff(codes, axis=1, prepend=np.zeros_like(codes[:, :1]))
    return split(np.diff(down, axis=2, prepend=np.zeros_like(down[:, :, :1])) + np.uint16(128))


def integral(stored: np.ndarray, shape: tuple[int, ...]) -> Decoded:
    """Undoes `gradient` with OpenCV's sums of bytes over rows and columns, modulo 2**16."""
    count, h, w = shape
    high, low = stored.reshape(2, *shape)
    rows, columns = np.arange(1, h + 1, dtype=np.uint16), np.arange(1, w + 1, dtype=np.uint16)
    added = np.multiply.outer(rows * np.uint16(128), columns)
    codes, room = np.empty(shape, np.uint16), np.empty((h + 1, w + 1), np.int32)
    for number in range(count):
        plane = codes[number]
        np.copyto(plane, cv2.integral(high[number], room)[1:, 1:], casting="unsafe")
        plane <<= 8
        sums = cv2.integral(low[number], room)[1:, 1:]
        np.add(plane, sums, out=plane, dtype=np.uint16, casting="unsafe")
        plane -= added
    return codes


def to_parquet(codes: np.ndarray) -> bytes:
    file = io.BytesIO()
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2), codes.size, [None, pa.py_buffer(codes)])
    pq.write_table(
        pa.table({"codes": column}), file, compression="zstd", compression_level=3, use_dictionary=False,
        write_statistics=False, store_schema=False, column_encoding={"codes": "BYTE_STREAM_SPLIT"},
    )  # fmt: skip
    return file.getvalue()


def read_parquet(data: bytes, shape: tuple[int, ...]) -> Decoded:
    column = pq.read_table(pa.BufferReader(data)).column("codes").combine_chunks()
    return np.frombuffer(column.buffers()[1], np.uint16, math.prod(shape)).reshape(shape)


def z_from_x_and_y() -> Candidate:
    """What a unit vector that points to the viewer leaves of its third component is nearly nothing."""

    def left(codes: np.ndarray) -> np.ndarray:
        x, y = (plane.astype(np.int32) - 32767 for plane in codes[:2])
        squared = np.maximum(32767**2 - x * x - y * y, 0).astype(np.float32)
        return (np.sqrt(squared) + np.float32(32767.5)).astype(np.uint16)

    def encode(codes: np.ndarray) -> bytes:
        if len(codes) == 1:
            return planes.encode(codes)
        return planes.encode(np.stack([codes[0], codes[1], codes[2] - left(codes)]))

    def decode(data: bytes, shape: tuple[int, ...]) -> Decoded:
        codes = planes.decode(data)
        if len(codes) == 3:
            codes[2] += left(codes)
        return codes

    return Candidate(encode, decode)


def of_imagecodecs(library: Any) -> dict[str, Candidate]:
    def picture(codes: np.ndarray) -> np.ndarray:
        return codes[0] if len(codes) == 1 else np.ascontiguousarray(codes.transpose(1, 2, 0))

    def back(array: np.ndarray) -> Decoded:
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def jpeg_xl(effort: int) -> Candidate:
        return Candidate(
            lambda codes: library.jpegxl_encode(picture(codes), lossless=True, effort=effort, numthreads=1),
            lambda data, shape: back(library.jpegxl_decode(data, numthreads=1)),
        )

    def tall(codes: np.ndarray) -> np.ndarray:
        return codes.reshape(-1, codes.shape[2])

    return {
        "JPEG XL, lossless, effort 1": jpeg_xl(1),
        "JPEG XL, lossless, effort 3": jpeg_xl(3),
        "JPEG-LS, plane below plane": Candidate(
            lambda codes: library.jpegls_encode(tall(codes)),
            lambda data, shape: library.jpegls_decode(data).reshape(shape),
        ),
        "Blosc 2, bits apart, zstd 5": Candidate(
            lambda codes: library.blosc2_encode(
                codes.tobytes(), level=5, compressor="zstd", shuffle="bitshuffle", typesize=2, numthreads=1
            ),
            lambda data, shape: np.frombuffer(library.blosc2_decode(data, numthreads=1), np.uint16).reshape(
                shape
            ),
        ),
    }


# --- measuring ---


def measure(
    known: dict[str, Candidate], codes: dict[str, list[np.ndarray]], rounds: int
) -> list[dict[str, Any]]:
    """A row a candidate: by set, KiB and milliseconds of a map."""
    stored = {name: encode_all(one, codes) for name, one in known.items()}
    times: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}
    for turn in range(rounds):
        for name in list(known)[:: 1 if turn % 2 else -1]:
            for of_set, number, one in [(s, n, it) for s in SETS for n, it in enumerate(codes[s])]:
                encoding, decoding = times.setdefault((name, of_set, number), ([], []))
                data = stored[name][of_set][number]
                if turn < 3:  # it is no candidate's strength or weakness
                    encoding.append(milliseconds(lambda n=name, it=one: known[n].encode(it)))  # type: ignore[misc]
                decoding.append(
                    milliseconds(lambda n=name, d=data, it=one: known[n].decode(d, it.shape))  # type: ignore[misc]
                )
    rows = []
    for name in known:
        row: dict[str, Any] = {"name": name}
        for of_set in SETS:
            both = [times[name, of_set, number] for number in range(len(codes[of_set]))]
            row[of_set] = {
                "kib": round(statistics.fmean(len(data) for data in stored[name][of_set]) / 1024, 1),
                "encode_ms": round(statistics.fmean(statistics.median(one) for one, _ in both), 2),
                "decode_ms": round(statistics.fmean(statistics.median(other) for _, other in both), 3),
            }
        rows.append(row)
    return rows


def encode_all(one: Candidate, codes: dict[str, list[np.ndarray]]) -> dict[str, list[bytes]]:
    stored = {of_set: [one.encode(it) for it in of_codes] for of_set, of_codes in codes.items()}
    for of_set, of_codes in codes.items():
        for data, right in zip(stored[of_set], of_codes, strict=True):
            assert np.array_equal(one.decode(data, right.shape), right), "not lossless"
    return stored


def measure_arrays(made: dict[str, list[RawMap]], rounds: int) -> dict[str, dict[str, float]]:
    """By set, the milliseconds from the stored bytes to the float32 array: of PNG with the arithmetic that
    there was then, of PNG with that of now, and of what is stored now.
    """
    told = {}
    for of_set, raws in made.items():
        times: dict[str, list[list[float]]] = {"png_before": [], "png": [], "now": []}
        for raw in raws:
            data = maps.encode(raw)
            as_png = maps.portable(data)
            assert np.array_equal(before(raw, as_png), maps.decode(raw.kind, data, raw.meta).array)
            ways = {
                "png_before": lambda r=raw, d=as_png: before(r, d),
                "png": lambda r=raw, d=as_png: maps.decode(r.kind, d, r.meta),
                "now": lambda r=raw, d=data: maps.decode(r.kind, d, r.meta),
            }
            rounds_of = [{name: milliseconds(way) for name, way in ways.items()} for _ in range(rounds)]
            for name in ways:
                times[name].append([one[name] for one in rounds_of])
        told[of_set] = {
            name: round(statistics.fmean(map(statistics.median, found)), 3) for name, found in times.items()
        }
    return told


def before(raw: RawMap, data: bytes) -> np.ndarray:
    """The array as the versions that stored PNG computed it."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw.kind == "depth":
        return (picture * float(raw.meta["scale"]) + float(raw.meta["shift"])).astype(np.float32)
    code = picture[..., ::-1]
    array = UNITS[code]
    array[(code[..., 0] | code[..., 1] | code[..., 2]) == 0] = 0
    return array


UNITS = (np.arange(65536) / 32767.0 - 1).astype(np.float32)


def milliseconds(work: Callable[[], object]) -> float:
    """Of this process's processor time."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def show(rows: list[dict[str, Any]], arrays: dict[str, dict[str, float]]) -> None:
    print("| Stored as | " + " | ".join(SETS) + " |")
    for row in rows:
        cells = (
            f"{row[s]['kib']:.0f} KiB, {row[s]['decode_ms']:.2f} ms ({row[s]['encode_ms']:.1f})" for s in SETS
        )
        print(f"| {row['name']} | " + " | ".join(cells) + " |")
    before, now = (next(row for row in rows if row["name"] == name) for name in (PNG, OURS))
    for of_set in SETS:
        one, other = before[of_set]["decode_ms"], now[of_set]["decode_ms"]
        array = arrays[of_set]
        print(
            f"{of_set}: codes {one / other:.1f} times faster, arrays {array['png_before'] / array['now']:.1f}"
            f" times ({array['png_before']:.2f} ms before, {array['png']:.2f} ms with PNG and the arithmetic"
            f" of now, {array['now']:.2f} ms now)"
        )


if __name__ == "__main__":
    main()
