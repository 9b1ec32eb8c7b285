"""Messages a worker can't use: each gets its FAILURE, and the log never shows what was in it."""

import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery, chain, chord, signature
from celery.exceptions import ChordError, NotRegistered, TaskRevokedError
from celery.result import AsyncResult

from golem_tasks import InvalidJob
from golem_tasks.embedded import EmbeddedServer, free_port
from tests.integration.test_hostile import envelope
from tests.support.fake_workers import FakeWorker, check, producer_for, send
from tests.support.waiting import wait_until

LETTER = "Chloe's private letter"
BODY = json.dumps([[LETTER], {}, None]).encode()


@pytest.fixture(scope="module")
def app(live_server: EmbeddedServer) -> Celery:
    """A stock producer."""
    return producer_for(live_server)


@pytest.fixture(scope="module")
def broker(live_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A plain client, for messages no producer would write."""
    with live_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedServer]:
    """A server for results alone, so that the queue goes on when it refuses."""
    with EmbeddedServer() as server:
        yield server


def push(
    broker: redis.Redis, body: bytes, outer: dict[str, Any], queue: str = "golem", **headers: Any
) -> str:
    """Queue a message of our task; `outer` goes beside its body. Returns its id.

    A header set to None is left away.
    """
    task_id = str(uuid4())
    message = json.loads(envelope(body, headers, task_id))
    message["headers"] = {k: v for k, v in message["headers"].items() if v is not None}
    broker.lpush(queue, json.dumps({**message, **outer}))
    return task_id


def outcome(app: Celery, task_id: str) -> Any:
    """The value or exception a job ended with."""
    return AsyncResult(task_id, app=app).get(timeout=60, propagate=False)


def noted(server: EmbeddedServer, key: str) -> list[str]:
    """What the errback noted."""
    with server.client() as client:
        return [line.decode() for line in client.lrange(key, 0, -1)]


def tried_twice(worker: FakeWorker, line: str) -> bool:
    """Whether the log has this line more than once."""
    return worker.text.count(line) > 1


def test_a_misspelt_task_fails_and_its_text_stays_out_of_the_log(
    app: Celery, worker: FakeWorker
) -> None:
    """The producer gets NotRegistered at once; the log names id, task and size."""
    misspelt = app.send_task("golem.classfy", [LETTER], queue="golem", argsrepr="()")
    assert isinstance(outcome(app, misspelt.id), NotRegistered)
    wait_until(lambda: misspelt.id in worker.text, "the refusal's line")
    assert "golem.classfy" in worker.text
    assert LETTER not in worker.text


@pytest.mark.parametrize(
    ("outer", "headers"),
    [
        ({"content-type": "application/x-python-serialize"}, {}),
        ({"content-type": "application/data"}, {}),
        ({"content-type": ["application/json"]}, {}),
        ({}, {"eta": "9999-12-31T23:59:59-12:00"}),
        ({}, {"group": "g", "group_index": "first"}),
    ],
)
def test_an_undecodable_message_fails_and_its_text_stays_out_of_the_log(
    app: Celery,
    worker: FakeWorker,
    broker: redis.Redis,
    outer: dict[str, Any],
    headers: dict[str, Any],
) -> None:
    """A codec, a content or a header that can't be used is the job's own clear failure."""
    task_id = push(broker, BODY, outer, argsrepr=LETTER, **headers)
    assert isinstance(outcome(app, task_id), InvalidJob)
    assert LETTER not in worker.text
    check([send(app, "after")], ["after"])
    assert worker.alive


@pytest.mark.parametrize(
    "body",
    [
        LETTER.encode(),
        json.dumps({"__type__": "datetime", "__value__": LETTER}).encode(),
        json.dumps({"task": "nobody.has", "id": "x", "args": [LETTER]}).encode(),
    ],
)
def test_a_message_without_a_task_header_fails_alone(
    app: Celery, worker: FakeWorker, broker: redis.Redis, body: bytes
) -> None:
    """Neither Celery's old protocol nor what resembles it ends the worker or reaches its log."""
    task_id = push(broker, body, {}, task=None)
    assert isinstance(outcome(app, task_id), InvalidJob | NotRegistered)
    assert LETTER not in worker.text
    assert worker.alive


@pytest.mark.parametrize(
    ("body", "compression"),
    [
        (BODY, "application/x-gzip"),
        (zlib.compress(BODY)[:-6], "application/x-gzip"),
        (zlib.compress(BODY) + BODY, "application/x-gzip"),
        (zlib.compress(b" " * 9 * 1024 * 1024 + BODY), "application/x-gzip"),
        (BODY, "application/x-nobody"),
        (BODY, ["application/x-gzip"]),
        (BODY, 7),
    ],
)
def test_a_body_that_cannot_be_decompressed_fails_its_job(
    app: Celery,
    worker: FakeWorker,
    broker: redis.Redis,
    body: bytes,
    compression: Any,
) -> None:
    """The id is read where it lies uncompressed; the message is kept, its text is in no log."""
    task_id = push(broker, body, {}, compression=compression)
    assert isinstance(outcome(app, task_id), InvalidJob)

    def kept() -> int:
        return sum(task_id.encode() in raw for raw in broker.lrange("golem:dead:envelopes", 0, -1))

    wait_until(kept, "the message to be kept")
    assert kept() == 1
    assert LETTER not in worker.text
    check([send(app, "after")], ["after"])


@pytest.mark.parametrize("odd", [None, 7, ["x"], "", {"id": "x"}])
def test_a_header_id_that_is_none_is_made_up_for_by_the_correlation_id(
    app: Celery, worker: FakeWorker, broker: redis.Redis, odd: Any
) -> None:
    """Celery writes the job's id twice; its producer waits for the one that is left."""
    task_id = push(broker, BODY, {}, id=odd, compression="application/x-gzip")
    assert isinstance(outcome(app, task_id), InvalidJob)
    assert worker.alive


def test_under_the_stock_transport_odd_messages_fail_alone(
    tmp_path: Path, live_server: EmbeddedServer, app: Celery, broker: redis.Redis
) -> None:
    """It hands on what ours takes out: broken compression, and tasks named by no string."""
    queue = "golem.plain"
    old = json.dumps({"task": [LETTER], "id": "x", "args": [LETTER]}).encode()
    with FakeWorker(tmp_path, live_server, GOLEM_TRANSPORT="stock", GOLEM_QUEUE=queue) as worker:
        odd = [
            push(broker, BODY, {}, queue, compression="application/x-nobody"),
            push(broker, BODY, {}, queue, compression="application/x-gzip"),
            push(broker, BODY, {}, queue, task=["golem.classify"]),
            push(broker, old, {}, queue, task=None),
        ]
        for task_id in odd:
            assert isinstance(outcome(app, task_id), InvalidJob)
        check([send(app, "after", queue=queue)], ["after"])
        assert LETTER not in worker.text


def test_a_built_in_tasks_broken_body_fails_alone(
    app: Celery, worker: FakeWorker, broker: redis.Redis
) -> None:
    """Tasks of Celery's own are behind the same check as ours."""
    task_id = push(broker, b"[1]", {}, task="celery.backend_cleanup")
    assert isinstance(outcome(app, task_id), InvalidJob)
    assert worker.alive


@pytest.mark.usefixtures("stock_worker", "worker")
@pytest.mark.parametrize(("task", "text"), [("golem.classfy", "short"), ("golem.classify", None)])
def test_a_refused_message_fails_its_chord_its_chain_and_calls_its_errback(
    app: Celery, live_server: EmbeddedServer, task: str, text: str | None
) -> None:
    """What waits for a refused job learns of its failure instead of waiting for ever."""
    sent = "x" * (5 * 1024 * 1024) if text is None else text
    refused = signature(task, args=(sent,), app=app).set(queue="golem")
    fine = signature("golem.classify", args=("fine",), app=app).set(queue="golem")
    body = signature("callbacks.count", app=app).set(queue="celery")
    expected = NotRegistered if text else InvalidJob

    whole = chord([fine, refused.clone()], body).apply_async()
    assert isinstance(whole.get(timeout=60, propagate=False), ChordError)

    then = signature("callbacks.label", app=app).set(queue="celery")
    last = chain(refused.clone(), then).apply_async()
    assert isinstance(last.get(timeout=60, propagate=False), expected)

    key = f"noted-{uuid4()}"
    errback = signature("callbacks.note_failure", args=(key,), app=app).set(queue="celery")
    alone = refused.clone().apply_async(link_error=errback)
    assert isinstance(outcome(app, alone.id), expected)
    wait_until(lambda: noted(live_server, key) == [f"{alone.id} failed"], "the errback")


def test_callbacks_that_are_no_signatures_reach_nobody_else(
    app: Celery, worker: FakeWorker, broker: redis.Redis
) -> None:
    """A refused job's own errbacks may be anything; the next job is answered."""
    embed = {"errbacks": [{}], "chain": [{"options": 1}], "chord": {"task": 1}}
    body = json.dumps([LETTER, {}, embed]).encode()
    task_id = push(broker, body, {}, group=str(uuid4()))
    assert isinstance(outcome(app, task_id), InvalidJob)
    check([send(app, "after")], ["after"])
    assert worker.alive


def test_a_body_cannot_pass_for_another_job(
    app: Celery, worker: FakeWorker, broker: redis.Redis
) -> None:
    """What Celery lets a body override, the request's id first of all, is left out of it."""
    other = str(uuid4())
    embed = {"id": other, "task": "x", "retries": "many", "is_eager": True, "chain": None}
    task_id = push(broker, json.dumps([["mine"], {}, embed]).encode(), {})
    check([AsyncResult(task_id, app=app)], ["mine"])
    assert AsyncResult(other, app=app).state == "PENDING"
    assert worker.alive


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
@pytest.mark.parametrize("value", ["x", 1, ["x"]])
def test_an_embed_that_holds_no_signatures_is_refused(
    app: Celery, broker: redis.Redis, name: str, value: Any
) -> None:
    """The failure names the part that is wrong."""
    error = outcome(app, push(broker, json.dumps([["text"], {}, {name: value}]).encode(), {}))
    assert isinstance(error, InvalidJob)
    assert error.field == name


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_refusals_wait_while_redis_refuses_to_store_them(
    tmp_path: Path, live_server: EmbeddedServer, store: EmbeddedServer, trouble: str
) -> None:
    """Refused and expired jobs are kept until their end can be stored; the worker lives on."""
    queue = f"golem.{trouble}"
    app = Celery(broker=live_server.url, backend=store.url, set_as_current=False)
    settings = {"GOLEM_RESULT_BACKEND": store.url, "GOLEM_QUEUE": queue}
    with FakeWorker(tmp_path, live_server, **settings) as worker, store.client() as client:
        if trouble == "full":
            client.config_set("maxmemory", "1")
        else:
            client.replicaof("127.0.0.1", free_port())
        past = datetime.now(UTC) - timedelta(hours=1)
        misspelt = app.send_task("golem.classfy", ["text"], queue=queue)
        expired = send(app, "late", queue=queue, expires=past)
        for result in (misspelt, expired):
            line = f"The end of job {result.id!r} can't be stored"
            wait_until(partial(tried_twice, worker, line), "the worker to try twice")
        assert worker.alive
        if trouble == "full":
            client.config_set("maxmemory", "0")
        else:
            client.replicaof("NO", "ONE")
        assert isinstance(outcome(app, misspelt.id), NotRegistered)
        assert isinstance(outcome(app, expired.id), TaskRevokedError)
        check([send(app, "after", queue=queue)], ["after"])
