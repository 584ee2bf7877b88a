"""How many images go into a part."""

import pytest

from annotate.annotator import DETECTORS, Step
from pipeline.manifest import Image
from pipeline.plan.parts import BYTES, LEAST, MOST, PARTS, SECONDS, gpu_memory_of, part_size, seconds_of


@pytest.mark.parametrize(
    ("seconds", "size", "images", "count"),
    [
        (0.001, 1e5, 1000, MOST),  # cheap: as many as there may be
        (1.0, 1e5, 1000, 30),  # half a minute
        (20.0, 1e5, 1000, LEAST),  # never fewer for time alone
        (0.001, 1e6, 1000, 67),  # 64 MiB
        (0.001, 2e7, 1000, 3),  # large PNG
        (1.0, 1e5, 10_000_000, 611),  # no more files than that
        (1.0, 1e5, 30 * PARTS + 1, 31),
        (0.0, 0.0, 1, MOST),
    ],
)
def test_a_part_is_half_a_minute_of_work_within_limits(
    seconds: float, size: float, images: int, count: int
) -> None:
    assert part_size(seconds, size, images) == count
    assert images / count <= PARTS + 1


def test_passes_that_conditions_share_count_once_and_pixels_count() -> None:
    image = Image()
    one = [Step("depth_large", "midas-dpt-hybrid", {"precision": "fp32"})]
    both = [*one, Step("depth_small", "midas-dpt-hybrid", {"precision": "fp32"})]
    assert seconds_of(one, image, "cpu") == seconds_of(both, image, "cpu") > 1.0
    assert seconds_of(both, image, "cuda:0") < 0.2
    assert (
        gpu_memory_of(one) == gpu_memory_of(both) > 3.0
        and gpu_memory_of([Step("canny", "opencv-canny", {})]) == 0
    )
    large = Image(resolution=1024)
    assert seconds_of(one, large, "cpu") == pytest.approx(4 * seconds_of(one, image, "cpu"))
    assert part_size(seconds_of([Step("hed", "hed-bsds500", {})], image, "cpu"), 1e5, 240) * 2.0 < 3 * SECONDS
    assert BYTES == 2**26


def test_every_detector_declares_what_it_costs_and_how_long_it_may_take() -> None:
    for name, row in DETECTORS.items():
        assert 0 < row.seconds < row.time_limit / 10, name
        assert (row.gpu_seconds is None) == (row.gpu_memory == 0.0), name
