"""Messages no consumer can use, and those that only look so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import kombu
import pytest
import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    Consuming,
    publish,
    remaining,
)
from tests.support.waiting import wait_until
from worker.transport import Room
from worker.transport.keys import DEAD_ENTRIES


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


def test_what_waits_to_be_buried_is_told_of_once_and_kept_by_its_ends(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """However often its lease ends meanwhile, and though the connection has gone by then."""
    told: list[Any] = []
    giant = "x" * 300_000
    with Consuming(server.url, options={"max_message_bytes": 1_000}) as consuming:
        consuming.transport.unfit = lambda payload, _, bury: told.append((payload, bury))
        with kombu.Connection(server.url) as connection:
            headers = {"id": "x", "task": "t"}
            connection.Producer().publish(giant, routing_key="golem", headers=headers)
        consuming.turn_until(lambda: told, "the worker to be told")
        for number in (1, 2):
            client.zadd("unacked_index", dict.fromkeys(client.hkeys("unacked"), 1))
            consuming.qos.restore_visible()
            publish(server, [number])  # behind the giant, which is here again by then
            assert consuming.take(number) == list(range(1, number + 1))
            consuming.ack_all()
        [(payload, bury)] = told
        assert payload["headers"]["id"] == "x"
        tag, raw = bury.args
        assert len(raw) < 100_000
        assert tag in consuming.channel._unfit
        bury()
        assert tag not in consuming.channel._unfit
        assert client.lrange("golem:dead:envelopes", 0, -1) == [raw]
    bury()  # of a connection that is gone by now
    assert remaining(client) == {"golem:dead:envelopes"}
    assert client.llen("golem:dead:envelopes") == 1


@pytest.mark.parametrize("room", [Room(10), Room(1_000, bytes=640)])
def test_unreadable_messages_take_room(
    server: EmbeddedServer, client: redis.Redis, caplog: pytest.LogCaptureFixture, room: Room
) -> None:
    """A flood of them comes in as small portions as any; what is behind them is delivered."""
    client.lpush("golem", *[b"{"] * 100)
    publish(server, [1])
    with Consuming(server.url, room=lambda: room) as consuming:
        assert consuming.take(1) == [1]
        consuming.ack_all()
    told = [each.args for each in caplog.records if "no Celery messages" in each.getMessage()]
    counts = [each[0] for each in told if isinstance(each, tuple)]
    assert sum(int(str(count)) for count in counts) == 100
    assert max(int(str(count)) for count in counts) <= 10


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
