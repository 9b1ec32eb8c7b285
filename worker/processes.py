"""The model processes: how many, what each says of itself, and what their failures mean.

A child loads and warms up its model before Celery's pool calls it up, and writes one JSON file
about it into a folder the parent made (`Report`). The parent waits for every child before the
consumer starts, so a worker that says it is ready answers; and a model that can't be loaded ends
the worker with one sentence instead of a loop of crashing children.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.state import maybe_shutdown

from golem_tasks.errors import ConfigurationError
from worker.checkpoint import weights_bytes
from worker.gpus import count_gpus
from worker.machine import available_cores, available_memory_bytes
from worker.settings import WorkerSettings

__all__ = ["FOLDER", "ModelProcesses", "Report", "check_pool", "count", "report", "settle_garbage"]

logger = get_logger(__name__)

FOLDER = "GOLEM_INTERNAL_STATUS_DIR"
"""Environment variable by which the parent tells its children where to report."""

MAX_FAILURES = 3
"""Replacement children in a row that may fail to load before the worker gives up."""

MOST_ON_CPU = 4
"""Model processes on a CPU that nobody asked for: each takes some 400 MiB of its own."""

BYTES_OF_PROCESS = 3 * 2**29
"""Memory of the machine for each of them beside the model's weights, and for whoever else is there.
While it loads, each may have a copy of those for itself (`worker.sharing`)."""

BYTES_OF_WEIGHTS = 2**29
"""The weights of a model that isn't on this machine yet: more than a BERT-base has."""

EX_CONFIG = 78  # sysexits.h: the model or a setting is wrong; starting again won't help


@dataclass(frozen=True, slots=True)
class Report:
    """What a model process says of itself."""

    index: int
    pid: int
    ready: bool
    message: str
    """The model, device, dtype and load time, or why it couldn't be loaded."""
    max_tokens: int = 0
    model: str = ""
    dtype: str = ""
    device: str = ""
    token_budget: int = 0
    """Padded area of a micro-batch now."""
    token_ceiling: int = 0
    """The same before any out of memory, as it suits the device."""


def count(settings: WorkerSettings) -> int:
    """How many model processes to start: as set, else one per GPU, and on a CPU several.

    Two processes of one thread answer more than one of two, whose threads wait for each other
    and, between forward passes, one for the other (``python -m benchmarks.threads``).
    """
    if settings.processes is not None:
        return settings.processes
    gpus = count_gpus() if settings.device in ("auto", "cuda") else 0
    # An engine of the user's own knows best what it runs on, and on a Mac "auto" is its GPU.
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and sys.platform == "linux")
    if gpus or not on_cpu or settings.engine != WorkerSettings.model_fields["engine"].default:
        return max(1, gpus)
    cores = available_cores() // (settings.threads or 1)
    return max(1, min(cores, MOST_ON_CPU, _fitting(settings)))


def _fitting(settings: WorkerSettings) -> int:
    """Model processes on a CPU that there is memory for.

    A hub model counts as `BYTES_OF_WEIGHTS` until its files are in the cache, so its second start
    may get another number than the first.
    """
    memory_bytes = available_memory_bytes()
    if memory_bytes is None:
        return MOST_ON_CPU
    return memory_bytes // (BYTES_OF_PROCESS + (weights_bytes(settings) or BYTES_OF_WEIGHTS))


def settle_garbage() -> None:
    """Take what was built at start out of the garbage collector's rounds, for good.

    Looking through all that lives, again and again, was a sixth of the parent's work. How often it
    looks stays Python's choice: requests refer to themselves, and fewer rounds let them pile up.
    """
    gc.collect()
    gc.freeze()


