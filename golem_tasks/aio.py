"""The producer's client for asyncio: the verbs of `golem_tasks.client`, to await.

::

    async with AsyncGolem("redis://127.0.0.1:6379/0") as golem:
        print((await golem.classify("I love this", timeout=30)).label)
        bulk = await golem.submit_many(texts, bulk=True)
        async for job in bulk.completed():
            print(job.id, (await job.result()).scores)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Generic, Self, TypeVar, Unpack, cast
from weakref import WeakKeyDictionary

from golem_tasks import _requests
from golem_tasks._admission import admit_async
from golem_tasks._groups import group_ids
from golem_tasks._loop import Loop
from golem_tasks._requests import Planned, SubmitOptions
from golem_tasks._waiting import Late, result_timeout
from golem_tasks._wire import Answer, Message, Meta, Wire
from golem_tasks.aio_bulk import AsyncBulk
from golem_tasks.backlog import Backlog
from golem_tasks.client import PENDING
from golem_tasks.contract import Prediction, Predictions
from golem_tasks.errors import BrokerUnavailable, ResultTimeout
from golem_tasks.settings import ClientSettings, settings_of

__all__ = ["AsyncGolem", "AsyncJob"]

AnswerT_co = TypeVar("AnswerT_co", bound=Answer, covariant=True)


class AsyncJob(Generic[AnswerT_co]):
    """One job, here or submitted elsewhere (`AsyncGolem.job`)."""

    def __init__(self, golem: AsyncGolem, job_id: str, queue: str | None) -> None:
        self._golem = golem
        self._meta: Meta | None = None
        self.id = job_id
        self.queue = queue
        """The queue it was sent to; None if it was submitted elsewhere."""

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    async def state(self) -> str:
        """Celery's state; see `golem_tasks.client.Job.state`.

        Raises:
            BrokerUnavailable: the result backend can't be asked.
        """
        meta = await self._look()
        return PENDING if meta is None else str(meta["status"])

    async def done(self) -> bool:
        """Whether it has ended, well or badly; then `result` returns or raises at once.

        Raises:
            BrokerUnavailable: the result backend can't be asked.
        """
        await self._look()
        return self._meta is not None

    async def result(self, timeout: float | None = None) -> AnswerT_co:  # noqa: ASYNC109 - Celery's name
        """Wait for the answer and return it. Cancelling the wait doesn't cancel the job.

        Args:
            timeout: seconds; None waits for as long as it takes, which for an id nobody knows,
                or whose answer has expired, is for ever: Redis can't tell it from a waiting one.

        Raises:
            JobError: it failed, expired or was cancelled; the class says which.
            ResultTimeout: the time is up; the job goes on, and may be asked again.
            BrokerUnavailable: the result backend refuses, or can't be reached at all.
        """
        if self._meta is None:
            self._meta = await self._golem._wait(self, timeout)  # noqa: SLF001 - a view of its client
        return cast("AnswerT_co", self._golem._wire.answer(self.id, self._meta))  # noqa: SLF001 - as above

    async def cancel(self) -> bool:
        """Cancel it, whether a worker runs or not; see `golem_tasks.client.Golem.cancel`."""
        return await self._golem.cancel([self]) == 1

    async def _look(self) -> Meta | None:
        if self._meta is not None:
            return self._meta
        meta = await self._golem._loop().asker.stored(self.id)  # noqa: SLF001 - a view of its client
        if meta is not None and Wire.is_ready(meta):
            self._meta = meta
        return meta


class AsyncGolem:
    """A producer's connection to the queue, for asyncio. One serves a whole application.

    Three lines to use it::

        golem = AsyncGolem("redis://127.0.0.1:6379/0")
        prediction = await golem.classify("I love this", timeout=30)
        await golem.aclose()

    However many wait, each event loop has one subscribed connection. Arguments, verbs and errors
    are those of `golem_tasks.client.Golem`; everything that asks Redis is awaited.
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
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Loop] = WeakKeyDictionary()

    async def submit(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        task_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncJob[Prediction]:
        """Send one text to be classified; see `golem_tasks.client.Golem.submit`."""
        planned = _requests.single(self._wire, text, text_pair, task_id, options)
        await self._send(planned)
        return AsyncJob(self, planned.ids[0], planned.queue)

    async def submit_batch(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str | None] | None = None,
        *,
        task_id: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncJob[Predictions]:
        """Send many texts as one job; see `golem_tasks.client.Golem.submit_batch`."""
        planned = _requests.batch(self._wire, texts, text_pairs, task_id, options)
        await self._send(planned)
        return AsyncJob(self, planned.ids[0], planned.queue)

    async def submit_many(
        self,
        texts: Iterable[str],
        text_pairs: Iterable[str | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncBulk:
        """Send many texts, a job each, in pipelines; see `golem_tasks.client.Golem.submit_many`.

        Checking and composing happen in a thread, so that the loop goes on meanwhile.
        """
        pairs = None if text_pairs is None else _requests.listed("text_pairs", text_pairs)
        listed = _requests.listed("texts", texts)
        planned, record = await asyncio.to_thread(
            _requests.many, self._wire, listed, pairs, options
        )
        await self._send(planned, record)
        make: partial[AsyncJob[Prediction]] = partial(AsyncJob, self, queue=planned.queue)
        return AsyncBulk(self, record.id, planned.ids, make, begun=True)

    async def classify(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - Celery's name
        **options: Unpack[SubmitOptions],
    ) -> Prediction:
        """Submit one text and wait for its prediction; errors are those of both."""
        job = await self.submit(text, text_pair, **options)
        return await job.result(timeout)

    async def as_completed(
        self,
        jobs: Iterable[AsyncJob[AnswerT_co]],
        timeout: float | None = None,  # noqa: ASYNC109 - Celery's name
    ) -> AsyncGenerator[AsyncJob[AnswerT_co], None]:
        """Yield each job as it ends, well or badly; its `result` then returns or raises at once.

        Left before its end, it keeps its subscriptions until it is closed: by ``aclosing``, or
        when the event loop finds it unused.

        Raises:
            ResultTimeout: `timeout` seconds have passed; what was yielded stays done.
            BrokerUnavailable: the result backend refuses, or can't be reached at all.
        """
        waiting: dict[str, list[AsyncJob[AnswerT_co]]] = {}
        for job in jobs:
            if job._meta is None:  # noqa: SLF001 - the client and its jobs are one
                waiting.setdefault(job.id, []).append(job)
            else:
                yield job
        try:
            async with aclosing(self._loop().waiter.wait(list(waiting), timeout)) as ended:
                async for job_id, meta in ended:
                    for job in waiting.pop(job_id):
                        job._meta = meta  # noqa: SLF001 - as above
                        yield job
        except Late as late:
            raise await self._timed_out(late.ids, timeout, waiting[late.ids[0]][0]) from None

    def job(self, job_id: str) -> AsyncJob[Prediction | Predictions]:
        """Pick up a job that was submitted elsewhere or earlier. Asks nobody yet.

        Raises:
            InvalidJob: that is no id.
        """
        _requests.check_id(job_id)
        return AsyncJob(self, job_id, None)

    async def bulk(self, bulk_id: str) -> AsyncBulk:
        """Pick up a submit of another process; see `golem_tasks.client.Golem.bulk`."""
        _requests.check_id(bulk_id, "bulk_id")
        raw = await self._loop().asker.group(bulk_id)
        ids = await asyncio.to_thread(group_ids, self.settings, bulk_id, raw)
        make: partial[AsyncJob[Prediction]] = partial(AsyncJob, self, queue=None)
        return AsyncBulk(self, bulk_id, ids, make, begun=False)

    async def cancel(self, jobs: Iterable[AsyncJob[Any]]) -> int:
        """Cancel jobs and return how many of them will not be answered.

        See `golem_tasks.client.Golem.cancel`.
        """
        held = await self._loop().asker.revoke([job.id for job in jobs])
        if held:
            await asyncio.to_thread(self._wire.broadcast_revoke, held)
        return len(held)

    async def forget(self, jobs: Iterable[AsyncJob[Any]]) -> int:
        """Delete stored answers before they expire; return how many there were.

        See `golem_tasks.client.Golem.forget`.
        """
        return await self._loop().asker.forget([job.id for job in jobs])

    async def queue_length(self, queue: str | None = None) -> int:
        """Jobs that wait in a queue, or in both lanes, on all its priority lists.

        Raises:
            BrokerUnavailable: the broker can't be asked.
        """
        lanes = [queue] if queue else [self.settings.queue, self.settings.bulk_queue]
        return await self._loop().asker.queue_length(lanes)

    async def backlog(self) -> Backlog:
        """Count the jobs without an answer; see `golem_tasks.client.Golem.backlog`."""
        return (await self._loop().asker.count()).backlog()

    async def aclose(self) -> None:
        """Close every connection of this event loop."""
        state = self._loops.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, planned: Planned, *records: Message) -> None:
        loop = self._loop()
        await admit_async(planned, loop.asker.count)
        await loop.recorder.publish([], records)
        await loop.publisher.publish(planned.ids, planned.messages)

    def _loop(self) -> Loop:
        loop = asyncio.get_running_loop()
        state = self._loops.get(loop)
        if state is None:
            for other in [other for other in self._loops if other.is_closed()]:
                del self._loops[other]
            state = self._loops[loop] = Loop(self._wire)
        return state

    async def _wait(self, job: AsyncJob[Any], timeout_s: float | None) -> Meta:
        listener = self._loop().listener
        future = listener.expect(job.id)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            pass
        finally:
            listener.leave(job.id, future)
        # A time too short for a subscription still finds what is stored.
        with suppress(BrokerUnavailable):
            if await job.done():
                return cast("Meta", job._meta)  # noqa: SLF001 - the client and its jobs are one
        raise await self._timed_out([job.id], timeout_s, job)

    async def _timed_out(
        self, ids: Sequence[str], timeout_s: float | None, job: AsyncJob[Any]
    ) -> ResultTimeout:
        try:
            state, length = await job.state(), await self.queue_length(job.queue)
        except BrokerUnavailable:
            state, length = "UNKNOWN", -1
        return result_timeout(ids, timeout_s, state, length)
