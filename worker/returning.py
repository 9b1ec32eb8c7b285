"""Buffered jobs that this worker won't compute soon go back to their queues, for others to take.

All of them when it leaves. And when no model process has been up for a while: the model of one that
ended may load for minutes, in which other workers can answer what waits here. What goes back is
uncounted as a delivery, and taken again once a process is ready.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from celery.utils.log import get_logger
from celery.worker import state
from redis.exceptions import RedisError

from worker.batcher import Batcher, Waiting
from worker.requests import BatchedRequest
from worker.transport import QoS

__all__ = ["Buffers", "Returning"]

logger = get_logger(__name__)

LOOK_S = 1.0
STALLED_S = 2.0
"""Seconds without a model process after which jobs go back; most processes end and none is lost."""


class Buffers(Protocol):
    """What `Returning` needs of the intake."""

    worker: Any
    batcher: Batcher[BatchedRequest]

    @property
    def open(self) -> bool:
        """Whether the worker takes and dispatches jobs; False once it is leaving."""

    @property
    def ready(self) -> int:
        """Processes that are up, model loaded."""


class Returning:
    """Gives jobs of the buffer back to the head of their queues; of none that runs."""

    def __init__(self, intake: Buffers) -> None:
        self._intake = intake
        self._stalled_since_s: float | None = None

    def register_with_event_loop(self, hub: Any) -> None:
        """Look once a second whether any process is up."""
        hub.call_repeatedly(LOOK_S, self.watch)

    def give_back_all(self) -> None:
        """A shutdown begins. What Redis doesn't take now goes back when the channel closes.

        Or when its lease ends.
        """
        self._give_back(list(self._intake.batcher))

    def watch(self) -> None:
        """Give back what waits if no process has been up for `STALLED_S`; nothing is fetched then.

        A suspect stays: elsewhere nobody would know that it may be what ended the process, and it
        would be sent with others again. So does a job on trial.
        """
        intake, now_s = self._intake, time.monotonic()
        if intake.ready or not intake.open:
            self._stalled_since_s = None
            return
        if self._stalled_since_s is None:
            self._stalled_since_s = now_s
        jobs = [job for job in intake.batcher if not (job.suspect or job.trial)]
        if not jobs or now_s - self._stalled_since_s < STALLED_S:
            return
        if self._give_back(jobs):
            logger.warning(
                "No model process is up: %d waiting jobs are back in the queue, for other workers "
                "or until one is.",
                len(jobs),
            )
            return
        # Those that were taken out are this worker's as before; the next look tries again.
        kept = {id(job.request) for job in intake.batcher}
        lost = [job for job in jobs if id(job.request) not in kept]
        for job in lost:
            state.task_reserved(job.request)
        intake.batcher.put_back(lost)

    def _give_back(self, jobs: list[Waiting[BatchedRequest]]) -> bool:
        """Put jobs back into their queues; False if that can't be done now."""
        consumer = self._intake.worker.consumer.task_consumer
        qos = getattr(getattr(consumer, "channel", None), "qos", None)
        if not isinstance(qos, QoS):
            return False
        leaving = {id(job.request) for job in jobs}
        for job in self._intake.batcher.discard(lambda request: id(request) in leaving):
            state.task_ready(job.request)
        try:
            qos.give_back([job.request.message for job in jobs])
        except (RedisError, OSError) as exc:
            logger.warning("%d waiting jobs can't be given back yet: %s", len(jobs), exc)
            return False
        return True
