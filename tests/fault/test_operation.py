"""An operator's hands on a loaded worker: inspection, remote control, and much of everything."""

from pathlib import Path

import pytest
from celery import Celery

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import (
    W1,
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    send,
    send_all,
)
from tests.support.waiting import wait_until


def test_1_inspected_and_ordered_about_during_a_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: during a batch the worker is inspected, and its pool told to change its size.

    Must hold: each question is answered at once, each order refused in words, the process stays
    the same, and every job is answered.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(30)]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="10") as worker:
        wait_until(lambda: jobs_of(app, "active"), "the batch to run")
        wait_until(lambda: len(jobs_of(app, "reserved")) == 10, "the buffer to fill")
        before = worker.children
        assert app.control.ping(["w1@test"], timeout=30) == [{"w1@test": {"ok": "pong"}}]
        assert len(jobs_of(app, "active")) == 10
        stats = app.control.inspect(["w1@test"], timeout=30).stats()["w1@test"]
        assert stats["pool"]["processes"] == before
        for order, words in (
            (app.control.pool_grow(1, **W1), "Set GOLEM_PROCESSES and restart"),
            (app.control.pool_shrink(1, **W1), "Set GOLEM_PROCESSES and restart"),
            (app.control.pool_restart(**W1), "Pool restarts not enabled"),
            (app.control.autoscale(4, 1, **W1), "Autoscale not enabled"),
        ):
            assert words in order[0]["w1@test"]["error"]
        go.touch()
        check(results, texts)
        assert worker.children == before
        assert worker.runs == dict.fromkeys(texts, 1)


@pytest.mark.parametrize("transport", ["batched", "stock"])
def test_2_much_of_everything_at_once(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, transport: str
) -> None:
    """Done: 1,400 jobs while the process is busy: a window of 2,000, 500 countdowns, plain tasks.

    Must hold: nothing recurses too deeply, and every job and plain task is answered, once each.
    """
    go = tmp_path / "go"
    blocker = send(app, f"until:{go}")
    include = ["--include", "tests.support.plain_tasks"]
    settings = {"GOLEM_MAX_ROWS": "1000", "GOLEM_TRANSPORT": transport}
    with FakeWorker(tmp_path, alone, arguments=include, **settings) as worker:
        wait_until(lambda: jobs_of(app, "active"), "the blocker to run")
        late = [f"late {number}" for number in range(500)]
        relaxed = [f"relaxed {number}" for number in range(800)]
        urgent = [f"urgent {number}" for number in range(100)]
        results = send_all(app, late, countdown=1) + send_all(app, relaxed, priority=9)
        added = [app.send_task("plain.add", (n, 1), queue="golem") for n in range(50)]
        results += send_all(app, urgent, priority=0)
        go.touch()
        check([blocker, *results], [f"until:{go}", *late, *relaxed, *urgent])
        assert [result.get(timeout=60) for result in added] == list(range(1, 51))
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert "RecursionError" not in worker.text
        assert worker.runs == dict.fromkeys([f"until:{go}", *late, *relaxed, *urgent], 1)
