"""Numbered scenarios of leaving: signals sent to a worker, and what must hold for its jobs.

Each compares every answer with the expected one, and counts runs of a text by the engine's log.
"""

import os
import signal
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from golem_tasks.embedded import EmbeddedServer
from tests.support.answers import messages
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    producer_for,
    send_all,
)
from tests.support.outages import hung
from tests.support.waiting import wait_until
from tests.support.workers import running

SHORT = {"GOLEM_LEASE_S": "5"}
SHARED = {"GOLEM_LEASE_S": "8"}
"""Beside another worker, which takes over what one too slow to renew it holds."""
WARM = "worker: Warm shutdown"
TWICE = "told twice, so leaving at once"


class Load:
    """Jobs of which a worker computes a batch, until told to go on, and buffers another."""

    def __init__(self, folder: Path, server: EmbeddedServer, app: Celery) -> None:
        self.go = folder / "go"
        self.texts = [*(f"text {number}" for number in range(9)), f"until:{self.go}"]
        self.texts += [f"text {number}" for number in range(10, 40)]
        self._server = server
        self.results = send_all(app, self.texts)

    def on(self, worker: FakeWorker) -> None:
        """Return once the worker computes the first ten and holds as many again."""
        with self._server.client() as client:
            wait_until(lambda: client.hlen("unacked") >= 20, "a batch to run and one to wait")
        wait_until(lambda: len(jobs_of(self.results[0].app, "active")) == 10, "the batch to run")
        assert worker.alive

    def waiting(self) -> list[str]:
        """Ids of the jobs in the queue, the next one first."""
        with self._server.client() as client:
            assert not client.exists("unacked", "unacked_index", "golem:leases")
            return [message["headers"]["id"] for message in messages(client)]

    def finish(self, *before: FakeWorker, folder: Path) -> None:
        """Let another worker do the rest; everything is right, and was run once."""
        self.go.touch()
        with FakeWorker(folder, self._server, name="last") as last:
            check(self.results, self.texts)
            ran = sum((worker.runs for worker in before), last.runs)
            assert ran == dict.fromkeys(self.texts, 1)
        assert self.waiting() == []


def leaving(folder: Path, server: EmbeddedServer, **settings: str) -> FakeWorker:
    """The worker that is told to leave."""
    return FakeWorker(folder, server, GOLEM_MAX_ROWS="10", **settings).start()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_1_the_same_signal_twice(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, number: signal.Signals, code: int
) -> None:
    """It leaves at once, without its batch; every job is back in the queue, in its place.

    Where Redis is too slow to take them all back in a moment, their leases bring them.
    """
    load = Load(tmp_path, alone, app)
    worker = leaving(tmp_path, alone, **SHORT)
    load.on(worker)
    worker.signal(number)
    with alone.client() as client:
        # Not the word of it in the log: that is Celery's handler's, before ours takes its place.
        wait_until(lambda: client.hlen("unacked") == 10, "what waited to be given back")
    worker.signal(number)
    assert worker.wait() == code
    assert not worker.runs
    with alone.client() as client:
        all_back = not client.exists("unacked")
    if all_back:
        assert load.waiting() == [result.id for result in load.results]
    load.finish(worker, folder=tmp_path)


def test_2_the_second_signal_while_redis_hangs(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """It leaves all the same; what it couldn't give back comes back when its lease ends."""
    load = Load(tmp_path, alone, app)
    worker = leaving(tmp_path, alone, **SHORT)
    load.on(worker)
    os.kill(alone.pid, signal.SIGSTOP)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: WARM in worker.text, "the shutdown to begin")
    while TWICE not in worker.text:  # while Celery's handler ran, ours had yet to take its place
        words = worker.text.count(WARM)
        worker.signal(signal.SIGTERM)
        wait_until(
            lambda words=words: TWICE in worker.text or worker.text.count(WARM) > words,  # type: ignore[misc]
            "the signal to be noticed",
        )
    assert worker.wait() == 143
    os.kill(alone.pid, signal.SIGCONT)
    later = producer_for(alone)
    load.results = [AsyncResult(result.id, app=later) for result in load.results]
    load.finish(worker, folder=tmp_path)


