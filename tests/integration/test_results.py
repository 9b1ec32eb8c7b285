"""The result backend of a dispatch: one read before, one write after, Celery's own format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import FakeWorker, check, producer_for, send_all
from tests.support.waiting import wait_until
from worker.results import CHUNK_BYTES, backend_url

# Celery's own way of storing outside of a dispatch calls what redis-py has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

LARGE = "x" * (CHUNK_BYTES // 3)


def app_for(server: EmbeddedServer, **conf: Any) -> Celery:
    """A Celery app with the batched backend."""
    app = Celery(broker=server.url, backend=backend_url(server.url), set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.fixture(params=[None, "gzip"])
def app(server: EmbeddedServer, request: pytest.FixtureRequest) -> Celery:
    """The app, with and without compressed results."""
    return app_for(server, result_compression=request.param)


def stored_by_a_stock_client(server: EmbeddedServer, app: Celery, task_id: str) -> Any:
    """What a producer without our backend reads."""
    stock = Celery(broker=server.url, backend=server.url, set_as_current=False)
    stock.conf.result_compression = app.conf.result_compression
    return stock.AsyncResult(task_id)


def test_the_results_of_a_dispatch_are_written_at_its_end(
    server: EmbeddedServer, app: Celery
) -> None:
    """Nothing is in Redis before the block ends; afterwards a stock client reads every result."""
    ids = [f"job-{number}" for number in range(50)]
    with server.client() as client, app.backend.dispatch(ids) as known:
        assert known == {}
        for task_id in ids:
            app.backend.store_result(task_id, {"id": task_id}, states.SUCCESS)
        assert client.dbsize() == 0
    for task_id in ids:
        result = stored_by_a_stock_client(server, app, task_id)
        assert (result.state, result.result) == (states.SUCCESS, {"id": task_id})


def test_results_above_a_megabyte_arrive_whole(server: EmbeddedServer, app: Celery) -> None:
    """Seven results of 1.4 MB take several calls, none of which holds much more than its share."""
    ids = [f"large-{number}" for number in range(7)]
    with app.backend.dispatch(ids):
        for task_id in ids:
            app.backend.store_result(task_id, task_id + LARGE, states.SUCCESS)
    for task_id in ids:
        assert stored_by_a_stock_client(server, app, task_id).result == task_id + LARGE


def test_a_success_is_known_before_the_model_and_never_overwritten(
    server: EmbeddedServer, app: Celery
) -> None:
    """The block tells what is stored; a later outcome of an answered job changes nothing."""
    app.backend.store_result("done", "first", states.SUCCESS)
    with app.backend.dispatch(["done", "new"]) as known:
        assert known["done"]["result"] == "first"
        assert "new" not in known
        app.backend.store_result("done", "second", states.SUCCESS)
        app.backend.store_result("new", "second", states.SUCCESS)
    assert stored_by_a_stock_client(server, app, "done").result == "first"
    assert stored_by_a_stock_client(server, app, "new").result == "second"


def test_a_job_cancelled_while_it_was_computed_keeps_its_cancellation(
    server: EmbeddedServer,
) -> None:
    """REVOKED, stored in the middle of a dispatch, isn't replaced; its mates are stored."""
    app, canceller = app_for(server), app_for(server)
    with app.backend.dispatch(["unwanted", "wanted"]):
        canceller.backend.mark_as_revoked("unwanted", "revoked")
        for task_id in ("unwanted", "wanted"):
            app.backend.store_result(task_id, "answer", states.SUCCESS)
    assert stored_by_a_stock_client(server, app, "unwanted").state == states.REVOKED
    assert stored_by_a_stock_client(server, app, "wanted").result == "answer"


def test_a_retry_is_stored_and_its_outcome_replaces_it(server: EmbeddedServer, app: Celery) -> None:
    """RETRY in one dispatch, SUCCESS in a later one: a client sees the one, then the other."""
    with app.backend.dispatch(["again"]):
        app.backend.mark_as_retry("again", ValueError("not yet"))
    assert stored_by_a_stock_client(server, app, "again").state == states.RETRY
    with app.backend.dispatch(["again"]) as known:
        assert known["again"]["status"] == states.RETRY
        app.backend.store_result("again", "answer", states.SUCCESS)
    assert stored_by_a_stock_client(server, app, "again").result == "answer"


def test_every_result_has_a_time_to_live(server: EmbeddedServer, app: Celery) -> None:
    """Nothing of a dispatch stays in Redis for ever."""
    app.conf.result_expires = 77
    with app.backend.dispatch(["good", "bad"]), server.client() as client:
        app.backend.store_result("good", "answer", states.SUCCESS)
        app.backend.store_result("bad", ValueError("why"), states.FAILURE)
    with server.client() as client:
        assert {client.ttl(key) > 0 for key in client.scan_iter()} == {True}


@pytest.fixture
def two_servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """One Redis for the queues, another for the answers."""
    with EmbeddedServer() as broker, EmbeddedServer(appendonly=True) as backend:
        yield broker, backend


def test_a_backend_that_is_away_in_the_middle_delays_answers_and_fails_none(
    tmp_path: Path, two_servers: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    """Killed for several of the worker's tries: every job is SUCCESS afterwards, computed once."""
    broker, backend = two_servers
    go = tmp_path / "go"
    texts = [f"text {number}" for number in range(200)]
    texts[100] = f"until:{go}"  # nor can all be over before it is away
    ids = [result.id for result in send_all(producer_for(broker), texts)]
    settings = {"GOLEM_RESULT_BACKEND": backend.url, "GOLEM_MAX_ROWS": "20"}
    with FakeWorker(tmp_path, broker, FAKE_FORWARD_S="0.1", **settings) as worker:
        wait_until(lambda: len(worker.runs) >= 60, "some batches to be computed")
        backend.kill()
        go.touch()
        wait_until(lambda: worker.text.count("Results can't be stored") >= 3, "three tries to fail")
        backend.start()
        reader = Celery(broker=broker.url, backend=backend.url, set_as_current=False)
        check([reader.AsyncResult(task_id) for task_id in ids], texts)
        assert worker.runs == dict.fromkeys(texts, 1)


@pytest.mark.parametrize(
    "stored", ['{"result": 1}', '{"status": "SUCCESS"}', '"result status"', "["]
)
def test_what_isnt_a_result_counts_as_none(app: Celery, stored: str) -> None:
    """Another program's key is no answer, and nobody stumbles over what it lacks."""
    assert app.backend.decode_result(stored) == {"status": states.PENDING, "result": None}
