"""What one JPEG costs from its file to its stored image, by stage, beside the decoder of before and libvips;
how far its pixels are from full decoding; how many whole photographs are refused; how much damage is told.

Photographs that installed packages ship, enlarged to 1024×768 and 4000×3000, JPEG of quality 90; processor
time of one thread, median over photographs and repeats, contestants in turn.

    python benchmarks/decode.py --out decode.json
"""

import argparse
import hashlib
import io
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pillow

SIZES = ((1024, 768), (4000, 3000))
STAGES = ("read", "decode", "colour", "resize", "quality", "encode")
SIDES = (64, 128, 192, 256, 320, 384, 512)  # resolutions at which pixels are compared
DAMAGES = 40  # per photograph and kind
WRITINGS: dict[str, dict[str, Any]] = {
    "plain": {}, "progressive": {"progressive": True}, "restart markers": {"restart_marker_rows": 1},
    "4:1:1": {"subsampling": "4:1:1"}, "4:4:4": {"subsampling": 0}, "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}  # fmt: skip


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=int, default=6, help="of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    from benchmarks.annotate import machine

    cv2.setNumThreads(1)
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.jp*g"))
    files = [path for path in files if not path.read_bytes().startswith(b"version")]  # Git's pointers
    told: dict[str, Any] = {"machine": machine("cpu"), "photographs": options.photographs}
    told["stages_ms"] = {
        f"{width}×{height}": stages(width, height, options.photographs, options.repeats)
        for width, height in SIZES
    }
    for size, rows in told["stages_ms"].items():
        print(f"\n{size:12}" + "".join(f"{stage:>9}" for stage in (*STAGES, "all")))
        for name, row in rows.items():
            print(f"{name:12}" + "".join(f"{row.get(stage, 0):9.2f}" for stage in (*STAGES, "all")))
        print(f"{'':12}{rows['before']['all'] / rows['now']['all']:.1f} times the speed of before")
    told["difference"] = difference(files)
    told["refused"] = refused(files)
    told["damage_told"] = damage_told(files)
    for name in ("difference", "refused", "damage_told"):
        print(f"\n{name}: {told[name]}")
    if options.out:
        options.out.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


# -- time ----------------------------------------------------------------------------------------------------


def stages(width: int, height: int, count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Contestant -> stage -> milliseconds of processor time, median."""
    contestants: dict[str, Callable[[Path], list[float]]] = {"before": before, "now": now}
    try:
        import pyvips

        pyvips.cache_set_max(0)
        contestants["libvips"] = by_libvips
    except ImportError:
        print("libvips is left out: pip install pyvips pyvips-binary")
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        paths = enlarged(Path(folder), width, height, count)
        for _ in range(repeats + 1):  # the first is for what is loaded once
            for path in paths:
                for name, contestant in contestants.items():
                    times[name].append(contestant(path))
    rows = {}
    for name, every in times.items():
        spans = np.diff(np.array(every[count:]), axis=1) * 1000
        row = dict(zip(STAGES, np.median(spans, axis=0), strict=True))
        row["all"] = float(np.median(spans.sum(axis=1)))
        rows[name] = {stage: round(float(value), 2) for stage, value in row.items()}
    return rows


def enlarged(folder: Path, width: int, height: int, count: int) -> list[Path]:
    from benchmarks.annotate import photographs

    paths = []
    for number, picture in enumerate(photographs(count, 1024)):
        path = folder / f"{number}.jpg"
        wide = Pillow.fromarray(picture).resize((width, width), Pillow.Resampling.BICUBIC)
        wide.crop((0, 0, width, height)).save(path, quality=90)
        paths.append(path)
    return paths


def now(path: Path) -> list[float]:
    """The moments between the stages of the code that runs."""
    from pipeline.dataset import colour, decoders, formats, images, quality
    from pipeline.manifest import Image
    from pipeline.storage import codec

    image, clock = Image(), [time.process_time()]
    data = _read(path, clock)
    with formats.opened(data, image.max_pixels) as (picture, header):
        to = images.place(*header.upright, image)
        raster = decoders.decode(picture, header, data, image, to.height / to.size[0])
        clock.append(time.process_time())
        colours = colour.colours(picture, data, raster.pixels.shape[2])
        clock.append(time.process_time())
    pixels = images.fit(raster, to, colours, header)
    clock.append(time.process_time())
    quality.measure(pixels)
    clock.append(time.process_time())
    codec.encode(pixels, image.store)
    return [*clock, time.process_time()]


def before(path: Path) -> list[float]:
    """The same of the decoder that was here first: every pixel by OpenCV, then its area filter."""
    from pipeline.dataset import images, quality
    from pipeline.manifest import Image
    from pipeline.storage import codec

    image, clock = Image(), [time.process_time()]
    data = _read(path, clock)
    with Pillow.open(io.BytesIO(data)) as picture:
        picture.getexif()
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    clock += [time.process_time()] * 2  # colours were left as they are
    pixels = by_area(pixels, images.place(*pixels.shape[:2], image))
    clock.append(time.process_time())
    quality.measure(pixels)
    clock.append(time.process_time())
    codec.encode(pixels, image.store)
    return [*clock, time.process_time()]


def by_libvips(path: Path) -> list[float]:
    """Its thumbnail: shrunk while it is decoded, turned, cropped, strict; its colours stay as they are."""
    import pyvips

    from pipeline.dataset import quality
    from pipeline.storage import codec

    clock = [time.process_time()]
    data = _read(path, clock)
    small = pyvips.Image.thumbnail_buffer(data, 512, height=512, crop="centre", fail_on="warning")
    pixels = small.numpy()
    clock += [time.process_time()] * 3  # decoding, colours and scaling are one
    quality.measure(pixels)
    clock.append(time.process_time())
    codec.encode(pixels, "jpeg")
    return [*clock, time.process_time()]


def _read(path: Path, clock: list[float]) -> bytes:
    data = path.read_bytes()
    hashlib.sha256(data).hexdigest()  # its identity
    clock.append(time.process_time())
    return data


def by_area(pixels: np.ndarray, to: Any) -> np.ndarray:
    centre = np.ascontiguousarray(pixels[to.top : to.top + to.height, to.left : to.left + to.width])
    return cv2.resize(centre, to.size[::-1], interpolation=cv2.INTER_AREA)


# -- pixels --------------------------------------------------------------------------------------------------


def difference(files: list[Path]) -> dict[str, Any]:
    """Of photographs scaled down while they are decoded, from all pixels under the area filter; of 255."""
    from pipeline.dataset import images, jpeg
    from pipeline.manifest import Image

    rows = []
    for path in files:
        data = path.read_bytes()
        with Pillow.open(io.BytesIO(data)) as picture:
            if picture.mode != "RGB" or "icc_profile" in picture.info or picture.getexif().get(0x0112, 1) > 1:
                continue
            full = np.asarray(picture)
        for side in SIDES:
            if jpeg.factor(min(full.shape[:2]) / side) == 1:
                continue
            made = images.canonical(data, Image(resolution=side))
            error = np.abs(made.pixels.astype(int) - by_area(full, made.placement))
            rows.append((error.mean(), np.percentile(error, 99.9), error.max()))
    mean, most_of_it, largest = np.array(rows).T
    return {
        "comparisons": len(rows),
        "mean": round(float(mean.mean()), 2),
        "largest_mean": round(float(mean.max()), 2),
        "largest_of_999_in_1000": int(most_of_it.max()),
        "largest": int(largest.max()),
    }


# -- damage --------------------------------------------------------------------------------------------------


def _refusal(data: bytes) -> str:
    from pipeline.dataset import images
    from pipeline.manifest import Image
    from pipeline.sources.raw import Unreadable

    try:
        images.canonical(data, Image(resolution=64, min_side=1))
    except Unreadable as error:
        return str(error)
    return ""


def refused(files: list[Path]) -> dict[str, Any]:
    """How many whole photographs are refused: files as they are, written again in several ways, and without
    their end marker.
    """
    whole, wrong = 0, []
    for path in files:
        data = path.read_bytes()
        with Pillow.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        written = {"as it is": data, "without its end marker": data[: data.rindex(b"\xff\xd9")]}
        for name, options in WRITINGS.items():
            buffer = io.BytesIO()
            mode = options.get("mode", "RGB")
            rest = {key: value for key, value in options.items() if key != "mode"}
            picture.convert(mode).save(buffer, "JPEG", quality=85, **rest)
            written[name] = buffer.getvalue()
        whole += len(written)
        wrong += [f"{path.name}, {name}: {said}" for name, one in written.items() if (said := _refusal(one))]
    return {"files": len(files), "whole": whole, "refused": wrong}


def damage_told(files: list[Path]) -> dict[str, float]:
    """Share of damaged files that are refused. JPEG has no checksum: bytes that decode to another picture of
    the same size are not told.
    """
    draw = np.random.default_rng(0)
    counts: dict[str, list[bool]] = {}
    for path in files:
        data = path.read_bytes()
        for _ in range(DAMAGES):
            at = int(draw.integers(len(data) // 3, len(data) - 300))
            noise = draw.integers(0, 256, 200, dtype=np.uint8).tobytes()
            kinds = {
                "cut": data[:at],
                "cut, with an end marker": data[:at] + b"\xff\xd9",
                "200 bytes of noise": data[:at] + noise + data[at + 200 :],
                "200 bytes of 0": data[:at] + bytes(200) + data[at + 200 :],
                "8 bytes of noise": data[:at] + noise[:8] + data[at + 8 :],
                "200 bytes left out": data[:at] + data[at + 200 :],
            }
            for name, spoiled in kinds.items():
                counts.setdefault(name, []).append(bool(_refusal(spoiled)))
    return {name: round(statistics.mean(said), 3) for name, said in counts.items()}


if __name__ == "__main__":
    # Python puts this file's folder first, where annotate.py would hide the package of that name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
