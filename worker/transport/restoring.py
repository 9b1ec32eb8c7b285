"""Putting messages back into their queues: a channel's own, and those of workers that died."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kombu.log import get_logger
from redis.exceptions import LockError

from worker.transport.keys import DELIVERIES_TTL_S
from worker.transport.messages import Message, put_back

__all__ = ["Restorer"]

logger = get_logger(__name__)

CHUNK = 100
"""Messages restored by one script call."""
SWEEP_ROUNDS = 50
"""Chunks one sweep restores at most; the next sweep goes on."""


class Restorer:
    """Restores through the scripts; the channel knows keys, bindings and how to run them."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def put_back(
        self, items: Sequence[tuple[str, Message | None]], *, to_head: bool, uncount: bool
    ) -> None:
        """Restore messages by tag, in the order of pushing; ``uncount`` undoes their delivery."""
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            [records] = self._channel.pipeline(
                [("HMGET", self._channel.keys.unacked, *(tag for tag, _ in chunk))]
            )
            self._restore(
                [
                    (tag, record, message.source if message else None)
                    for (tag, message), record in zip(chunk, records, strict=True)
                    if record is not None
                ],
                to_head=to_head,
                uncount=uncount,
            )

    def sweep(self, limit: int | None = None) -> None:
        """Restore messages whose lease ran out, unless another worker is doing it now."""
        with self._alone() as alone:
            rounds = SWEEP_ROUNDS if alone else 0
            while rounds and self._sweep_chunk(limit or CHUNK):
                rounds -= 1

    def _sweep_chunk(self, limit: int) -> bool:
        """Restore up to `limit` messages; whether more may be due."""
        keys, lease_s = self._channel.keys, self._channel.visibility_timeout
        highest, *pairs = self._channel.run("expired", [keys.unacked, keys.index], [lease_s, limit])
        records = dict(zip(pairs[::2], pairs[1::2], strict=True))
        restored = self._restore(
            [(tag.decode(), record, None) for tag, record in records.items()],
            to_head=True,
            highest=highest,
        )
        if restored:
            logger.info("Put %d messages back whose worker is gone", restored)
        return restored == limit

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold kombu's own mutex; False if another worker does."""
        channel = self._channel
        lock = channel.plain.lock(channel.keys.mutex, timeout=channel.unacked_mutex_expire)
        if not lock.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        finally:
            try:
                lock.release()
            except LockError:
                logger.debug("The sweep took longer than the mutex lasts")

    def _restore(
        self,
        records: Sequence[tuple[str, bytes, str | None]],
        *,
        to_head: bool,
        uncount: bool = False,
        highest: bytes | str = "",
    ) -> int:
        """Run restore.lua for records of (tag, entry of ``unacked``, list or None)."""
        if not records:
            return 0
        keys = self._channel.keys
        where, undo = "head" if to_head else "tail", "uncount" if uncount else ""
        arguments: list[Any] = [where, highest, undo, keys.deliveries, DELIVERIES_TTL_S]
        lists: dict[str, int] = {}
        for tag, record, source in records:
            raw, targets = self._destination(record, source)
            positions = [str(lists.setdefault(target, len(lists) + 1)) for target in targets]
            arguments += [tag, " ".join(positions), raw]
        return int(self._channel.run("restore", [keys.unacked, keys.index, *lists], arguments))

    def _destination(self, record: bytes, source: str | None) -> tuple[str | bytes, list[str]]:
        """The message to push, and onto which lists."""
        dead = [self._channel.keys.dead]
        try:
            raw, exchange, routing_key, priority = put_back(record)
        except (ValueError, RecursionError):  # cjson took it, Python doesn't
            return record, dead
        if source is not None:
            return raw, [source]
        return raw, self._channel.lists_for(exchange, routing_key, priority) or dead
