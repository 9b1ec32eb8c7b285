"""The backlog on a real server with real workers: what is counted, refused, and told."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from golem_tasks import (
    AsyncGolem,
    Backlog,
    Golem,
    InferenceError,
    InvalidJob,
    PoisonJob,
    QueueFull,
)
from golem_tasks._redis import broker_server
from golem_tasks._wire import Envelope
from golem_tasks.backlog import STATS_TTL_S, Held, WorkerStats
from golem_tasks.contract import CLASSIFY
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker
from tests.support.waiting import wait_until
from worker.stats import Publisher

WORKERS = "golem:workers:golem"


@pytest.fixture
def golem(server: EmbeddedServer) -> Iterator[Golem]:
    """A client of the emptied server."""
    with Golem(server.url) as client:
        yield client


def settings(server: EmbeddedServer, **given: Any) -> ClientSettings:
    """Settings for this server."""
    return load(ClientSettings, broker_url=server.url, **given)


def lane(backlog: Backlog, index: int = 0) -> tuple[int, int, int]:
    """Waiting, reserved and in flight of a lane."""
    found = backlog.lanes[index]
    return found.waiting, found.reserved, found.in_flight


def once(golem: Golem, holds: Callable[[Backlog], bool], what: str) -> Backlog:
    """The first count of which this holds."""
    found: list[Backlog] = []

    def look() -> bool:
        found.append(golem.backlog())
        return holds(found[-1])

    wait_until(look, what)
    return found[-1]


def commands(server: EmbeddedServer) -> dict[str, int]:
    """How often each command was called since this was asked last."""
    with server.client() as client:
        told = client.info("commandstats")
        client.config_resetstat()
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in told.items()}


@contextmanager
def occupied(golem: Golem, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """One worker of one process, in which a job runs until this is called; two fit its buffer."""
    gate = tmp_path / "gate"
    blocker = golem.submit(f"until:{gate}")
    once(golem, lambda b: lane(b) == (0, 0, 1), "the first job to be in flight")

    def release() -> None:
        gate.touch()

    yield release
    release()
    blocker.result(60)


def deliver_again(golem: Golem, client: redis.Redis, times: int) -> str:
    """Queue a job that was delivered so often before; return its id."""
    composed = golem._wire.compose(
        CLASSIFY, ["again"], {}, job_id="again", envelope=Envelope("golem"), shown=""
    )
    message = json.loads(composed.payload)
    message["properties"]["delivery_info"]["redelivered"] = True
    tag = message["properties"]["delivery_tag"]
    client.set(f"golem:deliveries:{tag}", times, ex=60)
    client.set(f"golem:dead:tried:{tag}", 1, ex=60)  # its worker was gone before its trial ended
    client.lpush("golem", json.dumps(message))
    return composed.id


# Counting


def test_every_priority_list_of_both_lanes_is_counted(golem: Golem) -> None:
    """Ten priorities share four lists; nobody holds anything, and nobody's speed is known."""
    for priority in range(10):
        golem.submit("one", priority=priority)
        golem.submit_many(["two", "three"], priority=priority, bulk=True)
    backlog = golem.backlog()
    assert (lane(backlog), lane(backlog, 1)) == ((10, 0, 0), (20, 0, 0))
    assert [each.queue for each in backlog.lanes] == ["golem", "golem.bulk"]
    assert (backlog.total, backlog.workers, backlog.drain_s) == (30, (), None)


async def test_asyncio_counts_the_same(server: EmbeddedServer, golem: Golem) -> None:
    """The same frozen object from both clients, but for the time."""
    golem.submit_many(["one", "two"], bulk=True)
    async with AsyncGolem(server.url) as other:
        told = await other.backlog()
    assert told.lanes == golem.backlog().lanes
    with pytest.raises(AttributeError):
        told.at_s = 0.0  # type: ignore[misc]


def test_a_count_is_one_pipeline_whose_commands_do_not_depend_on_the_backlog(
    server: EmbeddedServer, golem: Golem
) -> None:
    """Eight lengths, one bound, one hash, one time, for nothing and for three thousand jobs."""
    for jobs in (0, 3_000):
        golem.submit_many([f"text {number}" for number in range(jobs)])
        commands(server)
        golem.backlog()
        told = commands(server)
        assert {name: told[name] for name in ("llen", "zcard", "hgetall", "time")} == {
            "llen": 8, "zcard": 1, "hgetall": 1, "time": 1,
        }  # fmt: skip


