"""A few images through a few conditions, with no workspace: what a dataset builder tries first."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from annotate import annotator, maps
from annotate.annotator import Step
from pipeline import MillError, sources
from pipeline.dataset.images import canonical
from pipeline.manifest import Image
from pipeline.sources import RawImage
from pipeline.sources.raw import Unreadable
from pipeline.storage import codec
from pipeline.storage.workspace import write_whole


@dataclass(frozen=True)
class Drawing:
    """What became of one condition of one image; `condition` is '' where the image could not be read."""

    image: Path
    condition: str
    status: str  # ok, skipped, failed
    reason: str = ""
    path: Path | None = None  # the file written: also of a skipped map that is there, but empty


def detect(images: tuple[Path, ...], names: tuple[str, ...], out: Path, resolution: int) -> Iterator[Drawing]:
    """Image by image; what fails stops nothing."""
    steps = {step.condition: step for name in names for step in chain(name)}
    made_here: set[Path] = set()
    for path in images:
        try:
            data = sources.read(RawImage(str(path), ""))
            canonical_image = canonical(data, Image(resolution=resolution, store="png"))
        except Unreadable as error:
            yield Drawing(path, "", "failed", str(error))
            continue
        pixels = codec.decode(canonical_image.encoded)
        drawn = annotator.annotate([pixels], [sources.image_id(data)], list(steps.values()))
        for name in names:
            one = drawn[name][0]
            if one.map is None:
                yield Drawing(path, name, one.status, one.reason)
                continue
            target = out / f"{path.stem}.{name}.png"
            if target in made_here:  # of another image of that name
                target = out / f"{path.stem}-{sources.image_id(data)[:8]}.{name}.png"
            made_here.add(target)
            picture = codec.encode(maps.render(one.map), "png")
            write_whole(target, lambda temporary, picture=picture: temporary.write_bytes(picture))  # type: ignore[misc]
            yield Drawing(path, name, one.status, one.reason, target)


def chain(condition: str) -> list[Step]:
    """The condition's step by the detector that `auto` means here, after those of the conditions it is made
    from. MillError where there is no such condition, or one of them can't be made here.
    """
    try:
        return annotator.chain(condition, annotator.resolve)
    except ValueError as error:
        raise MillError(str(error)) from error
