"""What a file is, from its first bytes and its header: its format, its size, how it is turned, how many
pictures it holds.
"""

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from annotate import memory
from pipeline.dataset import jpeg, png, tiff
from pipeline.sources.raw import Unreadable

# What photographs come in; Pillow's others include some that start another program (EPS).
FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "AVIF",
)  # fmt: skip
EXTRAS = {"HEIF": ("pillow_heif", "heic", "HEIC"), "JXL": ("pillow_jxl", "jxl", "JPEG XL")}  # module, extra
ORIENTATION = 0x0112  # the EXIF tag
SUB_IFDS, DNG_VERSION = 330, 50706  # tags of TIFF
USUAL = 12  # bytes that decoding a pixel takes at most, of the kinds that `_bytes_a_pixel` does not name
DEEP_PNG = {2: 16, 4: 20, 6: 20}  # of 16 bits: colour type -> bytes that decoding a pixel takes (measured)
MOST_FRAMES = 2**31 - 1  # that a row can tell; an animated PNG may claim more
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "HEIF")

# (offset, bytes there, what it is) of files that lie between photographs and are none that is read here
FOREIGN = (
    (0, b"8BPS", "a Photoshop document (PSD)"), (0, b"gimp xcf", "a GIMP document (XCF)"),
    (0, b"%PDF", "a PDF document"), (0, b"%!PS", "PostScript (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"), (0, b"#?R", "a Radiance HDR picture"),
    (0, b"FUJIFILMCCD", "a camera's RAW file"), (0, b"IIRO", "a camera's RAW file"),
    (0, b"IIU\0", "a camera's RAW file"), (8, b"CR\x02", "a camera's RAW file"),
    (4, b"ftypcrx", "a camera's RAW file"), (0, b"FOVb", "a camera's RAW file"),
    (0, b"\0MRM", "a camera's RAW file"), (0, b"II\xbc\x01", "a JPEG XR picture"),
    (128, b"DICM", "a DICOM file"), (0, b"SIMPLE  =", "a FITS file"), (0, b"DDS ", "a DDS texture"),
    (0, b"qoif", "a QOI picture"), (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (8, b"AVI ", "a video (AVI)"), (0, b"\0\0\x01\xba", "a video (MPEG)"),
    (0, b"\0\0\x01\xb3", "a video (MPEG)"),
    (0, b"FLV\x01", "a video (FLV)"), (0, b"OggS", "a video (Ogg)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (WMV)"),
    (0, b"\x93NUMPY", "a NumPy array"), (0, b"PK\x03\x04", "a ZIP archive"), (0, b"\x1f\x8b", "a gzip file"),
)  # fmt: skip
KNOWN = (
    (0, b"\xff\xd8", "JPEG"), (0, b"\x89PNG", "PNG"), (0, b"GIF8", "GIF"), (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"\0\0\1\0", "ICO"), (0, b"\xff\x0a", "JXL"), (4, b"JXL ", "JXL"), (4, b"jP  ", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
)  # fmt: skip
TEXT = ((b"<svg", "an SVG drawing"), (b"<html", "an HTML page"), (b"<!doctype html", "an HTML page"))


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before it is decoded; width and height are those stored."""

    format: str
    width: int
    height: int
    orientation: int  # EXIF's, 1 to 8
    frames: int

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the picture as EXIF turns it."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


@contextmanager
def opened(data: bytes, max_pixels: int | None = None) -> Iterator[tuple[Any, Header]]:
    """The picture as Pillow opens it, not yet decoded, and its header; raises Unreadable, for a picture of
    more pixels before it takes memory.
    """
    from PIL import Image as Pillow

    limit = Pillow.MAX_IMAGE_PIXELS
    kind = guess(data)
    _check_before(data, kind, max_pixels)
    formats = [*FORMATS, *_extra(kind, data)]
    Pillow.MAX_IMAGE_PIXELS = None  # the manifest has a limit of its own, whose refusal can name its key
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                picture = Pillow.open(io.BytesIO(data), formats=formats)
            except Exception as error:  # decoders raise whatever they like on broken data
                memory.let_through(error)
                picture = _without_comments(data, kind)
                if picture is None:
                    raise _refusal(data, kind, error) from error
            with picture:
                _bound(*picture.size, max_pixels, picture.format, _bytes_a_pixel(picture, data))
                yield picture, _header(picture, data)
    finally:
        Pillow.MAX_IMAGE_PIXELS = limit


def _check_before(data: bytes, kind: str | None, max_pixels: int | None) -> None:
    """Raises Unreadable for a file that takes memory or time when it is merely opened."""
    try:
        if kind == "JPEG":
            jpeg.check_length(data)
        elif kind == "TIFF" and tiff.too_many_strips(data):
            raise jpeg.Damaged(f"more than {tiff.MOST_STRIPS} strips or tiles")
    except jpeg.Damaged as error:
        raise Unreadable(f"broken image: {error}", format=kind) from error
    # these are decoded when they are opened
    sizes = {"JXL": _jxl_sizes, "ICO": _icon_sizes}
    for size in sizes[kind](data) if kind in sizes else ():
        _bound(*size, max_pixels, kind)


def _jxl_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    if size := jxl_size(data):
        yield size


def _icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of the pictures in an icon, each a PNG or a bitmap that has a size of its own."""
    for number in range(int.from_bytes(data[4:6], "little")):
        at = int.from_bytes(data[18 + 16 * number : 22 + 16 * number], "little")
        inner = data[at : at + 24]
        if inner.startswith(png.SIGNATURE):
            yield int.from_bytes(inner[16:20]), int.from_bytes(inner[20:24])
        elif len(inner) == 24:
            yield (
                int.from_bytes(inner[4:8], "little"),
                abs(int.from_bytes(inner[8:12], "little", signed=True)) // 2,
            )


def _without_comments(data: bytes, kind: str | None) -> Any:
    """A PNG that Pillow opens only without chunks that are broken and describe it; else None."""
    from PIL import Image as Pillow

    whole = png.checked(data)[0] if kind == "PNG" else data
    try:
        return Pillow.open(io.BytesIO(whole), formats=["PNG"]) if whole is not data else None
    except Exception as error:
        memory.let_through(error)
        return None


def _bound(width: int, height: int, max_pixels: int | None, kind: str | None, each: int = USUAL) -> None:
    """`each`: bytes that decoding a pixel takes."""
    if max_pixels is None:
        return
    most = f"image.max_pixels ({max_pixels:,})".replace(",", " ")
    if width * height > max_pixels:
        raise Unreadable(f"too large: {width}×{height} is over {most}", width, height, kind)
    if width * height * each > max_pixels * USUAL:
        count = f"{width * height * each // USUAL:,}".replace(",", " ")
        reason = (
            f"too large: {width}×{height} of this kind takes as much memory as {count} pixels, over {most}"
        )
        raise Unreadable(reason, width, height, kind)


def _bytes_a_pixel(picture: Any, data: bytes) -> int:
    """What decoding takes, as it was measured: some decoders hold several copies."""
    match picture.format:
        case "PNG" if data[24] == 16:
            return DEEP_PNG.get(data[25], USUAL)
        case "TIFF" if len(picture.getbands()) > 3 and max(picture.tag_v2.get(tiff.BITS, (1,))) > 8:
            return 16
        case "WEBP" | "AVIF":
            return 16
        case "JPEG2000":
            return 4 + 5 * len(picture.getbands())
    return USUAL


def guess(data: bytes) -> str | None:
    """The format that the first bytes promise, by Pillow's name; None where they promise none of them."""
    if data[8:11] == b"CR\x02":  # Canon's RAW files are TIFFs
        return None
    for offset, magic, kind in KNOWN:
        if data.startswith(magic, offset):
            return kind
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), _box(data)), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    return None


