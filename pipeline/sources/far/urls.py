"""Images of the web: many requests at a time, while the images that have come are decoded."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from yarl import URL

from pipeline.manifest.download import Download
from pipeline.sources.far.ahead import Share, in_order
from pipeline.sources.far.client import Client
from pipeline.sources.raw import DownloadJson, Fetched, FilePlace, Gone, RawImage, Unreadable


def read_url(raw: RawImage) -> bytes:
    """The raw bytes; raises Unreadable."""
    return _only(read_urls([raw]))


def read_text(raw: RawImage) -> bytes:
    """The bytes of what is no picture, but a list of them; raises Unreadable."""
    return _only(read_urls([raw], pictures=False))


def _only(answers: Iterator[Fetched | Exception]) -> bytes:
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer.data


def read_urls(raw_images: Sequence[RawImage], pictures: bool = True) -> Iterator[Fetched | Exception]:
    """What each address holds, in order, or why it can't be had: one request each, and more only where one
    failed in a way that may pass.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        async with _Clients() as clients:

            async def ask(raw: RawImage, share: Share) -> Fetched:
                if raw.problem:
                    raise Unreadable(raw.problem)
                return await clients.of(raw).fetch(_url(raw), share, pictures)

            yield ask

    return in_order(raw_images, opened)


def look(raw_images: Sequence[RawImage], known: Mapping[str, str]) -> dict[str, str | Gone | None]:
    """The stamp that each address has now, by uri: "" where the server gives nothing to compare, None where
    it can't be asked now. `known` are the stamps of before.
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        async with _Clients() as clients:

            async def ask(raw: RawImage, share: Share) -> str | Gone:
                return await clients.of(raw).look(_url(raw), known.get(raw.uri, ""))

            yield ask

    answers = in_order(raw_images, opened)
    return {
        raw.uri: None if isinstance(answer, Exception) else answer
        for raw, answer in zip(raw_images, answers, strict=True)
    }


def _url(raw: RawImage) -> URL:
    address, login = raw.uri, cast(FilePlace, raw.place).get("login")
    if login:
        scheme, mark, rest = address.partition("://")
        address = f"{scheme}{mark}{login}@{rest}"
    try:
        return URL(address, encoded=address.isascii() and address.isprintable() and " " not in address)
    except ValueError as error:
        raise Unreadable("no address of the web: it can't be taken apart") from error


class _Clients:
    """A client for each set of settings that addresses came with."""

    def __init__(self) -> None:
        self._by_settings: dict[str, Client] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> "_Clients":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def of(self, raw: RawImage) -> Client:
        given: DownloadJson = cast(FilePlace, raw.place).get("download", {})
        key = json.dumps(given, sort_keys=True)
        if key not in self._by_settings:
            client = Client(Download.model_validate(given))
            self._open.push_async_callback(client.session.close)
            self._by_settings[key] = client
        return self._by_settings[key]
