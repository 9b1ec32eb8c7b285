"""The transport on a real server: same wire and key format as stock kombu, everything batched."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from kombu.transport import redis as stock

from golem_tasks.embedded import EmbeddedServer, free_port, server_binary
from golem_tasks.guard import guarded
from tests.support.consuming import OPTIONS, Consuming, numbers, publish
from tests.support.waiting import wait_until
from worker.transport import Connection, Held, Room
from worker.transport.keys import DEAD_ENTRIES, script


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of the emptied server."""
    with server.client() as client:
        yield client


@pytest.fixture
def consuming(server: EmbeddedServer) -> Iterator[Consuming]:
    """A consumer of golem and golem.bulk, ready to be turned."""
    with Consuming(server.url) as consuming:
        yield consuming


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


# Sharing queues with stock Celery


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


# What a fetch takes


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
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming, queue: str, priority: int
) -> None:
    """The server's push, not the question repeated each second, brings the message."""
    consuming.turn_until(lambda: consuming.channel.fetcher._armed, "the consumer to wait")
    consuming.channel.fetcher._sent_at_s += 3_600  # the next repetition is an hour away
    client.config_resetstat()
    publish(server, [1], queue, priority=priority)
    assert consuming.take(1) == [1]
    assert commands(client, "evalsha") == 1


