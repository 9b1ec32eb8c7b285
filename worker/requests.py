"""Celery's `Request`, taught that it shares its process with batch-mates.

Stock ``terminate`` and ``cancel`` signal the child that runs the request, which is right only where
a child runs one request. Here a terminated job is settled as REVOKED at once, its answer, should
one come, is dropped before it is stored (`worker.results`), and its mates go on.
"""

from __future__ import annotations

import time
from typing import Any

from celery.platforms import signals
from celery.signals import task_revoked
from celery.utils.log import get_logger
from celery.worker.request import Request
from celery.worker.state import task_ready

from worker.recording import Recorder, store_revocation

__all__ = ["BatchedRequest"]

logger = get_logger(__name__)


class BatchedRequest(Request):  # type: ignore[misc]  # Celery ships no types
    """A request that is buffered, dispatched with others and settled alone."""

    batch: Any = None
    """The dispatch that carries it, or None while it waits in the buffer."""
    failing = False
    """Whether its failure is known and being stored."""
    computed: Any = None
    """Its answer, where a process that died had got so far without storing it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received_s = time.time()

    @property
    def payload(self) -> tuple[Any, Any, Any]:
        """The decoded body: args, kwargs and embed."""
        args, kwargs, embed = self._payload
        return args, kwargs, embed

    @property
    def settled(self) -> bool:
        """Whether its outcome is already known here: failed, revoked, expired or acknowledged."""
        return bool(self._already_revoked or self.failing or self.acknowledged)

    @property
    def cancelled(self) -> bool:
        """Whether a cold shutdown gave it up; it stays unacknowledged and runs again elsewhere."""
        return bool(self._already_cancelled)

    def terminate(self, pool: Any, signal: Any = None) -> None:  # noqa: ARG002 - Celery's signature
        """Settle the job as REVOKED without harm to its mates. A batch is never killed for one."""
        if self.settled:
            return
        number = signals.signum(signal or "TERM")
        logger.info("Job %s is terminated; the other jobs of its batch go on.", self.id)
        self._announce_revoked("terminated", True, number, False)
        self._recorder.prompt()

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Give the job up in a cold shutdown; one signal ends the child for all of the batch."""
        if self.batch is None or self.batch.cancelled or not self.time_start:
            self._announce_cancelled(emit_retry=emit_retry)
            return
        self.batch.cancelled = True
        super().cancel(pool, signal, emit_retry)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery's own, but that the event loop doesn't wait for the result backend."""
        self._already_revoked = True
        task_ready(self)
        self._recorder.put(
            self.id,
            lambda: store_revocation(
                self.task.backend, self.id, reason, self._context, store_result=self.store_errors
            ),
            lambda _: self._revocation_stored(terminated, signum, expired),
            [self],
        )
        # Last, for it may fail: the job has its end by now.
        self.send_event("task-revoked", terminated=terminated, signum=signum, expired=expired)

    def _revocation_stored(self, terminated: bool, signum: Any, expired: bool) -> None:
        self.acknowledge()
        told = {"terminated": terminated, "signum": signum, "expired": expired}
        task_revoked.send(sender=self.task, request=self._context, **told)

    @property
    def _recorder(self) -> Recorder:
        recorder: Recorder = self.app.golem_recorder
        return recorder
