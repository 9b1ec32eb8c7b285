"""Scenarios: Redis is away for longer than a moment."""

import re
from pathlib import Path

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import FakeWorker, check, producer_for, send_all
from tests.support.waiting import wait_until
from worker.reconnect import MOST_PAUSE_S

PAUSE = re.compile(r"The next try is in ([\d.]+) s")
TRIES = 3  # kombu's own pauses would be 2, 4 and 6 s


def test_1_the_longer_an_outage_the_worker_connects_as_soon_as_it_is_over(tmp_path: Path) -> None:
    """The pauses between two tries don't grow; jobs are answered once Redis is back."""
    texts = ["one", "two", "three"]
    with EmbeddedServer(appendonly=True) as server, FakeWorker(tmp_path, server) as worker:
        server.kill()
        wait_until(lambda: len(PAUSE.findall(worker.text)) >= TRIES, "some tries to connect")
        server.start()
        check(send_all(producer_for(server), texts), texts)
        assert "DeprecationWarning" not in worker.text
        assert max(float(pause_s) for pause_s in PAUSE.findall(worker.text)) <= MOST_PAUSE_S


def test_2_a_worker_told_to_leave_while_redis_is_away_leaves(tmp_path: Path) -> None:
    """It has nothing to finish; exit code 0, without waiting for Redis."""
    with EmbeddedServer() as server:
        worker = FakeWorker(tmp_path, server).start()
        server.kill()
        wait_until(lambda: PAUSE.search(worker.text), "a try to connect")
        assert worker.stop() == 0, worker.text[-3000:]
