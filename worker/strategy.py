"""What stands between a message and a request: Celery's strategy, behind a check of the message.

Stock Celery ends the worker, or reconnects for ever, on a message whose body isn't a triple or that
has no id, and only logs one it can't decode. Here the producer gets a FAILURE and the queue moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.app.task import Context
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker import strategy as celery_strategy
from kombu.exceptions import KombuError

from golem_tasks.errors import InvalidJob

__all__ = ["strategy"]

logger = get_logger(__name__)

_UNREADABLE = (
    AttributeError,
    InvalidTaskError,
    KombuError,
    RecursionError,  # JSON nested a thousand deep
    TypeError,
    ValueError,
)


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    """Celery's default strategy, which never sees a message it would stumble over."""
    quiet = celery_strategy.logger
    level = quiet.level
    # A line per job says nothing that the line per batch doesn't, and costs more than the job.
    quiet.setLevel("WARNING")
    try:
        handle = celery_strategy.default(task, app, consumer)
    finally:
        quiet.setLevel(level)
    max_bytes = app.golem_settings.max_message_bytes

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        try:
            _check_message(message, max_bytes)
            handle(message, body, ack, reject, callbacks)
        except consumer.connection_errors as exc:
            if not isinstance(exc, KeyError):  # kombu counts KeyError among connection errors
                raise
            _refuse(task, message, InvalidJob.because("headers", f"lack {exc}"))
        except InvalidJob as exc:
            _refuse(task, message, exc)
        except _UNREADABLE as exc:
            _refuse(task, message, InvalidJob.because("message", f"can't be read: {exc}"))

    return on_message


def _check_message(message: Any, max_bytes: int) -> None:
    if len(message.body or "") > max_bytes:
        reason = f"has {len(message.body)} bytes, {max_bytes} are allowed"
        raise InvalidJob.because("message", reason)
    if not isinstance(message.headers.get("id"), str):
        raise InvalidJob.because("id", "must be a string in the message's headers")
    payload = message.payload
    if not isinstance(payload, list | tuple) or len(payload) != 3:  # noqa: PLR2004 - the protocol's
        raise InvalidJob.because("body", "must be [args, kwargs, embed], Celery's protocol 2")
    args, kwargs, embed = payload
    if not isinstance(args, list):
        raise InvalidJob.because("args", "must be a list")
    if not isinstance(kwargs, dict):
        raise InvalidJob.because("kwargs", "must be an object")
    if not isinstance(embed, dict | None):
        raise InvalidJob.because("embed", "must be an object")


def _refuse(task: Any, message: Any, error: InvalidJob) -> None:
    """Settle a message that can't even become a request."""
    task_id = message.headers.get("id") or message.properties.get("correlation_id")
    logger.warning("Refused a message of job %s: %s", task_id, error)
    if isinstance(task_id, str):
        context = Context(id=task_id, task=task.name, errbacks=None, chord=None)
        task.backend.mark_as_failure(task_id, error, request=context)
    message.ack_log_error(logger, ())
