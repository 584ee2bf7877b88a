"""Images in object stores, against a real S3 API on loopback."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from pipeline import MillError, sources
from pipeline.manifest import Download, FolderSource, Image, ListSource, ParquetSource, WebDatasetSource
from pipeline.sources import Fetched, Gone, RawImage, Unreadable
from pipeline.sources.far import objects
from pipeline.sources.far.addresses import far, local_path
from pipeline.sources.folders import list_folder
from pipeline.sources.raw import ListingContext


def at(address: str, **settings: Any) -> RawImage:
    return far(RawImage("", ""), address, Download(**settings))


@pytest.fixture
def memory(photograph: Callable[..., Pillow.Image]) -> Iterator[tuple[str, bytes]]:
    """A folder in fsspec's memory with 20 objects, and the bytes of each."""
    fsspec = pytest.importorskip("fsspec")
    file = io.BytesIO()
    photograph(1).save(file, "JPEG")
    system = fsspec.filesystem("memory")
    for number in range(20):
        system.pipe_file(f"/photos/{number}.jpg", file.getvalue())
    system.pipe_file("/photos/empty.jpg", b"")
    yield "memory://photos", file.getvalue()
    system.rm("/photos", recursive=True)


def test_objects_are_read_in_order_and_each_failure_is_a_row(memory: tuple[str, bytes]) -> None:
    folder, jpeg = memory
    names = ["3.jpg", "nothing.jpg", "4.jpg", "empty.jpg", ""]
    answers = list(sources.read_all([at(f"{folder}/{name}") for name in names]))
    assert [answer.data == jpeg for answer in answers if isinstance(answer, Fetched)] == [True, True]
    assert [str(answer) for answer in answers if isinstance(answer, Unreadable)] == [
        "there is no such object",
        "empty file",
        "a folder, no object",
    ]
    (answer,) = sources.read_all([at(f"{folder}/3.jpg", max_bytes=10)])
    assert str(answer) == f"too large: {len(jpeg)} bytes (download.max_bytes is 10)"


def test_a_look_lists_folders_of_many_and_tells_what_is_gone(memory: tuple[str, bytes]) -> None:
    folder, _ = memory
    raws = [at(f"{folder}/{number}.jpg") for number in range(21)]
    fetched = [answer for answer in sources.read_all(raws) if isinstance(answer, Fetched)]
    stamps = sources.look(raws, {})
    assert [stamps[raw.uri] for raw in raws[:20]] == [answer.stamp for answer in fetched]
    assert isinstance(stamps[raws[20].uri], Gone)
    assert sources.look(raws[:1], {}) == {raws[0].uri: fetched[0].stamp}


def test_a_list_in_a_store_names_objects_beside_it(memory: tuple[str, bytes]) -> None:
    import fsspec

    folder, _ = memory
    fsspec.filesystem("memory").pipe_file("/photos/list.csv", b"image,caption\n1.jpg,one\ndeeper/2.jpg,two\n")
    listed = sources.listing([ListSource(kind="list", path=f"{folder}/list.csv")], Image())
    assert [raw.uri for raw in listed] == [f"{folder}/1.jpg", f"{folder}/deeper/2.jpg"]
    assert {raw.reader for raw in listed} == {"object"}
    with pytest.raises(MillError, match="there is no such object"):
        sources.listing([ListSource(kind="list", path=f"{folder}/none.csv")], Image())


def test_file_addresses_are_paths(tmp_path: Path, memory: tuple[str, bytes]) -> None:
    (tmp_path / "a b.jpg").write_bytes(memory[1])
    (tmp_path / "list.csv").write_text(f"image\nfile://{tmp_path}/a%20b.jpg\n")
    listed = sources.listing([ListSource(kind="list", path=f"file://{tmp_path}/list.csv")], Image())
    assert [raw.uri for raw in listed] == [str(tmp_path / "a b.jpg")] and listed[0].stamp
    assert sources.read(listed[0]) == memory[1]
    assert local_path("file://localhost/a") == "/a" and local_path("s3://b/a") == "s3://b/a"


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    (answer,) = sources.read_all([at("gs://bucket/a.jpg")])
    assert isinstance(answer, Unreadable)
    assert str(answer).endswith("not installed: pip install 'controlmill[gs]'")


