"""Raw images of every kind become the same canonical picture, or a reason."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from pipeline import MillError, sources
from pipeline.dataset import images
from pipeline.manifest import FolderSource, Image, ListSource
from pipeline.sources import RawImage
from pipeline.sources.raw import Unreadable
from pipeline.storage import codec

SIZE = Image(resolution=64, store="png")
HALVES = np.zeros((80, 80, 3), np.uint8)
HALVES[:40] = (200, 40, 40)  # red above blue
HALVES[40:] = (40, 40, 200)


def stored(picture: Pillow.Image, form: str, **options: object) -> np.ndarray:
    """The canonical pixels of a picture saved in some form."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return codec.decode(images.canonical(buffer.getvalue(), SIZE).encoded)


def test_rgb_keeps_its_colours() -> None:
    made = stored(Pillow.fromarray(HALVES), "PNG")
    assert made.shape == (64, 64, 3)
    assert (made[:30] == (200, 40, 40)).all() and (made[34:] == (40, 40, 200)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Pillow.fromarray(HALVES)
    # what a camera stores when the picture must be turned by `orientation` to stand upright
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that is the inverse
    turned = upright if orientation == 1 else upright.transpose(Pillow.Transpose(undo[orientation]))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    made = stored(turned, "JPEG", exif=exif, quality=95, subsampling=0)
    assert (
        abs(made[5, 32].astype(int) - (200, 40, 40)).max() < 12
        and abs(made[58, 32].astype(int) - (40, 40, 200)).max() < 12
    )


def test_alpha_lies_on_white() -> None:
    clear = np.dstack([HALVES, np.full((80, 80), 51, np.uint8)])
    clear[:40, :, 3] = 0
    made = stored(Pillow.fromarray(clear, "RGBA"), "PNG")
    assert (made[:30] == 255).all() and (made[34:] == (212, 212, 244)).all()


def test_a_transparent_palette_colour_lies_on_white() -> None:
    picture = Pillow.fromarray(HALVES).quantize(2)
    made = stored(picture, "PNG", transparency=picture.getpixel((0, 0)))
    assert (made[:30] == 255).all() and abs(made[34:].astype(int) - (40, 40, 200)).max() < 3


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("P", "GIF"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LA", "PNG"),
        ("L", "JPEG"),
    ],
)
def test_every_mode_becomes_rgb(mode: str, form: str) -> None:
    made = stored(Pillow.fromarray(HALVES).convert(mode), form)
    assert made.shape == (64, 64, 3) and made.dtype == np.uint8
    if mode == "CMYK":
        assert made[5, 32, 0] > 150 > made[5, 32, 2]  # still red above


def test_16_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    made = stored(Pillow.fromarray(ramp), "PNG")
    assert made.min() == 0 and made.max() == 255 and abs(made[32, 0, 0].astype(int) - 128) <= 1


def test_jpeg_is_decoded_as_pillow_does(photograph: Callable[..., Pillow.Image]) -> None:
    buffer = io.BytesIO()
    photograph(3, 64, 64).save(buffer, "JPEG", quality=90)
    made = codec.decode(images.canonical(buffer.getvalue(), SIZE).encoded)
    assert abs(made.astype(int) - np.asarray(Pillow.open(buffer)).astype(int)).max() <= 1


@pytest.mark.parametrize("store", ["jpeg", "png"])
def test_what_is_stored_is_what_is_decoded(store: str, photograph: Callable[..., Pillow.Image]) -> None:
    buffer = io.BytesIO()
    photograph(1).save(buffer, "PNG")
    made = images.canonical(buffer.getvalue(), Image(resolution=64, store=store))
    assert codec.decode(made.encoded).shape == (made.height, made.width, 3) == (64, 64, 3)
    assert (made.raw_width, made.raw_height, made.raw_format) == (160, 120, "PNG")


def test_crop_takes_the_centre() -> None:
    wide = np.zeros((60, 180, 3), np.uint8)
    wide[:, 60:120] = 255
    assert (stored(Pillow.fromarray(wide), "PNG") == 255).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((768, 1024), (448, 576)),
        ((3000, 1000), (896, 256)),
        ((100, 50), (704, 320)),
    ],
)
def test_buckets_are_multiples_of_64_no_larger_than_the_square(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    height, width = images.canonical_size(*size, Image(resolution=512, fit="bucket"))
    assert height % 64 == width % 64 == 0 and height * width <= 512 * 512
    ratio = np.log(width / height / (size[1] / size[0]))
    assert abs(ratio) <= abs(np.log(expected[1] / expected[0] / (size[1] / size[0]))) + 1e-9


def whole_jpeg() -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


def huge_png() -> bytes:
    """A header that promises 50,000 × 50,000 pixels and no pixels."""
    buffer = io.BytesIO()
    Pillow.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (whole_jpeg()[:2000], "broken image: image file is truncated"),
        (b"not an image at all", "not an image of a known format"),
        (b"\xff\xd8\xff\xe0 only a start", "not an image of a known format|broken image"),
        (huge_png(), "too large"),
    ],
)
def test_what_gives_no_image_gives_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        images.canonical(data, SIZE)


def test_the_size_is_checked_before_decoding() -> None:
    buffer = io.BytesIO()
    Pillow.new("RGB", (300, 300)).save(buffer, "PNG")
    with pytest.raises(Unreadable, match=r"300×300 is over image\.max_pixels") as caught:
        images.canonical(
            buffer.getvalue()[:100], Image(resolution=64, max_pixels=10_000)
        )  # header only: decoding it would say "truncated"
    assert (caught.value.width, caught.value.height, caught.value.format) == (300, 300, "PNG")


