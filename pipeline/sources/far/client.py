"""Requests of the web within the limits of one `download:`: time, retries, redirects, size and networks."""

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from pipeline import __version__
from pipeline.manifest.download import Download
from pipeline.sources.far.ahead import Share
from pipeline.sources.far.networks import is_public, literal
from pipeline.sources.far.responses import (
    GONE,
    REDIRECTS,
    check_size,
    forbidden_by,
    is_temporary,
    location,
    refuse_pages,
    stamp_of_headers,
    unpacked,
    validators,
    wait_asked,
    worded,
)
from pipeline.sources.raw import Fetched, Gone, Unreadable

AGENT = f"ControlMill/{__version__} (builds image datasets; X-Robots-Tag: controlmill)"
PRIVATE = "its host is of a private network: set `download.private_networks: true` where it may be asked"
Answer = TypeVar("Answer")


@dataclass
class _Host:
    slots: asyncio.Semaphore
    not_before: float = 0.0  # in the loop's time: when it may be asked again


class _Passing(Exception):
    """A failure that may pass, and for how many seconds the server asked to be left alone."""

    def __init__(self, failure: Unreadable, wait: float | None = None) -> None:
        super().__init__(str(failure))
        self.failure, self.wait = failure, wait


@dataclass
class Clock:
    """The time limits of one attempt."""

    timeout: asyncio.Timeout
    settings: Download
    slots: tuple[asyncio.Semaphore, ...]  # that the attempt holds
    end: float = field(init=False)

    def __post_init__(self) -> None:
        self.end = asyncio.get_running_loop().time() + self.settings.total_timeout

    def step(self, seconds: float) -> None:
        """Something must come within these seconds, or of what is left of the whole time."""
        self.timeout.reschedule(min(self.end, asyncio.get_running_loop().time() + seconds))

    async def stopped(self, share: Share) -> None:
        """While the reader is behind, no time runs, and others may be asked: what the reader waits for may be
        among them.
        """
        before = asyncio.get_running_loop().time()
        self.timeout.reschedule(None)
        for slot in self.slots:
            slot.release()
        await share.room()
        for slot in self.slots:
            await slot.acquire()
        self.end += asyncio.get_running_loop().time() - before

    def reason(self) -> str:
        if asyncio.get_running_loop().time() >= self.end:
            return f"it took longer than download.total_timeout ({self.settings.total_timeout:g} s)"
        return f"nothing came for {self.settings.read_timeout:g} s (download.read_timeout)"


Attempt = Callable[[Clock], Awaitable[Answer]]


