"""Leases: what a living worker holds stays its own, what a dead one held doesn't."""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty
from typing import Any

import pytest
import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    OPTIONS,
    Consuming,
    end_leases,
    numbers,
    publish,
    remaining,
    stock_channel,
)
from tests.support.waiting import wait_until


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
    options = {"lease_s": 2, "unacked_restore_interval": 100}  # or it would sweep up its own
    with Consuming(server.url, options=options) as consuming:
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


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_fetch_read_after_its_leases_have_ended(
    server: EmbeddedServer, client: redis.Redis, taken_over: bool
) -> None:
    """A process stopped between fetch and reply takes what is still its own, and nothing else."""
    options = {"lease_s": 1, "unacked_restore_interval": 100}
    with (
        Consuming(server.url, consume=False) as other,
        Consuming(server.url, options=options) as consuming,
    ):
        fetcher = consuming.channel.fetcher
        consuming.turn_until(lambda: fetcher.engaged and not fetcher.owed, "it to be idle")
        publish(server, [1, 2])
        with suppress(Empty):
            consuming.channel._brpop_read()  # is told of them
        consuming.channel._brpop_start()
        tags = set(wait_until(lambda: client.hkeys("unacked"), "the fetch"))
        wait_until(lambda: all(over(client, tag) for tag in tags), "the leases to end")
        ended = {tag: client.zscore("golem:leases", tag) for tag in tags}
        if taken_over:
            other.qos.restore_visible(interval=1)
            other.consumer.consume()
            assert sorted(other.take(2)) == [1, 2]
        consuming.turn_until(lambda: not fetcher.fetching, "the reply")
        assert numbers(consuming.got) == ([] if taken_over else [1, 2])
        assert len(consuming.qos._delivered) == len(consuming.got)
        assert set(client.hkeys("unacked")) == tags
        # Begun anew; whether that is over as well by now is a question of the machine.
        assert all(client.zscore("golem:leases", tag) > ended[tag] for tag in tags)
        other.ack_all()
        consuming.ack_all()
    assert client.hlen("unacked") == 0


@pytest.mark.parametrize("arrives", [True, False])
def test_a_renewal_whose_reply_is_lost_takes_nothing_from_another_worker(
    server: EmbeddedServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """Cut off for longer than its lease, a worker lets go of what another has, and of no more."""
    options = {"lease_s": 1, "unacked_restore_interval": 100}  # or it would sweep up its own
    with Consuming(server.url, options=options) as consuming:
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
        back_s = client.time()[0]
        other.qos.restore_visible(interval=1)
        assert client.hexists("unacked", tag)
        assert silence.until_s >= back_s + OPTIONS["lease_s"]
        silence.until_s = 0
        other.qos.restore_visible(interval=1)
        assert not client.hexists("unacked", tag)
    consuming.qos._delivered.clear()
