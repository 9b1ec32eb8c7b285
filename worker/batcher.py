"""What may be dispatched now, and why: the one place that forms batches. Pure, no I/O, no clock.

The rule is: dispatch at once while a process is idle; while all are busy, collect. So a lone job
never waits for company, and a deep queue fills every batch without a timer. Where several are idle
they share what there is, lest one computes all of it while the others look on. Where the others are
busy but what is here wouldn't fill a batch for each, it is shared with them as well: batches get
smaller towards the end of a backlog, so that all processes end at about the same time (guided
self-scheduling, Polychronopoulos and Kuck 1987). Now and then they do so in the midst of one, if a
second process is done before the buffer is full again; that costs no more than a smaller batch. An
optional linger makes the first job of a batch wait a little for others.

Order within a batch: a job older than ``max_age_s`` first, whatever its lane (nothing starves);
then the interactive lane before bulk, then Celery's priority (0 is the highest), then arrival.
While interactive jobs wait, though, old bulk ones take no more than a quarter of a batch: where a
dispatch takes longer than ``max_age_s``, all that is buffered for the next one is old.
Jobs with different time limits don't share a batch, since the pool sets one timer for the whole of
it. A suspect, a job that was in a batch whose process died, goes alone; so does a job on trial, and
no two of those at a time.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

__all__ = [
    "LEAST_SHARED_TOKENS",
    "BatchLimits",
    "Batcher",
    "Lane",
    "Size",
    "TimeLimits",
    "Waiting",
]

_OLD_BULK_SHARE = 4
"""Old bulk jobs go before interactive ones in this part of a batch: a quarter."""

LEAST_SHARED_TOKENS = 512
"""Fewer than these stay together, however many processes are idle."""
_LEAST_WORTH = 10
"""Nor is this part, a tenth, of what is worth leaving to a busy process: what takes some hundredths
of a second.

Shared, texts have fewer of their own length to be packed with, and a micro-batch may not fill its
device. That is paid with the time of processes which would else be idle, and so worth it where it
is felt: by golem-mini's lengths a CPU's two processes have half a second's worth done in 0.63 of
the time, for 3 % more work. Four GPUs make 78 ms of one micro-batch's worth 34, for half as much
work again; two hundredths of a second aren't worth that to anybody.
"""

RequestT = TypeVar("RequestT")
TimeLimits: TypeAlias = tuple[float | None, float | None]


class Lane(enum.IntEnum):
    """Which queue a job came from; the smaller is served first."""

    INTERACTIVE = 0  # somebody waits for the answer
    BULK = 1  # gets what the interactive lane leaves


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one dispatch."""

    max_rows: int
    """Texts in one dispatch; a job with more goes alone."""
    max_tokens: int
    """Estimated tokens in one dispatch; a job with more goes alone."""
    linger_s: float = 0.0
    """Seconds the first job of a batch may wait for company while a process is idle."""
    max_age_s: float = 1.0
    """Seconds after which a waiting job goes before all others."""


@dataclass(frozen=True, slots=True)
class Waiting(Generic[RequestT]):
    """A job in the buffer."""

    request: RequestT
    rows: int
    tokens: int
    since_s: float
    """Monotonic time of its arrival here, in seconds."""
    lane: Lane = Lane.INTERACTIVE
    priority: int = 0
    time_limits: TimeLimits = (None, None)
    """Hard and soft limit of the job, in seconds."""
    suspect: bool = False
    """Whether it must go alone."""
    trial: bool = False
    """Whether it goes alone and while no other of its kind runs."""
    most_tokens: int = 0
    """An upper bound of its tokens, for its time limit."""


class _Key(NamedTuple):
    """What the jobs of one queue have in common."""

    alone: bool
    trial: bool
    lane: Lane
    priority: int
    time_limits: TimeLimits


