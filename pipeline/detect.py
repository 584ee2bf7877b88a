"""A few images through a few conditions, with no workspace: what a dataset builder tries first."""

from collections.abc import Iterator
from pathlib import Path

from annotate import annotator, maps
from annotate.annotator import Step
from pipeline import MillError, canonical, sources
from pipeline.canonical import Unreadable
from pipeline.manifest import Image
from pipeline.sources import RawImage
from pipeline.workspace import write_whole


def detect(images: tuple[Path, ...], names: tuple[str, ...], out: Path, resolution: int) -> Iterator[tuple[Path, str]]:
    """Yields each file made with '', or each image and what was wrong with it."""
    steps: dict[str, Step] = {}
    made_here: set[Path] = set()
    for name in names:
        _plan(name, steps)
    for path in images:
        try:
            data, _ = sources.read(RawImage(str(path), ""))
            made = canonical.canonical(data, Image(resolution=resolution, store="png"))
        except Unreadable as error:
            yield path, str(error)
            continue
        pixels = canonical.decode(made.encoded)
        drawn = annotator.annotate([pixels], [sources.image_id(data)], list(steps.values()))
        for name in names:
            one = drawn[name][0]
            if one.map is None:
                yield path, f"{name}: {one.reason}"
                continue
            target = out / f"{path.stem}.{name}.png"
            if target in made_here:  # of another image of that name
                target = out / f"{path.stem}-{sources.image_id(data)[:8]}.{name}.png"
            made_here.add(target)
            picture = canonical.encode(maps.render(one.map), "png")
            write_whole(target, lambda temporary, picture=picture: temporary.write_bytes(picture))  # type: ignore[misc]
            yield target, ""


def _plan(name: str, steps: dict[str, Step]) -> None:
    """Adds a condition after those it is made from, each once."""
    if name in steps:
        return
    try:
        step = annotator.resolve(name)
    except ValueError as error:
        raise MillError(str(error)) from error
    if step.parent:
        _plan(step.parent, steps)
    steps[name] = step
