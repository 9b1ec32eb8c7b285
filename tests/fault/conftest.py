"""Servers and producers every scenario has for itself."""

from collections.abc import Iterator

import pytest
from celery import Celery

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import producer_for


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server nobody else uses; with ``KEEPS_DATA`` in the module it does over a crash.

    Only there, since waiting for a busy disk at each write delays a whole scenario by seconds.
    """
    with EmbeddedServer(appendonly=getattr(request.module, "KEEPS_DATA", False)) as server:
        yield server


@pytest.fixture
def app(alone: EmbeddedServer) -> Celery:
    """A stock producer on that server."""
    return producer_for(alone)
