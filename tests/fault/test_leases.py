"""Numbered scenarios of leases: what was done to workers on one queue, and what must hold.

Each compares every answer with the expected one, and counts runs of a text by the engine's log.
"""

import logging
import os
import signal
import time
from collections import Counter
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import commands
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    numbered,
    producer_for,
    send,
    send_all,
)
from tests.support.waiting import wait_until
from tests.support.workers import READY
from worker.app import SWEEPS_PER_LEASE

logger = logging.getLogger(__name__)

LEASE_S = 8
"""Short, and long enough for a slow worker that renews it four times as often."""
SHORT = {"GOLEM_LEASE_S": str(LEASE_S)}
SKEWED = Path(__file__).parents[1] / "support" / "skewed_clock"


def now_s(server: EmbeddedServer) -> float:
    """The server's time."""
    with server.client() as client:
        seconds, micros = client.time()
    return seconds + micros / 1e6


def leases(server: EmbeddedServer) -> dict[str, float]:
    """The end of the lease of every message held by a Golem worker, by the server's clock."""
    with server.client() as client:
        pairs: Any = client.zrange("golem:leases", 0, -1, withscores=True)
        return {tag.decode(): end_s for tag, end_s in pairs}


def nothing_held(server: EmbeddedServer) -> bool:
    """Whether no queue and no record of an unacknowledged message is left."""
    with server.client() as client:
        held = ("golem", "golem.bulk", "unacked", "unacked_index", "golem:leases")
        return not client.exists(*held)


def all_taken(server: EmbeddedServer) -> bool:
    """Whether every job is held by a worker that renews its lease, and none waits in the queue.

    What has been put back and not been taken yet its old holder can't know to be another's.
    """
    held = leases(server)
    with server.client() as client:
        return not client.llen("golem") and bool(held) and min(held.values()) > now_s(server)


def pass_leases(server: EmbeddedServer, count: int = 1) -> None:
    """Wait until, by the server's clock, all present leases would be over, `count` times."""
    for _ in range(count):
        over_s = max(leases(server).values())
        wait_until(lambda over_s=over_s: now_s(server) > over_s, "the leases to have ended")


def looks(client: redis.Redis) -> int:
    """How often any worker has looked for leases that are over; `leases` counts as well."""
    return commands(client, "zrange")


def skewed(seconds: float) -> dict[str, str]:
    """Environment of a worker whose wall clock is wrong by so much."""
    path = os.pathsep.join([str(SKEWED), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "SKEWED_CLOCK_S": str(seconds)}


def logged_at(worker: FakeWorker) -> datetime:
    """When, by its own clock, a worker said that it is ready."""
    line = next(line for line in worker.text.splitlines() if line.endswith(READY))
    return datetime.fromisoformat(line[1:20])


def runs(*workers: FakeWorker) -> Counter[str]:
    """How often each text was in a forward pass that ended, on any of them."""
    return sum((worker.runs for worker in workers), Counter[str]())


def test_1_a_worker_killed_with_a_running_and_a_waiting_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Its jobs are answered within 1.5 leases of the kill, by another worker that is up already.

    Asserted by the server's clock: at the kill no lease lasts longer than one from now, a sweep
    comes every sixth of a lease, and every job is answered. The time it took is logged.
    """
    texts = numbered(100)
    results = send_all(app, texts)
    first = FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="20", FAKE_FORWARD_S="600", **SHORT).start()
    wait_until(lambda: len(leases(alone)) == 40, "a batch to run and one to wait")
    of_first = leases(alone).keys()
    with (
        FakeWorker(tmp_path, alone, name="w2", GOLEM_MAX_ROWS="20", **SHORT),
        alone.client() as client,
    ):
        wait_until(
            lambda: not client.llen("golem") and leases(alone).keys() == of_first,
            "the second to answer the rest",
        )
        first.signal(signal.SIGKILL)
        first.wait()
        held = leases(alone)
        killed_s = now_s(alone)  # after what it is compared with: the second goes on
        assert max(held.values()) <= killed_s + LEASE_S
        check(results, texts)
        took_s = now_s(alone) - killed_s
        logger.warning(
            "%d jobs of the killed answered after %.2f leases", len(held), took_s / LEASE_S
        )
    assert 1 + 1 / SWEEPS_PER_LEASE < 1.5
    assert nothing_held(alone)


def test_2_a_batch_longer_than_its_lease(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """With an idle worker beside it, what one computes or keeps for its ETA stays its own."""
    go = tmp_path / "go"
    texts = [*numbered(10), f"until:{go}"]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone, **SHORT) as first:
        wait_until(lambda: len(jobs_of(app, "active")) == 11, "the batch to run")
        later = [send(app, f"later {n}", countdown=2 * LEASE_S) for n in range(20)]
        wait_until(lambda: len(leases(alone)) == 31, "the jobs with an ETA to be held")
        with FakeWorker(tmp_path, alone, name="w2", **SHORT) as second:
            pass_leases(alone, 2)
            go.touch()
            check(results, texts)
            check(later, [f"later {n}" for n in range(20)])
            assert first.runs == dict.fromkeys([*texts, *(f"later {n}" for n in range(20))], 1)
            assert not second.runs
    assert nothing_held(alone)


def test_3_two_workers_whose_clocks_are_60_seconds_apart(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Under load and over more than one lease nothing is run twice or gets stuck."""
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(120)]
    results = send_all(app, texts)
    settings = {"GOLEM_MAX_ROWS": "10", "FAKE_FORWARD_S": "0.05", **SHORT}
    with (
        # This one first: then each second the other takes to start adds to their difference.
        FakeWorker(tmp_path, alone, name="w2", **settings, **skewed(-30)) as behind,
        FakeWorker(tmp_path, alone, **settings, **skewed(30)) as ahead,
    ):
        assert logged_at(ahead) - logged_at(behind) > timedelta(seconds=50)
        pass_leases(alone, 2)
        go.touch()
        check(results, texts)
        assert runs(ahead, behind) == dict.fromkeys(texts, 1)
        wait_until(lambda: nothing_held(alone), "every acknowledgement")


