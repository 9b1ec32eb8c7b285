"""What bounds a job that sets itself no bound, and what a bound mustn't cost the others."""

import json
import os
import signal
from pathlib import Path

import pytest
import redis
from celery import Celery, chord
from celery.exceptions import ChordError
from celery.result import AsyncResult

from golem_tasks import DeadLetters, InvalidJob, JobTimeout
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import (
    FakeWorker,
    check,
    ids_of,
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
    with FakeWorker(tmp_path, alone, GOLEM_JOB_TIMEOUT_S="6") as worker:
        check(good, texts)
        with pytest.raises(JobTimeout, match=r" 6 s") as caught:
            bad.get(timeout=120)
        assert caught.value.limit_s == 6
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
    settings = {"GOLEM_JOB_TIMEOUT_S": "10", "GOLEM_SOCKET_TIMEOUT_S": "1"}
    with EmbeddedServer() as backend:
        app = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
        ids = [result.id for result in send_all(app, texts)]
        settings["GOLEM_RESULT_BACKEND"] = backend.url
        with FakeWorker(tmp_path, alone, **settings) as worker:
            wait_until(lambda: len(jobs_of(app, "active")) == 21, "the batch to run")
            with hung(backend.pid):
                go.touch()
                let_pass(12)
            later = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
            check([AsyncResult(task_id, app=later) for task_id in ids], texts)
            assert worker.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)


SMALL = {"GOLEM_MAX_MESSAGE_BYTES": "1024"}
"""A worker that decodes messages of up to some 68 KiB."""


def spoil(client: redis.Redis, place: int, how: str) -> str:
    """Make a message of the queue unreadable, its headers aside; the id of its job."""
    raw = client.lindex("golem", place)
    assert isinstance(raw, bytes)
    message = json.loads(raw)
    if how == "no route":
        message["properties"]["delivery_info"] = None
    elif how == "giant":
        message["body"] = [[]] * 100_000
    elif how == "giant without route":
        message["body"], message["properties"] = "x" * 200_000, {}
    elif how == "giant of the first protocol":
        message["body"] = "x" * 200_000
        del message["headers"]["task"]
    elif how == "body":
        message["body"] = "bm8gSlNPTg=="
    changed = json.dumps(message).encode()
    if how == "cut off":
        # Its headers first, as other producers have them.
        order = ("headers", "body", "properties")
        changed = json.dumps({name: message[name] for name in order}).encode()[:-30]
    client.lset("golem", place, changed)
    return str(message["headers"]["id"])


HOWS = ["no route", "cut off", "giant", "giant without route", "giant of the first protocol"]


