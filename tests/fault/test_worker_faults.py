"""Numbered scenarios: what was done to a worker, and what must hold for every job after it.

Each compares every answer with the expected one; the runs of a text, counted by the engine, show
what was computed more than once.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.result import AsyncResult

from golem_tasks import DeadLetters, OutOfMemory, PoisonJob
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import (
    W1,
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    producer_for,
    send,
    send_all,
)
from tests.support.waiting import wait_until

KEEPS_DATA = True


def test_1_sigterm_with_a_full_buffer_and_a_running_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Exit 0; what ran is settled, the rest is back in the queue; each job runs exactly once."""
    go = tmp_path / "go"
    texts = [*numbered(40), f"until:{go}", *numbered(300)[40:]]
    results = send_all(app, texts)
    first = FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="20").start()
    with alone.client() as client:
        # What is fetched goes into the buffer once what was there is dispatched: twenty of these
        # wait, forty of them are answered.
        wait_until(lambda: client.llen("golem") == 301 - 80, "the third batch to be dispatched")
        first.signal(signal.SIGTERM)
        wait_until(lambda: client.llen("golem") == 301 - 60, "what waited to be given back")
        go.touch()
        assert first.wait() == 0
        assert first.runs == dict.fromkeys(texts[:60], 1)
        assert client.llen("golem") == 301 - 60
        assert not client.exists("unacked", "unacked_index")
    with FakeWorker(tmp_path, alone, name="w2") as second:
        check(results, texts)
        assert first.runs + second.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)


def test_2_sigquit_in_the_middle_of_a_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """A cold shutdown kills the batch; every job of it is answered by the next worker."""
    go = tmp_path / "go"
    texts = [*numbered(60), f"until:{go}"]
    results = send_all(app, texts)
    first = FakeWorker(tmp_path, alone).start()
    wait_until(lambda: len(jobs_of(app, "active")) == 61, "the batch to run")
    first.signal(signal.SIGQUIT)
    first.wait()
    go.touch()
    with FakeWorker(tmp_path, alone, name="w2") as second:
        check(results, texts)
        assert first.runs + second.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)


def test_3_a_child_killed_in_the_middle_of_a_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """SIGKILL of the process that computes: all jobs of its batch are answered all the same."""
    go = tmp_path / "go"
    texts = [*numbered(50), f"until:{go}"]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 51, "the batch to run")
        old = worker.children
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        go.touch()
        check(results, texts)
        assert set(worker.children).isdisjoint(old)
        assert worker.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)


@pytest.mark.parametrize("poison", ["segfault", "kill", "exit:3", "lost"])
def test_4_a_job_that_ends_its_process_among_63_good_ones(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, poison: str
) -> None:
    """It alone fails, as PoisonJob, after it ended the process twice; it is the dead letter."""
    texts = numbered(63)
    good, bad = send_all(app, texts), send_all(app, [poison])[0]
    with FakeWorker(tmp_path, alone) as worker:
        check(good, texts)
        with pytest.raises(PoisonJob) as caught:
            bad.get(timeout=120)
        assert (caught.value.reason, caught.value.count) == ("crash", 2)
        assert worker.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)
    with DeadLetters(alone.url) as dead:
        assert [(letter.id, letter.crashes) for letter in dead.all()] == [(bad.id, 2)]