def test_an_unreadable_envelope_goes_to_the_dead_letters(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """Whatever lies in a queue that is no Celery message, the messages round it flow."""
    poison = [
        b"", b"\xff\xfe", b"{", b"[]", b"1", b'"text"', b"null", b"{}", b'{"properties": 3}',
        b'{"properties": {"delivery_info": {}}}',
        b'{"properties": {"delivery_tag": "", "delivery_info": {}}}',
        b'{"properties": {"delivery_tag": 7, "delivery_info": {}}}',
        b'{"properties": {"delivery_tag": "t", "delivery_info": {"exchange": {}}}}',
        b'{"body": nan, "properties": {"delivery_tag": "t1", "delivery_info": {}}}',
        b'{"properties": {"delivery_tag": "t", "delivery_info": {}}, "body": "?"',
        b'{"body": 1, "properties": {"delivery_tag": "t", "delivery_info": {}, "body_encoding":2}}',
        b"[" * 5_000 + b"]" * 5_000,
        b'{"properties": {"delivery_tag": "tag\xff", "delivery_info": {}}}',
        b'{"properties": {"delivery_tag": "t\\u00e9g", "delivery_info": {}}}',
        b'{"properties": {"delivery_tag": "t\\n", "delivery_info": {}}}',
        b'{"headers": ["task"], "properties": {"delivery_tag": "t2", "delivery_info": {}}}',
        b'{"headers": {"task": []}, "properties": {"delivery_tag": "t3", "delivery_info": {}}}',
        b'{"body": "{\\"task\\": {}}", "properties": {"delivery_tag": "t4", "delivery_info": {}}}',
    ]  # fmt: skip
    for number, raw in enumerate(poison):
        publish(server, [number])
        client.lpush("golem", raw)
    assert consuming.take(len(poison)) == list(range(len(poison)))
    consuming.ack_all()
    wait_until(lambda: client.llen("golem:dead:envelopes") == len(poison), "the dead letters")
    assert set(client.lrange("golem:dead:envelopes", 0, -1)) == set(poison)
    assert remaining(client) == {"golem:dead:envelopes"}


@pytest.mark.parametrize("method", ["zlib", "bzip2", "lzma"])
def test_a_compressed_message_is_read_as_in_stock_kombu(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming, method: str
) -> None:
    """Celery's task_compression keeps working, with the task in the headers or without."""
    publish(server, [1], compression=method)
    publish(server, [2], compression=method, headers={"task": "t", "id": "1"})
    assert consuming.take(2) == [1, 2]
    assert "compression" in consuming.got[0].headers
    consuming.ack_all()
    assert remaining(client) == set()


def test_a_decompression_bomb_is_refused_unopened(
    server: EmbeddedServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that grows beyond the bound goes to the dead letters, and its text to no log."""
    with Consuming(server.url, options={"max_message_bytes": 1_000}) as consuming:
        with kombu.Connection(server.url) as connection:
            bomb = "secret" * 1_000
            connection.Producer().publish(bomb, routing_key="golem", compression="zlib")
        publish(server, [1])
        assert consuming.take(1) == [1]
        consuming.ack_all()
    assert client.llen("golem:dead:envelopes") == 1
    assert remaining(client) == {"golem:dead:envelopes"}
    assert "decompresses to more than 1000 bytes" in caplog.text
    assert "secret" not in caplog.text


def test_a_message_nobody_could_be_told_of_comes_again(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """It is buried once its producer has been told; until then it stays, and the rest flows."""
    told: list[Any] = []

    def tell(payload: Any, reason: str, bury: Callable[[], None]) -> None:
        told.append((payload["headers"]["id"], reason))
        if len(told) == 1:
            raise redis.exceptions.OutOfMemoryError("no room")
        bury()

    with Consuming(server.url) as consuming:
        consuming.transport.unfit = tell
        with kombu.Connection(server.url) as connection:
            headers = {"id": "x", "task": "t", "compression": "application/x-gzip"}
            connection.Producer().publish("not zipped", routing_key="golem", headers=headers)
        publish(server, [1])
        assert consuming.take(1) == [1]
        assert client.llen("golem:dead:envelopes") == 0
        client.zadd("unacked_index", dict.fromkeys(client.hkeys("unacked"), 1))  # its lease ends
        consuming.qos.restore_visible()
        consuming.turn_until(lambda: client.llen("golem:dead:envelopes"), "its burial")
        consuming.ack_all()
    assert told == [("x", "its body can't be decompressed")] * 2
    assert client.llen("golem:dead:envelopes") == 1
    assert not client.exists("golem", "unacked", "unacked_index")


def test_refusing_a_message_needs_no_memory() -> None:
    """A full server, too, moves an unreadable message away and hands out the rest."""
    with EmbeddedServer() as server, server.client() as client:
        client.lpush("golem", b'{"headers": [1], "properties":'
                     b' {"delivery_tag": "t", "delivery_info": {}}}')  # fmt: skip
        publish(server, [1])
        client.config_set("maxmemory", 1)
        with Consuming(server.url) as consuming:
            assert consuming.take(1) == [1]
            consuming.ack_all()
        assert remaining(client) == {"golem:dead:envelopes"}


def test_half_a_surrogate_pair_is_no_poison(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    r"""A header cut in the middle of an emoji reads as it would in stock kombu."""
    publish(server, [1], headers={"note": "\ud83d", "path": "\\ud83d\\"})
    raw = json.loads(client.lrange("golem", 0, 0)[0])
    client.delete("golem")
    client.lpush("golem", json.dumps({**raw, "headers": raw["headers"], "last": "\ud83d"}))
    assert consuming.take(1) == [1]
    assert consuming.got[0].headers["note"] == "\ud83d"
    consuming.ack_all()
    assert remaining(client) == set()


def test_the_dead_letters_are_capped(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A producer gone wild fills a list of fixed length, not the server."""
    client.rpush("golem", *[b"junk"] * (DEAD_ENTRIES + 200))
    publish(server, [1])
    assert consuming.take(1) == [1]
    assert client.llen("golem:dead:envelopes") == DEAD_ENTRIES


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


# Acknowledging


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
            wait_until(lambda: connection.drain_events(timeout=5) or len(got) == 50, "all of them")
            assert client.hlen("unacked") == 0
            publish(server, [50])
            wait_until(lambda: connection.drain_events(timeout=5) or len(got) == 51, "one more")
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


# Leases


def test_a_renewed_message_is_not_taken_for_abandoned(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A sweep by another worker leaves alone what a living one holds, and takes what a dead did."""
    publish(server, [1])
    consuming.take(1)
    tag = consuming.got[0].delivery_tag
    first = client.zscore("golem:leases", tag)
    with Consuming(server.url, queues=()) as other:
        consuming.qos.renew()
        assert client.zscore("unacked_index", tag) == client.zscore("golem:leases", tag) > first
        other.qos.restore_visible(interval=1)
        assert client.hexists("unacked", tag)
        end_leases(client, tag)
        other.qos.restore_visible(interval=1)
        assert not client.hexists("unacked", tag)
    assert client.llen("golem") == 1
    assert not client.exists("unacked_index", "golem:leases")
    consuming.qos._delivered.clear()


def test_leases_are_renewed_while_the_event_loop_is_busy(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """A loop that doesn't turn, as in a long callback, costs no lease."""
    with Consuming(server.url, options={"lease_s": 2}) as consuming:
        publish(server, [1])
        consuming.take(1)
        tag = consuming.got[0].delivery_tag
        first = client.zscore("unacked_index", tag)
        wait_until(lambda: client.zscore("unacked_index", tag) > first + 1, "some renewals")
        consuming.ack_all()
    assert client.hlen("unacked") == 0


def test_one_whose_message_was_taken_over_lets_it_go(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """It is told, drops the message, and touches neither the other's lease nor its record."""
    publish(server, [1, 2])
    consuming.take(2)
    taken, kept = (message.delivery_tag for message in consuming.got)
    told: set[str] = set()
    consuming.transport.on_lost = told.update
    end_leases(client, taken)
    with Consuming(server.url) as other:
        other.qos.restore_visible(interval=1)
        assert other.take(1) == [1]
        lease = client.zscore("unacked_index", taken)
        consuming.qos.renew()
        consuming.turn_until(lambda: told, "the loss to be told")
        assert told == {taken}
        consuming.close()
        assert client.zscore("unacked_index", taken) == lease
        assert client.hexists("unacked", taken)
        assert not client.hexists("unacked", kept)
        assert other.take(2) == [1, 2]
        other.ack_all()
    assert client.hlen("unacked") == 0


@pytest.mark.parametrize("arrives", [True, False])
def test_a_renewal_whose_reply_is_lost_takes_nothing_from_another_worker(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """Cut off for longer than its lease, a worker lets go of what another has, and of no more."""
    with Consuming(server.url, options={"lease_s": 1}) as consuming:
        told: set[str] = set()
        consuming.transport.on_lost = told.update
        publish(server, [1, 2])
        consuming.take(2)
        taken, kept = (message.delivery_tag for message in consuming.got)
        asked = threading.Event()

        def cut_off(*sent: Any) -> None:
            if arrives and not asked.is_set():
                type(consuming.channel).run_leasing(consuming.channel, *sent)
            asked.set()
            raise redis.exceptions.ConnectionError("the reply is lost")

        monkeypatch.setattr(consuming.channel, "run_leasing", cut_off)
        consuming.turn_until(asked.is_set, "a renewal")
        wait_until(lambda: over(client, taken), "the lease to end")
        client.zadd("golem:leases", {kept: 2e9})  # nobody else takes this one
        client.zadd("unacked_index", {kept: 2e9})
        with Consuming(server.url) as other:
            other.qos.restore_visible(interval=1)
            assert other.take(1) == [1]
            lease = client.zscore("unacked_index", taken)
            consuming.got[1].leased_until = "2000000000.000000"
            monkeypatch.undo()
            consuming.qos.renew()
            assert client.zscore("unacked_index", taken) == lease
            assert client.zscore("unacked_index", kept) < 2e9
            consuming.turn_until(lambda: told, "the loss to be told")
            assert told == {taken}
            other.ack_all()
        consuming.got[1].ack()
    assert client.hlen("unacked") == 0


def over(client: redis.Redis, tag: str) -> bool:
    """Whether a lease has ended, by the server's clock."""
    seconds, micros = client.time()
    return bool(client.zscore("golem:leases", tag) < seconds + micros / 1e6)


def test_a_renewal_whose_reply_is_lost_keeps_what_is_still_its_own(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Come through or not: the next one finds the message its own, and so does giving it back."""
    with Consuming(server.url) as consuming:
        publish(server, [1, 2])
        consuming.take(2)
        real, first = (
            consuming.channel.run_leasing,
            client.zscore("golem:leases", tag_of(consuming)),
        )

        def reply_lost(*sent: Any) -> None:
            real(*sent)
            raise redis.exceptions.ConnectionError("the reply is lost")

        with monkeypatch.context() as patch:
            patch.setattr(consuming.channel, "run_leasing", reply_lost)
            with pytest.raises(redis.exceptions.ConnectionError):
                consuming.qos.renew()
        second = client.zscore("golem:leases", tag_of(consuming))
        assert second > first
        consuming.qos.renew()
        assert client.zscore("golem:leases", tag_of(consuming)) > second
        with monkeypatch.context() as patch:
            patch.setattr(consuming.channel, "run_leasing", reply_lost)
            with pytest.raises(redis.exceptions.ConnectionError):
                consuming.qos.renew()
        held = consuming.die()
    with Consuming(server.url, queues=()) as new:
        assert new.qos.adopt(held, [tag_of(consuming)]) == set()
        assert client.llen("golem") == 1
        consuming.got[0].ack()
    assert client.hlen("unacked") == 0


def tag_of(consuming: Consuming) -> str:
    """The delivery tag of the first message."""
    return str(consuming.got[0].delivery_tag)


def test_stock_workers_let_be_what_a_living_worker_holds(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """However short a stock worker's visibility timeout, what we renew isn't overdue for it."""
    publish(server, [1])
    consuming.take(1)
    stock_channel(server, visibility_timeout=0).qos.restore_visible(interval=1)
    assert client.hexists("unacked", consuming.got[0].delivery_tag)
    consuming.ack_all()


def test_we_let_be_what_a_stock_worker_holds(server: EmbeddedServer, client: redis.Redis) -> None:
    """Its messages, never renewed, outlive any number of our leases."""
    publish(server, [1])
    message = stock_channel(server).basic_get("golem")
    options = {"lease_s": 5, "visibility_timeout": 3600}
    with Consuming(server.url, queues=(), options=options) as consuming:
        client.zadd("unacked_index", {message.delivery_tag: client.time()[0] - 3_000})
        consuming.qos.restore_visible(interval=1)
        assert client.hexists("unacked", message.delivery_tag)
    message.ack()
    assert remaining(client) == set()


def test_a_lease_says_nothing_of_a_stock_worker_that_took_over(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A message a stock worker restored and took is judged by its own delivery."""
    publish(server, [1])
    consuming.take(1)
    tag = consuming.got[0].delivery_tag
    consuming.qos._delivered.clear()  # it is dead
    end_leases(client, tag)
    channel = stock_channel(server, visibility_timeout=0)
    channel.qos.restore_visible(interval=1)
    message = channel.basic_get("golem")
    assert message.delivery_tag == tag
    assert client.zcard("golem:leases") == 1
    consuming.qos.restore_visible(interval=1)
    assert client.hexists("unacked", tag)
    assert client.zcard("golem:leases") == 0
    message.ack()
    assert client.hlen("unacked") == 0


def test_after_a_silence_every_lease_begins_anew(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A server that was away for longer than a lease gives its workers one lease to come back."""
    publish(server, [1])
    consuming.take(1)
    tag = consuming.got[0].delivery_tag
    with Consuming(server.url, queues=()) as other:
        other.qos.restore_visible(interval=1)
        silence = other.qos.leases.silence
        silence.heard_s -= 100  # as if the server had hung for so long since then
        end_leases(client, tag)
        other.qos.restore_visible(interval=1)
        assert client.hexists("unacked", tag)
        assert silence.until_s >= client.time()[0] + OPTIONS["lease_s"] - 1
        silence.until_s = 0
        other.qos.restore_visible(interval=1)
        assert not client.hexists("unacked", tag)
    consuming.qos._delivered.clear()


def test_a_sweep_restores_any_number_in_order(
    server: EmbeddedServer, client: redis.Redis, consuming: Consuming
) -> None:
    """A thousand abandoned messages come back in their original order by one sweep."""
    publish(server, range(1_000))
    consuming.take(1_000)
    consuming.qos._delivered.clear()  # it is dead: no renewal, nothing goes back at its end
    for place, message in enumerate(consuming.got):
        client.zadd("unacked_index", {message.delivery_tag: place})
    consuming.consumer.cancel()
    with Consuming(server.url) as other:
        assert other.take(1_000) == list(range(1_000))
        other.ack_all()


def test_one_worker_sweeps_at_a_time(client: redis.Redis, consuming: Consuming) -> None:
    """While another holds kombu's mutex nothing is swept, and a stale index entry goes later."""
    client.zadd("unacked_index", {"ghost": 1})
    client.set("unacked_mutex", "another", ex=60)
    consuming.qos.restore_visible(interval=1)
    assert client.zcard("unacked_index") == 1
    client.delete("unacked_mutex")
    consuming.qos.restore_visible(interval=1)
    assert client.zcard("unacked_index") == 0
    assert client.get("unacked_mutex") is None


def test_a_message_of_a_vanished_exchange_is_kept(
    client: redis.Redis, consuming: Consuming
) -> None:
    """Stock forgets an abandoned message that no queue is bound for; ours keeps it for a look."""
    record = json.dumps([{"body": "", "headers": {}, "properties": {}}, "gone", "nowhere"])
    client.hset("unacked", "t", record)
    client.zadd("unacked_index", {"t": 1})
    consuming.qos.restore_visible(interval=1)
    assert client.hlen("unacked") == 0
    assert client.llen("golem:dead:envelopes") == 1


def test_odd_records_keep_nothing_else_from_being_restored(
    client: redis.Redis, consuming: Consuming
) -> None:
    """A sweep restores what it can; what belongs nowhere goes to the dead letters."""
    odd = [
        b"", b"{", b"[1]", b'[{}, ["x"], "golem"]', b'[{}, {"x": 1}, "golem"]', b'[{}, "", 7]',
        b'[{}, "", "\\ud800"]', b'[{}, "", "unacked"]', b'[{}, "", "unacked_index"]',
    ]  # fmt: skip
    priorities = [float("inf"), float("-inf"), float("nan"), "x", [], None, 10**400]
    records: dict[Any, Any] = {b"odd%d\xff" % place: record for place, record in enumerate(odd)}
    for place, priority in enumerate(priorities):
        message = {"properties": {"delivery_info": {}, "priority": priority}}
        records[f"good{place}"] = json.dumps([message, "", "golem"])
    client.hset("unacked", mapping=records)
    client.zadd("unacked_index", dict.fromkeys(records, 1))
    consuming.qos.restore_visible(interval=1)
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0
    assert client.llen("golem:dead:envelopes") == len(odd)
    assert sum(client.llen(name) for name in consuming.channel.lists()) == len(priorities)


def test_a_record_for_a_forbidden_list_is_buried_alone(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """A user limited to some keys still restores what goes to them."""
    keys = ["golem*", "unacked*", "_kombu*"]
    client.acl_setuser("some", enabled=True, nopass=True, commands=["+@all"], keys=keys,
                       channels=["*"], reset=True)  # fmt: skip
    message = {"body": "", "headers": {}, "properties": {"delivery_info": {}}}
    for number, key in enumerate(["golem", "forbidden", "golem"]):
        client.hset("unacked", f"t{number}", json.dumps([message, "", key]))
        client.zadd("unacked_index", {f"t{number}": 1})
    try:
        with Consuming(f"redis://some:x@127.0.0.1:{server.port}/0", queues=()) as consuming:
            consuming.qos.restore_visible(interval=1)
    finally:
        client.acl_deluser("some")
    assert (client.llen("golem"), client.llen("golem:dead:envelopes")) == (2, 1)
    assert client.hlen("unacked") == 0


def test_a_sweep_refused_for_memory_is_tried_at_the_next_call() -> None:
    """A full server keeps what its dead workers left, and the lease of what is held is renewed."""
    with EmbeddedServer() as server, server.client() as client, Consuming(server.url) as consuming:
        publish(server, [1, 2])
        consuming.take(2)
        abandoned, kept = (message.delivery_tag for message in consuming.got)
        consuming.qos._delivered.pop(abandoned)
        end_leases(client, abandoned)
        before = client.zscore("unacked_index", kept)
        client.config_set("maxmemory", 1)
        consuming.qos._vrestore_count = 0  # of ten calls, the first sweeps
        consuming.qos.restore_visible()
        consuming.qos.renew()
        assert client.zscore("unacked_index", kept) == client.zscore("golem:leases", kept) > before
        assert client.hexists("unacked", abandoned)
        client.config_set("maxmemory", 0)
        consuming.qos.restore_visible()
        assert not client.hexists("unacked", abandoned)
        assert consuming.take(3) == [1, 2, 1]
        consuming.got[1].ack()
        consuming.got[2].ack()


# Connections that end


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
    client.expire("golem:fetch:old", 5)
    for _ in range(2):
        assert client.eval(script("fence"), 1, "golem:fetch:old", 60) == [b"tag"]
        assert 0 < client.ttl("golem:fetch:old") <= 5


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


# Servers and users of every kind


@pytest.mark.parametrize(
    "allowed",
    [
        {"commands": ["+@all", "-evalsha"], "keys": ["*"]},
        {"commands": ["+@all", "-exists"], "keys": ["*"]},
        {"commands": ["+@all", "-zadd", "+zadd"], "keys": ["golem", "golem?*[0-9]", "golem.bulk*",
                                                           "unacked*", "_kombu*"]},
    ],
    ids=["no scripts", "no question", "no keys of ours"],
)  # fmt: skip
def test_a_user_who_may_not_do_it_works_as_stock(
    server: EmbeddedServer,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    allowed: dict[str, Any],
) -> None:
    """One clear sentence, then message by message as in stock Celery; nothing is lost."""
    client.acl_setuser("plain", enabled=True, nopass=True, channels=["*"], reset=True, **allowed)
    publish(server, range(5))
    try:
        with Consuming(f"redis://plain:x@127.0.0.1:{server.port}/0") as consuming:
            assert consuming.take(3)[:3] == [0, 1, 2]
            consuming.got[0].reject(requeue=True)
            assert consuming.take(6) == [0, 1, 2, 3, 4, 0]
            consuming.qos.renew()
            for message in consuming.got[1:4]:
                message.ack()
        assert client.llen("golem") == 2
        assert client.hlen("unacked") == 0
    finally:
        client.acl_deluser("plain")
    assert len([r for r in caplog.records if "as stock Celery does" in r.getMessage()]) == 1


def test_a_user_who_may_not_track_is_served_by_asking(
    server: EmbeddedServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Without client tracking an idle worker asks; fetches stay atomic and batched."""
    client.acl_setuser("mute", enabled=True, nopass=True, commands=["+@all", "-client|tracking"],
                       keys=["*"], channels=["*"], reset=True)  # fmt: skip
    try:
        with Consuming(f"redis://mute:x@127.0.0.1:{server.port}/0") as consuming:
            consuming.turn_until(lambda: consuming.channel.fetcher.must_poll, "it to wait")
            publish(server, range(5), "golem.bulk")
            assert consuming.take(5) == list(range(5))
            consuming.ack_all()
    finally:
        client.acl_deluser("mute")
    assert len([r for r in caplog.records if "CLIENT TRACKING" in r.getMessage()]) == 1


def test_a_server_at_its_memory_limit_still_hands_out_work() -> None:
    """Taking and acknowledging work is what frees memory, so it must not be refused."""
    with EmbeddedServer() as server, server.client() as client:
        publish(server, range(20))
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
            client.set("x", "y")
        with Consuming(server.url) as consuming:
            assert consuming.take(20) == list(range(20))
            consuming.ack_all()
            assert client.hlen("unacked") == 0


def test_a_server_that_refuses_for_a_while_is_asked_again() -> None:
    """A complaint such as a full disk pauses the worker instead of ending it."""
    with EmbeddedServer() as server, server.client() as client, Consuming(server.url) as consuming:
        consuming.turn_until(lambda: consuming.channel.fetcher._armed, "the consumer to wait")
        client.set("unacked", "not a hash")
        publish(server, [1])
        consuming.turn_until(lambda: consuming.channel.fetcher._complaint, "the complaint")
        client.delete("unacked")
        assert consuming.take(1) == [1]


def test_a_unix_socket_works() -> None:
    """Both spellings of the URL reach the server's socket."""
    with EmbeddedServer(arguments=["--unixsocket", "redis.sock"]) as server:
        path = server.folder / "redis.sock"
        for url in (f"unix://{path}", f"redis+socket://{path}?virtual_host=0"):
            publish(server, [1, 2])
            with Consuming(url) as consuming:
                assert consuming.take(2) == [1, 2]
                consuming.ack_all()


@contextmanager
def _sentinel(file: Path) -> Iterator[int]:
    """A Sentinel process; its port."""
    port = free_port()
    guard = guarded([server_binary(), str(file), "--sentinel", "--port", str(port)])
    assert guard.stdin is not None
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: _answers(client), "the Sentinel to start")
        yield port
    finally:
        guard.stdin.close()
        guard.wait(20)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


def test_sentinel_works(tmp_path: Path) -> None:
    """Fetching and acknowledging work through a server that Sentinel names."""
    with EmbeddedServer() as server, server.client() as client:
        file = tmp_path / "sentinel.conf"
        file.write_text(f"sentinel monitor golem 127.0.0.1 {server.port} 1\n")
        with _sentinel(file) as port:
            publish(server, range(5))
            url, options = f"sentinel://127.0.0.1:{port}/0", {"master_name": "golem"}
            with Consuming(url, options=options) as consuming:
                assert isinstance(consuming.channel, stock.SentinelChannel)
                assert consuming.take(5) == list(range(5))
                consuming.ack_all()
                assert client.hlen("unacked") == 0
