"""Folders as people keep them: what is an image, whose a caption or a map is, what is told of the rest."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from pipeline import MillError, sources
from pipeline.catalog import Catalog
from pipeline.manifest import FolderSource, Image, Provided
from pipeline.sources import RawImage
from pipeline.sources.files import read_path
from pipeline.sources.raw import Unreadable
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

PNG = b"\x89PNG\r\n\x1a\n"
Files = dict[str, bytes | str]


def written(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def listed(root: Path, notes: list[str] | None = None, **settings: Any) -> dict[str, RawImage]:
    """By their path below the folder."""
    source = FolderSource(kind="folder", path=str(root), **settings)
    return {os.path.relpath(raw.uri, root): raw for raw in sources.listing([source], Image(), notes=notes)}


def captions(root: Path, **settings: Any) -> dict[str, tuple[str, ...]]:
    return {name: sources.read_captions(raw).texts for name, raw in listed(root, **settings).items()}


def test_what_trainers_leave_beside_images_is_counted_and_is_no_row(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "a.jpg": "x", "a.caption": "kohya's", "b.png": "x", "b.png.txt": "double", "G.JPG": "x",
            "G.TXT": "upper",
            "c_0064x0064_sd.npz": "x", "d.xml": "x", "desktop.ini": "x", "Thumbs.db": "x", "orphan.txt": "x",
            "e.avif": "x", "f.heic": "x", "g.JXL": "x", "h.psd": "x", "README": "x", "blob": PNG + b"rest",
            "sub/s.xml": "x",
        },
    )  # fmt: skip
    notes: list[str] = []
    found = listed(root, notes)
    assert list(found) == ["G.JPG", "a.jpg", "b.png", "blob", "e.avif", "f.heic", "g.JXL", "h.psd"]
    assert [sources.read_captions(found[name]).first for name in ("G.JPG", "a.jpg", "b.png", "e.avif")] == [
        "upper",
        "kohya's",
        "double",
        "",
    ]
    assert notes == [
        f"{root}: files that are no images, left out:"
        " 2 .xml, 1 without a suffix, 1 .db, 1 .ini, 1 .npz, 1 .txt"
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": "txt", "a.caption": "caption", "a.json": '{"text": "json"}'}, ("txt",)),
        ({"a.JSON": '{"text": "json"}', "a.Caption": "caption"}, ("caption",)),
        ({"a.txt": "stem", "a.jpg.txt": "name"}, ("name",)),
        ({"a.jpg.json": '["one", "two", ""]'}, ("one", "two")),
        ({"a.json": '{"caption": ["one", " two "], "text": "x"}'}, ("one", "two")),
        ({"a.json": '{"caption": "", "text": "x"}'}, ("x",)),
        ({"a.json": '{"caption": 7}'}, ("7",)),
        ({"a.txt": "\ufeffmarked"}, ("marked",)),
        ({"a.txt": "naïve".encode("utf-16")}, ("naïve",)),
        ({"a.txt": "naïve".encode("utf-32")}, ("naïve",)),
        ({"a.json": json.dumps({"text": "naïve"}, ensure_ascii=False).encode("utf-16")}, ("naïve",)),
        ({"a.txt": " \n"}, ()),
        ({"a.txt": ""}, ()),
        ({}, ()),
    ],
)
def test_which_file_gives_the_captions(tmp_path: Path, files: Files, expected: tuple[str, ...]) -> None:
    assert captions(written(tmp_path, {"a.jpg": "x", **files})) == {"a.jpg": expected}


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.txt", "café".encode("latin-1"), "caption file is not UTF-8: set `encoding` of the source"),
        ("a.txt", "cafe".encode("utf-16-le"), "caption file holds NUL characters"),
        ("a.txt", b"\xff\xfea", "caption file is not UTF-16"),
        ("a.txt", b"x" * (2**20 + 1), "caption file: too large: 1048577 bytes"),
        ("a.json", b"{", "caption file is not JSON: Expecting property name"),
        ("a.json", b"[" * 200_000, "caption file is JSON that is nested too deeply"),
        ("a.json", b'{"caption": {"en": "x"}}', "caption file: a caption is a text or a list of texts"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_problem_and_no_caption(
    tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    told = sources.read_captions(listed(written(tmp_path, {"a.jpg": "x", name: data}))["a.jpg"])
    assert told.texts == () and told.problem.startswith(problem)


def test_a_declared_encoding_is_used_and_must_be_one(tmp_path: Path) -> None:
    root = written(
        tmp_path, {"a.jpg": "x", "a.txt": "café".encode("latin-1"), "b.jpg": "x", "b.txt": "\ufeffé"}
    )
    assert captions(root, encoding="cp1252") == {"a.jpg": ("café",), "b.jpg": ("é",)}
    with pytest.raises(ValueError, match="'klingon' is no encoding of text"):
        FolderSource(kind="folder", path=".", encoding="klingon")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"include": ["*.png"]}, ["a/3.png", "b/4.png"]),
        ({"exclude": ["*.png"]}, ["1.jpg", "a/2.jpg"]),
        ({"exclude": ["a"]}, ["1.jpg", "b/4.png"]),
        ({"include": ["a/**"]}, ["a/2.jpg", "a/3.png"]),
        ({"include": ["**/2.*", "[34].png"], "exclude": ["b/*"]}, ["a/2.jpg", "a/3.png"]),
        ({"include": ["?.jpg"], "exclude": ["[!1].jpg"]}, ["1.jpg"]),
    ],
)
def test_globs_choose_among_the_images(tmp_path: Path, settings: Any, expected: list[str]) -> None:
    root = written(
        tmp_path, {"1.jpg": "x", "1.txt": "caption", "a/2.jpg": "x", "a/3.png": "x", "b/4.png": "x"}
    )
    found = listed(root, **settings)
    assert list(found) == expected
    assert all(sources.read_captions(found[name]).first == "caption" for name in found if name == "1.jpg")


def test_a_glob_that_names_nothing_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    listed(written(tmp_path, {"1.jpg": "x", "old/2.jpg": "x"}), notes, exclude=["old", "*.gif"])
    assert notes == [f"{tmp_path}: `include` and `exclude`: nothing is named by '*.gif'"]


def test_links_are_followed_and_nothing_is_listed_twice(tmp_path: Path) -> None:
    root = written(tmp_path / "photos", {"real/1.jpg": "x", "z.jpg": "x"})
    elsewhere = written(tmp_path / "elsewhere", {"2.jpg": "x", "2.txt": "two", "deep/3.jpg": "x"})
    (root / "a link").symlink_to(elsewhere)
    (root / "back").symlink_to(root)
    (root / "again").symlink_to(root / "real")
    (elsewhere / "home").symlink_to(root)
    (elsewhere / "itself.jpg").symlink_to(elsewhere / "itself.jpg")
    notes: list[str] = []
    found = listed(root, notes)
    assert list(found) == ["a link/2.jpg", "a link/deep/3.jpg", "a link/itself.jpg", "real/1.jpg", "z.jpg"]
    assert sources.read_captions(found["a link/2.jpg"]).first == "two"
    with pytest.raises(Unreadable, match="symbolic links"):
        sources.read(found["a link/itself.jpg"])
    assert notes == [
        f"{root}: folders that are listed under another name, left out: a link/home, again, back"
    ]


def test_the_workspace_is_no_source_by_any_name(tmp_path: Path) -> None:
    root = written(tmp_path, {"photos/1.jpg": "x", "ws/report.png": "x"})
    (root / "photos" / "link").symlink_to(root)
    source = FolderSource(kind="folder", path=str(root / "photos"))
    found = sources.listing([source], Image(), without=root / "ws")
    assert [Path(raw.uri).name for raw in found] == ["1.jpg"]


def test_a_map_in_json_is_no_caption(tmp_path: Path) -> None:
    root = written(tmp_path, {"a.jpg": "x", "a.json": '[{"keypoints": []}]', "b.jpg": "x", "b.txt": "b"})
    assert sources.read_captions(listed(root)["a.jpg"]).problem
    found = listed(root, provided={"pose_openpose": Provided(path="{stem}.json", keypoints="openpose")})
    told = {name: sources.read_captions(raw) for name, raw in found.items()}
    assert told["a.jpg"].problem == "" and told["b.jpg"].texts == ("b",)


@pytest.mark.parametrize(
    ("path", "files", "images", "told"),
    [
        ("{stem}_depth.png", ["a.jpg", "a_depth.png", "a_depth.npy"], ["a.jpg"], 0),
        ("{stem}_depth.png", ["a.jpg", "b_depth.png"], ["a.jpg"], 1),  # its image is missing
        ("{folder}/{stem}_d.tif", ["s/a.jpg", "s/a_d.tif", "b.jpg", "b_d.tif"], ["b.jpg", "s/a.jpg"], 0),
        ("d/{folder}/{stem}.jpg", ["a.jpg", "d/a.jpg", "s/b.jpg", "d/s/b.jpg"], ["a.jpg", "s/b.jpg"], 0),
        ("{stem}.png", ["a.jpg", "a.png", "b.png"], ["a.jpg", "b.png"], 0),  # b.png may well be a photograph
        ("{folder}/../maps/{stem}.png", ["i/a.jpg", "maps/a.png", "i/b.jpg"], ["i/a.jpg", "i/b.jpg"], 0),
        ("all.png", ["a.jpg", "all.png"], ["a.jpg"], 0),
        ("maps/{name}.png", ["a.jpg", "maps/a.jpg.png"], ["a.jpg"], 0),
    ],
)  # fmt: skip
def test_what_a_template_names_is_no_photograph(
    tmp_path: Path, path: str, files: list[str], images: list[str], told: int
) -> None:
    notes: list[str] = []
    provided = {"depth_large": Provided(path=path, depth="distance")}
    assert list(listed(written(tmp_path, dict.fromkeys(files, "x")), notes, provided=provided)) == images
    note = f"{tmp_path}: files that `provided` names as maps of images that are not there: {told}"
    assert (note in notes) == (told > 0)


def test_stamps_tell_what_may_have_changed(tmp_path: Path) -> None:
    provided = {
        "depth_large": Provided(path="d/{stem}.png", mask="mask.png", depth="distance"),
        "hed": Provided(path="h/{stem}.png"),
    }
    root = written(tmp_path, {"a.jpg": "x", "a.txt": "c", "b.jpg": "xy", "d/a.png": "map", "mask.png": "m"})
    before = listed(root, provided=provided)
    assert before == listed(root, provided=provided)

    def mark(name: str) -> str:
        state = (root / name).stat()
        return f"{state.st_size}:{state.st_mtime_ns}"

    a, b = before["a.jpg"], before["b.jpg"]
    assert (a.stamp, a.caption_stamp, b.stamp, b.caption_stamp) == (
        mark("a.jpg"),
        mark("a.txt"),
        mark("b.jpg"),
        "",
    )
    assert a.map_stamps == {"depth_large": f"{mark('d/a.png')} {mark('mask.png')}", "hed": "-"}
    assert b.map_stamps == {"depth_large": f"- {mark('mask.png')}", "hed": "-"}
    written(root, {"b.jpg": "other", "b.caption": "new", "d/b.png": "m"})
    (root / "a.txt").unlink()
    after = listed(root, provided=provided)
    assert after["a.jpg"].caption_stamp == "" and after["a.jpg"].stamp == a.stamp
    assert after["b.jpg"].stamp != b.stamp and after["b.jpg"].caption_stamp == mark("b.caption")
    assert after["b.jpg"].map_stamps["depth_large"].startswith(mark("d/b.png"))


METADATA = [
    {"file_name": "1.jpg", "text": "one", "year": 1999, "depth_file_name": "maps/1.png"},
    {"file_name": "1.jpg", "text": "uno"},
    {"file_name": "sub/2.jpg", "text": ["two", "deux"]},
    {"file_name": "none.jpg", "text": "lost"},
]


def write_metadata(root: Path, name: str) -> None:
    if name.endswith(".jsonl"):
        (root / name).write_text("\n".join(map(json.dumps, METADATA)))
    elif name.endswith(".csv"):
        rows = [
            {**row, "text": row["text"][0] if isinstance(row["text"], list) else row["text"]}
            for row in METADATA
        ]
        columns = ["file_name", "text", "year", "depth_file_name"]
        lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
        (root / name).write_text("\r\n".join(map(",".join, lines)))
    else:
        rows = [
            {**row, "text": row["text"] if isinstance(row["text"], list) else [row["text"]]}
            for row in METADATA
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / name)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_metadata_of_imagefolder_gives_captions_and_columns(tmp_path: Path, name: str) -> None:
    root = written(
        tmp_path, {"1.jpg": "x", "sub/2.jpg": "x", "3.jpg": "x", "3.txt": "three", "maps/1.png": "m"}
    )
    write_metadata(root, name)
    notes: list[str] = []
    provided = {"depth_large": Provided(column="depth_file_name", depth="distance")}
    found = listed(root, notes, provided=provided)
    assert list(found) == ["1.jpg", "3.jpg", "none.jpg", "sub/2.jpg"]
    told = {each: sources.read_captions(raw).texts for each, raw in found.items() if not raw.problem}
    two = ("two",) if name.endswith(".csv") else ("two", "deux")
    assert told == {"1.jpg": ("one", "uno"), "3.jpg": ("three",), "sub/2.jpg": two}
    assert str(found["1.jpg"].fields["year"]).startswith("1999")
    assert "no such file" in found["none.jpg"].problem
    assert found["1.jpg"].map_stamps["depth_large"].startswith("1:")
    assert found["3.jpg"].map_stamps == {"depth_large": "-"}
    assert f"{root}: 3 images are described by {root}/{name}" in notes
    told = {
        each: sources.read_captions(raw).texts
        for each, raw in listed(root, captions="none").items()
        if not raw.problem
    }
    assert set(told.values()) == {()}


def test_a_metadata_file_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    root = written(tmp_path, {"1.jpg": "x", "metadata.jsonl": '{"picture": "1.jpg"}\n'})
    assert list(listed(root)) == ["1.jpg"]  # a file of that name that is something else
    with pytest.raises(MillError, match=r"there is no metadata\.jsonl, .* with a column file_name"):
        listed(root, captions="metadata")
    with (root / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "1.jpg", "text": "one"}\n{"file_name":\n')
    *_, bad, worse = listed(root, captions="metadata").values()
    assert (bad.problem, worse.problem[:9]) == ("the row has no 'file_name'", "not JSON:")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    root = written(tmp_path, {"1.jpg": "x", "1.txt": "c"})
    os.mkfifo(root / "pipe")
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "1.jpg.txt")
    (root / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(root / "door.gif")) if len(str(root)) < 80 else (root / "door.gif").touch()
    found = listed(root)
    assert set(found) >= {"1.jpg", "pipe", "pipe.jpg", "device.png"}
    for name in ("pipe", "pipe.jpg", "device.png"):
        with pytest.raises(Unreadable, match="not a file"):
            sources.read(found[name])
        with pytest.raises(Unreadable, match="not a file"):
            read_path(root / name)
    assert sources.read_captions(found["1.jpg"]).problem == "caption file: not a file"


def test_a_folder_that_cannot_be_opened_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path, {"1.jpg": "x", "closed/2.jpg": "x"})
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    one, closed = sources.listing([FolderSource(kind="folder", path=str(root))], Image())
    assert Path(one.uri).name == "1.jpg" and closed.uri == str(root / "closed")
    reason = "the folder can't be opened: Permission denied: open it, or name it in `exclude`"
    assert closed.problem == reason
    with pytest.raises(MillError, match="can't be opened: Permission denied: give yourself the right"):
        listed(root / "closed")


@pytest.mark.parametrize("size", [5, 50])
def test_a_file_that_changes_while_it_is_read_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = written(tmp_path, {"1.jpg": "0123456789"}) / "1.jpg"
    look = os.fstat

    def meddle(descriptor: int) -> os.stat_result:
        state = look(descriptor)
        os.truncate(path, size)
        return state

    monkeypatch.setattr("os.fstat", meddle)
    with pytest.raises(Unreadable, match="it changed while it was read"):
        sources.read(RawImage(str(path)))


def test_names_of_all_kinds_go_through_a_run_and_its_report(
    controlmill: Command,
    manifest: Callable[..., Path],
    photograph: Callable[..., Pillow.Image],
    tmp_path: Path,
) -> None:
    names = [
        "new\nline.jpg",
        "quo\"te's.jpg",
        "<b>&amp;.jpg",
        "ümlaut 写真.jpg",
        "%s {stem}.jpg",
    ]
    photos = tmp_path / "photos" / "a 'folder'"
    photos.mkdir(parents=True)
    for number, name in enumerate(names):
        photograph(number).save(photos / name)
        (photos / f"{name[:-4]}.txt").write_text(f"caption of {name}")
    (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (photos / os.fsdecode(b"caf\xe9.b\xe9b")).write_bytes(b"x")
    os.mkfifo(photos / "pipe.jpg")
    ran = controlmill("run", manifest(), "--stages", "ingest,report")
    assert ran.returncode == 3, ran.stderr
    assert "files that are no images, left out: 1 .b\\xe9b" in ran.stdout
    rows = Catalog(Workspace(tmp_path / "ws")).query(
        "SELECT uri, status, reason, captions FROM images JOIN sources USING (image_id)"
    )
    told = {Path(uri).name: (status, reason or (texts and texts[0])) for uri, status, reason, texts in rows}
    assert told == {name: ("ok", f"caption of {name}") for name in names} | {
        "caf\\xe9.jpg": ("failed", "its name is not UTF-8: rename the file"),
        "pipe.jpg": ("failed", "not a file: a pipe, a socket or a device is never opened"),
    }
