"""A password is known to Redis and to the processes that log in, and is shown by none of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from golem_tasks import Golem
from golem_tasks.guard import guarded
from tests.support import cli
from tests.support.redis_servers import ProtectedServer
from tests.support.waiting import wait_until
from tests.support.workers import READY

PASSWORD = ProtectedServer.PASSWORD
FORMS = (PASSWORD, "pass%20of", "s%40rvers")
MODULE = "tests.support.fake_engine:load"


@pytest.fixture(scope="module")
def protected() -> Iterator[ProtectedServer]:
    """A server with a password."""
    with ProtectedServer() as server:
        yield server


@pytest.fixture(scope="module")
def running(
    protected: ProtectedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Path]]:
    """``golem worker`` with its password on the command line: its pid and its log, at DEBUG."""
    log = tmp_path_factory.mktemp("worker") / "log"
    command = [
        *cli.COMMAND, "worker", "--broker-url", protected.url, "--loglevel", "DEBUG",
        "--engine", MODULE, "--", "--hostname", "w1@test",
    ]  # fmt: skip
    with log.open("wb") as output:
        guard = guarded(command, env=cli.environment(), output=output, grace_s=30)
    wait_until(lambda: READY in log.read_text() or guard.poll() is not None, "the worker")
    yield child_of(guard.pid)[0], log
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait(60)


def child_of(pid: int) -> list[int]:
    """A process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def shows(text: object) -> bool:
    """Whether a text holds the password, as it is or as a URL has it."""
    return any(form in str(text) for form in FORMS)


def test_no_command_line_shows_it(running: tuple[int, Path], protected: ProtectedServer) -> None:
    """Neither the worker's, though it was given there, nor a model process's."""
    pid, log = running
    assert READY in log.read_text(), log.read_text()[-2000:]
    with Golem(protected.url) as golem:
        golem.classify("are you there?", timeout=60)
    processes = [pid, *child_of(pid)]
    assert len(processes) >= 2
    for process in processes:
        assert not shows(Path(f"/proc/{process}/cmdline").read_text())


def test_no_log_line_shows_it(running: tuple[int, Path]) -> None:
    """Not even at DEBUG, and not the settings it prints at the start."""
    _, log = running
    assert "GOLEM_BROKER_URL=redis://:**@" in log.read_text()
    assert not shows(log.read_text())


@pytest.mark.parametrize("question", ["conf", "report", "stats", "ping", "active_queues"])
def test_no_reply_of_remote_control_shows_it(
    running: tuple[int, Path], protected: ProtectedServer, question: str
) -> None:
    """Celery's `inspect` is asked by people and by Flower, which shows it on a page."""
    assert running
    app = Celery(broker=protected.url, backend=protected.url, set_as_current=False)
    inspect = app.control.inspect(destination=["w1@test"], timeout=10)
    arguments: dict[str, Any] = {"with_defaults": True} if question == "conf" else {}
    # Asked again: a worker that has just said it is ready may not listen to broadcasts yet.
    replies = wait_until(lambda: getattr(inspect, question)(**arguments), "a reply")
    assert not shows(replies)
