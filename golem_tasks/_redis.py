"""Where Redis is: one URL, read the same way by redis-py (sync and asyncio) and by Celery.

redis-py's own retries are off everywhere: whether a command may be sent twice is decided by who
sends it. Every failure leaves as one `BrokerUnavailable` sentence with the password masked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
import redis.connection
import redis.exceptions
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff

from golem_tasks._unavailable import sentence
from golem_tasks.errors import BrokerUnavailable
from golem_tasks.settings import ClientSettings

__all__ = [
    "FAILED",
    "Server",
    "backend_server",
    "broker_server",
    "celery_url",
    "is_passing",
    "sentinel_options",
]

FAILED = (redis.exceptions.RedisError, OSError)
"""What redis-py raises when the server is away, hangs up, doesn't answer, or refuses."""

_LASTING = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.InvalidResponse,
    redis.exceptions.ResponseError,
)
_POOL_CONNECTIONS = 32
_SUBSCRIBERS = 100_000  # one connection per waiting thread; the process's own limit comes first
_SENTINEL_PORT = 26379


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: the server is away, rather than it refuses us."""
    away = redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError
    return isinstance(error, away) and not isinstance(error, _LASTING)


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis, and how long to wait for it.

    Args:
        url: with its password; never shown.
        setting: the environment name an operator corrects.
        connect_timeout_s: seconds for connection and login together.
        socket_timeout_s: seconds for one reply.
        sentinel_master: the master's name, for a ``sentinel://`` URL.
        sentinel_password: of the Sentinels; the URL's login is the master's.
    """

    url: str = field(repr=False)
    setting: str
    connect_timeout_s: float
    socket_timeout_s: float
    sentinel_master: str
    sentinel_password: str | None = field(default=None, repr=False)

    def pool(self) -> Any:
        """Connections for commands; a thread waits for a free one rather than failing."""
        if self._sentinels:
            return self._sentinel_pool(redis.sentinel, redis.retry, max_connections=_SUBSCRIBERS)
        return redis.BlockingConnectionPool(
            max_connections=_POOL_CONNECTIONS,
            timeout=self.socket_timeout_s,
            **self._arguments(redis.connection),
            redis_connect_func=self._log_in,
        )

    def subscriber_pool(self) -> Any:
        """Connections that SUBSCRIBE; each waiting thread has its own."""
        if self._sentinels:
            return self._sentinel_pool(redis.sentinel, redis.retry, max_connections=_SUBSCRIBERS)
        return redis.ConnectionPool(
            max_connections=_SUBSCRIBERS,
            **self._arguments(redis.connection),
            redis_connect_func=self._log_in,
        )

    def async_pool(self) -> Any:
        """Connections of one event loop for commands; a task waits for a free one."""
        import redis.asyncio as aredis  # noqa: PLC0415 - synchronous producers never need it
        import redis.asyncio.retry as aretry  # noqa: PLC0415 - as above
        import redis.asyncio.sentinel as asentinel  # noqa: PLC0415 - as above

        if self._sentinels:
            return self._sentinel_pool(asentinel, aretry, max_connections=_SUBSCRIBERS)
        return aredis.BlockingConnectionPool(
            max_connections=_POOL_CONNECTIONS,
            timeout=None,
            **self._arguments(aredis.connection),
            redis_connect_func=self._log_in_async,
        )

    def async_subscriber_pool(self) -> Any:
        """The one connection of an event loop that SUBSCRIBEs. Its reads never time out."""
        import redis.asyncio as aredis  # noqa: PLC0415 - synchronous producers never need it
        import redis.asyncio.retry as aretry  # noqa: PLC0415 - as above
        import redis.asyncio.sentinel as asentinel  # noqa: PLC0415 - as above

        if self._sentinels:
            return self._sentinel_pool(asentinel, aretry, max_connections=2, socket_timeout=None)
        arguments = {**self._arguments(aredis.connection), "socket_timeout": None}
        return aredis.ConnectionPool(max_connections=2, **arguments)

    def unavailable(self, error: BaseException) -> BrokerUnavailable:
        """Say in one sentence what is wrong with this server and what to do about it."""
        text = sentence(error, self.url, self.setting, self.sentinel_master)
        return BrokerUnavailable(text)

    @property
    def _sentinels(self) -> list[tuple[str, int]]:
        parts = [urlsplit(url) for url in self.url.split(";")]
        if parts[0].scheme != "sentinel":
            return []
        return [(part.hostname or "127.0.0.1", part.port or _SENTINEL_PORT) for part in parts]

    def _arguments(self, module: Any) -> dict[str, Any]:
        return {**self._timeouts(), **module.parse_url(_redis_py_url(self.url))}

    def _timeouts(self) -> dict[str, Any]:
        timeouts: dict[str, Any] = {
            "socket_timeout": self.socket_timeout_s,
            "socket_connect_timeout": self.connect_timeout_s,
            "protocol": 2,  # plain arrays, the same under every redis-py and server
        }
        if not self.url.startswith(("unix:", "redis+socket:")):
            timeouts["socket_keepalive"] = True
        return timeouts

    def _sentinel_pool(self, module: Any, retry: Any, **more: Any) -> Any:
        last = urlsplit(self.url.split(";")[-1])
        credentials = {"username": last.username, "password": last.password}
        login = {name: unquote(value) for name, value in credentials.items() if value}
        arguments = {**self._timeouts(), "db": int(last.path.strip("/") or 0), **login, **more}
        manager = module.Sentinel(
            self._sentinels,
            sentinel_kwargs={
                **self._timeouts(),
                "password": self.sentinel_password,
                "retry": retry.Retry(NoBackoff(), 0),
            },
            **arguments,
        )
        return manager.master_for(self.sentinel_master).connection_pool

    def _log_in(self, connection: Any) -> None:
        # The login has the connection's time limit: a peer that accepts and then says nothing
        # (not a Redis, or one that hangs) is found out as quickly as one that isn't there.
        sock = connection._sock  # noqa: SLF001 - redis-py has no other way to it
        sock.settimeout(self.connect_timeout_s)
        connection.on_connect()
        sock.settimeout(self.socket_timeout_s)

    async def _log_in_async(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                await connection.on_connect()
        except TimeoutError as exc:
            # redis-py drops a half-made connection for an error of its own only.
            raise redis.exceptions.TimeoutError("Timeout logging in") from exc


def broker_server(settings: ClientSettings) -> Server:
    """The Redis that holds the queues."""
    return _server(settings, settings.broker, "GOLEM_BROKER_URL")


def backend_server(settings: ClientSettings) -> Server:
    """The Redis that holds the answers."""
    own = settings.result_backend is not None
    return _server(
        settings, settings.backend, "GOLEM_RESULT_BACKEND" if own else "GOLEM_BROKER_URL"
    )


def sentinel_options(settings: ClientSettings) -> dict[str, Any]:
    """Transport options by which kombu and Celery find a master as we do."""
    options: dict[str, Any] = {"master_name": settings.sentinel_master}
    if settings.sentinel_password is not None:
        options["sentinel_kwargs"] = {
            "password": settings.sentinel_password.get_secret_value(),
            "socket_timeout": settings.socket_timeout_s,
            "socket_connect_timeout": settings.connect_timeout_s,
        }
    return options


def celery_url(url: str) -> str:
    """Return the URL as Celery and kombu read it.

    They know a Unix socket as ``redis+socket://`` only, and Celery's result backend refuses a
    ``rediss://`` URL that doesn't say how certificates are checked: here, as redis-py does.
    """
    if url.startswith("unix:"):
        path, _, query = url.partition("?")
        pairs = [("virtual_host" if key == "db" else key, v) for key, v in parse_qsl(query)]
        return "redis+socket" + path.removeprefix("unix") + _query(pairs)
    if url.startswith("rediss:") and "ssl_cert_reqs=" not in url.partition("?")[2]:
        return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"
    return url


def _redis_py_url(url: str) -> str:
    base, _, query = url.partition("?")
    pairs = []
    for key, value in parse_qsl(query):
        if key == "ssl_cert_reqs":  # Celery's spelling is CERT_REQUIRED
            pairs.append((key, value.lower().removeprefix("cert_")))
        else:
            pairs.append(("db" if key == "virtual_host" else key, value))
    return base.replace("redis+socket:", "unix:", 1) + _query(pairs)


def _query(pairs: list[tuple[str, str]]) -> str:
    return f"?{urlencode(pairs, safe='/')}" if pairs else ""


def _server(settings: ClientSettings, url: str, setting: str) -> Server:
    return Server(
        url,
        setting,
        settings.connect_timeout_s,
        settings.socket_timeout_s,
        settings.sentinel_master,
        settings.sentinel_password.get_secret_value() if settings.sentinel_password else None,
    )
