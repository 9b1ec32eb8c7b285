"""Trials: which of the jobs that keep being delivered ends its worker, and which only wait near it.

A job that takes the whole worker with it, as when a container's memory runs out, raises the
delivery count of everything that worker held. So a job that has been delivered as often as allowed
is run once more, alone, and no two of them at a time. Only one that is delivered yet again, its
own trial begun and never ended, is poison.

Redis may hang, so all of this is asked and noted by a thread (`worker.recording`), which keeps the
job meanwhile: it is neither in the buffer nor in a process.

=============================  ======  ==============================================  =====
key (global_keyprefix before)  type    content                                         TTL
=============================  ======  ==============================================  =====
``golem:dead:tried:{tag}``     string  "1" from the beginning of a message's trial to  1 day
                                       its end
=============================  ======  ==============================================  =====
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import redis
from celery.utils.log import get_logger

from golem_tasks._dead import Keys
from golem_tasks._redis import FAILED, broker_server
from worker.recording import RETRY_S, Recorder
from worker.requests import BatchedRequest
from worker.settings import WorkerSettings

__all__ = ["Trials"]

logger = get_logger(__name__)

TTL_S = 24 * 3600
UNTRIED_TIMES = 10
"""Past so many times the allowed deliveries a job is poison even if its trial never began."""


class Trials:
    """Knows by delivery count, and by what is noted in Redis, where a job stands.

    Args:
        settings: of the worker.
        recorder: whose thread talks to Redis; used for nothing else, so that a result backend that
            is away keeps no trial from its end.
    """

    def __init__(self, settings: WorkerSettings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self.beginning = False
        """Whether a trial is about to begin: none other may, and a process is kept for it."""
        self._refused_s = -math.inf
        """When it couldn't be noted, in monotonic seconds."""
        self._noted = Keys.of(settings.global_keyprefix).tried

    @cached_property
    def _client(self) -> Any:
        # Made when the first job comes so far; most workers never see one.
        return redis.Redis(connection_pool=broker_server(self._settings).pool())

    @property
    def paused(self) -> bool:
        """Whether none may begin, since it couldn't be noted a moment ago."""
        return time.monotonic() - self._refused_s < RETRY_S

    def due(self, deliveries: int) -> bool:
        """Whether a job with so many deliveries runs alone, on trial."""
        return deliveries >= max(2, self._settings.max_deliveries)

    def judge(self, request: BatchedRequest, deliveries: int, then: Callable[[bool], None]) -> None:
        """Call `then` with whether a job is poison, now or, if Redis has to be asked, soon.

        If Redis can't be asked, it isn't yet: its trial comes again.
        """
        allowed = self._settings.max_deliveries
        if allowed < deliveries <= UNTRIED_TIMES * allowed:
            ask = partial(self._tried, request.message.delivery_tag)
            self._recorder.put(request.id, ask, lambda tried: then(bool(tried)), [request])
        else:
            then(deliveries > allowed)

    def begin(self, request: BatchedRequest, then: Callable[[bool], None]) -> None:
        """Note that the trial of a job begins; call `then` with whether it may: whether it is.

        Where Redis refuses it nothing else waits: the job's trial comes again after a pause.
        """
        self.beginning = True

        def begun(noted: Any) -> None:
            self.beginning = False
            if not noted:
                self._refused_s = time.monotonic()
            then(bool(noted))

        self._recorder.put(
            request.id, partial(self._note, request.message.delivery_tag), begun, [request]
        )

    def end(self, request: BatchedRequest) -> None:
        """Note that the trial of a job has ended, however it did: its worker lives."""
        forget = partial(self._forget, request.message.delivery_tag)
        self._recorder.put(request.id, forget, lambda _: None)

    def _tried(self, tag: str) -> bool:
        try:
            return bool(self._client.exists(self._noted + tag))
        except FAILED as exc:
            logger.warning("Whether a job was tried can't be asked now: %s", exc)
            return False

    def _note(self, tag: str) -> bool:
        try:
            self._client.set(self._noted + tag, "1", ex=TTL_S)
        except FAILED as exc:
            logger.warning("The trial of a job can't be noted and begins later: %s", exc)
            return False
        return True

    def _forget(self, tag: str) -> None:
        try:
            self._client.delete(self._noted + tag)
        except FAILED as exc:
            # Harmless, unless this worker dies before the job is acknowledged. Not tried again: the
            # job's next trial may have begun by then.
            logger.warning("The end of a job's trial can't be noted: %s", exc)
