"""A kombu consumer in an event loop of its own, turned by the test: what Celery's worker does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Self

import kombu
import redis
from kombu.asynchronous import Hub, set_event_loop

from golem_tasks.embedded import EmbeddedServer
from tests.support.waiting import wait_until
from worker.transport import Connection, Held, Message, Room

__all__ = [
    "OPTIONS",
    "Consuming",
    "commands",
    "end_leases",
    "numbers",
    "publish",
    "remaining",
    "stock_channel",
]

OPTIONS: dict[str, Any] = {
    "lease_s": 60,
    "visibility_timeout": 60,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "retry_on_timeout": False,
}


class Consuming:
    """Consumes ``golem`` and ``golem.bulk`` through our transport and keeps what it gets.

    Args:
        url: the broker.
        options: transport options over `OPTIONS`.
        on_message: called with each message beside keeping it in ``got``.
        prefetch: Celery's prefetch count, 0 for none.
        consume: whether to start consuming at once.
    """

    def __init__(
        self,
        url: str,
        *,
        queues: Sequence[str] = ("golem", "golem.bulk"),
        options: dict[str, Any] | None = None,
        on_message: Callable[[Message], Any] | None = None,
        prefetch: int = 0,
        room: Callable[[], Room] | None = None,
        consume: bool = True,
        connection_class: Any = Connection,
    ) -> None:
        self.got: list[Any] = []
        self._on_message = on_message
        self.hub = Hub()
        set_event_loop(self.hub)
        self.connection = connection_class(url, transport_options={**OPTIONS, **(options or {})})
        self.transport: Any = self.connection.transport
        self.transport.register_with_event_loop(self.connection.connection, self.hub)
        self.transport.window = room
        self.channel: Any = self.connection.default_channel
        self.channel.basic_qos(0, prefetch, False)
        self.consumer = kombu.Consumer(
            self.channel, [kombu.Queue(name) for name in queues], on_message=self._keep
        )
        self.hub.propagate_errors = self.connection.connection_errors
        self._loop = self.hub.create_loop()
        if consume:
            self.consumer.consume()

    def _keep(self, message: Any) -> None:
        self.got.append(message)
        if self._on_message is not None:
            self._on_message(message)

    @property
    def qos(self) -> Any:
        """The channel's bookkeeping."""
        return self.channel.qos

    def turn(self) -> bool:
        """One turn of the event loop, ended by the next thing that happens or within 20 ms."""
        self.hub.call_later(0.02, _nothing)
        next(self._loop)
        return True

    def turn_until(self, condition: Callable[[], Any], what: str) -> Any:
        """Turn the loop until the condition holds."""
        return wait_until(lambda: self.turn() and condition(), what, every_s=0)

    def take(self, count: int) -> list[int]:
        """Turn until so many messages came; their numbers, in order."""
        self.turn_until(lambda: len(self.got) >= count, f"{count} messages")
        return numbers(self.got)

    def ack_all(self) -> None:
        """Acknowledge what has been kept, and let Redis know."""
        for message in self.got:
            if not message.acknowledged:
                message.ack()
        self.turn_until(lambda: not self.qos.pending, "acknowledgements to leave")

    def die(self) -> Held:
        """Lose the connection as Celery's worker does: detach what is held, close the rest."""
        held: Held = self.qos.take_held()
        self.close()
        return held

    def close(self) -> None:
        """Close the connection; what is held goes back."""
        self.connection.release()
        self.hub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nothing() -> None:
    """Give the loop a turn."""


def numbers(messages: Sequence[Any]) -> list[int]:
    """The numbers `publish` put into these messages."""
    return [json.loads(message.body)["n"] for message in messages]


@contextmanager
def _producer(url: str, options: dict[str, Any], connection_class: Any) -> Any:
    with connection_class(url, transport_options=options) as connection:
        yield connection.Producer(serializer="json")


def publish(
    server: EmbeddedServer | str,
    given: Sequence[int],
    queue: str = "golem",
    *,
    options: dict[str, Any] | None = None,
    connection_class: Any = kombu.Connection,
    **properties: Any,
) -> None:
    """Publish one message for each number, with stock kombu unless told otherwise."""
    url = server if isinstance(server, str) else server.url
    with _producer(url, options or {}, connection_class) as producer, producer.batch() as batch:
        for number in given:
            producer.publish({"n": number}, routing_key=queue, **properties)
        batch.flush()


def stock_channel(server: EmbeddedServer, **options: Any) -> Any:
    """A channel of stock kombu; its connection ends with the test's process."""
    return kombu.Connection(server.url, transport_options={**OPTIONS, **options}).default_channel


def remaining(client: redis.Redis) -> set[str]:
    """Keys left, kombu's binding tables aside."""
    return {key.decode() for key in client.keys("*") if not key.startswith(b"_kombu")}


def end_leases(client: redis.Redis, *tags: str) -> None:
    """Let the time pass that these messages' leases last."""
    past_s = client.time()[0] - 1
    for key in ("unacked_index", "golem:leases"):
        client.zadd(key, dict.fromkeys(tags, past_s))


def commands(client: redis.Redis, name: str) -> int:
    """How often the server has run a command since its statistics were reset."""
    stats: dict[str, Any] = client.info("commandstats")
    return int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"])
