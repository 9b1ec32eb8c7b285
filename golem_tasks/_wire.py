r"""What a producer writes to Redis and reads from it; no connection is opened here.

Celery and kombu compose the message, so that it is an ordinary one, but onto a channel that hands
the bytes back instead of sending them: whoever asked sends them in a pipeline, from a thread or an
event loop. The Celery app is ours alone. It is never the current app, and it doesn't look at
``CELERY_BROKER_URL`` or ``CELERY_RESULT_BACKEND``, which may belong to the producer's own app.

============================  =======  ================================================  ========
key                           type     content                                           TTL
============================  =======  ================================================  ========
``{queue}``                   list     messages, priority 0 (the highest), next at tail  none
``{queue}\x06\x16{3,6,9}``       list     messages of the lower priorities                  none
``celery-task-meta-{id}``     string   a job's state and answer; also published on the   as set
                                       channel of that name
============================  =======  ================================================  ========
All of them have ``global_keyprefix`` before them, and all of them are Celery's own.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from celery import Celery, states
from celery.app import backends
from celery.exceptions import TaskRevokedError
from celery.utils.nodenames import anon_nodename
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.exceptions import EncodeError, OperationalError
from kombu.messaging import Producer
from kombu.transport import virtual
from kombu.utils.json import dumps
from pydantic import ValidationError
from redis.exceptions import NoPermissionError

from golem_tasks import _redis, errors
from golem_tasks.contract import SENT_AT_HEADER, Prediction, Predictions
from golem_tasks.errors import InvalidJob, JobError, JobExpired, JobRevoked
from golem_tasks.settings import ClientSettings

__all__ = ["PRIORITIES", "Answer", "Envelope", "Message", "Meta", "Wire"]

logger = logging.getLogger(__name__)

PRIORITIES = (0, 3, 6, 9)
"""kombu's steps: a priority between two of them counts as the lower number."""
_SEPARATOR = "\x06\x16"

Answer: TypeAlias = Prediction | Predictions
Meta: TypeAlias = dict[str, Any]
"""A stored result as Celery writes it: status, result, traceback, ..."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where and when a job goes."""

    queue: str
    """Interactive or bulk queue of the settings."""
    priority: int = 0
    """0, the highest, to 9."""
    expires_s: float | None = None
    """Seconds from now after which it isn't worth computing."""
    countdown_s: float | None = None
    """Seconds from now before which it isn't computed."""


@dataclass(frozen=True, slots=True)
class Message:
    """One job on its way, or what is written beside it: `command`, `key`, `payload`, `options`."""

    id: str
    key: str
    payload: str
    body_bytes: int
    command: str = "LPUSH"
    options: tuple[str, ...] = ()


class _Channel(virtual.Channel):
    """Hands a composed message back instead of sending it: basic_publish returns what _put does."""

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> tuple[str, int, str, int]:
        body = message["body"]
        body_bytes = len(body) * 3 // 4 - body[-2:].count("=")  # of what base64 stands for
        return queue, int(message["properties"]["priority"]), dumps(message), body_bytes


class _Transport(virtual.Transport):
    Channel = _Channel


