"""Latents and texts as shards keep them: .npy bytes of float16."""

import ast
import functools
import io
from typing import Any

import numpy as np


def pack(array: Any) -> bytes:
    """float16 .npy bytes of an array or CPU tensor."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, dtype=np.float16), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """float32 array that `pack` stored."""
    length = 10 + int.from_bytes(data[8:10], "little")  # of the header of .npy, version 1
    return (
        np.frombuffer(data, np.float16, offset=length).reshape(_shape_in(data[10:length])).astype(np.float32)
    )


@functools.lru_cache(64)  # the same for all latents of one size
def _shape_in(header: bytes) -> tuple[int, ...]:
    told = ast.literal_eval(header.decode("latin1"))
    if told["descr"] != "<f2" or told["fortran_order"]:
        raise ValueError(f"latents are stored as float16 in the order of C, not {told}")
    shape: tuple[int, ...] = told["shape"]
    return shape
