"""Addresses that are no paths: which reader takes each, and what it must know beside it."""

import re
from dataclasses import replace
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from pipeline.manifest.download import Download
from pipeline.sources.raw import RawImage, clean

WEB = {"http", "https"}
OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(address: str) -> str:
    """In lower case; "" of a path."""
    match = SCHEME.match(address)
    return match[1].lower() if match else ""


def reader_of(address: str) -> str | None:
    """`url` of the web's addresses, `object` of those of object stores, None of all else."""
    scheme = scheme_of(address)
    return "url" if scheme in WEB else "object" if scheme in OBJECTS else None


def far(raw: RawImage, cell: str | None, download: Download) -> RawImage:
    """The image at the address that a row's cell holds; `raw` where the cell holds none."""
    reader = reader_of((cell or "").strip())
    if cell is None or reader is None:
        return raw
    address, login = split_login(clean(cell.strip()))
    settings = download.model_dump(mode="json", exclude_defaults=True)  # places stay small
    place = {**raw.place, "download": settings} | ({"login": login} if login else {})
    return replace(raw, uri=address, reader=reader, place=cast(Any, place), stamp="")


def split_login(address: str) -> tuple[str, str]:
    """The address without user and password, and those, which no catalog keeps."""
    scheme, mark, rest = address.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, plain_host = host.rpartition("@")
    return (f"{scheme}{mark}{plain_host}{rest[len(host) :]}", login) if at else (address, "")


def local_path(address: str) -> str:
    """The path of a file:// address; other addresses and paths as they are."""
    if scheme_of(address) != "file":
        return address
    parts = urlsplit(address)
    return unquote(parts.path) if parts.netloc in ("", "localhost") else address
