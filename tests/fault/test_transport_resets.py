"""The transport under faults: nothing lost, nothing stranded, every message accounted for."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from golem_tasks.embedded import EmbeddedServer
from golem_tasks.guard import guarded
from tests.support.consuming import publish
from tests.support.transport_consumer import PER_TURN
from tests.support.waiting import wait_until

logger = logging.getLogger(__name__)

CHUNK = 100


class Crew:
    """Some consumer processes and what they have handled."""

    def __init__(self, server: EmbeddedServer, folder: Path, lease_s: float) -> None:
        self._url = server.url
        self._folder = folder
        self._lease_s = lease_s
        self._guards: list[subprocess.Popen[bytes]] = []

    def hire(self) -> None:
        """Start one more consumer."""
        path = self._folder / f"consumer{len(self._guards)}"
        command = [sys.executable, "-m", "tests.support.transport_consumer",
                   self._url, str(path), str(self._lease_s)]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._guards.append(guarded(command, output=log, grace_s=20))

    def kill(self, place: int) -> None:
        """SIGKILL one consumer."""
        guard = self._guards[place].pid
        children = Path(f"/proc/{guard}/task/{guard}/children")
        child = wait_until(children.read_text, "the guard to start it")
        os.kill(int(child), signal.SIGKILL)
        self._guards[place].wait(60)

    def handled(self) -> Counter[int]:
        """How often each number was handled."""
        return Counter(
            int(line)
            for path in self._folder.glob("consumer*")
            for line in path.read_text("ascii").splitlines()
        )

    def dismiss(self) -> None:
        """End all consumers in good order."""
        for guard in self._guards:
            if guard.stdin is not None:
                guard.stdin.close()
        for guard in self._guards:
            guard.wait(60)


@contextmanager
def crew(server: EmbeddedServer, folder: Path, *, lease_s: float, size: int = 2) -> Iterator[Crew]:
    """So many consumers, at work."""
    people = Crew(server, folder, lease_s)
    try:
        for _ in range(size):
            people.hire()
        yield people
    finally:
        people.dismiss()


def publish_while(server: EmbeddedServer, messages: int, fault: Callable[[int], None]) -> None:
    """Publish over both lanes and all priorities; `fault` follows each chunk of 100."""
    chance = random.Random(7)  # noqa: S311 - a repeatable mix, no secret
    for start in range(0, messages, CHUNK):
        queue = chance.choice(["golem", "golem", "golem.bulk"])
        publish(server, range(start, start + CHUNK), queue, priority=chance.choice([0, 0, 3, 6, 9]))
        fault(start // CHUNK)


def settle(server: EmbeddedServer, people: Crew, messages: int) -> int:
    """Wait until all is handled and acknowledged; the number of duplicates."""
    wait_until(
        lambda: len(people.handled()) == messages, "every message to be handled", timeout_s=120
    )
    with server.client() as client:
        # One after the other: an acknowledgement is no transaction.
        for key in ("unacked", "unacked_index"):
            wait_until(lambda key=key: not client.exists(key), f"nothing to be in {key}")  # type: ignore[misc]
        kept = {key for key in client.keys("*") if client.ttl(key) == -1}  # -2: gone by now
        assert {key for key in kept if not key.startswith(b"_kombu")} == set()
    handled = people.handled()
    assert set(handled) == set(range(messages))
    duplicates = handled.total() - messages
    logger.warning("%d duplicates", duplicates)
    return duplicates


def cut_one(client: redis.Redis, chance: random.Random) -> None:
    """Reset one connection of a consumer, whichever; it is logged by none and known to none."""
    victims = [c["id"] for c in client.client_list() if c["name"] == "consumer"]
    if victims:
        client.client_kill_filter(_id=chance.choice(victims), skipme=True)


def test_40_connection_resets_under_load_lose_and_strand_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """Done: 40 resets of random consumer connections while 12,000 messages pass.

    Must hold: every message is handled, none waits for the end of its lease of ten minutes, and
    nothing but what expires stays in Redis.
    """
    chance = random.Random(11)  # noqa: S311 - a repeatable choice, no secret
    with crew(server, tmp_path, lease_s=600) as people, server.client() as client:
        wait_until(lambda: len(client.client_list()) > 3, "the consumers")

        def reset(chunk: int) -> None:
            if chunk % 3 == 0:
                cut_one(client, chance)

        publish_while(server, 12_000, reset)
        duplicates = settle(server, people, 12_000)
    assert duplicates <= 40


def test_a_consumer_killed_under_load_loses_nothing(server: EmbeddedServer, tmp_path: Path) -> None:
    """Done: SIGKILL of one of two consumers, and a third joins, while 6,000 messages pass.

    Must hold: what the dead one held is handled by the others after its lease, and no more again
    than one turn of its loop handles.
    """
    with crew(server, tmp_path, lease_s=10) as people:

        def kill(chunk: int) -> None:
            if chunk == 30:
                wait_until(people.handled, "the first messages to be handled")
                people.kill(0)
                people.hire()

        publish_while(server, 6_000, kill)
        duplicates = settle(server, people, 6_000)
    assert duplicates <= PER_TURN  # what it had handled and, in that turn, not yet acknowledged


def test_a_server_killed_and_restarted_loses_nothing(tmp_path: Path) -> None:
    """Done: three times SIGKILL and restart of a server with AOF while 6,000 messages pass.

    Must hold: consumers live on, adopt what they hold, and every message is handled once, at once
    and not after its lease of ten minutes.
    """
    with (
        EmbeddedServer(appendonly=True) as server,
        crew(server, tmp_path, lease_s=600) as people,
    ):

        def restart(chunk: int) -> None:
            if chunk % 20 == 10:
                server.kill()
                server.start()

        publish_while(server, 6_000, restart)
        duplicates = settle(server, people, 6_000)
    assert duplicates == 0
