"""Waiting for results from any number of threads, without leaving a subscription behind.

A wait looks first (MGET), and subscribes only if something is missing: SUBSCRIBE, confirmation,
MGET again for what came in between, then listen. An MGET sweep each second is the safety net for
what a broken connection swallowed. The subscribed connection belongs to this one wait and is closed
with it; a lost one is replaced until the wait's own time is up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from golem_tasks._redis import FAILED, Server, is_passing
from golem_tasks._wire import Meta, Wire
from golem_tasks.errors import ResultTimeout

__all__ = ["AT_ONCE", "SWEEP_S", "SWEEP_SHARE", "Late", "Waiter", "result_timeout", "slices"]

SWEEP_S = 1.0
"""Seconds between two sweeps, at least."""
SWEEP_SHARE = 10.0
"""A sweep that takes long is followed by a rest this many times as long."""
AT_ONCE = 500
"""Keys in one MGET, channels in one SUBSCRIBE."""
_PAUSE_S = 0.1


class Late(Exception):
    """Raised when a wait's time is up. The clients make a `ResultTimeout` of it."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(ids)
        self.ids = ids


def slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
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
        wait = _Wait(self._wire, ids, timeout_s)
        reached = False
        while wait.pending:
            try:
                # Not in the subscription's scope: most waits of a poller end here.
                yield from wait.found(self._stored(wait))
                reached = True
                if wait.pending:
                    wait.check_time()
                    with self._subscribed(list(wait.pending)) as connection:
                        yield from self._listen(connection, wait)
            except FAILED as exc:
                if not is_passing(exc) or (not reached and wait.age_s >= self._patience_s):
                    raise self._server.unavailable(exc) from exc
                wait.check_time()
                time.sleep(min(_PAUSE_S, wait.left_s))

    @property
    def _patience_s(self) -> float:
        return self._server.connect_timeout_s

    def _listen(self, connection: Any, wait: _Wait) -> Iterator[tuple[str, Meta]]:
        unconfirmed = set(wait.pending)
        sweep_at = time.monotonic() + SWEEP_S
        while wait.pending:
            wait.check_time()
            rest_s = sweep_at - time.monotonic()
            if rest_s <= 0:
                began = time.monotonic()
                stored = list(self._stored(wait))  # before our caller's time begins to count
                ended = time.monotonic()
                sweep_at = ended + max(SWEEP_S, SWEEP_SHARE * (ended - began))
                yield from wait.found(stored)
            elif connection.can_read(timeout=min(rest_s, wait.left_s)):
                kind, channel, data = connection.read_response()
                if kind == b"message":
                    yield from wait.found([(channel, data)])
                elif unconfirmed:
                    unconfirmed.discard(channel)
                    if not unconfirmed:
                        sweep_at = 0.0  # what ended before the subscription stood

    def _stored(self, wait: _Wait) -> Iterator[tuple[bytes, bytes]]:
        for keys in slices(list(wait.pending)):
            values: Any = self._commands.mget(keys)
            yield from ((k, v) for k, v in zip(keys, values, strict=True) if v is not None)

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


class _Wait:
    """One wait's clock, and the results it still lacks."""

    def __init__(self, wire: Wire, ids: Iterable[str], timeout_s: float | None) -> None:
        self.pending = {wire.result_key(id_): id_ for id_ in ids}
        self._wire = wire
        self._began = time.monotonic()
        self._timeout_s = timeout_s

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """Seconds left; a day, where there is no end."""
        return 86_400.0 if self._timeout_s is None else max(0.0, self._timeout_s - self.age_s)

    def check_time(self) -> None:
        """Raise `Late` once the time is up."""
        # Not "age_s >= timeout_s", which a NaN never is.
        if self._timeout_s is not None and not self.age_s < self._timeout_s:
            raise Late(list(self.pending.values()))

    def found(self, results: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[str, Meta]]:
        """Yield the jobs among these results that have ended, each once."""
        for key, raw in results:
            if key in self.pending:
                meta = self._wire.read(raw)
                if self._wire.is_ready(meta):
                    yield self.pending.pop(key), meta


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
    text = (
        f"{which} did not end within {timeout:g} s (state {state}, {queue}): "
        "wait again, and see that a worker runs on this queue."
    )
    return ResultTimeout(text, ids[0], state, length)
