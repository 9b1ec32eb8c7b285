"""Sweeps, which put back what dead workers held."""

from __future__ import annotations

import json
from typing import Any

import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    Consuming,
    end_leases,
    publish,
)


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
