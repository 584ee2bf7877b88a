"""What torch.compile needs of a machine: Triton and a C compiler for a GPU's kernels, a C++ compiler for a
CPU's, and Python's headers for both.
"""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from train.options import Options

# what is looked for where neither CC nor CXX names a compiler
C, CXX = ("gcc", "clang"), ("g++", "clang++")


def lacking(device: str) -> str | None:
    """What is missing here, in words; None = torch.compile works."""
    cuda = device.startswith("cuda")
    missing = []
    if cuda and importlib.util.find_spec("triton") is None:
        missing.append("the package triton")
    named = os.environ.get("CC" if cuda else "CXX", "").split()
    if not any(shutil.which(name) for name in (named[:1] or (C if cuda else CXX))):
        missing.append(f"a compiler ({named[0]})" if named else f"a compiler ({(C if cuda else CXX)[0]})")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("Python's headers (Python.h)")
    return " and ".join(missing) or None


def note(options: Options, device: str) -> list[str]:  # a sentence to log, or none
    """Of a run that asks for what this machine can't do."""
    missing = lacking(device) if options.compile else None
    if missing is None:
        return []
    return [f"compile: true needs {missing}: this machine lacks that, so the run trains without the compiler"]
