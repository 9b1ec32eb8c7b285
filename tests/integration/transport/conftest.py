"""A consumer and a client every test of the transport has, on the emptied server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from golem_tasks.embedded import EmbeddedServer
from tests.support.consuming import (
    Consuming,
)


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of the emptied server."""
    with server.client() as client:
        yield client


@pytest.fixture
def consuming(server: EmbeddedServer) -> Iterator[Consuming]:
    """A consumer of golem and golem.bulk, ready to be turned."""
    with Consuming(server.url) as consuming:
        yield consuming
