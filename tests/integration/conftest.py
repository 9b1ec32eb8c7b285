"""Workers that tests of the producer's side share; they stay up, on a server of their own."""

import os
from collections.abc import Iterator

import pytest
import torch

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import FakeWorker
from tests.support.workers import WorkerProcess


@pytest.fixture(scope="session")
def live_server() -> Iterator[EmbeddedServer]:
    """A server that is never emptied, since workers hold on to it."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def worker(
    live_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeWorker]:
    """A Golem worker on ``golem`` and ``golem.bulk``."""
    with FakeWorker(tmp_path_factory.mktemp("worker"), live_server) as process:
        yield process


@pytest.fixture(scope="session")
def stock_worker(
    live_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A producer's own stock Celery worker on ``celery``, for what follows a classification."""
    process = WorkerProcess(
        tmp_path_factory.mktemp("stock"),
        {"CALLBACKS_URL": live_server.url},
        app="tests.support.callbacks_app",
        arguments=["--pool", "solo"],
        name="stock",
    )
    with process:
        yield process


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For a command that runs a model in this process: threads and environment are given back."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_num_threads(threads)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
