"""docs/contract.md: every JSON document of the page is what really is on the wire."""

import base64
import json
import re
from typing import Any
from uuid import uuid4

import pytest

from golem_tasks import Golem
from golem_tasks.embedded import EmbeddedServer
from tests.support.markdown import blocks
from tests.support.servers import ROOT
from tests.support.waiting import wait_until

PAGE = ROOT / "docs" / "contract.md"
BODY, MESSAGE, SUCCESS, FAILURE, MANY_BODY, MANY_RESULT, OURS = (
    json.loads(block) for block in blocks(PAGE, "json")
)
# What differs from one job to the next, and from one machine to the next.
VOLATILE = {
    "id", "root_id", "correlation_id", "task_id", "delivery_tag", "origin", "golem_sent_at",
    "date_done", "traceback", "dtype", "queued_ms", "forward_ms", "batch_rows", "padding_share",
}  # fmt: skip


def body_of(message: dict[str, Any]) -> Any:
    """A message's body, decoded."""
    return json.loads(base64.b64decode(message["body"]))


def alike(documented: Any, real: Any, name: str = "") -> bool:
    """Whether both have the same keys and, but for the volatile ones, the same values."""
    if isinstance(documented, dict) and isinstance(real, dict):
        same_keys = documented.keys() == real.keys()
        return same_keys and all(alike(value, real[key], key) for key, value in documented.items())
    if name in VOLATILE:
        return type(documented) is type(real)
    if isinstance(documented, float):
        return bool(real == pytest.approx(documented, abs=0.01))  # a CPU without bfloat16
    if isinstance(documented, list):
        pairs = zip(documented, real, strict=True)
        return all(alike(one, other, name) for one, other in pairs)
    return bool(documented == real)


def sent(server: EmbeddedServer, queue: str, task: str, body: Any) -> tuple[str, Any]:
    """LPUSH the page's message with this task and body; return its id and what is stored then."""
    job_id = str(uuid4())
    message = {
        **MESSAGE,
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "headers": {**MESSAGE["headers"], "task": task, "id": job_id},
        "properties": {
            **MESSAGE["properties"],
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    key = f"celery-task-meta-{job_id}"
    with server.client() as client:
        client.lpush(queue, json.dumps(message))
        stored = wait_until(lambda: client.get(key), "the answer")
        assert client.ttl(key) > 0  # type: ignore[operator]
    return job_id, json.loads(stored)  # type: ignore[arg-type]


@pytest.mark.usefixtures("worker")
def test_the_pages_message_gets_the_pages_answer(redis_server: EmbeddedServer) -> None:
    """Pushed character by character as the page has it, its body being the one shown above it."""
    assert body_of(MESSAGE) == BODY
    [raw] = [
        block for block in blocks(PAGE, "json") if '"body": ' in block and "shadow" not in block
    ]
    key = f"celery-task-meta-{MESSAGE['headers']['id']}"
    with redis_server.client() as client:
        client.lpush("golem", raw)
        stored = json.loads(wait_until(lambda: client.get(key), "the answer"))  # type: ignore[arg-type]
    assert alike(SUCCESS, stored)
    assert stored["task_id"] == SUCCESS["task_id"] == MESSAGE["headers"]["id"]


@pytest.mark.usefixtures("worker")
def test_a_job_that_fails_gets_the_pages_failure(redis_server: EmbeddedServer) -> None:
    """The body is the one the page names in its text."""
    [named] = re.findall(r"answer to\n`(.*)`:", PAGE.read_text("utf-8"))
    job_id, stored = sent(redis_server, "golem", "golem.classify", json.loads(named))
    assert alike(FAILURE, stored)
    assert stored["task_id"] == job_id


@pytest.mark.usefixtures("worker")
def test_many_texts_in_one_job_get_the_pages_result(redis_server: EmbeddedServer) -> None:
    """Through the bulk lane."""
    _, stored = sent(redis_server, "golem.bulk", "golem.classify_many", MANY_BODY)
    assert stored["status"] == "SUCCESS"
    assert alike(MANY_RESULT, stored["result"])


def test_our_client_sends_the_pages_message(server: EmbeddedServer) -> None:
    """Every field, none more, the body decoded as well."""
    with Golem(server.url) as golem, server.client() as client:
        job = golem.submit(*BODY[0], **BODY[1])
        [raw] = client.lrange("golem", 0, -1)  # type: ignore[misc]
    real = json.loads(raw)
    assert body_of(OURS) == body_of(real)
    assert alike(OURS, real)
    assert real["headers"]["id"] == real["properties"]["correlation_id"] == job.id


def test_the_comparison_notices_what_it_should() -> None:
    """A key more, a key less, another value, another type of a volatile one."""
    for changed in (
        {**SUCCESS, "more": 1},
        {key: value for key, value in SUCCESS.items() if key != "children"},
        {**SUCCESS, "status": "FAILURE"},
        {**SUCCESS, "task_id": None},
        {**SUCCESS, "result": {**SUCCESS["result"], "score": 0.5}},
    ):
        assert not alike(SUCCESS, changed)
    assert alike(SUCCESS, {**SUCCESS, "task_id": "another"})


def test_the_pages_key_for_a_priority_is_the_one_in_use(server: EmbeddedServer) -> None:
    """Priority 5 counts as 3."""
    with Golem(server.url) as golem, server.client() as client:
        golem.submit("text", priority=5)
        assert client.llen("golem" + bytes.fromhex("0616").decode() + "3") == 1