class Size(NamedTuple):
    """How much some jobs are."""

    rows: int = 0
    tokens: int = 0

    def plus(self, job: Waiting[Any], sign: int = 1) -> Size:
        """The size with one job more, or with one less."""
        return Size(self.rows + sign * job.rows, self.tokens + sign * job.tokens)


_NOTHING = Size()


@dataclass(slots=True)
class _Filling(Generic[RequestT]):
    """A batch being put together."""

    limits: BatchLimits
    jobs: list[Waiting[RequestT]] = field(default_factory=list)
    size: Size = _NOTHING
    bulk: Size = _NOTHING
    """Of the bulk jobs in it."""
    no_old_bulk: bool = False
    """Whether interactive jobs go first now, however old a bulk job is."""

    def has_room(self, job: Waiting[RequestT]) -> bool:
        """Whether the job may join; the first always may."""
        rows, tokens = self.size.plus(job)
        within = rows <= self.limits.max_rows and tokens <= self.limits.max_tokens
        return within or not self.jobs

    def add(self, job: Waiting[RequestT]) -> None:
        """Take the job in."""
        self.jobs.append(job)
        self.size = self.size.plus(job)
        if job.lane is Lane.BULK:
            self.bulk = self.bulk.plus(job)
            self.no_old_bulk = self.no_old_bulk or (
                self.bulk.rows >= self.limits.max_rows // _OLD_BULK_SHARE
                or self.bulk.tokens >= self.limits.max_tokens // _OLD_BULK_SHARE
            )


