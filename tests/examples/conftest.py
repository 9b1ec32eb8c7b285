"""What every example needs: a Redis, and a worker with the embedded model."""

from collections.abc import Iterator

import pytest

from golem_tasks import Golem
from golem_tasks.embedded import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess


@pytest.fixture(scope="package")
def redis_server() -> Iterator[EmbeddedServer]:
    """A server that is never emptied, since the worker holds on to it."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="package")
def worker(
    redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A real worker with golem-mini, whose labels are POSITIVE and NEGATIVE."""
    folder = tmp_path_factory.mktemp("worker")
    with (
        WorkerProcess(folder, {"GOLEM_BROKER_URL": redis_server.url}) as process,
        Golem(redis_server.url) as golem,
    ):
        # Some time after it is ready; what the pages show counts workers.
        wait_until(lambda: golem.backlog().workers, "the worker to tell of itself")
        yield process
