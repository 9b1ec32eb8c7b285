"""What a fetch takes: which queue first, and how much."""

from __future__ import annotations

import json
import threading
from typing import Any

import kombu
import pytest
import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    Consuming,
    commands,
    numbers,
    publish,
    remaining,
)
from worker.transport import Room


def test_interactive_before_bulk_and_priorities_within(
    server: EmbeddedServer, consuming: Consuming
) -> None:
    """All of golem comes before golem.bulk, each in the order of Celery's priority steps."""
    publish(server, [9, 10], "golem.bulk", priority=9)
    publish(server, [7, 8], "golem.bulk")
    publish(server, [6], priority=9)
    publish(server, [4, 5], priority=6)
    publish(server, [3], priority=3)
    publish(server, [1, 2])
    assert consuming.take(10) == list(range(1, 11))


def test_bulk_comes_last_whatever_the_order_of_consuming(server: EmbeddedServer) -> None:
    """A worker started with ``-Q golem.bulk,golem`` still serves golem first."""
    publish(server, [2, 3], "golem.bulk")
    publish(server, [1])
    with Consuming(server.url, queues=("golem.bulk", "golem")) as consuming:
        assert consuming.take(3) == [1, 2, 3]


def test_a_queue_added_while_idle_is_served(server: EmbeddedServer, consuming: Consuming) -> None:
    """Remote control's add_consumer takes effect though nothing arrives in the other queues."""
    consuming.turn_until(lambda: consuming.channel.fetcher._armed, "the consumer to wait")
    publish(server, [1], "extra")
    consuming.consumer.add_queue(kombu.Queue("extra"))
    consuming.consumer.consume()
    assert consuming.take(1) == [1]


def test_the_window_bounds_a_fetch_and_reopens(server: EmbeddedServer, client: redis.Redis) -> None:
    """No room, no fetch; with room again the consumer goes on by itself."""
    room = [3]
    publish(server, range(10))
    with Consuming(server.url, room=lambda: Room(room[0])) as consuming:
        consuming._on_message = lambda _: room.__setitem__(0, room[0] - 1)
        assert consuming.take(3) == [0, 1, 2]
        for _ in range(5):
            consuming.turn()
        assert len(consuming.got) == 3
        assert client.llen("golem") == 7
        room[0] = 100
        assert consuming.take(10) == list(range(10))


def test_without_room_for_bulk_the_interactive_queue_is_served_and_bulk_follows_by_itself(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """Bulk messages stay where they are, wake nobody, and come as soon as there is room."""
    room = [Room(5, bulk=False)]
    publish(server, [1, 2], "golem.bulk")
    with Consuming(server.url, room=lambda: room[0]) as consuming:
        consuming.turn_until(lambda: consuming.channel.fetcher._armed, "the consumer to wait")
        publish(server, [3])
        assert consuming.take(1) == [3]
        consuming.turn_until(lambda: consuming.channel.fetcher._armed, "the consumer to wait")
        assert client.llen("golem.bulk") == 2
        consuming.channel.fetcher._sent_at_s += 3_600  # the next question is an hour away
        room[0] = Room(5)
        assert consuming.take(3) == [3, 1, 2]


def test_a_consumer_of_bulk_alone_asks_for_nothing_without_room_for_bulk(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """There is no list to ask for then; with room it goes on."""
    room = [Room(5, bulk=False)]
    publish(server, [1], "golem.bulk")
    with Consuming(server.url, queues=["golem.bulk"], room=lambda: room[0]) as consuming:
        for _ in range(3):
            consuming.turn()
        assert client.llen("golem.bulk") == 1
        room[0] = Room(5)
        assert consuming.take(1) == [1]


def test_room_that_returns_in_another_thread_wakes_the_loop(server: EmbeddedServer) -> None:
    """`wake` is enough for a consumer that sleeps in its event loop."""
    room = [0]
    publish(server, [1])
    with Consuming(server.url, room=lambda: Room(room[0])) as consuming:

        def open_window() -> None:
            room[0] = 1
            consuming.transport.wake()

        consuming.turn()
        thread = threading.Thread(target=open_window)
        thread.start()
        assert consuming.take(1) == [1]
        thread.join()


def test_the_prefetch_count_holds_beside_the_window(server: EmbeddedServer) -> None:
    """Celery's own limit, which grows with jobs that wait for their time, isn't overrun."""
    publish(server, range(10))
    with Consuming(server.url, prefetch=4, room=lambda: Room(8)) as consuming:
        consuming.take(4)
        for _ in range(5):
            consuming.turn()
        assert len(consuming.got) == 4
        consuming.ack_all()
        assert consuming.take(8) == list(range(8))


def test_a_fetch_stops_at_the_window_in_bytes(server: EmbeddedServer, client: redis.Redis) -> None:
    """The message that passes the mark still comes, the next one stays."""
    with kombu.Connection(server.url) as connection:
        for _ in range(5):
            connection.Producer().publish("x" * 1_000, routing_key="golem")
    with Consuming(server.url) as consuming:
        consuming.transport.window = lambda: Room(0) if consuming.got else Room(100, 2_000)
        consuming.turn_until(lambda: consuming.got, "a fetch")
        size = len(json.dumps(consuming.got[0]._raw))
        assert len(consuming.got) == 1 + 2_000 // size
        assert client.llen("golem") == 5 - len(consuming.got)


@pytest.mark.parametrize("queue", ["golem", "golem.bulk"])
@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_an_idle_consumer_is_told_of_a_message_in_any_list(
    server: EmbeddedServer, client: redis.Redis, queue: str, priority: int
) -> None:
    """The server's push, not the question repeated each second, brings the message."""
    options = {"unacked_restore_interval": 3_600}  # a sweep is a script as well
    with Consuming(server.url, options=options) as consuming:
        consuming.turn_until(lambda: consuming.channel.fetcher._armed, "the consumer to wait")
        consuming.channel.fetcher._sent_at_s += 3_600  # the next repetition is an hour away
        client.config_resetstat()
        publish(server, [1], queue, priority=priority)
        assert consuming.take(1) == [1]
        assert commands(client, "evalsha") == 1


def test_a_callback_that_raises_costs_only_its_own_message(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """The rest of the batch is handed out in the next turn."""

    def refuse(message: Any) -> None:
        if numbers([message]) == [2]:
            raise RuntimeError("a consumer's bug")

    publish(server, range(6))
    with Consuming(server.url, on_message=refuse) as consuming:
        with pytest.raises(RuntimeError):
            consuming.take(6)
        consuming._loop = consuming.hub.create_loop()
        assert consuming.take(6) == list(range(6))
        consuming.ack_all()
    assert remaining(client) == set()
