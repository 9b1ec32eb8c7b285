"""Ten thousand hostile messages among good ones, of a fixed seed, through one worker."""

import json
from collections import Counter
from pathlib import Path

from celery import states

from golem_tasks import Golem
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker
from tests.support.hostile import FORGED, MARK, flood
from tests.support.waiting import wait_until

HOSTILE = 10_000
GOOD = 200
ROUND = 500
MOST_GROWTH_KIB = 96 * 1024


def peak_rss_kib(pid: int) -> int:
    """The most memory a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_1_ten_thousand_hostile_messages_among_good_ones(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    """The worker stays up and small, and shows no text; each producer hears of its own job.

    Every good job is answered right, every hostile one that has an id has ended, every message
    without one is in the dead envelopes; no pickle was opened.
    """
    trap = tmp_path / "opened"
    hostile = flood(HOSTILE, trap)
    texts = [f"good {number}" for number in range(GOOD)]
    jobs = []
    with FakeWorker(tmp_path, server) as worker, Golem(server.url) as golem:
        golem.classify("warm", timeout=60)
        pids = [worker.pid, *worker.children]
        before = {pid: peak_rss_kib(pid) for pid in pids}
        with server.client() as broker:
            for start in range(0, HOSTILE, ROUND):
                broker.lpush("golem", *(one.raw for one in hostile[start : start + ROUND]))
                good = texts[start * GOOD // HOSTILE : (start + ROUND) * GOOD // HOSTILE]
                jobs += golem.submit_many(good)
            wait_until(
                lambda: not broker.exists("golem", "unacked"), "all to be settled", timeout_s=300
            )
            ids = sorted({one.id for one in hostile if one.id})
            stored = broker.mget([f"celery-task-meta-{job_id}" for job_id in ids])
            dead = Counter(broker.lrange("golem:dead:envelopes", 0, -1))
        for job, text in zip(jobs, texts, strict=True):
            assert job.result(60).label == expected_label(text)
        ended = {i: json.loads(raw)["status"] for i, raw in zip(ids, stored, strict=True) if raw}
        unheard = Counter(
            one.kind for one in hostile if one.id not in ended and one.raw not in dead
        )
        assert not unheard
        assert set(ended.values()) <= states.READY_STATES
        assert [worker.pid, *worker.children] == pids
        growth = {pid: peak_rss_kib(pid) - kib for pid, kib in before.items()}
        assert max(growth.values()) < MOST_GROWTH_KIB
        assert MARK not in worker.text
        assert FORGED not in worker.text
        assert not trap.exists()
