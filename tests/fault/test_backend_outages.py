"""The result backend, on a server of its own, is away or hangs while the broker is well."""

import os
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from golem_tasks import PoisonJob
from golem_tasks.embedded import EmbeddedServer
from tests.integration.test_hostile import envelope
from tests.support.fake_workers import (
    W1,
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    send,
    send_all,
)
from tests.support.outages import hung
from tests.support.waiting import wait_until

KEEPS_DATA = True
LEASE = {"GOLEM_LEASE_S": "5"}


@pytest.fixture
def backend() -> Iterator[EmbeddedServer]:
    """A server for the answers alone, which keeps them over a crash."""
    with EmbeddedServer(appendonly=True) as server:
        yield server


@contextmanager
def killed(server: EmbeddedServer) -> Iterator[None]:
    """Kill a server, and start it again."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def away(server: EmbeddedServer, how: str) -> Iterator[None]:
    """Take a server away and give it back."""
    with killed(server) if how == "killed" else hung(server.pid):
        yield


def producer(broker: EmbeddedServer, backend: EmbeddedServer) -> Celery:
    """A stock producer on both."""
    return Celery(broker=broker.url, backend=backend.url, set_as_current=False)


def lease_of(broker: EmbeddedServer) -> float:
    """When the lease of the job held longest was last begun, by the server's clock."""
    with broker.client() as client:
        return min(score for _, score in client.zrange("unacked_index", 0, -1, withscores=True))  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_1_what_the_parent_records_waits_without_holding_it_up(
    tmp_path: Path, alone: EmbeddedServer, backend: EmbeddedServer, how: str
) -> None:
    """Done: the backend goes while a job hangs; its hard limit passes, another job is revoked.

    Must hold: the worker's event loop never waits (it answers pings and renews leases); once the
    backend is back the limit's failure, the revocation and the good answers are all there, the
    failed job's errback ran once, and nothing was computed twice.
    """
    app = producer(alone, backend)
    errback = app.signature("golem.classify", ["what failed"], immutable=True, queue="golem")
    good = numbered(10)
    settings = {"GOLEM_RESULT_BACKEND": backend.url, "GOLEM_SOCKET_TIMEOUT_S": "2", **LEASE}
    hanging = send(app, "hang", time_limit=6, link_error=errback).id
    with FakeWorker(tmp_path, alone, **settings) as worker:
        wait_until(lambda: jobs_of(app, "active"), "the job to hang")
        unwanted, *ids = [result.id for result in send_all(app, ["unwanted", *good])]
        with away(backend, how):
            app.control.revoke(unwanted, **W1)
            wait_until(lambda: "Hard time limit" in worker.text, "the limit to pass")
            wait_until(lambda: "can't be stored" in worker.text, "a try to fail")
            began = lease_of(alone)
            wait_until(lambda: lease_of(alone) > began, "the leases to be renewed")
            assert app.control.ping(["w1@test"], timeout=30) == [{"w1@test": {"ok": "pong"}}]
        later = producer(alone, backend)
        with pytest.raises(TimeLimitExceeded):
            later.AsyncResult(hanging).get(timeout=60)
        with pytest.raises(TaskRevokedError, match="revoked"):
            later.AsyncResult(unwanted).get(timeout=60)
        check([later.AsyncResult(task_id) for task_id in ids], good)
        wait_until(lambda: "what failed" in worker.runs, "the errback to run")
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert worker.runs == dict.fromkeys([*good, "what failed"], 1)


def test_2_a_child_dies_while_nobody_can_tell_what_it_had_stored(
    tmp_path: Path, alone: EmbeddedServer, backend: EmbeddedServer
) -> None:
    """Done: the backend is killed, then the process that computes; then the worker is stopped.

    Must hold: the worker waits for the backend before it runs anything again, leaves in good order
    when told to, and the next one answers every job.
    """
    app = producer(alone, backend)
    go = tmp_path / "go"
    texts = [*numbered(20), f"until:{go}"]
    ids = [result.id for result in send_all(app, texts)]
    settings = {"GOLEM_RESULT_BACKEND": backend.url}
    first = FakeWorker(tmp_path, alone, **settings).start()
    wait_until(lambda: len(jobs_of(app, "active")) == 21, "the batch to run")
    with killed(backend):
        os.kill(first.children[0], signal.SIGKILL)
        go.touch()
        wait_until(lambda: "can't be stored" in first.text, "the worker to ask in vain")
        assert app.control.ping(["w1@test"], timeout=30) == [{"w1@test": {"ok": "pong"}}]
        assert first.stop() == 0
        with alone.client() as client:
            assert client.llen("golem") == 21
            assert not client.exists("unacked", "unacked_index")
    with FakeWorker(tmp_path, alone, name="w2", **settings) as second:
        later = producer(alone, backend)
        check([later.AsyncResult(task_id) for task_id in ids], texts)
        assert first.runs + second.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)


def test_3_the_broker_is_away_while_the_backend_is_well(
    tmp_path: Path, alone: EmbeddedServer, backend: EmbeddedServer
) -> None:
    """Done: the broker is killed during a batch that holds a poisonous job, and comes back.

    Must hold: answers are stored meanwhile; after its return everything is acknowledged, the
    poisonous job alone fails, and nobody's answer was computed twice.
    """
    app = producer(alone, backend)
    go = tmp_path / "go"
    texts = [*numbered(20), f"until:{go}"]
    ids = [result.id for result in send_all(app, texts)]
    settings = {"GOLEM_RESULT_BACKEND": backend.url}
    with FakeWorker(tmp_path, alone, **settings) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 21, "the batch to run")
        poison = send(app, "kill").id
        later = producer(alone, backend)
        with killed(alone):
            go.touch()
            check([later.AsyncResult(task_id) for task_id in ids], texts)
        with pytest.raises(PoisonJob):
            later.AsyncResult(poison).get(timeout=60)
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert worker.runs == dict.fromkeys(texts, 1)


def test_4_a_worker_killed_before_it_could_tell_of_an_unreadable_message(
    tmp_path: Path, alone: EmbeddedServer, backend: EmbeddedServer
) -> None:
    """Done: a decompression bomb comes while the backend is away; SIGKILL of the worker.

    Must hold: the next worker fails the bomb's job, and the message is buried once.
    """
    settings = {"GOLEM_RESULT_BACKEND": backend.url, **LEASE}
    bomb = envelope(zlib.compress(b"x" * 64_000_000), {"compression": "application/x-gzip"}, "bomb")
    worker = FakeWorker(tmp_path, alone, **settings).start()
    with killed(backend), alone.client() as client:
        client.lpush("golem", bomb)
        wait_until(lambda: "'bomb', which fails" in worker.text, "the bomb to be refused")
        worker.signal(signal.SIGKILL)
        worker.wait()
    with FakeWorker(tmp_path, alone, name="w2", **settings), alone.client() as client:
        app = producer(alone, backend)
        wait_until(lambda: app.AsyncResult("bomb").state == "FAILURE", "its producer to be told")
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert client.llen("golem:dead:envelopes") == 1
