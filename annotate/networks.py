"""Networks of controlnet_aux: imported quietly, filled with the tensors of a file, their answers checked."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate.weights import WeightsError, tensors

if TYPE_CHECKING:
    import torch

SEVERAL = "module."  # before every name in a file that was trained on several devices


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While the library is imported, which tells what it lacks for detectors that are not used here."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def stored(place: Path, under: str = "") -> dict[str, Any]:
    """A file's tensors by name, or those that lie `under` a name in it; WeightsError as for
    `weights.tensors`.
    """
    found = tensors(place)
    inner = found.get(under) if under else None
    found = inner if isinstance(inner, dict) else found
    return {name.removeprefix(SEVERAL): tensor for name, tensor in found.items()}


def filled(
    network: "torch.nn.Module",  # on the meta device: nothing is drawn at random that the file replaces
    found: dict[str, Any],
    place: Path,  # and title: for the message
    title: str,
) -> "torch.nn.Module":
    """Strict: WeightsError where the tensors are not exactly those of the network."""
    try:
        network.load_state_dict(found, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{place} holds no weights of {title}: {' '.join(str(error).split())[:200]}"
        ) from error
    return network.eval()


def finite(answer: np.ndarray) -> np.ndarray:
    """The answer of a network as it is; ValueError where a value is not finite."""
    if not np.isfinite(answer).all():
        raise ValueError(
            "the network gave values that are not finite: other weights, or precision fp32, may help"
        )
    return answer


def to_bytes(strength: np.ndarray) -> np.ndarray:
    """Strengths in 0..1 -> uint8, truncated as in ControlNet's release, which keeps thirds where ControlNet
    1.1's drawing cuts; ValueError where one is not finite.
    """
    return (finite(strength) * 255).clip(0, 255).astype(np.uint8)
