"""Numbered scenarios of jobs that are given up: nothing is lost, and nobody else is harmed."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from golem_tasks import DeadLetterError, DeadLetters, Golem, PoisonJob, Prediction
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.dead_letters import requeue
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, check, send, send_all
from tests.support.waiting import wait_until

PREFIX = "shop:"


@pytest.fixture
def store() -> Iterator[EmbeddedServer]:
    """A server for results alone, so that the queue goes on when it refuses."""
    with EmbeddedServer() as server:
        yield server


def end_leases(server: EmbeddedServer) -> None:
    """Make every lease one that ended long ago; only a dead worker holds any."""
    with server.client() as client:
        if tags := client.hkeys("unacked"):
            for key in ("unacked_index", "golem:leases"):
                client.zadd(key, dict.fromkeys(tags, 1))


def kept(client: redis.Redis) -> list[bytes]:
    """All keys but kombu's bindings."""
    return [key for key in client.keys("*") if b"_kombu." not in key]  # type: ignore[union-attr]


def test_1_a_poison_job_is_requeued_as_it_was_sent(tmp_path: Path, alone: EmbeddedServer) -> None:
    """The letter tells all of it; requeued, the message lies where it lay, as if new."""
    settings = load(ClientSettings, broker_url=alone.url, global_keyprefix=PREFIX)
    source = f"{PREFIX}golem.bulk\x06\x163"
    with Golem(settings=settings) as golem, DeadLetters(settings=settings) as dead:
        job = golem.submit("kill", bulk=True, priority=4)
        with alone.client() as client:
            (sent,) = client.lrange(source, 0, -1)
        worker = FakeWorker(tmp_path, alone, GOLEM_GLOBAL_KEYPREFIX=PREFIX)
        with worker, pytest.raises(PoisonJob):
            job.result(timeout=120)
        letter = dead.get(job.id)
        assert (letter.task, letter.queue, letter.worker) == (
            "golem.classify", "golem.bulk", "w1@test",
        )  # fmt: skip
        assert (letter.reason, letter.crashes, letter.deliveries) == ("crash", 2, 1)
        assert letter.sent_s is not None
        assert letter.received_s is not None
        assert letter.died_s is not None
        assert letter.sent_s < letter.received_s < letter.died_s
        requeue(dead, job.id)
        with alone.client() as client:
            (again,) = client.lrange(source, 0, -1)
            before, after = json.loads(sent), json.loads(again)
            tags = {each["properties"].pop("delivery_tag") for each in (before, after)}
            assert after == before
            assert len(tags) == 2
            # Neither a result nor a count, nor anything of the letter; the worker's own figures may
            # stay for a few seconds.
            wait_until(lambda: kept(client) == [source.encode()], "nothing else to be left")
        assert golem.job(job.id).state == "PENDING"
        assert dead.all() == []


def test_2_a_worker_killed_between_the_letter_and_the_failure(
    tmp_path: Path, alone: EmbeddedServer, store: EmbeddedServer
) -> None:
    """The job isn't lost: its letter is there already, its message comes again, its end is stored.

    Until then it can't be requeued, so it can't be there twice.
    """
    settings = {"GOLEM_RESULT_BACKEND": store.url, "GOLEM_LEASE_S": "5"}
    blocked = tmp_path / "blocked"
    worker = FakeWorker(tmp_path, alone, FAKE_LOAD_WAITS_IF=str(blocked), **settings)
    with (
        Golem(alone.url, store.url) as golem,
        DeadLetters(alone.url, store.url) as dead,
        store.client() as client,
    ):
        worker.start()
        blocked.touch()  # the second crash, which is the last, is to come when the store is full
        job = golem.submit("kill")
        wait_until(lambda: "exited with" in worker.text, "the first crash")
        client.config_set("maxmemory", "1")
        blocked.unlink()
        wait_until(lambda: "can't be stored" in worker.text, "the failure to be refused")
        (letter,) = dead.all()
        assert (letter.id, letter.reason) == (job.id, "crash")
        worker.signal(signal.SIGKILL)
        worker.wait()
        client.config_set("maxmemory", "0")
        with pytest.raises(DeadLetterError, match="isn't acknowledged"):
            dead.requeue(job.id)
        end_leases(alone)
        with FakeWorker(tmp_path, alone, name="w2", **settings), pytest.raises(PoisonJob):
            job.result(timeout=60)
        assert [(each.id, each.reason) for each in dead.all()] == [(job.id, "crash")]


def test_3_more_poison_than_is_kept_under_the_stock_transport(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Every job gets its own end; of the letters the latest is kept, with the queue it came from.

    Sent again there, it is answered.
    """
    flaw = tmp_path / "flaw"
    flaw.touch()
    texts = [f"text {number}" for number in range(10)]
    good = send_all(app, texts)
    bad = {queue: send(app, f"kill-if:{flaw}", queue=queue) for queue in ("golem", "golem.bulk")}
    settings = {"GOLEM_TRANSPORT": "stock", "GOLEM_MAX_DEAD_LETTERS": "1"}
    with FakeWorker(tmp_path, alone, **settings), DeadLetters(alone.url) as dead:
        check(good, texts)
        for result in bad.values():
            with pytest.raises(PoisonJob):
                result.get(timeout=120)
        (letter,) = dead.all()
        assert bad[letter.queue].id == letter.id
        flaw.unlink()
        requeue(dead, letter.id)
        with Golem(alone.url) as golem:
            answer = golem.job(letter.id).result(timeout=120)
        assert isinstance(answer, Prediction)
        assert answer.label == expected_label(f"kill-if:{flaw}")


def test_4_a_job_that_takes_the_whole_worker_with_it_among_63_good_ones(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """All 64 are delivered too often; the culprit alone is PoisonJob, its mates are answered.

    Sent again when its cause is gone, its deliveries are counted anew.
    """
    flaw = tmp_path / "flaw"
    flaw.touch()
    texts = [f"text {number}" for number in range(63)]
    order = f"kill-all-if:{flaw}"
    results = send_all(app, [*texts[:31], order, *texts[31:]])
    culprit = results.pop(31)
    settings = {"GOLEM_MAX_DELIVERIES": "2", "GOLEM_LEASE_S": "5"}
    workers = [FakeWorker(tmp_path, alone, name=name, **settings) for name in ("w1", "w2", "w3")]
    for worker in workers[:2]:
        worker.start(wait=False).wait()
        end_leases(alone)
    with workers[2], DeadLetters(alone.url) as dead:
        check(results, texts)
        with pytest.raises(PoisonJob) as caught:
            culprit.get(timeout=60)
        assert (caught.value.reason, caught.value.count) == ("deliveries", 3)
        assert sum((worker.runs for worker in workers), Counter()) == dict.fromkeys(texts, 1)
        (letter,) = dead.all()
        assert (letter.id, letter.deliveries, letter.crashes) == (culprit.id, 3, 0)
        flaw.unlink()
        requeue(dead, culprit.id)
        with Golem(alone.url) as golem:
            answer = golem.job(culprit.id).result(timeout=120)
        assert isinstance(answer, Prediction)
        assert answer.label == expected_label(order)
        with alone.client() as client:
            wait_until(lambda: not client.keys("golem:deliveries:*"), "the last acknowledgement")
            wait_until(lambda: not client.keys("golem:dead*"), "the last note to go")