def report(index: int, *, ready: bool, message: str, **facts: Any) -> None:
    """Say in this worker's folder how the model process `index` came up; `facts`: see `Report`."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    content = json.dumps(asdict(Report(index, os.getpid(), ready, message, **facts)))
    part = Path(folder, f"{index}.part")
    with contextlib.suppress(FileNotFoundError):  # the worker left while this process loaded
        part.write_text(content, encoding="utf-8")
        part.replace(Path(folder, f"{index}.json"))  # a reader sees all of it or nothing


class ModelProcesses(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Waits for the children at start; watches for a crash loop afterwards."""

    requires = ("celery.worker.components:Pool", "worker.intake:Intake")
    label = "Models"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._settings: WorkerSettings = worker.app.golem_settings
        self._folder: Path | None = None
        self._worker = worker
        self._failures: dict[int, int] = {}
        """Failed replacements in a row, by process index."""
        self._seen: set[int] = set()
        """Pids that have reported, ready or failed."""
        self._pids: dict[int, int] = {}
        """The process that holds each index now."""

    def create(self, worker: Any) -> None:
        """Make the folder before the pool starts its children, which inherit the environment."""
        self._folder = Path(tempfile.mkdtemp(prefix="golem-worker-"))
        # Not in `stop`, which Celery skips when a worker ends before it has fully started.
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        os.environ[FOLDER] = str(self._folder)
        # The children share the cores among as many as there are, also when -c set the number.
        worker.app.golem_settings = self._settings.model_copy(
            update={"processes": worker.concurrency}
        )

    def start(self, worker: Any) -> None:
        """Return once every child holds its model.

        Raises:
            WorkerShutdown: a child failed, died or took longer than ``load_timeout_s``.
        """
        deadline_s = time.monotonic() + self._settings.load_timeout_s
        while len(reports := self._reports()) < worker.concurrency:
            maybe_shutdown()
            dead = [p for p in worker.pool._pool._pool if p.exitcode is not None]
            if dead:
                self._give_up(f"A model process died while loading ({_exit(dead[0].exitcode)}).")
            if time.monotonic() > deadline_s:
                self._give_up(
                    f"No model after {self._settings.load_timeout_s:g} s; raise "
                    "GOLEM_LOAD_TIMEOUT_S if the model really takes longer to load."
                )
            if any(not each.ready for each in reports):
                break
            time.sleep(0.02)
        for each in reports:
            if not each.ready:
                self._give_up(each.message)
            logger.info("Model process %d is ready: %s", each.index, each.message)
        worker.model_reports = reports
        worker.intake.know(reports)
        settle_garbage()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:  # noqa: ARG002 - Celery's
        """Look once a second whether a child ended or its replacement failed to load."""
        hub.call_repeatedly(1.0, self._watch)

    def _watch(self) -> None:
        """Replace what ended; count how many replacements in a row failed, whether they said so."""
        # Celery looks when a process's pipe closes, which is an instant before the process can be
        # reaped, and then not for 5 s: often enough the batch it held had to wait for that.
        self._worker.pool.maintain_pool()
        reports = {each.pid: each for each in self._reports()}
        for pid, each in reports.items():
            if each.ready and pid not in self._seen:
                self._failures[each.index] = 0
            elif not each.ready and pid not in self._seen:
                self._count_failure(each.index, each.message)
        self._seen |= reports.keys()
        for process in self._worker.pool._pool._pool:
            before = self._pids.get(process.index)
            if before not in (None, process.pid) and before not in self._seen:
                self._count_failure(process.index, f"process {before} ended while loading")
            self._pids[process.index] = process.pid

    def _count_failure(self, index: int, message: str) -> None:
        self._failures[index] = self._failures.get(index, 0) + 1
        logger.error("A replacement of model process %d failed: %s", index, message)
        if self._failures[index] >= MAX_FAILURES and state.should_stop is None:
            logger.critical("%d replacements in a row failed; giving up.", MAX_FAILURES)
            state.should_stop = EX_CONFIG

    def _reports(self) -> list[Report]:
        if self._folder is None:
            return []
        files = sorted(self._folder.glob("*.json"))
        return [Report(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def _give_up(self, message: str) -> None:
        logger.critical("The worker can't start. %s", message)
        raise WorkerShutdown(EX_CONFIG)


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def check_pool(worker: Any) -> None:
    """See to it that a worker has the pool its models run in.

    Raises:
        ConfigurationError: it was started with another one, or with an option that can't batch.
    """
    if not worker.pool_cls.__module__.endswith("prefork"):
        raise ConfigurationError(
            "Golem runs its models in Celery's prefork pool: start the worker without --pool."
        )
    if worker.autoscale:
        raise ConfigurationError(
            "Autoscaling would start more processes than there are devices: leave --autoscale "
            "away, set GOLEM_PROCESSES, and scale by starting more workers."
        )
