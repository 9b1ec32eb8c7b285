"""What bounds a job that sets itself no bound, and what a bound mustn't cost the others."""

from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from golem_tasks import DeadLetters, JobTimeout
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    send_all,
)
from tests.support.outages import hung, let_pass
from tests.support.waiting import wait_until


def test_1_an_endless_loop_without_any_time_limit_among_63_good_ones(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: one of 64 jobs never ends in the model, and no message gives a limit.

    Must hold: the worker's own limit ends it: it alone fails, as JobTimeout, its mates are answered
    once, and the worker goes on.
    """
    texts = numbered(63)
    *good, bad = send_all(app, [*texts, "hang"])
    with FakeWorker(tmp_path, alone, GOLEM_JOB_TIMEOUT_S="1.5") as worker:
        check(good, texts)
        with pytest.raises(JobTimeout, match=r"1\.5 s") as caught:
            bad.get(timeout=120)
        assert caught.value.limit_s == 1.5
        check(send_all(app, ["afterwards"]), ["afterwards"])
        assert worker.runs == dict.fromkeys([*texts, "afterwards"], 1)
    assert nothing_held(alone)
    with DeadLetters(alone.url) as dead:
        assert dead.all() == []


def test_2_answers_that_wait_for_redis_longer_than_a_job_may_take(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Done: the result backend hangs for longer than the limit while a batch's answers are stored.

    Must hold: the limit counts the model's time alone: every job is answered, and computed once.
    """
    go = tmp_path / "go"
    texts = [*numbered(20), f"until:{go}"]
    settings = {"GOLEM_JOB_TIMEOUT_S": "4", "GOLEM_SOCKET_TIMEOUT_S": "1"}
    with EmbeddedServer(appendonly=True) as backend:
        app = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
        ids = [result.id for result in send_all(app, texts)]
        settings["GOLEM_RESULT_BACKEND"] = backend.url
        with FakeWorker(tmp_path, alone, **settings) as worker:
            wait_until(lambda: len(jobs_of(app, "active")) == 21, "the batch to run")
            with hung(backend.pid):
                go.touch()
                let_pass(6)
            later = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
            check([AsyncResult(task_id, app=later) for task_id in ids], texts)
            assert worker.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)