def _box(data: bytes) -> int:
    return int.from_bytes(data[:4])


def _extra(kind: str | None, data: bytes) -> list[str]:
    """The format whose decoder is an extra, when the file is of it; raises Unreadable where it is missing."""
    if kind not in EXTRAS:
        return []
    module, extra, name = EXTRAS[kind]
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise Unreadable(
            f'{name} needs an extra that is not installed: pip install "controlmill[{extra}]"', format=kind
        ) from error
    if kind == "HEIF":
        plugin.register_heif_opener()
    return [kind]


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG XL picture, from the first bits of its codestream (ISO 18181-1, annex D);
    None where they can't be found.
    """
    stream, at = data[:32], 0
    while not stream.startswith(b"\xff\x0a"):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in (b"jxlc", b"jxlp"):
            skip = 12 if data[at + 4 : at + 8] == b"jxlp" else 8
            stream = data[at + skip : at + skip + 32]
            break
        at += max(length, 8)
        if length < 8 or at > len(data):
            return None
    bits, read = int.from_bytes(stream[2:], "little"), 0

    def take(count: int) -> int:
        nonlocal read
        read += count
        return bits >> (read - count) & ((1 << count) - 1)

    def side(small: bool) -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = bool(take(1))
    height = side(small)
    ratio = take(3)
    up, down = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return (height * up // down if ratio else side(small)), height


def _refusal(data: bytes, kind: str | None, error: Exception) -> Unreadable:
    """Why a file can't be opened, by what its first bytes say it is."""
    if kind:
        from PIL import UnidentifiedImageError

        words = " ".join(str(error).split()) or type(error).__name__
        told = "" if isinstance(error, UnidentifiedImageError) else f" ({words})"
        return Unreadable(f"broken image: the header of this {kind} file can't be read{told}", format=kind)
    for offset, magic, name in FOREIGN:
        if data.startswith(magic, offset):
            return Unreadable(f"{name}, which is not read: convert it to JPEG, PNG or TIFF")
    if data[4:8] == b"ftyp":
        return Unreadable("a video (MP4 or QuickTime), which is not read: take pictures out of it first")
    start = data[:1024].lower()
    for word, name in TEXT:
        if word in start:
            return Unreadable(f"{name}, which is not read: convert it to JPEG, PNG or TIFF")
    return Unreadable("not an image of a known format")


