"""A page in headless Chromium, driven over a pipe: no driver to install, no port to open.

Only for pages of our own: it has no sandbox.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-pings",
)
PATIENCE = 60  # seconds for an answer


class Page:
    """One tab; `requests` and `complaints` grow as the page asks and errs."""

    def __init__(self, send: int, receive: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._send, self._receive, self._rest, self._number, self._session = send, receive, b"", 0, ""
        self._loaded = False
        os.set_blocking(receive, False)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def open(self, page: Path) -> float:
        """Returns the seconds until everything that the page needs at once is there and laid out."""
        self._loaded, start = False, time.perf_counter()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._read(time.monotonic() + PATIENCE)
        self.run("document.body.offsetHeight")
        return time.perf_counter() - start

    def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", code))
        return answer["result"].get("value")

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, file: Path) -> None:
        file.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._send, data) :]
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._read(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self, until: float) -> dict[str, Any]:
        """The next message; what the page asked for and complained of is noted as it passes."""
        while b"\0" not in self._rest:
            if time.monotonic() > until:
                raise TimeoutError("chromium does not answer")
            try:
                part = os.read(self._receive, 1 << 20)
            except BlockingIOError:
                time.sleep(0.002)
                continue
            if not part:
                raise RuntimeError("chromium has ended")
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(
                    told["exceptionDetails"].get("exception", {}).get("description")
                    or told["exceptionDetails"]["text"]
                )
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([it.get("value") for it in told["args"]]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(told["entry"]["text"])
        return message


@contextmanager
def chromium() -> Iterator[Page]:
    """Chromium reads commands from its descriptor 3 and answers on 4."""
    assert PROGRAM
    theirs_in, send = os.pipe()
    receive, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}',
                "bash",
                PROGRAM,
                *FLAGS,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(send, receive)
        finally:
            os.close(send)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(receive)