def test_what_a_worker_holds_is_counted_by_lane(
    golem: Golem, server: EmbeddedServer, tmp_path: Path
) -> None:
    """One in flight, two in the buffer, the rest in Redis; nothing once all are answered."""
    with (
        FakeWorker(tmp_path, server, GOLEM_MAX_ROWS="2"),
        occupied(golem, tmp_path) as release,
    ):
        texts = [f"text {number}" for number in range(5)]
        bulk = golem.submit_many(texts, bulk=True)
        backlog = once(golem, lambda b: lane(b, 1) == (3, 2, 0), "two bulk jobs to be reserved")
        assert (lane(backlog), backlog.total) == ((0, 0, 1), 6)
        urgent = golem.submit_many(texts)
        # Two of them are fetched at once: bulk jobs don't take their room in the buffer.
        once(golem, lambda b: lane(b) == (3, 2, 1), "two interactive jobs to be reserved")
        countdown = golem.submit("later", countdown_s=3600)
        release()
        for job, text in zip([*urgent, *bulk], texts * 2, strict=True):
            assert job.result(60).label == expected_label(text)
        backlog = once(golem, lambda b: not b.total and b.scheduled == 1, "nothing to be left")
        (worker,) = backlog.workers
        assert (worker.name, worker.model, worker.device, worker.dtype, worker.processes) == (
            "w1@test", "fake", "cpu", "float32", 1,
        )  # fmt: skip
        assert (worker.answered, worker.failed, worker.received) == (11, 0, 11)
        assert worker.token_budget == worker.token_ceiling == 1024
        assert worker.rows_per_dispatch is not None
        assert 1.0 <= worker.rows_per_dispatch <= 2.0
        if sys.platform == "linux":
            (memory,) = worker.process_memory
            assert 1.0 < memory.rss_mib < 2_000.0
        countdown.cancel()


