"""Kernels that add in one order: what a GPU computes twice has then the same bits, as on a CPU anyway."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")  # the workspaces of cuBLAS with which a matrix product adds in one order


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Inside, PyTorch takes no kernel whose result may differ from run to run; afterwards all is as before.

    PyTorch's own switch leaves out cuDNN's attention, and the other two then add in one order backwards, as
    cuDNN's convolutions do, which the clock does not choose any more. cuBLAS reads its setting at a process's
    first product on a GPU: RuntimeError where another was in force by then.
    """
    if not wanted:
        yield
        return
    with contextlib.ExitStack() as afterwards:
        _set_variable(afterwards)
        for name, value in (("deterministic", True), ("benchmark", False)):
            _set(afterwards, torch.backends.cudnn, name, value)
        # of the kernels that torch.compile writes: none is chosen by the clock where that moves its sums
        from torch._inductor import config as inductor

        _set(afterwards, inductor, "deterministic", True)
        before = torch.are_deterministic_algorithms_enabled()
        only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
        afterwards.callback(torch.use_deterministic_algorithms, before, warn_only=only_warned)
        torch.use_deterministic_algorithms(True)
        yield


def _set(afterwards: contextlib.ExitStack, owner: Any, name: str, value: bool) -> None:
    afterwards.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _set_variable(afterwards: contextlib.ExitStack) -> None:
    if os.environ.get(CUBLAS) in FIXED:
        return
    before = os.environ.get(CUBLAS)
    os.environ[CUBLAS] = FIXED[0]
    if before is None:
        afterwards.callback(os.environ.pop, CUBLAS, None)
    else:
        afterwards.callback(os.environ.__setitem__, CUBLAS, before)
