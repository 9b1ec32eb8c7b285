"""kombu's Redis channel, its fetching and settling replaced; everything else stays stock.

kombu's poller keeps one waiting connection per channel, on which it sends BRPOP. Its hooks for
that (``_brpop_start``, ``_brpop_read``, ``_in_poll``) drive our `Fetcher` instead. Publishing,
fanout, bindings and remote control are kombu's own. A channel that consumes without
acknowledgement, such as one for replies, stays stock altogether.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from operator import methodcaller
from queue import Empty
from time import monotonic
from typing import Any, TypeAlias

import redis
from kombu.log import get_logger
from kombu.transport import redis as stock

from golem_tasks.contract import BULK_SUFFIX
from worker.transport.commands import CommandChannel
from worker.transport.envelope import MAX_MESSAGE_BYTES, UnfitError, most_bytes, read, unread
from worker.transport.fetcher import CONNECTION_LOST, Fetcher, ServerRefusesError, is_refusal
from worker.transport.keys import LEASES_TTL_S
from worker.transport.leases import RENEWALS_PER_LEASE
from worker.transport.messages import Fetched, Message, Room, Window
from worker.transport.qos import QoS
from worker.transport.unfit import Unfit

__all__ = ["Channel", "SentinelChannel"]

logger = get_logger(__name__)

FETCH_MESSAGES = 512
"""Most messages of one fetch: about 5 ms of the server's time."""
UNLIMITED_MESSAGES = 256
"""Messages of one fetch where neither window nor prefetch count limit it."""
_is_bulk = methodcaller("endswith", BULK_SUFFIX)

_UNREADABLE = "it can't be decoded, or names no queue"

Callback: TypeAlias = Callable[[Message], Any]


