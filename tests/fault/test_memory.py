"""Numbered scenarios: a device that hasn't room for what was packed, and what must hold then.

In each, every answer is compared with the expected one, nobody fails who fits alone, and no job is
dispatched twice.
"""

import re
from pathlib import Path

import pytest
from celery import Celery

from golem_tasks import OutOfMemory
from golem_tasks.contract import Options, TextItem
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import load as load_settings
from tests.support.fake_workers import FakeWorker, check, send_all
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess
from worker.classifier import Classifier, Work
from worker.engine import load
from worker.settings import WorkerSettings

LEARNED = re.compile(r"now held to (\d+) padded tokens instead of (\d+)")
REMEMBERED = re.compile(r"begin with (\d+) padded tokens instead of (\d+).*earlier run")


def sentences(count: int, words: int = 12) -> list[str]:
    """So many different texts of the same length, so that every full micro-batch is as large."""
    return [f"number {n} " + "word " * words + "end" for n in range(count)]


def learned(log: str) -> list[tuple[int, int]]:
    """The token budgets a log tells of: now, and before."""
    return [(int(now), int(before)) for now, before in LEARNED.findall(log)]


def test_1_a_ceiling_is_learned_once_and_remembered_over_a_restart(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Nobody fails; the next worker on this machine starts with what this one found out.

    Not one that compiles its model, which takes other room.
    """
    texts = sentences(200)
    room = {"FAKE_MAX_AREA": "300", "FAKE_TOKEN_BUDGET": "4096"}
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone, **room) as first:
        check(results, texts)
        wait_until(lambda: sum(first.dispatches) == 200, "the last batch's line in the log")
        [(budget, before)] = learned(first.text)
        assert (150 <= budget <= 300, before) == (True, 4096)
        assert first.runs == dict.fromkeys(texts, 1)
    again = send_all(app, texts)
    with FakeWorker(tmp_path, alone, name="w2", **room) as second:
        check(again, texts)
        assert REMEMBERED.findall(second.text) == [(str(budget), "4096")]
        assert not learned(second.text)
        assert second.runs == dict.fromkeys(texts, 1)
    compiled = send_all(app, texts)
    with FakeWorker(tmp_path, alone, name="w3", GOLEM_COMPILE="true", **room) as third:
        check(compiled, texts)
        assert not REMEMBERED.findall(third.text)
        assert third.runs == dict.fromkeys(texts, 1)


def test_2_a_text_that_does_not_fit_alone(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """It alone fails, as OutOfMemory; it teaches nothing, since the number wasn't the cause."""
    texts = sentences(60)
    good = send_all(app, texts)
    bad = send_all(app, ["oom", "memory", "word " * 400])
    room = {"FAKE_MAX_AREA": "350", "FAKE_TOKEN_BUDGET": "340"}
    with FakeWorker(tmp_path, alone, **room) as worker:
        check(good, texts)
        for result in bad:
            with pytest.raises(OutOfMemory, match="This text alone doesn't fit"):
                result.get(timeout=60)
        wait_until(lambda: sum(worker.dispatches) == 63, "the last batch's line in the log")
        assert not learned(worker.text)
        assert not (tmp_path / "state").exists()


def test_3_allocations_that_really_fail(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """A real model in a process the kernel grants no more memory: every answer is the right one.

    The warm-up finds a first ceiling, a dispatch a lower one; the process that learned it lives on.
    """
    texts = sentences(100, words=50)
    results = send_all(app, texts)
    env = {
        "GOLEM_BROKER_URL": alone.url,
        "GOLEM_ENGINE": "tests.support.tight_engine:load",
        "GOLEM_DTYPE": "float32",
        "GOLEM_THREADS": "1",
        "GOLEM_TOKEN_BUDGET": "16384",
        "TIGHT_LOADED_MIB": "150",
        "TIGHT_WARM_MIB": "12",
    }
    engine = load(load_settings(WorkerSettings, device="cpu", dtype="float32", threads=1), 0)
    expected = Classifier(engine).classify([Work(TextItem(t), Options(), 0.0) for t in texts])
    with WorkerProcess(tmp_path, env) as worker:
        processes = worker.children
        for result, outcome in zip(results, expected.outcomes, strict=True):
            assert isinstance(outcome, dict)
            answer = result.get(timeout=120)
            assert answer["label"] == outcome["label"]
            assert answer["score"] == pytest.approx(outcome["score"], abs=1e-4)
        assert "at the warm-up" in worker.text
        [(budget, before)] = learned(worker.text)
        assert budget < before < 16_384
        assert worker.children == processes
        assert len(list((tmp_path / "state" / "ceilings").iterdir())) == 1
