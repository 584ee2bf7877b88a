"""Hostile input (tests/hostile): a row with its reason or one sentence, no crash, no hang, bounded memory, no
file outside the workspace, no code run.
"""

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from annotate import weights as detector_weights
from benchmarks.trial import MARKER, judged
from pipeline import MillError, manifest, sources
from pipeline.catalog import Catalog, Selection
from pipeline.catalog.selection_checks import check_selections
from pipeline.dataset import formats, images, quality
from pipeline.dataset.jpeg import MOST_MARKERS, MOST_SCANS
from pipeline.dataset.tiff import MOST_STRIPS
from pipeline.manifest import FolderSource, Image
from pipeline.sources.raw import Unreadable
from pipeline.storage import events
from pipeline.storage.workspace import Workspace
from tests.hostile import archives, folders, manifests, sql, weights
from tests.hostile.bombs import bombs
from tests.hostile.bytes_of import blank_png, icon, png_chunk, png_file, tiff_file, zeros
from tests.hostile.mutations import mutated
from tests.hostile.pictures import originals, photograph
from train.weights_file import read_file

SIZE = Image(resolution=64)
MOST = 1_500_000_000  # bytes of a worker
GROWN = 1_300_000_000  # of one image, beside what a worker has when it begins
LIMIT = 120.0  # seconds: image.time_limit


@pytest.fixture(autouse=True)
def no_code_is_run() -> Iterator[None]:
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


def answer(data: bytes, image: Image = SIZE) -> str:
    """The reason why a file gives no image; "" where it gives one."""
    try:
        made = images.canonical(data, image)
        quality.measure(made.pixels)
    except Unreadable as error:
        return str(error)
    return ""


def saved(picture: Pillow.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# -- pictures ------------------------------------------------------------------------------------------------


def test_a_broken_file_of_any_format_is_an_image_or_a_reason() -> None:
    whole = originals()
    reasons = [reason for _, data in whole if (reason := answer(data))]
    assert len(reasons) < 4, reasons  # of floating point and of 16 bits that are dark
    for number in range(300):
        _, data = whole[number % len(whole)]
        reason = answer(mutated(data, np.random.default_rng(number)))
        assert "Traceback" not in reason and "\0" not in reason


def test_a_jpeg_without_a_second_marker_ends() -> None:
    data = saved(photograph(1), "JPEG")
    start = data.index(b"\xff\xda")
    frame = data.replace(b"\xff", b"\xfe")
    for broken in (data[:2] + frame[2:], data[:start] + frame[start:]):
        verdict = judged(lambda broken=broken: int(not answer(broken)), 60)
        assert verdict.status == 0


def test_more_markers_or_scans_than_any_writer_makes_are_refused_before_decoding() -> None:
    data = saved(photograph(1), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = data[:-2] + data[last:-2] * MOST_SCANS + data[-2:]
    assert answer(data) == ""
    assert answer(scans).startswith(f"broken image: more than {MOST_SCANS} scans")
    for filling in (b"\xff", b"\xff\xd8", b"\xff\xe0\0\2"):
        told = answer(data[:2] + filling * MOST_MARKERS + data[2:])
        assert told == f"broken image: more than {MOST_MARKERS} markers before the picture"
    assert answer(data[:2] + b"\xff" * 1000 + data[2:]) == ""


def test_a_picture_that_takes_more_memory_than_its_pixels_tell_is_refused_by_its_header() -> None:
    head = struct.pack(">IIBBBBB", 10_000, 10_000, 16, 6, 0, 0, 0)
    told = answer(png_file(head, zeros(1000)))
    assert told.endswith("as much memory as 166 666 666 pixels, over image.max_pixels (100 000 000)")
    more = SIZE.model_copy(update={"max_pixels": 200_000_000})
    assert "image.max_pixels" not in answer(png_file(head, zeros(1000)), more)


def test_a_size_that_no_catalog_holds_is_told_and_no_part_of_a_row() -> None:
    head = struct.pack(">IIBBBBB", 2**32 - 1, 2**31 + 5, 8, 2, 0, 0, 0)
    with pytest.raises(Unreadable, match="too large: 4294967295×2147483653") as told:
        images.canonical(png_file(head, zeros(10)), SIZE)
    assert told.value.width is None and told.value.height is None and told.value.format == "PNG"
    head = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    frames = png_chunk(b"acTL", struct.pack(">II", 2**31, 0))
    with formats.opened(png_file(head, zeros(64 * 65), before=frames)) as (_, header):
        assert header.frames == 2**31 - 1


def test_a_picture_inside_an_icon_is_measured_before_it_is_decoded() -> None:
    small = SIZE.model_copy(update={"max_pixels": 100 * 100})
    assert answer(icon(saved(photograph(1), "PNG")), small) == ""
    for side in (101, 30_000):
        told = answer(icon(blank_png(side, side, 1, 0)), small)
        assert told == f"too large: {side}×{side} is over image.max_pixels (10 000)"
    bitmap = struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)
    assert answer(icon(bitmap + bytes(64))).startswith("too large: 30000×30000")


def tags(**changed: int) -> list[tuple[int, int, int, int]]:
    told = {"rows": 64, "strips": 1, "packing": 1, "bytes": 64 * 64} | changed
    return [
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, told["packing"]), (262, 3, 1, 1),
        (273, 4, told["strips"], 400), (277, 3, 1, 1), (278, 4, 1, told["rows"]),
        (279, 4, told["strips"], told["bytes"]),
    ]  # fmt: skip


