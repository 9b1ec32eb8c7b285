"""Workers with the fake engine: they start in a second and do as the texts tell them."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.workers import WorkerProcess

EXPIRES_S = 8
"""Seconds to live of a job that is to expire in a worker's buffer, and not on its way there."""
W1: dict[str, Any] = {"destination": ["w1@test"], "reply": True, "timeout": 30}
"""For an order to worker w1: its reply, which ends the wait, says that it is carried out."""
ANSWERED = re.compile(r"Answered (\d+) jobs")


class FakeWorker(WorkerProcess):
    """A worker process with the fake engine on this server.

    Args:
        settings: more environment, such as ``GOLEM_MAX_ROWS``.
    """

    def __init__(
        self,
        folder: Path,
        server: EmbeddedServer,
        *,
        arguments: Sequence[str] = (),
        name: str = "w1",
        sociable: bool = False,
        **settings: str,
    ) -> None:
        self.runs_file = folder / f"{name}.runs"
        env = {
            "GOLEM_BROKER_URL": server.url,
            "GOLEM_ENGINE": "tests.support.fake_engine:load",
            "FAKE_LOG": str(self.runs_file),
            **settings,
        }
        super().__init__(folder, env, arguments=arguments, name=name, sociable=sociable)

    @property
    def runs(self) -> Counter[str]:
        """How often each text was in a forward pass that ended."""
        lines = self.runs_file.read_text("utf-8").splitlines() if self.runs_file.exists() else []
        return Counter(text for line in lines for text in line.split("\t")[1:])

    @property
    def dispatches(self) -> list[int]:
        """Jobs in each batch, in order."""
        return [int(number) for number in ANSWERED.findall(self.text)]


def send(app: Celery, text: str, queue: str = "golem", **options: Any) -> AsyncResult:
    """Send one job."""
    return app.send_task("golem.classify", [text], queue=queue, **options)


def send_all(app: Celery, texts: list[str], **options: Any) -> list[AsyncResult]:
    """Send one job for each text."""
    with app.producer_pool.acquire() as producer:
        return [send(app, text, producer=producer, **options) for text in texts]


def check(results: list[AsyncResult], texts: list[str]) -> None:
    """Every job has the right answer, its own."""
    for result, text in zip(results, texts, strict=True):
        assert result.get(timeout=120)["label"] == expected_label(text)


def jobs_of(app: Celery, kind: str) -> list[dict[str, Any]]:
    """What ``inspect active`` or ``inspect reserved`` lists for worker w1."""
    # Naming the worker ends the wait for replies with its own.
    replies = getattr(app.control.inspect(destination=["w1@test"], timeout=30), kind)()
    return list((replies or {}).get("w1@test", []))


def ids_of(app: Celery, kind: str) -> set[str]:
    """The ids of those jobs."""
    return {job["id"] for job in jobs_of(app, kind)}


def producer_for(server: EmbeddedServer) -> Celery:
    """A stock Celery app on this server, as a producer has it."""
    return Celery(broker=server.url, backend=server.url, set_as_current=False)


def numbered(count: int) -> list[str]:
    """So many different texts."""
    return [f"text {number}" for number in range(count)]


def nothing_held(server: EmbeddedServer) -> bool:
    """Whether no queue and no record of an unacknowledged message is left."""
    with server.client() as client:
        return not client.exists("golem", "golem.bulk", "unacked", "unacked_index")
