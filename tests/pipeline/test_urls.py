"""Images of the web, against a server on loopback that behaves as badly as servers do."""

import gzip
import http.server
import io
import json
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

pytest.importorskip("aiohttp")

from pipeline import MillError, sources
from pipeline.catalog import Catalog
from pipeline.manifest import Download, Image, ListSource, ParquetSource
from pipeline.sources import Fetched, Gone, RawImage, Unreadable
from pipeline.sources.far.addresses import far, reader_of, split_login
from pipeline.sources.far.ahead import in_order
from pipeline.sources.far.networks import is_public, literal
from pipeline.sources.far.responses import stamp_of_headers, wait_asked
from pipeline.storage.workspace import Workspace
from tests.conftest import Command

QUICK = {
    "private_networks": True,
    "retries": 1,
    "backoff": 0.01,
    "max_backoff": 1.5,
    "max_bytes": 200_000,
}


LIMITS = {  # of the servers that are waited for
    "drip.jpg": {"total_timeout": 0.5},
    "silent.jpg": {"connect_timeout": 0.2, "read_timeout": 0.2},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.server.headers.append(dict(self.headers))
            times = self.server.asked[self.path]
        if self.path in self.server.changed:
            status, body, tag = self.server.changed[self.path]
            return self.answer(status, body, ETag=tag)
        name = self.path.partition("?")[0].strip("/").rpartition("/")[2].partition(".")[0]
        getattr(self, f"_{name}", self._picture)(times)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | given).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _picture(self, times: int, **headers: str) -> None:
        self.answer(200, self.server.jpeg, **({"Content_Type": "image/jpeg", "ETag": '"one"'} | headers))

    def _missing(self, times: int) -> None:
        self.answer(404)

    def _removed(self, times: int) -> None:
        self.answer(410)

    def _forbidden(self, times: int) -> None:
        self.answer(403)

    def _recovers(self, times: int) -> None:
        self._picture(times) if times > 1 else self.answer(500)

    def _broken(self, times: int) -> None:
        self.answer(503)

    def _busy(self, times: int) -> None:
        self._picture(times) if times > 1 else self.answer(429, Retry_After="1")

    def _reset(self, times: int) -> None:
        self.close_connection = True
        self.connection.close() if times == 1 else self._picture(times)

    def _drip(self, times: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self._write_until_closed(b"x", 0.1)

    def _silent(self, times: int) -> None:
        time.sleep(1)
        self.close_connection = True

    def _endless(self, times: int) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self._write_until_closed(bytes(50_000), 0)

    def _write_until_closed(self, data: bytes, wait: float) -> None:
        self.close_connection = True
        try:
            for _ in range(100):
                self.wfile.write(data)
                self.wfile.flush()
                time.sleep(wait)
        except OSError:
            pass

    def _huge(self, times: int) -> None:
        self.answer(200, b"", Content_Length="10000000")
        self.close_connection = True

    def _short(self, times: int) -> None:
        self._picture(times, Content_Length=str(len(self.server.jpeg) + 100))
        self.close_connection = True

    def _empty(self, times: int) -> None:
        self.answer(200)

    def _page(self, times: int) -> None:
        self.answer(200, b"\n<!DOCTYPE html><html>sorry</html>", Content_Type="image/jpeg")

    def _json(self, times: int) -> None:
        self.answer(200, b'{"error": "no"}', Content_Type="application/json")

    def _gzip(self, times: int) -> None:
        self.answer(200, gzip.compress(self.server.jpeg), Content_Encoding="gzip")

    def _bomb(self, times: int) -> None:
        self.answer(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")

    def _torn(self, times: int) -> None:
        self.answer(200, gzip.compress(self.server.jpeg)[:-40], Content_Encoding="gzip")

    def _brotli(self, times: int) -> None:
        self.answer(200, b"1234", Content_Encoding="br")

    def _moved(self, times: int) -> None:
        self.answer(302, Location="picture.jpg?moved")

    def _loop(self, times: int) -> None:
        self.answer(301, Location="/loop.jpg")

    def _far(self, times: int) -> None:
        number = int(self.path.partition("?")[2] or 0)
        self.answer(302, Location=f"/far.jpg?{number + 1}")

    def _astray(self, times: int) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def _nowhere(self, times: int) -> None:
        self.answer(302)

    def _robots(self, times: int) -> None:
        self._picture(times, X_Robots_Tag=self.path.partition("?")[2].replace("%20", " "))

    def _conditional(self, times: int) -> None:
        if self.headers.get("If-None-Match") == '"one"':
            self.answer(304, Content_Length="")
        else:
            self._picture(times)

    def _dated(self, times: int) -> None:
        self._picture(times, ETag="", Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

    def _bare(self, times: int) -> None:
        self._picture(times, ETag="")

    def _headless(self, times: int) -> None:
        self.answer(405) if self.command == "HEAD" else self._picture(times)

    def _list(self, times: int) -> None:
        rows = [{"image": "below/picture.jpg", "caption": "a"}, {"image": "https://example.com/b.jpg"}]
        body = "\n".join(map(json.dumps, rows)).encode()
        self.answer(200, body, Content_Type="application/x-ndjson")


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
    jpeg = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.changed: dict[str, tuple[int, bytes, str]] = {}  # path -> what stands there by now
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(photograph: Callable[..., Pillow.Image]) -> Iterator[Server]:
    with Server() as server:
        file = io.BytesIO()
        photograph(1).save(file, "JPEG")
        server.jpeg = file.getvalue()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def addressed(server: Server, name: str, **settings: Any) -> RawImage:
    return far(RawImage("", ""), f"{server.url}/{name}", Download(**{**QUICK, **settings}))


def reason(server: Server, name: str, **settings: Any) -> tuple[str, int | None]:
    (answer,) = sources.read_all([addressed(server, name, **settings)])
    assert isinstance(answer, Unreadable), answer
    assert "127.0.0.1" not in str(answer)
    return str(answer), answer.http_status


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("picture.jpg", 1), ("recovers.jpg", 2), ("reset.jpg", 2), ("gzip.jpg", 1), ("moved.jpg", 1),
        ("picture.jpg?a=%2F%20b&c=ü", 1), ("robots.jpg?googlebot:%20noai", 1), ("robots.jpg?all", 1),
        ("robots.jpg?unavailable_after:%2025%20Jun%202090", 1),
    ],
)  # fmt: skip
def test_a_picture_is_had(server: Server, name: str, times: int) -> None:
    (answer,) = sources.read_all([addressed(server, name)])
    assert isinstance(answer, Fetched), answer
    assert answer.data == server.jpeg
    assert sum(server.asked.values()) == times + (name == "moved.jpg")
    assert all(given["User-Agent"].startswith("ControlMill/") for given in server.headers)


@pytest.mark.parametrize(
    ("name", "words", "status", "times"),
    [
        ("missing.jpg", "404 Not Found", 404, 1),
        ("forbidden.jpg", "403 Forbidden", 403, 1),
        ("broken.jpg", "503 Service Unavailable (asked 2 times)", 503, 2),
        ("drip.jpg", "longer than download.total_timeout (0.5 s)", None, 2),
        ("silent.jpg", "nothing came for 0.2 s", None, 2),
        ("endless.jpg", "too large: over 200000 bytes", 200, 1),
        ("huge.jpg", "too large: over 200000 bytes", 200, 1),
        ("short.jpg", "ended before all of it had come", None, 2),
        ("empty.jpg", "empty file", 200, 1),
        ("page.jpg", "not an image: the server sent a page of HTML", 200, 1),
        ("json.jpg", "not an image: the server sent application/json", 200, 1),
        ("bomb.jpg", "too large", 200, 1),
        ("torn.jpg", "gzip is not whole", 200, 1),
        ("brotli.jpg", "packed it as 'br'", 200, 1),
        ("loop.jpg", "in a circle", 301, 1),
        ("far.jpg", "more than 5 redirects", 302, 6),
        ("astray.jpg", "no address of the web, but of file", None, 1),
        ("nowhere.jpg", "no Location", 302, 1),
        ("robots.jpg?noai", "X-Robots-Tag: noai;", 200, 1),
        ("robots.jpg?nofollow,%20NoImageAI", "X-Robots-Tag: noimageai;", 200, 1),
        ("robots.jpg?googlebot:%20noai,%20controlmill:%20noindex", "X-Robots-Tag: noindex;", 200, 1),
    ],
)
def test_each_failure_has_its_reason_and_status(
    server: Server, name: str, words: str, status: int | None, times: int
) -> None:
    text, told = reason(server, name, **LIMITS.get(name, {}))
    assert words in text and told == status
    assert sum(server.asked.values()) == times


def test_retry_after_is_waited_for_by_all_that_ask_the_host(server: Server) -> None:
    start = time.monotonic()
    answers = list(sources.read_all([addressed(server, "busy.jpg")]))
    assert isinstance(answers[0], Fetched) and time.monotonic() - start >= 1
    assert wait_asked({"Retry-After": "Mon, 01 Jan 2024 00:00:00 GMT"}) == 0
    assert wait_asked({"Retry-After": "soon"}) is None


def test_directives_can_be_left_unheeded_one_by_one(server: Server) -> None:
    (answer,) = sources.read_all([addressed(server, "robots.jpg?noindex", robots=["noai"])])
    assert isinstance(answer, Fetched)


def test_order_is_kept_and_one_failure_is_one_rows(server: Server) -> None:
    names = [f"{number}.jpg" for number in range(30)] + ["missing.jpg"] + ["recovers.jpg", "last.jpg"]
    raws = [addressed(server, name) for name in names]
    raws[3:3] = [RawImage("/nothing/here.jpg", ""), RawImage("x", "", problem="no row")]
    answers = list(sources.read_all(raws))
    bad = [raw.uri.rpartition("/")[2] for raw, answer in zip(raws, answers, strict=True)
           if isinstance(answer, Exception)]  # fmt: skip
    assert bad == ["here.jpg", "x", "missing.jpg"]
    assert server.asked["/0.jpg"] == 1


@pytest.mark.parametrize("limit", ["concurrency", "per_host"])
def test_no_more_requests_go_at_a_time_than_are_allowed(server: Server, limit: str) -> None:
    here: Counter[str] = Counter()
    picture = Handler._picture

    def counted(self: Handler, times: int, **headers: str) -> None:
        with self.server.lock:
            here["now"] += 1
            here["most"] = max(here["most"], here["now"])
        time.sleep(0.02)
        with self.server.lock:
            here["now"] -= 1
        picture(self, times, **headers)

    Handler._picture = counted  # type: ignore[method-assign]
    try:
        list(sources.read_all([addressed(server, f"{number}.jpg", **{limit: 3}) for number in range(12)]))
    finally:
        Handler._picture = picture  # type: ignore[method-assign]
    assert here["most"] == 3


def test_a_reader_that_stops_early_ends_the_requests(server: Server) -> None:
    answers = sources.read_all([addressed(server, f"{number}.jpg", concurrency=1) for number in range(50)])
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() < 60 and sum(server.asked.values()) < 50


def test_what_is_held_for_the_reader_is_bounded(server: Server) -> None:
    held: list[int] = []

    class Opened:
        async def __aenter__(self) -> Any:
            async def ask(item: int, share: Any) -> int:
                await share.room()
                share.add(100)
                held.append(share._window._held)
                return item

            return ask

        async def __aexit__(self, *_: object) -> None:
            pass

    for item in in_order(range(50), Opened, most_bytes=300):
        assert item is not None
        time.sleep(0.001)
    assert max(held) <= 400 and len(held) == 50


def test_what_the_reader_waits_for_comes_though_the_window_is_full(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from pipeline.sources.far import urls

    monkeypatch.setattr(urls, "in_order", partial(in_order, most_bytes=len(server.jpeg)))
    names = ["recovers.jpg"] + [f"{number}.jpg" for number in range(8)]
    raws = [addressed(server, name, concurrency=2, backoff=0.3) for name in names]
    assert all(isinstance(answer, Fetched) for answer in sources.read_all(raws))


# -- networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0.0.0.0", "10.1.2.3",
        "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "[::1]", "[::ffff:127.0.0.1]",
        "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::]", "224.0.0.1",
        "255.255.255.255", "[::127.0.0.1]", "LOCALHOST",
    ],
)  # fmt: skip
def test_no_private_network_is_asked(server: Server, host: str) -> None:
    raw = far(RawImage("", ""), f"http://{host}:{server.server_address[1]}/picture.jpg", Download(retries=0))
    (answer,) = sources.read_all([raw])
    assert "of a private network" in str(answer)
    assert not server.asked