def test_an_empty_or_missing_file_gives_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(Unreadable, match="empty file"):
        sources.read(RawImage(str(tmp_path / "empty.jpg")))
    with pytest.raises(Unreadable, match="No such file"):
        sources.read(RawImage(str(tmp_path / "none.jpg")))


def test_a_folder_is_listed_recursively_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a.png", "b/1.jpg", "notes.md", "a.txt", ".hidden/c.png", "broken.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [
        Path(raw.uri).relative_to(tmp_path).as_posix()
        for raw in sources.listing([FolderSource(kind="folder", path=str(tmp_path))], SIZE)
    ]
    assert found == ["a.png", "b/1.jpg", "b/2.jpg", "broken.bmp"]


@pytest.mark.parametrize(
    ("name", "text", "caption"),
    [
        ("1.txt", " a cat \n", "a cat"),
        ("1.json", '{"caption": "a dog"}', "a dog"),
        ("1.json", '{"text": "a cow"}', "a cow"),
        ("1.json", "{", ""),
    ],
)
def test_captions_come_from_sidecars(tmp_path: Path, name: str, text: str, caption: str) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    (tmp_path / name).write_text(text)
    (raw,) = sources.listing([FolderSource(kind="folder", path=str(tmp_path))], SIZE)
    assert sources.read_captions(raw).first == caption


def test_captions_come_from_a_template(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    (raw,) = sources.listing(
        [FolderSource(kind="folder", path=str(tmp_path), captions={"template": "a photograph"})], SIZE
    )
    assert sources.read_captions(raw).first == "a photograph"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.jsonl", '{"image": "1.jpg", "caption": "one", "year": 1999}\n\n{"image": "2.jpg"}\n'),
        ("list.csv", "image,caption,year\n1.jpg,one,1999\n2.jpg,,\n"),
    ],
)
def test_a_list_gives_images_captions_and_fields(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    first, second = sources.listing([ListSource(kind="list", path=str(tmp_path / name))], SIZE)
    assert (Path(first.uri).name, first.caption, str(first.fields["year"])) == ("1.jpg", "one", "1999")
    assert (Path(second.uri).name, second.caption) == ("2.jpg", "")


def test_a_package_address_names_a_file_that_a_package_ships() -> None:
    assert sources.read(RawImage("package://skimage/data/coffee.png", ""))[:4] == b"\x89PNG"
    with pytest.raises(Unreadable, match="not installed"):
        sources.read(RawImage("package://no_such_package/a.png", ""))
    with pytest.raises(Unreadable, match="can't leave"):
        sources.read(RawImage("package://skimage/../../etc/passwd", ""))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (FolderSource(kind="folder", path="/no/such/folder"), "the folder /no/such/folder does not exist"),
        (ListSource(kind="list", path="/no/such/list.jsonl"), "the list /no/such/list.jsonl does not exist"),
    ],
)
def test_a_missing_source_is_one_sentence(source: FolderSource | ListSource, sentence: str) -> None:
    with pytest.raises(MillError, match=sentence):
        sources.listing([source], SIZE)


def test_a_list_with_a_bad_line_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": "1.jpg"}\n\n{"picture": "2.jpg"}\n{"image": \n{"image": 5}\n[1]\n')
    _, *bad = sources.listing([ListSource(kind="list", path=str(path))], SIZE)
    told = {Path(raw.uri).name: raw.problem.split(":")[0] for raw in bad}
    lacks = "the row has no 'image'"
    assert told == {
        "list.jsonl:3": lacks,
        "list.jsonl:4": "not JSON",
        "list.jsonl:5": lacks,
        "list.jsonl:6": "a line must be a JSON object",
    }
    with pytest.raises(Unreadable, match="the row has no 'image'"):
        sources.read(bad[0])
    path.write_text('{"picture": "1.jpg"}\n')
    with pytest.raises(MillError, match=r"set `source\.image_column`"):
        sources.listing([ListSource(kind="list", path=str(path))], SIZE)
    path.write_bytes('{"image": "é.jpg"}'.encode("latin-1"))
    with pytest.raises(MillError, match="is not UTF-8"):
        sources.listing([ListSource(kind="list", path=str(path))], SIZE)


def test_odd_files_and_texts_are_rows_and_never_the_end_of_a_run(tmp_path: Path) -> None:
    photos, ws = tmp_path / "photos", tmp_path / "photos" / "ws"
    ws.mkdir(parents=True)
    (ws / "report.png").touch()
    os.mkfifo(tmp_path / "pipe")
    (photos / "pipe.jpg").symlink_to(tmp_path / "pipe")
    (photos / "deep.jpg").write_bytes(b"x")
    (photos / "deep.json").write_text("[" * 200_000)
    (photos / "half.jpg").write_bytes(b"x")
    (photos / "half.json").write_text('{"caption": "\\ud800 cat"}')
    Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.jpg")).write_bytes(b"x")
    found = {
        Path(raw.uri).name: raw
        for raw in sources.listing([FolderSource(kind="folder", path=str(photos))], SIZE, without=ws)
    }
    assert set(found) == {"pipe.jpg", "deep.jpg", "half.jpg", "caf\\xe9.jpg"}
    assert (
        sources.read_captions(found["deep.jpg"]).first == ""
        and sources.read_captions(found["half.jpg"]).first == "? cat"
    )
    for name, reason in (("pipe.jpg", "not a file"), ("caf\\xe9.jpg", "not UTF-8")):
        with pytest.raises(Unreadable, match=reason):
            sources.read(found[name])
