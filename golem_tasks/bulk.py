"""A bulk submit as one thing: its jobs, how far they have got, their answers, all of them at once.

::

    bulk = golem.submit_many(texts, bulk=True)
    for job in bulk.completed():
        print(job.id, job.result().label, bulk.progress())

It holds ids, about 300 bytes for each job, and never answers: however many jobs there are and
however slowly they are consumed, a few hundred answers are in memory at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, overload
from weakref import WeakValueDictionary

from celery import states

from golem_tasks._asking import ask
from golem_tasks._waiting import SWEEP_S, InOrder, Late, Pending, slices
from golem_tasks._wire import Meta, Wire
from golem_tasks.contract import Prediction
from golem_tasks.errors import JobError
from golem_tasks.progress import Progress, Tally

if TYPE_CHECKING:
    from golem_tasks.client import Golem, Job

__all__ = ["Bulk", "Jobs"]

JobT = TypeVar("JobT")


class Jobs(Sequence[JobT]):
    """The jobs of one bulk submit, in the order of their texts: what `Bulk` and `AsyncBulk` share.

    Args:
        bulk_id: names the submit.
        ids: of its jobs.
        make: makes a job of an id; jobs are made when they are asked for.
        wire: reads results.
        begun: whether the jobs were sent just now.
    """

    def __init__(
        self,
        bulk_id: str,
        ids: Sequence[str],
        make: Callable[[str], JobT],
        wire: Wire,
        *,
        begun: bool,
    ) -> None:
        self.id: str = bulk_id
        """What `Golem.bulk` takes, in any process; of a Celery client, ``GroupResult.restore``."""
        self._ids = ids
        self._make = make
        self._made: WeakValueDictionary[str, JobT] = WeakValueDictionary()
        self._wire = wire
        self._open = Pending(wire, ids)
        self._tally = Tally(len(ids))
        self._look_at_s = 0.0
        if begun:
            self._tally.sample(time.monotonic())

    @property
    def total(self) -> int:
        """Jobs in all."""
        return len(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[JobT]:
        return map(self._job, self._ids)

    @overload
    def __getitem__(self, index: int) -> JobT: ...
    @overload
    def __getitem__(self, index: slice) -> list[JobT]: ...
    def __getitem__(self, index: int | slice) -> JobT | list[JobT]:
        if isinstance(index, slice):
            return [self._job(id_) for id_ in self._ids[index]]
        return self._job(self._ids[index])

    def __add__(self, other: Iterable[JobT]) -> list[JobT]:
        return [*self, *other]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {len(self)} jobs>"

    def _job(self, job_id: str) -> JobT:
        """Make a job, or return the one somebody holds."""
        return self._made.get(job_id) or self._made.setdefault(job_id, self._make(job_id))

    def _unended(self) -> list[JobT]:
        return [self._job(id_) for id_ in list(self._open.keys.values())]

    def _count(self, meta: Meta) -> None:
        """Count a job that has ended."""
        self._tally.add(time.monotonic(), failed=meta["status"] != states.SUCCESS)

    def _heard(self, job_id: str, meta: Meta) -> None:
        """Count a job, unless it has been already."""
        if self._open.drop(job_id):
            self._count(meta)

    @property
    def _look_due(self) -> bool:
        return bool(self._open.keys) and time.monotonic() >= self._look_at_s

    @contextmanager
    def _one_look(self) -> Iterator[None]:
        """Note that somebody looks at the jobs that are open, and when."""
        self._look_at_s = math.inf  # who asks meanwhile is told what is known
        try:
            yield
        except BaseException:
            self._look_at_s = 0.0
            raise
        now_s = time.monotonic()
        self._look_at_s = now_s + SWEEP_S
        self._tally.sample(now_s)


class Bulk(Jobs["Job[Prediction]"]):
    """The jobs of one `Golem.submit_many`, here or elsewhere (`Golem.bulk`): a sequence of `Job`.

    ``len``, an index, a slice and ``for job in bulk`` give the jobs in the order of their texts, at
    once; `completed`, `in_order` and `results` wait for their answers. The counts (`progress`,
    `done`, `failed`, `rate`, `eta_s`) are at most a second old, whoever asks how often: they cost
    a look at the jobs still open, those at the front each second, all of them each second or at a
    pace of 10,000 a second. Only what has ended since is read. Thread-safe.
    """

    def __init__(
        self,
        golem: Golem,
        bulk_id: str,
        ids: Sequence[str],
        make: Callable[[str], Job[Prediction]],
        *,
        begun: bool,
    ) -> None:
        super().__init__(bulk_id, ids, make, golem._wire, begun=begun)  # noqa: SLF001 - a view of its client
        self._golem = golem
        self._waiter = golem._waiter  # noqa: SLF001 - as above

    def progress(self) -> Progress:
        """Count the jobs that have ended, and reckon how long the others will take.

        Raises:
            BrokerUnavailable: the result backend can't be asked.
        """
        if self._look_due:
            with self._one_look():
                ask(self._wire.backend, self._look)
        return self._tally.progress()

    @property
    def done(self) -> int:
        """Jobs that have ended, well or badly; see `progress`."""
        return self.progress().done

    @property
    def failed(self) -> int:
        """Those of them that failed, expired or were cancelled; see `progress`."""
        return self.progress().failed

    @property
    def rate(self) -> float:
        """Jobs that end per second; see `progress`."""
        return self.progress().rate

    @property
    def eta_s(self) -> float | None:
        """Seconds until all have ended, None if it isn't known; see `progress`."""
        return self.progress().eta_s

    def completed(self, timeout: float | None = None) -> Iterator[Job[Prediction]]:
        """Yield each job as it ends, well or badly; its `result` then returns or raises at once.

        Args:
            timeout: seconds for all of them.

        Raises:
            ResultTimeout: the time is up; what was yielded stays done.
            BrokerUnavailable: the result backend refuses, or can't be reached at all.
        """
        for job_id, meta in self._wait(self._ids, timeout, timeout):
            yield self._ended(job_id, meta)

    def in_order(self, timeout: float | None = None) -> Iterator[Job[Prediction]]:
        """Yield the jobs in the order of their texts, each once it has ended.

        Arguments and errors are those of `completed`.
        """
        began_s = time.monotonic()
        for part in slices(self._ids):
            order = InOrder(part)
            left_s = None if timeout is None else max(0.0, began_s + timeout - time.monotonic())
            for job_id, meta in self._wait(part, left_s, timeout):
                for each in order.add(job_id, meta):
                    yield self._ended(*each)

    def results(self, timeout: float | None = None) -> Iterator[Prediction | JobError]:
        """Yield what became of each text, in their order: its prediction, or its job's error.

        The error is an item rather than raised, so that one text doesn't cost the others their
        answers. Arguments and what is raised are those of `completed`.
        """
        for job in self.in_order(timeout):
            try:
                answer: Prediction | JobError = job.result()
            except JobError as error:
                answer = error
            yield answer

    def cancel(self) -> int:
        """Cancel every job that isn't known to have ended; return how many weren't answered yet.

        See `Golem.cancel`.
        """
        return self._golem.cancel(self._unended())

    def forget(self) -> int:
        """Delete the stored answers and the record of this submit before they expire.

        Returns how many answers there were; see `Golem.forget`.
        """
        asker = self._golem._asker  # noqa: SLF001 - a view of its client
        asker.forget_group(self.id)
        return asker.forget(self._ids)

    def _look(self) -> None:
        for _, meta in self._waiter.look(self._open):
            self._count(meta)

    def _wait(
        self, ids: Sequence[str], left_s: float | None, timeout: float | None
    ) -> Iterator[tuple[str, Meta]]:
        try:
            for job_id, meta in self._waiter.wait(ids, left_s):
                self._heard(job_id, meta)
                yield job_id, meta
        except Late as late:
            raise self._golem._timed_out(late.ids, timeout, self._job(late.ids[0])) from None  # noqa: SLF001 - as above

    def _ended(self, job_id: str, meta: Meta) -> Job[Prediction]:
        job = self._job(job_id)
        job._meta = meta  # noqa: SLF001 - as above
        return job
