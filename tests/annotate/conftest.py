"""Pictures for the annotate tests: one photograph that scikit-image ships, and small made-up ones."""

import numpy as np
import pytest

from annotate.annotator import missing


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """uint8 [512, 512, 3] RGB: a woman, facing the camera, from the hips up."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut())


@pytest.fixture(scope="session")
def small(astronaut: np.ndarray) -> np.ndarray:
    """uint8 [128, 128, 3] RGB: her face."""
    return np.ascontiguousarray(astronaut[20:276:2, 100:356:2])


@pytest.fixture
def flat() -> np.ndarray:
    """uint8 [96, 128, 3] RGB of one grey."""
    return np.full((96, 128, 3), 120, np.uint8)


@pytest.fixture
def needs_hed() -> None:
    if missing("hed-bsds500"):
        pytest.skip(str(missing("hed-bsds500")))


@pytest.fixture
def needs_pose() -> None:
    if missing("mediapipe-pose"):
        pytest.skip(str(missing("mediapipe-pose")))
