"""Hostile files of weights: safetensors that lie, pickles that would run code, and both broken."""

import io
import json
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.hostile.bombs import hostile_pickle
from tests.hostile.mutations import mutated

BROKEN = 20  # of each whole file


def files(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes)."""
    whole = [(name, data) for name, data in (*_safetensors(), *_pickles())]
    yield from whole
    for number in range(BROKEN * 2):
        name, data = whole[0] if number % 2 else whole[-1]
        yield (
            f"broken-{number}.{name.rpartition('.')[2]}",
            mutated(data, np.random.default_rng([seed, number, 4])),
        )


def _safetensors() -> Iterator[tuple[str, bytes]]:
    def made(header: object, body: bytes = bytes(64)) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + body

    def tensor(first: int, last: int, kind: str = "F32", shape: object = (16,)) -> dict[str, object]:
        return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}

    for name, data in {
        "whole": made({"a": tensor(0, 64)}),
        "long": struct.pack("<Q", 2**63) + b"{}", "longer": struct.pack("<Q", 10**8) + b"{}", "empty": b"",
        "overlap": made({"a": tensor(0, 64), "b": tensor(0, 64)}), "hole": made({"a": tensor(32, 64,
        shape=[8])}),
        "beyond": made({"a": tensor(0, 2**40, shape=[2**38])}), "backwards": made({"a": tensor(64, 0)}),
        "kind": made({"a": tensor(0, 64, kind="F99")}), "shape": made({"a": tensor(0, 64, shape=[2**62,
        2**62])}),
        "negative": made({"a": tensor(0, 64, shape=[-16])}), "text": made(b"not JSON"), "list": made([1, 2]),
        "deep": made(b"[" * 100_000), "utf8": made(b'{"\xff": 1}'),
        "metadata": made({"__metadata__": {"a": [1]}}),
        "names": made({f"{number}": tensor(0, 0, shape=[0]) for number in range(5_000)}, b""),
        "nan": made({"a": tensor(0, 64)}, struct.pack("<16f", *[float("nan")] * 16)),
    }.items():  # fmt: skip
        yield f"{name}.safetensors", data


def _pickles() -> Iterator[tuple[str, bytes]]:
    for ending in ("ckpt", "pt", "pth", "bin", "safetensors"):
        yield f"code.{ending}", hostile_pickle()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", hostile_pickle())
        archive.writestr("archive/version", "3")
    yield "code-in-zip.ckpt", file.getvalue()
    yield from (
        ("page.bin", b"<!doctype html>"),
        ("pointer.bin", b"version https://git-lfs.github.com/spec/v1\noid x"),
        ("short.ckpt", b"\x80\x02"),
        ("nothing.ckpt", b""),
        ("number.ckpt", b"\x80\x02K\x01."),
        ("nested.ckpt", b"\x80\x02" + b"(" * 100_000 + b"."),
        ("memo.ckpt", b"\x80\x02j\xff\xff\xff\xff."),
        ("get.ckpt", b"\x80\x02h\x05."),
        ("global.ckpt", b"\x80\x02cos\nsystem\nq\0."),
    )
    import torch

    torch.save({"a": torch.zeros(16)}, file := io.BytesIO())
    yield "whole.pt", file.getvalue()
