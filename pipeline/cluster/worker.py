"""A job in its worker: one process, or the ranks of torch.distributed."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from pipeline.cluster import position
from pipeline.cluster.attempts import DEATH, DEATHS_RETRIED, Attempt
from pipeline.cluster.jobs import Job
from pipeline.cluster.nodes import Needs, check_here
from pipeline.cluster.position import Trial
from pipeline.cluster.progress import teller
from pipeline.storage import faults
from pipeline.storage.workspace import TEMPORARY

# threads that spin where cores are short slow each other down twentyfold (measured)
SLEEP = ("OMP_WAIT_POLICY", "PASSIVE")
# what ranks say of one that is gone
LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "/gloo/")


def call(
    function: Callable[..., Any], attempt: Attempt, trial: Trial, needs: Needs | None, threads: int
) -> Any:
    """In the worker: as many threads as the job was given cores, and no more."""
    if needs is not None:
        check_here(needs)
    with position.attempt(trial, teller(trial)):
        faults.reached("job begins")
        result = _computed(function, attempt, threads)
        faults.reached("job ends")
        return result


def _computed(function: Callable[..., Any], attempt: Attempt, threads: int) -> Any:
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault(*SLEEP)
    if "torch" in sys.modules:  # a worker that is used again; a fresh one reads the variable
        sys.modules["torch"].set_num_threads(threads)
    poison_rows = {} if attempt.dry_run else attempt.job.poison_rows
    return function(attempt.job.args, attempt.rows, poison_rows, attempt.dry_run)


def call_ranks(
    function: Callable[..., Any],
    args: Any,
    processes: int,
    cpus: float,
    gpus: float,
    scratch: str | None,
) -> None:
    """In a task that takes no core of its own: Ray Train starts the ranks when there is room for all, and
    again if one dies.

    What they make is on disk, so its own checkpoints and results are not used; its folder for them is thrown
    away.
    """
    os.environ |= {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1e9",  # waiting for room is no failure
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def rank() -> None:
        _computed(function, Attempt(Job("", args, ()), ()), max(1, int(cpus)))

    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    for left in reversed(range(DEATHS_RETRIED + 1)):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=scratch) as folder:
            trainer = TorchTrainer(
                rank,
                torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=processes, use_gpu=gpus > 0, resources_per_worker=each
                ),
                run_config=RunConfig(
                    name="run", storage_path=folder, failure_config=FailureConfig(max_failures=0)
                ),
            )
            try:
                trainer.fit()
                return
            except Exception as error:
                raised = _of_a_rank(error)
                if raised is not None or not left:
                    raise raised or RuntimeError(DEATH.format(type(error).__name__)) from None


def _of_a_rank(error: Exception) -> Exception | None:
    """What a rank's own code raised; None = ranks died, or only tell that they lost one another."""
    from ray.exceptions import RayError

    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for each in failures.values():
        of_ray = isinstance(each, RayError) or type(each).__module__.startswith("ray.")
        if not of_ray and not any(word in str(each) for word in LOST):
            return each
    return None