def test_4_a_text_too_large_for_the_device_among_63_good_ones(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Out of memory by Python's error and by torch's: OutOfMemory for the two, no process lost."""
    texts = numbered(63)
    good, bad = send_all(app, texts), send_all(app, ["memory", "oom"])
    with FakeWorker(tmp_path, alone) as worker:
        before = worker.children
        check(good, texts)
        for result in bad:
            with pytest.raises(OutOfMemory):
                result.get(timeout=120)
        assert worker.runs == dict.fromkeys(texts, 1)
        assert worker.children == before
    assert nothing_held(alone)
    with DeadLetters(alone.url) as dead:
        assert dead.all() == []


def test_5_a_hanging_job_with_a_hard_time_limit(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """The batch is killed at the limit; the culprit alone fails, its 63 mates are answered."""
    texts = numbered(63)
    results = send_all(app, [*texts, "hang"], time_limit=5)  # each of the mates alone has it, too
    with FakeWorker(tmp_path, alone):
        check(results[:-1], texts)
        with pytest.raises(TimeLimitExceeded):
            results[-1].get(timeout=120)
    assert nothing_held(alone)
    with DeadLetters(alone.url) as dead:
        assert dead.all() == []  # a limit is its producer's own wish, and no poison


def test_6_terminating_one_job_of_a_running_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """revoke(terminate=True) settles that job as REVOKED; the batch isn't killed."""
    go = tmp_path / "go"
    texts = [*numbered(15), f"until:{go}"]
    results = send_all(app, ["unwanted", *texts])
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 17, "the batch to run")
        old = worker.children
        app.control.revoke(results[0].id, terminate=True, **W1)
        # Storing it may take longer than the order: an answer stored before it would stay.
        wait_until(lambda: results[0].state == "REVOKED", "its end to be stored")
        go.touch()
        check(results[1:], texts)
        with pytest.raises(TaskRevokedError, match="terminated"):
            results[0].get(timeout=60)
        assert worker.children == old
    assert nothing_held(alone)


