"""A bulk submit as one thing, for asyncio: `golem_tasks.bulk`, to await.

::

    bulk = await golem.submit_many(texts, bulk=True)
    async for job in bulk.completed():
        print(job.id, (await job.result()).label, await bulk.progress())
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from golem_tasks._waiting import InOrder, Late, slices
from golem_tasks._wire import Meta
from golem_tasks.bulk import Jobs
from golem_tasks.contract import Prediction
from golem_tasks.errors import JobError
from golem_tasks.progress import Progress

if TYPE_CHECKING:
    from golem_tasks.aio import AsyncGolem, AsyncJob

__all__ = ["AsyncBulk"]


class AsyncBulk(Jobs["AsyncJob[Prediction]"]):
    """The jobs of one `AsyncGolem.submit_many`, here or elsewhere (`AsyncGolem.bulk`).

    A sequence of `AsyncJob`, as `golem_tasks.bulk.Bulk` is of `Job`; what asks Redis is awaited,
    so the counts come all at once, from `progress`. An iteration left before its end keeps its
    subscriptions until it is closed: by ``aclosing``, or when the event loop finds it unused.
    """

    def __init__(
        self,
        golem: AsyncGolem,
        bulk_id: str,
        ids: Sequence[str],
        make: Callable[[str], AsyncJob[Prediction]],
        *,
        begun: bool,
    ) -> None:
        super().__init__(bulk_id, ids, make, golem._wire, begun=begun)  # noqa: SLF001 - a view of its client
        self._golem = golem

    async def progress(self) -> Progress:
        """Count the jobs that have ended; at most a second old, see `golem_tasks.bulk.Bulk`.

        Raises:
            BrokerUnavailable: the result backend can't be asked.
        """
        if self._look_due:
            with self._one_look():
                await self._golem._loop().asker.ask(self._wire.backend, self._look)  # noqa: SLF001 - as above
        return self._tally.progress()

    async def completed(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - Celery's name
    ) -> AsyncGenerator[AsyncJob[Prediction], None]:
        """Yield each job as it ends, well or badly; see `golem_tasks.bulk.Bulk.completed`."""
        async with aclosing(self._wait(self._ids, timeout, timeout)) as found:
            async for job_id, meta in found:
                yield self._ended(job_id, meta)

    async def in_order(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - Celery's name
    ) -> AsyncGenerator[AsyncJob[Prediction], None]:
        """Yield the jobs in the order of their texts, each once it has ended."""
        began_s = time.monotonic()
        for part in slices(self._ids):
            order = InOrder(part)
            left_s = None if timeout is None else max(0.0, began_s + timeout - time.monotonic())
            async with aclosing(self._wait(part, left_s, timeout)) as found:
                async for job_id, meta in found:
                    for each in order.add(job_id, meta):
                        yield self._ended(*each)

    async def results(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - Celery's name
    ) -> AsyncGenerator[Prediction | JobError, None]:
        """Yield each text's prediction, or its job's error; see `golem_tasks.bulk.Bulk.results`."""
        async with aclosing(self.in_order(timeout)) as jobs:
            async for job in jobs:
                try:
                    answer: Prediction | JobError = await job.result()
                except JobError as error:
                    answer = error
                yield answer

    async def cancel(self) -> int:
        """Cancel every job that isn't known to have ended; return how many weren't answered yet."""
        return await self._golem.cancel(self._unended())

    async def forget(self) -> int:
        """Delete the stored answers and the record; see `golem_tasks.bulk.Bulk.forget`."""
        asker = self._golem._loop().asker  # noqa: SLF001 - a view of its client
        await asker.forget_group(self.id)
        return await asker.forget(self._ids)

    async def _look(self) -> None:
        async for _, meta in self._golem._loop().waiter.look(self._open):  # noqa: SLF001 - as above
            self._count(meta)

    async def _wait(
        self, ids: Sequence[str], left_s: float | None, timeout_s: float | None
    ) -> AsyncGenerator[tuple[str, Meta], None]:
        golem = self._golem
        try:
            async with aclosing(golem._loop().waiter.wait(ids, left_s)) as found:  # noqa: SLF001 - as above
                async for job_id, meta in found:
                    self._heard(job_id, meta)
                    yield job_id, meta
        except Late as late:
            job = self._job(late.ids[0])
            raise await golem._timed_out(late.ids, timeout_s, job) from None  # noqa: SLF001 - as above

    def _ended(self, job_id: str, meta: Meta) -> AsyncJob[Prediction]:
        job = self._job(job_id)
        job._meta = meta  # noqa: SLF001 - as above
        return job
