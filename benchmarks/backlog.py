"""Backlogs: made once, put in front of one worker after the other, timed from first to last answer.

Every contender gets the same bytes: the messages are published by Golem's client, moved out of the
queue's list, and copied back into it when the worker under test is up and warm.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import redis

from benchmarks.contenders import QUEUE, RunningWorker, backend_url
from benchmarks.procfs import Usage, usage
from golem_tasks.client import Golem
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.errors import GolemError
from golem_tasks.settings import ClientSettings

__all__ = ["Bench", "Drained", "make_texts"]

_POLL_S = 0.005
_STALL_S = 60.0
"""Without a new answer for so long, a worker is taken to have stopped."""
_WARM_UP_JOBS = 500
_VOCABULARY = (
    "a the film plot cast script tender gripping dull clumsy warm hollow brave slow funny honest "
    "never always almost quite really story hero ending scene director music love hate wonder of "
    "and but with without for nobody everybody watches forgets remembers this that"
)
_WORDS = _VOCABULARY.split()


def make_texts(count: int, seed: int = 1) -> list[str]:
    """Distinct sentences of 8 to 20 words, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    return [
        f"{' '.join(rng.choices(_WORDS, k=rng.randint(8, 20)))} {number}" for number in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Drained:
    """What it took to answer a backlog."""

    jobs: int
    wall_s: float
    """From the backlog's appearance to the last answer in Redis."""
    parent: Usage
    """Of all main processes: CPU during the run, memory and files at its end."""
    models: Usage
    server_cpu_ms: float

    @property
    def figures(self) -> dict[str, float]:
        """As a round of a report."""
        return {
            "jobs_per_s": self.jobs / self.wall_s,
            "parent_cpu_ms_per_job": self.parent.cpu_ms / self.jobs,
            "child_cpu_ms_per_job": self.models.cpu_ms / self.jobs,
            "redis_cpu_ms_per_job": self.server_cpu_ms / self.jobs,
            "parent_peak_rss_mib": self.parent.peak_rss_mib,
            "child_peak_rss_mib": self.models.peak_rss_mib,
        }


class Bench:
    """A server of its own, a folder for logs, and the backlogs made so far."""

    def __init__(self, *, appendonly: bool = False) -> None:
        self.server = EmbeddedServer(appendonly=appendonly)
        self._folder = TemporaryDirectory(prefix="golem-bench-")
        self.folder = Path(self._folder.name)

    def __enter__(self) -> Self:
        self.server.start()
        self.broker = self.server.client()
        self.answers = redis.Redis.from_url(backend_url(self.server), socket_timeout=10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.broker.close()
        self.answers.close()
        self.server.stop()
        self._folder.cleanup()

    def settings(self) -> ClientSettings:
        """A producer's settings for this server, whatever the environment says."""
        url, backend = self.server.url, backend_url(self.server)
        return ClientSettings.model_validate(
            {"broker_url": url, "result_backend": backend, "queue": QUEUE}
        )

    @contextmanager
    def golem(self) -> Iterator[Golem]:
        """A producer of this server."""
        with Golem(settings=self.settings()) as golem:
            yield golem

    def prepare(self, name: str, texts: Sequence[str], per_message: int = 1) -> list[str]:
        """Publish texts while no worker runs and keep the messages as backlog `name`.

        Returns:
            the job ids, in the order of the texts.
        """
        with self.golem() as golem:
            if per_message == 1:
                ids = [job.id for job in golem.submit_many(texts)]
            else:
                starts = range(0, len(texts), per_message)
                ids = [golem.submit_batch(texts[i : i + per_message]).id for i in starts]
        self.broker.rename(QUEUE, _kept(name))
        return ids

    def release(self, name: str, *, keep: bool = True, queue: str = QUEUE) -> None:
        """Put a prepared backlog into the queue, all at once."""
        if keep:
            self.broker.copy(_kept(name), queue)
        else:
            self.broker.rename(_kept(name), queue)

    def clear(self, *, everything: bool = False) -> None:
        """Forget answers and what waits; the backlogs stay unless `everything` goes."""
        self.answers.flushdb()
        if everything:
            self.broker.flushdb()
            return
        kept = [key for key in self.broker.scan_iter() if not key.startswith(b"bench:")]
        if kept:
            self.broker.delete(*kept)

    def warm_up(self, jobs: int = _WARM_UP_JOBS) -> None:
        """Send some jobs through the running worker and forget their answers."""
        with self.golem() as golem:
            golem.submit_many(make_texts(jobs, seed=2))
        self.wait_answers(jobs)
        self.wait_settled()
        self.answers.flushdb()

    def drain(
        self,
        name: str,
        jobs: int,
        workers: Sequence[RunningWorker],
        *,
        keep: bool = True,
        queue: str = QUEUE,
    ) -> Drained:
        """Release a backlog to workers that are up, and time it to the last answer.

        Raises:
            GolemError: the workers stopped answering.
        """
        before = _used(workers, self.server)
        begun_s = time.monotonic()
        self.release(name, keep=keep, queue=queue)
        wall_s = self.wait_answers(jobs) - begun_s
        self.wait_settled()
        parent, models, server = _used(workers, self.server)
        return Drained(
            jobs,
            wall_s,
            _since(before[0], parent),
            _since(before[1], models),
            server.cpu_ms - before[2].cpu_ms,
        )

    def wait_answers(self, count: int) -> float:
        """Wait until so many answers are stored; return the monotonic time of the last.

        Raises:
            GolemError: none came for a minute.
        """
        seen, seen_s = -1, time.monotonic()
        while (found := self._dbsize()) < count:
            now_s = time.monotonic()
            if found != seen:
                seen, seen_s = found, now_s
            elif now_s - seen_s > _STALL_S:
                raise GolemError(f"No new answer for {_STALL_S:g} s: {found} of {count} are there.")
            time.sleep(_POLL_S)
        return time.monotonic()

    def wait_settled(self) -> None:
        """Wait until every delivery is acknowledged.

        Raises:
            GolemError: it took longer than a minute.
        """
        deadline_s = time.monotonic() + _STALL_S
        while held := self.broker.hlen("unacked"):
            if time.monotonic() > deadline_s:
                raise GolemError(f"{held} answered jobs were never acknowledged.")
            time.sleep(_POLL_S)

    def _dbsize(self) -> int:
        size: Any = self.answers.dbsize()
        return int(size)


def _kept(name: str) -> str:
    return f"bench:{name}"


def _used(workers: Sequence[RunningWorker], server: EmbeddedServer) -> tuple[Usage, Usage, Usage]:
    parent = sum((worker.parent_usage() for worker in workers), usage())
    models = sum((worker.model_usage() for worker in workers), usage())
    return parent, models, usage(server.pid)


def _since(before: Usage, after: Usage) -> Usage:
    return Usage(after.cpu_ms - before.cpu_ms, after.rss_mib, after.peak_rss_mib, after.fds)