def test_pages_of_a_tiff_that_lead_back_are_counted_once_and_strips_have_a_limit() -> None:
    behind = bytes(400 - 122) + bytes(64 * 64)
    with formats.opened(tiff_file(tags(), behind, following=8)) as (_, header):
        assert header.frames == 1
    assert answer(tiff_file(tags(), behind, following=8)) == ""
    told = answer(tiff_file(tags(strips=MOST_STRIPS + 1), behind))
    assert told == f"broken image: more than {MOST_STRIPS} strips or tiles"


def test_pages_are_counted_as_before() -> None:
    for options in ({}, {"big_tiff": True}):
        data = saved(photograph(1), "TIFF", save_all=True, append_images=[photograph(2)] * 4, **options)
        with formats.opened(data) as (_, header):
            assert header.frames == 5


@pytest.mark.slow
def test_a_strip_is_inflated_no_further_than_its_place_goes() -> None:
    much = zeros(600 * 2**20)
    data = tiff_file(tags(packing=8, bytes=len(much)), bytes(400 - 122) + much)
    verdict = judged(lambda: len(answer(data)), LIMIT)
    assert verdict.status == 0 and verdict.grown < 600 * 2**20


@pytest.mark.slow
def test_no_small_file_takes_a_workers_memory_or_its_time() -> None:
    for name, data in bombs():
        verdict = judged(lambda data=data: int(answer(data) == "never"), LIMIT)
        assert verdict.status == 0, (name, verdict)
        assert verdict.grown < GROWN, name


def test_a_caption_file_of_ten_megabytes_is_a_reason_and_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved(photograph(1), "JPEG"))
    (tmp_path / "a.txt").write_bytes(b"y" * (10 * 2**20))
    (raw,) = sources.listing([FolderSource(kind="folder", path=str(tmp_path))], SIZE).take(np.array([0]))
    read = sources.read_captions(raw)
    assert read.texts == () and read.problem == "caption file: too large: 10485760 bytes"


# -- selections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clause",
    [
        "len(repeat('x', 4000000000)) > 1", "'x'.repeat(10) = 'x'", "len(range(3000000000)) > 1",
        "lpad('x', 9, 'y') = 'x'",
        "list_reduce([1, 2], lambda x, y: x + y) > 0", "printf('%9d', 1) = '1'",
        "damerau_levenshtein(caption, 'a') > 1",
        "replace(replace(caption, 'a', 'bb'), 'b', 'cc') = ''",
        "len(list_transform([1], lambda x: list_transform([1], lambda y: y))) > 0",
    ],
)  # fmt: skip
def test_sql_that_can_take_any_amount_of_memory_is_refused(clause: str) -> None:
    with pytest.raises(MillError, match=r"^where calls .* any amount of memory: leave"):
        check_selections({"canny": Selection((("where", clause),))}, ["edges"])


def test_sql_that_need_not_end_is_refused() -> None:
    endless = (
        "(WITH RECURSIVE candidates(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM candidates) SELECT max(n)"
        " FROM candidates) > 1"
    )
    with pytest.raises(MillError, match="WITH RECURSIVE, which need not end"):
        check_selections({"canny": Selection((("where", endless),))}, ["edges"])
    deep = "SELECT count(*) a FROM candidates"
    for _ in range(4):
        deep = f"SELECT max(a) a FROM ({deep})"
    with pytest.raises(MillError, match="more than 3 subqueries inside each other"):
        check_selections({"canny": Selection((("where", f"({deep}) > 0"),))}, ["edges"])
    check_selections(
        {"canny": Selection((("where", "sharpness > (SELECT avg(sharpness) FROM candidates)"),))}, ["edges"]
    )


