"""kombu's poller, taught that our channels are told of messages instead of being handed one."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from kombu.log import get_logger
from kombu.transport.redis import MultiChannelPoller
from redis.exceptions import ResponseError

from worker.transport.leases import RENEWALS_PER_LEASE

__all__ = ["Poller"]

logger = get_logger(__name__)

SWEEP_GAP_S = 1.0


class Poller(MultiChannelPoller):
    """Drives our channels with an event loop (`tick`) or without one (`get`)."""

    def __init__(self) -> None:
        super().__init__()
        self.evented = False
        """Whether an event loop calls `tick`, and a thread `renew`."""
        self._sweep_at_s = 0.0
        self._renew_at_s: dict[Any, float] = {}

    def discard(self, channel: Any) -> None:
        """Forget a channel."""
        super().discard(channel)
        self._renew_at_s.pop(channel, None)

    def tick(self) -> None:
        """Send what is pending and repeat questions that are old: once per second."""
        for channel in tuple(self._channels):
            if channel.settles:
                channel.qos.try_flush()
                channel.ask_again()

    def renew(self) -> None:
        """Renew the leases of all that is held; a server that is away gets it next time."""
        for channel in tuple(self._channels):
            if channel.settles:
                try:
                    channel.qos.renew()
                except channel.connection_errors as exc:
                    logger.debug("Leases can't be renewed now: %s", exc)
                except ResponseError as exc:
                    logger.warning("Redis refuses to renew leases now: %s", exc)

    def on_poll_start(self) -> None:
        """Hand out what is left of a batch, then let the channels fetch."""
        for channel in tuple(self._channels):
            channel.deliver_backlog()
            channel.widen()
        super().on_poll_start()

    def on_readable(self, fileno: int) -> None:
        """Read what came, even if nothing may be fetched now: it may be ours already."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if channel is not None and kind == "BRPOP" and channel.batched:
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def _pause_brpop(self, channel: Any, fileno: int) -> None:
        # A pushed "there is something" may be read at any time: it pops nothing.
        if not channel.batched:
            super()._pause_brpop(channel, fileno)

    def maybe_restore_messages(self) -> None:
        """Sweep; without an event loop at most once per second, not at each empty `get`."""
        now_s = monotonic()
        if self.evented or now_s >= self._sweep_at_s:
            self._sweep_at_s = now_s + SWEEP_GAP_S
            super().maybe_restore_messages()

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> Any:
        """Wait for messages without an event loop, and do meanwhile what its timers would."""
        waits_s = [] if timeout is None else [timeout]
        now_s = monotonic()
        for channel in tuple(self._channels):
            if channel.settles:
                channel.qos.flush()
                channel.ask_again()
                if now_s >= self._renew_at_s.get(channel, 0.0):
                    self._renew_at_s[channel] = now_s + channel.lease_s / RENEWALS_PER_LEASE
                    channel.qos.renew()
                waits_s.append(channel.fetcher.due_in_s())
        return super().get(callback, timeout=min(waits_s, default=None))
