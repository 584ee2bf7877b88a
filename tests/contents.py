"""What a raw image holds, for tests of sources."""

from pipeline import sources
from pipeline.sources import RawImage


def contents(raw: RawImage) -> tuple[bytes, str]:
    """The raw bytes and the first caption."""
    return sources.read(raw), sources.read_captions(raw).first
