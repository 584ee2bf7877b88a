"""Raw images in: where they are (`listing`, in the driver) and what they hold (`read` and `canonical`, in a worker)."""

import csv
import hashlib
import importlib.util
import io
import json
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from pipeline import MillError
from pipeline.manifest import FolderSource, Image, ListSource

PACKAGE = "package://"  # package://skimage/data/coffee.png: a file that an installed package ships
MAX_BYTES = 2**30  # of one raw file
# What photographs come in; Pillow's others include some that start another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
ORIENTATION = 0x0112  # the EXIF tag
SIDECARS = {".txt", ".json"}
NOT_PHOTOGRAPHS = SIDECARS | {".jsonl", ".csv", ".md", ".db", ".parquet"}  # files that live beside images and are none


@dataclass(frozen=True)
class RawImage:
    """Where one raw image is, and its caption; None means: look for a sidecar beside it."""

    uri: str
    caption: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # why there is nothing to read, where the listing knows already


@dataclass(frozen=True)
class Canonical:
    """What every detector reads. `encoded` is what is stored, so it is also what is decoded again."""

    encoded: bytes
    width: int
    height: int
    raw_width: int
    raw_height: int
    raw_format: str


class Unreadable(Exception):
    """Why a raw file gives no image; `width`, `height` and `format` as far as its header told."""

    def __init__(self, reason: str, width: int | None = None, height: int | None = None, format: str | None = None) -> None:
        super().__init__(reason)
        self.width, self.height, self.format = width, height, format


def listing(sources: list[FolderSource | ListSource], without: Path | None = None) -> list[RawImage]:
    """Every raw image of the manifest in a stable order, each address once; what lies below `without`, the workspace, is no source."""
    found: dict[str, RawImage] = {}
    for source in sources:
        for raw in LISTERS[type(source)](source):
            if without is None or not Path(raw.uri).is_relative_to(without):
                found.setdefault(raw.uri, raw)
    if not found:
        raise MillError(f"No images found in {', '.join(source.path for source in sources)}: check `source.path` in the manifest.")
    return list(found.values())


def _list_folder(source: FolderSource) -> Iterator[RawImage]:
    root = _resolve(source.path)  # an address must mean the same in a worker's folder and in a later run's
    if not root.is_dir():
        raise MillError(f"source.path: the folder {root} does not exist: set it to a folder of images.")
    template = source.captions.get("template") if isinstance(source.captions, dict) else None
    fixed = template if template is not None else None if source.captions == "sidecar" else ""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() not in NOT_PHOTOGRAPHS and not hidden and not path.is_dir():
            name = os.fsencode(path).decode("utf-8", "backslashreplace")
            yield RawImage(name, fixed, problem="" if name == str(path) else "its name is not UTF-8: rename the file")


def _list_file(source: ListSource) -> Iterator[RawImage]:
    path = _resolve(source.path)
    if not path.is_file():
        raise MillError(f"source.path: the list {path} does not exist: set it to a .jsonl or .csv file.")
    if path.suffix not in (".jsonl", ".csv"):
        raise MillError(f"source.path: {path} is neither .jsonl nor .csv.")
    caption_column = source.captions.get("column", "caption")
    known = False
    for number, row in (_csv_rows if path.suffix == ".csv" else _json_rows)(path):
        address = row.get(source.image_column)
        known |= source.image_column in row
        if not isinstance(address, str) or not address:
            yield RawImage(f"{path}:{number}", "", problem=str(row.get("problem") or f"the row has no {source.image_column!r}"))
            continue
        caption = source.captions["template"] if "template" in source.captions else str(row.get(caption_column) or "")
        uri = address if address.startswith(PACKAGE) or Path(address).is_absolute() else str(path.parent / address)
        fields = {str(key): value for key, value in row.items() if key not in (source.image_column, caption_column, None)}
        yield RawImage(clean(uri), clean(caption), json.loads(clean(json.dumps(fields, ensure_ascii=False))))
    if not known:
        raise MillError(f"{path}: no row has {source.image_column!r}: set `source.image_column` to the column that names the image.")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_BYTES)
    with _text(path) as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=lambda name: None)
            except (ValueError, RecursionError) as error:
                row = {"problem": f"not JSON: {error}"}
            yield number, row if isinstance(row, dict) else {"problem": "a line must be a JSON object"}


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise MillError(f"source.path: {path} is not UTF-8 ({error.reason}): save it as UTF-8.") from error


def _resolve(path: str) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise MillError(f"source.path: {path!r} is no path: {error}.") from error


