"""Numbered scenarios of jobs that are given up: nothing is lost, and nobody else is harmed."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from golem_tasks import DeadLetterError, DeadLetters, Golem, PoisonJob
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.dead_letters import requeue
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, check, producer_for, send, send_all
from tests.support.waiting import wait_until

PREFIX = "shop:"


@pytest.fixture
def alone() -> Iterator[EmbeddedServer]:
    """A server nobody else uses."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def store() -> Iterator[EmbeddedServer]:
    """A server for results alone, so that the queue goes on when it refuses."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def app(alone: EmbeddedServer) -> Celery:
    """A stock producer on that server."""
    return producer_for(alone)


def test_1_a_poison_job_is_sent_again_when_its_cause_is_gone(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Its producer gets PoisonJob, then, waiting for the same id, the answer.

    In between the very message lies in the list it was sent to, as if it were new.
    """
    settings = load(ClientSettings, broker_url=alone.url, global_keyprefix=PREFIX)
    env = {"GOLEM_GLOBAL_KEYPREFIX": PREFIX}
    flaw, source = tmp_path / "flaw", f"{PREFIX}golem.bulk\x06\x163"
    flaw.touch()
    text = f"kill-if:{flaw}"
    with Golem(settings=settings) as golem, DeadLetters(settings=settings) as dead:
        job = golem.submit(text, bulk=True, priority=4)
        with alone.client() as client:
            (sent,) = client.lrange(source, 0, -1)
        with FakeWorker(tmp_path, alone, **env), pytest.raises(PoisonJob):
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
        flaw.unlink()
        requeue(dead, job.id)
        with alone.client() as client:
            (again,) = client.lrange(source, 0, -1)
            assert json.loads(again) == json.loads(sent)
            # Neither a result nor a count, nor anything of the letter.
            assert [key for key in client.keys("*") if b"_kombu." not in key] == [source.encode()]
        assert golem.job(job.id).state == "PENDING"
        with FakeWorker(tmp_path, alone, name="w2", **env):
            assert golem.job(job.id).result(timeout=120).label == expected_label(text)
        assert dead.all() == []


def test_2_a_worker_killed_between_the_letter_and_the_failure(
    tmp_path: Path, alone: EmbeddedServer, store: EmbeddedServer
) -> None:
    """The job isn't lost: its letter is there already, its message comes again, its end is stored.

    Until then it can't be requeued, so it can't be there twice.
    """
    app = Celery(broker=alone.url, backend=store.url, set_as_current=False)
    settings = {
        "GOLEM_RESULT_BACKEND": store.url,
        "GOLEM_MAX_DELIVERIES": "1",
        "GOLEM_LEASE_S": "10",
    }
    result = send(app, "kill")
    worker = FakeWorker(tmp_path, alone, **settings).start(wait=False)
    with DeadLetters(alone.url, store.url) as dead, store.client() as client:
        wait_until(lambda: "exited with" in worker.text, "the first crash")
        client.config_set("maxmemory", "1")
        wait_until(lambda: "can't be stored" in worker.text, "the failure to be refused")
        (letter,) = dead.all()
        assert (letter.id, letter.reason) == (result.id, "crash")
        worker.signal(signal.SIGKILL)
        worker.wait()
        client.config_set("maxmemory", "0")
        with pytest.raises(DeadLetterError, match="isn't acknowledged"):
            dead.requeue(result.id)
        with alone.client() as broker:  # as if its lease were over
            broker.zadd("unacked_index", dict.fromkeys(broker.hkeys("unacked"), 1))
        with FakeWorker(tmp_path, alone, name="w2", **settings), pytest.raises(PoisonJob):
            result.get(timeout=60)
        assert [(each.id, each.reason) for each in dead.all()] == [(result.id, "deliveries")]


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
        check([AsyncResult(letter.id, app=producer_for(alone))], [f"kill-if:{flaw}"])
