"""Pictures as cameras, phones and archives store them: what becomes of their pixels, and what is refused."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageCms, ImageOps

from pipeline.dataset import colour, decoders, formats, images, jpeg
from pipeline.dataset.images import CanonicalImage
from pipeline.manifest import Image, Manifest
from pipeline.plan import image_key
from pipeline.sources.raw import Unreadable

ROOT = Path(__file__).parents[2]
SIZE = Image(resolution=64, store="png")
KEEP = SIZE.model_copy(update={"damaged": "keep"})
P3 = colour.matrix_profile(colour.P3_XY, 2.2)
RED, RED_OF_P3 = (220, 60, 60), (241, 30, 47)


def encoded(pixels: np.ndarray, form: str, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def busy(height: int = 192, width: int = 192, seed: int = 0) -> np.ndarray:
    """Blocks of random colours: every part of a file says something."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 255, (-(-height // 12), -(-width // 12), 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((12, 12, 1), np.uint8))[:height, :width].copy()


def smooth(height: int, width: int) -> np.ndarray:
    """Waves, of which one end differs from the other: scaling changes little, a shift is seen."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = (np.sin(20 * x + 3 * y) * 60 + 90 + 60 * x, np.sin(17 * y) * 60 + 90 + 60 * y, 255 * x * (1 - y))
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def flat(colour: tuple[int, ...], side: int = 64) -> np.ndarray:
    return np.full((side, side, len(colour)), colour, np.uint8)


def reason(data: bytes, image: Image = SIZE) -> str:
    with pytest.raises(Unreadable) as caught:
        images.canonical(data, image)
    return str(caught.value)


def middle(data: bytes, image: Image = SIZE) -> np.ndarray:
    return images.canonical(data, image).pixels[32, 32].astype(int)


# -- damage --------------------------------------------------------------------------------------------------

WHOLE = encoded(busy(), "JPEG", quality=90)
PROGRESSIVE = encoded(busy(), "JPEG", quality=90, progressive=True)


def overwritten(data: bytes, length: int = 200, value: int = 0x55) -> bytes:
    start = len(data) // 2
    return data[:start] + bytes([value]) * length + data[start + length :]


def first_scans(data: bytes, count: int) -> bytes:
    """A progressive file that ends, with its end marker, after so many scans."""
    at = -1
    for _ in range(count + 1):
        at = data.index(b"\xff\xda", at + 1)
    return data[:at] + b"\xff\xd9"


DAMAGED = {
    "cut": WHOLE[: len(WHOLE) * 4 // 10],
    "cut with an end marker": WHOLE[: len(WHOLE) * 4 // 10] + b"\xff\xd9",
    "overwritten": overwritten(WHOLE),
    "two bytes": overwritten(WHOLE, 2),
    "restarts": overwritten(encoded(busy(), "JPEG", restart_marker_blocks=4), 40),
    "progressive, cut": PROGRESSIVE[: len(PROGRESSIVE) // 2],
    "progressive, a few scans": first_scans(PROGRESSIVE, 4),
    "progressive, one scan": first_scans(PROGRESSIVE, 1),
    "grey": overwritten(encoded(busy(), "JPEG", "L")),
    "CMYK": overwritten(encoded(busy(), "JPEG", "CMYK")),
    "PNG, cut": encoded(busy(), "PNG")[:-900],
    "PNG, overwritten": overwritten(encoded(busy(), "PNG"), 20),
    "GIF, cut": encoded(busy(), "GIF")[:-900],
    "BMP, cut": encoded(busy(), "BMP")[:-900],
    "TIFF, cut": encoded(busy(), "TIFF")[:-900],
    "TIFF of JPEG": overwritten(encoded(busy(), "TIFF", compression="jpeg"), 60),
    "TIFF, deflated": overwritten(encoded(busy(), "TIFF", compression="tiff_adobe_deflate"), 20),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_fails_with_its_reason_or_is_kept_with_it(name: str) -> None:
    told = reason(DAMAGED[name])
    assert told.startswith("broken image: ") and "image.damaged: keep" in told
    kept = images.canonical(DAMAGED[name], KEEP)
    assert kept.damage and kept.damage in told and kept.pixels.shape == (64, 64, 3)


@pytest.mark.parametrize(
    "data",
    [
        encoded(busy(), "WEBP")[:-100],
        encoded(busy(), "AVIF")[:-100],
        encoded(busy(), "TIFF", compression="tiff_lzw")[:-100],
        WHOLE[:100],
        encoded(busy(), "PNG")[:20],
    ],
)
@pytest.mark.parametrize("image", [SIZE, KEEP])
def test_what_gives_no_pixels_fails_also_where_damage_is_kept(data: bytes, image: Image) -> None:
    assert reason(data, image).startswith("broken image: ")


def header_with(data: bytes, extra: bytes) -> bytes:
    at = data.index(b"\xff\xdb")
    return data[:at] + extra + data[at:]


def ancillary(data: bytes, kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """A PNG with one more chunk behind its header."""
    right = zlib.crc32(kind + body)
    chunk = (
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", right if checksum is None else checksum)
    )
    return data[:33] + chunk + data[33:]


HARMLESS = {
    "no end marker": WHOLE[:-2],
    "progressive without an end marker": PROGRESSIVE[:-2],
    "a second picture behind it": WHOLE + WHOLE,
    "a film behind it": WHOLE + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 20,
    "zeros before the end marker": WHOLE[:-2] + b"\0" * 50 + b"\xff\xd9",
    "zeros in place of the end marker": WHOLE[:-2] + b"\0" * 50,
    "another version of JFIF": WHOLE[:11] + b"\x07" + WHOLE[12:],
    "bytes between its tables": header_with(WHOLE, b"\0\0\0"),
    "fill bytes": header_with(WHOLE, b"\xff\xff\xff"),
    "a scan that calls itself progressive": WHOLE.replace(b"\x03\x11\0\x3f\0", b"\x03\x11\0\0\0"),
    "PNG without an end": encoded(busy(), "PNG")[:-12],
    "PNG with a broken comment": ancillary(encoded(busy(), "PNG"), b"tEXt", b"Comment\0a", checksum=1),
    "PNG with bytes behind its end": encoded(busy(), "PNG") + b"more",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_whole_picture_with_a_harmless_fault_is_whole(name: str) -> None:
    data = HARMLESS[name]
    original = {"prog": PROGRESSIVE, "PNG ": encoded(busy(), "PNG")}.get(name[:4], WHOLE)
    assert data != original
    made = images.canonical(data, SIZE)
    assert made.damage == "" and (made.pixels == images.canonical(original, SIZE).pixels).all()


WRITTEN = {
    "plain": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 1},
    "4:1:1": {"subsampling": "4:1:1"}, "4:2:0": {"subsampling": "4:2:0"}, "4:4:4": {"subsampling": 0},
    "optimized": {"optimize": True}, "best": {"quality": 100}, "worst": {"quality": 1}, "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"}, "RGB": {"keep_rgb": True},
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_no_whole_photograph_is_refused(name: str, photograph: Callable[..., Pillow.Image]) -> None:
    import skimage
    import sklearn

    options: dict[str, Any] = dict(WRITTEN[name])
    pictures = [photograph(1, 160, 121)]
    for package, path in ((skimage, "data/rocket.jpg"), (sklearn, "datasets/images/china.jpg")):
        pictures.append(Pillow.open(f"{package.__path__[0]}/{path}"))
    for picture in pictures:
        data = encoded(np.asarray(picture), "JPEG", **options)
        made = images.canonical(data, SIZE)
        full = np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))
        assert made.damage == "" and abs(made.pixels.mean() - by_full_decoding(full, made).mean()) < 2


def test_channels_that_are_sampled_in_an_odd_way_are_read() -> None:
    """One of the colours finer than all else, as no library writes it: middle grey, whose bits are known."""
    data = encoded(flat((128, 128, 128)), "JPEG", subsampling=0)
    frame = data.index(b"\xff\xc0")
    sampled = bytearray(data)
    sampled[frame + 14] = 0x21
    scan = data.index(b"\xff\xda") + 14
    bits = ("001010" + "0000" * 3) * 32
    blocks = int(bits, 2).to_bytes(len(bits) // 8)
    made = images.canonical(bytes(sampled[:scan]) + blocks + b"\xff\xd9", SIZE)
    assert (made.pixels == 128).all() and made.damage == ""


def test_lab_is_read() -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    buffer = io.BytesIO()
    ImageCms.applyTransform(Pillow.fromarray(flat(RED)), to_lab).save(buffer, "TIFF")
    made = images.canonical(buffer.getvalue(), SIZE)
    assert made.colour_space == "L*a*b*" and abs(made.pixels[32, 32].astype(int) - RED).max() <= 3


# -- scaled on the way ---------------------------------------------------------------------------------------


def by_full_decoding(upright: np.ndarray, made: CanonicalImage) -> np.ndarray:
    """What the definition says: every pixel decoded, the box cut out, the area filter."""
    import cv2

    box = made.placement
    centre = upright[box.top : box.top + box.height, box.left : box.left + box.width]
    return cv2.resize(centre, made.placement.size[::-1], interpolation=cv2.INTER_AREA)


def error(made: CanonicalImage, upright: np.ndarray) -> np.ndarray:
    return np.abs(made.pixels.astype(int) - by_full_decoding(upright, made))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(512, 640), (515, 641), (643, 519), (709, 1030)])
@pytest.mark.parametrize("fit", ["crop", "bucket", "squash"])
def test_a_scaled_jpeg_is_upright_and_its_box_exact(
    orientation: int, size: tuple[int, int], fit: str
) -> None:
    """Its pixels cover 4 or 8 of the raw image, so a box that is off by one of them would show."""
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(*size), "JPEG", quality=98, subsampling=0, exif=exif)
    made = images.canonical(data, SIZE.model_copy(update={"fit": fit}))
    upright = np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))))
    assert jpeg.factor(min(made.placement.height / made.height, made.placement.width / made.width)) >= 4
    assert made.header.upright == upright.shape[:2]
    assert made.header.orientation == orientation
    assert (made.raw_height, made.raw_width) == size
    assert error(made, upright).max() <= 2
    box = made.placement
    assert abs(2 * box.top + box.height - upright.shape[0]) <= 1
    assert abs(2 * box.left + box.width - upright.shape[1]) <= 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(256, 40), (40, 256), (256, 64), (300, 299)])
def test_a_squashed_image_shows_all_of_it_and_no_stripes_that_are_too_fine(
    orientation: int, size: tuple[int, int]
) -> None:
    """The axis that shrinks is averaged also where the other one grows: else every fourth stripe would be
    taken for all of them.
    """
    stripes = np.zeros((*size, 3), np.uint8)
    stripes[(np.indices(size).sum(0) % 2).astype(bool)] = 255
    stripes[: size[0] // 2, : size[1] // 2] = 255
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    squash = SIZE.model_copy(update={"fit": "squash", "store": "png"})
    made = images.canonical(encoded(stripes, "PNG", exif=exif), squash)
    assert made.pixels.shape == (64, 64, 3)
    assert (made.placement.top, made.placement.left) == (0, 0)
    assert (made.placement.height, made.placement.width) == made.header.upright
    quarter = made.pixels[:28, :28] if orientation == 1 else made.pixels[:28, 36:]
    assert quarter.min() >= 250
    # a chessboard: grey where an axis shrinks by an even number, never all black or white
    rest = made.pixels[36:, 36:] if orientation == 1 else made.pixels[36:, :28]
    assert abs(rest.mean() - 127) < 8 and rest.astype(int).std() < 64


def test_crop_is_the_default_and_a_square_of_an_image_of_its_shape_is_squashed_to_the_same() -> None:
    data = encoded(smooth(200, 200), "PNG")
    crop, squash = (
        images.canonical(data, SIZE.model_copy(update={"fit": fit})).pixels for fit in ("crop", "squash")
    )
    assert np.array_equal(crop, squash) and np.array_equal(crop, images.canonical(data, SIZE).pixels)
    keys = [
        image_key(cast(Manifest, SimpleNamespace(image=image)))
        for image in (Image(), Image(fit="crop"), Image(fit="bucket"), Image(fit="squash"))
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_scaling_on_the_way_stays_within_its_bound() -> None:
    """On photographs: docs/performance.md has the values for more of them."""
    import sklearn

    for name in ("china", "flower"):
        data = Path(sklearn.__path__[0], "datasets", "images", f"{name}.jpg").read_bytes()
        for resolution in (64, 128, 192, 256, 320):
            made = images.canonical(data, Image(resolution=resolution))
            difference = error(made, np.asarray(Pillow.open(io.BytesIO(data))))
            assert difference.mean() < 4 and difference.max() < 64


@pytest.mark.parametrize(
    ("ratio", "step"), [(1, 1), (2, 1), (2.49, 1), (2.5, 2), (4.9, 2), (5, 4), (10, 8), (100, 8)]
)
def test_a_jpeg_is_scaled_by_powers_of_two_with_a_margin(ratio: float, step: int) -> None:
    assert jpeg.factor(ratio) == step


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_every_format_is_turned(form: str, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(100, 140), form, exif=exif, **({} if form == "TIFF" else {"quality": 100}))
    made = images.canonical(data, SIZE)
    expected = smooth(100, 140)
    for turned, turn in ((3, np.rot90(expected, 2)), (6, np.rot90(expected, -1)), (7, expected[::-1, ::-1])):
        if orientation == turned:
            expected = turn.swapaxes(0, 1) if turned == 7 else turn
    assert made.header.orientation == orientation and (made.raw_height, made.raw_width) == (100, 140)
    assert made.header.upright == expected.shape[:2]
    assert error(made, np.ascontiguousarray(expected)).mean() < 6


# -- colour --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_colours_of_a_phone_become_srgb(form: str) -> None:
    options = {} if form in ("PNG", "TIFF") else {"quality": 98}
    made = images.canonical(encoded(flat(RED), form, icc_profile=P3, **options), SIZE)
    assert abs(made.pixels[32, 32].astype(int) - RED_OF_P3).max() <= 3
    assert made.colour_space == "matrix"


def test_a_profile_of_srgb_costs_and_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = images.canonical(encoded(busy(), "PNG", icc_profile=profile), SIZE)
    assert colour.by_profile(profile, "RGB").transform is None
    assert (made.pixels == images.canonical(encoded(busy(), "PNG"), SIZE).pixels).all()
    assert "sRGB" in made.colour_space


def grey_profile(gamma: float) -> bytes:
    whole = bytearray(colour.matrix_profile(colour.SRGB_XY, gamma))
    whole[16:20] = b"GRAY"
    return bytes(whole.replace(b"rTRC", b"kTRC", 1))


def test_grey_has_profiles_too() -> None:
    linear = encoded(np.full((64, 64), 128, np.uint8), "PNG", icc_profile=grey_profile(1.0))
    assert abs(middle(linear) - 188).max() <= 1  # half the light
    of_colours = encoded(
        np.full((64, 64), 128, np.uint8), "JPEG", icc_profile=colour.matrix_profile(colour.SRGB_XY, 1.0)
    )
    assert abs(middle(of_colours) - 188).max() <= 2
    assert (middle(encoded(np.full((64, 64), 128, np.uint8), "JPEG", icc_profile=P3)) == 129).all()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (encoded(flat(RED), "PNG", icc_profile=b"no profile at all"), "unreadable profile"),
        (encoded(flat(RED), "PNG", icc_profile=P3[:200]), "unreadable profile"),
        (encoded(flat(RED), "PNG", icc_profile=grey_profile(1.0)), "is for GRAY, the pixels are RGB"),
        (encoded(flat(RED), "TIFF", "CMYK", icc_profile=P3), "is for RGB, the pixels are CMYK"),
        (ancillary(encoded(flat(RED), "PNG"), b"iCCP", b"x\0\0not deflated"), "unreadable profile"),
        (ancillary(encoded(flat(RED), "PNG"), b"gAMA", struct.pack(">I", 0)), "unreadable gamma"),
        (ancillary(encoded(flat(RED), "PNG"), b"cHRM", bytes(32)), "unreadable gamma 2.2"),
        (ancillary(encoded(flat(RED), "PNG"), b"cICP", bytes((9, 16, 0, 1))), "unreadable CICP 9/16"),
    ],
)
def test_a_profile_that_can_not_be_read_leaves_the_pixels_and_is_told(data: bytes, told: str) -> None:
    made = images.canonical(data, SIZE)
    assert abs(made.pixels[32, 32].astype(int) - RED).max() <= 1 and told in made.colour_space


def chromaticities(xy: tuple[float, ...]) -> bytes:
    return struct.pack(">8I", *(round(value * 100_000) for value in xy))


@pytest.mark.parametrize(
    ("kind", "body", "space", "expected"),
    [
        (b"gAMA", struct.pack(">I", 45455), "sRGB", RED),
        (b"sRGB", b"\0", "sRGB", RED),
        (b"cHRM", chromaticities(colour.SRGB_XY), "sRGB", RED),
        (b"gAMA", struct.pack(">I", 100_000), "gamma 1", (239, 133, 133)),
        (b"gAMA", struct.pack(">I", 55556), "gamma 1.8", (226, 79, 79)),
        (b"cHRM", chromaticities(colour.P3_XY), "gamma 2.2, primaries of its own", RED_OF_P3),
        (b"cICP", bytes((12, 13, 0, 1)), "CICP 12/13", RED_OF_P3),
        (b"cICP", bytes((1, 13, 0, 1)), "sRGB", RED),
    ],
)
def test_a_png_may_say_its_colours_in_numbers(
    kind: bytes, body: bytes, space: str, expected: tuple[int, ...]
) -> None:
    made = images.canonical(ancillary(encoded(flat(RED), "PNG"), kind, body), SIZE)
    assert made.colour_space == space and abs(made.pixels[32, 32].astype(int) - expected).max() <= 2


def test_a_camera_may_say_adobe_rgb_in_exif() -> None:
    exif = Pillow.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    made = images.canonical(encoded(flat((200, 100, 100)), "JPEG", exif=exif, quality=98), SIZE)
    by_profile = encoded(
        flat((200, 100, 100)),
        "JPEG",
        quality=98,
        icc_profile=colour.matrix_profile(colour.ADOBE_XY, 563 / 256),
    )
    assert made.colour_space == "Adobe RGB (1998)" and made.pixels[32, 32, 0] > 210
    assert (made.pixels == images.canonical(by_profile, SIZE).pixels).all()


def test_converting_after_scaling_is_converting_before_it() -> None:
    """Where it is done, for profiles whose curve is near sRGB's; others are converted first."""
    import sklearn

    picture = np.asarray(Pillow.open(Path(sklearn.__path__[0], "datasets", "images", "flower.jpg")))
    for profile, gentle in ((P3, True), (colour.matrix_profile(colour.WIDE_XY, 1.8), False)):
        made = images.canonical(encoded(picture, "PNG", icc_profile=profile), SIZE)
        colours = colour.by_profile(profile, "RGB")
        assert colours.gentle == gentle
        difference = error(made, colours.to_srgb(picture))
        assert difference.max() <= (48 if gentle else 0) and difference.mean() < 1.5


