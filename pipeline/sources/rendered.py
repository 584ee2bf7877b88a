"""Rendered scenes as a source: an address is a seed and a number, and the raw file is the PNG of what it
renders to.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from annotate.maps import RawMap
from pipeline import scenes
from pipeline.manifest import Image, ScenesSource
from pipeline.scenes import Limits
from pipeline.sources.raw import RawImage, Unreadable
from pipeline.storage import codec


def list_scenes(source: ScenesSource, image: Image) -> Iterator[RawImage]:
    """`count` scenes of a seed, at the resolution of the canonical image."""
    limits = Limits(source.most_objects, source.least_box, source.least_visible)
    asked, kept = (
        ({}, "") if limits == Limits() else ({"limits": asdict(limits)}, "?" + urlencode(asdict(limits)))
    )
    for index in range(source.count):
        place = {"seed": source.seed, "index": index, "size": image.resolution} | asked
        yield RawImage(f"scene://{source.seed}/{index}{kept}", "", reader="scene", place=place)


def read_scene(raw: RawImage) -> tuple[bytes, str]:
    """The PNG of the scene, and what is there and where."""
    made = _render(raw)
    return codec.encode(made.image, "png"), made.caption


def truth(raw: RawImage, conditions: list[str]) -> dict[str, RawMap | Exception]:
    """The maps that the renderer knows exactly."""
    maps: dict[str, Any] = _render(raw).maps
    return {name: maps.get(name, Unreadable("a scene does not come with this map")) for name in conditions}


def _render(raw: RawImage) -> scenes.Scene:
    limits = Limits(**raw.place.get("limits", {}))
    return scenes.render(**raw.place | {"limits": limits})