@dataclass(slots=True)
class Batcher(Generic[RequestT]):
    """The buffer of waiting jobs. Append with `add`, take with `next_batch`; nothing else.

    Invariant: `size` is the sum over the jobs in it.
    """

    limits: BatchLimits
    _sizes: dict[Lane, Size] = field(default_factory=lambda: dict.fromkeys(Lane, _NOTHING))
    _queues: dict[_Key, deque[Waiting[RequestT]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Waiting[RequestT]]:
        for key in sorted(self._queues, key=_order):
            yield from self._queues[key]

    def size(self, lane: Lane | None = None) -> Size:
        """How much waits, in one lane or in all."""
        if lane is not None:
            return self._sizes[lane]
        rows, tokens = zip(*self._sizes.values(), strict=True)
        return Size(sum(rows), sum(tokens))

    def lengths(self) -> dict[Lane, int]:
        """Jobs by lane."""
        lengths = dict.fromkeys(Lane, 0)
        for key, queue in self._queues.items():
            lengths[key.lane] += len(queue)
        return lengths

    def add(self, job: Waiting[RequestT]) -> None:
        """Append a job behind its equals."""
        self._queue(job).append(job)
        self._count(job, +1)

    def put_back(self, jobs: Iterable[Waiting[RequestT]]) -> None:
        """Return jobs that were taken but never ran; they go before their equals, in order."""
        for job in reversed(list(jobs)):
            self._queue(job).appendleft(job)
            self._count(job, +1)

    def discard(self, unwanted: Callable[[RequestT], bool]) -> list[Waiting[RequestT]]:
        """Remove and return the jobs for whose request `unwanted` is true."""
        gone = []
        for key, queue in list(self._queues.items()):
            kept = deque(job for job in queue if not unwanted(job.request))
            if len(kept) == len(queue):
                continue
            gone += [job for job in queue if unwanted(job.request)]
            self._replace(key, kept)
        for job in gone:
            self._count(job, -1)
        return gone

    def ripe_at_s(self) -> float | None:
        """When a batch may go, in monotonic seconds: in the past if now; None with no jobs.

        A batch's linger starts at its oldest job, not when somebody asks; a full batch or an
        overdue one doesn't linger.
        """
        heads = [queue[0].since_s for queue in self._queues.values()]
        if not heads:
            return None
        rows, tokens = self.size()
        full = rows >= self.limits.max_rows or tokens >= self.limits.max_tokens
        return min(heads) if full else min(heads) + self.limits.linger_s

    def next_batch(
        self,
        now_s: float,
        *,
        idle: int = 1,
        busy: int = 0,
        worth_tokens: int | None = None,
        trying: bool = False,
    ) -> list[Waiting[RequestT]]:
        """Take the next batch; empty if none is ripe. The caller knows that a process is idle.

        Args:
            now_s: the time, in monotonic seconds.
            idle: processes that have nothing to do: they share what waits.
            busy: processes that will take a part of it when they are done.
            worth_tokens: fewer than these aren't left to one that is busy, nor a tenth of them to
                another idle one; None: that isn't known yet, and nothing is left to a busy one.
            trying: whether a job on trial runs now.
        """
        ripe_at_s = self.ripe_at_s()
        if ripe_at_s is None or ripe_at_s > now_s:
            return []
        batch: _Filling[RequestT] = _Filling(self._shared(idle, busy, worth_tokens))
        while queue := self._choose(now_s, batch, trying=trying):
            job = queue[0]
            if not batch.has_room(job):
                if job.lane is Lane.INTERACTIVE or batch.no_old_bulk:
                    break
                batch.no_old_bulk = True  # one that goes first and doesn't fit keeps nobody out
                continue
            self._take(queue)
            batch.add(job)
            if job.suspect or job.trial:
                break
        return batch.jobs

    def _shared(self, idle: int, busy: int, worth_tokens: int | None) -> BatchLimits:
        """The bounds of a batch that leaves their part to the other processes."""
        # By tokens: what a batch takes a process depends on them, not on the number of texts.
        tokens = self.size().tokens
        share = math.ceil(tokens / idle)
        if worth_tokens is not None:
            share = min(share, max(math.ceil(tokens / (idle + busy)), worth_tokens))
        share = max(share, LEAST_SHARED_TOKENS, (worth_tokens or 0) // _LEAST_WORTH)
        return replace(self.limits, max_tokens=min(self.limits.max_tokens, share))

    def _choose(
        self, now_s: float, batch: _Filling[RequestT], *, trying: bool
    ) -> deque[Waiting[RequestT]] | None:
        """The queue whose head goes next, among those that may join the batch."""
        keys = [k for k in self._queues if not (trying and k.trial)]
        if batch.jobs:
            keys = [k for k in keys if not k.alone and k.time_limits == batch.jobs[0].time_limits]
        if not keys:
            return None
        overdue = [k for k in keys if now_s - self._queues[k][0].since_s >= self.limits.max_age_s]
        if batch.no_old_bulk and any(k.lane is Lane.INTERACTIVE for k in keys):
            overdue = [k for k in overdue if k.lane is Lane.INTERACTIVE]
        if overdue:
            return self._queues[min(overdue, key=lambda k: self._queues[k][0].since_s)]
        return self._queues[min(keys, key=_order)]

    def _queue(self, job: Waiting[RequestT]) -> deque[Waiting[RequestT]]:
        return self._queues.setdefault(_key(job), deque())

    def _take(self, queue: deque[Waiting[RequestT]]) -> None:
        job = queue.popleft()
        self._count(job, -1)
        if not queue:
            del self._queues[_key(job)]

    def _replace(self, key: _Key, queue: deque[Waiting[RequestT]]) -> None:
        if queue:
            self._queues[key] = queue
        else:
            del self._queues[key]

    def _count(self, job: Waiting[RequestT], sign: int) -> None:
        self._sizes[job.lane] = self._sizes[job.lane].plus(job, sign)


def _key(job: Waiting[RequestT]) -> _Key:
    alone = job.suspect or job.trial
    return _Key(alone, job.trial, job.lane, job.priority, job.time_limits)


def _order(key: _Key) -> tuple[Lane, int, bool, bool, tuple[float, float]]:
    hard_s, soft_s = key.time_limits
    return key.lane, key.priority, key.alone, key.trial, (hard_s or 0.0, soft_s or 0.0)