def test_a_redirect_to_a_private_network_is_not_followed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.sources.far import client

    monkeypatch.setattr(client, "is_public", lambda ip: str(ip) == "127.0.0.1")
    monkeypatch.setattr(
        Handler, "_moved", lambda self, times: self.answer(302, Location="http://169.254.169.254/latest")
    )
    text, _ = reason(server, "moved.jpg", private_networks=False)
    assert "of a private network" in text


def test_public_addresses_are_public() -> None:
    for host in ("8.8.8.8", "134744072", "2001:4860:4860::8888", "64:ff9b::808:808"):
        ip = literal(host)
        assert ip is not None and is_public(ip), host
    assert literal("example.com") is None and literal("8.example.com") is None


# -- listing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown", "login"),
    [
        ("https://me:pass@host/a@b.jpg", "https://host/a@b.jpg", "me:pass"),
        ("https://host/a.jpg?mail=a@b", "https://host/a.jpg?mail=a@b", ""),
        ("https://me:p@ss@host?x=1", "https://host?x=1", "me:p@ss"),
    ],
)
def test_credentials_are_no_part_of_an_address(address: str, shown: str, login: str) -> None:
    assert split_login(address) == (shown, login)
    raw = far(RawImage("", ""), address, Download())
    assert raw.uri == shown and raw.place.get("login", "") == login


