"""What a channel holds: delivered messages, their leases, and acknowledgements still to be sent.

An acknowledgement is by delivery tag and tied to no connection. So those that couldn't be sent
wait for the next connection, and what a dying channel holds can be adopted by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from time import monotonic
from typing import Any, cast

from kombu.log import get_logger
from kombu.transport import redis as stock
from kombu.transport import virtual
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from worker.transport.fetcher import CONNECTION_LOST, receipt_ttl_s
from worker.transport.leases import Leases, chunks
from worker.transport.messages import Held, Message
from worker.transport.restoring import Restorer

__all__ = ["QoS"]

logger = get_logger(__name__)

ACK_CHUNK = 1_000


class QoS(stock.QoS):
    """kombu's bookkeeping of delivered messages, with everything sent to Redis collected."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._pending = Held()
        self._lock = threading.Lock()  # Celery's shutdown acknowledges from a second thread
        self._detached: Held | None = None
        self._restorer = Restorer(channel)
        self.leases = Leases(channel)
        self._complaint = ""
        self.pending_since_s = 0.0
        """When the oldest pending acknowledgement came, by the monotonic clock."""

    def can_consume(self) -> bool:
        """Whether prefetch count and window leave room for at least one message."""
        return bool(super().can_consume()) and self.channel.room().open

    def hold(self, message: Message) -> None:
        """Keep a message whose delivery the fetch has recorded already."""
        virtual.QoS.append(self, message, message.delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge; Redis learns of it with the turn's others."""
        self._settle(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop a message, or put it to the tail of its queue; Redis learns with the turn's others.

        Going to the tail, as in stock kombu, keeps a message nobody can use from blocking the rest.
        """
        self._settle(delivery_tag, requeue=requeue)
        virtual.QoS.ack(self, delivery_tag)

    def _settle(self, tag: str, *, requeue: bool = False) -> None:
        detached = self._detached
        with self._lock:
            held = self._pending if detached is None else detached
            messages = self._delivered if detached is None else detached.messages
            first = not (held.settled or held.requeued)
            message = messages.get(tag)
            if requeue and message is not None:
                held.requeued[tag] = message
            else:
                held.settled[tag] = message is None or message.redelivered
            if detached is not None:
                detached.messages.pop(tag, None)
            elif first:
                self.pending_since_s = monotonic()
        if detached is None and self.channel.connection is not None:
            self.channel.connection.settled(self, first=first)

    @property
    def pending(self) -> bool:
        """Whether Redis has yet to learn of something."""
        return bool(self._pending.settled or self._pending.requeued)

    def flush(self) -> None:
        """Send what was collected. If that fails it stays collected.

        Raises:
            redis.exceptions.ConnectionError: the server couldn't be reached, twice in a row.
        """
        with self._lock:
            sending, self._pending = self._pending, Held()
        try:
            if sending.settled or sending.requeued:
                spent = self.channel.fetcher.spent_receipt()
                self._send_settled(sending.settled, [spent] if spent else [])
                self._put_back(sending.requeued.items(), to_head=False, uncount=False)
                self._complaint = ""
        except BaseException:
            with self._lock:
                sending.absorb(self._pending)
                self._pending = sending
            raise

    def try_flush(self) -> None:
        """Flush; a server that refuses costs a log line and is asked again with the next flush.

        Raises:
            redis.exceptions.ConnectionError: the server couldn't be reached, twice in a row.
        """
        try:
            self.flush()
        except ResponseError as exc:
            # Such as a disk full, or a read-only replica after a failover.
            self._complain("Redis doesn't take acknowledgements now; they wait", exc)

    def _complain(self, what: str, exc: ResponseError) -> None:
        if str(exc) != self._complaint:
            self._complaint = str(exc)
            logger.warning("%s: %s", what, exc)

    def _send_settled(self, settled: dict[str, bool], garbage: Iterable[str] = ()) -> None:
        """Remove the records of settled messages, their delivery counts, and other `garbage`."""
        keys = self.channel.keys
        garbage = [
            *garbage,
            *(keys.deliveries + tag for tag, counted in settled.items() if counted),
        ]
        commands: list[tuple[Any, ...]] = []
        for tags in chunks(settled, ACK_CHUNK):
            # The record goes first: the sweep cleans up an index entry without one.
            commands += [("HDEL", keys.unacked, *tags), ("ZREM", keys.index, *tags)]
            if not self.channel.stock_only:
                commands.append(("ZREM", keys.leases, *tags))
        commands += [("DEL", *names) for names in chunks(garbage, ACK_CHUNK)]
        self.channel.pipeline(commands)

    def take_held(self) -> Held:
        """Detach everything, so that closing the channel restores nothing.

        Until `adopt` installs them elsewhere, acknowledgements of these messages are collected in
        the returned object. A second call finds nothing more.
        """
        if self._detached is not None:
            return Held()
        self._flush()  # only kombu's own: forget the acknowledged ones
        self.leases.release()
        receipt = self.channel.surrender()
        with self._lock:
            held, self._pending = self._pending, Held()
            held.messages.update(self._delivered)
            held.receipts += [receipt] if receipt else []
            held.heard_s = self.leases.silence.heard_s
            self._delivered.clear()
            self._detached = held
        return held

    def adopt(self, held: Held, mine: Collection[str] | None = None) -> set[str]:
        """Install on this channel what another one held.

        Args:
            held: from that channel's `take_held`.
            mine: tags to keep, None for all; the others go back to the head of their queues.

        Returns:
            Tags whose messages another worker has fetched meanwhile, since their lease had run out.

        Raises:
            redis.exceptions.ConnectionError: the server is away again or refuses; nothing has
                changed here, and another call with the same `held` goes on where this one ended.
        """
        try:
            return self._adopt(held, mine)
        except ResponseError as exc:
            # Celery reconnects after a lost connection only; any other error would end the worker.
            raise RedisConnectionError(
                f"Redis refuses to take over what the last connection held: {exc}"
            ) from exc

    def _adopt(self, held: Held, mine: Collection[str] | None) -> set[str]:
        if held.heard_s is not None:
            self.leases.silence.hear(held.heard_s)  # so that this connection's first reply tells
        taken = self.leases.taken({**held.messages, **held.requeued})
        kept = {tag: m for tag, m in held.messages.items() if mine is None or tag in mine}
        others = [
            (tag, m) for tag, m in held.messages.items() if tag not in kept and tag not in taken
        ]
        requeued = [(tag, m) for tag, m in held.requeued.items() if tag not in taken]
        known = held.messages.keys() | held.settled.keys() | held.requeued.keys()
        unread = [(tag, None) for tag in self._unread(held.receipts) if tag not in known]
        self._send_settled(held.settled)
        self._put_back(requeued, to_head=False, uncount=False)
        self._put_back([*others, *unread], to_head=True, uncount=True)
        # From here on nothing fails, so what was put back isn't put back again.
        for tag, message in kept.items():
            if tag not in taken:
                message.channel = self.channel
                self._delivered[tag] = message
        held.settled.clear()
        held.requeued.clear()
        held.receipts.clear()
        held.messages.clear()
        try:
            self.renew()
        except (*CONNECTION_LOST, ResponseError) as exc:
            logger.debug("Adopted leases are renewed later: %s", exc)
        return taken & kept.keys()

    def renew(self) -> None:
        """Begin the lease of everything held anew. Any thread may call it."""
        if lost := self.leases.renew(self._held()):
            self.channel.connection.lost(self, lost)

    def confirm(self, fetched: Iterable[Message]) -> set[str]:
        """Begin the leases of messages anew that were long on their way, as to a stopped process.

        Returns:
            Tags of those another worker has by now, which are forgotten.
        """
        try:
            taken = self.leases.renew({message.delivery_tag: message for message in fetched})
        except (*CONNECTION_LOST, ResponseError) as exc:
            logger.debug("Leases of late messages are renewed later: %s", exc)
            return set()
        self.disown(taken)
        return taken

    def _held(self) -> dict[str, Message]:
        while True:
            try:
                return {t: m for t, m in list(self._delivered.items()) if t not in self._dirty}
            except RuntimeError:  # the event loop's thread has changed it meanwhile
                continue

    def disown(self, tags: Iterable[str]) -> None:
        """Forget messages another worker has by now; Redis isn't told."""
        for tag in tags:
            self._delivered.pop(tag, None)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002 - kombu's signature
        """Put all that is held back to the head of its queues, in its original order."""
        self._put_back(list(self._delivered.items()), to_head=True, uncount=True)
        self._delivered.clear()

    def give_back(self, messages: Iterable[Message]) -> None:
        """Put delivered messages nobody consumes any more back to the head of their queues."""
        given = {message.delivery_tag for message in messages}
        items = [(tag, m) for tag, m in self._delivered.items() if tag in given]  # in their order
        self._put_back(items, to_head=True, uncount=True)
        for tag, _ in items:
            virtual.QoS.ack(self, tag)

    def bury(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Move fetched messages nobody can read, given by tag and text, to the dead letters."""
        try:
            self._restorer.bury(items)
        except ResponseError as exc:
            self._complain("Unreadable messages stay in Redis until their lease ends", exc)

    def restore_unread(self, receipt: str) -> None:
        """Put back what a fetch popped for us whose reply we shall not see."""
        pending = self._pending
        known = self._delivered.keys() | pending.settled.keys() | pending.requeued.keys()
        tags = [tag for tag in self._unread([receipt]) if tag not in known]
        self._put_back([(tag, None) for tag in tags], to_head=True, uncount=True)

    def _unread(self, receipts: Iterable[str]) -> list[str]:
        ttl_s = receipt_ttl_s(self.channel.lease_s)
        return [
            tag.decode()
            for receipt in receipts
            for tag in self.channel.run("fence", [receipt], [ttl_s])
        ]

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Send what is pending and restore the rest, when the channel closes or the process ends.

        A server that is away costs a log line, not the closing: the lease brings the messages back.
        """
        if self._detached is not None:
            self._on_collect.cancel()
            return
        held = len(self._delivered)
        try:
            self.flush()
            if receipt := self.channel.surrender():
                self.restore_unread(receipt)
            super().restore_unacked_once(stderr)
        except (*self.channel.connection_errors, ResponseError) as exc:
            if held:
                logger.warning(
                    "Redis is away or refuses (%s) while a channel with %d messages closes; they "
                    "are delivered again within %g s.", exc, held, self.channel.lease_s,
                )  # fmt: skip
            self._delivered.clear()
            self._pending = Held()

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: ARG002
        """Put one message back to its queue, as kombu's callers of this method expect."""
        message = cast("Message | None", self._delivered.get(tag))
        self._put_back([(tag, message)], to_head=not leftmost, uncount=False)

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 10) -> None:  # noqa: ARG002
        """Put messages of dead workers back, by the server's clock (`worker.transport.leases`).

        Stock workers judge by their own clocks what stock and Golem workers hold, and take turns
        with us through the same mutex.
        """
        try:
            if self.channel.stock_only:
                super().restore_visible(num=num, interval=interval)
            elif not self._vrestore_count % (interval or 1):
                self._restorer.sweep(self.leases.silence, num)
            self._vrestore_count += not self.channel.stock_only  # stock counts for itself
        except ResponseError as exc:
            # Such as no memory left for the mutex. Not being counted, the sweep is due again at
            # the timer's next call; work goes on meanwhile.
            self._complain("Messages of dead workers can't be restored now", exc)

    def _put_back(
        self, items: Iterable[tuple[str, Message | None]], *, to_head: bool, uncount: bool
    ) -> None:
        """Restore messages by tag, given in the order of their delivery."""
        items = list(items)
        if not items:
            return
        if to_head:
            items.reverse()  # the one delivered first must be pushed last, to be popped first
        if self.channel.stock_only:
            for tag, _ in items:
                super().restore_by_tag(tag, leftmost=not to_head)
        else:
            with self.leases.lock:
                doubtful = {tag: m for tag, m in items if m is not None and m.slack_s}
                taken = self.leases.taken(doubtful)
                ours = [(tag, message) for tag, message in items if tag not in taken]
                self._restorer.put_back(ours, to_head=to_head, uncount=uncount)
