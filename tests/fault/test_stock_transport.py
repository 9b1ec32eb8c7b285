"""Numbered scenarios with GOLEM_TRANSPORT=stock: what such a worker holds outlives its connection.

A worker of stock Celery 5.7.0 that holds a message ends when its Redis is restarted. What kombu has
taken from a queue and not yet recorded is lost with the connection; so the queue is empty when a
scenario begins, and the worker asks for more.
"""

from pathlib import Path

from celery import Celery
from celery.result import AsyncResult

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    producer_for,
    send,
    send_all,
)
from tests.support.waiting import wait_until

KEEPS_DATA = True
STOCK = {"GOLEM_TRANSPORT": "stock", "GOLEM_MAX_ROWS": "20"}


def holds(server: EmbeddedServer, count: int) -> bool:
    """Whether so many messages are recorded as unacknowledged, and none is in the queue."""
    with server.client() as client:
        return bool(client.hlen("unacked") == count) and not client.exists("golem")


def test_1_a_reset_of_every_connection(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """Done: all connections are cut while a batch runs and others wait.

    Must hold: the same worker goes on with what it holds; every job is computed and answered once.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(30)]
    ids = [result.id for result in send_all(app, texts)]
    with FakeWorker(tmp_path, alone, **STOCK) as worker:
        wait_until(lambda: jobs_of(app, "active"), "the batch to run")
        wait_until(lambda: holds(alone, 31), "the worker to hold all")
        pid = worker.pid
        with alone.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: "Connected to Redis again" in worker.text, "the worker to connect")
        go.touch()
        later = producer_for(alone)
        check([AsyncResult(task_id, app=later) for task_id in ids], texts)
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert worker.pid == pid
        assert worker.runs == dict.fromkeys(texts, 1)


def test_2_redis_killed_and_restarted(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """Done: SIGKILL of Redis while a batch runs, others wait, and one job waits for its time.

    The batch ends while Redis is away. Must hold: the worker doesn't end, as one of stock Celery
    does; every job is computed, answered and acknowledged once; the last waits for its time again.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(30)]
    send(app, "in time", countdown=600)
    ids = [result.id for result in send_all(app, texts)]
    with FakeWorker(tmp_path, alone, **STOCK) as worker:
        wait_until(lambda: jobs_of(app, "scheduled"), "the first to wait for its time")
        wait_until(lambda: jobs_of(app, "active"), "the batch to run")
        wait_until(lambda: holds(alone, 32), "the worker to hold all")
        pid = worker.pid
        alone.kill()
        wait_until(lambda: "The next try is in" in worker.text, "the worker to miss its Redis")
        go.touch()
        wait_until(lambda: texts[0] in worker.runs, "the batch to be computed")
        alone.start()
        later = producer_for(alone)
        check([AsyncResult(task_id, app=later) for task_id in ids], texts)
        assert "1 put back into the queue" in worker.text
        wait_until(lambda: holds(alone, 1), "the first to wait again, alone")
        assert worker.pid == pid
        assert worker.runs == dict.fromkeys(texts, 1)
    with alone.client() as client:
        assert client.llen("golem") == 1
        assert not client.exists("unacked", "unacked_index")
