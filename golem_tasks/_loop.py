"""What belongs to one event loop: redis-py's asyncio connections can't change theirs."""

from __future__ import annotations

import redis.asyncio as aredis

from golem_tasks._asking import AsyncAsker
from golem_tasks._awaiting import AsyncWaiter
from golem_tasks._listener import Listener
from golem_tasks._publishing import AsyncPublisher
from golem_tasks._wire import Wire

__all__ = ["Loop"]


class Loop:
    """Connections, and who drives them, of one event loop.

    Args:
        wire: composes messages and reads results.
    """

    def __init__(self, wire: Wire) -> None:
        self._pools = broker, backend, subscribers = (
            wire.broker.async_pool(),
            wire.backend.async_pool(),
            wire.backend.async_subscriber_pool(),
        )
        client = aredis.Redis(connection_pool=backend)
        self.publisher = AsyncPublisher(wire.broker, broker)
        self.recorder = AsyncPublisher(wire.backend, backend)
        self.asker = AsyncAsker(wire, aredis.Redis(connection_pool=broker), client)
        self.listener = Listener(wire, client, subscribers)
        self.waiter = AsyncWaiter(wire, client, self.listener)

    async def aclose(self) -> None:
        """Close every connection of this loop."""
        await self.listener.aclose()
        for pool in self._pools:
            await pool.disconnect()
