"""Servers and users of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.transport import redis as stock

from golem_tasks.embedded import EmbeddedServer, free_port, server_binary
from golem_tasks.guard import guarded
from tests.support.consuming import (
    Consuming,
    publish,
)
from tests.support.waiting import wait_until


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
