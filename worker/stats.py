"""What a worker tells of itself, for `golem_tasks.backlog`, ``golem queue`` and ``golem top``.

==========================  ====  ===============================================  ==============
key                         type  content                                          TTL
==========================  ====  ===============================================  ==============
``golem:workers:{queue}``   hash  one field for each worker of the queue pair, by  15 s after the
                                  Celery's name of it: a                           last worker
                                  `golem_tasks.backlog.WorkerStats` as JSON        wrote
==========================  ====  ===============================================  ==============
``global_keyprefix`` comes before it. A field doesn't expire by itself: whoever reads passes over
what is older than 15 s, by the server's clock, workers remove such fields of others now and then,
and one that leaves in good order removes its own.

The event loop composes the figures, four times a second while it holds jobs and every three seconds
else; a thread with a connection of its own writes them. So a Redis that is away or hangs delays
nothing but the figures: what couldn't be written is dropped for what is newer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis
from celery import bootsteps, signals
from celery.utils.log import get_logger
from celery.worker import state
from pydantic import ValidationError

from golem_tasks._redis import FAILED, Server, broker_server, is_passing
from golem_tasks.backlog import STATS_TTL_S, Held, ProcessMemory, WorkerStats, workers_key
from worker.batcher import Lane
from worker.intake import Intake
from worker.memory import memory_of
from worker.processes import Report

__all__ = ["Publisher", "Statistics"]

logger = get_logger(__name__)

BUSY_S = 0.25
IDLE_S = 3.0
MEMORY_S = 5.0
"""Between two looks at the memory of the model processes, some milliseconds for each."""
_PAUSE_S = 2.0  # after a failure
_LEAVE_S = 1.0  # what a worker that leaves waits at most for its field to be removed


class Statistics(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Composes the figures in the event loop's turns."""

    requires = ("worker.intake:Intake", "worker.processes:ModelProcesses")
    label = "Statistics"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._worker = worker
        self._publisher: Publisher | None = None
        self._model: dict[str, Any] = {}
        self._held_before = False
        self._told_at_s = 0.0

    def start(self, worker: Any) -> None:
        """Begin to tell; the models are loaded by now."""
        settings = worker.app.golem_settings
        self._model = _model(worker.model_reports)
        self._publisher = Publisher(broker_server(settings), workers_key(settings), worker.hostname)
        self._publisher.start()
        # A child's failures come with its dispatch; these are the ones settled in this process.
        signals.task_failure.connect(self._on_failure, weak=False)
        # Not in `stop`, which comes before the processes have finished what they hold.
        signals.worker_shutdown.connect(self._leave, weak=False)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:  # noqa: ARG002 - Celery's
        """Look at the figures four times a second; called for each new connection."""
        self._held_before = False  # the time without one says nothing of how fast the worker is
        hub.call_repeatedly(BUSY_S, self._beat)

    def _leave(self, **_: Any) -> None:
        """Take this worker's field away."""
        if self._publisher is not None:
            self._publisher.stop()

    def _beat(self) -> None:
        intake: Intake = self._worker.intake
        lanes = intake.held()
        now_s, held = time.monotonic(), any(sum(lane) for lane in lanes.values())
        intake.tally.beat(now_s, loaded=held and self._held_before)
        quiet = not held and not self._held_before
        self._held_before = held
        if self._publisher is None or (quiet and now_s - self._told_at_s < IDLE_S):
            return
        self._told_at_s = now_s
        self._publisher.tell(
            WorkerStats(
                name=self._worker.hostname,
                at_s=now_s,
                processes=intake.ready,
                interactive=_held(lanes[Lane.INTERACTIVE]),
                bulk=_held(lanes[Lane.BULK]),
                scheduled=len(state.scheduled_requests),
                **{**self._model, **intake.tally.told()},
            ),
            _pids(self._worker.pool),
        )

    def _on_failure(self, **_: Any) -> None:
        self._worker.intake.tally.failed += 1


