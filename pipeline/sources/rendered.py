"""Rendered scenes as a source: an address is a seed and a number, and the raw file is the PNG of what it
renders to.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import cast
from urllib.parse import urlencode

from annotate.maps import RawMap
from pipeline import scenes
from pipeline.manifest import Image, ScenesSource
from pipeline.scenes import Limits
from pipeline.sources.raw import LimitsJson, ListingContext, RawImage, ReadCaptions, ScenePlace, Unreadable
from pipeline.storage import codec


def list_scenes(source: ScenesSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """`count` scenes of a seed, at the resolution of the canonical image."""
    limits = Limits(source.most_objects, source.least_box, source.least_visible)
    query = "" if limits == Limits() else "?" + urlencode(asdict(limits))
    for index in range(source.count):
        place: ScenePlace = {"seed": source.seed, "index": index, "size": image.resolution}
        if query:
            place["limits"] = LimitsJson(
                most_objects=limits.most_objects,
                least_box=limits.least_box,
                least_visible=limits.least_visible,
            )
        yield RawImage(f"scene://{source.seed}/{index}{query}", reader="scene", place=place)


def read_scene(raw: RawImage) -> bytes:
    """The PNG of the scene."""
    return codec.encode(_render(raw).image, "png")


def read_captions(raw: RawImage) -> ReadCaptions:
    """What is there and where."""
    return ReadCaptions((_render(raw).caption,))


def truth(raw: RawImage, conditions: list[str]) -> dict[str, RawMap | Exception]:
    """The maps that the renderer knows exactly."""
    maps = _render(raw).maps
    absent = Unreadable("a scene does not come with this map")
    return {name: maps.get(name, absent) for name in conditions}


def _render(raw: RawImage) -> scenes.Scene:
    place = cast(ScenePlace, raw.place)
    limits = Limits(**place["limits"]) if "limits" in place else Limits()
    return _rendered(place["seed"], place["index"], place["size"], limits)


@lru_cache(maxsize=1)  # its picture, its caption and its maps are asked for one after the other
def _rendered(seed: int, index: int, size: int, limits: Limits) -> scenes.Scene:
    return scenes.render(seed, index, size, limits)
