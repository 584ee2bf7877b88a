"""What each node of a cluster must see before it gets work: the code, the workspace, the sources, weights."""

import hashlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.storage.stores import address_of
from pipeline.storage.workspace import Probe, sees

HOUSE = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "annotate", "train", "evaluate")
PATIENCE = 120.0  # seconds that a node may take to answer


class Unfit(MillError):
    """A node that lacks what the run needs; another may have it."""

    def __init__(self, sentence: str, node: str = "") -> None:
        super().__init__(sentence, node)
        self.sentence, self.node = sentence, node

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Needs:
    """What the jobs of a run need on their node."""

    probe: Probe  # which the driver wrote into the workspace
    roots: tuple[str, ...] = ()  # folders and files of the sources
    code: str = ""  # hash of the source
    # sentences about what else is missing there
    lacks: Callable[[], list[str]] = list


def code_version() -> str:
    """A hash of the source of all rooms."""
    every = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((HOUSE / room).rglob("*.py")):
            every.update(str(path.relative_to(HOUSE)).encode() + path.read_bytes())
    return every.hexdigest()[:16]


def lacking(needs: Needs, name: str) -> list[str]:
    """On the node, which the sentences call `name`: one for each thing that it lacks."""
    lacks = []
    if wrong := sees(needs.probe):
        remedy = (
            "give it the network and the credentials that the driver has"
            if address_of(needs.probe.path)
            else "mount the same folder there under the same path, with leave to write it, or use a workspace"
            " in a bucket"
        )
        lacks.append(f"{name} {wrong}: {remedy}")
    for root in needs.roots:
        if not os.access(root, os.R_OK):
            why = "it may not read it" if Path(root).exists() else "it is not there"
            lacks.append(
                f"{name} does not see the source {root} ({why}): mount it there under the same path, with"
                " leave to read it"
            )
    if needs.code and needs.code != code_version():
        lacks.append(f"{name} has another version of ControlMill in {HOUSE}: install the driver's there")
    return lacks + [f"{name}: {lack}" for lack in needs.lacks()]


def look(needs: Needs) -> list[str]:
    """In a task on the node: what it lacks."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return lacking(needs, f"The node {socket.gethostname()} ({node[:8]})")


_fit: set[str] = set()  # tokens of runs whose needs this process has looked at


def check_here(needs: Needs) -> None:
    """Once a process, before its first job, for a node may have joined since the others were asked. Unfit
    where it lacks something.
    """
    if needs.probe.token in _fit:
        return
    import ray

    if lacks := look(needs):
        raise Unfit(_sentences(lacks), ray.get_runtime_context().get_node_id())
    _fit.add(needs.probe.token)


def living(ray: Any) -> list[dict[str, Any]]:
    """Of each node that can take jobs what Ray tells of it."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def alive(ray: Any) -> dict[str, str]:
    """Node id -> host, of those that can take jobs."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in living(ray)}


def gpu_memory() -> float:
    """GB of the smallest GPU here; 0 = it can't be told."""
    try:
        words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        return min(float(line) for line in told.split()) / 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0


def prove(ray: Any, needs: Needs) -> None:
    """Asks every node. MillError, a sentence a line, where one lacks something or does not answer."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, hosts = ray.remote(num_cpus=0, max_retries=0)(look), alive(ray)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(needs): node
        for node in hosts
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
    lines, left = [], alive(ray)
    for answer, node in asked.items():
        if node not in left:
            continue  # it is gone, so that nothing will run there
        name = f"The node {hosts[node]} ({node[:8]})"
        lines += _answer(ray, answer, name) if answer in ready else [f"{name} does not answer: restart it"]
    if lines:
        raise MillError(_sentences(lines))


def _answer(ray: Any, answer: Any, name: str) -> list[str]:
    try:
        lacks: list[str] = ray.get(answer)
        return lacks
    except (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError):
        return []  # the cluster may count it as alive for a while yet, but nothing will run there
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        return [f"{name} can't run ControlMill ({last}): install the driver's version there"]


def _sentences(lines: Iterable[str]) -> str:
    return "\n".join(f"{line.rstrip('.')}." for line in lines)
