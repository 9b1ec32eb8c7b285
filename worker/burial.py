"""Giving a job up: what is kept of it, with its message, for somebody to look at.

`golem_tasks._dead` names the keys. The letter is written before the job's FAILURE is stored, and
the message is acknowledged after both.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import redis
from celery.utils.log import get_logger
from kombu.utils.json import dumps

from golem_tasks._dead import DeadLetter, Keys, bury
from golem_tasks._redis import FAILED, broker_server
from golem_tasks.contract import SENT_AT_HEADER
from golem_tasks.errors import PoisonJob
from worker.requests import BatchedRequest
from worker.settings import WorkerSettings

__all__ = ["Burial", "as_sent"]

logger = get_logger(__name__)

_LATEST_S = 1e11  # the year 5138; beyond 9999 there is no date to show
_MARK = "redelivered"  # what kombu and our transport put into a message they put back


class Burial:
    """Writes dead letters over a connection of its own, so it works under any transport."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    @cached_property
    def _client(self) -> Any:
        # Made when the first job is given up; most workers never do that.
        return redis.Redis(connection_pool=broker_server(self._settings).pool())

    def bury(self, request: BatchedRequest, error: PoisonJob, crashes: int) -> None:
        """Keep a job that is given up, and its message; safe to do twice.

        Args:
            request: the job.
            error: what its producer gets.
            crashes: how often it ended its process, alone in it.

        Raises:
            BrokerUnavailable: the broker is away or refuses; the job mustn't be settled yet.
        """
        settings = self._settings
        if not settings.max_dead_letters:
            return
        try:
            message = as_sent(request.message._raw)  # noqa: SLF001 - as kombu puts a message back
        except (LookupError, RecursionError, TypeError, ValueError) as exc:
            # No reason to try for ever: its producer is told all the same.
            logger.error("Job %.200r can't be kept: %s", request.id, type(exc).__name__)  # noqa: TRY400 - no trace: it may hold content
            return
        letter = _letter(request, error, crashes, message, settings)
        keys = Keys.of(settings.global_keyprefix)
        try:
            bury(self._client.eval, keys, letter, message, settings.max_dead_letters)
        except FAILED as exc:
            raise broker_server(settings).unavailable(exc) from exc
        logger.error("Job %.200r is given up; golem dead show has its message.", request.id)


def _letter(
    request: BatchedRequest,
    error: PoisonJob,
    crashes: int,
    message: str,
    settings: WorkerSettings,
) -> DeadLetter:
    return DeadLetter(
        id=request.id,
        job_id=request.id,
        task=request.type,
        list_name=_list_name(request, settings),
        delivery_tag=request.message.delivery_tag,
        reason=error.reason,
        error=str(error),
        deliveries=getattr(request.message, "deliveries", 1),
        crashes=crashes,
        sent_s=_sent_s(request),
        received_s=request.received_s,
        died_s=time.time(),
        worker=request.hostname,
        message_bytes=len(message),
    )


def as_sent(message: dict[str, Any]) -> str:
    """The message in JSON as its producer sent it, without the marks of earlier deliveries."""
    properties = message["properties"]
    unmarked = {**properties, "delivery_info": _unmarked(properties["delivery_info"])}
    headers = _unmarked(message["headers"])
    return str(dumps({**message, "headers": headers, "properties": unmarked}))


def _unmarked(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != _MARK}


def _list_name(request: BatchedRequest, settings: WorkerSettings) -> str:
    source = getattr(request.message, "source", None)
    if source is not None:
        return str(source).removeprefix(settings.global_keyprefix)
    # The stock transport doesn't say which list it was, so its priority is lost.
    key = request.delivery_info["routing_key"]
    return settings.bulk_queue if key == settings.bulk_queue else settings.queue


def _sent_s(request: BatchedRequest) -> float | None:
    value = request.request_dict.get(SENT_AT_HEADER)
    # Whatever a producer writes there, the letter tells a time or none.
    return value if isinstance(value, int | float) and 0 < value < _LATEST_S else None
