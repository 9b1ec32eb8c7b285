"""How a channel talks to Redis beside its waiting connection: names, clients, retries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import redis
from kombu.transport import redis as stock
from redis.commands.core import Script

from worker.transport.fetcher import CONNECTION_LOST
from worker.transport.keys import Keys, script

__all__ = ["CommandChannel"]


class CommandChannel(stock.Channel):
    """A kombu channel with clients that last, and with our commands and scripts."""

    lease_s = 30.0
    """How long what this channel holds is its own without a renewal."""
    _sentinel_manager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._client_cache: dict[str, Any] = {}
        self._scripts: dict[str, Script] = {}
        self._lease_pool: Any = None
        self._lease_sentinels: Any = None
        super().__init__(*args, **kwargs)

    @cached_property
    def keys(self) -> Keys:
        """Full names of the keys."""
        prefix = self.global_keyprefix
        return Keys.of(prefix, self.unacked_key, self.unacked_index_key, self.unacked_mutex_key)

    @property
    def plain(self) -> Any:
        """One client for our own commands; it adds no prefix, since `keys` have it."""
        return self._cached_client(
            "plain", lambda: redis.Redis(connection_pool=self.pool), self._pool
        )

    def _create_client(self, asynchronous: bool = False) -> Any:
        # kombu makes a client for each command; making one costs more than most commands.
        if asynchronous:
            return super()._create_client(asynchronous=True)
        return self._cached_client("prefixed", super()._create_client, self._pool)

    def _cached_client(self, name: str, create: Callable[[], Any], pool: Any) -> Any:
        client = self._client_cache.get(name)
        if client is None or client.connection_pool is not pool:
            client = self._client_cache[name] = create()
        return client

    def pipeline(self, commands: list[tuple[Any, ...]], *, urgent: bool = False) -> list[Any]:
        """Run commands that may safely run twice, in one round trip.

        Args:
            commands: each with its arguments.
            urgent: on the connection of `run_leasing`.
        """

        def run() -> list[Any]:
            client = self._leasing if urgent else self.plain
            with client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(pipe.execute())

        return self._twice(run) if commands else []

    def run(self, name: str, keys: list[str], arguments: list[Any]) -> Any:
        """Run a script that may safely run twice."""
        loaded = self._script(name)
        return self._twice(lambda: loaded(keys=keys, args=arguments, client=self.plain))

    def run_leasing(self, name: str, keys: list[str], arguments: list[Any]) -> Any:
        """Run a script once, on a connection of its own that doesn't wait longer than leases last.

        Behind a peer that is gone without a word another connection may wait for minutes.
        """
        return self._script(name)(keys=keys, args=arguments, client=self._leasing)

    def _script(self, name: str) -> Script:
        loaded = self._scripts.get(name)
        if loaded is None:
            loaded = self._scripts[name] = self.plain.register_script(script(name))
        return loaded

    @property
    def _leasing(self) -> Any:
        if self._lease_pool is None:
            sentinels = self._sentinel_manager
            pool = self._get_pool()
            # kombu closes the last one made; the one before is still in use by its other pool.
            self._lease_sentinels, self._sentinel_manager = self._sentinel_manager, sentinels
            timeout_s = max(1.0, self.lease_s / 8)
            kwargs = pool.connection_kwargs
            kwargs["socket_timeout"] = min(kwargs.get("socket_timeout") or timeout_s, timeout_s)
            self._lease_pool = pool
        return self._cached_client(
            "leasing", lambda: redis.Redis(connection_pool=self._lease_pool), self._lease_pool
        )

    def _disconnect_pools(self) -> None:
        super()._disconnect_pools()
        pool, self._lease_pool = self._lease_pool, None
        sentinels, self._lease_sentinels = self._lease_sentinels, None
        if pool is not None:
            pool.disconnect()
        if sentinels is not None:
            sentinels.close()

    def _twice(self, call: Callable[[], Any]) -> Any:
        """A pooled connection may have died unnoticed; a second one tells whether Redis has."""
        try:
            return call()
        except CONNECTION_LOST:
            return call()

    def _size(self, queue: str) -> int:
        # Outside a transaction, unlike kombu's: a full server refuses even reading inside one.
        prefix, steps = self.global_keyprefix, self.priority_steps
        return sum(self.pipeline([("LLEN", prefix + self._q_for_pri(queue, s)) for s in steps]))
