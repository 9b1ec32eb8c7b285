"""Waiting for results in one event loop: every waiter shares one subscribed connection.

`Listener.expect` gives a future; behind it three tasks work. The *subscriber* owns the pub/sub
connection: it makes it, replaces it when it breaks, and within it a reader takes what arrives while
a writer, woken by an event, sends the SUBSCRIBEs and UNSUBSCRIBEs that have come together. The
*checker* asks with MGET for each key once its subscription is confirmed, since the job may have
ended before, and for all of them each second, since pub/sub loses what is published while the
connection is away. Nobody polls, and nothing is left subscribed that nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from golem_tasks._redis import FAILED, is_passing
from golem_tasks._waiting import SWEEP_S, SWEEP_SHARE, slices
from golem_tasks._wire import Meta, Wire
from golem_tasks.errors import GolemError

__all__ = ["Listener"]

_PAUSE_S = 0.1


class Listener:
    """The waiters of one event loop. Used from that loop only.

    Args:
        wire: reads results.
        commands: asyncio client of the result backend.
        subscribers: asyncio pool the subscribed connection is taken from.
    """

    def __init__(self, wire: Wire, commands: Any, subscribers: Any) -> None:
        self._wire = wire
        self._commands = commands
        self._pool = subscribers
        self._futures: dict[bytes, set[asyncio.Future[Meta]]] = {}
        self._subscribed: set[bytes] = set()  # on the connection there is now
        self._to_add: set[bytes] = set()
        self._to_drop: set[bytes] = set()
        self._changed = asyncio.Event()
        self._to_check: set[bytes] = set()
        self._check = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._reached = False
        self._waiting_since_s = 0.0

    @property
    def waiting(self) -> int:
        """Keys somebody waits for."""
        return len(self._futures)

    def expect(self, job_id: str) -> asyncio.Future[Meta]:
        """Return a future of the job's result, once it has ended; `leave` it in the end."""
        self._start()
        key = self._wire.result_key(job_id)
        future: asyncio.Future[Meta] = asyncio.get_running_loop().create_future()
        if not self._futures:
            self._waiting_since_s = time.monotonic()
            self._check.set()  # the checker rests without a clock while nobody waits
        if key not in self._futures:
            self._futures[key] = set()
            self._to_drop.discard(key)
            self._to_add.add(key)
            self._changed.set()
        self._futures[key].add(future)
        return future

    def leave(self, job_id: str, future: asyncio.Future[Meta]) -> None:
        """Give a future up, whatever has become of it; the last to leave unsubscribes."""
        if not future.cancel() and not future.cancelled():
            future.exception()  # seen: asyncio complains about an exception nobody fetched
        key = self._wire.result_key(job_id)
        futures = self._futures.get(key, set())
        futures.discard(future)
        if not futures:
            self._forget(key)

    async def aclose(self) -> None:
        """Close the connection; whoever still waits gets a `GolemError`."""
        tasks, self._tasks = set(self._tasks), []
        while tasks:
            # Again, if need be: redis-py's own wait_for can swallow a cancellation (Python 3.11).
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_PAUSE_S)
        self._fail(GolemError("The client was closed while this job was waited for."))

    def _start(self) -> None:
        if self._tasks:
            return
        self._tasks = [
            asyncio.create_task(self._subscribe_forever(), name="golem-subscriber"),
            asyncio.create_task(self._check_forever(), name="golem-checker"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Only aclose ends these tasks; if one dies of anything else, no waiter may hang.
        if not task.cancelled() and (error := task.exception()) is not None:
            for other in self._tasks:
                other.cancel()
            self._tasks = []
            self._fail(GolemError(f"Waiting for results failed: {error!r}"))

    def _forget(self, key: bytes) -> None:
        if self._futures.pop(key, None) is None:
            return
        self._to_add.discard(key)
        if key in self._subscribed:
            self._to_drop.add(key)
            self._changed.set()

    def _found(self, key: bytes, raw: bytes) -> None:
        if key not in self._futures:
            return
        meta = self._wire.read(raw)
        if not self._wire.is_ready(meta):
            return
        futures = self._futures[key]
        self._forget(key)
        for future in futures:
            if not future.done():
                future.set_result(meta)

    def _fail(self, error: Exception) -> None:
        for key, futures in list(self._futures.items()):
            self._forget(key)
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    async def _subscribe_forever(self) -> None:
        while True:
            await self._changed.wait()
            if not self._futures:
                self._changed.clear()
                continue
            try:
                await self._subscribe()
            except FAILED as exc:
                self._trouble(exc)
            # Everything is asked for again, on the next connection.
            self._subscribed.clear()
            self._to_add, self._to_drop = set(self._futures), set()
            self._changed.set()
            await asyncio.sleep(_PAUSE_S)

    async def _subscribe(self) -> None:
        patience_s = self._wire.backend.connect_timeout_s
        async with asyncio.timeout(patience_s):
            connection = await self._pool.get_connection()
        # The writer may not leave while the reader waits, nor the other way round.
        parts = [
            asyncio.create_task(self._read(connection), name="golem-reader"),
            asyncio.create_task(self._write(connection), name="golem-writer"),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)

    async def _read(self, connection: Any) -> None:
        while True:
            kind, channel, data = await connection.read_response()
            if kind == b"message":
                self._found(channel, data)
            elif kind == b"subscribe":
                self._to_check.add(channel)
                self._check.set()

    async def _write(self, connection: Any) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            add, drop = list(self._to_add), list(self._to_drop)
            self._to_add.clear()
            self._to_drop.clear()
            self._subscribed.difference_update(drop)
            self._subscribed.update(add)
            for command, keys in (("UNSUBSCRIBE", drop), ("SUBSCRIBE", add)):
                for part in slices(keys):
                    # check_health off: a PING's answer would be taken for a message.
                    await connection.send_command(command, *part, check_health=False)

    async def _check_forever(self) -> None:
        sweep_at = time.monotonic() + SWEEP_S
        while True:
            rest_s = max(0.0, sweep_at - time.monotonic()) if self._futures else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._check.wait()
            self._check.clear()
            began = time.monotonic()
            sweep = began >= sweep_at
            keys = list(self._futures if sweep else self._to_check & self._futures.keys())
            self._to_check.clear()
            try:
                await self._look(keys)
            except FAILED as exc:
                self._trouble(exc)
            if sweep:
                ended = time.monotonic()
                sweep_at = ended + max(SWEEP_S, SWEEP_SHARE * (ended - began))

    async def _look(self, keys: list[bytes]) -> None:
        for part in slices(keys):
            values = await self._commands.mget(part)
            self._reached = True
            for key, raw in zip(part, values, strict=True):
                if raw is not None:
                    self._found(key, raw)

    def _trouble(self, error: Exception) -> None:
        server = self._wire.backend
        waited_s = time.monotonic() - self._waiting_since_s
        never = not self._reached and waited_s >= server.connect_timeout_s
        if never or not is_passing(error):
            self._fail(server.unavailable(error))