def test_credentials_reach_the_server_only(server: Server) -> None:
    url = server.url.replace("http://", "http://me:secret@")
    raw = far(RawImage("", ""), f"{url}/moved.jpg", Download(**QUICK))
    (answer,) = sources.read_all([raw])
    assert isinstance(answer, Fetched) and "secret" not in raw.uri
    assert server.headers[0]["Authorization"].startswith("Basic ")


def test_addresses_of_a_list_are_asked_once(server: Server, tmp_path: Path) -> None:
    rows = [("a.jpg", "one"), ("a.jpg", "two"), ("b.jpg", "three")]
    text = "\n".join(json.dumps({"image": f"{server.url}/{name}", "caption": said}) for name, said in rows)
    (tmp_path / "list.jsonl").write_text(text)
    source = ListSource(kind="list", path=f"file://{tmp_path}/list.jsonl", download=QUICK)
    listed = sources.listing([source], Image())
    assert [(raw.uri, raw.caption, raw.more_captions) for raw in listed] == [
        (f"{server.url}/a.jpg", "one", ("two",)),
        (f"{server.url}/b.jpg", "three", ()),
    ]
    assert all(isinstance(answer, Fetched) for answer in sources.read_all(listed))
    assert server.asked == {"/a.jpg": 1, "/b.jpg": 1}


