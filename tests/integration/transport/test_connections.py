"""Connections that end: what was fetched or acknowledged over them isn't lost."""

from __future__ import annotations

import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    Consuming,
    numbers,
    publish,
    remaining,
)
from tests.support.waiting import wait_until
from worker.transport.keys import script


def kill_consumers(client: redis.Redis) -> int:
    """Cut every connection but our own."""
    return int(client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))


def test_a_fetch_whose_reply_is_lost_is_found_again(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """Messages popped for a connection that then died come at once, not after the lease."""
    publish(server, range(40))
    consuming.transport.cycle.on_poll_start()  # sends the fetch, reads nothing
    wait_until(lambda: client.hlen("unacked") == 40, "the server to run the fetch")
    kill_consumers(client)
    assert consuming.take(40) == list(range(40))
    assert {message.deliveries for message in consuming.got} == {1}
    consuming.ack_all()
    assert {key for key in remaining(client) if client.ttl(key) < 0} == set()


def test_a_fetch_that_runs_too_late_pops_nothing(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """A request stuck on its way when its connection was given up is fenced off."""
    publish(server, range(3))
    receipt = "golem:fetch:old"
    assert client.eval(script("fence"), 1, receipt, 60) == []
    keys = ["unacked", "unacked_index", receipt, "golem:dead:envelopes", "golem:leases", "golem"]
    limits = [10, 10_000, 60, "golem:deliveries:", 60, 10, 30, 60]
    reply = client.eval(script("fetch"), len(keys), *keys, *limits)
    assert reply == [b"0", b"{}"]
    assert client.llen("golem") == 3


def test_asking_again_what_a_fetch_popped_doesnt_keep_its_record_longer(
    client: redis.Redis,
) -> None:
    """It is gone with the leases, or it would name messages that others have by then."""
    client.rpush("golem:fetch:old", "tag")
    client.expire("golem:fetch:old", 50)
    for _ in range(2):
        assert client.eval(script("fence"), 1, "golem:fetch:old", 60) == [b"tag"]
        assert 0 < client.ttl("golem:fetch:old") <= 50


def test_killed_connections_are_replaced_without_a_reconnect(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """Each time all connections are cut, the same channel goes on, idle or busy."""
    for number in range(10):
        publish(server, [2 * number])
        consuming.take(2 * number + 1)
        kill_consumers(client)
        publish(server, [2 * number + 1])
        consuming.take(2 * number + 2)
        consuming.ack_all()
    assert numbers(consuming.got) == list(range(20))
    assert client.hlen("unacked") == 0


def test_scripts_flushed_on_the_server_are_loaded_again(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """SCRIPT FLUSH, or another server behind the same address, costs nothing but a round trip."""
    for number in range(3):
        client.script_flush()
        publish(server, [number])
        consuming.take(number + 1)
    consuming.ack_all()
    assert remaining(client) == set()


def test_closing_while_the_server_is_away_raises_nothing() -> None:
    """The messages stay recorded, and the lease brings them back."""
    with EmbeddedServer(appendonly=True) as server:
        publish(server, range(3))
        consuming = Consuming(server.url, options={"socket_connect_timeout": 1})
        consuming.take(3)
        server.kill()
        consuming.close()
        server.start()
        with server.client() as client:
            assert client.hlen("unacked") == client.zcard("unacked_index") == 3


def test_cancelling_the_queues_gives_back_a_fetch_on_its_way(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A shutdown that comes between fetch and reply doesn't hold the messages until the lease."""
    publish(server, range(5))
    consuming.transport.cycle.on_poll_start()
    wait_until(lambda: client.hlen("unacked") == 5, "the server to run the fetch")
    consuming.consumer.cancel()
    assert client.hlen("unacked") == 0
    assert client.llen("golem") == 5