class Wire:
    """Composes messages and reads results for one pair of broker and result backend.

    Thread-safe: nothing here changes after construction. Celery's signals ``before_task_publish``
    and ``after_task_publish`` are sent as a message is composed, for whatever traces publishes.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.broker: _redis.Server = _redis.broker_server(settings)
        self.backend: _redis.Server = _redis.backend_server(settings)
        self._app = _producer_app(settings)
        self._store = _result_store(self._app, settings)
        self._result_prefix: bytes = self._store.task_keyprefix
        # Made here, before threads share them: Celery makes them when first used.
        self._create = self._app.amqp.create_task_message
        self._send = self._app.amqp.send_task_message
        # Kept: a channel lives as long as its connection.
        self._connection = Connection(transport=_Transport)
        self._producer = Producer(self._connection.channel(), auto_declare=False)
        self._queues = {
            name: Queue(name, routing_key=name) for name in (settings.queue, settings.bulk_queue)
        }

    def compose(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        job_id: str,
        envelope: Envelope,
        shown: str,
    ) -> Message:
        """Compose one ordinary Celery message (protocol 2, JSON).

        Args:
            task: its name.
            args: positional arguments.
            kwargs: keyword arguments.
            job_id: id of the job.
            envelope: where and when it goes.
            shown: what a worker's log may show of `args`: never the text.

        Raises:
            InvalidJob: it can't be encoded as JSON, or is larger than allowed.
        """
        message = self._create(
            job_id,
            task,
            args,
            kwargs,
            countdown=envelope.countdown_s,
            expires=envelope.expires_s,
            argsrepr=shown,
            kwargsrepr=repr(dict(kwargs)),
            origin=anon_nodename(),
        )
        try:
            composed = self._send(
                self._producer,
                task,
                message,
                queue=self._queues[envelope.queue],
                declare=[],
                retry=False,
                priority=envelope.priority,
                headers={SENT_AT_HEADER: time.time()},
            )
        except EncodeError as exc:
            raise InvalidJob.because("args", f"can't be encoded as JSON ({exc})") from exc
        name, step, payload, body_bytes = composed
        allowed = self.settings.max_message_bytes
        if body_bytes > allowed:
            reason = f"is {body_bytes} bytes as a message, {allowed} are allowed"
            raise InvalidJob.because("the job", reason)
        return Message(job_id, self._list_key(name, step), payload, body_bytes)

    def queue_keys(self, queue: str) -> list[str]:
        """Every Redis list of one queue, one for each priority step."""
        return [self._list_key(queue, step) for step in PRIORITIES]

    def result_key(self, job_id: str) -> bytes:
        """Key, and channel, of a job's result."""
        return self._result_prefix + job_id.encode()

    def read(self, raw: bytes) -> Meta:
        """Decode what is stored under a result key; what can't be decoded reads as a failure."""
        try:
            meta: Meta = self._store.decode(raw)
            if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
                raise TypeError("it has no status")  # noqa: TRY301 - unreadable like the rest
        except Exception as exc:  # noqa: BLE001 - codecs raise anything; one bad record is one job's
            text = f"The stored result can't be read as JSON ({exc}): which task wrote it?"
            return {
                "status": states.FAILURE,
                "result": self._store.encode_result(JobError(text), states.FAILURE),
            }
        return meta

    @staticmethod
    def is_ready(meta: Meta) -> bool:
        """Whether the job has ended, well or badly."""
        return meta["status"] in states.READY_STATES

    @staticmethod
    def is_revoked(meta: Meta) -> bool:
        """Whether it ended by being cancelled (or by expiring)."""
        return bool(meta["status"] == states.REVOKED)

    def answer(self, job_id: str, meta: Meta) -> Answer:
        """Return what a job that is ready answered.

        Raises:
            JobError: it failed; the class the worker raised, where it is one of ours.
        """
        if meta["status"] == states.SUCCESS:
            return _prediction(job_id, meta["result"])
        # Built anew each time: a raised exception carries the traceback of who raised it.
        error = self._store.exception_to_python(meta["result"])
        if isinstance(error, JobError):
            _attach(error, meta)
            raise error
        if meta["status"] == states.REVOKED:
            raise _revoked(job_id, error)
        told = f"{type(error).__name__}: {error}"
        failure = JobError(f"Job {job_id} failed in the worker, outside the model: {told}")
        _attach(failure, meta)
        raise failure from error

    def revoked(self, job_id: str) -> bytes:
        """Compose what Celery stores for a job that was revoked."""
        result = self._store.encode_result(TaskRevokedError("revoked"), states.REVOKED)
        meta = self._store._get_result_meta(  # noqa: SLF001 - Celery's own composer of this record
            result=result, state=states.REVOKED, traceback=None, request=None
        )
        encoded = self._store.encode({**meta, "task_id": job_id})
        return encoded if isinstance(encoded, bytes) else str(encoded).encode()

    def broadcast_revoke(self, job_ids: Sequence[str]) -> None:
        """Tell every worker to drop these jobs; a failure is logged only.

        What is stored as their results already decides; this spares a worker holding them. A Redis
        user who may command workers can also shut them down, so a producer's often may not.
        """
        timeout_s = self.settings.connect_timeout_s
        options = {
            **_transport_options(self.settings),
            "socket_connect_timeout": timeout_s,
            "socket_timeout": timeout_s,
            "max_retries": 1,
        }
        url = _redis.celery_url(self.broker.url)
        try:
            with Connection(url, transport_options=options) as connection:
                self._app.control.revoke(list(job_ids), connection=connection)
        except (OperationalError, *_redis.FAILED) as exc:
            cause = exc.__cause__ or exc  # kombu puts its own error round redis-py's
            logger.log(
                logging.DEBUG if isinstance(cause, NoPermissionError) else logging.WARNING,
                "The workers couldn't be told of %d cancelled jobs: %s",
                len(job_ids),
                self.broker.unavailable(cause),
            )

    def _list_key(self, queue: str, priority: int) -> str:
        step = PRIORITIES[bisect(PRIORITIES, priority) - 1]
        name = f"{queue}{_SEPARATOR}{step}" if step else queue
        return self.settings.global_keyprefix + name


def _producer_app(settings: ClientSettings) -> Any:
    app = Celery("golem-producer", set_as_current=False, fixups=[])
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_protocol=2,
        task_default_queue=settings.queue,
        task_default_delivery_mode=2,
        enable_utc=True,
        result_expires=settings.result_expires_s,
        broker_transport_options=_transport_options(settings),
        result_backend_transport_options=_transport_options(settings),
    )
    # Without a pool of its own it uses the connection it is given, not CELERY_BROKER_URL's.
    app.control.mailbox.producer_pool = None
    return app


def _result_store(app: Any, settings: ClientSettings) -> Any:
    # By URL, not app.backend: that one obeys CELERY_RESULT_BACKEND before any configuration.
    cls, url = backends.by_url(_redis.celery_url(settings.backend), app.loader)
    return cls(app=app, url=url)


def _transport_options(settings: ClientSettings) -> dict[str, Any]:
    return {
        "global_keyprefix": settings.global_keyprefix,
        **_redis.sentinel_options(settings),
    }


def _prediction(job_id: str, result: Any) -> Answer:
    many = isinstance(result, dict) and "predictions" in result
    try:
        return Predictions.model_validate(result) if many else Prediction.model_validate(result)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise JobError(
            f"Job {job_id} ended with something that isn't a prediction ({where}: {first['msg']}): "
            "either the id belongs to another task, or producer and worker need the same version."
        ) from None


def _revoked(job_id: str, error: Any) -> JobError:
    if "expired" in str(error):
        return JobExpired(f"Job {job_id} expired before it was answered.")
    return JobRevoked(f"Job {job_id} was cancelled before it was answered.")


def _attach(error: JobError, meta: Meta) -> None:
    # A bad payload is the producer's; where the worker read it is of no use to anybody.
    traceback = meta.get("traceback")
    if (
        traceback
        and type(error).__module__ == errors.__name__
        and not isinstance(error, InvalidJob)
    ):
        error.add_note(f"In the worker:\n{traceback}")
