"""Hostile payloads against a live worker: each gets a clear answer, and its neighbours theirs."""

import base64
import json
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import NotRegistered, TaskRevokedError
from celery.result import AsyncResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golem_tasks import InvalidJob, Prediction, Predictions
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import FakeWorker, check, producer_for, send
from tests.support.waiting import wait_until

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
surrogates = st.text(st.characters(categories=["Cs", "Cc", "Ll"]), max_size=20)
values = anything | surrogates | st.sampled_from(["", " ", "\0", "a\0b", "x" * 100_001, "\ud800"])
options = st.dictionaries(
    st.sampled_from(["top_k", "logits", "on_long", "text", "text_pair", "texts", "self", "x"]),
    values,
    max_size=3,
)
tasks = st.sampled_from(["golem.classify", "golem.classify_many"])
calls = st.tuples(tasks, st.lists(values, max_size=3), options)


@pytest.fixture(scope="module")
def producer(live_server: EmbeddedServer) -> Celery:
    """A stock producer."""
    return producer_for(live_server)


@pytest.fixture(scope="module")
def broker(live_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A plain client, for messages no producer would write."""
    with live_server.client() as client:
        yield client


def envelope(
    body: bytes, headers: dict[str, Any], task_id: str, content_type: Any = "application/json"
) -> str:
    """A message as kombu puts it on Redis, with any body, any headers and any content type."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": "golem.classify", "id": task_id, **headers},
            "properties": {
                "correlation_id": task_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "golem"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def judge(task: str, result: AsyncResult) -> None:
    """A clear failure, or an answer of the contract's shape."""
    value = result.get(timeout=60, propagate=False)
    if result.state == "FAILURE":
        assert isinstance(value, InvalidJob), repr(value)
        assert value.field
        assert value.reason
    elif task == "golem.classify":
        Prediction.model_validate(value)
    else:
        Predictions.model_validate(value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(calls, min_size=1, max_size=12))
def test_every_hostile_call_gets_a_clear_answer_and_its_neighbours_theirs(
    producer: Celery, worker: FakeWorker, hostile: list[tuple[str, list[Any], dict[str, Any]]]
) -> None:
    """Whatever JSON a producer sends as arguments: InvalidJob with field and reason, or right."""
    before = send(producer, "before")
    sent = [
        (task, producer.send_task(task, args, kwargs, queue="golem"))
        for task, args, kwargs in hostile
    ]
    after = send(producer, "after")
    for task, result in sent:
        judge(task, result)
    check([before, after], ["before", "after"])
    assert worker.alive


embeds = st.dictionaries(
    st.sampled_from(["callbacks", "errbacks", "chain", "chord", "id", "task", "retries", "x"]),
    anything | st.lists(st.dictionaries(st.sampled_from(["task", "options", "args"]), anything)),
    max_size=4,
)
bodies = st.one_of(
    st.binary(max_size=40),
    embeds.map(lambda embed: json.dumps([["a text"], {}, embed]).encode()),
    anything.map(lambda value: json.dumps(value).encode()),
    st.tuples(values, values, values).map(lambda triple: json.dumps(triple).encode()),
)
names = [
    "eta", "expires", "retries", "timelimit", "group", "group_index", "root_id", "stamps",
    "stamped_headers",
]  # fmt: skip
misspelt = st.sampled_from(["golem.classfy", "", "\0", "x" * 500, "celery.backend_cleanup"])
headers = st.builds(
    lambda odd, task: {**odd, "task": task},
    st.dictionaries(st.sampled_from(names), anything, max_size=3),
    st.just("golem.classify") | misspelt,
)
content_types = st.just("application/json") | st.sampled_from(
    ["application/data", "application/x-python-serialize", "text/plain", "", None, 7, ["x"]]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(bodies, headers, content_types), min_size=1, max_size=8))
def test_a_broken_message_fails_alone_and_the_worker_lives(
    producer: Celery,
    worker: FakeWorker,
    broker: redis.Redis,
    broken: list[tuple[bytes, dict[str, Any], Any]],
) -> None:
    """Bodies that aren't Celery's and headers of the wrong type reach nobody but themselves."""
    ids = [str(uuid.uuid4()) for _ in broken]
    for task_id, (body, extra, content_type) in zip(ids, broken, strict=True):
        broker.lpush("golem", envelope(body, extra, task_id, content_type))
    check([send(producer, "good")], ["good"])
    for task_id in ids:
        result = AsyncResult(task_id, app=producer)
        value = result.get(timeout=60, propagate=False)
        assert result.state in ("FAILURE", "REVOKED", "SUCCESS"), repr(value)
    assert worker.alive


compressions = st.sampled_from(
    ["application/x-gzip", "application/x-bz2", "application/x-lzma", "application/zstd", "x"]
)
squeezed = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(zlib.compress),
    st.tuples(st.binary(max_size=40), st.integers(1, 8)).map(lambda t: zlib.compress(t[0])[: t[1]]),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(squeezed, compressions | anything, anything), min_size=1, max_size=8))
def test_whatever_is_called_compressed_its_producer_hears_of_it(
    producer: Celery,
    worker: FakeWorker,
    broker: redis.Redis,
    broken: list[tuple[bytes, Any, Any]],
) -> None:
    """No id stays PENDING, whatever the body, the method's name and the task's are."""
    ids = [str(uuid.uuid4()) for _ in broken]
    for task_id, (body, compression, task) in zip(ids, broken, strict=True):
        extra = {"compression": compression, "task": task}
        broker.lpush("golem", envelope(body, extra, task_id))
    check([send(producer, "good")], ["good"])
    for task_id in ids:
        value = AsyncResult(task_id, app=producer).get(timeout=60, propagate=False)
        assert isinstance(value, InvalidJob | NotRegistered), repr(value)
    assert worker.alive


def test_an_expired_job_of_a_chord_nobody_can_count(
    producer: Celery, worker: FakeWorker, broker: redis.Redis
) -> None:
    """Its group's name can't be a key: it is REVOKED and acknowledged once, not tried for ever."""
    task_id, expired = str(uuid.uuid4()), "2020-01-01T00:00:00+00:00"
    body = json.dumps([["a text"], {}, {"chord": {"task": "x"}}]).encode()
    extra = {"group": "\ud800", "group_index": 0, "expires": expired}
    broker.lpush("golem", envelope(body, extra, task_id))
    check([send(producer, "good")], ["good"])
    with pytest.raises(TaskRevokedError, match="expired"):
        AsyncResult(task_id, app=producer).get(timeout=60)
    # It alone: what other tests of this worker sent may still wait for its time.
    wait_until(
        lambda: not any(task_id.encode() in raw for raw in broker.hvals("unacked")),
        "it to be acknowledged",
    )
    assert worker.alive
