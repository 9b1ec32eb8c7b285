"""Numbered scenarios of leases: what was done to workers on one queue, and what must hold.

Each compares every answer with the expected one, and counts runs of a text by the engine's log.
"""

import logging
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import FakeWorker, check, jobs_of, producer_for, send, send_all
from tests.support.waiting import wait_until
from worker.app import SWEEPS_PER_LEASE

logger = logging.getLogger(__name__)

LEASE_S = 5
SHORT = {"GOLEM_LEASE_S": str(LEASE_S)}
SKEWED = Path(__file__).parents[1] / "support" / "skewed_clock"


@pytest.fixture
def alone() -> Iterator[EmbeddedServer]:
    """A server nobody else uses."""
    with EmbeddedServer(appendonly=True) as server:
        yield server


@pytest.fixture
def app(alone: EmbeddedServer) -> Celery:
    """A stock producer on that server."""
    return producer_for(alone)


def numbered(count: int) -> list[str]:
    """So many different texts."""
    return [f"text {number}" for number in range(count)]


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


def pass_leases(server: EmbeddedServer, count: int = 1) -> None:
    """Wait until, by the server's clock, all present leases would be over, `count` times."""
    for _ in range(count):
        over_s = max(leases(server).values())
        wait_until(lambda over_s=over_s: now_s(server) > over_s, "the leases to have ended")


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
    wait_until(lambda: len(leases(alone)) >= 40, "a batch to run and one to wait")
    with FakeWorker(tmp_path, alone, name="w2", GOLEM_MAX_ROWS="20", **SHORT):
        wait_until(lambda: len(leases(alone)) < 60, "the second to answer the rest")
        first.signal(signal.SIGKILL)
        first.wait()
        killed_s = now_s(alone)
        held = leases(alone)
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
