"""Pictures as the bytes that are stored: JPEG of quality 95, or PNG."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np


def encode(pixels: np.ndarray, store: str, *, quick: bool = False) -> bytes:
    """JPEG 95 with full colour resolution, or PNG; `quick`: PNG in two fifths of the time, a few percent
    larger.
    """
    import cv2

    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    if store == "png":
        options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
        if quick:  # each row by the one above, where else every filter is tried on every row
            options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
        return cv2.imencode(".png", bgr, options)[1].tobytes()
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def decode(encoded: bytes) -> np.ndarray:
    """uint8 HWC RGB of a stored picture; ValueError where the bytes are no picture."""
    pixels = _jpeg(encoded) if encoded[:2] == b"\xff\xd8" else _any(encoded)
    if pixels is None:
        raise ValueError("a stored image does not decode: run `controlmill verify`")
    return pixels


def decode_ahead(encoded: Iterable[bytes], ahead: int) -> Generator[np.ndarray, None, None]:
    """As `decode`, in order, in as many threads as this process computes with: up to `ahead` pictures beyond
    the one that is asked for, so that a network need not wait. ValueError where that one does not decode.
    """
    import cv2

    waiting: deque[Future[np.ndarray]] = deque()
    pool = ThreadPoolExecutor(max(1, cv2.getNumThreads()), thread_name_prefix="decode")
    try:
        for each in encoded:
            waiting.append(pool.submit(decode, each))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _jpeg(encoded: bytes) -> np.ndarray | None:
    """The pixels that OpenCV gives, a tenth faster, and none where something is damaged."""
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None


def _any(encoded: bytes) -> np.ndarray | None:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
