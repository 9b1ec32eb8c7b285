"""Redis that answers but refuses to write: full, or read-only after a failover."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError

from golem_tasks import DeadLetters, InvalidJob, PoisonJob
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import (
    EXPIRES_S,
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    send,
    send_all,
)
from tests.support.outages import SmallDisk
from tests.support.waiting import wait_until
from worker.recording import TRIES


def memory(server: EmbeddedServer, limit: str) -> None:
    """Set the server's maxmemory."""
    with server.client() as client:
        client.config_set("maxmemory", limit)


def refused(client: redis.Redis) -> bool:
    """Whether a write is refused for the state of the server's disk."""
    try:
        client.set("filler", "x")
    except redis.ResponseError as exc:
        return str(exc).startswith("MISCONF")
    return False


def test_1_redis_is_full_when_a_batch_ends(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Answers wait in the process until there is room; each job is computed once and answered."""
    go = tmp_path / "go"
    texts = [*(f"text {number}" for number in range(30)), f"until:{go}"]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 31, "the batch to run")
        memory(alone, "1")
        go.touch()
        wait_until(lambda: "Results can't be stored" in worker.text, "the worker to be refused")
        memory(alone, "0")
        check(results, texts)
        assert worker.runs == dict.fromkeys(texts, 1)


def test_2_redis_is_full_when_a_failure_is_recorded(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """The dead letter and the failure wait until there is room; nothing stays PENDING."""
    blocked = tmp_path / "blocked"
    with FakeWorker(tmp_path, alone, FAKE_LOAD_WAITS_IF=str(blocked)) as worker:
        blocked.touch()  # the second crash, which is the last, is to come when it is full
        result = send(app, "kill")
        wait_until(lambda: "exited with" in worker.text, "the first crash")
        memory(alone, "1")
        blocked.unlink()
        wait_until(lambda: "can't be stored" in worker.text, "the worker to be refused")
        memory(alone, "0")
        with pytest.raises(PoisonJob):
            result.get(timeout=60)
        assert worker.alive
    with DeadLetters(alone.url) as dead:
        assert [letter.id for letter in dead.all()] == [result.id]


def test_3_redis_is_full_when_a_job_expires_in_the_buffer(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """The expiry is stored once there is room, not lost with its job."""
    go = tmp_path / "go"
    busy = send(app, f"until:{go}")
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: jobs_of(app, "active"), "the first to start")
        expiring = send(app, "late", expires=EXPIRES_S)
        wait_until(lambda: jobs_of(app, "reserved"), "the second to be buffered")
        over = datetime.now(UTC) + timedelta(seconds=EXPIRES_S)
        wait_until(lambda: datetime.now(UTC) > over, "the second to expire")
        memory(alone, "1")
        go.touch()
        wait_until(lambda: "Results can't be stored" in worker.text, "the worker to be refused")
        memory(alone, "0")
        assert busy.get(timeout=60)["label"] == expected_label(f"until:{go}")
        with pytest.raises(TaskRevokedError, match="expired"):
            expiring.get(timeout=60)


def test_4_the_soft_time_limit_passes_while_answers_wait_for_redis(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """A job whose answer is there isn't failed for the time Redis took."""
    go = tmp_path / "go"
    text = f"until:{go}"
    result = send(app, text, soft_time_limit=10)
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: jobs_of(app, "active"), "the batch to run")
        memory(alone, "1")
        go.touch()
        wait_until(lambda: "Soft time limit" in worker.text, "the limit to pass")
        memory(alone, "0")
        assert result.get(timeout=60)["label"] == expected_label(text)


def test_5_the_soft_time_limit_of_a_batch_that_computes_too_long(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Its mates are answered, the culprit alone fails, by the limit's own error."""
    texts = [f"text {number}" for number in range(10)]
    results = send_all(app, [*texts, "hang"], soft_time_limit=5)  # each mate alone has it, too
    with FakeWorker(tmp_path, alone):
        check(results[:-1], texts)
        with pytest.raises(SoftTimeLimitExceeded):
            results[-1].get(timeout=60)


def test_6_the_disk_of_the_backend_is_full_for_longer_than_an_errand_is_tried(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Done: a message comes that no job may be as large as, while each write fails with MISCONF.

    Must hold: its failure is tried for as long as that lasts, and its producer told when it is
    over; only then is the message acknowledged.
    """
    with SmallDisk() as backend:
        settings = {"GOLEM_RESULT_BACKEND": backend.url, "GOLEM_MAX_MESSAGE_BYTES": "2048"}
        producer = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
        with FakeWorker(tmp_path, alone, **settings) as worker:
            with backend.full(), backend.client() as client:
                wait_until(lambda: refused(client), "the disk to be full")
                [invalid] = send_all(producer, ["x" * 3000])
                wait_until(
                    lambda: worker.text.count("the next try is in 2 s") > TRIES,
                    "more tries to fail than an errand has by itself",
                )
                assert not nothing_held(alone)
            with pytest.raises(InvalidJob):
                invalid.get(timeout=60)
            wait_until(lambda: nothing_held(alone), "the message to be acknowledged")
