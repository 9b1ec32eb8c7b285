"""Acknowledging, rejecting and counting deliveries."""

from __future__ import annotations

import contextlib
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
from tests.support.waiting import wait_until
from worker.transport import Connection


def test_acknowledgements_of_a_turn_leave_together(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """300 acknowledgements of one turn are one command each for hash, index and leases."""
    publish(server, range(300))
    consuming.take(300)
    client.config_resetstat()
    consuming.ack_all()
    assert (commands(client, "hdel"), commands(client, "zrem")) == (1, 2)
    assert client.hlen("unacked") == 0


def test_closing_sends_what_is_acknowledged_and_restores_the_rest_in_order(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """No turn of the loop follows the acknowledgements, and still none of them is lost."""
    publish(server, range(10))
    publish(server, [20, 21], "golem.bulk")
    with Consuming(server.url) as consuming:
        consuming.take(12)
        publish(server, [10])
        for message in consuming.got[:4]:
            message.ack()
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0
    with Consuming(server.url) as consuming:
        assert consuming.take(9) == [4, 5, 6, 7, 8, 9, 10, 20, 21]
        assert {message.deliveries for message in consuming.got} == {1}
        consuming.ack_all()
    assert remaining(client) == set()


def test_without_an_event_loop_it_works_as_well(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """`drain_events` delivers, and acknowledgements reach Redis without another call."""
    publish(server, range(50))
    got: list[int] = []

    def on_message(message: Any) -> None:
        got.extend(numbers([message]))
        message.ack()

    with Connection(server.url) as connection:
        with kombu.Consumer(connection, [kombu.Queue("golem")], on_message=on_message):
            wait_until(lambda: connection.drain_events(timeout=60) or len(got) == 50, "all of them")
            assert client.hlen("unacked") == 0
            publish(server, [50])
            wait_until(lambda: connection.drain_events(timeout=60) or len(got) == 51, "one more")
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
    assert got == list(range(51))
    assert remaining(client) == set()


def test_rejecting_drops_or_sends_to_the_tail_as_stock_does(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A requeued message waits behind the others and is counted."""
    publish(server, [1, 2, 3])
    consuming.take(3)
    publish(server, [4])
    one, two, three = consuming.got
    two.reject()
    one.reject(requeue=True)
    three.ack()
    assert consuming.take(5)[3:] == [4, 1]
    assert consuming.got[-1].deliveries == 2
    assert consuming.got[-1].headers["redelivered"]
    consuming.ack_all()
    assert remaining(client) == set()


def test_deliveries_are_counted_until_the_acknowledgement(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """Each delivery that didn't end well counts one more; the count has a TTL and goes with it."""
    publish(server, [1])
    for delivery in range(1, 5):
        consuming.take(delivery)
        assert consuming.got[-1].deliveries == delivery
        consuming.got[-1].reject(requeue=True)
    consuming.take(5)
    [count] = client.keys("golem:deliveries:*")
    assert client.get(count) == b"5"
    assert client.ttl(count) > 0
    consuming.ack_all()
    assert remaining(client) == set()


def test_acknowledgements_of_the_turn_in_which_redis_dies_are_kept() -> None:
    """A failing flush doesn't cost the loop's other callbacks, further acknowledgements."""
    with EmbeddedServer(appendonly=True) as server:
        publish(server, range(60))
        consuming = Consuming(server.url)
        consuming.take(60)
        server.kill()
        first, *others = consuming.got
        first.ack()
        for message in others:
            consuming.hub.call_soon(message.ack)
        with contextlib.suppress(*consuming.connection.connection_errors):
            consuming.turn()
        with contextlib.suppress(*consuming.connection.connection_errors):
            consuming.turn()
        held = consuming.die()
        assert held.settled.keys() == {message.delivery_tag for message in consuming.got}
        assert not held.messages


def test_acknowledgements_a_server_refuses_are_sent_again(
    server: EmbeddedServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a write is refused for, one warning, and the tick sends them when it may."""
    client.acl_setuser("worker", enabled=True, nopass=True, commands=["+@all"], keys=["*"],
                       channels=["*"], reset=True)  # fmt: skip
    try:
        publish(server, range(3))
        with Consuming(f"redis://worker:x@127.0.0.1:{server.port}/0") as consuming:
            consuming.take(3)
            client.acl_setuser("worker", commands=["-hdel"])
            for message in consuming.got:
                message.ack()
            consuming.turn()
            consuming.transport.cycle.tick()
            assert client.hlen("unacked") == 3
            client.acl_setuser("worker", commands=["+hdel"])
            consuming.transport.cycle.tick()
            assert client.hlen("unacked") == 0
    finally:
        client.acl_deluser("worker")
    assert caplog.text.count("doesn't take acknowledgements now") == 1
