"""Workers under a supervisor that starts again what ends, as an operator's systemd does."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from types import TracebackType
from typing import Self

from benchmarks.contenders import RunningWorker
from benchmarks.procfs import command
from benchmarks.report import progress
from worker.processes import EX_CONFIG

__all__ = ["OF_ITS_MODEL", "Absent", "Exit", "Fleet"]

_LOOK_S = 0.1
OF_ITS_MODEL = "SIGKILL of its model"
"""A worker whose model process is killed while it starts, or three times in a row, gives up."""
_CODES = {
    # Before Celery has installed its handlers the signal itself ends a worker, which holds nothing.
    "SIGTERM": (0, -signal.SIGTERM % 256),
    OF_ITS_MODEL: (EX_CONFIG,),
}
_GIVES_UP_S = 10.0
_ORPHAN_S = 20.0
"""A model process may take so long to notice that its worker is gone."""


class Absent(Exception):
    """Raised when a fault finds nothing to hit just now, such as a worker that is starting."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one worker's main process."""

    worker: str
    cause: str
    """The signal we sent, `OF_ITS_MODEL`, or ``itself``."""
    code: int | None

    @property
    def expected(self) -> bool:
        """Whether it was killed, or left as it should when it was told to, or had no model."""
        if self.cause in _CODES:
            return self.code in _CODES[self.cause]
        return self.cause == "SIGKILL"


class Fleet:
    """Several workers of one kind.

    Main processes of all but the first are killed and terminated, so that the first tells how
    memory and open files develop over the whole time. Its models and its connections aren't spared.

    Args:
        workers: not started yet.
        stop_s: a worker told to leave is killed after this.
    """

    def __init__(self, workers: Sequence[RunningWorker], *, stop_s: float) -> None:
        self.workers = list(workers)
        self.exits: list[Exit] = []
        self.orphans: set[int] = set()
        """Model processes whose main process was killed alone."""
        self._stop_s = stop_s
        self._told: dict[str, tuple[signal.Signals, float]] = {}
        """What we last sent to each worker's present main process, and when."""
        self._bereft: dict[str, float] = {}
        """When a model process of each worker was last killed."""
        self._lock = Lock()
        self._leaving = Event()
        self._pool = ThreadPoolExecutor(1, "supervisor")
        self._supervisor: Future[None] | None = None

    @property
    def veteran(self) -> RunningWorker:
        """The worker whose main process lives all along."""
        return self.workers[0]

    def kill_model(self, rng: random.Random) -> str:
        """SIGKILL one model process of any worker.

        Raises:
            Absent: there is none.
        """
        found = [(worker, pid) for worker in self.workers for pid in worker.models]
        if not found:
            raise Absent("no model process is up")
        worker, pid = rng.choice(found)
        self._bereft[worker.name] = time.monotonic()
        _kill(pid)
        return f"{worker.name} model {pid}"

    def kill_worker(self, rng: random.Random) -> str:
        """SIGKILL a main process and its models.

        Raises:
            Absent: the worker is between two lives, as in the two below.
        """
        worker, pid, models = self._target(rng, signal.SIGKILL)
        for each in (pid, *models):
            _kill(each)
        return f"{worker.name} main process {pid} and {len(models)} models"

    def kill_parent(self, rng: random.Random) -> str:
        """SIGKILL a main process."""
        worker, pid, models = self._target(rng, signal.SIGKILL)
        self.orphans.update(models)
        _kill(pid)
        return f"{worker.name} main process {pid}"

    def terminate(self, rng: random.Random) -> str:
        """SIGTERM a main process."""
        worker, pid, _ = self._target(rng, signal.SIGTERM)
        _kill(pid, signal.SIGTERM)
        return f"{worker.name} main process {pid}"

    def surviving_orphans(self) -> int:
        """How many orphans still run after all the time they may take; they are ended here."""
        deadline_s = time.monotonic() + _ORPHAN_S
        while (alive := self._living_orphans()) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
        for pid in alive:
            _kill(pid)
        return len(alive)

    def _living_orphans(self) -> list[int]:
        return [pid for pid in self.orphans if b"spawn_main" in command(pid)]

    def _target(
        self, rng: random.Random, number: signal.Signals
    ) -> tuple[RunningWorker, int, list[int]]:
        worker = rng.choice(self.workers[1:])
        with self._lock:  # so that the supervisor doesn't take this end for the worker's own
            pid, models = worker.pid, worker.models
            if pid is None:
                raise Absent(f"{worker.name} is starting")
            # Before it has models it may not know yet how to leave, and at its very end no longer.
            if number is signal.SIGTERM and (not models or worker.name in self._told):
                raise Absent(f"{worker.name} is starting or leaving")
            self._told[worker.name] = (number, time.monotonic())
            return worker, pid, models

    def _supervise(self) -> None:
        while not self._leaving.wait(_LOOK_S):
            for worker in self.workers:
                with self._lock:
                    self._look_after(worker)

    def _look_after(self, worker: RunningWorker) -> None:
        number, at_s = self._told.get(worker.name, (None, 0.0))
        if not worker.alive:
            code = worker.stop()
            bereft = time.monotonic() - self._bereft.get(worker.name, -math.inf) < _GIVES_UP_S
            itself = OF_ITS_MODEL if bereft and code == EX_CONFIG else "itself"
            ended = Exit(worker.name, number.name if number else itself, code)
            self._told.pop(worker.name, None)
            self.exits.append(ended)
            if not ended.expected:
                progress(f"{worker.name} ended, code {ended.code}, after {ended.cause}")
            worker.start(wait=False)
        elif number is signal.SIGTERM and time.monotonic() - at_s > self._stop_s:
            progress(f"{worker.name} didn't leave within {self._stop_s:g} s; killing it")
            self.exits.append(Exit(worker.name, number.name, None))
            self._told[worker.name] = (signal.SIGKILL, time.monotonic())
            for each in (worker.pid, *worker.models):
                if each is not None:
                    _kill(each)

    def __enter__(self) -> Self:
        try:
            for worker in self.workers:
                worker.start(wait=False)
            for worker in self.workers:
                worker.wait_ready()
        except BaseException:
            self.stop()
            raise
        self._supervisor = self._pool.submit(self._supervise)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop supervising, then the workers; raise what the supervisor ended with, if it did."""
        self._leaving.set()
        self._pool.shutdown()
        for worker in self.workers:
            worker.stop()
        for pid in self._living_orphans():
            _kill(pid)
        if self._supervisor is not None:
            self._supervisor.result()


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself, which the supervisor sees as well
