"""SHA256SUMS of a folder, as the command of that name writes and reads it: whether its files are those that
were written.
"""

from pathlib import Path

from train.weights_file import sha256_of

SUMS = "SHA256SUMS"


def write(folder: Path) -> None:
    """Of all that lies there now."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def problems(folder: Path) -> list[str]:  # none = it is whole, or was written without sums
    """A sentence for each file that is not what was written."""
    try:
        lines = (folder / SUMS).read_bytes().decode().splitlines()
    except FileNotFoundError:
        return []
    except (ValueError, IsADirectoryError):
        return [f"{folder / SUMS} is damaged"]
    return [wrong for line in lines if (wrong := _problem(folder, line))]


def _problem(folder: Path, line: str) -> str:
    wanted, _, name = line.partition("  ")
    if len(wanted) != 64 or Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{folder / SUMS} is damaged"
    if not (folder / name).is_file():
        return f"{folder / name} is missing"
    if sha256_of(folder / name) != wanted:
        return f"{folder / name} is not the file of {SUMS}"
    return ""
