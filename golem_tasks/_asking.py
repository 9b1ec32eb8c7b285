"""One-off questions: a job's state, a backlog, and to revoke a job unless it has ended.

Each is safe to ask twice, and is, once, when an idle connection turns out to be closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import WatchError

from golem_tasks import backlog
from golem_tasks._groups import group_key
from golem_tasks._redis import FAILED, Server, is_passing
from golem_tasks._waiting import slices
from golem_tasks._wire import Meta, Wire
from golem_tasks.backlog import Counted

__all__ = ["Asker", "AsyncAsker", "ask"]

T = TypeVar("T")


def ask(server: Server, call: Callable[..., T], *args: Any) -> T:
    """Ask once more if the connection turns out to be closed.

    Raises:
        BrokerUnavailable: the server is away or refuses.
    """
    try:
        try:
            return call(*args)
        except FAILED as exc:
            if not is_passing(exc):
                raise
            return call(*args)
    except FAILED as exc:
        raise server.unavailable(exc) from exc


class Asker:
    """Asks from any thread.

    Args:
        wire: names keys and reads results.
        broker: client of the broker.
        backend: client of the result backend.
    """

    def __init__(self, wire: Wire, broker: Any, backend: Any) -> None:
        self._wire = wire
        self._broker = broker
        self._backend = backend

    def stored(self, job_id: str) -> Meta | None:
        """What is stored as a job's result, if anything is."""
        raw = ask(self._wire.backend, self._backend.get, self._wire.result_key(job_id))
        return self._wire.read(raw) if raw else None

    def group(self, group_id: str) -> bytes | None:
        """What is stored as the record of a group, if anything is."""
        raw: bytes | None = ask(
            self._wire.backend, self._backend.get, group_key(self._wire.settings, group_id)
        )
        return raw

    def revoke(self, job_ids: Sequence[str]) -> list[str]:
        """Store REVOKED, and publish it, for each that hasn't ended; those that are revoked now."""
        server, held = self._wire.backend, []
        for part in slices(job_ids):
            new, old = _split(part, ask(server, self._store_revoked, part))
            ask(server, self._publish_revoked, new)
            held += new
            stored = ask(server, self._backend.mget, _keys(self._wire, old)) if old else []
            for job_id, raw in zip(old, stored, strict=True):
                known = _was_revoked(self._wire, raw)
                if known or (known is None and ask(server, self._revoke, job_id)):
                    held.append(job_id)
        return held

    def forget(self, job_ids: Sequence[str]) -> int:
        """Delete what is stored of these jobs; how many had something."""
        return sum(
            ask(self._wire.backend, self._backend.delete, *_keys(self._wire, part))
            for part in slices(job_ids)
        )

    def forget_group(self, group_id: str) -> None:
        """Delete the record of a group."""
        ask(self._wire.backend, self._backend.delete, group_key(self._wire.settings, group_id))

    def queue_length(self, queues: Sequence[str]) -> int:
        """Jobs that wait in these queues, on all their priority lists."""
        return int(ask(self._wire.broker, self._lengths, queues))

    def count(self) -> Counted:
        """Count the backlog, in one round trip."""
        return ask(self._wire.broker, self._count)

    def _store_revoked(self, job_ids: Sequence[str]) -> list[Any]:
        with self._backend.pipeline(transaction=False) as pipe:
            _add_revoked(pipe, self._wire, job_ids)
            return list(pipe.execute())

    def _publish_revoked(self, job_ids: Sequence[str]) -> None:
        with self._backend.pipeline(transaction=False) as pipe:
            _tell_revoked(pipe, self._wire, job_ids)
            pipe.execute()

    def _revoke(self, job_id: str) -> Any:
        key = self._wire.result_key(job_id)

        def store(pipe: Any) -> bool:
            try:
                raw = pipe.get(key)
            except WatchError as exc:
                raise _lost(exc) from exc
            if raw is not None and self._wire.is_ready(meta := self._wire.read(raw)):
                return self._wire.is_revoked(meta)
            _write(pipe, key, self._wire, job_id)
            return True

        # It WATCHes the key: an answer that comes in between is not overwritten.
        return self._backend.transaction(store, key, value_from_callable=True)

    def _lengths(self, queues: Sequence[str]) -> int:
        with self._broker.pipeline(transaction=False) as pipe:
            _measure(pipe, self._wire, queues)
            return sum(pipe.execute())

    def _count(self) -> Counted:
        settings, lists = self._wire.settings, _lanes(self._wire)
        with self._broker.pipeline(transaction=False) as pipe:
            backlog.ask(pipe, settings, lists)
            return backlog.counted(settings, lists, pipe.execute())


