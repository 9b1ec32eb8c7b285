"""Adopting on a new connection what the last one held."""

from __future__ import annotations

import pytest
import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    Consuming,
    numbers,
    publish,
    remaining,
)
from tests.support.waiting import wait_until
from worker.transport import Held


def test_what_a_dying_channel_held_is_adopted(server: EmbeddedServer, client: redis.Redis) -> None:
    """Kept messages go on, settled ones are acknowledged, the rest returns to the head in order."""
    publish(server, range(10))
    old = Consuming(server.url)
    old.take(10)
    old.got[0].ack()  # no turn follows, so Redis doesn't know
    held = old.die()
    assert not old.qos.take_held().messages  # a second attempt takes nothing away
    old.got[1].ack()  # a result that comes between two connections
    old.got[2].reject(requeue=True)
    assert client.hlen("unacked") == 10
    publish(server, [10])
    mine = {message.delivery_tag for message in old.got[:6]}
    with Consuming(server.url, consume=False) as new:
        assert new.qos.adopt(held, mine) == set()
        assert client.hlen("unacked") == 3
        assert all(message.channel is new.channel for message in old.got[3:6])
        new.consumer.consume()
        assert new.take(6) == [6, 7, 8, 9, 10, 2]
        assert [message.deliveries for message in new.got] == [1, 1, 1, 1, 1, 2]
        for message in old.got[3:6]:
            message.ack()
        new.ack_all()
    assert {key for key in remaining(client) if client.ttl(key) < 0} == set()


def test_adopting_tells_what_another_worker_took(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """After an outage longer than the lease, messages another worker runs are not run twice."""
    publish(server, [1, 2])
    old = Consuming(server.url)
    old.take(2)
    held = old.die()
    client.zadd("unacked_index", {old.got[0].delivery_tag: 1})
    with Consuming(server.url) as other:
        other.qos.restore_visible(interval=1)
        assert other.take(1) == [1]
        with Consuming(server.url, queues=()) as new:
            assert new.qos.adopt(held) == {old.got[0].delivery_tag}
            assert list(new.qos._delivered) == [old.got[1].delivery_tag]
            old.got[1].ack()
        other.ack_all()
    assert client.hlen("unacked") == 0


def test_adopting_while_the_server_is_away_changes_nothing() -> None:
    """It raises, and the same call succeeds on the next connection; closing raises never."""
    with EmbeddedServer(appendonly=True) as server:
        publish(server, range(5))
        old = Consuming(server.url)
        old.take(5)
        old.got[0].ack()
        new = Consuming(server.url, queues=())
        server.kill()
        held = old.die()  # stock kombu raises from its second close here
        with pytest.raises(new.connection.connection_errors):
            new.qos.adopt(held)
        held.absorb(new.die())
        server.start()
        with Consuming(server.url, queues=()) as newest, server.client() as client:
            assert newest.qos.adopt(held) == set()
            assert client.hlen("unacked") == 4
            for message in old.got[1:]:
                message.ack()
            newest.turn()
            assert client.hlen("unacked") == 0


def test_adopting_twice_takes_nothing_from_another_worker(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """If the reply to an adoption is lost, the next leaves alone what others fetched since."""
    publish(server, range(6))
    old = Consuming(server.url)
    old.take(6)
    held = old.die()
    old.got[0].ack()
    old.got[1].reject(requeue=True)
    same = Held(held.messages.copy(), held.settled.copy(), held.requeued.copy())
    mine = {message.delivery_tag for message in old.got[2:4]}
    one = Consuming(server.url, queues=())
    assert one.qos.adopt(held, mine) == set()
    one.qos._delivered.clear()
    with Consuming(server.url) as other:
        assert other.take(3) == [4, 5, 1]
        with Consuming(server.url, queues=()) as two:
            for tag in mine:  # what the first adoption renewed, its messages know
                assert same.messages[tag].leased_until
            assert two.qos.adopt(same, mine) == set()
            assert two.qos._delivered.keys() == mine
            assert client.hlen("unacked") == 5
            assert client.llen("golem") == 0
            for message in old.got[2:4]:
                message.ack()
        other.ack_all()
    one.close()
    assert client.hlen("unacked") == 0


@pytest.mark.parametrize("refused", ["zscore", "hdel", "hmget"])
def test_a_server_that_refuses_an_adoption_is_asked_on_the_next_connection(
    server: EmbeddedServer, client: redis.Redis, refused: str
) -> None:
    """Such an error counts as a lost connection, which Celery survives, and nothing is lost."""
    client.acl_setuser("worker", enabled=True, nopass=True, keys=["*"], channels=["*"],
                       commands=["+@all", f"-{refused}"], reset=True)  # fmt: skip
    publish(server, range(4))
    old = Consuming(server.url)
    old.take(4)
    held = old.die()
    old.got[0].ack()
    mine = {old.got[1].delivery_tag}
    try:
        new = Consuming(f"redis://worker:x@127.0.0.1:{server.port}/0", queues=())
        with pytest.raises(new.connection.connection_errors, match="Redis refuses"):
            new.qos.adopt(held, mine)
        held.absorb(new.die())
    finally:
        client.acl_deluser("worker")
    with Consuming(server.url, queues=()) as newest:
        assert newest.qos.adopt(held, mine) == set()
        assert newest.qos._delivered.keys() == mine
        assert client.llen("golem") == 2
        old.got[1].ack()
    assert client.hlen("unacked") == 0


def test_adopting_tells_what_was_taken_even_if_leases_cannot_be_renewed(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """The last step may fail: the lease is renewed with the next renewal."""
    client.acl_setuser("worker", enabled=True, nopass=True, keys=["*"], channels=["*"],
                       commands=["+@all", "-zadd"], reset=True)  # fmt: skip
    publish(server, [1, 2])
    old = Consuming(server.url)
    old.take(2)
    held = old.die()
    tags = [message.delivery_tag for message in old.got]
    client.zadd("unacked_index", {tags[0]: client.time()[0] + 10})  # as if another had it
    try:
        with Consuming(f"redis://worker:x@127.0.0.1:{server.port}/0", queues=()) as new:
            assert new.qos.adopt(held) == {tags[0]}
            new.transport.cycle.renew()
            assert list(new.qos._delivered) == [tags[1]]
    finally:
        client.acl_deluser("worker")


def test_a_full_server_lets_a_worker_adopt() -> None:
    """Over maxmemory everything of an adoption works: only then is memory ever freed."""
    with EmbeddedServer() as server, server.client() as client:
        publish(server, range(5))
        old = Consuming(server.url)
        old.take(5)
        old.turn_until(lambda: old.channel.fetcher._armed, "the consumer to wait")
        publish(server, [5])
        old.channel._disturb()
        old.transport.cycle.on_poll_start()  # a fetch whose reply is never read
        wait_until(lambda: client.llen("golem") == 0, "the server to run the fetch")
        held = old.die()
        old.got[0].ack()
        old.got[1].reject(requeue=True)
        client.script_flush()
        client.config_set("maxmemory", 1)
        mine = {old.got[2].delivery_tag}
        with Consuming(server.url, consume=False) as new:
            assert new.qos.adopt(held, mine) == set()
            assert new.qos._delivered.keys() == mine
            new.consumer.consume()
            new.turn_until(lambda: len(new.got) == 4, "the rest")
            assert sorted(numbers(new.got)) == [1, 3, 4, 5]
            old.got[2].ack()
            new.ack_all()
            assert client.hlen("unacked") == 0
