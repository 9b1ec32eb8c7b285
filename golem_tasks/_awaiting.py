"""Waiting for many results in one event loop: `golem_tasks._waiting`, to await.

While more is missing than one command can ask for it looks, as threads do; for the last few hundred
it leaves the subscription to the loop's `Listener`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

from golem_tasks._listener import Listener
from golem_tasks._redis import FAILED, is_passing
from golem_tasks._waiting import AT_ONCE, PAUSE_S, Late, Pending, Wait
from golem_tasks._wire import Meta, Wire

__all__ = ["AsyncWaiter"]


class AsyncWaiter:
    """Waits for results; each wait is independent of the others.

    Args:
        wire: reads results.
        commands: asyncio client of the result backend.
        listener: of the same event loop.
    """

    def __init__(self, wire: Wire, commands: Any, listener: Listener) -> None:
        self._wire = wire
        self._commands = commands
        self._listener = listener

    async def wait(
        self, ids: Iterable[str], timeout_s: float | None
    ) -> AsyncGenerator[tuple[str, Meta], None]:
        """Yield id and result of every job as it ends.

        Raises:
            Late: `timeout_s` seconds have passed.
            BrokerUnavailable: the backend refuses, or couldn't be reached at all so far.
        """
        wait = Wait(self._wire, ids, timeout_s)
        server, reached = self._wire.backend, False
        while not reached or len(wait.keys) > AT_ONCE:
            try:
                missing = len(wait.keys)
                async for ended in self.look(wait):
                    yield ended
                reached = True
                if wait.keys:
                    wait.check_time()
                if len(wait.keys) > AT_ONCE:
                    await asyncio.sleep(wait.pause_s(news=len(wait.keys) < missing))
            except FAILED as exc:
                if not is_passing(exc) or (not reached and wait.age_s >= server.connect_timeout_s):
                    raise server.unavailable(exc) from exc
                wait.check_time()
                await asyncio.sleep(min(PAUSE_S, wait.left_s))
        async for ended in self._listen(wait):
            yield ended

    async def look(self, pending: Pending) -> AsyncGenerator[tuple[str, Meta], None]:
        """Yield what has ended, from the front of the jobs or, every now and then, from all.

        Raises:
            RedisError, OSError: the backend is away or refuses.
        """
        for keys in pending.parts(time.monotonic()):
            values = await self._commands.mget(keys)
            for ended in pending.found(zip(keys, values, strict=True)):
                yield ended

    async def _listen(self, wait: Wait) -> AsyncGenerator[tuple[str, Meta], None]:
        ended: asyncio.Queue[bytes] = asyncio.Queue()
        futures: dict[bytes, asyncio.Future[Meta]] = {}
        try:
            for key, job_id in wait.keys.items():
                futures[key] = future = self._listener.expect(job_id)
                future.add_done_callback(partial(_put, ended, key))
            while wait.keys:
                try:
                    async with asyncio.timeout(wait.left_s):
                        key = await ended.get()
                except TimeoutError:
                    raise Late(list(wait.keys.values())) from None
                job_id, future = wait.keys.pop(key), futures.pop(key)
                self._listener.leave(job_id, future)
                yield job_id, future.result()
        finally:
            for key, future in futures.items():
                self._listener.leave(wait.keys[key], future)


def _put(ended: asyncio.Queue[bytes], key: bytes, _: asyncio.Future[Meta]) -> None:
    ended.put_nowait(key)
