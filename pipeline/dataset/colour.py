"""The colours of a file as sRGB: by its ICC profile, by gamma and primaries of a PNG, or by a camera's word
for Adobe RGB.

Relative colorimetric with black point compensation, by Little CMS, whose transforms of 8 bits are integers
and the same on every processor.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from annotate import memory
from pipeline.dataset import png
from pipeline.sources.raw import clean

MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # Pillow's, by channels
SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # the profile that fits, by Pillow's mode
SAME = 2  # of 255: a profile that moves no colour by more is sRGB
GENTLE = 10  # of 255: a curve that moves no grey by more may follow the scaling
D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB_XY = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue
ADOBE_XY = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3_XY = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
WIDE_XY = (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
SRGB_GAMMA = 1 / 0.45455
NEAR = 0.02  # gammas and chromaticities this near to sRGB's are sRGB's, rounded
EXIF, INTEROPERABILITY, INDEX = 0x8769, 0xA005, 1
CICP_XY = {1: SRGB_XY, 9: WIDE_XY, 12: P3_XY}
CICP_CURVES = (1, 6, 13, 14, 15)  # of television and sRGB: read as sRGB's
MAX_PROFILE = 16 * 2**20
BAND = 2**20  # pixels that are converted at a time, so that a large picture is not held in many copies


@dataclass(frozen=True)
class Colours:
    """What becomes of a file's colours."""

    name: str  # of the colour space, as the catalog tells it
    transform: Any = None  # Pillow's, to RGB; None where the pixels stay as they are
    gentle: bool = True  # whether scaling may come before it
    widens: bool = False  # whether it takes RGB of what is grey

    def to_srgb(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [h, w] grey, [h, w, 3] RGB or [h, w, 4] CMYK -> [h, w, 3] RGB."""
        if self.transform is None and pixels.shape[2:] != (4,):
            return _rgb(pixels)
        made = np.empty((*pixels.shape[:2], 3), np.uint8)
        rows = max(1, BAND // pixels.shape[1])
        for top in range(0, len(pixels), rows):
            made[top : top + rows] = self._converted(pixels[top : top + rows])
        return made

    def _converted(self, pixels: np.ndarray) -> np.ndarray:
        from PIL import ImageCms

        if self.transform is None:
            return np.asarray(_picture(pixels).convert("RGB"))
        pixels = _rgb(pixels) if self.widens else pixels
        return np.asarray(ImageCms.applyTransform(_picture(pixels), self.transform))


def colours(picture: Any, data: bytes, channels: int) -> Colours:
    """Of an opened file whose decoded pixels have so many channels."""
    mode = MODES[channels]
    if picture.format == "PNG" and (told := _png_colours(data, mode)):
        return told
    if picture.mode == "LAB":
        return Colours("L*a*b*")  # made sRGB when it was decoded
    if "icc_profile" in picture.info:
        profile = picture.info["icc_profile"]
        if not isinstance(profile, bytes) or not 0 < len(profile) < MAX_PROFILE:
            return Colours("unreadable profile")
        return by_profile(profile, mode)
    if mode == "RGB" and _is_adobe_rgb(picture):
        return by_primaries("Adobe RGB (1998)", ADOBE_XY, 563 / 256, mode)
    return Colours("sRGB")


def lab() -> Any:
    """Pillow's transform of L*a*b* pixels."""
    from PIL import ImageCms

    return _transform(ImageCms.createProfile("LAB"), "LAB")


@lru_cache(64)
def by_profile(profile: bytes, mode: str) -> Colours:
    """By an ICC profile; the pixels stay as they are where it can't be read or is one for other pixels."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = " ".join(clean(ImageCms.getProfileDescription(opened)).split())[:200] or "unnamed profile"
        space = opened.profile.xcolor_space
        widens = mode == "L" and space == SPACES["RGB"]
        if space != SPACES["RGB" if widens else mode]:
            return Colours(f"unreadable profile: {name} is for {space.strip()}, the pixels are {mode}")
        return _described(name, _transform(opened, "RGB" if widens else mode), mode, widens)
    except Exception as error:  # Little CMS gives no better class than its own error, odd profiles others
        memory.let_through(error)
        return Colours("unreadable profile")


@lru_cache(64)
def by_primaries(name: str, xy: Sequence[float], gamma: float, mode: str) -> Colours:
    """By chromaticities (white, red, green, blue) and a power."""
    try:
        profile = by_profile(matrix_profile(xy, gamma), "RGB")
    except (ValueError, np.linalg.LinAlgError, struct.error):
        return Colours(f"unreadable {name}")
    if profile.name.startswith("unreadable"):
        return Colours(f"unreadable {name}")
    return Colours(name, profile.transform, profile.gentle, widens=mode == "L")


def _transform(source: Any, mode: str) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip


def _described(name: str, transform: Any, mode: str, widens: bool) -> Colours:
    """With what the transform does to a lattice of colours: nothing, little or much."""
    made = Colours(name, transform, gentle=False, widens=widens)
    if mode == "CMYK":
        return made
    greys = np.arange(256, dtype=np.uint8)[None]
    most = moved = _moved(made, _rgb(greys) if mode == "RGB" else greys)
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        most = max(moved, _moved(made, np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)))
    return Colours(name) if most <= SAME else Colours(name, transform, moved <= GENTLE, widens)


def _moved(colours: Colours, pixels: np.ndarray) -> int:
    return int(np.abs(colours.to_srgb(pixels).astype(int) - _rgb(pixels)).max())


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _picture(pixels: np.ndarray) -> Any:
    from PIL import Image

    mode = MODES[1 if pixels.ndim == 2 else pixels.shape[2]]
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombuffer(mode, size, np.ascontiguousarray(pixels), "raw", mode, 0, 1)


def _is_adobe_rgb(picture: Any) -> bool:
    """Whether a camera says so in EXIF, which DCF has it do in place of a profile."""
    if picture.format not in ("JPEG", "MPO", "TIFF") or "exif" not in picture.info:
        return False
    try:
        return str(picture.getexif().get_ifd(INTEROPERABILITY).get(INDEX, "")).startswith("R03")
    except Exception as error:  # broken EXIF data beside a whole picture
        memory.let_through(error)
        return False


def _png_colours(data: bytes, mode: str) -> Colours | None:
    """By chunks that say it in numbers; None where there are none, or a profile stands beside them."""
    told: dict[bytes, bytes] = {}
    for chunk in png.chunks(data):
        if chunk.kind == b"IDAT":
            break
        if chunk.intact and chunk.kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"):
            told.setdefault(chunk.kind, chunk.body)
    if len(told.get(b"cICP", b"")) == 4:
        return _by_cicp(told[b"cICP"], mode)
    if b"iCCP" in told:
        return None
    if b"sRGB" in told:
        return Colours("sRGB")
    if not told:
        return None
    gamma = SRGB_GAMMA
    if len(told.get(b"gAMA", b"")) == 4:
        stored = int.from_bytes(told[b"gAMA"])
        if not 1000 <= stored <= 1_000_000:
            return Colours("unreadable gamma")
        gamma = 100_000 / stored
    xy = SRGB_XY
    if len(told.get(b"cHRM", b"")) == 32:
        xy = tuple(value / 100_000 for value in struct.unpack(">8I", told[b"cHRM"]))
    usual = bool(np.allclose(xy, SRGB_XY, atol=NEAR))
    if usual and abs(gamma / SRGB_GAMMA - 1) <= NEAR:
        return Colours("sRGB")
    name = f"gamma {gamma:.3g}" if usual else f"gamma {gamma:.3g}, primaries of its own"
    return by_primaries(name, xy, gamma, mode)


def _by_cicp(body: bytes, mode: str) -> Colours:
    """By the code points of ITU-T H.273; high dynamic range has no place in sRGB and stays as it is."""
    primaries, curve, _, _ = body
    name = f"CICP {primaries}/{curve}"
    if primaries == 1 and curve in CICP_CURVES:
        return Colours("sRGB")
    if primaries not in CICP_XY or curve not in CICP_CURVES:
        return Colours(f"unreadable {name}")
    return by_primaries(name, CICP_XY[primaries], SRGB_GAMMA, mode)


def matrix_profile(xy: Sequence[float], gamma: float) -> bytes:
    """An ICC profile (version 2) of chromaticities and one power for all channels; ValueError or LinAlgError
    where there is none.
    """
    if min(xy[1::2]) <= 0:
        raise ValueError("a chromaticity without light")
    white, *corners = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(xy[::2], xy[1::2], strict=True))
    primaries = np.array(corners).T
    adapted = BRADFORD @ white
    adapt = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / adapted) @ BRADFORD
    columns = adapt @ (primaries * np.linalg.solve(primaries, white))
    if not np.isfinite(columns).all() or np.abs(columns).max() > 8:
        raise ValueError("chromaticities that span no colours")
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, min(round(gamma * 256), 65535)) + b"\0\0"
    text = b"matrix\0"
    described = (b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78).ljust(104, b"\0")
    tags = [(b"desc", described), (b"cprt", b"text\0\0\0\0-\0\0\0"), (b"wtpt", _xyz(D50))]
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags += [(name, _xyz(column)) for name, column in zip(names, columns.T, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + b"\0" * 12
    head = (head + b"acsp" + b"\0" * 28 + _xyz(D50)[8:]).ljust(128, b"\0")
    whole = head + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def _xyz(value: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(number) * 65536) for number in value))
