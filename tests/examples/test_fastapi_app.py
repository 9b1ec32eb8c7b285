"""The FastAPI example over HTTP, started by its README's own command, a real worker behind it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from golem_tasks import Golem
from golem_tasks.embedded import EmbeddedServer, free_port
from tests.support.fastapi_example import LABELS, LOVE, README, WASTE, application
from tests.support.markdown import commands
from tests.support.servers import WebServer
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def web(
    redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebServer]:
    """The application, on the Redis of the worker."""
    log = tmp_path_factory.mktemp("fastapi") / "log"
    with application(log, GOLEM_BROKER_URL=redis_server.url) as server:
        yield server


@pytest.fixture
def http(web: WebServer) -> Iterator[httpx2.Client]:
    """A client of the application."""
    with httpx2.Client(base_url=web.url, timeout=60) as client:
        yield client


def answers(http: httpx2.Client, ids: list[str]) -> Iterator[dict[str, Any]]:
    """The answers of one stream, which must not end without saying so."""
    name = ""
    with http.stream("POST", "/stream", json={"ids": ids}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                name = value
            if kind == "data":
                assert name == "answer"
                yield json.loads(value)
    assert name == "end"


@pytest.mark.usefixtures("worker")
def test_a_text_is_accepted_at_once_and_polled(http: httpx2.Client) -> None:
    """202 with an id; its Location has the prediction once it is there."""
    accepted = http.post("/classify", json={"text": LOVE})
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    assert accepted.json() == {"id": location.removeprefix("/jobs/"), "url": location}
    wait_until(lambda: http.get(location).json()["done"], "the answer")
    told = http.get(location).json()
    assert (told["answer"]["label"], told["error"]) == (LABELS[LOVE], None)


@pytest.mark.usefixtures("worker")
def test_a_job_that_failed_is_an_answer(http: httpx2.Client, redis_server: EmbeddedServer) -> None:
    """A job of another producer, which only the worker finds too long: polled and streamed."""
    with Golem(redis_server.url) as golem:
        job_id = golem.submit("word " * 600, on_long="error").id
    accepted = http.post("/classify", json={"text": WASTE}).json()
    streamed = {data["id"]: data for data in answers(http, [job_id, accepted["id"]])}
    assert streamed[accepted["id"]]["answer"]["label"] == LABELS[WASTE]
    assert streamed[job_id] == http.get(f"/jobs/{job_id}").json()
    assert streamed[job_id]["done"]
    assert streamed[job_id]["error"]["type"] == "TextTooLong"
    assert "tokens" in streamed[job_id]["error"]["message"]


@pytest.mark.usefixtures("worker")
def test_a_stream_sends_every_answer_of_a_bulk_job_once(http: httpx2.Client) -> None:
    """Sixty texts: each id once, each with its own text's label; a second stream has them again."""
    texts = [LOVE, WASTE] * 30
    accepted = http.post("/bulk", json={"texts": texts})
    assert accepted.status_code == 202
    ids = accepted.json()["ids"]
    for _ in range(2):
        got = [(data["id"], data["answer"]["label"]) for data in answers(http, ids)]
        assert len(got) == len(texts)
        assert dict(got) == {id_: LABELS[text] for id_, text in zip(ids, texts, strict=True)}


def test_a_client_that_leaves_its_stream_leaves_no_subscription(
    http: httpx2.Client, redis_server: EmbeddedServer
) -> None:
    """One that waits for an id nobody knows, and goes."""
    job_id = str(uuid4())
    channel = f"celery-task-meta-{job_id}"
    with redis_server.client() as client:
        with http.stream("POST", "/stream", json={"ids": [job_id]}):
            wait_until(lambda: client.pubsub_channels(channel), "the subscription")
        wait_until(lambda: not client.pubsub_channels(channel), "its end")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/classify", {"text": " "}, "The job is invalid: text is empty."),
        ("/classify", {"text": "a\0"}, "has a NUL at character 1"),
        ("/bulk", {"texts": ["a", ""]}, "texts[1] is empty"),
        ("/classify", {"text": 1}, "valid string"),
        ("/bulk", {"texts": []}, "at least 1 item"),
        ("/stream", {"ids": ["x"]}, "valid UUID"),
    ],
)
def test_what_cannot_be_used_is_422_with_the_reason(
    http: httpx2.Client, path: str, body: dict[str, Any], said: str
) -> None:
    """The contract's own sentence, or FastAPI's, in ``detail``."""
    refused = http.post(path, json=body)
    assert refused.status_code == 422
    assert said in str(refused.json()["detail"])


def test_an_id_nobody_knows_is_not_done(http: httpx2.Client) -> None:
    """Redis can't tell it from one that waits; what isn't one of ours is no id."""
    job_id = str(uuid4())
    assert http.get(f"/jobs/{job_id}").json()["done"] is False
    assert http.get("/jobs/golem").status_code == 422


def test_a_redis_that_is_away_is_503_with_retry_after(tmp_path: Path) -> None:
    """For every path, the stream in its own way; the log has the address, the client doesn't."""
    port = free_port()
    env = {"GOLEM_BROKER_URL": f"redis://127.0.0.1:{port}/0", "GOLEM_CONNECT_TIMEOUT_S": "0.2"}
    ids = [str(uuid4())]
    with (
        application(tmp_path / "log", **env) as web,
        httpx2.Client(base_url=web.url, timeout=60) as http,
    ):
        for refused in (
            http.post("/classify", json={"text": LOVE}),
            http.post("/bulk", json={"texts": [LOVE]}),
            http.get(f"/jobs/{ids[0]}"),
        ):
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert "can't be reached" in refused.json()["detail"]
            assert str(port) not in refused.text
        assert f"127.0.0.1:{port}" in web.text


def test_a_backlog_at_its_limit_is_429_with_retry_after(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """Nothing of a submit that goes over it is sent; without a worker nobody knows how long."""
    env = {"GOLEM_BROKER_URL": server.url, "GOLEM_MAX_BACKLOG": "3"}
    with (
        application(tmp_path / "log", **env) as web,
        httpx2.Client(base_url=web.url, timeout=60) as http,
    ):
        assert http.post("/classify", json={"text": LOVE}).status_code == 202
        assert http.post("/bulk", json={"texts": [LOVE] * 2}).status_code == 202
        for path, body in (("/classify", {"text": LOVE}), ("/bulk", {"texts": [LOVE, WASTE]})):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert refused.json()["type"] == "QueueFull"
            assert "Try again in 5 s" in refused.json()["detail"]
    with server.client() as client:
        assert (client.llen("golem"), client.llen("golem.bulk")) == (1, 2)


@pytest.mark.usefixtures("worker")
def test_the_readmes_curl_commands_work(web: WebServer) -> None:
    """All four, one after the other, each with the id the one before it was given."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    job_id = ""
    for command in commands(README, "curl"):
        words = [word.replace("http://127.0.0.1:8000", web.url) for word in command]
        words = [word.replace("ID", job_id) for word in words]
        done = subprocess.run([*words, "-fsS"], capture_output=True, text=True, check=True)
        told = next(line for line in done.stdout.splitlines() if "{" in line)
        data = json.loads(told.removeprefix("data: "))
        job_id = data["ids"][1] if "ids" in data else data["id"]
    assert data["answer"]["label"] == LABELS[WASTE]
    assert data["done"]
