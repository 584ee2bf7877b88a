"""What the headers and the body of a server's answer mean."""

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from yarl import URL

from pipeline.sources.raw import Unreadable

REDIRECTS = {301, 302, 303, 307, 308}
GONE = {404, 410}
TEMPORARY = {408, 425, 429}  # and all of 5xx
VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def worded(status: int) -> str:
    try:
        return f"the server answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"the server answered {status}"


def is_temporary(status: int) -> bool:
    return status in TEMPORARY or status >= 500


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After, which may be a date; None where there is none that can be read."""
    given = headers.get("Retry-After", "").strip()
    if given.isdigit():
        return float(given)
    try:
        until = parsedate_to_datetime(given)
    except (ValueError, TypeError):
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def location(headers: Mapping[str, str], url: URL, status: int) -> URL:
    """Where a redirect leads; raises Unreadable."""
    given = headers.get("Location", "").strip()
    if not given:
        raise Unreadable(f"{worded(status)} and no Location", http_status=status)
    try:
        return url.join(URL(given)).with_fragment(None)
    except ValueError as error:
        raise Unreadable(f"{worded(status)} and a Location that is no address", http_status=status) from error


def forbidden_by(headers: Any, honoured: Sequence[str], agent: str) -> str | None:
    """The directive of X-Robots-Tag that keeps this image from us; `googlebot: noai` speaks to others."""
    name = agent.partition("/")[0].partition(" ")[0].lower()
    for value in headers.getall("X-Robots-Tag", []):
        ours = True
        for part in value.lower().split(","):
            token, colon, directive = (text.strip() for text in part.rpartition(":"))
            if colon and token not in VALUED and not token.startswith("unavailable_after"):
                ours = token == name
            if ours and directive in honoured:
                return directive
            if ours and directive == "none" and "noindex" in honoured:  # noindex and nofollow in one
                return directive
    return None


def check_size(size: int, most: int, status: int) -> None:
    """Raises Unreadable."""
    if size > most:
        raise Unreadable(f"too large: over {most} bytes (download.max_bytes)", http_status=status)


def refuse_pages(data: bytes, headers: Mapping[str, str], status: int) -> None:
    """Raises Unreadable where the data is a page of text, whatever its address is called."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (
        kind == "text/html" and start.startswith(b"<")
    ):
        raise Unreadable("not an image: the server sent a page of HTML", http_status=status)
    if start.startswith((b"<", b"{")) and kind and not kind.startswith("image/"):
        raise Unreadable(f"not an image: the server sent {kind[:60]}", http_status=status)


def unpacked(body: bytes, encoding: str, most: int, status: int) -> bytes:
    """The bytes as they were before the server packed them; raises Unreadable."""
    if not body:
        raise Unreadable("empty file", http_status=status)
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Unreadable(f"the server packed it as {encoding[:20]!r}, not asked to", http_status=status)
    raw = encoding == "deflate" and body[0] & 0x0F != 8  # without zlib's header, as some servers send it
    packed = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
    try:
        data = packed.decompress(body, most + 1)
    except zlib.error as error:
        raise Unreadable(f"the server's {encoding} is broken", http_status=status) from error
    check_size(len(data), most, status)
    if not packed.eof:
        raise Unreadable(f"the server's {encoding} is not whole", http_status=status)
    return data


def stamp_of_headers(headers: Mapping[str, str]) -> str:
    """What tells this version of a file from another: its ETag, else when it was written and its size; ""
    where the server says neither.
    """
    if tag := headers.get("ETag", "").strip():
        return json.dumps({"etag": tag})
    if modified := headers.get("Last-Modified", "").strip():
        return json.dumps({"modified": modified, "size": headers.get("Content-Length", "")})
    return ""


def validators(stamp: str) -> dict[str, str]:
    """Headers that ask only for another version than that of the stamp."""
    try:
        known = json.loads(stamp or "{}")
    except ValueError:
        return {}
    if "etag" in known:
        return {"If-None-Match": known["etag"]}
    return {"If-Modified-Since": known["modified"]} if "modified" in known else {}