class Publisher:
    """Writes the latest figures from a thread of its own.

    Args:
        server: the broker.
        key: the hash.
        name: this worker's field.
    """

    def __init__(self, server: Server, key: str, name: str) -> None:
        self._key = key
        self._name = name
        self._client = redis.Redis(connection_pool=server.pool())
        self._changed = threading.Condition()
        self._latest: tuple[WorkerStats, tuple[int, ...]] | None = None
        self._memory: tuple[ProcessMemory, ...] = ()
        self._looked_at_s = -math.inf
        self._leaving = False
        self._ahead_s: float | None = None  # of the monotonic clock here is the server's
        self._cleaned_at_s = 0.0
        self._complaint = ""
        self._thread = threading.Thread(target=self._run, name="golem-stats", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def tell(self, stats: WorkerStats, pids: Sequence[int] = ()) -> None:
        """Have this written next, with `at_s`, monotonic here, turned into the server's time.

        Args:
            stats: the figures.
            pids: the model processes, whose memory is looked up in the thread.
        """
        with self._changed:
            self._latest = stats, tuple(pids)
            self._changed.notify()

    def stop(self) -> None:
        """Remove the field, if that takes no longer than a second, and end the thread."""
        with self._changed:
            self._leaving = True
            self._changed.notify()
        self._thread.join(_LEAVE_S)

    def _run(self) -> None:
        while (latest := self._next()) is not None:
            stats, pids = latest
            try:
                self._write(stats.model_copy(update={"process_memory": self._look(stats, pids)}))
            except FAILED as exc:
                self._complain(exc)
                with self._changed:
                    self._changed.wait_for(lambda: self._leaving, _PAUSE_S)
        with suppress(*FAILED):
            self._client.hdel(self._key, self._name)
        self._client.connection_pool.disconnect()

    def _next(self) -> tuple[WorkerStats, tuple[int, ...]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._leaving or self._latest is not None)
            latest, self._latest = self._latest, None
            return None if self._leaving else latest

    def _look(self, stats: WorkerStats, pids: Sequence[int]) -> tuple[ProcessMemory, ...]:
        """The memory of these processes, which is looked up anew once it is old."""
        known = [each.pid for each in self._memory]
        if stats.at_s - self._looked_at_s >= MEMORY_S or known != list(pids):
            self._looked_at_s = stats.at_s
            self._memory = tuple(found for pid in pids if (found := memory_of(pid)))
        return self._memory

    def _write(self, stats: WorkerStats) -> None:
        if self._ahead_s is None:
            self._set_clock(self._client.time())
        told = stats.model_copy(update={"at_s": stats.at_s + (self._ahead_s or 0.0)})
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hset(self._key, self._name, told.model_dump_json())
            pipe.expire(self._key, STATS_TTL_S)
            pipe.time()
            *_, server_time = pipe.execute()
        self._set_clock(server_time)
        if stats.at_s - self._cleaned_at_s > STATS_TTL_S:
            self._cleaned_at_s = stats.at_s
            self._clean(told.at_s)

    def _set_clock(self, server_time: Any) -> None:
        seconds, microseconds = server_time
        self._ahead_s = seconds + microseconds / 1e6 - time.monotonic()

    def _clean(self, now_s: float) -> None:
        """Remove the fields of workers that are gone."""
        fields: Any = self._client.hgetall(self._key)
        gone = [name for name, raw in fields.items() if now_s - _said_at_s(raw) > STATS_TTL_S]
        if gone:
            self._client.hdel(self._key, *gone)

    def _complain(self, exc: BaseException) -> None:
        if is_passing(exc):
            logger.debug("The worker's figures aren't written: %s", exc)
        elif str(exc) != self._complaint:
            self._complaint = str(exc)
            logger.warning(
                "Redis refuses this worker's figures (%s): golem top can't show it, and a backlog "
                "lacks what it holds; see to the server, or to its user's rights on %s.",
                exc,
                self._key,
            )


def _model(reports: list[Report]) -> dict[str, Any]:
    """What the model processes said of themselves; they share a model, not always a device."""
    first = reports[0]
    return {
        "model": first.model,
        "dtype": first.dtype,
        "device": ",".join(sorted({each.device for each in reports})),
        "token_budget": first.token_budget,
        "token_ceiling": first.token_ceiling,
    }


def _pids(pool: Any) -> list[int]:
    """The model processes by their index."""
    running = getattr(pool._pool, "_pool", ())  # noqa: SLF001 - the only list of them there is
    return [process.pid for process in sorted(running, key=lambda process: process.index)]


def _held(lane: tuple[int, int]) -> Held:
    reserved, in_flight = lane
    return Held(reserved=reserved, in_flight=in_flight)


def _said_at_s(raw: bytes) -> float:
    try:
        return WorkerStats.model_validate_json(raw).at_s
    except ValidationError:
        return 0.0
