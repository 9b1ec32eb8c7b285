"""Trials of jobs delivered too often, while Redis hangs or refuses: nothing else waits for it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import load
from tests.support.fake_workers import FakeWorker, check, jobs_of, nothing_held, send
from tests.support.outages import hung
from tests.support.turns import Loop
from tests.support.waiting import wait_until
from worker.settings import WorkerSettings
from worker.trials import UNTRIED_TIMES, Trials

ALLOWED = 3
NOTE = "golem:dead:tried:tag"


def request() -> Any:
    """As much of a job as a trial needs."""
    return SimpleNamespace(id="job", message=SimpleNamespace(delivery_tag="tag"))


def trials_of(server: EmbeddedServer, loop: Loop, **settings: float) -> Trials:
    """Trials of a worker on that server."""
    worker = load(WorkerSettings, broker_url=server.url, max_deliveries=ALLOWED, **settings)
    return Trials(worker, loop.recorder)


def test_1_a_trial_that_begins_while_redis_hangs(alone: EmbeddedServer) -> None:
    """Done: SIGSTOP of the server for longer than its timeout, while a trial is to begin.

    Must hold: who begins it isn't kept waiting; the job is held meanwhile, and no other trial may
    begin; it doesn't run, and then it does, once, when the note is there.
    """
    loop, job, may = Loop(), request(), list[bool]()
    impatient = trials_of(alone, loop, socket_timeout_s=1.0)
    with alone.client() as client:
        with hung(alone.pid):
            impatient.begin(job, may.append)
            assert impatient.beginning
            assert list(loop.recorder.requests) == [job]
            loop.turn(lambda: may, "the try to fail")
            assert may == [False]
            assert (impatient.beginning, impatient.paused) == (False, True)
        trials = trials_of(alone, loop)  # with a timeout no busy machine exceeds
        trials.begin(job, lambda noted: may.append(noted and bool(client.exists(NOTE))))
        loop.turn(lambda: len(may) == 2, "the trial to begin")
        assert may == [False, True]
        assert (trials.beginning, trials.paused) == (False, False)
        assert 0 < client.ttl(NOTE) <= 24 * 3600
        trials.end(job)
        wait_until(lambda: not client.exists(NOTE), "its end to be noted")
        loop.turn(lambda: not loop.recorder.unfinished, "the errand to end")
    assert may == [False, True]


def test_2_a_job_is_judged_while_redis_hangs(alone: EmbeddedServer) -> None:
    """Done: SIGSTOP of the server, while it has to be asked whether jobs had their trial.

    Must hold: nobody waits; a job the server can't be asked about has its trial to come, one it
    can is judged by its note. Where the count alone tells, nothing is asked.
    """
    loop, job, judged = Loop(), request(), list[bool]()
    trials = trials_of(alone, loop, socket_timeout_s=1.0)
    with alone.client() as client:
        client.set(NOTE, "1")
        with hung(alone.pid):
            trials.judge(job, ALLOWED, judged.append)
            trials.judge(job, UNTRIED_TIMES * ALLOWED + 1, judged.append)
            assert judged == [False, True]
            trials.judge(job, ALLOWED + 1, judged.append)
            assert judged == [False, True]
            assert list(loop.recorder.requests) == [job]
            loop.turn(lambda: len(judged) == 3, "the judgement")
        trials = trials_of(alone, loop)  # as above
        trials.judge(job, ALLOWED + 1, judged.append)
        loop.turn(lambda: len(judged) == 4, "the judgement")
    assert judged == [False, True, False, True]


def send_again(server: EmbeddedServer, app: Celery, text: str) -> AsyncResult:
    """Send a job as one that was delivered before."""
    result = send(app, text, queue="parked")
    with server.client() as client:
        message = json.loads(client.rpop("parked"))  # type: ignore[arg-type]
        message["properties"]["delivery_info"] = {
            "exchange": "", "routing_key": "golem", "redelivered": True
        }  # fmt: skip
        client.lpush("golem", json.dumps(message))
    return result


def test_3_the_broker_is_full_when_a_trial_is_to_begin(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Done: the only process is busy, a job on trial comes next, and Redis takes no note of it.

    Must hold: the jobs behind it are answered meanwhile; it is, once, when there is room again.
    """
    go = tmp_path / "go"
    settings = {"GOLEM_MAX_DELIVERIES": "2", "GOLEM_MAX_AGE_MS": "1"}  # the oldest goes first
    with EmbeddedServer() as backend, alone.client() as client:
        app = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
        settings["GOLEM_RESULT_BACKEND"] = backend.url
        with FakeWorker(tmp_path, alone, **settings) as worker:
            busy = send(app, f"until:{go}")
            wait_until(lambda: jobs_of(app, "active"), "the process to be busy")
            tried = send_again(alone, app, "on trial")
            wait_until(lambda: len(jobs_of(app, "reserved")) == 1, "it to be buffered")
            others = [send(app, "another")]
            wait_until(lambda: len(jobs_of(app, "reserved")) == 2, "the other to be buffered")
            client.config_set("maxmemory", 1)
            go.touch()
            check([busy, *others], [f"until:{go}", "another"])
            wait_until(lambda: "can't be noted" in worker.text, "the note to be refused")
            assert not tried.ready()
            client.config_set("maxmemory", 0)
            check([tried], ["on trial"])
            wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
            assert worker.runs == dict.fromkeys([f"until:{go}", "another", "on trial"], 1)
        assert not list(client.scan_iter("golem:dead:tried:*"))


def test_4_a_worker_is_told_to_leave_while_a_trial_runs(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: SIGTERM while a job on trial takes longer than the grace.

    Must hold: it isn't to blame: no note of its trial stays, and the next worker answers it.
    """
    go = tmp_path / "go"
    settings = {"GOLEM_MAX_DELIVERIES": "2", "GOLEM_GRACE_S": "10"}  # five to end it
    with FakeWorker(tmp_path, alone, **settings) as first, alone.client() as client:
        tried = send_again(alone, app, f"until:{go}")
        wait_until(lambda: jobs_of(app, "active"), "the trial to run")
        assert list(client.scan_iter("golem:dead:tried:*"))
        assert first.stop() == 0
        assert not list(client.scan_iter("golem:dead:tried:*"))
    go.touch()
    with FakeWorker(tmp_path, alone, name="w2", **settings):
        check([tried], [f"until:{go}"])