def test_another_queue_pair_and_another_key_prefix_are_not_counted(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """Neither a pair whose jobs are in the same records, nor the same names without the prefix."""
    prefix = "staging:"
    with (
        Golem(server.url) as plain,
        Golem(settings=settings(server, global_keyprefix=prefix)) as staging,
        Golem(settings=settings(server, global_keyprefix=prefix, queue="reviews")) as reviews,
        FakeWorker(
            tmp_path,
            server,
            GOLEM_QUEUE="reviews",
            GOLEM_GLOBAL_KEYPREFIX=prefix,
            GOLEM_MAX_ROWS="2",
        ),
        occupied(reviews, tmp_path),
    ):
        plain.submit("one")
        staging.submit_many(["two", "three"])
        reviews.submit("four")
        once(reviews, lambda b: lane(b) == (0, 1, 1), "the other pair's jobs to be held")
        assert (lane(plain.backlog()), plain.backlog().workers) == ((1, 0, 0), ())
        assert (lane(staging.backlog()), staging.backlog().workers) == ((2, 0, 0), ())
        with server.client() as client:
            assert client.zcard("staging:unacked_index") == 2
            assert list(client.scan_iter("*golem:workers*")) == [b"staging:golem:workers:reviews"]


# Workers come and go


def test_a_worker_that_leaves_takes_its_figures_along_and_a_dead_one_fades(
    golem: Golem, server: EmbeddedServer, tmp_path: Path
) -> None:
    """After SIGTERM its field is gone at once; after SIGKILL the key has a TTL of 15 s at most."""
    good, doomed = FakeWorker(tmp_path, server), FakeWorker(tmp_path, server, name="w2")
    with good, doomed, server.client() as client:
        once(golem, lambda b: len(b.workers) == 2, "both workers to speak")
        assert good.stop() == 0
        # It waits a second for that; if Redis takes longer, the other one cleans up.
        wait_until(lambda: client.hkeys(WORKERS) == [b"w2@test"], "its field to go")
        doomed.signal(signal.SIGKILL)
        doomed.wait()
        gone = -2  # Redis's word for a key whose time is over already
        assert client.ttl(WORKERS) in {gone, *range(STATS_TTL_S + 1)}


def test_a_worker_removes_the_figures_of_the_dead(server: EmbeddedServer) -> None:
    """While others keep the hash alive, the field of one that is gone would stay for ever."""
    with server.client() as client:
        client.hset(WORKERS, "dead", json.dumps({"name": "dead", "at_s": time.time() - 60}))
        client.hset(WORKERS, "odd", "{")
        publisher = Publisher(broker_server(settings(server)), WORKERS, "w1")
        publisher.start()
        publisher.tell(WorkerStats(name="w1", at_s=time.monotonic()))
        wait_until(lambda: client.hkeys(WORKERS) == [b"w1"], "the dead one's field to go")
        publisher.stop()  # which waits for a second
        wait_until(lambda: client.exists(WORKERS) == 0, "its own field to go")


def test_figures_wait_for_nobody_and_the_latest_is_what_is_written(server: EmbeddedServer) -> None:
    """Redis hangs: a thousand figures are told meanwhile, and the last of them is there after."""
    publisher = Publisher(broker_server(settings(server)), WORKERS, "w1")
    publisher.start()
    with server.client() as client, Golem(server.url) as golem:
        publisher.tell(WorkerStats(name="w1", at_s=time.monotonic()))
        once(golem, lambda b: len(b.workers) == 1, "the first figures")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for number in range(1_000):
                publisher.tell(WorkerStats(name="w1", at_s=time.monotonic(), answered=number))
        finally:
            os.kill(server.pid, signal.SIGCONT)
        before_s = time.time()
        last = once(
            golem, lambda b: any(w.answered == 999 for w in b.workers), "the last figures"
        ).workers[0]
        # By the server's clock, which on this machine is ours.
        assert before_s - STATS_TTL_S < last.at_s < time.time() + STATS_TTL_S
        publisher.stop()  # which waits for a second
        wait_until(lambda: client.exists(WORKERS) == 0, "its field to go")


def test_a_server_that_refuses_the_figures_is_complained_of_once(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to the key the worker goes on; its log has the reason and the key."""
    with server.client() as client:
        client.acl_setuser(
            "meek", enabled=True, passwords=["+x"], keys=["golem:fetch:*"], categories=["+@all"]
        )
        url = server.url.replace("redis://", "redis://meek:x@")
        publisher = Publisher(broker_server(load(ClientSettings, broker_url=url)), WORKERS, "w1")
        publisher.start()
        for _ in range(2):
            publisher.tell(WorkerStats(name="w1", at_s=time.monotonic()))
        wait_until(lambda: WORKERS in caplog.text, "the complaint")
        publisher.stop()
        client.acl_deluser("meek")
    assert caplog.text.count("Redis refuses this worker's figures") == 1


# The limit


def test_a_submit_over_the_limit_sends_nothing_and_says_why(
    server: EmbeddedServer, golem: Golem
) -> None:
    """One text, one batch, many texts, and a wait for an answer: refused alike, as a whole."""
    golem.submit_many(["one", "two"], bulk=True, max_backlog=2)
    refused: list[Callable[[], object]] = [
        lambda: golem.submit("three", max_backlog=2),
        lambda: golem.submit_batch(["three", "four"], max_backlog=2),
        lambda: golem.submit_many(["three", "four"], max_backlog=3),
        lambda: golem.classify("three", max_backlog=2, timeout=1),
    ]
    for submit in refused:
        with pytest.raises(QueueFull) as caught:
            submit()
        assert (caught.value.backlog, caught.value.wait_s) == (2, None)
        assert "no worker runs on queue 'golem'" in str(caught.value)
    assert golem.backlog().total == 2
    with server.client() as client:
        assert client.llen("golem") == 0
    golem.submit_batch(["three", "four"], max_backlog=3)  # a batch is one job
    assert golem.backlog().total == 3


async def test_asyncio_is_refused_alike(server: EmbeddedServer) -> None:
    """The same four verbs, and nothing sent."""
    async with AsyncGolem(server.url) as golem:
        await golem.submit("one", max_backlog=1)
        for submit in (
            golem.submit("two", max_backlog=1),
            golem.submit_batch(["two"], max_backlog=1),
            golem.submit_many(["two", "three"], max_backlog=2),
            golem.classify("two", max_backlog=1, timeout=1),
        ):
            with pytest.raises(QueueFull) as caught:
                await submit
            assert caught.value.backlog == 1
        assert (await golem.backlog()).total == 1


def test_the_setting_is_every_submits_limit_unless_it_has_its_own(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GOLEM_MAX_BACKLOG holds; max_backlog goes before it, and None is no limit."""
    monkeypatch.setenv("GOLEM_MAX_BACKLOG", "1")
    with Golem(server.url) as golem:
        golem.submit("one")
        with pytest.raises(QueueFull) as caught:
            golem.submit("two")
        assert caught.value.limit == 1
        golem.submit("two", max_backlog=2)
        golem.submit("three", max_backlog=None)
        assert golem.backlog().total == 3
        for wrong in (0, -1, True, 1.5, "9"):
            with pytest.raises(InvalidJob, match="max_backlog must be a whole number"):
                golem.submit("four", max_backlog=wrong)  # type: ignore[arg-type]


def test_a_limit_costs_one_round_trip_and_its_absence_none(
    server: EmbeddedServer, golem: Golem
) -> None:
    """One count for two thousand jobs under a limit; without one, only what sends them."""
    texts = [f"text {number}" for number in range(2_000)]
    commands(server)
    golem.submit_many(texts)
    assert "zcard" not in commands(server)
    golem.submit_many(texts, max_backlog=10_000)
    told = commands(server)
    assert (told["zcard"], told["lpush"]) == (1, 2_000)


def test_what_a_worker_holds_counts_against_the_limit_and_its_speed_makes_the_estimate(
    golem: Golem, server: EmbeddedServer, tmp_path: Path
) -> None:
    """Four jobs each twentieth of a second at most: no faster, and the wait follows from it."""
    texts = [f"text {number}" for number in range(200)]
    with FakeWorker(tmp_path, server, GOLEM_MAX_ROWS="4", FAKE_FORWARD_S="0.05"):
        for job, text in zip(golem.submit_many(texts), texts, strict=True):
            assert job.result(60).label == expected_label(text)
        with occupied(golem, tmp_path):
            golem.submit_many(texts)
            before = once(
                golem,
                lambda b: lane(b) == (196, 4, 1) and b.workers[0].answered == 200,
                "all answers to be counted, and the next dispatch to be buffered",
            )
            assert before.jobs_per_s is not None
            assert 0 < before.jobs_per_s <= 4 / 0.05 * 1.2  # one may fall into the next beat
            # Nothing ends any more: by its figures the worker gets slower and slower.
            with pytest.raises(QueueFull) as caught:
                golem.submit("one more", max_backlog=10)
            error, after = caught.value, golem.backlog()
            assert (error.backlog, after.total) == (201, 201)
            assert error.wait_s is not None
            assert before.drain_s is not None
            assert after.drain_s is not None
            assert before.drain_s <= error.wait_s <= after.drain_s


@pytest.mark.usefixtures("worker")
def test_failures_and_redeliveries_are_told_wherever_they_are_settled(
    live_server: EmbeddedServer,
) -> None:
    """One the model raises for, in its process; one delivered too often, which never gets there."""
    with Golem(live_server.url) as golem, live_server.client() as client:
        # What it told before now may lack the last jobs of other tests.
        now_s, _ = client.time()  # type: ignore[misc]
        told = once(
            golem,
            lambda b: any(
                w.at_s > now_s + 1 and w.interactive == w.bulk == Held() for w in b.workers
            ),
            "the worker to speak, with nothing left to count",
        )
        (before,) = told.workers
        failing = [golem.submit("raise:why"), golem.job(deliver_again(golem, client, times=5))]
        for job, error in zip(failing, (InferenceError, PoisonJob), strict=True):
            with pytest.raises(error):
                job.result(60)
        after = once(
            golem, lambda b: b.workers[0].failed == before.failed + 2, "both failures"
        ).workers[0]
        assert after.received == before.received + 2
        assert after.redelivered == before.redelivered + 1