def test_4_a_worker_whose_clock_is_ahead_of_the_producers(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """``expires`` is Celery's, by the worker's clock: it ends earlier by the difference."""
    with FakeWorker(tmp_path, alone, **skewed(60)):
        early, good = send(app, "early", expires=40), send(app, "good", expires=3600)
        with pytest.raises(TaskRevokedError, match="expired"):
            early.get(timeout=60)
        check([good], ["good"])


@pytest.mark.parametrize("timeout_s", ["30", "2"], ids=["connected", "reconnecting"])
def test_5_redis_hung_for_longer_than_a_lease(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, timeout_s: str
) -> None:
    """All leases are over when it goes on; who holds jobs, back a little later, keeps them."""
    go = tmp_path / "go"
    texts = [*numbered(30), f"until:{go}"]
    ids = [result.id for result in send_all(app, texts)]
    settings = {"GOLEM_MAX_ROWS": "16", "GOLEM_SOCKET_TIMEOUT_S": timeout_s, **SHORT}
    with FakeWorker(tmp_path, alone, **settings, FAKE_FORWARD_S="0.01") as first:
        wait_until(lambda: len(leases(alone)) == 15, "the second batch to run")
        with FakeWorker(tmp_path, alone, name="w2", **settings) as second:
            for pid in (alone.pid, first.pid):
                os.kill(pid, signal.SIGSTOP)
            ended_s = time.time() + LEASE_S  # if one was renewed a moment ago
            wait_until(lambda: time.time() > ended_s, "the leases to be over")
            os.kill(alone.pid, signal.SIGCONT)
            with alone.client() as client:
                looked = looks(client)
                wait_until(lambda: looks(client) > looked, "the other to look for leases")
            os.kill(first.pid, signal.SIGCONT)
            wait_until(lambda: max(leases(alone).values()) > now_s(alone), "a renewal")
            pass_leases(alone)
            go.touch()
            later = producer_for(alone)
            check([AsyncResult(task_id, app=later) for task_id in ids], texts)
            assert runs(first, second) == dict.fromkeys(texts, 1)
        assert not second.runs
    assert nothing_held(alone)


def test_6_a_worker_stopped_for_longer_than_a_lease(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Another answers all of its jobs; woken, it drops what it had buffered and works on.

    What it was computing may be computed twice, to the same answer.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(39)]
    results = send_all(app, texts)
    settings = {"GOLEM_MAX_ROWS": "20", **SHORT}
    with FakeWorker(tmp_path, alone, **settings) as first:
        wait_until(lambda: len(leases(alone)) == 40, "a batch to run and one to wait")
        os.kill(first.pid, signal.SIGSTOP)
        with FakeWorker(tmp_path, alone, name="w2", **settings) as second:
            pass_leases(alone)
            wait_until(lambda: all_taken(alone), "the other to take them all")
            os.kill(first.pid, signal.SIGCONT)
            wait_until(lambda: "Other workers took over" in first.text, "the first to notice")
            go.touch()
            check(results, texts)
            check(send_all(app, ["after"]), ["after"])
            wait_until(lambda: nothing_held(alone), "every acknowledgement")
        computed = runs(first, second)
        assert computed.keys() == {*texts, "after"}
        twice = {text for text, count in computed.items() if count > 1}
        assert twice <= set(texts[:20]), "buffered jobs were run twice"
        assert max(computed.values()) <= 2


def test_7_workers_restarted_one_after_the_other_under_load(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """One of two leaves and comes back, then the other: every job is answered, and run once."""
    settings = {"GOLEM_MAX_ROWS": "10", "FAKE_FORWARD_S": "0.05", **SHORT}
    crew = [FakeWorker(tmp_path, alone, name=name, **settings).start() for name in ("w1", "w2")]
    texts: list[str] = []
    results: list[AsyncResult] = []

    def load() -> None:
        more = [f"text {len(texts) + number}" for number in range(150)]
        results.extend(send_all(app, more))
        texts.extend(more)

    def at_work(worker: FakeWorker, before: int) -> bool:
        with alone.client() as client:
            if not client.llen("golem"):  # the other may have done all of it
                load()
        return len(worker.dispatches) > before

    for place, worker in enumerate(crew):
        before = len(worker.dispatches)
        load()
        wait_until(partial(at_work, worker, before), "it to be at work")
        assert worker.stop() == 0
        load()
        crew[place] = FakeWorker(tmp_path, alone, name=worker.name, **settings).start()
    load()
    check(results, texts)
    for worker in crew:
        assert worker.stop() == 0
    assert runs(*crew) == dict.fromkeys(texts, 1)
    assert nothing_held(alone)
