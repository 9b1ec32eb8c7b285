"""Numbered scenarios: what one of many jobs makes the model raise, and what it costs the others.

In each, every answer is compared with the expected one, the process that holds the model lives on,
and no job is dispatched twice.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery

from golem_tasks import InferenceError, JobError, OutOfMemory
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    numbered,
    producer_for,
    send,
    send_all,
)
from tests.support.waiting import wait_until

# What a text makes the engine do, and what its producer reads: the error, its stage and its words.
CULPRITS: dict[str, tuple[type[JobError], str, str]] = {
    "encode:bad byte": (InferenceError, "encode", "ValueError: bad byte"),
    "pack": (InferenceError, "pack", "ValueError: no length"),
    "raise:no such index": (InferenceError, "forward", "RuntimeError: no such index"),
    "rows:-1": (InferenceError, "forward", "0 answers came back for 1 rows"),
    "rows:+2": (InferenceError, "forward", "3 answers came back for 1 rows"),
    "labels:5": (InferenceError, "forward", "5 logits came back for 3 labels"),
    "nan": (InferenceError, "forward", "the model answered with NaN or infinity"),
    "spread": (InferenceError, "forward", "the model answered with NaN or infinity"),
    "words": (InferenceError, "decode", "TypeError"),
    "raises:Ignore": (InferenceError, "forward", "Ignore"),
    "raises:KeyboardInterrupt": (InferenceError, "forward", "KeyboardInterrupt"),
    "raises:Mute": (InferenceError, "forward", "Mute"),
    "raises:RecursionError": (InferenceError, "forward", "RecursionError: too deep"),
    "raises:Reject": (InferenceError, "forward", "Reject"),
    "raises:Retry": (InferenceError, "forward", "Retry"),
    "raises:SystemExit": (InferenceError, "forward", "SystemExit: 3"),
    "memory": (OutOfMemory, "", ""),
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server for the one worker of these scenarios."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def worker(
    server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeWorker]:
    """One worker for all scenarios, since each claims that it lives on; it runs plain tasks too."""
    include = ["--include", "tests.support.plain_tasks"]
    folder = tmp_path_factory.mktemp("errors")
    with FakeWorker(folder, server, arguments=include) as worker:
        yield worker


@pytest.fixture(scope="module")
def app(server: EmbeddedServer) -> Iterator[Celery]:
    """A stock producer on that server."""
    with producer_for(server) as app:
        yield app
        gc.collect()  # a result that is forgotten says so to the server, which is still there


@contextmanager
def one_batch(
    app: Celery, worker: FakeWorker, server: EmbeddedServer, path: Path
) -> Iterator[None]:
    """What is sent inside waits for a busy model, so that it goes into one batch.

    Afterwards: both of the worker's processes are the same, no message is left, and what was sent
    was dispatched once, in that batch.
    """
    processes, before = (worker.pid, *worker.children), len(worker.dispatches)
    busy = send(app, f"until:{path}")
    wait_until(lambda: jobs_of(app, "active"), "the model to be busy")
    yield
    wait_until(lambda: all_taken(app, server), "all to be buffered")
    path.touch()
    busy.get(timeout=60)
    wait_until(lambda: len(worker.dispatches) == before + 2 and not held(server), "all to settle")
    assert (worker.pid, *worker.children) == processes


def all_taken(app: Celery, server: EmbeddedServer) -> bool:
    """Whether the worker has, and knows of, all that was sent."""
    known = sum(len(jobs_of(app, kind)) for kind in ("active", "reserved"))
    with server.client() as client:
        return not client.exists("golem", "golem.bulk") and client.hlen("unacked") == known


def check_error(error: BaseException, culprit: str) -> None:
    """It is the very error this text was to get, and one sentence."""
    kind, stage, words = CULPRITS[culprit]
    assert type(error) is kind, culprit
    assert getattr(error, "stage", "") == stage, culprit
    assert words in str(error)
    assert "\n" not in str(error)


def held(server: EmbeddedServer) -> bool:
    """Whether a message waits or is unacknowledged."""
    with server.client() as client:
        return bool(client.exists("golem", "golem.bulk", "unacked", "unacked_index"))


def test_1_everything_a_model_may_raise_in_one_batch(
    tmp_path: Path, app: Celery, worker: FakeWorker, server: EmbeddedServer
) -> None:
    """Each culprit alone fails, with the stage and the cause; 63 mates get their own answers."""
    texts = [*numbered(62), "crowd:2"]
    with one_batch(app, worker, server, tmp_path / "go"):
        good, bad = send_all(app, texts), send_all(app, list(CULPRITS))
    assert worker.dispatches[-1] == len(texts) + len(CULPRITS)
    check(good, texts)
    for culprit, result in zip(CULPRITS, bad, strict=True):
        with pytest.raises(JobError) as caught:
            result.get(timeout=60)
        check_error(caught.value, culprit)
    assert "Traceback" not in worker.text


def test_2_culprits_among_the_texts_of_one_job(
    tmp_path: Path, app: Celery, worker: FakeWorker, server: EmbeddedServer
) -> None:
    """Within classify_many the culprits' items alone are errors, named by class and stage."""
    texts = [*numbered(20), *CULPRITS, *numbered(40)[20:]]
    with one_batch(app, worker, server, tmp_path / "go"):
        result = app.send_task("golem.classify_many", [texts], queue="golem")
    items = result.get(timeout=60)["predictions"]
    assert len(items) == len(texts)
    for text, item in zip(texts, items, strict=True):
        if text not in CULPRITS:
            assert item["label"] == expected_label(text)
            continue
        kind, stage, words = CULPRITS[text]
        assert item["error"]["type"] == kind.__name__
        assert words in item["error"]["message"]
        assert f"stage '{stage}'" in item["error"]["message"] or kind is OutOfMemory


