"""Objects by path: where a workspace lies in a bucket, every path is that of the local copy of its object.

The local copy of s3://bucket/key is `<cache>/s3:/bucket/key`, so that a path tells its address itself and
means the same on every machine. Functions here take such paths and paths of plain files alike where that is
said.
"""

import functools
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pipeline import MillError

SCHEMES = ("s3", "gs", "az")
CACHE = "CONTROLMILL_CACHE"  # environment variable
# how long a request is tried: 5xx, 429, torn connections and timeouts are tried again, with jitter
PATIENCE = {"retries": 10, "seconds": 180.0, "longest_wait": 15.0}
FIRST_PATIENCE = {"retries": 5, "seconds": 20.0, "longest_wait": 2.0}  # before any work
CONNECT_SECONDS, SILENCE_SECONDS, REQUEST_SECONDS = 5.0, 120.0, 600.0
TRIES = 4  # of a request that the library does not try again
# so it says of a conditional PUT, and of an answer that broke off: a listing, a deletion
TIMEOUT, TORN = "Timeout", "response body"
LISTED = 1000  # objects that a listing gives at a time
PART_BYTES = 16 * 2**20  # of a multipart upload
NEEDS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), AWS_REGION, and AWS_ENDPOINT_URL"
    " where the store is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
Answer = TypeVar("Answer")


class StoreError(MillError):
    """The store refuses, or does not answer: nothing is known of its objects."""


@dataclass(frozen=True)
class ObjectFacts:
    """Of an object, without its content."""

    path: Path
    bytes: int
    etag: str


@dataclass(frozen=True)
class Version:
    """Of an object: what a condition of a request names, an ETag and what some stores have beside it."""

    etag: str
    number: str | None


# -- addresses -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where local copies lie: $CONTROLMILL_CACHE, else a folder of this user among the temporary ones."""
    chosen = os.environ.get(CACHE)
    return (
        Path(chosen).expanduser().absolute()
        if chosen
        else Path(tempfile.gettempdir()) / f"controlmill-cache-{os.getuid()}"
    )


def address_of(path: Path | str) -> str | None:
    """The address of a path's object; None where it is a path of this machine alone."""
    parts = Path(path).parts
    for number, part in enumerate(parts):
        if part.endswith(":") and part[:-1] in SCHEMES and number + 1 < len(parts):
            return f"{part}//{'/'.join(parts[number + 1 :])}"
    return None


def local_copy(address: str) -> Path:
    """The path of an address. MillError where it names no bucket, or has steps that no key can have."""
    scheme, _, rest = address.partition("://")
    steps = rest.rstrip("/").split("/")
    if scheme not in SCHEMES or not steps[0] or any(step in ("", ".", "..") for step in steps):
        raise MillError(
            f"{address!r} is no address of a bucket: write s3://bucket/prefix (or gs://, az://), without"
            " `//`, `.` and `..` in the prefix."
        )
    return cache_folder().joinpath(f"{scheme}:", *steps)


def located(path: Path) -> Path:
    """The path on this machine, whichever machine's it is: caches lie in other places there."""
    address = address_of(path)
    return local_copy(address) if address else path


def shown(path: Path) -> str:
    """What a person is told: the address where there is one."""
    return address_of(path) or str(path)


def _split(path: Path) -> tuple[str, str, str]:
    """Scheme, bucket, key."""
    address = address_of(path)
    assert address is not None, f"{path} has no address"
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


# -- stores ----------------------------------------------------------------------------------------------


@functools.lru_cache(None)
def _store(scheme: str, bucket: str, patient: bool) -> Any:
    """As the environment says it, in the variables that the vendors' own tools read."""
    import obstore.store as makers

    limits = PATIENCE if patient else FIRST_PATIENCE
    options: dict[str, Any] = {
        "client_options": {
            "allow_http": True,  # only where the endpoint says http
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=SILENCE_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        },
        "retry_config": {
            "max_retries": int(limits["retries"]),
            "retry_timeout": timedelta(seconds=limits["seconds"]),
            "backoff": {"max_backoff": timedelta(seconds=limits["longest_wait"])},
        },
    }
    try:
        if scheme == "s3":
            return makers.S3Store(bucket, **options, **_s3_credentials(bucket))
        if scheme == "gs":
            return makers.GCSStore(bucket, **options, **_emulator())
        return makers.AzureStore(bucket, **options)
    except MillError:
        raise
    except Exception as error:
        raise StoreError(
            f"{scheme}://{bucket} can't be opened ({_first_line(error)}): set {NEEDS[scheme]}."
        ) from error


