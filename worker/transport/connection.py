"""How an app comes to use this transport: a kombu connection that resolves to it."""

from __future__ import annotations

from typing import Any

import celery.app.amqp
from kombu.connection import Connection as StockConnection

from worker.transport.kombu_transport import SentinelTransport, Transport

__all__ = ["AMQP", "Connection", "socket_url"]

_OURS = {"redis": Transport, "rediss": Transport, "sentinel": SentinelTransport}


class Connection(StockConnection):
    """kombu's connection, whose Redis URLs use this package's transport.

    The class is looked up by the URL's scheme at each use, so that everything kombu derives from
    the scheme (TLS for ``rediss``, the next URL after a failover) stays as it is.
    """

    def __init__(self, hostname: Any = "localhost", *args: Any, **kwargs: Any) -> None:
        if isinstance(hostname, str):
            hostname = ";".join(socket_url(url) for url in hostname.split(";"))
        super().__init__(hostname, *args, **kwargs)

    def get_transport_cls(self) -> Any:
        """Our class for a Redis scheme, kombu's for any other."""
        return _OURS.get(self.transport_cls) or super().get_transport_cls()


class AMQP(celery.app.amqp.AMQP):  # type: ignore[misc]  # Celery ships no types
    """Celery's messaging side with our connection: ``Celery(amqp="worker.transport:AMQP")``."""

    Connection = Connection
    BrokerConnection = Connection


def socket_url(url: str) -> str:
    """Spell redis-py's ``unix://path?db=N`` as kombu's ``redis+socket://path?virtual_host=N``."""
    scheme, separator, rest = url.partition("://")
    if scheme != "unix" or not separator:
        return url
    path, mark, query = rest.partition("?")
    return f"redis+socket://{path}{mark}{query.replace('db=', 'virtual_host=')}"
