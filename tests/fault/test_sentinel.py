"""Numbered scenarios of a primary that dies, its replica, and the Sentinel that replaces it.

Replication is asynchronous: what a primary confirmed and hadn't passed on dies with it. So scenario
1 waits for the replica (WAIT) before the kill, and asserts for what it had; scenario 2 shows the
server setting with which a primary without replicas confirms nothing.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from golem_tasks import BrokerUnavailable, Golem
from golem_tasks.settings import ClientSettings, load
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker
from tests.support.redis_servers import ProtectedServer, Sentinel
from tests.support.waiting import wait_until

PASSWORD = "pass-of-the-sentinel"  # noqa: S105 - nobody's
SAFE = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "10"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stops what was started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def primary(stack: ExitStack) -> ProtectedServer:
    """What the Sentinel names at first."""
    return stack.enter_context(ProtectedServer())


@pytest.fixture
def replica(stack: ExitStack, primary: ProtectedServer) -> ProtectedServer:
    """In step with the primary."""
    server = stack.enter_context(ProtectedServer(primary))
    in_step(primary)
    return server


def in_step(primary: ProtectedServer) -> None:
    """Return once the replica has all the primary has by now."""
    with primary.client() as client:
        # WAIT waits for what this very client has written. This leaves nothing, is replicated all
        # the same, and is no write that a primary without good replicas would refuse.
        client.publish("in-step", "")
        wait_until(lambda: client.wait(1, 100) == 1, "the replica to be in step")


def producer(sentinel: Sentinel, **settings: object) -> Golem:
    """A client that knows the Sentinel only."""
    return Golem(settings=load(ClientSettings, broker_url=sentinel.url, **settings))


def test_1_the_primary_dies_under_load(
    tmp_path: Path, stack: ExitStack, primary: ProtectedServer, replica: ProtectedServer
) -> None:
    """What the worker holds goes to the new primary; every replicated job is answered right.

    Servers and Sentinel have passwords of their own. Nothing is left behind, and what is submitted
    after the failover is answered too.
    """
    sentinel = stack.enter_context(Sentinel(primary, PASSWORD))
    go = tmp_path / "go"
    texts = [f"text {number}" for number in range(200)]
    worker = FakeWorker(
        tmp_path,
        primary,
        GOLEM_BROKER_URL=sentinel.url,
        GOLEM_SENTINEL_PASSWORD=PASSWORD,
        GOLEM_MAX_ROWS="20",
    )
    with worker, producer(sentinel, sentinel_password=PASSWORD, connect_timeout_s=60) as golem:
        jobs = list(golem.submit_many([*texts[:100], f"until:{go}", *texts[100:]]))
        wait_until(lambda: len(worker.runs) >= 80, "a part to be computed")
        in_step(primary)
        primary.kill()
        wait_until(lambda: sentinel.primary_port() == replica.port, "the replica's promotion")
        later = golem.submit_many([f"later {number}" for number in range(20)])
        go.touch()
        jobs.pop(100).result(120)
        assert [job.result(120).label for job in jobs] == [expected_label(text) for text in texts]
        for number, job in enumerate(later):
            assert job.result(120).label == expected_label(f"later {number}")
        assert worker.alive
        with replica.client() as client:
            wait_until(
                lambda: not client.exists("golem", "golem.bulk", "unacked", "unacked_index"),
                "nothing to be left",
            )
        # An acknowledgement the replica didn't get: one batch at most is computed again.
        assert worker.runs.total() - len(worker.runs) <= 20
    for secret in (PASSWORD, ProtectedServer.PASSWORD):
        assert secret not in worker.text


def test_2_a_primary_that_lost_its_replica_confirms_nothing(stack: ExitStack) -> None:
    """With ``min-replicas-to-write`` a submit fails loudly rather than be lost later."""
    primary = stack.enter_context(ProtectedServer(arguments=SAFE))
    sentinel = stack.enter_context(Sentinel(primary))
    with producer(sentinel) as golem:
        with ProtectedServer(primary):
            in_step(primary)
            with primary.client() as client:
                wait_until(lambda: client.info()["min_slaves_good_slaves"] == 1, "its report")
            golem.submit("replicated")
        with primary.client() as client:
            wait_until(lambda: client.info()["min_slaves_good_slaves"] == 0, "its absence")
        with pytest.raises(BrokerUnavailable, match="Not enough good replicas"):
            golem.submit("alone")
        assert golem.queue_length() == 1


def test_3_what_a_sentinel_doesnt_know_is_said_in_one_sentence(
    stack: ExitStack, primary: ProtectedServer
) -> None:
    """Another master's name, or a wrong password: cause, remedy, and no secret."""
    sentinel = stack.enter_context(Sentinel(primary, PASSWORD))
    for wrong in (
        {"sentinel_password": PASSWORD, "sentinel_master": "other"},
        {"sentinel_password": "not-" + PASSWORD},
        {},
    ):
        with (
            producer(sentinel, connect_timeout_s=0.2, **wrong) as golem,
            pytest.raises(BrokerUnavailable) as caught,
        ):
            golem.submit("lost")
        text = str(caught.value)
        assert text.startswith("No Sentinel at sentinel://:**@127.0.0.1:")
        assert "GOLEM_SENTINEL_MASTER, GOLEM_SENTINEL_PASSWORD or GOLEM_BROKER_URL." in text
        assert PASSWORD not in text
