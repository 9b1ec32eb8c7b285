"""The backlog: how many jobs of a queue pair have no answer yet, and how long they will take.

It is counted by one pipeline of eleven commands, whose cost doesn't depend on how many jobs wait:

- **waiting**: the lengths of both lanes' lists, of every priority; exact at the moment it is asked.
- **reserved** (in a worker's buffer) and **in flight** (in a model process): what the workers of
  this queue pair say they hold. Celery's record of unacknowledged messages can't tell, since every
  queue of the database shares it; but being exact it is an upper bound, so that a job that ended
  since its worker last spoke isn't counted.

A worker that holds jobs speaks four times a second. So the count may miss what workers fetched in
the last quarter of a second: at most three times `GOLEM_MAX_ROWS` texts for each model process. It
also misses the jobs of a worker that died more than `STATS_TTL_S` ago, until its lease ends and
they wait again, and those a stock Celery worker on the same queues has taken. Jobs that a worker
holds until their `countdown_s` is over are told apart (`Backlog.scheduled`): they wait for their
time, not for a worker.

A job counts as one, whether it carries one text or, as ``classify_many``, a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from golem_tasks.settings import ClientSettings

__all__ = [
    "STATS_TTL_S",
    "Backlog",
    "Counted",
    "Held",
    "LaneBacklog",
    "ProcessMemory",
    "WorkerStats",
    "ask",
    "counted",
    "workers_key",
]

STATS_TTL_S = 15
"""Seconds after which a worker that says nothing more isn't counted as one."""
_UNACKED_INDEX = "unacked_index"


class _Told(BaseModel):
    # A newer worker may tell more than an older producer knows: what is new is passed over.
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", strict=True)


class Held(_Told):
    """Jobs a worker holds of one lane."""

    reserved: int = 0
    """In its buffer."""
    in_flight: int = 0
    """In a model process."""


class ProcessMemory(_Told):
    """What a model process takes of the machine's memory, in MiB; None where Linux doesn't tell."""

    pid: int
    rss_mib: float
    """Resident: shared pages counted in full, in each process that has them."""
    pss_mib: float | None = None
    """Proportional: of a page that n processes share, an nth. These add up to what they take."""
    private_mib: float | None = None
    """What nobody shares, and its end would free."""


class WorkerStats(_Told):
    """What a worker says of itself; "recent" is over some ten seconds, fading."""

    name: str
    """Celery's name of the worker, such as ``celery@host``."""
    at_s: float
    """When it said so: Unix time in seconds, by the Redis server's clock."""
    model: str = ""
    device: str = ""
    dtype: str = ""
    processes: int = 0
    """Model processes that are up."""
    interactive: Held = Held()
    bulk: Held = Held()
    scheduled: int = 0
    """Jobs it holds until their time (``countdown_s``) has come."""
    received: int = 0
    """Jobs delivered to it since it started, each once its time has come."""
    redelivered: int = 0
    """Those of them that had been delivered before, here or elsewhere."""
    answered: int = 0
    """Jobs that came back from a model process, failed ones included."""
    failed: int = 0
    """Jobs that ended as FAILURE."""
    jobs_per_s: float = 0.0
    """Recent."""
    texts_per_s: float = 0.0
    """Recent."""
    tokens_per_s: float = 0.0
    """Recent, padding left out."""
    full_jobs_per_s: float | None = None
    """Jobs a second while there was always something to do, over about a minute of such time."""
    full_texts_per_s: float | None = None
    """Texts a second of the same time; both are None before there was any."""
    rows_per_dispatch: float | None = None
    """Recent; None before the first dispatch, as the next two."""
    padding_share: float | None = None
    """Recent: share of the token positions computed that was padding, 0 to 1."""
    queued_ms: float | None = None
    """How long the job of the latest dispatch that was sent first had waited."""
    token_budget: int = 0
    """Padded area of a micro-batch the device is trusted with now, in tokens."""
    token_ceiling: int = 0
    """The same before any out of memory."""
    process_memory: tuple[ProcessMemory, ...] = ()
    """Of each model process, some seconds old; empty where the system doesn't tell."""

    @property
    def memory_mib(self) -> float | None:
        """What the model processes take together, shared pages counted once; None if unknown."""
        if not self.process_memory:
            return None
        known = (
            each.rss_mib if each.pss_mib is None else each.pss_mib for each in self.process_memory
        )
        return sum(known)


