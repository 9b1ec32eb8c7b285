"""What a message is here, and what the scripts' replies say. Pure: nothing is sent anywhere."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from kombu.transport import virtual
from kombu.utils.json import loads as kombu_loads

__all__ = [
    "Delivery",
    "Fetched",
    "Held",
    "Message",
    "Room",
    "Window",
    "load",
    "parse_fetch",
    "put_back",
]

MAX_FETCH_BYTES = 4 * 1024 * 1024


class Room(NamedTuple):
    """What a worker can take now."""

    messages: int
    bytes: int = MAX_FETCH_BYTES
    """Bytes of messages after which a fetch stops; the message that passes the mark still comes."""
    bulk: bool = True
    """Whether bulk lanes may be fetched from as well."""

    @property
    def open(self) -> bool:
        """Whether at least one message may come."""
        return self.messages > 0 and self.bytes > 0


Window: TypeAlias = Callable[[], Room]


class Message(virtual.Message):
    """A kombu message that knows how it came here."""

    deliveries = 1
    """How often it was handed to a worker, this time included."""
    source: str | None = None
    """The Redis list it was popped from; None if the stock transport fetched it."""
    leased_until: str = ""
    """The end of its lease as last told, its score in ``unacked_index``; "" if it has no lease."""
    slack_s = 0.0
    """Seconds by which the end may be later, as a renewal whose reply is lost may have moved it."""

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before, so that Redis may hold a count for it."""
        return self.deliveries > 1 or bool(self.headers.get("redelivered"))

    def is_ours(self, score: float | None, double: float | None) -> bool:
        """Whether these scores, in ``unacked_index`` and ``golem:leases``, are our own.

        Until its lease is over nobody else gets a message, and the lease somebody then has ends
        later than one we could have begun anew in time. So up to one lease after the end we know of
        a score is ours. A stock worker's may lie there as well, but has no double.
        """
        if score is None or not self.leased_until:
            return True  # no score is no proof that another has it: a server may have lost its data
        late_s = score - float(self.leased_until)
        return late_s == 0 or (score == double and 0 < late_s <= self.slack_s)


@dataclass
class Held:
    """What a channel held when it was detached."""

    messages: OrderedDict[str, Message] = field(default_factory=OrderedDict)
    """Delivered and not acknowledged, by delivery tag, in the order of delivery."""
    settled: dict[str, bool] = field(default_factory=dict)
    """Acknowledged, but Redis doesn't know yet; True where it holds a delivery count as well."""
    requeued: dict[str, Message] = field(default_factory=dict)
    """To go to the tail of their queues, but Redis doesn't know yet."""
    receipts: list[str] = field(default_factory=list)
    """Keys that tell what fetches popped whose replies were never read."""
    heard_s: float | None = None
    """When the server last replied to that channel, by the server's clock."""

    def absorb(self, later: Held) -> None:
        """Add what a later channel held; what that one still collects is collected here now."""
        self.messages.update(later.messages)
        self.settled.update(later.settled)
        self.requeued.update(later.requeued)
        self.receipts.extend(later.receipts)
        later.messages, later.settled = self.messages, self.settled
        later.requeued, later.receipts = self.requeued, self.receipts


class Delivery(NamedTuple):
    """One message as fetch.lua returns it."""

    tag: str
    raw: bytes
    source: str
    """The list it was popped from."""
    deliveries: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """The reply of fetch.lua."""

    leased_until: str
    deliveries: list[Delivery]
    buried: list[bytes]
    """Both ends of each unreadable message, which went to the dead-letter list instead."""
    age_s: float
    """Seconds since the fetch was sent: at most so much of the leases is over."""


def parse_fetch(reply: Sequence[bytes], lists: Sequence[str], age_s: float) -> Fetched:
    """Read the reply of fetch.lua, called with these lists so many seconds ago."""
    leased_until, facts, *raws = reply
    told: dict[str, Any] = json.loads(facts)
    if not raws:
        return Fetched(leased_until.decode(), [], [], age_s)
    buried = raws[len(told["tags"]) :]
    again: dict[str, int] = told["again"]
    sources = [
        source for source, count in zip(lists, told["popped"], strict=True) for _ in range(count)
    ]
    deliveries = [
        Delivery(tag, raw, source, again.get(tag, 1))
        for tag, raw, source in zip(told["tags"], raws[: len(told["tags"])], sources, strict=True)
    ]
    return Fetched(leased_until.decode(), deliveries, buried, age_s)


def load(raw: bytes) -> Any:
    """Decode a message as kombu does; its slow hook runs only where a value asks for it."""
    return kombu_loads(raw) if b"__type__" in raw else json.loads(raw)


def put_back(record: bytes) -> tuple[str, Any, Any, Any]:
    """Read a record of ``unacked``: the message marked as redelivered, and where it belongs.

    Returns:
        The message as JSON, its exchange, its routing key, and the priority its producer gave it.
    """
    payload, exchange, routing_key = json.loads(record)
    priority = None
    if isinstance(payload, dict):
        headers, properties = payload.get("headers"), payload.get("properties")
        if isinstance(headers, dict):
            headers["redelivered"] = True
        if isinstance(properties, dict):
            priority = properties.get("priority")
            info = properties.get("delivery_info")
            if isinstance(info, dict):
                info["redelivered"] = True
    return json.dumps(payload), exchange, routing_key, priority
