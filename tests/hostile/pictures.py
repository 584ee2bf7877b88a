"""Whole pictures of every format that is read, small, which `mutations` then breaks; made once a process."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms

from tests.hostile.bytes_of import ADAM7, png_chunk, png_file

SIZE = (72, 56)  # width and height
ORIENTATION = 0x0112  # the EXIF tag


def photograph(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@functools.cache
def originals() -> tuple[tuple[str, bytes], ...]:
    """(file extension, bytes) of each."""
    makers: tuple[Callable[[], Iterator[tuple[str, bytes]]], ...] = (
        _jpegs, _pngs, _tiffs, _animated, _others, _deep,
    )  # fmt: skip
    return tuple(each for make in makers for each in make())


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _jpegs() -> Iterator[tuple[str, bytes]]:
    picture = photograph(1)
    for mode in ("L", "RGB", "CMYK"):
        yield "jpg", _saved(picture.convert(mode), "JPEG", quality=80)
        yield "jpg", _saved(picture.convert(mode), "JPEG", progressive=True)
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield "jpeg", _saved(picture, "JPEG", subsampling=sampling, optimize=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "jpg", _saved(picture, "JPEG", icc_profile=profile, comment=b"a comment")
    yield "jpg", _saved(picture, "JPEG", restart_marker_blocks=2)
    yield "jpg", _saved(picture, "MPO", save_all=True, append_images=[photograph(2)])
    for turned in range(2, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turned
        yield "jpg", _saved(picture, "JPEG", exif=exif)


def _pngs() -> Iterator[tuple[str, bytes]]:
    picture = photograph(3)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield "png", _saved(picture.convert(mode), "PNG")
    yield "png", _saved(picture.convert("P"), "PNG", transparency=3)
    yield "png", _saved(picture.convert("P", colors=4), "PNG", bits=2)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "png", _saved(picture, "PNG", icc_profile=profile)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(picture))
    head = struct.pack(">IIBBBBB", *picture.size, 8, 2, 0, 0, 0)
    described = (
        (b"gAMA", struct.pack(">I", 60_000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
        (b"cICP", bytes((9, 1, 0, 1))),
        (b"tEXt", b"Title\0text"),
        (b"zTXt", b"Title\0\0" + zlib.compress(b"text")),
    )
    for kind, body in described:
        yield "png", png_file(head, zlib.compress(rows), before=png_chunk(kind, body))
    yield "png", _interlaced(np.asarray(picture))


def _interlaced(pixels: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for y, x, down, right in ADAM7 for row in pixels[y::down, x::right])
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return png_file(head, zlib.compress(rows))


def _tiffs() -> Iterator[tuple[str, bytes]]:
    import tifffile

    picture = photograph(4)
    for packing in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield "tif", _saved(picture, "TIFF", compression=packing)
    yield "tiff", _saved(picture.convert("1"), "TIFF", compression="group4")
    for mode in ("L", "CMYK", "LAB", "RGBA", "P", "F", "I;16"):
        other = (
            ImageCms.profileToProfile(
                picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
            )
            if mode == "LAB"
            else picture.convert("I" if mode == "I;16" else mode)
        )
        yield "tif", _saved(other.convert(mode) if mode == "I;16" else other, "TIFF")
    yield "tif", _saved(picture, "TIFF", big_tiff=True)
    yield "tif", _saved(picture, "TIFF", save_all=True, append_images=[photograph(5), photograph(6)])
    pixels = np.asarray(picture)
    for options in ({"tile": (32, 32)}, {"tile": (32, 32), "compression": "zlib"}, {"bigtiff": True}):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="rgb", **options)
        yield "tif", file.getvalue()
    file = io.BytesIO()
    tifffile.imwrite(file, pixels.astype(np.uint16) * 257, photometric="rgb", compression="zlib")
    yield "tif", file.getvalue()


def _animated() -> Iterator[tuple[str, bytes]]:
    frames = [photograph(number) for number in range(7, 11)]
    yield "gif", _saved(frames[0], "GIF")
    for extension, kind in (("gif", "GIF"), ("png", "PNG"), ("webp", "WEBP"), ("avif", "AVIF")):
        yield extension, _saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)
    yield "gif", _saved(frames[0].convert("P"), "GIF", transparency=2)


def _others() -> Iterator[tuple[str, bytes]]:
    picture = photograph(11)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for options in ({"quality": 70}, {"lossless": True}, {"exif": exif}):
        yield "webp", _saved(picture, "WEBP", **options)
    yield "webp", _saved(picture.convert("RGBA"), "WEBP")
    yield "avif", _saved(picture, "AVIF")
    yield "avif", _saved(picture.convert("RGBA"), "AVIF", exif=exif)
    yield "jp2", _saved(picture, "JPEG2000")
    yield "jp2", _saved(picture.convert("LA"), "JPEG2000", tile_size=(32, 32))
    yield "j2k", _saved(picture, "JPEG2000", no_jp2=True, irreversible=True)
    for mode in ("1", "L", "P", "RGB"):
        yield "bmp", _saved(picture.convert(mode), "BMP")
    yield "dib", _saved(picture, "DIB")
    yield "tga", _saved(picture, "TGA")
    yield "tga", _saved(picture.convert("RGBA"), "TGA", compression="tga_rle")
    yield "ico", _saved(picture.resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64)])
    yield "ico", _saved(picture.resize((48, 48)), "ICO", sizes=[(48, 48)], bitmap_format="bmp")
    for mode, extension in (("1", "pbm"), ("L", "pgm"), ("RGB", "ppm")):
        yield extension, _saved(picture.convert(mode), "PPM")
    plain = " ".join(map(str, np.asarray(picture.convert("L")).ravel()))
    yield "pgm", f"P2\n# comment\n{SIZE[0]} {SIZE[1]}\n255\n{plain}\n".encode()


def _deep() -> Iterator[tuple[str, bytes]]:
    deep = np.asarray(photograph(12)).astype(np.uint16) * 257
    cover = np.full((*deep.shape[:2], 1), 60_000, np.uint16)
    for samples in (deep[..., 0], deep, np.concatenate([deep, cover], -1)):
        yield "png", cv2.imencode(".png", samples)[1].tobytes()
    yield "tif", cv2.imencode(".tif", deep)[1].tobytes()
    yield "tif", cv2.imencode(".tif", deep.astype(np.float32) / 65535)[1].tobytes()
    yield "pgm", cv2.imencode(".pgm", deep[..., 0])[1].tobytes()
    yield "jp2", cv2.imencode(".jp2", deep)[1].tobytes()