def test_3_ctrl_c_in_a_terminal(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """SIGINT to the whole process group: the batch is finished, and nothing is run again."""
    load = Load(tmp_path, alone, app)
    worker = leaving(tmp_path, alone)
    load.on(worker)
    children = worker.children
    os.killpg(os.getpgid(worker.pid), signal.SIGINT)
    wait_until(lambda: WARM in worker.text, "the shutdown to begin")
    assert worker.children == children
    load.go.touch()
    assert worker.wait() == 1  # Celery's code for it
    assert worker.runs == dict.fromkeys(load.texts[:10], 1)
    assert load.waiting() == [result.id for result in load.results[10:]]
    load.finish(worker, folder=tmp_path)


def test_4_sigterm_remapped_to_sigquit(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """REMAP_SIGTERM=SIGQUIT makes it a cold shutdown: the batch is killed, and nothing is lost."""
    load = Load(tmp_path, alone, app)
    worker = leaving(tmp_path, alone, REMAP_SIGTERM="SIGQUIT")
    load.on(worker)
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert sorted(load.waiting()) == sorted(result.id for result in load.results)
    load.finish(worker, folder=tmp_path)


def test_5_a_soft_shutdown_longer_than_the_lease(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Celery's event loop stands still in it; leases are renewed, so nobody else takes the jobs."""
    load = Load(tmp_path, alone, app)
    soft = ["--", "worker.soft_shutdown_timeout=15"]
    worker = FakeWorker(tmp_path, alone, arguments=soft, GOLEM_MAX_ROWS="10", **SHARED).start()
    load.on(worker)
    with alone.client() as client:
        first_end_s = max(
            end_s for _, end_s in client.zrange("golem:leases", 0, -1, withscores=True)
        )
        with FakeWorker(tmp_path, alone, name="w2") as other:
            wait_until(lambda: client.hlen("unacked") == 20, "the other to answer the rest")
            worker.signal(signal.SIGQUIT)
            wait_until(lambda: "Initiating Soft Shutdown" in worker.text, "the shutdown to begin")
            wait_until(lambda: client.time()[0] > first_end_s + 1, "the first leases to be over")
            load.go.touch()
            worker.wait()
            check(load.results, load.texts)
            assert worker.runs + other.runs == dict.fromkeys(load.texts, 1)
            assert worker.runs == dict.fromkeys(load.texts[:10], 1)
            wait_until(lambda: not client.exists("unacked"), "every acknowledgement")


def test_6_a_drain_longer_than_the_lease(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """What waits is given to the other worker at once; the batch keeps its lease to its end."""
    load = Load(tmp_path, alone, app)
    worker = leaving(tmp_path, alone, **SHARED)
    load.on(worker)
    with alone.client() as client:
        first_end_s = max(
            end_s for _, end_s in client.zrange("golem:leases", 0, -1, withscores=True)
        )
        with FakeWorker(tmp_path, alone, name="w2") as other:
            worker.signal(signal.SIGTERM)
            wait_until(lambda: client.hlen("unacked") == 10, "the other to answer what waited")
            wait_until(lambda: client.time()[0] > first_end_s + 1, "the first leases to be over")
            load.go.touch()
            assert worker.wait() == 0
            check(load.results, load.texts)
            assert worker.runs == dict.fromkeys(load.texts[:10], 1)
            assert other.runs == dict.fromkeys(load.texts[10:], 1)


def test_7_sigterm_while_redis_hangs(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """Done: Redis stops in its tracks with a batch running and another buffered; then SIGTERM.

    Must hold: the worker doesn't wait for the socket's timeout, it is gone when the grace is over,
    as one told to leave (exit code 0); every job comes back with its lease, and is run once.
    """
    load = Load(tmp_path, alone, app)
    worker = leaving(tmp_path, alone, GOLEM_GRACE_S="4", GOLEM_SOCKET_TIMEOUT_S="600", **SHORT)
    load.on(worker)
    children = worker.children
    with hung(alone.pid):
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        wait_until(lambda: not any(map(running, children)), "its model process to be gone")
    assert not worker.runs
    later = producer_for(alone)
    load.results = [AsyncResult(result.id, app=later) for result in load.results]
    load.finish(worker, folder=tmp_path)


def test_8_told_to_leave_before_a_process_has_accepted_its_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """A batch on its way to a process is finished like one that runs, and nobody waits for more."""
    texts = [f"text {number}" for number in range(10)]
    worker = leaving(tmp_path, alone)
    (child,) = worker.children
    os.kill(child, signal.SIGSTOP)
    results = send_all(app, texts)
    wait_until(lambda: len(jobs_of(app, "reserved")) == 10, "all of them to be taken")
    # The next answer comes a turn of the loop later, in which the first of them are dispatched.
    assert len(jobs_of(app, "reserved")) == 10
    worker.signal(signal.SIGTERM)
    ping = app.control.ping
    wait_until(lambda: not ping(destination=["w1@test"], timeout=1.0), "the consumer to end")
    os.kill(child, signal.SIGCONT)
    assert worker.wait() == 0
    assert "outlast" not in worker.text
    assert worker.runs, "the batch was finished here"
    with FakeWorker(tmp_path, alone, name="last") as last:
        check(results, texts)
        assert worker.runs + last.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)
