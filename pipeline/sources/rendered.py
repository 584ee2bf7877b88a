"""Rendered scenes as a source: an address is a seed and a number, and the raw file is the PNG of what it renders to."""

from collections.abc import Iterator
from typing import Any

from annotate.maps import RawMap
from pipeline import canonical, scenes
from pipeline.canonical import Unreadable
from pipeline.manifest import Image, ScenesSource
from pipeline.sources.raw import RawImage


def list_scenes(source: ScenesSource, image: Image) -> Iterator[RawImage]:
    """`count` scenes of a seed, at the resolution of the canonical image."""
    for index in range(source.count):
        place = {"seed": source.seed, "index": index, "size": image.resolution}
        yield RawImage(f"scene://{source.seed}/{index}", "", reader="scene", place=place)


def read_scene(raw: RawImage) -> tuple[bytes, str]:
    """The PNG of the scene, and what is there and where."""
    made = scenes.render(**raw.place)
    return canonical.encode(made.image, "png"), made.caption


def truth(raw: RawImage, conditions: list[str]) -> dict[str, RawMap | Exception]:
    """The maps that the renderer knows exactly."""
    maps: dict[str, Any] = scenes.render(**raw.place).maps
    return {name: maps.get(name, Unreadable("a scene does not come with this map")) for name in conditions}