def test_3_messages_no_worker_can_read_that_name_their_job(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: messages among good ones lose their routing or their end, or grow beyond every bound.

    Must hold: each of their jobs fails as InvalidJob, the others are answered, nothing is held; of
    a giant both ends are kept, of any other all of it.
    """
    texts = numbered(20)
    results = send_all(app, texts)
    with alone.client() as client:
        places = dict(zip(range(2, 20, 3), HOWS, strict=False))
        spoilt = {spoil(client, place, how) for place, how in places.items()}
        with FakeWorker(tmp_path, alone, **SMALL) as worker:
            for result, text in zip(results, texts, strict=True):
                if result.id in spoilt:
                    with pytest.raises(InvalidJob):
                        result.get(timeout=60)
                else:
                    check([result], [text])
            wait_until(lambda: nothing_held(alone), "everything to be settled")
            assert "[[" not in worker.text
        kept = client.lrange("golem:dead:envelopes", 0, -1)
        assert len(kept) == len(HOWS)
        assert max(map(len, kept)) <= 2 * 32 * 1024


@pytest.mark.parametrize("how", ["body", "no route", "giant"])
def test_4_a_member_of_a_chord_that_cannot_be_read(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, how: str
) -> None:
    """Done: the first sent of a chord's three members is spoilt, what follows them in its body.

    Must hold: it fails, its mates are answered, and what follows the chord fails with ChordError.
    """
    members = [app.signature("golem.classify", [text], queue="golem") for text in "abc"]
    follows = app.signature("golem.classify", queue="golem")
    whole = chord(members)(follows)
    with alone.client() as client:
        member = spoil(client, -1, how)
    with FakeWorker(tmp_path, alone, **SMALL) as worker:
        with pytest.raises(InvalidJob):
            AsyncResult(member, app=app).get(timeout=60)
        with pytest.raises(ChordError):
            AsyncResult(whole.id, app=app).get(timeout=60)
        assert worker.runs == {"b": 1, "c": 1}
    assert nothing_held(alone)


def test_5_no_model_process_is_up_while_another_takes_its_time_to_load(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: the only process of a worker is killed with a batch in it; its replacement loads long.

    Must hold: what waited is back in the queue, uncounted, and stays there until a process is up;
    then the same worker answers all of it once. Done again with a second worker: that one answers.
    """
    blocked, go = tmp_path / "blocked", tmp_path / "go"
    settings = {"FAKE_LOAD_WAITS_IF": str(blocked), "GOLEM_MAX_ROWS": "10"}
    texts = [f"until:{go}", *numbered(30)]

    def stall(worker: FakeWorker) -> list[AsyncResult]:
        running = send_all(app, texts[:1])
        # Not any job: the last ones of the round before are answered, and maybe still active.
        wait_until(lambda: running[0].id in ids_of(app, "active"), "the first to run")
        waiting = send_all(app, texts[1:])
        with alone.client() as client:
            wait_until(lambda: client.hlen("unacked") > 10, "others to be buffered")
            blocked.touch()
            os.kill(worker.children[0], signal.SIGKILL)
            wait_until(lambda: client.llen("golem") == 30, "the waiting ones to be back")
            assert client.hlen("unacked") == 1
            counts = [client.get(key) for key in client.keys("golem:deliveries:*")]
            assert set(counts) == {b"0"}
        return running + waiting

    with FakeWorker(tmp_path, alone, **settings) as worker:
        results = stall(worker)
        go.touch()
        blocked.unlink()
        check(results, texts)
        assert worker.runs == dict.fromkeys(texts, 1)
        go.unlink()
        results = stall(worker)
        with FakeWorker(tmp_path, alone, name="w2") as other:
            check(results[1:], texts[1:])
            assert other.runs == dict.fromkeys(texts[1:], 1)
        go.touch()
        blocked.unlink()
        check(results[:1], texts[:1])
        assert worker.runs == {**dict.fromkeys(texts, 1), texts[0]: 2}
    assert nothing_held(alone)


@pytest.mark.parametrize("jobs", [1, 20])
def test_6_a_hard_time_limit_that_passes_while_answers_are_stored(
    tmp_path: Path, alone: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """Done: messages set a hard limit, and it passes when all is computed and nothing stored.

    Must hold: their process is killed, every job is answered with what it had computed, a lone one
    as well, and nothing of the killed one is left.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    texts = numbered(jobs)
    with EmbeddedServer() as backend, backend.client() as client:
        app = Celery(broker=alone.url, backend=backend.url, set_as_current=False)
        with FakeWorker(tmp_path, alone, GOLEM_RESULT_BACKEND=backend.url) as worker:
            [old] = worker.children
            client.client_pause(60_000, all=False)  # writes wait, reads go on
            results = send_all(app, texts, time_limit=6)  # also for storing them once it can
            wait_until(lambda: "Hard time limit" in worker.text, "the limit to pass")
            client.client_unpause()
            check(results, texts)
            assert worker.runs == dict.fromkeys(texts, 1)
            assert old not in worker.children
            assert not list(tmp_path.glob(f"golem-worker-*/{old}.computed"))
    assert nothing_held(alone)