class AsyncAsker:
    """Asks from one event loop.

    Args:
        wire: names keys and reads results.
        broker: asyncio client of the broker.
        backend: asyncio client of the result backend.
    """

    def __init__(self, wire: Wire, broker: Any, backend: Any) -> None:
        self._wire = wire
        self._broker = broker
        self._backend = backend

    async def stored(self, job_id: str) -> Meta | None:
        """What is stored as a job's result, if anything is."""
        raw = await self.ask(self._wire.backend, self._backend.get, self._wire.result_key(job_id))
        return self._wire.read(raw) if raw else None

    async def group(self, group_id: str) -> bytes | None:
        """What is stored as the record of a group, if anything is."""
        raw: bytes | None = await self.ask(
            self._wire.backend, self._backend.get, group_key(self._wire.settings, group_id)
        )
        return raw

    async def revoke(self, job_ids: Sequence[str]) -> list[str]:
        """Store REVOKED, and publish it, for each that hasn't ended; those that are revoked now."""
        server, held = self._wire.backend, []
        for part in slices(job_ids):
            new, old = _split(part, await self.ask(server, self._store_revoked, part))
            await self.ask(server, self._publish_revoked, new)
            held += new
            keys = _keys(self._wire, old)
            stored = await self.ask(server, self._backend.mget, keys) if old else []
            for job_id, raw in zip(old, stored, strict=True):
                known = _was_revoked(self._wire, raw)
                if known or (known is None and await self.ask(server, self._revoke, job_id)):
                    held.append(job_id)
        return held

    async def forget(self, job_ids: Sequence[str]) -> int:
        """Delete what is stored of these jobs; how many had something."""
        forgotten = 0
        for part in slices(job_ids):
            keys = _keys(self._wire, part)
            forgotten += await self.ask(self._wire.backend, self._backend.delete, *keys)
        return forgotten

    async def forget_group(self, group_id: str) -> None:
        """Delete the record of a group."""
        key = group_key(self._wire.settings, group_id)
        await self.ask(self._wire.backend, self._backend.delete, key)

    async def queue_length(self, queues: Sequence[str]) -> int:
        """Jobs that wait in these queues, on all their priority lists."""
        return int(await self.ask(self._wire.broker, self._lengths, queues))

    async def count(self) -> Counted:
        """Count the backlog, in one round trip."""
        return await self.ask(self._wire.broker, self._count)

    async def _store_revoked(self, job_ids: Sequence[str]) -> list[Any]:
        async with self._backend.pipeline(transaction=False) as pipe:
            _add_revoked(pipe, self._wire, job_ids)
            return list(await pipe.execute())

    async def _publish_revoked(self, job_ids: Sequence[str]) -> None:
        async with self._backend.pipeline(transaction=False) as pipe:
            _tell_revoked(pipe, self._wire, job_ids)
            await pipe.execute()

    async def _revoke(self, job_id: str) -> Any:
        key = self._wire.result_key(job_id)

        async def store(pipe: Any) -> bool:
            try:
                raw = await pipe.get(key)
            except WatchError as exc:
                raise _lost(exc) from exc
            if raw is not None and self._wire.is_ready(meta := self._wire.read(raw)):
                return self._wire.is_revoked(meta)
            _write(pipe, key, self._wire, job_id)
            return True

        # It WATCHes the key: an answer that comes in between is not overwritten.
        return await self._backend.transaction(store, key, value_from_callable=True)

    async def _lengths(self, queues: Sequence[str]) -> int:
        async with self._broker.pipeline(transaction=False) as pipe:
            _measure(pipe, self._wire, queues)
            return sum(await pipe.execute())

    async def _count(self) -> Counted:
        settings, lists = self._wire.settings, _lanes(self._wire)
        async with self._broker.pipeline(transaction=False) as pipe:
            backlog.ask(pipe, settings, lists)
            return backlog.counted(settings, lists, await pipe.execute())

    async def ask(self, server: Server, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Ask once more if the connection turns out to be closed.

        Raises:
            BrokerUnavailable: the server is away or refuses.
        """
        try:
            try:
                return await call(*args)
            except FAILED as exc:
                if not is_passing(exc):
                    raise
                return await call(*args)
        except FAILED as exc:
            raise server.unavailable(exc) from exc


def _lost(error: WatchError) -> BaseException:
    """What broke off a transaction's read: redis-py would begin anew, at once and for ever.

    A server that reads its data from disk lets a client WATCH and refuses it the GET.
    """
    return error.__context__ or ConnectionError(str(error))


def _keys(wire: Wire, job_ids: Sequence[str]) -> list[bytes]:
    return [wire.result_key(job_id) for job_id in job_ids]


def _write(pipe: Any, key: bytes, wire: Wire, job_id: str) -> None:
    record = wire.revoked(job_id)
    pipe.multi()
    pipe.set(key, record, ex=wire.settings.result_expires_s)
    pipe.publish(key, record)


def _add_revoked(pipe: Any, wire: Wire, job_ids: Sequence[str]) -> None:
    """Store it where nothing is stored; what is there is left alone."""
    for job_id in job_ids:
        record, expires_s = wire.revoked(job_id), wire.settings.result_expires_s
        pipe.set(wire.result_key(job_id), record, ex=expires_s, nx=True)


def _tell_revoked(pipe: Any, wire: Wire, job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        pipe.publish(wire.result_key(job_id), wire.revoked(job_id))


def _split(job_ids: Sequence[str], stored: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Those that were stored, and those where something was already."""
    both = list(zip(job_ids, stored, strict=True))
    return [id_ for id_, ok in both if ok], [id_ for id_, ok in both if not ok]


def _was_revoked(wire: Wire, raw: bytes | None) -> bool | None:
    """Whether it ended by being revoked; None: it hasn't ended, or its record has just expired."""
    if raw is None or not wire.is_ready(meta := wire.read(raw)):
        return None
    return wire.is_revoked(meta)


def _measure(pipe: Any, wire: Wire, queues: Sequence[str]) -> None:
    for queue in queues:
        for key in wire.queue_keys(queue):
            pipe.llen(key)


def _lanes(wire: Wire) -> list[list[str]]:
    """The keys of each lane's lists."""
    return [wire.queue_keys(queue) for queue in (wire.settings.queue, wire.settings.bulk_queue)]