def clean(text: str) -> str:
    """Text that any file can hold: lone surrogates, which UTF-8 has no bytes for, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


LISTERS: dict[type, Any] = {FolderSource: _list_folder, ListSource: _list_file}


def read(raw: RawImage) -> tuple[bytes, str]:
    """The raw bytes and the caption; raises Unreadable when the file is not there to be read."""
    if raw.problem:
        raise Unreadable(raw.problem)
    path = _locate(raw.uri)
    try:
        told = path.stat()
        if not stat.S_ISREG(told.st_mode):  # a pipe or a device might never end
            raise Unreadable("not a file")
        if told.st_size > MAX_BYTES:
            raise Unreadable(f"too large: {told.st_size} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror}") from error
    if not data:
        raise Unreadable("empty file")
    return data, raw.caption if raw.caption is not None else clean(_sidecar(path))


def image_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _locate(uri: str) -> Path:
    if not uri.startswith(PACKAGE):
        return Path(uri)
    package, _, inner = uri.removeprefix(PACKAGE).partition("/")
    if ".." in PurePosixPath(inner).parts:
        raise Unreadable("a package:// address can't leave its package")
    if not package.isidentifier():
        raise Unreadable(f"{package!r} is no package's name")
    spec = importlib.util.find_spec(package)  # finds without importing
    if spec is None or not spec.submodule_search_locations:
        raise Unreadable(f"the package {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)), inner)


def _sidecar(path: Path) -> str:
    """photo.txt, else the `caption` or `text` of photo.json, else nothing."""
    text, record = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            return text.read_text(encoding="utf-8-sig").strip()
        if record.is_file():
            value = json.loads(record.read_text(encoding="utf-8-sig"))
            return str(value.get("caption") or value.get("text") or "").strip()
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # an image with a broken sidecar is an image without a caption
    return ""


def canonical(data: bytes, image: Image) -> Canonical:
    """EXIF applied, RGB, alpha on white, scaled and cropped as the manifest says, encoded; raises Unreadable."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    width = height = kind = None
    try:
        with warnings.catch_warnings(action="ignore"), Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            (width, height), kind = picture.size, picture.format
            if width * height > image.max_pixels:
                raise Unreadable(
                    f"too large: {width}×{height} is over image.max_pixels ({image.max_pixels:,})".replace(",", " "), width, height, kind
                )
            turned = picture.getexif().get(ORIENTATION, 1) != 1
            pixels = None if turned else _plain_jpeg(data, picture)
            if pixels is None:
                picture.load()
                pixels = _rgb(ImageOps.exif_transpose(picture) if turned else picture)
    except Unreadable:
        raise
    except Pillow.DecompressionBombError as error:
        raise Unreadable("too large: over Pillow's limit of pixels", width, height, kind) from error
    except Pillow.UnidentifiedImageError as error:
        raise Unreadable("not an image of a known format") from error
    except Exception as error:  # decoders raise whatever they like on broken data; the file becomes a row
        raise Unreadable(f"broken image: {str(error) or type(error).__name__}", width, height, kind) from error
    small = fit(pixels, image)
    return Canonical(encode(small, image.store), small.shape[1], small.shape[0], width, height, kind or "")


def _plain_jpeg(data: bytes, picture: Any) -> np.ndarray | None:
    """uint8 HWC RGB of the common case, twice as fast as Pillow; None for whatever needs Pillow's care.

    OpenCV fills a truncated file with grey and says nothing, so the end marker must be there.
    """
    import cv2

    if picture.format != "JPEG" or picture.mode not in ("RGB", "L") or b"\xff\xd9" not in data[-64:]:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _rgb(picture: Any) -> np.ndarray:
    """uint8 HWC RGB of a loaded Pillow image of any mode."""
    from PIL import Image as Pillow

    if picture.mode.startswith("I"):  # 16-bit grey: I;16, I;16B, or I where Pillow widened it
        grey = np.asarray(picture).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit grey without a known range")
        return np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("floating-point image without a known range")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Pillow.alpha_composite(white, picture)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def canonical_size(height: int, width: int, image: Image) -> tuple[int, int]:
    """(height, width) of the canonical image. Buckets: sides in multiples of 64, area at most R², nearest aspect ratio."""
    side = image.resolution
    if image.fit == "crop":
        return side, side
    aspect = np.log(width / height)
    sides = range(64, side * side // 64 + 1, 64)
    best = min(
        ((h, w) for h in sides for w in [side * side // h // 64 * 64] if w >= 64),
        key=lambda hw: (abs(np.log(hw[1] / hw[0]) - aspect), -hw[0] * hw[1]),
    )
    return best


def fit(pixels: np.ndarray, image: Image) -> np.ndarray:
    """Scales uint8 HWC RGB to cover the canonical size (area filter down, Lanczos up) and takes the centre."""
    import cv2

    height, width = pixels.shape[:2]
    tall, wide = canonical_size(height, width, image)
    scale = max(tall / height, wide / width)
    inner_h, inner_w = min(height, round(tall / scale)), min(width, round(wide / scale))
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    centre = np.ascontiguousarray(pixels[top : top + inner_h, left : left + inner_w])
    if (inner_h, inner_w) == (tall, wide):
        return centre
    return cv2.resize(centre, (wide, tall), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4)


def encode(pixels: np.ndarray, store: str) -> bytes:
    """JPEG 95 with full colour resolution, or PNG."""
    import cv2

    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if store == "png":
        return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def decode(encoded: bytes) -> np.ndarray:
    """uint8 HWC RGB of a canonical image that this module encoded."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("a stored image does not decode: run `controlmill verify`")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
