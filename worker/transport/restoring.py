"""Putting messages back into their queues: a channel's own, and those of workers that died."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from kombu.log import get_logger
from redis.exceptions import LockError, RedisError, ResponseError

from worker.transport.keys import DEAD_ENTRIES, DELIVERIES_TTL_S
from worker.transport.leases import Silence
from worker.transport.messages import Message, put_back

__all__ = ["Restorer"]

logger = get_logger(__name__)

CHUNK = 100
"""Messages restored by one script call."""
SWEEP_ROUNDS = 50
"""Chunks one sweep restores at most; the next sweep goes on."""


class _Item(NamedTuple):
    """A message to put back."""

    tag: str | bytes
    raw: str | bytes
    lists: list[str]
    """Where it goes; none for the dead letters."""
    score: str | bytes = ""
    """What its score must still be, else another worker has it; "" for any."""


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
                    self._item(tag, record, message.leased_until if message else "", message)
                    for (tag, message), record in zip(chunk, records, strict=True)
                    if record is not None
                ],
                to_head=to_head,
                uncount=uncount,
            )

    def bury(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Move messages, given by tag and what is kept of their text, to the dead letters."""
        self._restore([_Item(tag, raw, []) for tag, raw in items], to_head=True)

    def sweep(self, silence: Silence, limit: int | None = None) -> None:
        """Restore messages whose holders are gone, unless another worker is doing it now."""
        with self._alone() as alone:
            rounds = SWEEP_ROUNDS if alone else 0
            while rounds and self._sweep_chunk(silence, limit or CHUNK):
                rounds -= 1

    def _sweep_chunk(self, silence: Silence, limit: int) -> bool:
        """Restore up to `limit` messages; whether more may be due."""
        keys = self._channel.keys
        now, *found = self._channel.run(
            "expired",
            [keys.unacked, keys.index, keys.leases],
            [self._channel.visibility_timeout, limit],
        )
        if not silence.over(float(now)):
            return False
        due = zip(found[::3], found[1::3], found[2::3], strict=True)
        restored = self._restore(
            [self._item(tag, record, score) for tag, score, record in due], to_head=True
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

    def _restore(self, items: Sequence[_Item], **how: Any) -> int:
        """Run restore.lua; one message the server won't put back is buried, the others aren't."""
        if not items:
            return 0
        try:
            return self._run(items, **how)
        except ResponseError:
            # Such as a list this user may not touch. What is refused is refused before a change.
            return sum(self._restore_alone(item, **how) for item in items)

    def _restore_alone(self, item: _Item, **how: Any) -> int:
        try:
            return self._run([item], **how)
        except ResponseError as exc:
            # If the dead letters are refused too, the trouble is the server's: this raises.
            restored = self._run([item._replace(lists=[])], **how)
            dead = self._channel.keys.dead
            logger.error("Message %s can't be put back (%s); it is in %s now", item.tag, exc, dead)  # noqa: TRY400 - the reason is enough
            return restored

    def _run(
        self,
        items: Sequence[_Item],
        *,
        to_head: bool,
        uncount: bool = False,
    ) -> int:
        keys = self._channel.keys
        where, undo = "head" if to_head else "tail", "uncount" if uncount else ""
        arguments: list[Any] = [where, undo, keys.deliveries, DELIVERIES_TTL_S, DEAD_ENTRIES]
        lists: dict[str, int] = {}
        for item in items:
            positions = [str(lists.setdefault(target, len(lists) + 1)) for target in item.lists]
            arguments += [item.tag, item.score, " ".join(positions), item.raw]
        names = [keys.unacked, keys.index, keys.dead, keys.leases, *lists]
        return int(self._channel.run("restore", names, arguments))

    def _item(
        self, tag: str | bytes, record: bytes, score: str | bytes, message: Message | None = None
    ) -> _Item:
        """What to push for a record of ``unacked``, and onto which lists."""
        try:
            raw, exchange, routing_key, priority = put_back(record)
            if message is not None and message.source is not None:
                return _Item(tag, raw, [message.source], score)
            lists = self._channel.lists_for(exchange, routing_key, priority)
            for name in lists:
                name.encode()  # half a surrogate pair can't be sent
        except (RedisError, OSError):
            raise
        except Exception as exc:  # noqa: BLE001 - one odd record must not keep the others back
            logger.error("The record of message %s is odd (%s); it is in %s now",  # noqa: TRY400 - no trace: it may hold content
                         tag, type(exc).__name__, self._channel.keys.dead)  # fmt: skip
            return _Item(tag, record, [], score)
        return _Item(tag, raw, lists, score)
