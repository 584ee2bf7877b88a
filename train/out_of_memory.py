"""Memory that runs out: which errors say so, and the same work with half as much at a time."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Given = TypeVar("Given")
Made = TypeVar("Made")
# as cuDNN, cuBLAS, CUDA, Triton and the two allocators of PyTorch word it, in an error without a type of its
# own
WORDS = (
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cudaerrormemoryallocation",
    "out_of_memory",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
)
REMEDY = (
    "set gradient_checkpointing: true, connect: middle, optimizer: adamw8bit or precision: bf16, train fewer"
    " conditions at once, or lower image.resolution"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Of an error, or of what caused it: whether the same with less at a time may do.

    A MemoryError is none: where it is raised here, less at a time was tried.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS):
            return True
        error = error.__cause__
    return False


class unless_out_of_memory:
    """Passes over such an error, as contextlib.suppress does: behind it nothing holds that try's tensors."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return is_out_of_memory(error)


@contextlib.contextmanager
def told_of(what: str) -> Iterator[None]:
    """MemoryError with what to do, where less at a time would not help."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{what} runs out of memory: {REMEDY}") from error


def in_parts(work: Callable[[list[Given]], list[Made]], given: list[Given]) -> list[Made]:
    """All at once, else each half by itself, and so on; the error as it came where one is too much."""
    made = None
    try:
        made = work(given)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(given) == 1:
            raise
    if made is not None:
        return made
    free()
    half = len(given) // 2
    return [*in_parts(work, given[:half]), *in_parts(work, given[half:])]


def free() -> None:
    """Gives the device back what nothing refers to any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
