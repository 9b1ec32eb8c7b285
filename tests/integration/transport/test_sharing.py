"""Sharing queues with stock Celery: the same wire and key format."""

from __future__ import annotations

import json

import kombu
import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    OPTIONS,
    Consuming,
    numbers,
    publish,
    remaining,
    stock_channel,
)
from tests.support.waiting import wait_until
from worker.transport import Connection


def test_takes_what_stock_producers_send_in_their_order(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """Every message of a stock producer arrives once, in order, and leaves nothing behind."""
    publish(server, range(1_000))
    assert consuming.take(1_000) == list(range(1_000))
    consuming.ack_all()
    assert remaining(client) == set()


def test_stock_consumers_take_what_our_producers_send(server: EmbeddedServer) -> None:
    """A message published through our transport is an ordinary one for stock kombu."""
    publish(server, range(20), connection_class=Connection)
    channel = stock_channel(server)
    got = [channel.basic_get("golem") for _ in range(20)]
    assert numbers(got) == list(range(20))
    for message in got:
        message.ack()


def test_records_exactly_what_stock_kombu_records(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """The entry of ``unacked`` equals stock's; its score, the end of the lease, isn't past yet."""
    publish(server, [1, 2])
    before_s = client.time()
    channel = stock_channel(server)
    theirs = channel.basic_get("golem")
    record = json.loads(client.hget("unacked", theirs.delivery_tag))
    consuming.take(1)
    after_s = client.time()
    [ours] = consuming.got
    payload, exchange, routing_key = json.loads(client.hget("unacked", ours.delivery_tag))
    assert (exchange, routing_key) == (record[1], record[2]) == ("", "golem")
    assert payload.keys() == record[0].keys()
    assert payload == ours._raw
    score = client.zscore("unacked_index", ours.delivery_tag)
    assert before_s[0] <= score - OPTIONS["lease_s"] <= after_s[0] + 1
    assert client.zscore("golem:leases", ours.delivery_tag) == score
    assert client.zscore("golem:leases", theirs.delivery_tag) is None
    theirs.ack()


def test_a_stock_worker_restores_what_ours_left(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """After the visibility timeout a stock sweep puts our message back, readable for stock."""
    publish(server, [7])
    consuming.take(1)
    client.zadd("unacked_index", {consuming.got[0].delivery_tag: 1})
    channel = stock_channel(server)
    channel.qos.restore_visible(interval=1)
    again = channel.basic_get("golem")
    assert numbers([again]) == [7]
    assert again.headers["redelivered"]
    again.ack()


def test_we_restore_what_a_stock_worker_left(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """Messages of a dead stock worker come back in their order, counted as delivered twice."""
    publish(server, [1, 2, 3])
    channel = stock_channel(server)
    for _ in range(3):
        tag = channel.basic_get("golem").delivery_tag
        client.zadd("unacked_index", {tag: client.zscore("unacked_index", tag) - 1_000})
    channel.qos._delivered.clear()  # it is dead: nothing goes back at its end
    publish(server, [4])
    consuming.qos.restore_visible(interval=1)
    assert consuming.take(4) == [1, 2, 3, 4]
    assert [message.deliveries for message in consuming.got] == [2, 2, 2, 1]
    consuming.ack_all()
    assert remaining(client) == set()


def test_a_global_key_prefix_is_put_before_every_key(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """With a prefix, stock and ours meet on prefixed keys, and no other key exists."""
    options = {"global_keyprefix": "blue:"}
    publish(server, range(5), options=options)
    client.rpush("blue:golem", b"no envelope")
    with Consuming(server.url, options=options) as consuming:
        assert consuming.take(5) == list(range(5))
        first, second, third, *rest = consuming.got
        first.ack()
        second.reject(requeue=True)
        third.reject()
        consuming.take(6)
        assert consuming.got[-1].deliveries == 2
        consuming.qos.renew()
        consuming.qos.restore_visible(interval=1)
    assert all(key.startswith("blue:") for key in remaining(client))
    assert client.llen("blue:golem") == len(rest) + 1
    assert client.hlen("blue:unacked") == client.zcard("blue:unacked_index") == 0


def test_fanout_reaches_every_consumer(server: EmbeddedServer) -> None:
    """Broadcasts, which remote control is made of, pass as in stock kombu."""
    exchange = kombu.Exchange("golem.news", type="fanout")
    with Consuming(server.url, queues=()) as one, Consuming(server.url, queues=()) as two:
        for number, consuming in enumerate((one, two)):
            consuming.consumer.add_queue(kombu.Queue(f"news.{number}", exchange, auto_delete=True))
            consuming.consumer.consume(no_ack=True)
        with kombu.Connection(server.url) as connection:
            producer = connection.Producer(serializer="json")

            def both_heard() -> bool:
                producer.publish({"n": 1}, exchange=exchange, declare=[exchange])
                one.turn()
                two.turn()
                return bool(one.got and two.got)

            wait_until(both_heard, "the broadcast")


def test_a_channel_without_acknowledgement_stays_stock(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """What is consumed with no_ack is never recorded as unacknowledged."""
    with Consuming(server.url, consume=False) as consuming:
        consuming.consumer.consume(no_ack=True)
        publish(server, range(3))
        assert consuming.take(3) == [0, 1, 2]
        assert remaining(client) == set()
