"""A Python wheel made by hand, for pip to download or install where a builder would want the network."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

FACTS = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str | bytes]) -> Path:
    """`files` by path in the wheel; {about} in a path is the folder of its metadata."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = f"{stem}.dist-info"
    place = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    own = {f"{about}/METADATA": metadata, f"{about}/WHEEL": FACTS, f"{about}/RECORD": ""}
    with zipfile.ZipFile(place, "w") as wheel:
        for path, content in ({it.format(about=about): files[it] for it in files} | own).items():
            wheel.writestr(path, content)
    return place