class Client:
    """Requests with one set of settings."""

    def __init__(self, settings: Download) -> None:
        self.settings = settings
        self.agent = settings.user_agent or AGENT
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._hosts: dict[str, _Host] = {}
        connector = aiohttp.TCPConnector(limit=0, socket_factory=self._socket, ttl_dns_cache=60)
        self.session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout),
            headers={"User-Agent": self.agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    def _socket(self, info: Any) -> socket.socket:
        """The last thing before a connection: so the address that is checked is the one that is asked."""
        family, kind, protocol, _, address = info
        ip = literal(str(address[0]))
        if not self.settings.private_networks and (ip is None or not is_public(ip)):
            raise PermissionError(PRIVATE)
        return socket.socket(family, kind, protocol)

    async def fetch(self, url: URL, share: Share, pictures: bool) -> Fetched:
        """What an address holds; of `pictures` also whether it is one, and may be used. Raises Unreadable."""

        async def attempt(clock: Clock) -> Fetched:
            try:
                async with self._response("GET", url, clock, {}) as response:
                    self._check_status(response)
                    if pictures:
                        self._check_permission(response)
                    data = await self._body(response, clock, share)
                    if pictures:
                        refuse_pages(data, response.headers, response.status)
                    return Fetched(data, stamp_of_headers(response.headers))
            except BaseException:
                share.clear()
                raise

        return await self._with_retries(url, attempt)

    async def look(self, url: URL, known: str) -> str | Gone:
        """The stamp that an address has now; `known` where it is as it was. Raises Unreadable."""

        async def attempt(clock: Clock) -> str | Gone:
            for method in ("HEAD", "GET"):
                async with self._response(method, url, clock, validators(known)) as response:
                    if response.status in (405, 501) and method == "HEAD":
                        continue
                    if response.status == 304:
                        return known
                    if response.status in GONE:
                        return Gone(worded(response.status), response.status)
                    self._check_status(response)
                    return stamp_of_headers(response.headers)
            raise AssertionError("a GET ends the loop")

        return await self._with_retries(url, attempt)

    async def _with_retries(self, url: URL, attempt: Attempt[Answer]) -> Answer:
        host = self._hosts.setdefault(
            f"{url.host}:{url.port}", _Host(asyncio.Semaphore(self.settings.per_host))
        )
        for number in range(self.settings.retries + 1):
            try:
                async with host.slots:
                    while (wait := host.not_before - asyncio.get_running_loop().time()) > 0:
                        await asyncio.sleep(wait)
                    async with self._slots:
                        return await self._attempt(attempt, (host.slots, self._slots))
            except _Passing as passing:
                failure = passing.failure
                longest = min(self.settings.max_backoff, self.settings.backoff * 2**number)
                wait = random.uniform(longest / 2, longest)
                if passing.wait is not None:
                    wait = min(max(wait, passing.wait), self.settings.max_backoff)
                    host.not_before = max(host.not_before, asyncio.get_running_loop().time() + wait)
                if number < self.settings.retries:
                    await asyncio.sleep(wait)
        times = self.settings.retries + 1
        asked = f" (asked {times} times)" if times > 1 else ""
        raise Unreadable(f"{failure}{asked}", http_status=failure.http_status)

    async def _attempt(self, attempt: Attempt[Answer], slots: tuple[asyncio.Semaphore, ...]) -> Answer:
        """Whatever the library raises becomes Unreadable or _Passing, in words that hold no address."""
        clock = None
        try:
            async with asyncio.timeout(self.settings.total_timeout) as timeout:
                clock = Clock(timeout, self.settings, slots)
                return await attempt(clock)
        except aiohttp.ConnectionTimeoutError as error:
            reason = f"no connection within {self.settings.connect_timeout:g} s (download.connect_timeout)"
            raise _Passing(Unreadable(reason)) from error
        except TimeoutError as error:
            assert clock is not None
            raise _Passing(Unreadable(clock.reason())) from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise _as_failure(error) from error

    @asynccontextmanager
    async def _response(
        self, method: str, url: URL, clock: Clock, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer at the end of all redirects."""
        seen: set[URL] = set()
        while True:
            url = self._permitted(url)
            seen.add(url)
            clock.step(self.settings.connect_timeout + self.settings.read_timeout)
            async with self.session.request(method, url, headers=headers, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    yield response
                    return
                url, status = location(response.headers, url, response.status), response.status
            if url in seen:
                raise Unreadable("its redirects go in a circle", http_status=status)
            if len(seen) > self.settings.redirects:
                reason = f"more than {self.settings.redirects} redirects (download.redirects)"
                raise Unreadable(reason, http_status=status)

    def _permitted(self, url: URL) -> URL:
        """The address with its host spelled plainly, for the library takes 2130706433 for no number."""
        if url.scheme not in ("http", "https") or not url.host:
            raise Unreadable(f"no address of the web, but of {url.scheme or 'no scheme'}")
        ip = literal(url.host)
        if ip is None:
            return url
        if not self.settings.private_networks and not is_public(ip):
            raise Unreadable(PRIVATE)
        return url.with_host(str(ip)) if str(ip) != url.host else url

    async def _body(self, response: aiohttp.ClientResponse, clock: Clock, share: Share) -> bytes:
        length = response.content_length
        check_size(length or 0, self.settings.max_bytes, response.status)
        chunks: list[bytes] = []
        while True:
            clock.step(self.settings.read_timeout)
            chunk = await response.content.readany()
            if not chunk:
                break
            chunks.append(chunk)
            share.add(len(chunk))
            check_size(share.size, self.settings.max_bytes, response.status)
            if share.must_wait:
                await clock.stopped(share)
        packing = response.headers.get("Content-Encoding", "")
        return unpacked(b"".join(chunks), packing, self.settings.max_bytes, response.status)

    def _check_permission(self, response: aiohttp.ClientResponse) -> None:
        directive = forbidden_by(response.headers, self.settings.robots, self.agent)
        if directive:
            reason = f"its server forbids this use (X-Robots-Tag: {directive}; download.robots)"
            raise Unreadable(reason, http_status=response.status)

    def _check_status(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            return
        failure = Unreadable(worded(response.status), http_status=response.status)
        raise _Passing(failure, wait_asked(response.headers)) if is_temporary(response.status) else failure


def _as_failure(error: Exception) -> Exception:
    """Unreadable, or _Passing where asking again may help."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, PermissionError) and PRIVATE in str(cause):
            return Unreadable(PRIVATE)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unreadable(f"its certificate can't be trusted: {cause.verify_message}")
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            failure = Unreadable("its host is not known")
            names = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            return failure if cause.errno in names else _Passing(failure)
        return _Passing(Unreadable(f"no connection: {cause.strerror or type(cause).__name__}"))
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Passing(Unreadable("its body ended before all of it had come"))
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return _Passing(Unreadable("the server closed the connection"))
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return Unreadable("no address of the web: it can't be taken apart")
    return Unreadable(f"the server's answer is no HTTP ({type(error).__name__})")