def test_7_redis_killed_and_restarted_under_load(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """The worker lives, keeps what it holds, and every job is answered right, none as FAILURE."""
    texts = numbered(400)
    ids = [result.id for result in send_all(app, texts)]
    settings = {"GOLEM_MAX_ROWS": "20", "FAKE_FORWARD_S": "0.2"}
    with FakeWorker(tmp_path, alone, **settings) as worker:
        wait_until(lambda: len(worker.runs) >= 60, "some batches to be computed")
        pid = worker.pid
        alone.kill()
        alone.start()
        later = producer_for(alone)
        check([AsyncResult(task_id, app=later) for task_id in ids], texts)
        assert worker.pid == pid
        assert worker.runs.keys() == set(texts)
    assert nothing_held(alone)


def test_8_the_worker_killed_under_load(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """SIGKILL of the main process: another worker gets all its jobs when their lease runs out."""
    texts = numbered(200)
    results = send_all(app, texts)
    settings = {"GOLEM_MAX_ROWS": "20", "GOLEM_LEASE_S": "10"}
    first = FakeWorker(tmp_path, alone, FAKE_FORWARD_S="0.3", **settings).start()
    wait_until(lambda: len(first.runs) >= 40, "two batches to be computed")
    first.signal(signal.SIGKILL)
    first.wait()
    with FakeWorker(tmp_path, alone, name="w2", **settings):
        check(results, texts)
        # One the first had answered and not acknowledged may come after the last answer.
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")


def test_9_sigterm_while_a_batch_hangs(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """When the grace is over the batch is given up: exit 0, and its jobs wait in the queue."""
    texts = numbered(5)
    results = send_all(app, ["hang", *texts])
    first = FakeWorker(tmp_path, alone, GOLEM_GRACE_S="10").start()  # five for the jobs to go back
    wait_until(lambda: jobs_of(app, "active"), "the batch to run")
    assert first.stop() == 0
    with alone.client() as client:
        assert client.llen("golem") == 6
        assert not client.exists("unacked", "unacked_index")
        client.rpop("golem")  # the hanging job, which was first and is first again
    with FakeWorker(tmp_path, alone, name="w2"):
        check(results[1:], texts)
    assert nothing_held(alone)


def test_10_a_model_that_cannot_be_loaded_again(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """One of two processes dies and none can replace it: the worker ends, loudly, with code 78."""
    broken = tmp_path / "broken"
    settings = {"GOLEM_PROCESSES": "2", "FAKE_LOAD_ERROR_IF": str(broken)}
    worker = FakeWorker(tmp_path, alone, **settings).start()
    check(send_all(app, ["before"]), ["before"])
    broken.touch()
    os.kill(worker.children[0], signal.SIGKILL)
    assert worker.wait() == 78
    assert "3 replacements in a row failed" in worker.text


def test_11_what_follows_a_terminated_job(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Its callbacks don't run, though the model came to an answer; other jobs' do."""
    go = tmp_path / "go"
    then = app.signature("golem.classify", ["after it"], immutable=True, queue="golem")
    other = app.signature("golem.classify", ["after its mate"], immutable=True, queue="golem")
    unwanted = send(app, f"until:{go}", link=then)
    mate = send(app, "mate", link=other)
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 2, "the batch to run")
        app.control.revoke(unwanted.id, terminate=True, **W1)
        wait_until(lambda: unwanted.state == "REVOKED", "its end to be stored")
        go.touch()
        check([mate], ["mate"])
        wait_until(lambda: "after its mate" in worker.runs, "the mate's callback to run")
        check(send_all(app, ["afterwards"]), ["afterwards"])
        assert "after it" not in worker.runs
    assert nothing_held(alone)


def test_12_a_hanging_job_is_terminated_before_its_hard_time_limit(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: of two jobs in a batch one hangs; it is terminated, then the limit kills the batch.

    Must hold: the one that is left isn't taken for the culprit: it runs again, and is answered.
    """
    hanging, good = send_all(app, ["hang", "innocent"], time_limit=6)
    with FakeWorker(tmp_path, alone):
        wait_until(lambda: len(jobs_of(app, "active")) == 2, "both to run")
        app.control.revoke(hanging.id, terminate=True, **W1)
        check([good], ["innocent"])
        with pytest.raises(TaskRevokedError, match="terminated"):
            hanging.get(timeout=60)
    assert nothing_held(alone)


def test_13_what_a_killed_child_had_stored_is_not_computed_again(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: SIGKILL of a model process that has stored one answer of its batch.

    Must hold: that answer stays, and its job is acknowledged; the others run again, once.
    """
    go = tmp_path / "go"
    texts = [*numbered(20), f"until:{go}"]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 21, "the batch to run")
        meta = {"status": "SUCCESS", "result": {"label": "STORED"}, "traceback": None}
        with alone.client() as client:
            key = f"celery-task-meta-{results[0].id}"
            client.set(key, json.dumps({**meta, "children": [], "task_id": results[0].id}))
        os.kill(worker.children[0], signal.SIGKILL)
        go.touch()
        check(results[1:], texts[1:])
        assert results[0].get(timeout=10)["label"] == "STORED"
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert worker.runs == dict.fromkeys(texts[1:], 1)


def test_14_a_model_that_loads_for_longer_than_celery_waits(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: SIGKILL of a model process whose model takes 6 s to load; stock Celery gives it 4 s.

    Must hold: its replacement comes up and answers, and there is one of it.
    """
    with FakeWorker(tmp_path, alone, FAKE_LOAD_S="6") as worker:
        before = worker.children
        os.kill(before[0], signal.SIGKILL)
        check([send(app, "x")], ["x"])
        assert len(worker.children) == 1
        assert worker.children != before


def test_15_a_child_killed_between_the_forward_pass_and_its_results(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of a process that has computed a batch and stored nothing: no text runs again."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    go = tmp_path / "go"
    texts = [*numbered(50), f"until:{go}"]
    results = send_all(app, texts)
    with alone.client() as client, FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) == 51, "the batch to run")
        (old,) = worker.children
        # Results are stored by a script that writes, which has to wait; reads go on.
        client.client_pause(60_000, all=False)
        go.touch()
        computed = f"golem-worker-*/{old}.computed"
        wait_until(
            lambda: any(file.stat().st_size for file in tmp_path.glob(computed)),
            "the answers to be known",
        )
        os.kill(old, signal.SIGKILL)
        client.client_unpause()
        check(results, texts)
        assert worker.runs == dict.fromkeys(texts, 1)
        assert not list(tmp_path.glob(computed))
    assert nothing_held(alone)
