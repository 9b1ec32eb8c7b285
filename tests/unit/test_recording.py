"""Errands of the recorder: what is repeated for ever, what isn't, and how a job ends by each."""

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from redis import exceptions

from golem_tasks.errors import BrokerUnavailable
from tests.support.turns import Loop
from worker import control
from worker.recording import TRIES, is_servers_state

PIPELINE = "Command # 1 (SETEX celery-task-meta-x ...) of pipeline caused error: "
"""What redis-py puts before the words of an error in a pipeline."""
CONTENT = "a text that nobody else may read"
FULL = exceptions.ResponseError("MISCONF Redis is configured to save snapshots")


def because(cause: Exception) -> BrokerUnavailable:
    """Our sentence about a server, with its cause."""
    error = BrokerUnavailable("Redis refused")
    error.__cause__ = cause
    return error


class Failing:
    """Something to write that fails so many times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.times = times
        self.tries = 0

    def __call__(self) -> str:
        """Fail, or tell that it is stored."""
        self.tries += 1
        if self.tries <= self.times:
            raise self.error
        return "stored"


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("away"),
        exceptions.TimeoutError("hangs"),
        exceptions.OutOfMemoryError("OOM"),
        exceptions.NoPermissionError("not yours"),
        FULL,
        because(FULL),
        *(
            exceptions.ResponseError(before + words)
            for before in ("", PIPELINE)
            for words in (
                "MISCONF Errors writing to the AOF file",
                "NOREPLICAS Not enough good replicas to write.",
                "BUSY Redis is busy running a script.",
                "READONLY You can't write against a read only replica.",
                "OOM command not allowed",
                "LOADING Redis is loading the dataset in memory",
                "TRYAGAIN Multiple keys request during rehashing of slot",
            )
        ),
        exceptions.ClusterDownError("The cluster is down"),
        exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
        because(exceptions.ConnectionError("away")),
    ],
)
def test_what_is_the_servers_state_is_tried_until_it_passes(error: Exception) -> None:
    """However long: an outage never ends a job."""
    loop, write, ends = Loop(), Failing(error, 5 * TRIES), list[Any]()
    assert is_servers_state(error)
    loop.recorder.put("job", write, ends.append)
    loop.turn(lambda: bool(ends), "the errand to end")
    assert (ends, write.tries) == (["stored"], 5 * TRIES + 1)
    assert loop.recorder.unfinished == 0


@pytest.mark.parametrize(
    "error",
    [
        TypeError(CONTENT),
        UnicodeEncodeError("utf-8", CONTENT, 0, 1, "surrogates not allowed"),
        exceptions.DataError(CONTENT),
        exceptions.ResponseError("WRONGTYPE Operation against a key"),
        because(exceptions.ResponseError("WRONGTYPE Operation against a key")),
        exceptions.ResponseError(f"{PIPELINE}WRONGTYPE Operation against a key"),
        exceptions.ResponseError("BUSYKEY Target key name already exists."),
    ],
)
def test_what_is_the_errands_own_fault_is_tried_a_few_times(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a pause; then the job goes on without, once; the log doesn't quote the error."""
    loop, write, ends = Loop(retry_s=3600), Failing(error, 10**6), list[Any]()
    assert not is_servers_state(error)
    with caplog.at_level(logging.DEBUG):
        loop.recorder.put("job", write, ends.append, ["request"])
        assert list(loop.recorder.requests) == ["request"]
        loop.turn(lambda: bool(ends), "the errand to end")
    assert (ends, write.tries) == ([None], TRIES)
    assert (loop.recorder.unfinished, list(loop.recorder.requests)) == (0, [])
    assert "isn't tried again" in caplog.text
    assert CONTENT not in caplog.text


def test_a_simpler_errand_takes_the_place_of_one_that_cant_be_done() -> None:
    """An error that can't be stored by what it is gives way to one that can, outage or not."""
    loop, ends = Loop(), list[Any]()
    write, plain = Failing(TypeError(), 10**6), Failing(exceptions.ConnectionError(), 2 * TRIES)
    loop.recorder.put("job", write, ends.append, otherwise=plain)
    loop.turn(lambda: bool(ends), "the errand to end")
    assert (ends, write.tries, plain.tries) == (["stored"], TRIES, 2 * TRIES + 1)


def test_one_that_fails_doesnt_hold_up_the_others() -> None:
    """It goes to the end of the line."""
    loop, ends = Loop(), list[str]()
    here = threading.Event()

    def refused() -> None:
        here.wait(60)
        raise TypeError

    loop.recorder.put("bad", refused, lambda _: ends.append("bad"))
    loop.recorder.put("good", lambda: None, lambda _: ends.append("good"))
    here.set()
    loop.turn(lambda: len(ends) == 2, "both to end")
    assert ends == ["good", "bad"]


class Backend:
    """Where jobs are marked as revoked."""

    def __init__(self) -> None:
        self.marked: set[str] = set()

    def get_state(self, _: str) -> str:
        """Nobody has begun any."""
        return "PENDING"

    def mark_as_revoked(self, task_id: str, reason: str) -> None:
        """Note it."""
        assert reason == "revoked"
        self.marked.add(task_id)


IMPOSSIBLE = [5, None, "", "\ud800", "x" * 10_001, ["a"], {"id": "a"}, True]


def test_a_revocation_passes_over_ids_no_job_can_have() -> None:
    """Those of jobs are marked, be they between others; Celery's memory gets no other."""
    loop, backend = Loop(), Backend()
    app = SimpleNamespace(golem_recorder=loop.recorder, backend=backend)
    state = SimpleNamespace(app=app, consumer=None)
    ids = ["unit-a", "unit-b"]
    assert "ok" in control.revoke(state, [*IMPOSSIBLE, *ids])
    loop.turn(lambda: loop.recorder.unfinished == 0, "the revocation to be stored")
    assert backend.marked == set(ids)
    refused = control.revoke(state, IMPOSSIBLE)
    assert "no job has such an id" in refused["error"]
    assert loop.recorder.unfinished == 0
    remembered = control.worker_state.revoked
    assert [each for each in [*ids, "", "\ud800"] if each in remembered] == ids
    for task_id in ids:
        remembered.discard(task_id)
