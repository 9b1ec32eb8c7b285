"""Refusals: what becomes of a message that can't become a request.

Stock Celery ends the worker, or reconnects for ever, on a message whose body isn't a triple or that
has no id, and prints the whole body, the user's text in it, of one it can't decode or whose task it
doesn't know, whose job then stays PENDING. Here the producer gets a FAILURE, errbacks and chord
learn of it, the queue moves, and the log names id, task and size and never the content.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.exceptions import BackendError, InvalidTaskError, NotRegistered
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer
from kombu.exceptions import KombuError
from redis.exceptions import ResponseError

from golem_tasks.errors import InvalidJob
from worker.checking import check, encodable, is_list, is_triple
from worker.recording import RETRY_S, store_failure
from worker.results import refuses_for_now

__all__ = ["RefusingConsumer"]

logger = get_logger(__name__)

READABLE_TIMES = 3
"""A body this many times over the size limit isn't even decoded for its errbacks.

In base64 it makes the largest message that our transport decodes.
"""
_SHOWN_CHARS = 200

_UNREADABLE = (
    ArithmeticError,  # a date beyond what a clock can show
    AttributeError,
    InvalidTaskError,
    KombuError,
    RecursionError,  # JSON nested a thousand deep
    TypeError,
    ValueError,
)

Handler = Callable[[Any, Any, Any, Any, Any], Any]
"""Celery's "strategy": takes message, body, ack, reject and callbacks."""