def test_ink_becomes_light() -> None:
    """As Pillow does it where no profile says more; JPEG holds ink inverted."""
    for form, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
        data = encoded(flat(RED), form, "CMYK", **options)
        assert abs(middle(data) - RED).max() <= 4
        assert images.canonical(data, SIZE).colour_space == "sRGB"


def ink_profile(magenta: tuple[int, int, int]) -> bytes:
    """A printer whose paper is white, whose magenta is this CIELAB colour (as 8 bits) and all else black."""
    straight = bytes(range(256))
    corners = [(255, 128, 128) if n == 0 else magenta if n == 4 else (0, 128, 128) for n in range(16)]
    grid = b"".join(map(bytes, corners))  # cyan changes slowest, black fastest
    one = struct.pack(">i", 65536)
    matrix = b"".join(one if n % 4 == 0 else bytes(4) for n in range(9))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + straight * 4 + grid + straight * 3
    made = colour.matrix_profile(colour.SRGB_XY, 1.0)
    described = made[struct.unpack(">I", made[136:140])[0] :][:104]
    offset = 132 + 12 * 2
    listed = [(b"desc", offset, 104), (b"A2B0", offset + 104, len(table))]
    head = bytearray(made[:128])
    head[12:24] = b"prtrCMYKLab "
    whole = bytes(head) + struct.pack(">I", 2) + b"".join(struct.pack(">4sII", *tag) for tag in listed)
    whole += described + table
    return struct.pack(">I", len(whole)) + whole[4:]


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 100}), ("TIFF", {})])
def test_a_printers_profile_turns_ink_into_what_it_looks_like(form: str, options: dict[str, Any]) -> None:
    ink = Pillow.new("CMYK", (64, 64), (0, 255, 0, 0))
    ink.paste((0, 0, 0, 0), (0, 0, 64, 32))
    buffer = io.BytesIO()
    ink.save(buffer, form, icc_profile=ink_profile((128, 198, 128)), **options)
    made = images.canonical(buffer.getvalue(), SIZE)
    assert made.colour_space == "matrix" and made.pixels[5, 32].min() >= 253
    # CIELAB (50, 70, 0) is about this; plain magenta would be (255, 0, 255)
    assert abs(made.pixels[58, 32].astype(int) - (220, 45, 122)).max() <= 6


