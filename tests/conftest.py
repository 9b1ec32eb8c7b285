"""Fixtures every folder of tests shares."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from golem_tasks.embedded import EmbeddedServer

# A busy machine may take any time for an example, and to draw one: either bound would be a
# wall-clock assertion. (A test that suppresses another check names this one as well.)
settings.register_profile("golem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("golem")

# A shell starts a background job with SIGINT ignored, and every process below it inherits that:
# the tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[EmbeddedServer]:
    """One real server for the whole session, on a free port."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def server(shared_server: EmbeddedServer) -> EmbeddedServer:
    """The session's server, emptied."""
    with shared_server.client() as client:
        client.flushall()
    return shared_server
