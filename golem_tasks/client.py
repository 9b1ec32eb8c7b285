"""The producer's client for threads: submit texts, wait for answers, cancel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar, Unpack, cast

import redis

from golem_tasks import _requests
from golem_tasks._admission import admit
from golem_tasks._asking import Asker
from golem_tasks._groups import group_ids
from golem_tasks._publishing import Publisher
from golem_tasks._requests import Planned, SubmitOptions
from golem_tasks._waiting import Late, Waiter, result_timeout
from golem_tasks._wire import Answer, Message, Meta, Wire
from golem_tasks.backlog import Backlog
from golem_tasks.bulk import Bulk
from golem_tasks.contract import Prediction, Predictions
from golem_tasks.errors import BrokerUnavailable, ResultTimeout
from golem_tasks.settings import ClientSettings, settings_of

__all__ = ["Golem", "Job", "SubmitOptions"]

AnswerT_co = TypeVar("AnswerT_co", bound=Answer, covariant=True)
PENDING = "PENDING"


class Job(Generic[AnswerT_co]):
    """One job, here or submitted elsewhere (`Golem.job`). Cheap; ask it from any thread."""

    def __init__(self, golem: Golem, job_id: str, queue: str | None) -> None:
        self._golem = golem
        self._meta: Meta | None = None
        self.id = job_id
        self.queue = queue
        """The queue it was sent to; None if it was submitted elsewhere."""

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    @property
    def state(self) -> str:
        """Celery's state: PENDING, STARTED, RETRY, SUCCESS, FAILURE or REVOKED.

        PENDING is also the state of an id nobody knows, and of an answer that has expired.

        Raises:
            BrokerUnavailable: the result backend can't be asked.
        """
        meta = self._look()
        return PENDING if meta is None else str(meta["status"])

    @property
    def done(self) -> bool:
        """Whether it has ended, well or badly; then `result` returns or raises at once.

        Raises:
            BrokerUnavailable: the result backend can't be asked.
        """
        self._look()
        return self._meta is not None

    def result(self, timeout: float | None = None) -> AnswerT_co:
        """Wait for the answer and return it.

        Args:
            timeout: seconds; None waits for as long as it takes, which for an id nobody knows,
                or whose answer has expired, is for ever: Redis can't tell it from a waiting one.

        Raises:
            JobError: it failed, expired or was cancelled; the class says which.
            ResultTimeout: the time is up; the job goes on, and may be asked again.
            BrokerUnavailable: the result backend refuses, or can't be reached at all.
        """
        if self._meta is None:
            for _ in self._golem.as_completed([self], timeout):
                pass
        assert self._meta is not None  # noqa: S101 - as_completed has set it, or raised
        return cast("AnswerT_co", self._golem._wire.answer(self.id, self._meta))  # noqa: SLF001 - as above

    def cancel(self) -> bool:
        """Cancel it, whether a worker runs or not; True if it will not be answered.

        See `Golem.cancel`.
        """
        return self._golem.cancel([self]) == 1

    def _look(self) -> Meta | None:
        if self._meta is not None:
            return self._meta
        meta = self._golem._asker.stored(self.id)  # noqa: SLF001 - a job is a view of its client
        if meta is not None and Wire.is_ready(meta):
            self._meta = meta
        return meta


class Golem:
    """A producer's connection to the queue. Thread-safe: one serves a whole web application.

    Four lines to use it::

        with Golem("redis://127.0.0.1:6379/0") as golem:
            print(golem.classify("I love this", timeout=30).label)
            for job in golem.submit_many(texts, bulk=True).completed():
                print(job.id, job.result().scores)

    Nothing is opened before the first submit, and no global Celery app is touched.

    Args:
        broker_url: Redis that holds the queues; unset: ``GOLEM_BROKER_URL``.
        result_backend: Redis that holds the answers; unset: ``GOLEM_RESULT_BACKEND``, else the
            broker's.
        queue: interactive queue; unset: ``GOLEM_QUEUE``.
        settings: everything else, instead of the environment; the three above go before it.

    Raises:
        ConfigurationError: a setting can't be used.
    """

    def __init__(
        self,
        broker_url: str | None = None,
        result_backend: str | None = None,
        queue: str | None = None,
        *,
        settings: ClientSettings | None = None,
    ) -> None:
        given = {"broker_url": broker_url, "result_backend": result_backend, "queue": queue}
        self.settings: ClientSettings = settings_of(settings, given)
        self._wire = Wire(self.settings)
        self._broker_pool = self._wire.broker.pool()
        self._backend_pool = self._wire.backend.pool()
        self._subscribers = self._wire.backend.subscriber_pool()
        broker = redis.Redis(connection_pool=self._broker_pool)
        backend = redis.Redis(connection_pool=self._backend_pool)
        self._publisher = Publisher(self._wire.broker, self._broker_pool)
        self._recorder = Publisher(self._wire.backend, self._backend_pool)
        self._waiter = Waiter(self._wire, backend, self._subscribers)
        self._asker = Asker(self._wire, broker, backend)

    def submit(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        task_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job[Prediction]:
        """Send one text to be classified; return once Redis has it.

        Args:
            text: the text.
            text_pair: its second text, for a pair model.
            task_id: an id of your own; the same id again isn't computed again once answered.
            options: see `SubmitOptions`.

        Raises:
            InvalidJob: it breaks the contract; nothing was sent.
            QueueFull: the backlog would exceed the limit; nothing was sent.
            BrokerUnavailable: Redis is away or refuses; `SubmitIncomplete` if it may be in.
        """
        planned = _requests.single(self._wire, text, text_pair, task_id, options)
        self._send(planned)
        return Job(self, planned.ids[0], planned.queue)

    def submit_batch(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str | None] | None = None,
        *,
        task_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job[Predictions]:
        """Send many texts in one message, as one job whose answer is `Predictions`.

        A text that breaks the contract fails alone, as an item of the answer. Arguments and errors
        are those of `submit`.
        """
        planned = _requests.batch(self._wire, texts, text_pairs, task_id, options)
        self._send(planned)
        return Job(self, planned.ids[0], planned.queue)

    def submit_many(
        self,
        texts: Iterable[str],
        text_pairs: Iterable[str | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Bulk:
        """Send many texts, a job each, in pipelines; return the jobs in the order of the texts.

        Their ids are recorded for as long as an answer is kept: `bulk` finds them in any process.

        Raises:
            InvalidJob: a text breaks the contract; nothing was sent.
            QueueFull: with all of them the backlog would exceed the limit; nothing was sent.
            BrokerUnavailable: Redis is away; nothing was sent.
            SubmitIncomplete: Redis went away half-way; its lists say which jobs are in.
        """
        pairs = None if text_pairs is None else _requests.listed("text_pairs", text_pairs)
        listed = _requests.listed("texts", texts)
        planned, record = _requests.many(self._wire, listed, pairs, options)
        self._send(planned, record)
        make: partial[Job[Prediction]] = partial(Job, self, queue=planned.queue)
        return Bulk(self, record.id, planned.ids, make, begun=True)

    def classify(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Prediction:
        """Submit one text and wait for its prediction; errors are those of both."""
        return self.submit(text, text_pair, **options).result(timeout)

    def as_completed(
        self, jobs: Iterable[Job[AnswerT_co]], timeout: float | None = None
    ) -> Iterator[Job[AnswerT_co]]:
        """Yield each job as it ends, well or badly; its `result` then returns or raises at once.

        Raises:
            ResultTimeout: `timeout` seconds have passed; what was yielded stays done.
            BrokerUnavailable: the result backend refuses, or can't be reached at all.
        """
        waiting: dict[str, list[Job[AnswerT_co]]] = {}
        for job in jobs:
            if job._meta is None:  # noqa: SLF001 - the client and its jobs are one
                waiting.setdefault(job.id, []).append(job)
            else:
                yield job
        try:
            for job_id, meta in self._waiter.wait(list(waiting), timeout):
                for job in waiting.pop(job_id):
                    job._meta = meta  # noqa: SLF001 - as above
                    yield job
        except Late as late:
            raise self._timed_out(late.ids, timeout, waiting[late.ids[0]][0]) from None

    def job(self, job_id: str) -> Job[Prediction | Predictions]:
        """Pick up a job that was submitted elsewhere or earlier. Asks nobody yet.

        Raises:
            InvalidJob: that is no id.
        """
        _requests.check_id(job_id)
        return Job(self, job_id, None)

    def bulk(self, bulk_id: str) -> Bulk:
        """Pick up a `submit_many` of another process, or a group that a Celery producer saved.

        Raises:
            BulkNotFound: it has expired, or there never was one.
            InvalidJob: that is no id.
            BrokerUnavailable: the result backend can't be asked.
        """
        _requests.check_id(bulk_id, "bulk_id")
        ids = group_ids(self.settings, bulk_id, self._asker.group(bulk_id))
        make: partial[Job[Prediction]] = partial(Job, self, queue=None)
        return Bulk(self, bulk_id, ids, make, begun=False)

    def cancel(self, jobs: Iterable[Job[Any]]) -> int:
        """Cancel jobs and return how many of them will not be answered.

        The cancellation is stored as the job's result, unless it has one, so that it holds for a
        job no worker has taken yet, and is broadcast to the workers. `result` then raises
        `JobRevoked`. A job inside the model at this moment is computed all the same, but its
        answer is dropped.

        Raises:
            BrokerUnavailable: the result backend can't be reached.
        """
        held = self._asker.revoke([job.id for job in jobs])
        if held:
            self._wire.broadcast_revoke(held)
        return len(held)

    def forget(self, jobs: Iterable[Job[Any]]) -> int:
        """Delete stored answers before they expire; return how many there were.

        For bulk work, whose answers of an hour would fill Redis. A job that was forgotten counts
        as one nobody knows; what this `Job` has read already, it keeps.

        Raises:
            BrokerUnavailable: the result backend can't be reached.
        """
        return self._asker.forget([job.id for job in jobs])

    def queue_length(self, queue: str | None = None) -> int:
        """Jobs that wait in a queue, or in both lanes, on all its priority lists.

        Raises:
            BrokerUnavailable: the broker can't be asked.
        """
        lanes = [queue] if queue else [self.settings.queue, self.settings.bulk_queue]
        return self._asker.queue_length(lanes)

    def backlog(self) -> Backlog:
        """Count the jobs without an answer, by lane, in one round trip; and how long they'll take.

        Raises:
            BrokerUnavailable: the broker can't be asked.
        """
        return self._asker.count().backlog()

    def close(self) -> None:
        """Close every connection."""
        for pool in (self._broker_pool, self._backend_pool, self._subscribers):
            pool.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, planned: Planned, *records: Message) -> None:
        admit(planned, self._asker.count)
        self._recorder.publish([], records)
        self._publisher.publish(planned.ids, planned.messages)

    def _timed_out(self, ids: Sequence[str], timeout: float | None, job: Job[Any]) -> ResultTimeout:
        try:
            state, length = job.state, self.queue_length(job.queue)
        except BrokerUnavailable:
            state, length = "UNKNOWN", -1
        return result_timeout(ids, timeout, state, length)