# -- depth, frames, sizes, transparency ----------------------------------------------------------------------


def sixteen(most: int, channels: int = 1) -> np.ndarray:
    ramp = np.linspace(0, most, 64 * 64).astype(np.uint16).reshape(64, 64)
    return ramp if channels == 1 else np.dstack([ramp] * channels)


def wide(form: str, samples: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(form, samples)[1].tobytes()


WIDE = {
    "grey PNG": lambda most: encoded(sixteen(most), "PNG"),
    "grey TIFF": lambda most: encoded(sixteen(most), "TIFF"),
    "colour PNG": lambda most: wide(".png", sixteen(most, 3)),
    "colour TIFF": lambda most: wide(".tif", sixteen(most, 3)),
}


@pytest.mark.parametrize("name", WIDE)
def test_what_16_bits_hold_is_declared_or_seen(name: str) -> None:
    make = WIDE[name]
    assert "set image.range to [black, white]" in reason(make(4095))
    declared = images.canonical(make(4095), SIZE.model_copy(update={"range": (0, 4095)})).pixels
    full = images.canonical(make(65535), SIZE).pixels
    for made in (declared, full):
        assert made[0, 0, 0] == 0 and made[-1, -1, 0] == 255 and abs(int(made[32, 0, 0]) - 128) <= 1
    clipped = images.canonical(make(4095), SIZE.model_copy(update={"range": (1000, 2000)})).pixels
    assert (clipped[:15] == 0).all() and (clipped[-30:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_of_16_bits_is_turned_once(orientation: int) -> None:
    """Pillow and OpenCV turn TIFFs when they load them, and no PNGs."""
    tifffile = pytest.importorskip("tifffile")
    samples = smooth(100, 140).astype(np.uint16) * 257
    buffer, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = orientation
    tag = [(0x0112, "H", 1, orientation, True)]
    tifffile.imwrite(buffer, samples, photometric="rgb", extratags=tag)
    deep = ancillary(wide(".png", samples[..., ::-1]), b"eXIf", exif.tobytes()[6:])
    expected = images.canonical(encoded(smooth(100, 140), "PNG", exif=exif), SIZE)
    for data in (buffer.getvalue(), deep):
        made = images.canonical(data, SIZE)
        assert made.header.upright == expected.header.upright
        assert made.header.orientation == orientation
        assert (made.pixels == expected.pixels).all()


def test_colours_of_16_bits_keep_their_order_and_their_transparency() -> None:
    samples = np.zeros((64, 64, 4), np.uint16)
    samples[..., 2], samples[..., 3] = 60_000, 65535  # red, as OpenCV orders them
    samples[:32, :, 3] = 0
    made = images.canonical(wide(".png", samples), SIZE).pixels
    assert (made[10, 10] == 255).all() and abs(made[50, 50].astype(int) - (233, 0, 0)).max() <= 1


def test_numbers_that_are_no_picture_need_a_range() -> None:
    metres = np.linspace(0, 10, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert "set image.range" in reason(encoded(metres, "TIFF"))
    assert "set image.range" in reason(encoded((metres * 1000).astype(np.int32), "TIFF"))
    made = images.canonical(encoded(metres, "TIFF"), SIZE.model_copy(update={"range": (0, 10)})).pixels
    assert made.min() == 0 and made.max() == 255
    metres[0, 0] = np.nan
    assert "no numbers" in reason(encoded(metres, "TIFF"), SIZE.model_copy(update={"range": (0, 10)}))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_several_pictures_in_a_file_are_counted_or_refused(form: str) -> None:
    frames = [Pillow.fromarray(flat((value,) * 3)) for value in (10, 120, 240)]
    buffer = io.BytesIO()
    timed = {} if form == "TIFF" else {"duration": 100}
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], **timed)
    made = images.canonical(buffer.getvalue(), SIZE)
    assert made.header.frames == 3 and abs(made.pixels.astype(int) - 10).max() <= 2
    told = reason(buffer.getvalue(), SIZE.model_copy(update={"frames": "refuse"}))
    assert told == "3 pictures in one file: set image.frames to first to take the first of them"


def test_the_second_picture_of_a_phones_jpeg_is_no_frame() -> None:
    buffer = io.BytesIO()
    first, second = Pillow.fromarray(flat(RED)), Pillow.fromarray(flat((0, 0, 0)))
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=98)
    made = images.canonical(buffer.getvalue(), SIZE.model_copy(update={"frames": "refuse"}))
    assert made.header.frames == 1 and abs(made.pixels[32, 32].astype(int) - RED).max() <= 4


@pytest.mark.parametrize(
    ("shape", "settings", "told"),
    [
        ((7, 7), {}, "too small: 7×7 is below image.min_side (32)"),
        ((4, 4000), {}, "too small: 4000×4 is below image.min_side (32)"),
        ((40, 200), {"max_aspect": 3.0}, "too long: 200×40 is over image.max_aspect (3)"),
        ((200, 40), {"max_aspect": 3.0}, "too long: 40×200 is over image.max_aspect (3)"),
        ((90, 90), {"max_pixels": 8000}, "too large: 90×90 is over image.max_pixels (8 000)"),
    ],
)
def test_shapes_that_are_refused_name_their_key(
    shape: tuple[int, int], settings: dict[str, Any], told: str
) -> None:
    data = encoded(busy(*shape), "PNG")
    assert reason(data, SIZE.model_copy(update=settings)) == told
    images.canonical(data, SIZE.model_copy(update={"min_side": 1}))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF"])
def test_nothing_to_see_is_no_image(form: str) -> None:
    clear = np.dstack([busy(64, 64), np.zeros((64, 64), np.uint8)])
    assert "fully transparent" in reason(encoded(clear, form))
    clear[20:40, 20:40, 3] = 255
    made = images.canonical(encoded(clear, form, **({"lossless": True} if form == "WEBP" else {})), SIZE)
    assert (made.pixels[:18] == 255).all() and (made.pixels[25, 25] != 255).any()


# -- formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "video"),
        (b"\0\0\0\x18ftypqt  " + bytes(40), "video"),
        (b"\x1aE\xdf\xa3" + bytes(40), "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "RAW"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "RAW"),
        (b"\xff\xd8\xff\xe0 only a start", "JPEG"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP"),
        (b"words", "not an image of a known format"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, told: str) -> None:
    assert told in reason(data)


def test_avif_is_read() -> None:
    made = images.canonical(encoded(smooth(192, 192), "AVIF", quality=95), SIZE)
    assert made.raw_format == "AVIF" and error(made, smooth(192, 192)).mean() < 2


@pytest.mark.parametrize(
    ("data", "module", "extra"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif", "heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix", "pillow_heif", "heic"),
        (b"\xff\x0a\x10\x20" + bytes(20), "pillow_jxl", "jxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow_jxl", "jxl"),
    ],
)
def test_a_missing_decoder_is_named_with_its_extra(
    data: bytes, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert f'pip install "controlmill[{extra}]"' in reason(data)


@pytest.mark.parametrize(("module", "form"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_an_extra_reads_its_format(module: str, form: str) -> None:
    plugin = pytest.importorskip(module)
    if form == "HEIF":
        plugin.register_heif_opener()
    data = encoded(smooth(120, 192), form, quality=95)
    made = images.canonical(data, SIZE)
    assert (made.raw_format, made.raw_width, made.raw_height) == (form, 192, 120)
    assert error(made, smooth(120, 192)).mean() < 2
    assert "image.max_pixels" in reason(data, SIZE.model_copy(update={"max_pixels": 5000}))
    assert "broken image" in reason(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(8, 8), (64, 256), (192, 120), (300, 400), (513, 70), (1000, 2000)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_is_in_its_first_bits(size: tuple[int, int], container: bool) -> None:
    pytest.importorskip("pillow_jxl")
    data = encoded(np.zeros((*size, 3), np.uint8), "JXL", use_container=container, effort=1)
    assert formats.jxl_size(data) == (size[1], size[0])
    assert formats.jxl_size(b"\0\0\0\x0cJXL \r\n\x87\n") is None, "a container that holds nothing"


def test_the_limit_of_pixels_is_told_before_decoding_by_every_format() -> None:
    small = SIZE.model_copy(update={"max_pixels": 5000})
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "TGA", "PPM"):
        assert "image.max_pixels" in reason(encoded(busy(), form), small)


# -- the same everywhere -------------------------------------------------------------------------------------

HASHES = """
import hashlib, io, sys
import numpy as np
from PIL import Image as Pillow
from pipeline.dataset import colour, images
from pipeline.manifest import Image
picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
picture = Pillow.fromarray(picture).resize((640, 480), Pillow.Resampling.BICUBIC)
for form in ("JPEG", "PNG"):
    buffer = io.BytesIO()
    picture.save(buffer, form, icc_profile=colour.matrix_profile(colour.P3_XY, 2.2))
    for resolution in (64, 128, 576):
        made = images.canonical(buffer.getvalue(), Image(resolution=resolution))
        print(hashlib.sha256(made.pixels.tobytes()).hexdigest())
"""


def test_an_older_processor_gives_the_same_pixels() -> None:
    old = {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX512_SKX,AVX2,FMA3,AVX,FP16", "JSIMD_FORCENONE": "1"}
    told = [
        subprocess.run(
            [sys.executable, "-c", HASHES], env=os.environ | more, cwd=ROOT, capture_output=True, text=True
        ).stdout
        for more in ({}, old)
    ]
    assert told[0] == told[1] and len(told[0].split()) == 6


def test_decoders_are_known_by_the_names_of_formats() -> None:
    assert set(decoders.DECODERS) <= {*formats.FORMATS, "MPO"}
