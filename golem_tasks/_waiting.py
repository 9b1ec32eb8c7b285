"""Waiting for results from any number of threads, without leaving a subscription behind.

A wait looks first (MGET). While more is missing than one command can ask for, it goes on looking,
at the front of the jobs more often than at all of them (`Pending.parts`): a subscription for each
of fifty thousand costs both sides more, and what is published while its reader is busy piles up in
Redis. For the last few hundred it subscribes: SUBSCRIBE, confirmation, MGET again for what came in
between, then listen. An MGET sweep each second is the safety net for what a broken connection
swallowed. The subscribed connection belongs to this one wait and is closed with it; a lost one is
replaced until the wait's own time is up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import redis

from golem_tasks._redis import FAILED, Server, is_passing
from golem_tasks._wire import Meta, Wire
from golem_tasks.errors import ResultTimeout

__all__ = [
    "AT_ONCE",
    "PAUSE_S",
    "SWEEP_S",
    "SWEEP_SHARE",
    "InOrder",
    "Late",
    "Pending",
    "Wait",
    "Waiter",
    "result_timeout",
    "slices",
]

T = TypeVar("T")

SWEEP_S = 1.0
"""Seconds between two sweeps, at least."""
SWEEP_SHARE = 10.0
"""A sweep that takes long is followed by a rest this many times as long."""
AT_ONCE = 500
"""Keys in one MGET, channels in one SUBSCRIBE."""
PAUSE_S = 0.1
"""Seconds until Redis is tried again."""
_SWEEP_KEYS_PER_S = 10_000
_LEAST_PAUSE_S = 0.05
_MOST_PAUSE_S = 0.25


class Late(Exception):
    """Raised when a wait's time is up. The clients make a `ResultTimeout` of it."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(ids)
        self.ids = ids