@pytest.mark.slow
def test_every_hostile_clause_is_a_sentence_or_a_selection() -> None:
    def tried(clause: str) -> int:
        for it in (Selection((("where", clause),)), Selection((("where", "true"),), clause, 5)):
            try:
                check_selections({"canny": it}, ["edges"])
            except MillError as error:
                assert "\n" not in str(error).strip() and len(str(error)) < 20_000
        return 0

    for clause in sql.CLAUSES:
        verdict = judged(lambda clause=clause: tried(clause), 60)
        assert verdict.status == 0 and verdict.grown < MOST, (clause[:200], verdict)


# -- manifests -----------------------------------------------------------------------------------------------


def test_a_fuzzed_manifest_is_a_manifest_or_sentences(tmp_path: Path) -> None:
    for path in manifests.make(tmp_path / "given", 1, 60, MARKER):
        try:
            manifest.load(path)
        except MillError as error:
            assert str(error).strip(), path.read_bytes()


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\0b"'])
def test_a_character_that_no_text_has_is_told_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(f"name: x\nworkspace: {text}\n")
    with pytest.raises(MillError, match=r"manifest.yaml:2: not YAML: a character that no text has"):
        manifest.load(path)


@pytest.mark.slow
def test_a_dry_run_of_a_fuzzed_manifest_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import main

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in manifests.make(tmp_path / "given", 2, 200, MARKER):
        verdict = judged(
            lambda path=path: main(["run", str(path), "--dry-run"], prog_name="controlmill"), LIMIT
        )
        assert verdict.status in (0, 1) and not verdict.crashed and verdict.said.strip(), (path, verdict)
        assert verdict.grown < MOST
    assert not any((tmp_path / "here").iterdir())


# -- weights -------------------------------------------------------------------------------------------------


def test_hostile_weights_are_sentences_and_run_no_code(tmp_path: Path) -> None:
    for name, data in weights.files():
        path = tmp_path / name
        path.write_bytes(data)
        for read in (lambda path: read_file(path, ("",)), detector_weights.tensors):
            try:
                read(path)
            except (ValueError, detector_weights.WeightsError) as error:
                assert name in str(error)


# -- runs ----------------------------------------------------------------------------------------------------


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder but the workspace's: its size and time."""
    files = (path for path in folder.rglob("*") if "workspace" not in path.relative_to(folder).parts[:2])
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files if not path.is_dir()
    }


def written(folder: Path, source: str, name: str = "manifest") -> Path:
    path = folder / f"{name}.yaml"
    told = {"name": "hostile", "workspace": str(folder / "workspace" / name), "source": json.loads(source)}
    more = {"image": {"resolution": 64}, "conditions": {"canny": {}}}
    path.write_text(json.dumps(told | more))
    return path


@pytest.mark.slow
def test_a_run_over_hostile_files_gives_each_address_one_row(
    tmp_path: Path, controlmill: Callable[..., Any]
) -> None:
    photos = tmp_path / "photos"
    folders.make(photos, 3, 400)
    path = written(tmp_path, json.dumps({"kind": "folder", "path": str(photos)}))
    before = seen(tmp_path)
    ended = controlmill("run", path, patience=1200)
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert seen(tmp_path) == before
    workspace = Workspace(tmp_path / "workspace" / "manifest")
    assert not [event for event in events.read(workspace.root) if event["event"] == "worker lost"]
    listed = sources.listing(
        [FolderSource(kind="folder", path=str(photos))], SIZE, tmp_path / "workspace", None, []
    )
    catalog = Catalog(workspace)
    rows = catalog.query("SELECT count(*), count(DISTINCT uri) FROM sources")
    assert rows == [(len(listed), len(listed))]
    assert catalog.query("SELECT count(*) FROM images WHERE status = 'failed' AND reason = ''") == [(0,)]


@pytest.mark.slow
def test_a_run_over_a_hostile_archive_or_table_gives_rows_or_one_sentence(
    tmp_path: Path, controlmill: Callable[..., Any]
) -> None:
    given = archives.make(tmp_path / "given", 4, 60)
    before = seen(tmp_path / "given")
    for number, one in enumerate(given[::2]):
        kind = one.source.removeprefix("{kind: ").partition(",")[0]
        path = written(tmp_path, json.dumps({"kind": kind, "path": str(one.path)}), f"{number}")
        ended = controlmill("run", path)
        assert ended.returncode in (0, 1, 3), (one.path, ended.stderr)
        assert "Traceback" not in ended.stdout + ended.stderr, (one.path, ended.stderr)
        if ended.returncode == 1:
            assert ended.stderr.startswith("controlmill: "), ended.stderr
        else:
            lost = [
                it for it in events.read(tmp_path / "workspace" / f"{number}") if it["event"] == "worker lost"
            ]
            assert not lost, one.path
    assert seen(tmp_path / "given") == before
    assert not list(Path("/tmp").glob("escaped*")) and not list(tmp_path.glob("escaped*"))