def _header(picture: Any, data: bytes) -> Header:
    kind = picture.format or ""
    width, height = picture.size
    turned = orientation_of(picture)
    if kind == "TIFF":
        if picture.tag_v2.get(DNG_VERSION) or (
            picture.tag_v2.get(tiff.SUBFILE, 0) & 1 and SUB_IFDS in picture.tag_v2
        ):
            raise Unreadable(
                "a camera's RAW file, of which only a preview could be read: convert it to JPEG or TIFF",
                width, height, kind,
            )  # fmt: skip
        width, height = picture.tag_v2[256], picture.tag_v2[257]  # Pillow's own size is turned already
    return Header(kind, width, height, turned, _frames(picture, data))


def orientation_of(picture: Any) -> int:
    """EXIF's, 1 to 8; 1 where there is none, or none that can be read."""
    if picture.format == "JXL" and not getattr(picture, "jpeg", False):
        return 1  # its decoder has turned it; EXIF's says how it once was
    try:
        turned = picture.getexif().get(ORIENTATION, 1)
    except Exception as error:  # broken EXIF data beside a whole picture
        memory.let_through(error)
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def _frames(picture: Any, data: bytes) -> int:
    """Frames of an animation, or pages; smaller copies of a page, thumbnails and the second picture of a
    phone's JPEG are none.
    """
    if picture.format == "TIFF":
        return tiff.pages(data)
    try:
        count = int(getattr(picture, "n_frames", 1)) if picture.format in ANIMATED else 1
        return min(count, MOST_FRAMES)
    except Exception as error:  # an animation that breaks off; its first picture is still judged by itself
        memory.let_through(error)
        picture.seek(0)
        return 1
