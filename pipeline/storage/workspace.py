"""Where things lie in a workspace, and the only ways to write there: whole files, renamed into place, or
whole objects of a bucket.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.storage import copies, faults, lease, stores

TEMPORARY = copies.UNFINISHED  # every unfinished file or folder carries this prefix; nothing else does
ASIDE = "damaged-"  # before the name of what lay in the place of a file
DAMAGED_CHECKPOINT = (
    "`controlmill verify WORKSPACE --repair` takes it out, and the next `controlmill run` trains what is then"
    " missing"
)

LOCK, LEASE = ".lock", "lease.json"  # of this machine; of the bucket
OWN_FILES = ("manifest.yaml", "catalog.duckdb", "libraries.json", "probe", "rebuild", "progress.json")
OWN_FOLDERS = ("spool", "shards", "samples", "scores", "checkpoints", "base", "report")


def canonical_json(value: Any) -> str:
    """The one spelling of a value that is hashed: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """16 hex digits of sha256 over canonical JSON: the identity of whatever `value` describes in full."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STOPPING = {
    errno.ENOSPC: ("The disk is full", "make room"), errno.EDQUOT: ("The disk quota is used up", "make room"),
    errno.EROFS: ("The disk is read-only", "make it writable"),
    errno.EACCES: ("Permission is denied", "mend the permissions"),
}  # fmt: skip


def stopping(error: BaseException, where: str = "") -> MillError | None:
    """The sentence for an error of the disk, after which going on is pointless; None for any other error.

    DuckDB and pyarrow may wrap the system's error, and then only their message tells.
    """
    number = error.errno if isinstance(error, OSError) else None
    for code, (what, remedy) in STOPPING.items():
        if number == code or os.strerror(code) in str(error):
            place = getattr(error, "filename", None) or where
            shown = f" ({place})" if place else ""
            return MillError(
                f"{what}{shown}: {remedy}, then run the same command again; everything committed so far is"
                " kept."
            )
    return None


FULL = (errno.ENOSPC, errno.EDQUOT)
MISPLACED = {
    errno.EISDIR: "A folder lies where a file belongs",
    errno.ENOTDIR: "A file lies where a folder belongs",
}


def misplaced(error: OSError) -> MillError | None:
    """The sentence for an error of the disk that tells that a folder lies where a file belongs, or the
    reverse; None for any other error.
    """
    what, place = MISPLACED.get(error.errno or 0), error.filename2 or error.filename
    if what is None or place is None:
        return None
    return MillError(f"{what} ({place}): move it away, then run the same command again.")


def set_aside(path: Path) -> Path:
    """Takes a damaged file out of a workspace; a folder that lies in its place is not ours, and stays under
    another name, which is returned.
    """
    if not path.is_dir() or path.is_symlink():
        copies.remove(path)
        return path
    number = 1
    while (aside := path.with_name(f"{ASIDE}{path.name}-{number}")).exists():
        number += 1
    return path.rename(aside)


@dataclass(frozen=True)
class Probe:
    """What a driver wrote into the workspace, so that others can prove that they see it."""

    path: Path
    token: str


def sees(probe: Probe) -> str:
    """Whether this machine reads what the driver wrote, and can write beside it: '' = it does, else what is
    wrong there, as the end of a sentence about the machine.
    """
    place = stores.shown(probe.path.parent)
    try:
        token = bytes(stores.read(probe.path)) if stores.address_of(probe.path) else probe.path.read_bytes()
    except FileNotFoundError:
        return f"does not see the workspace {place}"
    except (OSError, MillError) as error:
        return f"can't read the workspace {place} ({error})"
    if token.decode(errors="replace") != probe.token:
        return f"sees another folder at {place} than the driver does"
    own = probe.path.with_name(f"{probe.path.name}-{secrets.token_hex(4)}")
    try:
        _write_probe(own, "")
        copies.remove(own)
    except (OSError, MillError) as error:
        return f"can't write the workspace {place} ({error})"
    return ""


def _write_probe(path: Path, token: str) -> None:
    """Into a folder that is there: one that is made here proves nothing."""
    if stores.address_of(path):
        stores.put(path, token.encode())
    else:
        path.write_text(token)


@dataclass(frozen=True)
class Workspace:
    """A folder, or what lies below an address of a bucket: `root` is then the path of its local copies."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", stores.located(self.root))

    @property
    def address(self) -> str:
        """What people call it."""
        return stores.shown(self.root)

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a bucket."""
        return stores.address_of(self.root) is not None

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.yaml"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.duckdb"

    @property
    def libraries(self) -> Path:
        """What `controlmill verify --libraries` found last."""
        return self.root / "libraries.json"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def spool(self) -> Path:
        """What was read of streamed sources, so that it can be read again."""
        return self.root / "spool"

    @property
    def scratch(self) -> Path:
        """A folder of this machine for what is thrown away."""
        return stores.cache_folder() if self.is_remote else self.root

    def images(self, key: str, part: int) -> Path:
        return self.root / "shards" / "images" / key / _part(part)

    def changes(self, key: str, number: int) -> Path:
        """What a run noticed at the addresses of the images of a key."""
        return self.root / "shards" / "changes" / key / _part(number)

    def all_changes(self, key: str) -> list[Path]:
        """What runs noticed, in the order in which they did; a listing of a folder that has few files."""
        return _shards_below(self.changes(key, 0).parent)

    def captions(self, key: str, part: int) -> Path:
        return self.root / "shards" / "captions" / key / _part(part)

    def maps(self, condition: str, detector: str, part: int) -> Path:
        return self.root / "shards" / "maps" / condition / detector / _part(part)

    def texts(self, encoder: str, part: int) -> Path:
        return self.root / "shards" / "texts" / encoder / _part(part)

    def latents(self, base: str, part: int) -> Path:
        return self.root / "shards" / "latents" / base / _part(part)

    def samples(self, system: str, benchmark: str, part: int) -> Path:
        return self.root / "samples" / system / benchmark / _part(part)

    def scores(self, system: str, benchmark: str, part: int) -> Path:
        return self.root / "scores" / system / benchmark / _part(part)

    def run(self, name: str) -> Path:
        return self.root / "checkpoints" / name

    def all_shards(self) -> list[Path]:
        """By a walk through the folders, or a listing of the bucket."""
        tops = (self.root / top for top in ("shards", "samples", "scores"))
        return sorted(path for top in tops for path in _shards_below(top))

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def create(self) -> None:
        """Makes the folder and proves that it can be written, before any work is spent. MillError where it
        can't be.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self.probe():
                pass
        except OSError as error:
            if error.errno in FULL:
                raise stopping(error, str(self.root)) or error from error
            if self.is_remote:
                raise MillError(
                    f"The cache {self.root} can't be written ({error.strerror}): set {stores.CACHE} to a"
                    " folder that can be."
                ) from error
            raise MillError(
                f"The workspace {self.root} can't be written ({error.strerror}): "
                "set `workspace:` in the manifest to a folder that can be, or mend its permissions or disk."
            ) from error

    @contextmanager
    def probe(self) -> Iterator[Probe]:
        """Something that other machines can look for with `sees`, while the block lasts."""
        token = secrets.token_hex(8)
        # in a bucket one name, under its lease: what a killed driver left is written over and removed
        path = self.root / (f"{TEMPORARY}probe" if self.is_remote else f"{TEMPORARY}probe-{token}")
        try:
            _write_probe(path, token)
            yield Probe(path, token)
        finally:
            copies.remove(path)

    @contextmanager
    def lock(self, say: Callable[[str], None] = print) -> Iterator[Callable[[], bool]]:
        """Holds the workspace for one driver; the lock dies with its process, however that ends.

        Gives what tells whether it is still held: in a bucket another machine may take it from a driver that
        lost touch.

        MillError where another run holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise MillError(
                    f"Another run (process {file.read().strip() or '?'}) is working in {self.address}: wait"
                    " for it, or stop it."
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            if not self.is_remote:
                yield lambda: True
                return
            with lease.held(self.root / LEASE, say) as is_held:
                yield is_held

    def is_locked_here(self) -> bool:
        """Whether a driver works in it on this machine."""
        try:
            with (self.root / LOCK).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def sweep(self) -> int:
        """Removes what killed processes left unfinished; returns how many. Call it under the lock.

        It looks only where a run writes and follows no link: a workspace may lie in a folder that holds other
        things.
        """
        leftovers = [path for name in OWN_FILES for path in self.root.glob(f"{TEMPORARY}*{name}*")]
        leftovers += [
            Path(folder, name)
            for place in OWN_FOLDERS
            for folder, folders, files in os.walk(self.root / place)
            for name in (*folders, *files)
            if name.startswith(TEMPORARY)
        ]
        for path in leftovers:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(leftovers)


def workspace_at(place: str | Path) -> Workspace:
    """The workspace of a path or of an address of a bucket. MillError where it is another kind of address."""
    text = str(place)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Workspace(stores.local_copy(text))
    if stores.address_of(text):
        return Workspace(Path(text))
    return Workspace(Path(text).expanduser().resolve())


def _shards_below(folder: Path) -> list[Path]:
    pattern = "part-*.parquet"
    if stores.address_of(folder):
        return sorted(each.path for each in stores.below(folder) if each.path.match(pattern))
    return sorted(folder.rglob(pattern))


def _part(part: int) -> str:
    return f"part-{part:06d}.parquet"


def write_whole(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> bool:
    """Runs `write` on a temporary name beside `path`, syncs it to disk and renames it into place; in a bucket
    the file becomes an object by one request.

    With `replace=False` an existing file stays and False is returned: a worker that outlived its driver can
    never change a shard that a later driver has committed.
    """
    place = stores.located(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{place.name}")
    try:
        write(temporary)
        faults.reached("file written")
        if stores.address_of(path):
            return _write_object(path, temporary, replace=replace)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:  # file systems without hard links: the window is a rename wide
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
                if path.exists():
                    return False
                temporary.replace(path)
        _sync_folder(path.parent)
        faults.reached("file named")
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _write_object(path: Path, content: Path, *, replace: bool) -> bool:
    written = True
    if replace:
        stores.put(path, content)
    else:
        written = stores.put_new(path, content) is not None
    faults.reached("file named")
    copies.forget(path)  # of what was there before
    return written


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
