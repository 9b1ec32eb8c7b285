"""`golem demo` as a newcomer runs it, and as one stops it: by Ctrl-C, by closing, by kill -9."""

import json
import os
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from golem_tasks.cli.demo_texts import SENTENCES, TOO_LONG
from golem_tasks.embedded import EmbeddedServer
from tests.support.cli import golem, start
from tests.support.waiting import wait_until

MARK = "DEMO_TEST_MARK"  # environment inherited by everything a demo starts
FAKE = "tests.support.fake_engine:load"
SERVER_GUARD_WORKER_CHILD = 6  # server and worker, a guard each, a model process, the demo


def processes(mark: str) -> list[str]:
    """Command lines of every process that a demo with this mark has started, and its own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has just ended, or is somebody else's
    return [line for line in found if line]  # a zombie has none


def demo_in_the_background(
    mark: str, log: Path, *arguments: str, **env: str
) -> subprocess.Popen[bytes]:
    """Start a demo with its output in a file."""
    with log.open("wb") as output:
        return start("demo", *arguments, output=output, **{MARK: mark, **env})


def loading_for_ever(file: Path) -> dict[str, str]:
    """Settings under which a demo doesn't come to its end, as long as this file is there."""
    return {"GOLEM_ENGINE": FAKE, "FAKE_LOAD_WAITS_IF": str(file)}


def gone(mark: str) -> None:
    """Nothing of that demo is left."""
    wait_until(lambda: not processes(mark), f"the processes to end: {processes(mark)}")


def test_the_demo_answers_every_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """With nothing set up, even in a folder with a worker.py of its own and foreign settings."""
    (tmp_path / "worker.py").write_text("raise SystemExit('the wrong worker')")
    mark = str(uuid4())
    done = golem(
        "demo", "--json", cwd=tmp_path,
        CELERY_BROKER_URL="redis://127.0.0.1:1", GOLEM_QUEUE="elsewhere", **{MARK: mark},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert processes(mark) == []
    told = json.loads(done.stdout)
    answers = {each["text"]: each for each in told["answers"]}
    assert set(answers) == {*SENTENCES, TOO_LONG}
    assert answers[TOO_LONG]["error"]["type"] == "TextTooLong"
    for text in SENTENCES:
        assert answers[text]["model"]["name"] == "golem-mini"
        assert not answers[text]["truncated"]
    assert answers["I love this."]["label"] == "POSITIVE"
    assert answers["I hate this."]["label"] == "NEGATIVE"
    summary = told["summary"]
    assert (summary["jobs"], summary["failed"]) == (len(SENTENCES) + 1, 1)
    assert summary["mean_rows"] * summary["micro_batches"] == pytest.approx(len(SENTENCES))
    assert summary["mean_rows"] > 2
    assert 0 <= summary["padding_share"] < 1
    for said in ("embedded server on", "golem-mini", "failed alone", "micro-batches", "one by one"):
        assert said in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_stopped_while_it_starts_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Server, worker, model process and guards are gone when it ends; there is no traceback."""
    mark, log = str(uuid4()), tmp_path / "log"
    with demo_in_the_background(mark, log, TMPDIR=str(tmp_path), **loading_for_ever(log)) as run:
        wait_until(
            lambda: len(processes(mark)) >= SERVER_GUARD_WORKER_CHILD, "the demo's processes"
        )
        run.send_signal(number)
        assert run.wait(60) == 128 + number
    assert processes(mark) == []
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert "Traceback" not in log.read_text()


def test_a_demo_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """A kill -9 gives it no chance to clean up; its guards do."""
    mark = str(uuid4())
    # It can't remove its folders either: pytest does that.
    log = tmp_path / "log"
    with demo_in_the_background(mark, log, TMPDIR=str(tmp_path), **loading_for_ever(log)) as run:
        wait_until(
            lambda: len(processes(mark)) >= SERVER_GUARD_WORKER_CHILD, "the demo's processes"
        )
        run.kill()
        assert run.wait(60) == -signal.SIGKILL
    gone(mark)


def test_ctrl_c_while_answers_arrive_stops_it_cleanly(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    """Also a second Ctrl-C, while it stops, changes nothing."""
    mark, log = str(uuid4()), tmp_path / "log"
    # Forty sentences, one after the other: not over before it is stopped.
    settings = {"GOLEM_ENGINE": FAKE, "FAKE_FORWARD_S": "1", "GOLEM_MAX_ROWS": "1"}
    with demo_in_the_background(mark, log, "--broker-url", server.url, **settings) as run:
        wait_until(lambda: "POSITIVE" in log.read_text(), "an answer")
        run.send_signal(signal.SIGINT)
        wait_until(lambda: "Stopping" in log.read_text(), "it to stop")
        os.kill(run.pid, signal.SIGINT)
        assert run.wait(60) == 128 + signal.SIGINT
    assert processes(mark) == []
    assert "Traceback" not in log.read_text()


def test_a_demo_on_your_redis_keeps_to_a_queue_of_its_own_and_clears_it(
    server: EmbeddedServer,
) -> None:
    """Jobs of yours in the default queue stay there; only answers with a time to live remain."""
    with server.client() as client:
        client.lpush("golem", "yours")
        done = golem("demo", "--broker-url", server.url, GOLEM_ENGINE=FAKE)
        assert done.returncode == 0, done.stderr
        assert client.lrange("golem", 0, -1) == [b"yours"]
        lasting = {key for key in client.scan_iter("*") if client.ttl(key) == -1}
        assert {key for key in lasting if b"golem-demo" in key} == set()
        assert {key for key in lasting if b"celery-task-meta" in key} == set()
    assert "Go on from here" in done.stdout
    assert done.stdout.count("TextTooLong") == 1


def test_a_demo_whose_worker_cannot_start_says_why(server: EmbeddedServer) -> None:
    """The sentence is the last of the worker's log."""
    settings = {"GOLEM_ENGINE": FAKE, "FAKE_LOAD_ERROR": "it is broken"}
    done = golem("demo", "--broker-url", server.url, **settings)
    assert done.returncode == 1
    said = "The worker didn't start: The worker can't start. The model 'golem-mini' can't be loaded"
    assert f"{said}: it is broken." in done.stderr
    assert "Traceback" not in done.stderr