def test_3_a_memory_error_of_any_task_stays_in_its_process(
    tmp_path: Path, app: Celery, worker: FakeWorker, server: EmbeddedServer
) -> None:
    """Ours, a plain task's and its hook's: in stock Celery each ends the worker's main process."""
    texts = numbered(20)
    with one_batch(app, worker, server, tmp_path / "go"):
        plain = app.send_task("plain.throw", ["MemoryError"], queue="golem")
        hook = app.send_task("plain.greedy", queue="golem")
        ours, good = send(app, "memory"), send_all(app, texts)
    with pytest.raises(MemoryError, match="no room"):
        plain.get(timeout=60)
    with pytest.raises(OutOfMemory):
        ours.get(timeout=60)
    assert hook.get(timeout=60) == "done"
    check(good, texts)


def test_4_plain_tasks_that_raise_what_celery_reads_as_orders(
    tmp_path: Path, app: Celery, worker: FakeWorker, server: EmbeddedServer
) -> None:
    """Retry, Ignore, Reject and the unpicklable mean what they always did; ours don't notice."""
    texts = numbered(40)
    with one_batch(app, worker, server, tmp_path / "go"):
        good = send_all(app, texts[:20])
        thrown = {
            name: app.send_task("plain.throw", [name], queue="golem")
            for name in ("Ignore", "Reject", "Mute")
        }
        retried = app.send_task("plain.second_try", queue="golem")
        good += send_all(app, texts[20:])
    check(good, texts)
    assert retried.get(timeout=60) == 2
    assert thrown["Ignore"].state == "PENDING"
    for name, words in (("Reject", "not wanted"), ("Mute", "Mute")):
        with pytest.raises(Exception, match=words):
            thrown[name].get(timeout=60)


def test_5_a_plain_task_that_asks_its_process_to_exit(
    tmp_path: Path, app: Celery, worker: FakeWorker, server: EmbeddedServer
) -> None:
    """It fails, once, and the process that holds the model stays."""
    texts = numbered(20)
    with one_batch(app, worker, server, tmp_path / "go"):
        exiting = app.send_task("plain.throw", ["SystemExit"], queue="golem")
        interrupting = app.send_task("plain.throw", ["KeyboardInterrupt"], queue="golem")
        good = send_all(app, texts)
    for result, words in ((exiting, "SystemExit: 3"), (interrupting, "KeyboardInterrupt")):
        with pytest.raises(RuntimeError, match=words):
            result.get(timeout=60)
    check(good, texts)


def test_6_something_else_lies_where_a_result_belongs(
    tmp_path: Path, app: Celery, worker: FakeWorker, server: EmbeddedServer
) -> None:
    """What isn't a result counts as none: the job is answered, and its mates with it."""
    texts = numbered(20)
    junk = ["junk", "[]", b"\xff", "{}", '{"status": "SUCCESS"}', '{"status": []}', "null"]
    ids = [f"occupied-{n}" for n in range(len(junk))]
    with server.client() as client, one_batch(app, worker, server, tmp_path / "go"):
        for job_id, value in zip(ids, junk, strict=True):
            client.set(f"celery-task-meta-{job_id}", value, ex=600)
        ids.append("occupied-by-a-list")
        client.rpush("celery-task-meta-occupied-by-a-list", "junk")
        occupied = [send(app, job_id, task_id=job_id) for job_id in ids]
        good = send_all(app, texts)
    check(good, texts)
    check(occupied, ids)