class RefusingConsumer(Consumer):  # type: ignore[misc]  # Celery ships no types
    """Celery's consumer, which settles what it can't use and keeps the content out of the log."""

    def update_strategies(self) -> None:
        """Put a check of the message before every task's strategy."""
        super().update_strategies()
        for name, handle in list(self.strategies.items()):
            self.strategies[name] = self._checked(handle)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Take out what Celery's own handler would raise on: a task that isn't named by a string.

        Our transport has done so already; the stock one hasn't.
        """
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            named = message.headers
            if "task" not in named:  # protocol 1 has it in the body
                payload = self._payload(message)
                named = payload if isinstance(payload, dict) else {}
            if isinstance(named.get("task"), str):
                handle(message)
            else:
                self.on_unknown_message(None, message)

        return on_message

    def fail_unfit(self, payload: Any, reason: str, bury: Callable[[], None]) -> None:
        """Fail the job of a message our transport shows to nobody; `bury` it when that is stored.

        The headers lie beside the body, so they can be read where the body can't be decompressed
        or mustn't. Its errbacks are in the body: of them nothing is known.
        """
        payload = _table(payload)
        headers = _table(payload.get("headers"))
        task_id = _job_id(headers, _table(payload.get("properties")))
        if task_id is None:
            bury()
            return
        task = headers.get("task")
        name = task if isinstance(task, str) else "unknown"
        context = Context(id=task_id, task=name, **_membership(headers))
        error = InvalidJob(f"The job is invalid: {reason}.", "message", reason)
        logger.warning("That message was of job %.200r, which fails", task_id)
        self._fail(task_id, error, context, bury, unread=True)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Settle a message whose compression or content can't be undone."""
        self._refuse(message, _unreadable(exc), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's
        """Settle a message that names no task."""
        self._refuse(message, InvalidJob.because("task", "must be named in the headers"))
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Settle a message Celery calls invalid."""
        self._refuse(message, _unreadable(exc), exc)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Settle a message of a task this worker doesn't have, as stock Celery would."""
        name, task_id = self._task_name(message), _job_id(message.headers, message.properties)
        self._refuse(message, NotRegistered(name))
        if self.event_dispatcher:
            fields = {"uuid": task_id, "exception": f"NotRegistered({name!r})"}
            self.event_dispatcher.send("task-failed", **fields)
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def _checked(self, handle: Handler) -> Handler:
        """The strategy `handle` behind a check of the message."""
        app = self.app
        max_bytes = app.golem_settings.max_message_bytes

        def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
            try:
                check(message, max_bytes, app)
                handle(message, body, ack, reject, callbacks)
            except self.connection_errors as exc:
                if not isinstance(exc, KeyError):  # kombu counts KeyError among connection errors
                    raise
                self._refuse(message, InvalidJob.because("headers", f"lack {exc}"), exc)
            except InvalidJob as exc:
                self._refuse(message, exc)
            except (ResponseError, BackendError) as exc:  # of a job that was revoked or expired
                if isinstance(exc, ResponseError) and not refuses_for_now(exc):
                    self._refuse(message, _unreadable(exc), exc)
                else:
                    self._later(message, exc, on_message, message, body, ack, reject, callbacks)
            except _UNREADABLE as exc:
                self._refuse(message, _unreadable(exc), exc)

        return on_message

    def _refuse(self, message: Any, error: Exception, cause: BaseException | None = None) -> None:
        """Store the failure, tell errbacks and chord, then acknowledge.

        Args:
            message: kombu's.
            error: what the producer gets.
            cause: set if the error quotes a foreign one, whose words may quote the content.
        """
        task_id, name = _job_id(message.headers, message.properties), self._task_name(message)
        settle = partial(self._refused, message, task_id, name, error, cause)
        if task_id is None:
            settle()
            return
        unread = not is_triple(self._payload(message))
        self._fail(task_id, error, self._context(message, task_id, name), settle, unread=unread)

    def _fail(
        self,
        task_id: str,
        error: Exception,
        context: Context,
        then: Callable[[], Any],
        *,
        unread: bool,
    ) -> None:
        """Have the failure stored and errbacks and chord told; then call `then`.

        A body that can't be read keeps its chord to itself; its group, named beside it, may have
        one (`recording.store_failure`).
        """
        self.controller.intake.recorder.put(
            task_id,
            lambda: store_failure(self.app.backend, task_id, error, context, unread=unread),
            lambda _: then(),
        )

    def _refused(
        self,
        message: Any,
        task_id: str | None,
        name: str,
        error: Exception,
        cause: BaseException | None,
    ) -> None:
        if not self._ours(message):
            return
        logger.warning(
            "Refused a message of job %.200r (task %.200r, %d bytes): %.200s",
            task_id,
            name,
            len(message.body or ""),
            error if cause is None else type(cause).__name__,
        )
        message.ack_log_error(logger, ())

    def _ours(self, message: Any) -> bool:
        """Whether it is still this connection's; after a lost one it is in the queue again."""
        return bool(self.task_consumer and message.channel is self.task_consumer.channel)

    def _later(self, message: Any, exc: Exception, action: Callable[..., Any], *args: Any) -> None:
        """Keep a message whose end can't be stored, as when Redis is full, and try again."""
        logger.warning(
            "The end of job %.200r can't be stored (%s); the next try is in %d s.",
            _job_id(message.headers, message.properties),
            exc,
            RETRY_S,
        )

        def again() -> None:
            if self._ours(message):
                action(*args)

        self.timer.call_after(RETRY_S, again)

    def _payload(self, message: Any) -> Any:
        """The decoded body, or None if it can't be decoded or isn't worth it."""
        most = READABLE_TIMES * self.app.golem_settings.max_message_bytes
        if message.errors or len(message.body or "") > most:
            return None
        try:
            return message.payload
        except Exception:  # noqa: BLE001 - whatever a serializer raises
            return None

    def _task_name(self, message: Any) -> str:
        name = message.headers.get("task")
        if name is None and isinstance(payload := self._payload(message), dict):
            name = payload.get("task")
        return name if isinstance(name, str) else "unknown"

    def _context(self, message: Any, task_id: str, name: str) -> Context:
        """What Celery's backend needs to fail a job's chord, chain and errbacks with it."""
        headers, payload = message.headers, self._payload(message)
        embed = payload[2] if is_triple(payload) and isinstance(payload[2], dict) else {}
        return Context(
            id=task_id,
            task=name,
            delivery_info={},
            root_id=headers.get("root_id"),
            parent_id=headers.get("parent_id"),
            **_membership(headers),
            chord=embed.get("chord") if isinstance(embed.get("chord"), dict) else None,
            **{key: embed.get(key) for key in ("errbacks", "chain") if is_list(embed.get(key))},
        )


def _job_id(headers: dict[str, Any], properties: dict[str, Any]) -> str | None:
    for task_id in (headers.get("id"), properties.get("correlation_id")):
        if task_id and isinstance(task_id, str) and encodable(task_id):
            return task_id
    return None


def _membership(headers: dict[str, Any]) -> dict[str, Any]:
    """The group of a job and its place in it, as far as they are ones."""
    group, index = headers.get("group"), headers.get("group_index")
    return {
        "group": group if isinstance(group, str) and encodable(group) else None,
        "group_index": index if isinstance(index, int) else None,
    }


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _unreadable(exc: BaseException) -> InvalidJob:
    return InvalidJob.because("message", f"can't be read: {str(exc)[:_SHOWN_CHARS]}")
