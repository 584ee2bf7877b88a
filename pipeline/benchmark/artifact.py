"""A benchmark as a folder that others enter without a workspace: the files of one condition, and reading them
back. `pipeline/commands/benchmark.py` writes it; docs/benchmark.md has the format for people.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.benchmark.resemblance import Code
from pipeline.benchmark.tasks import Asked, FrozenTask
from pipeline.storage.workspace import sha256_file

FORMAT = 1
FILE, PROMPTS, HINTS, RAW_HINTS, IMAGES, PARQUET = (
    "benchmark.json",
    "prompts.csv",
    "hints",
    "hints-raw",
    "images",
    "test.parquet",
)
COLUMNS = ("file", "hint", "shuffled_hint", "prompt", "seed", "width", "height")  # of PROMPTS
MOST = 64 * 2**20  # bytes of benchmark.json: some 50,000 images


@dataclass(frozen=True)
class PublishedTask:
    """The task of one condition, and what is told about it: the content of benchmark.json."""

    name: str  # of the benchmark
    title: str  # of the condition
    kind: str  # of its maps
    task: FrozenTask
    reader: str  # detector and fingerprint of what reads the condition again
    protocol: dict[str, Any]  # how the systems of its makers made their pictures
    licence: str  # of the images
    made_by: str  # "controlmill 0.1.0"
    held_out: dict[str, Code]  # by image id
    files: dict[str, str]  # path below the folder -> sha256

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "task": self.task.identity,
            "name": self.name,
            "condition": self.task.condition,
            "title": self.title,
            "kind": self.kind,
            "split": self.task.split,
            "seeds": list(self.task.seeds),
            "images": len(self.task.items),
            "samples": len(self.task.items) * len(self.task.seeds),
            "maker": self.task.maker,
            "reader": self.reader,
            "protocol": self.protocol,
            "licence": self.licence,
            "made_by": self.made_by,
            "items": [asdict(item) for item in self.task.items],
            "held_out": {image_id: code.stored() for image_id, code in self.held_out.items()},
            "files": self.files,
        }


def read(folder: Path) -> PublishedTask:
    """MillError in one sentence: no benchmark, of a later format, or not as it was exported."""
    path = folder / FILE
    try:
        if not path.is_file():
            raise MillError(
                f"{folder} is no benchmark of one condition (it has no {FILE}): name the folder of a"
                " condition below what `controlmill benchmark export` wrote."
            )
        if path.stat().st_size > MOST:
            raise MillError(f"{path} is too large for a {FILE} (over {MOST:,} bytes): get it again.")
        stored = json.loads(path.read_bytes())
        found = _published(stored, path)
    except OSError as error:
        raise MillError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)[:200]
        raise MillError(f"{path} is no {FILE} of this program ({told}): get it again.") from error
    if stored["task"] != found.task.identity:
        raise MillError(
            f"{path} was changed: it is said to be task {stored['task']!s:.16}, and its items make"
            f" {found.task.identity}. Get it again."
        )
    return found


def changed(folder: Path, files: dict[str, str]) -> list[str]:
    """A sentence for each file that is not as it was exported."""
    sentences = []
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            sentences.append(f"{path} is missing: get the benchmark again.")
        elif sha256_file(path) != sha256:
            sentences.append(f"{path} is not as it was exported: get the benchmark again.")
    return sentences


def _published(stored: Any, path: Path) -> PublishedTask:
    form = stored["format"]
    if form != FORMAT:
        raise MillError(
            f"{path} is of format {form!r:.20}, and this version reads {FORMAT}: update ControlMill."
            if isinstance(form, int) and form > FORMAT
            else f"{path} is of format {form!r:.20}, which was never written: get it again."
        )
    for name in stored["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise MillError(f"{path} names the file {name!r:.80} outside its folder: get it again.")
    items = tuple(
        Asked(
            image_id=_text(item["image_id"]),
            caption=_text(item["caption"]),
            width=_size(item["width"]),
            height=_size(item["height"]),
            map=_text(item["map"]),
        )
        for item in stored["items"]
    )
    task = FrozenTask(
        condition=_text(stored["condition"]),
        split=_text(stored["split"]),
        maker=_text(stored["maker"]),
        seeds=tuple(int(seed) for seed in stored["seeds"]),
        items=items,
    )
    return PublishedTask(
        name=_text(stored["name"]),
        title=_text(stored["title"]),
        kind=_text(stored["kind"]),
        task=task,
        reader=_text(stored["reader"]),
        protocol=dict(stored["protocol"]),
        licence=_text(stored["licence"]),
        made_by=_text(stored["made_by"]),
        held_out={image_id: Code.read(code) for image_id, code in stored["held_out"].items()},
        files={name: _text(sha256) for name, sha256 in stored["files"].items()},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is expected where {value!r:.40} is")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= 16384:
        raise ValueError(f"a side of 1 to 16384 pixels is expected where {value!r:.40} is")
    return value
