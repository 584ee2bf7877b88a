"""A few images through a few conditions, with no workspace: what a dataset builder tries first."""

from collections.abc import Iterator
from pathlib import Path

from annotate import annotator, maps
from annotate.annotator import Step
from pipeline import MillError, sources
from pipeline.manifest import Image
from pipeline.sources import RawImage, Unreadable
from pipeline.workspace import write_whole


def detect(images: tuple[Path, ...], names: tuple[str, ...], out: Path, resolution: int) -> Iterator[tuple[Path, str]]:
    """Yields each file made with '', or each image and what was wrong with it."""
    steps: list[Step] = []
    for name in names:
        try:
            step = annotator.resolve(name)
            if step.parent and step.parent not in [it.condition for it in steps]:
                steps.insert(0, annotator.resolve(step.parent))
            steps.append(step)
        except ValueError as error:
            raise MillError(str(error)) from error
    for path in images:
        try:
            data, _ = sources.read(RawImage(str(path), ""))
            made = sources.canonical(data, Image(resolution=resolution, store="png"))
        except Unreadable as error:
            yield path, str(error)
            continue
        pixels = sources.decode(made.encoded)
        drawn = annotator.annotate([pixels], [sources.image_id(data)], steps)
        for name in names:
            one = drawn[name][0]
            if one.map is None:
                yield path, f"{name}: {one.reason}"
                continue
            target = out / f"{path.stem}.{name}.png"
            picture = sources.encode(maps.render(one.map), "png")
            write_whole(target, lambda temporary, picture=picture: temporary.write_bytes(picture))  # type: ignore[misc]
            yield target, ""
