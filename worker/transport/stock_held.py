"""What kombu's own channel held, over a lost connection: for ``GOLEM_TRANSPORT=stock``.

kombu closes a lost channel by putting back what it holds, with a Redis that may be gone; when it
is, Celery 5.7.0 closes the channel again, now without a transport, and that ends the worker. Here
as well an acknowledgement is by delivery tag, and the record in ``unacked`` outlives a connection.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kombu.transport import redis as stock

from worker.transport.messages import Held

__all__ = ["adopt_on_stock", "take_held_of_stock"]


class _StandIn:
    """The channel of detached messages: keeps what is settled until there is a connection."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:  # noqa: ARG002 - kombu's signature
        """Keep an acknowledgement."""
        self._held.messages.pop(delivery_tag, None)
        self._held.settled[delivery_tag] = False

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Keep a rejection."""
        message = self._held.messages.pop(delivery_tag, None)
        if requeue and message is not None:
            self._held.requeued[delivery_tag] = message
        else:
            self._held.settled[delivery_tag] = False


def take_held_of_stock(qos: stock.QoS) -> Held:
    """Detach everything, so that closing the channel restores nothing."""
    held = Held()
    qos._flush()  # noqa: SLF001 - forgets the acknowledged ones, as kombu does before restoring
    held.messages.update(qos._delivered)  # noqa: SLF001 - kombu has no other name for them
    qos._delivered.clear()  # noqa: SLF001
    stand_in = _StandIn(held)  # has all that a message asks of its channel
    for message in held.messages.values():
        message.channel = stand_in
    return held


def adopt_on_stock(channel: Any, held: Held, mine: Collection[str]) -> None:
    """Install on this channel what another one held; what isn't in `mine` goes back to its queue.

    Raises:
        redis.exceptions.ConnectionError: the server is away again; another call goes on from here.
    """
    qos = channel.qos
    for tag in list(held.settled):
        qos.ack(tag)
        del held.settled[tag]
    for tag in list(held.requeued):
        qos.reject(tag, requeue=True)
        del held.requeued[tag]
    # What was delivered first must be pushed last, to be popped first.
    for tag in reversed([tag for tag in held.messages if tag not in mine]):
        qos.restore_by_tag(tag)
        del held.messages[tag]
    for tag, message in held.messages.items():
        message.channel = channel
        qos._delivered[tag] = message  # noqa: SLF001
    held.messages.clear()
