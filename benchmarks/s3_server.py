"""An S3 server on loopback that can be told to fail: moto behind a gate that counts, refuses and cuts."""

import functools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage import stores

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
# a status | seconds of silence | torn, half, lost, or old: a listing as it was when it was first asked for
Fault = int | float | str


@dataclass
class Gate:
    """A WSGI application before moto's. `faults` are used up by the next requests, one each."""

    app: Callable[..., Iterable[bytes]]
    faults: list[Fault] = field(default_factory=list)
    # asked for each request by its number and method: None = no fault
    choose: Callable[[int, str], Fault | None] = lambda number, method: None
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path and query
    listings: dict[str, tuple[list[Any], bytes]] = field(default_factory=dict)  # the first answer to each

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        self.requests.append((method, environ["PATH_INFO"] + (f"?{query}" if query else "")))
        fault = self.faults.pop(0) if self.faults else self.choose(len(self.requests), method)
        connection = environ["werkzeug.socket"]
        if isinstance(fault, int):
            start(f"{fault} refused", [("Content-Length", "0")])
            return [b""]
        if isinstance(fault, float):
            time.sleep(fault)
        app = self.app
        if "list-type" in query:
            app = functools.partial(self._list, self.requests[-1][1], fault == "old")
        if not isinstance(fault, str) or fault == "old":
            return app(environ, start)
        if fault == "torn":  # in the middle of what the client sends
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            connection.shutdown(socket.SHUT_RDWR)
            start("500 torn", [])
            return [b""]
        answer: list[Any] = []
        body = b"".join(app(environ, lambda *status: answer.extend(status)))
        start(*answer[:2])
        return _cut(body if fault == "half" else b"", connection)

    def _list(
        self, question: str, old: bool, environ: dict[str, Any], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        answer: list[Any] = []
        body = b"".join(self.app(environ, lambda *status: answer.extend(status)))
        first = self.listings.setdefault(question, (answer[:2], body))
        status, body = first if old else (answer[:2], body)
        start(*status)
        return [body]

    def counts(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(
            "LIST" if "list-type" in path else "DELETE" if "?delete" in path else method
            for method, path in self.requests
        )


def _cut(body: bytes, connection: socket.socket) -> Iterator[bytes]:
    """Half of the answer, and nothing more: of an empty body not even its beginning."""
    if body:
        yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)
    yield b""


@contextmanager
def s3_server() -> Iterator[tuple[str, Gate]]:
    """Its address and its gate; the environment is that of its clients meanwhile."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None:
            pass

    gate = Gate(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=Silent)
    server.log = lambda *_, **__: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    stores._store.cache_clear()
    try:
        yield given["AWS_ENDPOINT_URL"], gate
    finally:
        server.shutdown()
        stores._store.cache_clear()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
