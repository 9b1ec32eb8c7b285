"""The Django example: its web server, its own Celery worker, and a real Golem worker."""

import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from golem_tasks.embedded import EmbeddedServer, free_port
from tests.support.markdown import commands
from tests.support.servers import ROOT, WebServer, reader_environment
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess

FOLDER = ROOT / "examples" / "django_app"
README = FOLDER / "README.md"
LABELS = {"I love this.": "POSITIVE", "What a waste of two hours!": "NEGATIVE"}

Row = tuple[str, str, float | None, str]


class Shop:
    """The project with a database of its own.

    Args:
        folder: where database and logs are.
        redis_url: of its broker.
    """

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._database = folder / "shop.sqlite3"
        env = {"GOLEM_BROKER_URL": redis_url, "SHOP_DATABASE": str(self._database)}
        self._env = reader_environment(**env)
        migrate, self._runserver = commands(README, "python")
        subprocess.run(migrate, cwd=FOLDER, env=self._env, check=True, capture_output=True)
        self._log = folder / "web.log"

    @property
    def env(self) -> dict[str, str]:
        """Its environment, from whose folder ``shop`` can be imported."""
        path = os.pathsep.join([self._env["PYTHONPATH"], str(FOLDER)])
        return {**self._env, "PYTHONPATH": path}

    def web(self) -> WebServer:
        """Its web server, by the README's command on a free port."""
        port = free_port()
        command = [word.replace("8000", str(port)) for word in self._runserver]
        return WebServer([*command, "--noreload"], FOLDER, self._log, port, self._env)

    @property
    def rows(self) -> list[Row]:
        """Text, label, score and error of each review, the oldest first."""
        with closing(sqlite3.connect(self._database, timeout=20)) as database:
            query = "SELECT text, label, score, error FROM reviews_review ORDER BY id"
            return database.execute(query).fetchall()


def write(http: httpx2.Client, text: str) -> None:
    """Fill in the form and send it."""
    form = http.get("/").text
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert found is not None
    sent = http.post("/", data={"csrfmiddlewaretoken": found[1], "text": text})
    assert (sent.status_code, sent.headers["location"]) == (302, "/")


@pytest.fixture(scope="module")
def shop(
    redis_server: EmbeddedServer, worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """The project with its own Celery worker running, beside the Golem worker."""
    assert worker.alive
    folder = tmp_path_factory.mktemp("shop")
    project = Shop(folder, redis_server.url)
    assert commands(README, "celery") == [["celery", "-A", "shop", "worker"]]
    one = ["--concurrency", "1"]
    with WorkerProcess(folder, project.env, app="shop", arguments=one, name="shop"):
        yield project


def test_every_review_gets_its_own_label(shop: Shop, redis_server: EmbeddedServer) -> None:
    """Twenty, one after the other; the page shows them, and the web server waits for none."""
    texts = list(LABELS) * 10
    with shop.web() as web, httpx2.Client(base_url=web.url, timeout=60) as http:
        for text in texts:
            write(http, text)
        with redis_server.client() as client:
            assert client.pubsub_channels("celery-task-meta-*") == []
        wait_until(lambda: all(label for _, label, _, _ in shop.rows), "every label")
        assert [(text, label) for text, label, _, _ in shop.rows] == [
            (text, LABELS[text]) for text in texts
        ]
        assert all(score and score > 0.9 and not error for _, _, score, error in shop.rows)
        assert http.get("/").text.count("<strong>NEGATIVE</strong>") == 10


def test_why_a_job_failed_is_written_into_its_review(shop: Shop) -> None:
    """A text over the contract's limit, which only the Golem worker knows."""
    with shop.web() as web, httpx2.Client(base_url=web.url, timeout=60) as http:
        write(http, "long" * 25_001)
    wait_until(lambda: shop.rows[-1][3], "the error")
    reason = "The job is invalid: text has 100004 characters, 100000 are allowed."
    assert shop.rows[-1][1:] == ("", None, reason)


def test_a_redis_that_is_away_loses_no_review(tmp_path: Path) -> None:
    """It is saved all the same, and says what is missing."""
    shop = Shop(tmp_path, f"redis://127.0.0.1:{free_port()}/0")
    with shop.web() as web, httpx2.Client(base_url=web.url, timeout=60) as http:
        write(http, "I love this.")
    assert shop.rows == [("I love this.", "", None, "The queue can't be reached.")]
