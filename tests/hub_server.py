"""A hub on loopback: what huggingface_hub asks for a file (HEAD with ETag and commit, a redirect to storage,
Range after a cut connection), and the ways in which it refuses.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
# the codes by which the hub tells apart what is missing
MISSING = {"repository": "RepoNotFound", "revision": "RevisionNotFound", "file": "EntryNotFound"}


@dataclass
class Hub:
    """`files` by repository and name. What it does wrong is set from outside, and counts for all requests."""

    address: str = ""
    storage: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int = 200  # another one refuses every question
    gated: bool = False
    cut: int = 0  # downloads that break off half way
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def asked(self, method: str, below: str) -> list[str]:
        return [path for which, path, _ in self.requests if which == method and path.startswith(below)]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            if hub.gated:
                self._refuse(403, "GatedRepo")
            elif hub.status != 200:
                self._refuse(hub.status, "")
            elif found := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
                self._send(hub.files[found[1]][found[2]])
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(*found.groups())
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
                self._tell(found[1], found[2])
            else:
                self._refuse(404, MISSING["repository"])

        def _resolve(self, repo: str, revision: str, name: str) -> None:
            files = hub.files.get(repo)
            if files is None:
                self._refuse(404, MISSING["repository"])
            elif revision not in (COMMIT, "main"):
                self._refuse(404, MISSING["revision"])
            elif name not in files:
                self._refuse(404, MISSING["file"])
            else:
                self._begin(302, 0)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(files[name]).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(files[name])))
                self.send_header("Location", f"{hub.storage}/storage/{repo}/{name}")
                self.end_headers()

        def _tell(self, repo: str, what: str) -> None:
            files = hub.files.get(repo)
            if files is None:
                self._refuse(404, MISSING["repository"])
                return
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            facts = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            content = json.dumps(tree if what == "tree" else facts).encode()
            self._begin(200, len(content), "application/json")
            self.end_headers()
            self._write(content)

        def _send(self, content: bytes) -> None:
            start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0"])[0])
            self._begin(206 if start else 200, len(content) - start)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET" and hub.cut:
                hub.cut -= 1
                self._write(content[start : start + (len(content) - start) // 2])
                self.close_connection = True
            else:
                self._write(content[start:])

        def _write(self, content: bytes) -> None:
            if self.command == "GET":
                self.wfile.write(content)

        def _refuse(self, status: int, code: str) -> None:
            self._begin(status, 0)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            self.end_headers()

        def _begin(self, status: int, length: int, kind: str = "application/octet-stream") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", kind)

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"  # of another name, as that of the real hub
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
