"""What benchmarks/gpu.py needs on a machine without network, in one tar: code, the small detector's weights,
and wheels of what such a machine seldom has.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.gpu import ROOT, commit

CODE = ("benchmarks", "train", "annotate", "pipeline")
WEIGHTS = ("annotate/mini/*.safetensors", "annotate/mini/*.json")
WHEELS = ("diffusers", "controlnet-aux")  # pure Python, and what they need is beside torch and transformers
LARGEST = 64 * 2**20  # bytes


def pack(out: Path, wheels: Path | None) -> None:  # wheels: a folder of them; None = pip downloads them
    """Prints the size and the lines to unpack and run it. ValueError where it is too large."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "COMMIT").write_text(f"{commit()}\n")
        found = sorted((wheels or downloaded(place)).glob("*.whl"))
        with tarfile.open(out, "w") as tar:
            tar.add(place / "COMMIT", "COMMIT")
            for path in (*files(), ROOT / "LICENSE", ROOT / "NOTICE"):
                tar.add(path, path.relative_to(ROOT))
            for wheel in found:
                tar.add(wheel, f"wheels/{wheel.name}")
    size = out.stat().st_size
    if size > LARGEST:
        raise ValueError(
            f"{out} has {size / 2**20:.1f} MiB, more than {LARGEST / 2**20:.0f}: leave wheels out"
        )
    install = "python3 -m pip install --no-index --no-deps --target site wheels/*.whl"
    print(f"{out}: {size / 2**20:.1f} MiB, with {', '.join(wheel.name for wheel in found) or 'no wheels'}")
    print("On the machine with the GPU, in an empty folder:")
    for line in (f"tar xf {out.name}", *([install] if found else [])):
        print(f"    {line}")
    print("    PYTHONPATH=site python3 benchmarks/gpu.py --out gpu.json")


def files() -> list[Path]:
    code = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    return sorted([*code, *(path for pattern in WEIGHTS for path in ROOT.glob(pattern))])


def downloaded(place: Path) -> Path:
    """The versions that are installed here, without what they require."""
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place / "wheels")]
    subprocess.run([*pip, *pinned], check=True)
    return place / "wheels"