def test_versions_come_before_times() -> None:
    assert objects.stamp_of_info({"ETag": '"a"', "LastModified": 1, "size": 2}) == '{"etag": "\\"a\\""}'
    assert objects.stamp_of_info({"mtime": 1, "size": 2}) == (
        '{"modified": "1970-01-01T00:00:01+00:00", "size": 2}'
    )
    assert objects.stamp_of_info({"size": 2}) == ""


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A bucket with one picture, and a client of its server."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    pytest.importorskip("flask_cors")
    import boto3
    import fsspec
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def test_an_s3_store_is_read_and_looked_at(store: Any, photograph: Callable[..., Pillow.Image]) -> None:
    file = io.BytesIO()
    photograph(1).save(file, "JPEG")
    for number in range(20):
        store.put_object(Bucket="photos", Key=f"below/{number} ü.jpg", Body=file.getvalue())
    store.put_object(Bucket="photos", Key="list.csv", Body="image\nbelow/0 ü.jpg\nbelow/none.jpg\n".encode())
    listed = sources.listing([ListSource(kind="list", path="s3://photos/list.csv")], Image())
    good, missing = sources.read_all(listed)
    assert isinstance(good, Fetched) and good.data == file.getvalue() and "etag" in good.stamp
    assert isinstance(missing, Unreadable) and missing.http_status == 404
    raws = [at(f"s3://photos/below/{number} ü.jpg") for number in range(21)]
    assert sources.look(raws[:1], {}) == {raws[0].uri: good.stamp}
    store.put_object(Bucket="photos", Key="below/1 ü.jpg", Body=b"new")
    stamps = sources.look(raws, {})
    assert stamps[raws[0].uri] == good.stamp != stamps[raws[1].uri]
    assert isinstance(stamps[raws[20].uri], Gone)
    (other,) = sources.read_all([at("s3://no-such-bucket/a.jpg")])
    assert isinstance(other, Unreadable)


def test_a_refusal_of_the_store_is_one_line(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "file_system", lambda uri: (_Refusing(), uri))
    (answer,) = sources.read_all([at("s3://photos/a.jpg")])
    assert str(answer) == "access to the object is denied" and answer.http_status == 403  # type: ignore[union-attr]
    assert sources.look([at("s3://photos/a.jpg")], {}) == {"s3://photos/a.jpg": None}


class _Refusing:
    def info(self, path: str) -> None:
        raise PermissionError("Access Denied")


def test_a_folder_of_a_store_gives_its_images_and_captions(memory: tuple[str, bytes]) -> None:
    import fsspec

    folder, jpeg = memory
    system = fsspec.filesystem("memory")
    for name, data in {
        "photos/sub/a.JPG": jpeg, "photos/sub/a.txt": "ein Text é".encode(), "photos/sub/table.csv": b"1",
        "photos/.hidden/b.jpg": jpeg, "photos/0.jpg.json": b'{"caption": ["one", "two"]}',
    }.items():  # fmt: skip
        system.pipe_file(f"/{name}", data)
    context = ListingContext()
    source = FolderSource(kind="folder", path=folder + "/", exclude=["1?.jpg", "empty.jpg"])
    listed = list(list_folder(source, Image(), context))
    assert [raw.uri for raw in listed] == [f"{folder}/{n}.jpg" for n in range(10)] + [f"{folder}/sub/a.JPG"]
    answers = list(sources.read_all(listed))
    assert all(isinstance(answer, Fetched) and answer.data == jpeg for answer in answers)
    assert [answer.stamp for answer in answers if isinstance(answer, Fetched)] == [
        raw.stamp for raw in listed
    ]
    assert sources.read_captions(listed[0]).texts == ("one", "two")
    assert sources.read_captions(listed[-1]).texts == ("ein Text é",)
    assert sources.read_captions(listed[1]).texts == ()
    assert context.notes == [f"{folder}: files that are no images, left out: 1 .csv"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (FolderSource(kind="folder", path="memory://none"), "names no objects"),
        (FolderSource(kind="folder", path="https://example.com/a"), "not read from https:// addresses"),
        (FolderSource(kind="folder", path="memory://x", captions="metadata"), "source.captions: of a folder"),
        (
            ListSource(kind="list", path="ftp://example.com/a.csv"),
            "ftp:// is no kind of address",
        ),
        (ParquetSource(kind="parquet", path="s3://bucket/a"), "not read from s3:// addresses"),
        (WebDatasetSource(kind="webdataset", path="gs://bucket/a.tar"), "not read from gs:// addresses"),
    ],
)
def test_what_is_not_read_from_afar_is_refused_in_a_sentence(source: Any, words: str) -> None:
    with pytest.raises(MillError, match=words):
        sources.listing([source], Image())


def test_the_plan_names_what_an_address_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.lack(ListSource(kind="list", path="https://example.com/a.csv"), Image()) is None
    assert sources.lack(FolderSource(kind="folder", path="memory://x"), Image()) is None
    monkeypatch.setattr(objects, "lack", lambda scheme: f"{scheme} lacks")
    assert sources.lack(FolderSource(kind="folder", path="s3://x/y"), Image()) == "s3 lacks"
    told = sources.lack(ParquetSource(kind="parquet", path="s3://x/y"), Image())
    assert told and told.startswith("this kind of source is not read from s3:// addresses")