def _s3_credentials(bucket: str) -> dict[str, Any]:
    """Keys of the environment as they are; profiles, single sign-on and roles as botocore finds them, where
    it is installed.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3")
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return options
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return options
    try:
        return {**options, "credential_provider": Boto3CredentialProvider()}
    except (ValueError, BotoCoreError) as error:
        raise StoreError(
            f"There are no credentials for s3://{bucket} ({_first_line(error)}): set {NEEDS['s3']}."
        ) from error


def _emulator() -> dict[str, Any]:
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    return {"base_url": host, "skip_signature": True} if host else {}


def asked(path: Path, ask: Callable[[Any, str], Answer], *, patient: bool = True) -> Answer:
    """`ask(store, key)`; what a store raises as a sentence.

    FileNotFoundError where there is no such object; obstore's own where a condition of the request failed.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

    scheme, bucket, key = _split(path)
    try:
        return _tried(lambda: ask(_store(scheme, bucket, patient), key), TORN)
    except (AlreadyExistsError, NotModifiedError, PreconditionError):
        raise
    except FileNotFoundError as error:
        if _missing_bucket(error):
            raise _sentence(scheme, bucket, error) from error
        raise FileNotFoundError(f"there is no object {shown(path)}") from None
    except (BaseError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of this machine's disk
            raise
        raise _sentence(scheme, bucket, error) from error


def _missing_bucket(error: Exception) -> bool:
    return any(word in str(error) for word in ("NoSuchBucket", "ContainerNotFound", "bucket does not exist"))


def _sentence(scheme: str, bucket: str, error: Exception) -> StoreError:
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    said, where = str(error), f"{scheme}://{bucket}"
    if _missing_bucket(error):
        return StoreError(f"There is no bucket {where}: make it, or mend its name in `workspace:`.")
    if isinstance(error, UnauthenticatedError) or any(
        word in said
        for word in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AuthFailure")
    ):
        return StoreError(
            f"The store does not know the credentials for {where} ({_code(said)}): set {NEEDS[scheme]}."
        )
    if isinstance(error, PermissionDeniedError) or "AccessDenied" in said:
        return StoreError(
            f"Access to {where} is denied ({_code(said)}): give these credentials leave to read, write, list"
            f" and delete there, or set others ({NEEDS[scheme]})."
        )
    if "redirect" in said.lower():
        return StoreError(f"{where} lies in another region: set AWS_REGION to it.")
    if any(word in said for word in ("error sending request", "Timeout", "timed out", "dns error")):
        return StoreError(
            f"The store of {where} does not answer ({_first_line(error)}): check the network"
            f"{' and AWS_ENDPOINT_URL' if scheme == 's3' else ''}, then run the same command again;"
            " everything committed so far is kept."
        )
    return StoreError(
        f"The store of {where} failed ({_first_line(error)}): run the same command again; everything"
        " committed so far is kept."
    )


def _code(said: str) -> str:
    _, found, after = said.partition("<Code>")
    return after.partition("<")[0] if found else said.splitlines()[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". :")


def reach(path: Path) -> None:
    """Before any work: the store of a workspace answers and knows the bucket and the credentials.

    StoreError, soon, where it does not. Nothing is done for a plain path.
    """
    if address_of(path):
        with suppress(FileNotFoundError):
            asked(path / "manifest.yaml", lambda store, key: store.get(key).meta, patient=False)


# -- objects ---------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    """All bytes of an object, as a buffer. FileNotFoundError where there is none."""
    return asked(path, lambda store, key: store.get(key).bytes())


def read_version(path: Path) -> tuple[bytes, Version]:
    """All bytes of a small object with its version."""

    def ask(store: Any, key: str) -> tuple[bytes, Version]:
        answer = store.get(key)
        return bytes(answer.bytes()), Version(answer.meta["e_tag"] or "", answer.meta.get("version"))

    return asked(path, ask)


def head(path: Path) -> ObjectFacts | None:
    """What there is of an object; None where there is none."""
    try:
        meta = asked(path, lambda store, key: store.head(key))
    except FileNotFoundError:
        return None
    return ObjectFacts(path, meta["size"], meta["e_tag"] or "")


def put(path: Path, content: bytes | Path) -> str:
    """Writes an object whole, in place of what is there; a large file in parts. Returns its ETag."""
    return _put(path, content, None).etag


def put_new(path: Path, content: bytes | Path) -> Version | None:
    """Writes an object where there is none, by one conditional request; None where there is one, which stays.

    It may be one's own, where the answer to the first try was lost on its way.
    """
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    try:
        return _put(path, content, "create")
    except (AlreadyExistsError, PreconditionError):
        return None
    except StoreError as error:
        if "NotImplemented" not in str(error.__cause__):  # a store without conditional requests
            raise
    return None if head(path) else _put(path, content, None)


def put_in_place_of(path: Path, content: bytes, version: Version, *, patient: bool = True) -> Version | None:
    """Writes an object if what is there is this version; returns the new one, None where it is another.

    It may be one's own, where the answer to the first try was lost on its way.
    """
    from obstore.exceptions import PreconditionError

    try:
        given = {"e_tag": version.etag} | ({"version": version.number} if version.number else {})
        return _put(path, content, given, patient=patient)
    except (PreconditionError, FileNotFoundError):
        return None


def _put(path: Path, content: bytes | Path, mode: Any, *, patient: bool = True) -> Version:
    def ask(store: Any, key: str) -> Version:
        # a Path is read in parts, and in whole where the request has a condition
        given = content.read_bytes() if isinstance(content, Path) and mode else content
        answer = store.put(key, given, mode=mode, chunk_size=PART_BYTES)
        return Version(answer["e_tag"] or "", answer.get("version"))

    return _tried(lambda: asked(path, ask, patient=patient), TIMEOUT)


def delete(path: Path) -> None:
    """Nothing where there is none."""
    with suppress(FileNotFoundError):
        asked(path, lambda store, key: store.delete(key))


def delete_all(paths: Sequence[Path]) -> None:
    """Objects of one bucket, a thousand with a request."""
    if paths:
        keys = [_split(path)[2] for path in paths]
        with suppress(FileNotFoundError):
            asked(paths[0], lambda store, _: store.delete(keys))


def below(folder: Path) -> Iterator[ObjectFacts]:
    """Every object below a folder, in the order of the keys; a request for each thousand."""
    _, _, prefix = _split(folder)
    last: str | None = None  # key; a listing that breaks off goes on behind it
    while True:
        chunk = _listed(folder, prefix, last)
        for meta in chunk:
            last = meta["path"]
            relative = meta["path"][len(prefix) + 1 if prefix else 0 :]
            yield ObjectFacts(folder / relative, meta["size"], meta["e_tag"] or "")
        if len(chunk) < LISTED:
            return


def _listed(folder: Path, prefix: str, after: str | None) -> Sequence[Any]:
    """The first objects behind that key."""

    def ask(store: Any, _: str) -> Sequence[Any]:
        return next(store.list(prefix or None, offset=after, chunk_size=LISTED), [])

    return asked(folder, ask)


def _tried(ask: Callable[[], Answer], said: str) -> Answer:
    """Once more where the library itself does not try again: after an error that says so."""
    for tries in range(1, TRIES + 1):
        try:
            return ask()
        except Exception as error:  # the library's own, or a sentence about one
            if tries == TRIES or said not in str(error.__cause__ if isinstance(error, StoreError) else error):
                raise
            time.sleep(secrets.randbelow(1000) / 1000)
    raise AssertionError("unreachable")
