"""Numbered scenarios of the processes themselves: which one is killed, and what the others do."""

import json
import logging
import os
import signal
import time
from collections import Counter
from pathlib import Path

from celery import Celery

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    send_all,
)
from tests.support.waiting import wait_until
from tests.support.workers import running
from worker.processes import FOLDER, Report

logger = logging.getLogger(__name__)


def reports_folder(worker: FakeWorker) -> Path:
    """Where its model processes report; ask while none of them is being killed."""
    environ = Path(f"/proc/{worker.children[0]}/environ").read_text().split("\0")
    [folder] = [each.removeprefix(f"{FOLDER}=") for each in environ if each.startswith(FOLDER)]
    return Path(folder)


def reports(folder: Path) -> dict[int, Report]:
    """What each model process said of itself when it was ready, by index."""
    found = [Report(**json.loads(file.read_text())) for file in folder.glob("*.json")]
    return {each.index: each for each in found}


def passes(worker: FakeWorker, pid: int) -> list[list[str]]:
    """The texts of every forward pass of one model process, in order."""
    lines = worker.runs_file.read_text().splitlines() if worker.runs_file.exists() else []
    return [
        texts for process, *texts in (line.split("\t") for line in lines) if int(process) == pid
    ]


def test_1_what_a_killed_process_left_is_the_first_its_replacement_does(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: SIGKILL of the only model process in the middle of a batch, with others waiting.

    Must hold: the replacement begins with the jobs of that batch, each alone, before any other, so
    that they wait for nothing but the model. By how much longer they did is logged.
    """
    go, blocked = tmp_path / "go", tmp_path / "blocked"
    left = [f"until:{go}", *numbered(9)]
    others = [f"other {number}" for number in range(30)]
    results = send_all(app, left)
    settings = {"GOLEM_MAX_ROWS": "10", "FAKE_LOAD_S": "1", "FAKE_LOAD_WAITS_IF": str(blocked)}
    with FakeWorker(tmp_path, alone, **settings) as worker:
        with alone.client() as client:
            wait_until(lambda: client.hlen("unacked") == 10, "the batch to be taken")
            results += send_all(app, others)
            wait_until(lambda: client.hlen("unacked") > 10, "others to wait behind it")
        wait_until(lambda: len(jobs_of(app, "active")) == 10, "the batch to run")
        [killed] = worker.children
        blocked.touch()
        os.kill(killed, signal.SIGKILL)
        killed_s = time.time()
        go.touch()
        # A model takes longer to load than Redis to tell what had been stored.
        wait_until(lambda: "each runs again alone" in worker.text, "the batch to be taken back")
        blocked.unlink()
        check(results, [*left, *others])
        [replacement] = worker.children
        done = passes(worker, replacement)
        assert sorted(done[:10]) == sorted([text] for text in left)
        assert Counter(text for texts in done[10:] for text in texts) == Counter(others)
        assert passes(worker, killed) == []
        loaded = reports(reports_folder(worker))[0]
        assert loaded.pid == replacement
        took_s = worker.runs_file.stat().st_mtime - killed_s
        logger.warning("All answered %.1f s after the kill: %s", took_s, loaded.message)
    assert nothing_held(alone)


def test_2_a_replacement_takes_the_device_of_its_predecessor(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: of three processes, each on a GPU of its own, one is killed, then the two others.

    Must hold: each time every GPU has one process, of the same index, and all jobs are answered.
    That the index chooses the GPU is proven by ``test_each_process_has_its_gpu``.
    """
    devices = {index: f"cuda:{index}" for index in range(3)}
    settings = {
        "GOLEM_PROCESSES": "3",
        "FAKE_DEVICES": ",".join(devices.values()),
    }
    with FakeWorker(tmp_path, alone, **settings) as worker:
        folder = reports_folder(worker)
        for victims in ([1], [0, 2]):
            before = reports(folder)
            assert {index: each.device for index, each in before.items()} == devices
            dead = {before[index].pid for index in victims}
            for pid in dead:
                os.kill(pid, signal.SIGKILL)
            wait_until(
                lambda dead=dead: dead.isdisjoint(each.pid for each in reports(folder).values()),
                "the replacements to be ready",
            )
            after = reports(folder)
            assert {index: each.device for index, each in after.items()} == devices
            assert {each.pid for each in after.values()} == set(worker.children)
            kept = devices.keys() - set(victims)
            assert all(after[index].pid == before[index].pid for index in kept)
            texts = numbered(30)
            check(send_all(app, texts), texts)
    assert nothing_held(alone)


def test_3_the_main_process_alone_is_killed_while_its_model_processes_compute(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: SIGKILL of the main process, with a batch in each of its two model processes.

    Must hold: both end though their batches could, and have stored nothing, right or wrong; another
    worker answers every job, and each was computed once.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(9), f"until:{tmp_path}/./go"]
    texts += [f"text {number}" for number in range(9, 18)]
    results = send_all(app, texts)
    settings = {"GOLEM_MAX_ROWS": "10", "GOLEM_LEASE_S": "5"}
    first = FakeWorker(tmp_path, alone, GOLEM_PROCESSES="2", **settings).start()
    with alone.client() as client:
        wait_until(lambda: client.hlen("unacked") == 20, "both batches to be taken")
        models = first.children
        assert len(models) == 2
        first.signal(signal.SIGKILL)
        first.wait()
        wait_until(lambda: not any(map(running, models)), "the model processes to end")
        go.touch()
        assert client.keys("celery-task-meta-*") == []
        assert first.runs == {}
    with FakeWorker(tmp_path, alone, name="w2", **settings) as second:
        check(results, texts)
        assert second.runs == dict.fromkeys(texts, 1)
    assert nothing_held(alone)