def test_a_list_may_lie_on_the_web(server: Server) -> None:
    source = ListSource(kind="list", path=f"{server.url}/lists/list.jsonl?signed=a/b", download=QUICK)
    listed = sources.listing([source], Image())
    assert [raw.uri for raw in listed] == [
        f"{server.url}/lists/below/picture.jpg",
        "https://example.com/b.jpg",
    ]
    with pytest.raises(MillError, match=r"missing\.jsonl can't be read: the server answered 404"):
        sources.listing([source.model_copy(update={"path": f"{server.url}/missing.jsonl"})], Image())


def test_a_tables_cell_may_hold_an_address(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = ["https://example.com/a.jpg", "HTTP://example.com/b.jpg", "s3://bucket/c.jpg", "d.jpg", None]
    table = {"image": cells, "text": ["a", "b", "c", "d", "e"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    source = ParquetSource(kind="parquet", path=str(tmp_path), download={"retries": 0})
    listed = sources.listing([source], Image())
    assert [raw.reader for raw in listed] == ["url", "url", "object", "parquet", "parquet"]
    assert [raw.uri for raw in listed[:3]] == cells[:3]
    assert listed[0].place["download"] == {"retries": 0}  # type: ignore[typeddict-item]
    assert reader_of("ftp://example.com/a.jpg") is None


# -- change --------------------------------------------------------------------------------------------------


def test_a_look_tells_what_an_address_looks_like_now(server: Server) -> None:
    names = ["conditional", "picture", "dated", "bare", "missing", "removed", "broken", "headless"]
    raws = [addressed(server, f"{name}.jpg") for name in names]
    fetched = {
        raw.uri: answer.stamp
        for raw, answer in zip(raws, sources.read_all(raws), strict=True)
        if isinstance(answer, Fetched)
    }
    stamps = sources.look(raws, fetched)
    by_name = {raw.uri.rpartition("/")[2].removesuffix(".jpg"): stamps[raw.uri] for raw in raws}
    for name in ("conditional", "picture", "dated", "bare", "headless"):
        assert by_name[name] == fetched[f"{server.url}/{name}.jpg"]
    assert by_name["bare"] == "" and by_name["broken"] is None
    assert isinstance(by_name["missing"], Gone) and by_name["removed"].http_status == 410  # type: ignore[union-attr]
    changed = sources.look(raws[:1], {raws[0].uri: stamp_of_headers({"ETag": '"old"'})})
    assert changed[raws[0].uri] == fetched[raws[0].uri]


# -- a whole run ---------------------------------------------------------------------------------------------


def test_a_retry_asks_only_for_what_failed(
    server: Server, controlmill: Command, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["1.jpg", "broken.jpg", "page.jpg", "2.jpg", "missing.jpg"]
    text = "\n".join(json.dumps({"image": f"{server.url}/{name}"}) for name in names)
    (tmp_path / "list.jsonl").write_text(text)
    source = "{kind: list, path: list.jsonl, download: {private_networks: true, retries: 0}}"
    first = controlmill("run", manifest(source=source), "--stages", "ingest")
    assert first.returncode == 3, first.stderr
    rows = "SELECT uri, status, http_status, reason FROM sources JOIN images USING (image_id) ORDER BY uri"
    assert [row[1:3] for row in Catalog(Workspace(tmp_path / "ws")).query(rows)] == [
        ("ok", None), ("ok", None), ("failed", 503), ("failed", 404), ("failed", 200),
    ]  # fmt: skip
    server.asked.clear()
    assert controlmill("run", manifest(source=source), "--stages", "ingest").returncode == 3
    assert server.asked == {"/1.jpg": 1, "/2.jpg": 1}, "a look at what was there"
    server.asked.clear()
    again = controlmill("run", manifest(source=source), "--stages", "ingest", "--retry-failed")
    assert again.returncode == 3, again.stderr
    looks = {"/1.jpg": 1, "/2.jpg": 1}
    assert server.asked == looks | {"/broken.jpg": 1, "/page.jpg": 1, "/missing.jpg": 1}


def test_what_changed_on_a_server_is_read_again_and_what_it_lost_is_gone(
    server: Server,
    controlmill: Command,
    manifest: Callable[..., Path],
    photograph: Callable[..., Pillow.Image],
    tmp_path: Path,
) -> None:
    for number in range(5):
        server.changed[f"/{number}.jpg"] = (200, encoded(photograph(number)), f'"{number}"')
    text = "\n".join(json.dumps({"image": f"{server.url}/{number}.jpg"}) for number in range(5))
    (tmp_path / "list.jsonl").write_text(text)
    source = "{kind: list, path: list.jsonl, download: {private_networks: true, retries: 0}}"
    run = ("run", manifest(source=source), "--stages", "ingest")
    assert controlmill(*run).returncode == 0
    server.asked.clear()
    server.changed["/1.jpg"] = (200, encoded(photograph(11)), '"another"')
    server.changed["/2.jpg"] = (404, b"", "")
    server.changed["/3.jpg"] = (503, b"", "")  # for a while: nothing is known of it
    server.changed["/4.jpg"] = (200, encoded(photograph(4)), '"touched"')
    second = controlmill(*run)
    assert second.returncode == 0, second.stderr
    assert "0 new addresses, 1 changed, 1 gone, 1 touched but equal" in second.stdout, second.stdout
    rows = "SELECT uri, reason FROM images JOIN sources USING (image_id) WHERE status = 'gone' ORDER BY uri"
    gone = Catalog(Workspace(tmp_path / "ws")).query(rows)
    assert [uri.rpartition("/")[2] for uri, _ in gone] == ["1.jpg", "2.jpg"] and "404" in gone[1][1]
    server.asked.clear()
    third = controlmill(*run)
    assert "0 new addresses;" in third.stdout and set(server.asked.values()) == {1}


def encoded(picture: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["list", "parquet"])
def test_a_map_may_be_far_away_as_its_image_is(server: Server, tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.dataset.provided import files

    row = {"image": f"{server.url}/a.jpg", "text": "a", "edges": f"{server.url}/b.png"}
    if kind == "list":
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        path = tmp_path / "a.jsonl"
    else:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({name: [cell] for name, cell in row.items()}), path)
    given = {"kind": kind, "path": str(path), "provided": {"canny": {"column": "edges"}}, "download": QUICK}
    source = (ListSource if kind == "list" else ParquetSource).model_validate(given)
    (raw,) = sources.listing([source], Image())
    assert raw.reader == "url" and files.fetch(raw, "edges") == server.jpeg
    assert server.asked == {"/b.png": 1}
