"""Images in object stores, and lists and folders there, through fsspec: s3://, gs://, az://, hf://."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from pipeline.manifest.download import Download
from pipeline.sources.columns import MAX_TEXT, first_line, plain
from pipeline.sources.far.addresses import scheme_of
from pipeline.sources.far.ahead import Share, in_order
from pipeline.sources.raw import Fetched, FilePlace, Gone, RawImage, ReadCaptions, Unreadable
from pipeline.sources.sidecars import read_text

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
# under which names file systems tell a version, and a time of writing
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "checksum", "sha256")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
LISTED = 16  # objects of one folder from which on the folder is listed, rather than each asked for


def read_object(raw: RawImage) -> bytes:
    """The raw bytes; raises Unreadable."""
    return _fetch(raw).data


def read_objects(raw_images: Sequence[RawImage]) -> Iterator[Fetched | Exception]:
    """What each address holds, in order, or why it can't be had."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        most = max(_settings(raw).concurrency for raw in raw_images)
        slots = asyncio.Semaphore(most)
        with ThreadPoolExecutor(most, "objects") as pool:

            async def ask(raw: RawImage, share: Share) -> Fetched:
                while True:
                    await share.room()  # never within a slot, which the reader may be waiting for
                    async with slots:
                        if not share.must_wait:
                            fetched = await loop.run_in_executor(pool, _fetch_both, raw)
                            share.add(len(fetched.data))
                            return fetched

            yield ask
            _ahead.clear()

    return in_order(raw_images, opened)


_ahead: dict[str, ReadCaptions] = {}  # captions that came with images which the reader has yet to take


def _fetch_both(raw: RawImage) -> Fetched:
    """The image, after the captions beside it, so that the reader waits for neither."""
    sidecar = cast(FilePlace, raw.place).get("sidecar")
    if sidecar:
        _ahead[sidecar] = _read_sidecar(raw, sidecar)
    return _fetch(raw)


def read_captions(raw: RawImage) -> ReadCaptions:
    """Those of the object that the listing saw beside the image."""
    sidecar = cast(FilePlace, raw.place).get("sidecar")
    if sidecar is None:
        return ReadCaptions(())
    return _ahead.pop(sidecar, None) or _read_sidecar(raw, sidecar)


def _read_sidecar(raw: RawImage, sidecar: str) -> ReadCaptions:
    place = cast(FilePlace, raw.place)
    settings = place.get("download", {}) | {"max_bytes": MAX_TEXT}
    try:
        data = _fetch(replace(raw, uri=sidecar, place={"root": "", "download": settings})).data
    except Unreadable as error:
        return ReadCaptions((), "" if str(error) == "empty file" else f"caption file: {error}")
    return read_text(data, sidecar.lower().endswith(".json"), place.get("encoding", "utf-8"))


def _settings(raw: RawImage) -> Download:
    return Download.model_validate(cast(FilePlace, raw.place).get("download", {}))


def _fetch(raw: RawImage) -> Fetched:
    """The stamp is asked for first: what changes meanwhile differs when it is looked at again."""
    if raw.problem:
        raise Unreadable(raw.problem)
    try:
        system, path = file_system(raw.uri)
        info = system.info(path)
        if info.get("type") == "directory":
            raise Unreadable("a folder, no object")
        most = _settings(raw).max_bytes
        if (info.get("size") or 0) > most:
            raise Unreadable(f"too large: {info['size']} bytes (download.max_bytes is {most})")
        data = system.cat_file(path)
    except Unreadable:
        raise
    except Exception as error:  # file systems raise what they like
        raise as_unreadable(error) from error
    if not data:
        raise Unreadable("empty file")
    if info.get("size") not in (None, len(data)):
        raise Unreadable("it changed while it was read")
    return Fetched(data, stamp_of_info(info))


def file_system(uri: str) -> tuple[Any, str]:
    """The file system of an address and the path there; raises Unreadable where its library is missing."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        raise Unreadable(lack(scheme_of(uri)) or first_line(error)) from error
    except ValueError as error:
        raise Unreadable(f"no address that can be read: {first_line(error)}") from error
    return system, path


def lack(scheme: str) -> str | None:
    """What to install where the library of a scheme is missing; None = it is here."""
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        extra = EXTRAS.get(scheme)
        remedy = f": pip install 'controlmill[{extra}]'" if extra else ""
        return f"{scheme}:// addresses need a library that is not installed{remedy}"
    except ValueError:
        return f"{scheme}:// is no kind of address that can be read"
    return None


def as_unreadable(error: Exception) -> Unreadable:
    """One line without the address, which stands beside it."""
    if isinstance(error, FileNotFoundError):
        return Unreadable("there is no such object", http_status=404)
    if isinstance(error, PermissionError):
        return Unreadable("access to the object is denied", http_status=403)
    name = type(error).__name__
    if "Credentials" in name:
        return Unreadable("no credentials for the store were found: set them as its own tools want them")
    return Unreadable(f"can't be read: {first_line(error)[:300]} ({name})")


def stamp_of_info(info: Mapping[str, Any]) -> str:
    """The version that a store tells, else the time and size; "" where it tells neither."""
    for key in VERSIONS:
        if info.get(key):
            return json.dumps({"etag": str(info[key])})
    for key in TIMES:
        if info.get(key):
            return json.dumps({"modified": _written(info[key]), "size": info.get("size")})
    return ""


def _written(time: Any) -> Any:
    """A store may tell the same time as a date and as seconds."""
    return plain(datetime.fromtimestamp(time, UTC) if isinstance(time, int | float) else time)


def look(raw_images: Sequence[RawImage], known: Mapping[str, str]) -> dict[str, str | Gone | None]:
    """The stamp that each address has now, by uri; None where it can't be asked now. Folders of which many
    objects are asked for are listed.
    """
    folders: dict[str, list[RawImage]] = defaultdict(list)
    for raw in raw_images:
        folders[raw.uri.rpartition("/")[0]].append(raw)
    stamps: dict[str, str | Gone | None] = {}
    single = []
    for folder, members in folders.items():
        listed = _listed(folder) if len(members) >= LISTED else None
        if listed is None:
            single += members
            continue
        for raw in members:
            stamps[raw.uri] = listed.get(raw.uri.rpartition("/")[2], Gone("there is no such object", 404))
    with ThreadPoolExecutor(32, "objects") as pool:
        answers = pool.map(_stamp_now, [raw.uri for raw in single])
        stamps |= {raw.uri: answer for raw, answer in zip(single, answers, strict=True)}
    return {raw.uri: stamps[raw.uri] for raw in raw_images}


def _listed(folder: str) -> dict[str, str | Gone | None] | None:
    """Name -> stamp of the objects in a folder; None where it can't be listed."""
    try:
        system, path = file_system(folder)
        entries = system.ls(path, detail=True)
    except Exception:  # then each object is asked for
        return None
    return {
        entry["name"].rpartition("/")[2]: stamp_of_info(entry)
        for entry in entries
        if entry.get("type") != "directory"
    }


def _stamp_now(uri: str) -> str | Gone | None:
    try:
        system, path = file_system(uri)
        return stamp_of_info(system.info(path))
    except FileNotFoundError:
        return Gone("there is no such object", 404)
    except Exception:  # the network's fault, or a right that is missing: not known now
        return None
