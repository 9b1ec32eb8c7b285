"""Trials: which of the jobs that keep being delivered ends its worker, and which only wait near it.

A job that takes the whole worker with it, as when a container's memory runs out, raises the
delivery count of everything that worker held. So a job that has been delivered as often as allowed
is run once more, alone, and no two of them at a time. Only one that is delivered yet again, its
own trial begun and never ended, is poison.

=============================  ======  ==============================================  =====
key (global_keyprefix before)  type    content                                         TTL
=============================  ======  ==============================================  =====
``golem:dead:tried:{tag}``     string  "1" from the beginning of a message's trial to  1 day
                                       its end
=============================  ======  ==============================================  =====
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import redis
from celery.utils.log import get_logger

from golem_tasks._dead import Keys
from golem_tasks._redis import FAILED, broker_server
from worker.settings import WorkerSettings

__all__ = ["Trials"]

logger = get_logger(__name__)

TTL_S = 24 * 3600
UNTRIED_TIMES = 10
"""Past so many times the allowed deliveries a job is poison even if its trial never began."""


class Trials:
    """Knows by delivery count, and by what is noted in Redis, where a job stands."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._tried = Keys.of(settings.global_keyprefix).tried

    @cached_property
    def _client(self) -> Any:
        # Made when the first job comes so far; most workers never see one.
        return redis.Redis(connection_pool=broker_server(self._settings).pool())

    def due(self, deliveries: int) -> bool:
        """Whether a job with so many deliveries runs alone, on trial."""
        return deliveries >= max(2, self._settings.max_deliveries)

    def failed(self, tag: str, deliveries: int) -> bool:
        """Whether a job is poison. If Redis can't be asked, it isn't yet: its trial comes again."""
        allowed = self._settings.max_deliveries
        if deliveries <= allowed:
            return False
        if deliveries > UNTRIED_TIMES * allowed:
            return True
        try:
            return bool(self._client.exists(self._tried + tag))
        except FAILED as exc:
            logger.warning("Whether a job was tried can't be asked now: %s", exc)
            return False

    def begin(self, tag: str) -> None:
        """Note that the trial of a job begins.

        Raises:
            redis.exceptions.RedisError, OSError: it can't be noted, so it mustn't begin.
        """
        self._client.set(self._tried + tag, "1", ex=TTL_S)

    def end(self, tag: str) -> None:
        """Note that the trial of a job has ended, however it did: its worker lives."""
        try:
            self._client.delete(self._tried + tag)
        except FAILED as exc:
            # Harmless, unless this worker dies before the job is acknowledged.
            logger.warning("The end of a job's trial can't be noted: %s", exc)