def slices(keys: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split into parts one command can carry."""
    for start in range(0, len(keys), AT_ONCE):
        yield keys[start : start + AT_ONCE]


class Waiter:
    """Waits for results; each wait is independent of the others.

    Args:
        wire: reads results.
        commands: client of the result backend.
        subscribers: pool of the result backend for subscribed connections.
    """

    def __init__(
        self, wire: Wire, commands: redis.Redis, subscribers: redis.ConnectionPool
    ) -> None:
        self._wire = wire
        self._server: Server = wire.backend
        self._commands = commands
        self._subscribers = subscribers

    def wait(self, ids: Iterable[str], timeout_s: float | None) -> Iterator[tuple[str, Meta]]:
        """Yield id and result of every job as it ends.

        Raises:
            Late: `timeout_s` seconds have passed.
            BrokerUnavailable: the backend refuses, or couldn't be reached at all so far.
        """
        wait = Wait(self._wire, ids, timeout_s)
        reached = False
        while wait.keys:
            try:
                missing = len(wait.keys)
                # Not in the subscription's scope: most waits of a poller end here.
                yield from self.look(wait)
                reached = True
                if wait.keys:
                    wait.check_time()
                    if len(wait.keys) > AT_ONCE:
                        time.sleep(wait.pause_s(news=len(wait.keys) < missing))
                    else:
                        with self._subscribed(list(wait.keys)) as connection:
                            yield from self._listen(connection, wait)
            except FAILED as exc:
                if not is_passing(exc) or (not reached and wait.age_s >= self._patience_s):
                    raise self._server.unavailable(exc) from exc
                wait.check_time()
                time.sleep(min(PAUSE_S, wait.left_s))

    def look(self, pending: Pending) -> Iterator[tuple[str, Meta]]:
        """Yield what has ended, from the front of the jobs or, every now and then, from all.

        Raises:
            RedisError, OSError: the backend is away or refuses.
        """
        for keys in pending.parts(time.monotonic()):
            values: Any = self._commands.mget(keys)
            yield from pending.found(zip(keys, values, strict=True))

    @property
    def _patience_s(self) -> float:
        return self._server.connect_timeout_s

    def _listen(self, connection: Any, wait: Wait) -> Iterator[tuple[str, Meta]]:
        unconfirmed = set(wait.keys)
        sweep_at = time.monotonic() + SWEEP_S
        while wait.keys:
            wait.check_time()
            rest_s = sweep_at - time.monotonic()
            if rest_s <= 0:
                sweep_at = time.monotonic() + SWEEP_S  # before our caller's time begins to count
                yield from self.look(wait)
            elif connection.can_read(timeout=min(rest_s, wait.left_s)):
                kind, channel, data = connection.read_response()
                if kind == b"message":
                    yield from wait.found([(channel, data)])
                elif unconfirmed:
                    unconfirmed.discard(channel)
                    if not unconfirmed:
                        sweep_at = 0.0  # what ended before the subscription stood

    @contextmanager
    def _subscribed(self, channels: Sequence[bytes]) -> Iterator[Any]:
        connection: Any = self._subscribers.get_connection()
        try:
            for part in slices(channels):
                connection.send_command("SUBSCRIBE", *part)
            yield connection
        finally:
            # Closing the connection is what ends its subscriptions, whatever has become of it.
            connection.disconnect()
            self._subscribers.release(connection)


class Pending:
    """The results that are still to come, in the order their jobs were sent.

    Args:
        wire: reads results.
        ids: of the jobs.
    """

    def __init__(self, wire: Wire, ids: Iterable[str]) -> None:
        self.keys = {wire.result_key(id_): id_ for id_ in ids}
        """Key of each result, and the job's id."""
        self._wire = wire
        self._sweep_at_s = 0.0

    def parts(self, now_s: float) -> Iterator[Sequence[bytes]]:
        """Yield the keys to look at now, to each of which `found` is told the values.

        Jobs end in about the order they were sent, so a look stops at the first part of which none
        has ended. Those that end out of order are found by a look at all of them, each second,
        or at a pace of 10,000 a second if they are more.
        """
        sweep = now_s >= self._sweep_at_s
        if sweep:
            self._sweep_at_s = now_s + max(SWEEP_S, len(self.keys) / _SWEEP_KEYS_PER_S)
        for part in slices(list(self.keys)):
            missing = len(self.keys)
            yield part
            if not sweep and len(self.keys) == missing:
                return

    def found(self, results: Iterable[tuple[bytes, bytes | None]]) -> Iterator[tuple[str, Meta]]:
        """Yield the jobs among these results that have ended, each once."""
        for key, raw in results:
            if raw is not None and key in self.keys:
                meta = self._wire.read(raw)
                if self._wire.is_ready(meta) and (job_id := self.keys.pop(key, None)) is not None:
                    yield job_id, meta

    def drop(self, job_id: str) -> bool:
        """Take out a job that is known to have ended; whether it was still in."""
        return self.keys.pop(self._wire.result_key(job_id), None) is not None


class Wait(Pending):
    """One wait: its clock, and the results it still lacks."""

    def __init__(self, wire: Wire, ids: Iterable[str], timeout_s: float | None) -> None:
        super().__init__(wire, ids)
        self._began = time.monotonic()
        self._timeout_s = timeout_s
        self._pause_s = _LEAST_PAUSE_S

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """Seconds left; a day, where there is no end."""
        return 86_400.0 if self._timeout_s is None else max(0.0, self._timeout_s - self.age_s)

    def pause_s(self, *, news: bool) -> float:
        """Return how long to rest until the next look: longer and longer while nothing ends."""
        pause_s = _LEAST_PAUSE_S if news else self._pause_s
        self._pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        return min(pause_s, self.left_s)

    def check_time(self) -> None:
        """Raise `Late` once the time is up."""
        # Not "age_s >= timeout_s", which a NaN never is.
        if self._timeout_s is not None and not self.age_s < self._timeout_s:
            raise Late(list(self.keys.values()))


class InOrder:
    """Puts what ends in any order back into the order it was sent.

    Args:
        ids: in that order.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = deque(ids)
        self._held: dict[str, Meta] = {}

    def add(self, job_id: str, meta: Meta) -> Iterator[tuple[str, Meta]]:
        """Take one that has ended; yield those whose turn it is."""
        self._held[job_id] = meta
        while self._ids and self._ids[0] in self._held:
            first = self._ids.popleft()
            yield first, self._held.pop(first)


def result_timeout(
    ids: Sequence[str], timeout: float | None, state: str, length: int
) -> ResultTimeout:
    """Build the sentence about the first of the jobs that are still to come."""
    which = f"Job {ids[0]}" if len(ids) == 1 else f"Job {ids[0]} and {len(ids) - 1} more"
    queue = (
        "Redis couldn't be asked how many jobs wait"
        if length < 0
        else f"{length} {'job waits' if length == 1 else 'jobs wait'} in the queue"
    )
    # Not waiting and not answered: with a worker now, or nothing is known of it.
    unknown = (
        "; a job nobody knows looks the same: one whose answer has expired (GOLEM_RESULT_EXPIRES_S)"
        " or was forgotten"
    )
    text = (
        f"{which} did not end within {timeout:g} s (state {state}, {queue}): "
        "wait again, and see that a worker runs on this queue"
        f"{unknown if state == 'PENDING' and length == 0 else ''}."
    )
    return ResultTimeout(text, ids[0], state, length)
