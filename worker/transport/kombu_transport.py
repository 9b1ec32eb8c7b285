"""kombu's Redis transport with our channels, in Celery's event loop or without one."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from kombu.log import get_logger
from kombu.transport import redis as stock

from worker.transport.channel import Channel, SentinelChannel
from worker.transport.envelope import UnfitError
from worker.transport.fetcher import CONNECTION_LOST
from worker.transport.leases import RENEWALS_PER_LEASE, Renewals
from worker.transport.messages import Window
from worker.transport.poller import Poller
from worker.transport.qos import QoS

__all__ = ["SentinelTransport", "Transport"]

logger = get_logger(__name__)

STALE_ACK_S = 0.05
"""Without an event loop: how long an acknowledgement may wait for the batch's others."""
TICK_S = 1.0


class Transport(stock.Transport):
    """kombu's Redis transport with our channels; `worker.transport` tells what it offers."""

    Channel = Channel
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        self.window: Window | None = None
        """What the worker can take now; None leaves it to the prefetch count."""
        self.unfit: Callable[[Any, str, Callable[[], None]], Any] | None = None
        """Told of each message no consumer will see; `worker.transport` says more."""
        self.delivering = False
        """Whether a batch is being handed out."""
        self._loop: Any = None
        self.on_lost: Callable[[set[str]], Any] | None = None
        """Told of the delivery tags of messages another worker took over."""
        self._timers: list[Any] = []
        self._renewals: Renewals | None = None
        self._on_tick: set[Any] = set()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Join Celery's event loop: sockets, ticks, and timers for leases and what was missed."""
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        self._on_tick = loop.on_tick - before
        self._loop = loop
        self.cycle.evented = True
        options = connection.client.transport_options
        lease_s = options.get("lease_s", Channel.lease_s)
        if self._renewals is not None:
            self._renewals.stop()
        self._timers.append(loop.call_repeatedly(TICK_S, self.cycle.tick))
        self._renewals = Renewals(self.cycle.renew, lease_s / RENEWALS_PER_LEASE)

    def wake(self) -> None:
        """Ask the window again soon. Any thread may call it."""
        if self._loop is not None:
            self._loop.call_soon(_nothing)

    def settled(self, qos: QoS, *, first: bool) -> None:
        """Something is to be told to Redis: at the end of the turn, or of the batch handed out."""
        if self._loop is not None:
            if first:
                self._loop.call_soon(_flush, qos)
        elif not self.delivering or monotonic() - qos.pending_since_s > STALE_ACK_S:
            qos.flush()

    def delivered(self, qos: QoS) -> None:
        """A batch has been handed out."""
        if self._loop is None:
            qos.flush()

    def tell(self, unfit: UnfitError, bury: Callable[[], Any]) -> bool:
        """Tell the worker of a message no consumer will see; it has it buried when that is safe.

        Returns:
            whether it could be told.
        """
        try:
            if self.unfit is None:
                bury()
            else:
                self.unfit(unfit.payload, str(unfit), bury)
        except Exception as exc:  # noqa: BLE001 - the other messages of the fetch go on
            logger.warning(
                "Of that message nobody can be told before its lease ends: %s", type(exc).__name__
            )
            return False
        return True

    def lost(self, qos: QoS, tags: set[str]) -> None:
        """Another worker has these messages by now. Any thread may call it."""
        if self._loop is not None:
            self._loop.call_soon(self._forget, qos, tags)
        else:
            self._forget(qos, tags)

    def _forget(self, qos: QoS, tags: set[str]) -> None:
        logger.warning(
            "Other workers took over %d messages, whose leases ran out while this one was stopped "
            "or cut off from Redis", len(tags),
        )  # fmt: skip
        qos.disown(tags)
        if self.on_lost is not None:
            self.on_lost(tags)

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> None:
        """Call from the event loop; without one nothing is done: `Poller.get` looks by itself."""
        if self._loop is not None:
            self._loop.call_later(delay_s, callback)

    def close_connection(self, connection: Any) -> None:
        """Close all channels and leave the event loop."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._renewals is not None:
            self._renewals.stop()
        super().close_connection(connection)
        if self._loop is not None:
            self._loop.on_tick -= self._on_tick


class SentinelTransport(Transport, stock.SentinelTransport):
    """The transport for servers found through Redis Sentinel."""

    Channel = SentinelChannel


def _flush(qos: QoS) -> None:
    """Send what is pending without raising: the loop would drop the turn's other callbacks.

    Among those are further acknowledgements. The tick tries again, and says that Redis is away.
    """
    try:
        qos.try_flush()
    except CONNECTION_LOST as exc:
        logger.debug("Acknowledgements wait for Redis: %s", exc)


def _nothing() -> None:
    """Give the event loop a turn."""
