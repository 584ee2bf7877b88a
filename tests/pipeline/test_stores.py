"""Objects by path, and their local copies, against a real S3 API on loopback that also fails."""

import os
from pathlib import Path

import pytest

from benchmarks.s3_server import Fault, Gate
from pipeline import MillError
from pipeline.storage import copies, stores
from pipeline.storage.workspace import Workspace, sees, write_text, write_whole


@pytest.fixture
def root(server: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a workspace in the bucket, with a cache of its own."""
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "cache"))
    server.requests.clear()
    return stores.local_copy(f"s3://bucket/{tmp_path.name} ü")


def test_a_path_tells_its_address_on_every_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "a"))
    path = stores.local_copy("s3://bucket/some/prefix/")
    assert path == tmp_path / "a/s3:/bucket/some/prefix"
    assert stores.address_of(path / "x.parquet") == "s3://bucket/some/prefix/x.parquet"
    assert stores.address_of(Path("s3://bucket/prefix")) == "s3://bucket/prefix"  # as commands are given it
    assert stores.address_of(tmp_path) is None and stores.shown(tmp_path) == str(tmp_path)
    monkeypatch.setenv(stores.CACHE, str(tmp_path / "b"))
    assert Workspace(path).root == tmp_path / "b/s3:/bucket/some/prefix"
    assert Workspace(path).address == "s3://bucket/some/prefix"
    for wrong in ("s3://", "s3:///prefix", "s3://bucket//x", "s3://bucket/../x", "ftp://bucket/x"):
        with pytest.raises(MillError, match="no address of a bucket"):
            stores.local_copy(wrong)


def test_one_object_is_one_request_and_the_first_stays(root: Path, server: Gate) -> None:
    path = root / "shards" / "part-000000.parquet"
    assert write_whole(path, lambda file: file.write_bytes(b"first"), replace=False)
    assert not write_whole(path, lambda file: file.write_bytes(b"late"), replace=False)
    assert server.counts() == {"PUT": 2}
    assert bytes(stores.read(path)) == b"first"
    write_text(path, "in its place")
    assert bytes(stores.read(path)) == b"in its place"
    assert not list(root.rglob(f"{copies.UNFINISHED}*"))
    facts = stores.head(path)
    assert facts and facts.bytes == 12 and [each.path for each in stores.below(root)] == [path]
    _, version = stores.read_version(path)
    assert version.etag == facts.etag
    assert stores.put_in_place_of(path, b"next", version)
    assert stores.put_in_place_of(path, b"never", version) is None
    copies.remove(path)
    assert stores.head(path) is None and not list(stores.below(root))
    with pytest.raises(FileNotFoundError):
        stores.read(path)


@pytest.mark.parametrize("fault", [503, 429, 500, 0.3, "torn", "half", "lost"])
def test_requests_that_fail_are_tried_again(root: Path, server: Gate, fault: Fault) -> None:
    content = os.urandom(200_000)
    path = root / "x"
    server.faults[:] = [fault, fault]
    stores.put(path, content)
    server.faults[:] = [fault, fault]
    assert bytes(stores.read(path)) == content
    server.faults[:] = [fault, fault]
    assert copies.copy_of(path).read_bytes() == content
    server.faults[:] = [fault]
    new = stores.put_new(root / "y", content)
    assert new or fault in ("half", "lost")  # it is there, but nobody knows whose it is
    assert bytes(stores.read(root / "y")) == content


@pytest.mark.parametrize("fault", [503, "torn", "half", "lost"])
def test_a_listing_that_breaks_off_goes_on(
    root: Path, server: Gate, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(stores, "LISTED", 2)
    paths = [root / f"{number}" for number in range(5)]
    for path in paths:
        stores.put(path, b"content")
    server.faults[:] = [fault, fault]
    listed = []
    for each in stores.below(root):
        listed.append(each.path)
        server.faults[:] = [fault] if len(listed) == 2 else []
    assert listed == paths
    server.faults[:] = [fault]
    stores.delete_all(paths)
    assert not list(stores.below(root))


@pytest.mark.parametrize("fault", [503, "torn", "half", "lost"])
def test_a_deletion_whose_answer_breaks_off_is_tried_again(root: Path, server: Gate, fault: Fault) -> None:
    stores.put(root / "x", b"content")
    server.faults[:] = [fault, fault]
    stores.delete(root / "x")
    assert stores.head(root / "x") is None


def test_a_request_that_ran_into_a_timeout_is_tried_again(
    root: Path, server: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "REQUEST_SECONDS", 0.5)
    stores._store.cache_clear()
    server.faults[:] = [1.0]
    assert stores.put_new(root / "x", b"content") or bytes(stores.read(root / "x")) == b"content"
    server.faults[:] = [1.0]
    assert bytes(stores.read(root / "x")) == b"content"
    stores._store.cache_clear()


def test_large_files_go_in_parts(root: Path, server: Gate, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(content := os.urandom(stores.PART_BYTES * 2 + 1))
    server.faults[:] = [503, "torn", 503]
    stores.put(root / "large", tmp_path / "large")
    assert server.counts()["POST"] >= 2 and copies.copy_of(root / "large").read_bytes() == content


def test_a_copy_is_downloaded_once_and_again_when_the_object_is_another(root: Path, server: Gate) -> None:
    path = root / "part-000000.parquet"
    stores.put(path, b"old")
    server.requests.clear()
    assert [copies.copy_of(path).read_bytes() for _ in range(3)] == [b"old"] * 3
    assert server.counts() == {"GET": 1}
    stores.put(path, b"new")
    assert copies.copy_of(path).read_bytes() == b"old"  # it is trusted for a while
    assert copies.copy_of(path, trusted=0.0).read_bytes() == b"new"
    copies.copy_of(path, trusted=0.0)  # 304
    stores.delete(path)
    with pytest.raises(FileNotFoundError):
        copies.copy_of(path, trusted=0.0)
    assert not copies.has_copy(path) and not path.exists()


def test_copies_take_no_more_than_they_may(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(copies.LIMIT, "3000")
    paths = [root / f"part-{number:06d}.parquet" for number in range(5)]
    for path in paths:
        stores.put(path, bytes(1000))
    for path in (*paths[:3], paths[0], paths[3]):
        copies.copy_of(path, trusted=0.0)
    assert [path.exists() for path in paths] == [True, False, False, True, False]
    monkeypatch.setenv(copies.LIMIT, "much")
    with pytest.raises(MillError, match="CONTROLMILL_CACHE_BYTES is 'much'"):
        copies.copy_of(paths[4])


def test_every_machine_proves_that_it_sees_the_workspace(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (root, tmp_path / "plain"):
        workspace = Workspace(place)
        workspace.create()
        with workspace.probe() as probe:
            assert sees(probe) == ""
            monkeypatch.setenv(stores.CACHE, str(tmp_path / "elsewhere"))
            assert sees(probe) == ""
        assert "does not see the workspace" in sees(probe)
    assert not list(stores.below(root)) and not list((tmp_path / "plain").iterdir())


def test_what_a_store_refuses_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MillError, match=r"There is no bucket s3://no-such-bucket: make it, or mend"):
        stores.reach(stores.local_copy("s3://no-such-bucket/x"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(root))
    stores._store.cache_clear()
    with pytest.raises(MillError, match=r"There are no credentials for s3://bucket .*set AWS_ACCESS_KEY_ID"):
        stores.reach(root)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(stores.FIRST_PATIENCE, "retries", 1)
    with pytest.raises(MillError, match=r"does not answer .*AWS_ENDPOINT_URL, then run the same command"):
        stores.reach(root)
    stores._store.cache_clear()


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, "Access to s3://bucket is denied"),
        ("InvalidAccessKeyId", 403, "does not know the credentials"),
        ("SignatureDoesNotMatch", 403, "does not know the credentials"),
        ("PermanentRedirect", 301, "set AWS_REGION"),
    ],
)
def test_each_refusal_says_what_to_set(
    root: Path, server: Gate, monkeypatch: pytest.MonkeyPatch, code: str, status: int, words: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    def refuse(environ: object, start: object) -> list[bytes]:
        start(f"{status} no", [("Content-Length", str(len(body)))])  # type: ignore[operator]
        return [body]

    monkeypatch.setattr(server, "app", refuse)
    with pytest.raises(MillError, match=words):
        stores.reach(root)