@dataclass(frozen=True, slots=True)
class LaneBacklog:
    """Jobs of one lane that have no answer yet."""

    queue: str
    waiting: int
    """In Redis, on all the queue's priority lists."""
    reserved: int
    """In a worker's buffer."""
    in_flight: int
    """In a model process."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.waiting + self.reserved + self.in_flight


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs of a queue pair that have no answer yet; the module's docstring says how exact it is."""

    interactive: LaneBacklog
    bulk: LaneBacklog
    workers: tuple[WorkerStats, ...]
    """Those heard of within the last `STATS_TTL_S` seconds, by name."""
    at_s: float
    """When it was counted: Unix time in seconds, by the Redis server's clock."""

    @property
    def lanes(self) -> tuple[LaneBacklog, LaneBacklog]:
        """Both lanes, the one that is served first in front."""
        return self.interactive, self.bulk

    @property
    def total(self) -> int:
        """Jobs of both lanes: what ``max_backlog`` bounds."""
        return self.interactive.total + self.bulk.total

    @property
    def scheduled(self) -> int:
        """Jobs that workers hold until their time has come; not part of `total`."""
        return sum(worker.scheduled for worker in self.workers)

    @property
    def jobs_per_s(self) -> float | None:
        """What all workers together do when there is always something to do; None if unknown."""
        return _sum([worker.full_jobs_per_s for worker in self.workers])

    @property
    def texts_per_s(self) -> float | None:
        """The same in texts."""
        return _sum([worker.full_texts_per_s for worker in self.workers])

    @property
    def drain_s(self) -> float | None:
        """Seconds until all of it is answered if nothing is added; None if that isn't known."""
        return self._seconds_for(self.total)

    def wait_s(self, queue: str) -> float | None:
        """Seconds a job sent to this lane now would wait for its answer; None if not known.

        The interactive lane goes first, so only what it holds itself, and what of the bulk lane is
        in a model process already, goes before a job sent to it.
        """
        if not self.workers:
            return None
        if queue == self.bulk.queue:
            return self.drain_s
        return self._seconds_for(self.interactive.total + self.bulk.in_flight)

    def _seconds_for(self, jobs: int) -> float | None:
        if not jobs:
            return 0.0
        rate = self.jobs_per_s
        return jobs / rate if rate else None


@dataclass(frozen=True, slots=True)
class Counted:
    """The replies of one count, before anybody reads what the workers say."""

    queues: tuple[str, str]
    waiting: tuple[int, int]
    """By lane."""
    unacknowledged: int
    """Messages of all queues of the database that workers hold."""
    told: Mapping[bytes, bytes]
    """What each worker says, by its name."""
    at_s: float

    @property
    def most(self) -> int:
        """What the backlog can't exceed, whoever holds the unacknowledged messages."""
        return sum(self.waiting) + self.unacknowledged

    def backlog(self) -> Backlog:
        """Read what the workers say; one that is silent, or makes no sense, is left out."""
        workers = [self._worker(raw) for _, raw in sorted(self.told.items())]
        known = tuple(worker for worker in workers if worker is not None)
        lanes = (
            _lane(self.queues[0], self.waiting[0], [worker.interactive for worker in known]),
            _lane(self.queues[1], self.waiting[1], [worker.bulk for worker in known]),
        )
        return Backlog(*_bounded(lanes, self.unacknowledged), known, self.at_s)

    def _worker(self, raw: bytes) -> WorkerStats | None:
        try:
            stats = WorkerStats.model_validate_json(raw)
        except ValidationError:
            return None
        return stats if self.at_s - stats.at_s <= STATS_TTL_S else None


def workers_key(settings: ClientSettings) -> str:
    """Redis hash in which the workers of a queue pair speak; `worker.stats` describes it."""
    return f"{settings.global_keyprefix}golem:workers:{settings.queue}"


def ask(pipe: Any, settings: ClientSettings, lists: Sequence[Sequence[str]]) -> None:
    """Put the count's commands into a pipeline; `lists` are the keys of each lane's lists."""
    for keys in lists:
        for key in keys:
            pipe.llen(key)
    pipe.zcard(settings.global_keyprefix + _UNACKED_INDEX)
    pipe.hgetall(workers_key(settings))
    pipe.time()


def counted(
    settings: ClientSettings, lists: Sequence[Sequence[str]], replies: Sequence[Any]
) -> Counted:
    """Read the replies to `ask`."""
    *lengths, unacknowledged, told, (seconds, microseconds) = replies
    middle = len(lists[0])
    return Counted(
        queues=(settings.queue, settings.bulk_queue),
        waiting=(sum(lengths[:middle]), sum(lengths[middle:])),
        unacknowledged=unacknowledged,
        told=told,
        at_s=seconds + microseconds / 1e6,
    )


def _lane(queue: str, waiting: int, held: Sequence[Held]) -> LaneBacklog:
    reserved = sum(each.reserved for each in held)
    return LaneBacklog(queue, waiting, reserved, sum(each.in_flight for each in held))


def _bounded(lanes: tuple[LaneBacklog, LaneBacklog], most: int) -> tuple[LaneBacklog, LaneBacklog]:
    """Take off what ended since the workers spoke: they hold no more than `most` jobs together.

    What was in flight ends first, and the interactive lane before bulk.
    """
    first, second = lanes
    over = max(0, sum(lane.reserved + lane.in_flight for lane in lanes) - most)
    parts = []
    for part in (first.in_flight, second.in_flight, first.reserved, second.reserved):
        ended = min(part, over)
        over -= ended
        parts.append(part - ended)
    return (
        replace(first, in_flight=parts[0], reserved=parts[2]),
        replace(second, in_flight=parts[1], reserved=parts[3]),
    )


def _sum(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
