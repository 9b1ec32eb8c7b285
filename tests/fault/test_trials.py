"""Trials of jobs delivered too often, while Redis hangs: nothing else waits for it."""

from types import SimpleNamespace
from typing import Any

from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import load
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


def trials_of(server: EmbeddedServer, loop: Loop) -> Trials:
    """Trials of a worker on that server."""
    settings = load(
        WorkerSettings, broker_url=server.url, max_deliveries=ALLOWED, socket_timeout_s=1.0
    )
    return Trials(settings, loop.recorder)


def test_1_a_trial_that_begins_while_redis_hangs(alone: EmbeddedServer) -> None:
    """Done: SIGSTOP of the server for longer than its timeout, while a trial is to begin.

    Must hold: who begins it isn't kept waiting; the job is held meanwhile, and no other trial may
    begin; it runs once, when the note is there.
    """
    loop, job, ran = Loop(), request(), list[bool]()
    trials = trials_of(alone, loop)
    with alone.client() as client:
        with hung(alone.pid):
            trials.begin(job, lambda: ran.append(bool(client.exists(NOTE))))
            loop.turn(lambda: loop.recorder._behind, "a try to fail")
            assert trials.beginning
            assert list(loop.recorder.requests) == [job]
            assert ran == []
        loop.turn(lambda: ran, "the trial to begin")
        assert ran == [True]
        assert not trials.beginning
        assert 0 < client.ttl(NOTE) <= 24 * 3600
        trials.end(job)
        wait_until(lambda: not client.exists(NOTE), "its end to be noted")
        loop.turn(lambda: not loop.recorder.unfinished, "the errand to end")
    assert ran == [True]


def test_2_a_job_is_judged_while_redis_hangs(alone: EmbeddedServer) -> None:
    """Done: SIGSTOP of the server, while it has to be asked whether jobs had their trial.

    Must hold: nobody waits; a job the server can't be asked about has its trial to come, one it
    can is judged by its note. Where the count alone tells, nothing is asked.
    """
    loop, job, judged = Loop(), request(), list[bool]()
    trials = trials_of(alone, loop)
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
        trials.judge(job, ALLOWED + 1, judged.append)
        loop.turn(lambda: len(judged) == 4, "the judgement")
    assert judged == [False, True, False, True]