class Channel(CommandChannel):
    """A kombu channel that fetches in batches what its consumers acknowledge."""

    QoS = QoS
    Message = Message
    from_transport_options: Any = (
        *stock.Channel.from_transport_options, "max_message_bytes", "lease_s",
    )  # fmt: skip
    max_message_bytes = MAX_MESSAGE_BYTES
    _in_poll: Any
    _brpop_sent_at: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._consuming: dict[str, Callback] = {}
        self._queue_of: dict[str | None, str] = {}
        self._unacknowledged: set[str] = set()
        self._backlog: deque[Message] = deque()
        self._unfit = Unfit(self)
        self._stock_only: bool | None = None  # not known yet
        self._ask_set = False  # whether a timer for the next question is running
        self._passed_over_bulk = False  # whether the latest fetch did
        super().__init__(*args, **kwargs)

    # What the channel is

    @cached_property
    def fetcher(self) -> Fetcher:
        """The conversation on the waiting connection."""
        return Fetcher(self.keys, self.lease_s, most_bytes(self.max_message_bytes), self._take_in)

    @property
    def batched(self) -> bool:
        """Whether fetching is ours: there are queues, and all are consumed with acknowledgement."""
        queues = self.active_queues
        return (
            bool(queues)
            and bool(self.ack_emulation)
            and self._unacknowledged.isdisjoint(queues)
            and not self.stock_only
        )

    @property
    def stock_only(self) -> bool:
        """Whether the server refuses our scripts, found out by running the least of them."""
        if self._stock_only is None:
            self._stock_only = False
            try:
                self.run("renew", [self.keys.index, self.keys.leases], [self.lease_s, LEASES_TTL_S])
            except redis.exceptions.ResponseError as exc:
                if not is_refusal(exc):
                    raise
                self._fall_back(str(exc))
        return self._stock_only

    @property
    def settles(self) -> bool:
        """Whether there is something of ours to flush and renew."""
        return isinstance(self._qos, QoS)

    def room(self) -> Room:
        """What may be fetched now, the prefetch count left aside."""
        window: Window | None = self.connection.window if self.connection is not None else None
        if window is None or not self.batched:
            return Room(UNLIMITED_MESSAGES)
        room = window()
        return room if room.bulk or not all(map(_is_bulk, self.active_queues)) else Room(0)

    def lists(self, *, bulk: bool = True) -> list[str]:
        """The Redis lists to pop from, in order of precedence: queue by queue, bulk lanes last."""
        lists = {
            self.global_keyprefix + self._q_for_pri(queue, step): queue
            for queue in sorted(self.active_queues, key=_is_bulk)
            if bulk or not _is_bulk(queue)
            for step in self.priority_steps
        }
        self._queue_of |= lists
        return list(lists)

    def lists_for(self, exchange: Any, routing_key: Any, priority: Any) -> list[str]:
        """The lists a message with this envelope belongs to."""
        step = self._get_message_priority({"properties": {"priority": priority}})
        return [
            self.global_keyprefix + self._q_for_pri(queue, step)
            for queue in self._lookup(exchange, routing_key)
            if queue
        ]

    def _get_message_priority(self, message: Any, reverse: bool = False) -> Any:
        try:
            return super()._get_message_priority(message, reverse)
        except OverflowError:  # JSON has an Infinity, and kombu misses it
            return super()._get_message_priority({"properties": {}}, reverse)

    # Fetching

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self.batched:
            super()._brpop_start(timeout)
            return
        fetcher, connection = self.fetcher, self.client.connection
        if not fetcher.owns(connection):
            fetcher.disconnected()
        if fetcher.lost_fetch:
            self.qos.restore_unread(fetcher.receipt)
            fetcher.recovered()
        if not fetcher.engaged:
            with self._surviving(connection):
                fetcher.start(connection, self.lists(bulk=(room := self._fetch_size()).bulk), room)
            self._passed_over_bulk = not room.bulk
        self._mark(connection)

    def widen(self) -> None:
        """Look into the bulk lanes as soon as there is room again for what they have."""
        waits = self._passed_over_bulk and self._in_poll and self.batched
        if waits and (room := self.room()).open and room.bulk:
            self._disturb()

    def _fetch_size(self) -> Room:
        room, credit = self.room(), self.qos.can_consume_max_estimate()
        most = min(room.messages, FETCH_MESSAGES)
        return room._replace(messages=most if credit is None else min(most, credit))

    def _mark(self, connection: Any) -> None:
        """Tell kombu's poller where the conversation stands."""
        self._in_poll = connection if self.fetcher.engaged else None
        self._brpop_sent_at = monotonic() if self.fetcher.owed else None  # for its health check
        if self.fetcher.must_poll and not self.fetcher.owed and not self._ask_set:
            self._ask_set = True
            self.connection.call_later(self.fetcher.due_in_s(), self._ask_now)

    def _ask_now(self) -> None:
        self._ask_set = False
        self.ask_again()

    def _brpop_read(self, **options: Any) -> bool:
        connection = self.client.connection
        if not self.fetcher.owns(connection):
            if self._in_poll:
                return bool(super()._brpop_read(**options))
            connection.disconnect()  # nothing was asked, so this is the server hanging up
            raise Empty
        try:
            with self._surviving(connection):
                self.fetcher.read(connection)
        except ServerRefusesError as exc:
            self._fall_back(str(exc))
            connection.disconnect()
        self._mark(connection)
        if not self.deliver_backlog():
            raise Empty
        return True

    @contextmanager
    def _surviving(self, connection: Any) -> Iterator[None]:
        """Let the waiting connection end once; kombu's poller opens another, or says it can't."""
        try:
            yield
        except CONNECTION_LOST as exc:
            connection.disconnect()
            if self.fetcher.give_up():
                raise
            logger.info("The waiting connection ended (%s); opening another", exc)

    def _fall_back(self, reason: str) -> None:
        logger.warning(
            "Redis refuses Golem's fetch (%s), so this worker fetches message by message, as stock "
            "Celery does; allow its user EVALSHA, SCRIPT, EXISTS and the keys named in fetch.lua.",
            reason,
        )
        self._stock_only = True

    def ask_again(self) -> None:
        """Ask once more whether messages are waiting, if the last answer is old."""
        connection = self._in_poll
        if connection and self.batched and self.fetcher.owns(connection):
            with self._surviving(connection):
                self.fetcher.ask_again(connection)
            self._mark(connection)

    def _poll_error(self, type: str, **options: Any) -> None:  # noqa: A002 - kombu's name
        if type == "BRPOP" and self.fetcher.owns(self.client.connection):
            self._brpop_read()
        else:
            super()._poll_error(type, **options)

    def _on_connection_disconnect(self, connection: Any) -> None:
        client = self.__dict__.get("client")
        if client is not None and client.connection is connection:
            self.fetcher.disconnected()
        super()._on_connection_disconnect(connection)

    def surrender(self) -> str | None:
        """Stop fetching; the record of what may have been popped for us and not been read."""
        self._backlog.clear()
        self._in_poll = None
        return self.fetcher.surrender()

    # Delivering

    def _take_in(self, fetched: Fetched) -> None:
        unfit = []
        if fetched.buried:
            logger.error(
                "%d messages in the queue were no Celery messages; they are in %s now",
                len(fetched.buried), self.keys.dead,
            )  # fmt: skip
        for tag, raw, source, deliveries in fetched.deliveries:
            if tag in self._unfit:
                continue  # back after its lease, and still to be buried
            try:
                message = read(raw, self, self.max_message_bytes)
            except UnfitError as exc:
                unfit.append((exc, tag, raw))
                continue
            message.delivery_tag = tag
            message.deliveries = deliveries
            message.source = source
            message.leased_until = fetched.leased_until
            self.qos.hold(message)
            self._backlog.append(message)
        if self._backlog and fetched.age_s > self.lease_s / RENEWALS_PER_LEASE:
            taken = self.qos.confirm(self._backlog)
            self._backlog = deque(m for m in self._backlog if m.delivery_tag not in taken)
        # Last, since it may fail: then they come again after their lease.
        for raw in fetched.buried:
            self.connection.tell(unread(raw, _UNREADABLE), bool)  # buried by the server
        for reason, tag, raw in unfit:
            self._unfit.refuse(reason, tag, raw)

    def deliver_backlog(self) -> bool:
        """Hand out what was fetched; what a consumer's exception leaves is handed out next time."""
        if not self._backlog:
            return False
        orphans = []
        try:
            self.connection.delivering = True
            while self._backlog:
                message = self._backlog.popleft()
                callback = self._consuming.get(self._queue_of[message.source])
                if callback is None:
                    orphans.append(message)
                else:
                    callback(message)
        finally:
            self.connection.delivering = False
            self.qos.give_back(orphans)
            self.connection.delivered(self.qos)
        return True

    # Consuming

    def basic_consume(self, queue: str, no_ack: bool, callback: Callback,
                      *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        """Consume from a queue; one without acknowledgement makes the whole channel stock."""
        self._consuming[queue] = callback
        (self._unacknowledged.add if no_ack else self._unacknowledged.discard)(queue)
        self._disturb()
        return super().basic_consume(queue, no_ack, callback, *args, **kwargs)

    def _disturb(self) -> None:
        """Watch other lists from now on: fetch again even if the last answer was "none"."""
        self.fetcher.disturb()
        if self._in_poll and self.fetcher.owns(self._in_poll) and not self.fetcher.engaged:
            self._in_poll = None  # else the poller would wait for a push of the old lists

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag, "")
        result = super()._basic_cancel(consumer_tag)
        self._consuming.pop(queue, None)
        self._disturb()
        if not self.active_queues and self.fetcher.fetching:
            # Nobody will read the reply, and until the lease ends nobody else gets what is in it.
            self.client.connection.disconnect()
            self.qos.restore_unread(self.fetcher.receipt)
            self.fetcher.recovered()
        return result

    def close(self) -> None:
        """Send what is pending, give back what is held, and close. Redis may be away."""
        if not self.closed and self.settles:
            self.qos.restore_unacked_once()  # here, while the connections are still open
            self.qos.leases.release()
            self._in_poll = None
        super().close()


class SentinelChannel(Channel, stock.SentinelChannel):
    """The channel for servers found through Redis Sentinel."""

    from_transport_options: Any = (
        *stock.SentinelChannel.from_transport_options, "max_message_bytes", "lease_s",
    )  # fmt: skip
