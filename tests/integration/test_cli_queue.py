"""``golem queue`` and ``golem top`` as their users run them."""

import json
import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from golem_tasks import Golem
from golem_tasks.embedded import EmbeddedServer, free_port
from tests.support.cli import COMMAND, environment, golem
from tests.support.fake_workers import FakeWorker
from tests.support.waiting import wait_until

ALTERNATE, MAIN = b"\x1b[?1049h", b"\x1b[?1049l"
"""What a terminal is told at the beginning and the end of a full-screen view."""


class Terminal:
    """``golem top`` on a terminal of its own.

    Args:
        arguments: of the command.
    """

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.run = subprocess.Popen(
            [*COMMAND, "top", "--every", "0.1", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment(TERM="xterm", COLUMNS="110", LINES="40"),
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""

    def shows(self, wanted: bytes) -> None:
        """Return once this has been shown."""

        def look() -> bool:
            if select.select([self._ours], [], [], 0)[0]:
                try:
                    self.shown += os.read(self._ours, 65_536)
                except OSError:  # Linux's way to say that the other end is closed
                    return wanted in self.shown
            return wanted in self.shown

        wait_until(look, f"{wanted!r} on the terminal")

    def close(self) -> None:
        """End the command if it still runs."""
        self.run.kill()
        self.run.wait()
        os.close(self._ours)


@contextmanager
def watching(*arguments: str) -> Iterator[Terminal]:
    """`Terminal`, closed at the end."""
    terminal = Terminal(*arguments)
    try:
        yield terminal
    finally:
        terminal.close()


def test_without_a_worker_both_say_so_and_count_what_waits(server: EmbeddedServer) -> None:
    """Exit code 0: an empty house is an answer, not an error."""
    with Golem(server.url) as client:
        client.submit_many(["one", "two"], bulk=True)
    for command in (["queue"], ["top", "--once"], ["top"]):
        done = golem(*command, "--broker-url", server.url)
        assert (done.returncode, done.stderr) == (0, "")
        rows = [line.split() for line in done.stdout.splitlines()]
        assert ["golem", "0", "0", "0", "0", "-"] in rows
        assert ["golem.bulk", "2", "0", "0", "2", "-"] in rows
        assert "start one with golem worker" in done.stdout


def test_a_redis_that_is_not_there_is_an_error_with_its_remedy() -> None:
    """Exit code 1 and one sentence, with the password masked."""
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    for command in (["queue"], ["queue", "--json"], ["top"]):
        done = golem(*command, "--broker-url", url, GOLEM_CONNECT_TIMEOUT_S="0.3")
        assert done.returncode == 1
        assert "can't be reached" in done.stderr
        assert "secret" not in done.stdout + done.stderr


def test_lanes_workers_and_speed_are_told(server: EmbeddedServer, tmp_path: Path) -> None:
    """For people and as JSON, of the queue that was asked for; the figures agree."""
    options = ("--broker-url", server.url, "--queue", "reviews")
    gate = tmp_path / "gate"
    with (
        Golem(server.url, queue="reviews") as client,
        FakeWorker(
            tmp_path, server, GOLEM_QUEUE="reviews", GOLEM_MAX_ROWS="4", FAKE_FORWARD_S="0.05"
        ),
    ):
        for job in client.submit_many([f"text {number}" for number in range(60)]):
            job.result(60)
        client.submit(f"until:{gate}")

        def counted() -> bool:
            backlog = client.backlog()
            answered = [worker.answered for worker in backlog.workers]
            return (answered, backlog.interactive.in_flight) == ([60], 1)

        wait_until(counted, "all answers to be counted, and a job to be in flight")
        client.submit_many(["one", "two"] * 5, bulk=True)
        wait_until(lambda: client.backlog().bulk.reserved == 4, "four jobs to be reserved")
        told = json.loads(golem("queue", "--json", *options).stdout)
        assert (told["queue"], told["total"], told["jobs_per_s"] > 0) == ("reviews", 11, True)
        assert told["drain_s"] == pytest.approx(11 / told["jobs_per_s"])
        assert told["workers"][0]["answered"] == 60
        shown = golem("queue", *options)
        assert shown.returncode == 0
        rows = [line.split()[:5] for line in shown.stdout.splitlines()]
        assert ["reviews.bulk", "6", "4", "0", "10"] in rows
        assert "1 worker; under load " in shown.stdout
        frame = golem("top", "--once", *options)
        assert frame.returncode == 0
        (line,) = (line for line in frame.stdout.splitlines() if "w1@test" in line)
        assert line.split()[1:4] == ["fake", "float32", "cpu"]
        assert [row for row in rows if row[:1] == ["reviews"]] == [["reviews", "0", "0", "1", "1"]]
        gate.touch()


def test_top_is_live_and_ctrl_c_leaves_it_cleanly(server: EmbeddedServer) -> None:
    """It follows the queue, gives the terminal back, and exits with 0."""
    with watching("--broker-url", server.url) as terminal, Golem(server.url) as client:
        terminal.shows(b"golem.bulk")
        assert ALTERNATE in terminal.shown
        client.submit_many(["text"] * 4321)
        terminal.shows(b"4,321")
        terminal.run.send_signal(signal.SIGINT)
        terminal.shows(MAIN)
        assert terminal.run.wait(60) == 0
        assert b"Traceback" not in terminal.shown


def test_top_survives_a_redis_that_goes_away() -> None:
    """It says so, keeps the last figures, and goes on when Redis is back; SIGTERM ends it."""
    with (
        EmbeddedServer(appendonly=True) as own,
        watching("--broker-url", own.url) as terminal,
        Golem(own.url) as client,
    ):
        client.submit_many(["text"] * 1234)
        terminal.shows(b"1,234")
        own.kill()
        terminal.shows(b"can't be reached")
        own.start()
        client.submit_many(["text"] * 4321)
        terminal.shows(b"5,555")
        terminal.run.send_signal(signal.SIGTERM)
        terminal.shows(MAIN)
        assert terminal.run.wait(60) == 128 + signal.SIGTERM
