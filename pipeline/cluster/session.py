"""Ray as one run has it: its own, started, watched and ended here, or somebody else's."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline import MillError
from pipeline.cluster import position
from pipeline.cluster.nodes import HOUSE
from pipeline.cluster.watchdog import Watchdog, give_up
from pipeline.cluster.worker import SLEEP

# without either of these nothing goes on: name of the process -> what it is to Ray
VITAL = {"gcs_server": "the process that holds its facts", "raylet": "the process that starts its workers"}
TOKEN = "CONTROLMILL_SESSION"  # variable of each process that Ray starts, by which it is found
UNREACHED = 20.0  # seconds that somebody else's cluster may be out of reach; Ray ends the driver after 60
LOOKED = 0.2  # seconds between two looks at whether Ray lives
STARTED_AGAIN = 5  # times in a row, with no job done between them
ENDING = 10.0  # seconds that killed processes may take to be gone
SAID = "said"  # by the driver to its reaper: it ends in order


class Lost(Exception):
    """Ray itself is gone, and no retry of a job mends that."""


class Session:
    """From `ray.init` to `ray.shutdown`."""

    def __init__(
        self, token: str, workers: int, address: str | None, lost: Callable[[str], object] = give_up
    ) -> None:
        """Starts Ray here with so many workers, or joins the cluster of that address, for the run of this
        token. MillError where that can't be done, Lost where Ray died as it started. `lost` is called from a
        thread where a call to a Ray that is gone does not come back.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault(*SLEEP)
        import ray
        import ray._private.worker

        # Ray's log files have it all: what matters of a worker that dies is told as an event
        ray._private.worker._worker_logs_enabled = False
        where: dict[str, Any] = (
            {"address": address}
            if address
            else {
                "address": "local",
                "num_cpus": workers,
                "object_store_memory": 128 * 2**20,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        )
        self.ray: Any = ray
        self.is_own = not address
        self._vital: dict[str, psutil.Process] = {}  # of its own, by name
        self._began, self._looked = time.time() - 1.0, 0.0  # the system counts in hundredths
        self._store = ""  # address of the head, once Ray has started
        self._reaper = Reaper(token)  # before the variable is set, by which it would find itself
        self._token = os.environ[TOKEN] = token
        self._lost = lost
        self._watchdog = Watchdog(self._silent, self._let_go)
        on_terminate, started = signal.getsignal(signal.SIGTERM), False
        try:
            ray.init(**where, logging_level=logging.ERROR, log_to_driver=False, configure_logging=True)
            started = True
        except SystemExit as error:  # while it starts, Ray has a way of its own to take SIGTERM
            raise KeyboardInterrupt from error
        except Exception as error:
            if address and isinstance(error, ConnectionError):
                raise MillError(
                    f"No Ray cluster answers at {address}: check --address, or leave it out to start one"
                    " here."
                ) from error
            if not address:
                why = self._silent()
                end(processes_of(self._token))
                if why:
                    raise Lost(why) from error
            raise MillError(
                f"Ray did not {'let the run join' if address else 'start'} ({type(error).__name__}:"
                f" {' '.join(str(error).split())[:300]}): look at memory and at the room in the temporary"
                " folder, then run the same command again."
            ) from error
        finally:
            del os.environ[TOKEN]
            if not started:
                self._watchdog.end()
                self._reaper.end()
        # Ray puts its own in place, which ends without a word
        signal.signal(signal.SIGTERM, on_terminate)
        if self.is_own:
            node: Any = ray._private.worker._global_node
            self._folder = Path(node.get_session_dir_path())
            self._reaper.clear(self._folder)
            self._find_vital()
        self._store = ray.get_runtime_context().gcs_address

    def fault(self) -> str:
        """What of Ray is gone; '' where nothing is."""
        if not self.is_own:
            return self._out_of_reach()
        if time.monotonic() - self._looked < LOOKED:
            return ""
        self._looked = time.monotonic()
        return self._missing()

    def _find_vital(self) -> None:
        """Of this session, also where they are dead already."""
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if process.name() in VITAL and process.create_time() >= self._began:
                    self._vital.setdefault(process.name(), process)

    def _silent(self) -> str:
        """For the watchdog, also while Ray starts."""
        if not self.is_own:
            return self._out_of_reach(0.0) if self._store else ""
        if not self._store:
            self._find_vital()
        return self._missing()

    def _let_go(self, why: str) -> None:
        if self.is_own:
            end(processes_of(self._token))
        self._reaper.end()
        self._lost(why)

    def _missing(self) -> str:
        for name, process in self._vital.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return f"{name} is gone, {VITAL[name]}"
        return ""

    def _out_of_reach(self, patience: float = UNREACHED) -> str:
        """Looked at before each call, for one that Ray's head does not answer never comes back."""
        host, _, port = self._store.rpartition(":")
        since = time.monotonic()
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
                return ""
            except OSError as error:
                if time.monotonic() - since >= patience:
                    return f"its head at {self._store} does not answer: {error}"
            time.sleep(0.5)

    def of_ray(self, error: Exception) -> str:
        """What of Ray is gone, where that is why no job but Ray itself raised; '' of any other error."""
        if isinstance(error, Lost):
            return str(error)
        if isinstance(error, self.ray.exceptions.RayError):
            first = str(error).strip().splitlines() or [""]
            return self.fault() or f"{type(error).__name__}: {first[0]}"
        return self.fault() if isinstance(error, (ConnectionError, TimeoutError)) else ""

    def close(self) -> None:
        """Ends all processes of Ray that it started; those of a Ray that is broken by force."""
        self._watchdog.end()
        if not self.is_own:
            self.ray.shutdown()
            self._reaper.end()
            return
        left = processes_of(self._token, self._folder)
        if self._missing():
            end(left)
        self.ray.shutdown()
        end(left)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._reaper.end()


def going_on(why: str, times: int, address: str | None) -> str:
    """What is said of a Ray that was lost, the n-th time in a row. MillError where the run can't go on."""
    same = "then run the same command again; it goes on from what is committed."
    if address:
        raise MillError(f"The Ray cluster at {address} is gone ({why}): start it again, {same}")
    if times > STARTED_AGAIN:
        raise MillError(
            f"Ray was lost {times} times in a row ({why}): look at the memory of this machine and at `dmesg`,"
            f" {same}"
        )
    return f"Ray itself was lost ({why}): it is started again, and what was under way is done again."


def processes_of(token: str, folder: Path | None = None) -> list[psutil.Process]:
    """All that Ray started in a session, also what its raylet left behind as it died. Some write their title
    over their variables: those are known by their logs in the session's folder.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            titled = folder is not None and process.name().startswith("ray::")
            if process.environ().get(TOKEN) == token or (
                titled and any(Path(file.path).is_relative_to(str(folder)) for file in process.open_files())
            ):
                found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kills them, where they are not gone yet, and waits until they are."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=ENDING)


class Reaper:
    """A process of its own that outlives the driver, however that ends, and clears up behind it: some of
    Ray's processes stay for ever where their driver is killed. Says what to do where the driver could not:
    Ray ends it without a sentence where its head is gone, also while it starts.
    """

    def __init__(self, token: str) -> None:
        words = [sys.executable, "-c", "from pipeline.cluster.session import reap; reap()", token]
        self._process = subprocess.Popen(
            words,
            cwd=HOUSE,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def clear(self, folder: Path) -> None:
        """At the end, this one of Ray's session too."""
        self._tell(str(folder))

    def end(self) -> None:
        """The driver goes on, or ends with a sentence of its own."""
        self._tell(SAID)
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it was killed
            print(line, file=self._process.stdin, flush=True)


def reap() -> None:
    """In the process of Reaper: waits until the driver is gone or ends it."""
    token, lines = sys.argv[1], sys.stdin.read().splitlines()
    folder = next((Path(line) for line in lines if line != SAID), None)
    end(processes_of(token, folder))
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    for file in position.of_run(token):
        file.unlink(missing_ok=True)
    if SAID not in lines:
        print(
            "controlmill: the command was ended, from outside or by Ray: run it again; it goes on from what"
            " is committed.",
            file=sys.stderr,
        )
