"""Servers and producers every scenario has for itself."""

from collections.abc import Iterator

import pytest
from celery import Celery

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import producer_for


@pytest.fixture
def alone() -> Iterator[EmbeddedServer]:
    """A server nobody else uses, which keeps its data over a crash."""
    with EmbeddedServer(appendonly=True) as server:
        yield server


@pytest.fixture
def app(alone: EmbeddedServer) -> Celery:
    """A stock producer on that server."""
    return producer_for(alone)
