"""Stored pictures are decoded before a network asks for them, and in the order of asking."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annotate.annotator import DETECTORS, resolve
from annotate.maps import RawMap
from pipeline.manifest import Image
from pipeline.stages import annotate
from pipeline.storage import codec

WAIT = 10.0  # seconds after which a thread that should have come is given up


def stored(count: int) -> list[bytes]:
    return [codec.encode(np.full((8, 8, 3), number, np.uint8), "png") for number in range(count)]


def test_the_next_pictures_are_decoded_while_nobody_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, begun = codec.decode, [threading.Event() for _ in range(6)]

    def decode(encoded: bytes) -> np.ndarray:
        pixels = plain(encoded)
        begun[pixels[0, 0, 0]].set()
        return pixels

    monkeypatch.setattr(codec, "decode", decode)
    pictures = codec.decode_ahead(stored(6), ahead=3)
    assert not begun[0].is_set()
    assert next(pictures).max() == 0
    assert all(each.wait(WAIT) for each in begun[:4]) and not begun[4].is_set()
    assert [int(pixels.max()) for pixels in pictures] == [1, 2, 3, 4, 5]


def test_with_none_ahead_a_picture_is_decoded_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, decoded = codec.decode, []

    def decode(encoded: bytes) -> np.ndarray:
        decoded.append(encoded)
        return plain(encoded)

    monkeypatch.setattr(codec, "decode", decode)
    pictures = codec.decode_ahead(stored(3), ahead=0)
    for number in range(3):
        assert next(pictures).max() == number and len(decoded) == number + 1


@pytest.mark.parametrize(("device", "together"), [("cpu", 8), ("cuda", 32)])
def test_while_a_network_is_at_its_images_those_of_its_next_pass_are_decoded(
    device: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, plain = 40, codec.decode
    tried = [number for number in range(count) if number not in (3, 5)]
    begun = [threading.Event() for _ in range(count)]

    def decode(encoded: bytes) -> np.ndarray:
        pixels = plain(encoded)
        begun[pixels[0, 0, 0]].set()
        return pixels

    seen: list[int] = []

    def detect(images: list[np.ndarray], *others: Any) -> list[RawMap]:
        seen.extend(int(image[0, 0, 0]) for image in images)
        assert len(images) == together or seen == tried
        soon = tried[: len(seen) + together]
        assert all(begun[each].wait(WAIT) for each in soon), "the next images are not decoded meanwhile"
        return [RawMap("edges", np.eye(8, dtype=np.uint8) * 255) for _ in images]

    monkeypatch.setattr(codec, "decode", decode)
    monkeypatch.setitem(DETECTORS, "opencv-canny", replace(DETECTORS["opencv-canny"], detect=detect))
    table = pa.table({"image_id": [str(number) for number in range(count)], "image": stored(count)})
    monkeypatch.setattr(annotate.shards, "read", lambda *_: table)
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(annotate, "_write", lambda args, it, table, ids: rows.extend(table))
    shard = annotate.MapShard(Path("canny"), resolve("canny"), "canny", "f", {}, None)  # type: ignore[typeddict-item]
    part = annotate.AnnotatePart(
        Path("images"), 0, "key", (shard,), {}, Image(resolution=64), {}, frozenset({3}), device, "made"
    )
    annotate.annotate_part(part, tuple(range(count)), {5: "it kills"}, dry_run=False)
    assert seen == tried, "a batch that raises is tried one by one"
    assert [row["status"] for row in rows].count("ok") == count - 2


def test_a_picture_that_does_not_decode_fails_in_its_place() -> None:
    pictures = codec.decode_ahead([*stored(2), b"no picture", *stored(1)], ahead=4)
    assert [int(next(pictures).max()) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="does not decode"):
        next(pictures)
