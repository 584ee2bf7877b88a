"""The kinds of raw map: what a detector knows, stored without loss; a picture of it is drawn
only on demand.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from annotate import planes
from annotate.conditions import MEASURES_OF
from annotate.drawing import MapMeta, drawer
from annotate.parameters import Values
from annotate.skeletons import body

VOID = 255  # label that means "no class", in 8-bit and in 16-bit label maps
FLAT_SOFT = 32  # soft edges that never reach this strength out of 255 hold nothing a ControlNet could follow


@dataclass(frozen=True)
class RawMap:
    """One map. x right, y down, pixel centres at integers; meta is JSON-able.

    edges       uint8 [h, w] in {0, 255}, white on black
    soft_edges  uint8 [h, w]
    lines       float32 [N, 5] x0 y0 x1 y1 score          meta: size [h, w]
    people      float32 [P, K, 3] x y confidence, 0 = missing   meta: size [h, w], layout; hands and face of
                a detector that reads them stand behind the layout's K, wholebody.EXTRA points more
    labels      uint8 or uint16 [h, w], void 255           meta: label_space
    depth       float32 [h, w] inverse depth, near is large  meta: scale, shift of the 16-bit code
    normals     float32 [h, w, 3] unit vectors x right, y up, z to the viewer; 0 0 0 = invalid
    """

    kind: str
    array: np.ndarray
    meta: MapMeta = field(default_factory=MapMeta)

    def __post_init__(self) -> None:
        row = _kind(self.kind)
        if self.array.dtype.name not in row.dtypes or self.array.ndim != row.ndim:
            raise ValueError(
                f"a map of kind {self.kind} is {' or '.join(row.dtypes)} with {row.ndim} axes, "
                f"not {self.array.dtype.name} of shape {self.array.shape}"
            )
        lacking = [key for key in row.meta if key not in self.meta]
        if lacking:
            raise ValueError(f"a map of kind {self.kind} needs meta: {', '.join(lacking)}")


def depth_map(inverse: np.ndarray, unit: str = "relative") -> RawMap:
    """float32 [h, w] inverse depth (near is large), with the scale and shift that use all 16 bits.

    `unit` is what its numbers are: "1/m", "midas" (MiDaS's own scale), or "relative" (up to an unknown scale
    and shift).

    ValueError: a value that is not finite.
    """
    inverse = inverse.astype(np.float32)
    if not np.isfinite(inverse).all():
        raise ValueError("inverse depth has values that are not finite")
    low, high = float(inverse.min()), float(inverse.max())
    return RawMap("depth", inverse, {"scale": (high - low) / 65535 or 1.0, "shift": low, "unit": unit})


def encode(raw: RawMap) -> bytes:
    """The stored bytes (ARCHITECTURE.md, raw maps); decode(kind, bytes, meta) gives the map back."""
    return _kind(raw.kind).encode(raw.array, raw.meta)


def decode(kind: str, data: bytes, meta: MapMeta) -> RawMap:
    """A map from its stored bytes and meta."""
    return RawMap(kind, _kind(kind).decode(data, meta), meta)


def portable(data: bytes) -> bytes:
    """Stored bytes as other programs read them: those of depth and normals as a PNG of 16 bits, whose red,
    green and blue are x, y and z; all others are so already.
    """
    if not data.startswith(planes.MAGIC):
        return data
    # cv2 writes the last channel as red
    return _png(np.ascontiguousarray(planes.decode(data)[::-1].transpose(1, 2, 0)))


def render(
    raw: RawMap,
    size: tuple[int, int] | None = None,  # (h, w); None = the resolution the map was made at
    protocol: str = "cn10",
    drawn: Values | None = None,  # what drawing.draw gave of the image; None = as for an image to be made
) -> np.ndarray:
    """uint8 [h, w, 3] RGB hint by a named protocol.

    ValueError: an unknown protocol, or labels with an unknown label space or id.
    """
    draw = drawer(raw.kind, protocol, drawn or {})
    return draw(raw.array, raw.meta, size or resolution(raw))


def resolution(raw: RawMap) -> tuple[int, int]:
    """(h, w) of the image the map was made from."""
    h, w = raw.meta["size"] if "size" in raw.meta else raw.array.shape[:2]
    return int(h), int(w)


def measures(raw: RawMap) -> dict[str, float]:
    """The numbers that `select:` can ask for; the names are MEASURES_OF[kind]."""
    values = _kind(raw.kind).measure(raw.array, raw.meta)
    return dict(zip(MEASURES_OF[raw.kind], (float(v) for v in values), strict=True))


def blank(raw: RawMap) -> str | None:
    """Why the map holds nothing to follow; None = it holds something."""
    return _kind(raw.kind).blank(raw.array)


# --- bytes ---


def _png(array: np.ndarray, *flags: int) -> bytes:
    import cv2

    # level 1: three times faster than the default for 5 % more bytes (measured on edges)
    done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1, *flags])
    if not done:
        raise ValueError(f"PNG encoding failed for {array.dtype} {array.shape}")
    return bytes(data)


def _read_png(data: bytes) -> np.ndarray:
    import cv2

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("the stored bytes are not a PNG")
    return array


def _encode_edges(array: np.ndarray, meta: MapMeta) -> bytes:
    import cv2

    # runs of one value alone are sought: a quarter faster than zlib's other ways, and 8 % smaller
    return _png(array, cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


def _encode_grey(array: np.ndarray, meta: MapMeta) -> bytes:
    return _png(array)


def _decode_grey(data: bytes, meta: MapMeta) -> np.ndarray:
    return _read_png(data)


def _encode_points(array: np.ndarray, meta: MapMeta) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _decode_points(data: bytes, meta: MapMeta) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _encode_depth(array: np.ndarray, meta: MapMeta) -> bytes:
    code = np.rint((array.astype(np.float64) - meta["shift"]) / meta["scale"])
    return planes.encode(code.clip(0, 65535).astype(np.uint16)[None])


def _decode_depth(data: bytes, meta: MapMeta) -> np.ndarray:
    (code,) = _read_codes(data, 1)
    array = code.astype(np.float64)
    array *= meta["scale"]
    array += meta["shift"]
    return array.astype(np.float32)


def _encode_normals(array: np.ndarray, meta: MapMeta) -> bytes:
    code = np.rint((array.astype(np.float64) + 1) * 32767).clip(0, 65534).astype(np.uint16)
    code[~array.any(axis=2)] = 0  # a unit vector never encodes to 0 0 0
    return planes.encode(code.transpose(2, 0, 1))


def _decode_normals(data: bytes, meta: MapMeta) -> np.ndarray:
    import cv2

    x, y, z = _read_codes(data, 3)
    units = [code.astype(np.float32) for code in (x, y, z)]
    for unit in units:
        unit -= np.float32(32767)
        unit /= np.float32(32767)  # the quotient of float64, rounded, is the same for all 65536 codes
    array = cv2.merge(units)
    if z.min() == 0:
        array[(x | y | z) == 0] = 0
    return array


def _read_codes(data: bytes, count: int) -> np.ndarray:
    """uint16 [count, h, w] of a depth or normal map; earlier versions stored it as a PNG.

    ValueError: damaged bytes, or another number of planes.
    """
    if data.startswith(planes.MAGIC):
        codes = planes.decode(data)
    else:
        array = _read_png(data)  # cv2 gives the last channel first
        codes = array[None] if array.ndim == 2 else np.ascontiguousarray(array[..., ::-1].transpose(2, 0, 1))
    if len(codes) != count:
        raise ValueError(f"the stored map has {len(codes)} planes, not {count}")
    return codes


# --- measures and blanks ---


def _measure_edges(array: np.ndarray, meta: MapMeta) -> tuple[float, ...]:
    import cv2

    return (cv2.countNonZero(array) / array.size,)


def _measure_lines(array: np.ndarray, meta: MapMeta) -> tuple[float, ...]:
    h, w = meta["size"]
    length = np.hypot(array[:, 2] - array[:, 0], array[:, 3] - array[:, 1]).sum()
    return len(array), length / np.hypot(h, w)  # in diagonals of the image


def _measure_people(array: np.ndarray, meta: MapMeta) -> tuple[float, ...]:
    seen = body(array, meta["layout"])[..., 2] > 0
    shares = seen.mean(axis=1) if len(array) else np.zeros(1)
    return len(array), shares.max()  # the paper's rule asks for the share of the best person


def _blank_edges(array: np.ndarray) -> str | None:
    return "no edges" if not array.any() else "edges everywhere" if array.all() else None


def _blank_points(what: str) -> Callable[[np.ndarray], str | None]:
    return lambda array: None if len(array) else f"no {what}"


def _blank_flat(array: np.ndarray) -> str | None:
    return f"flat: one value, {array.flat[0]:g}" if array.min() == array.max() else None


# --- the table ---


@dataclass(frozen=True, kw_only=True)
class _Kind:
    dtypes: tuple[str, ...]
    ndim: int
    encode: Callable[[np.ndarray, MapMeta], bytes]
    decode: Callable[[bytes, MapMeta], np.ndarray]
    measure: Callable[[np.ndarray, MapMeta], tuple[float, ...]]
    blank: Callable[[np.ndarray], str | None]
    meta: tuple[str, ...] = ()


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise ValueError(f"unknown kind of map {name!r}; known: {', '.join(_KINDS)}")
    return _KINDS[name]


_KINDS: dict[str, _Kind] = {
    "edges": _Kind(
        dtypes=("uint8",), ndim=2, encode=_encode_edges, decode=_decode_grey,
        measure=_measure_edges, blank=_blank_edges,
    ),
    "soft_edges": _Kind(
        dtypes=("uint8",), ndim=2, encode=_encode_grey, decode=_decode_grey,
        measure=lambda a, meta: (a.mean(), a.std()),
        blank=lambda a: f"no edge stronger than {a.max()} of 255" if a.max() < FLAT_SOFT else _blank_flat(a),
    ),
    "lines": _Kind(
        dtypes=("float32",), ndim=2, encode=_encode_points, decode=_decode_points, meta=("size",),
        measure=_measure_lines, blank=_blank_points("lines"),
    ),
    "people": _Kind(
        dtypes=("float32",), ndim=3, encode=_encode_points, decode=_decode_points, meta=("size", "layout"),
        measure=_measure_people, blank=_blank_points("person"),
    ),
    "labels": _Kind(
        dtypes=("uint8", "uint16"), ndim=2, encode=_encode_grey, decode=_decode_grey, meta=("label_space",),
        measure=lambda a, meta: (len(np.setdiff1d(a, [VOID])), (a == VOID).mean()), blank=_blank_flat,
    ),
    "depth": _Kind(
        dtypes=("float32",), ndim=2, encode=_encode_depth, decode=_decode_depth, meta=("scale", "shift"),
        measure=lambda a, meta: (a.mean(), a.std()), blank=_blank_flat,
    ),
    "normals": _Kind(
        dtypes=("float32",), ndim=3, encode=_encode_normals, decode=_decode_normals,
        measure=lambda a, meta: (a.any(axis=2).mean(), a[..., 2].mean()),
        blank=lambda a: None if a.any() else "no valid normal",
    ),
}  # fmt: skip
