"""The faults of a soak: when each comes, and how it is done to a server and its workers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from threading import Event, Lock
from typing import Any

from benchmarks.fleet import Absent, Fleet
from benchmarks.report import progress
from golem_tasks.embedded import EmbeddedServer

__all__ = ["KILLS", "OF_A_WORKER", "Fault", "Injected", "Injector", "Planned", "plan_faults"]

_AWAY_S = (0.2, 3.0)
"""How long a killed server stays away, least and most."""
_HANG_S = (1.0, 6.0)
_PATIENCE_S = 60.0
"""How long a fault waits for something to hit."""
_LOOK_S = 0.1
_AT_ONCE = 4
"""Most faults that go on at the same time, such as a worker killed while the server hangs."""


class Fault(Enum):
    """What is done."""

    KILL_MODEL = "kill_model"
    """SIGKILL of a model process, as by the kernel's OOM killer."""
    KILL_WORKER = "kill_worker"
    """SIGKILL of a worker's main process and models at once, as when a machine goes."""
    KILL_PARENT = "kill_parent"
    """SIGKILL of a worker's main process alone; its models have to notice by themselves."""
    KILL_REDIS = "kill_redis"
    """SIGKILL of the server, which comes back with its append-only file."""
    HANG_REDIS = "hang_redis"
    """SIGSTOP of the server for some seconds: connections stay, nothing answers."""
    RESET = "reset"
    """CLIENT KILL of one connection, of some or of all: workers', producers' and pub/sub."""
    TERMINATE = "terminate"
    """SIGTERM of a worker and a new one in its place, as in a rolling restart."""
    POISON = "poison"
    """A text that ends by a segmentation fault every process that computes it."""


KILLS = frozenset(
    {Fault.KILL_MODEL, Fault.KILL_WORKER, Fault.KILL_PARENT, Fault.KILL_REDIS, Fault.POISON}
)
"""Those that end a process between an answer and its acknowledgement, so that it may run again."""

OF_A_WORKER = frozenset({Fault.KILL_WORKER, Fault.KILL_PARENT, Fault.TERMINATE})
"""Those that end a worker's main process; the first worker's is spared."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come."""

    at_s: float
    """Seconds after the load began."""
    fault: Fault
    seed: int
    """Decides its target and its length, whatever the other faults drew."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that was done."""

    at_s: float
    fault: Fault
    target: str


def plan_faults(
    faults: Sequence[Fault], every_s: float, seconds: float, seed: int
) -> list[Planned]:
    """Faults at exponential gaps of `every_s` on average, as independent events come.

    The kinds are drawn like cards, so that each comes before one comes twice.
    """
    rng = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    planned: list[Planned] = []
    deck: list[Fault] = []
    at_s = rng.expovariate(1.0 / every_s)
    while faults and at_s < seconds:
        deck = deck or rng.sample(faults, len(faults))
        planned.append(Planned(at_s, deck.pop(), rng.getrandbits(32)))
        at_s += rng.expovariate(1.0 / every_s)
    return planned


class Injector:
    """Does the faults, several at once if need be, but one at a time to the server.

    Args:
        server: broker and result backend; it keeps its data over a crash.
        fleet: the workers.
        most_hang_s: the server hangs for less than this, lest leases run out.
        poison: sends a poison text, and returns once that is done.
    """

    def __init__(
        self,
        server: EmbeddedServer,
        fleet: Fleet,
        *,
        most_hang_s: float,
        poison: Callable[[], str],
    ) -> None:
        self.done: list[Injected] = []
        self._server = server
        self._fleet = fleet
        self._hang_s = (_HANG_S[0], max(_HANG_S[0], min(_HANG_S[1], most_hang_s)))
        self._one_at_a_time = Lock()
        self._begun_s = 0.0
        self._do: dict[Fault, Callable[[random.Random], str]] = {
            Fault.KILL_MODEL: fleet.kill_model,
            Fault.KILL_WORKER: fleet.kill_worker,
            Fault.KILL_PARENT: fleet.kill_parent,
            Fault.TERMINATE: fleet.terminate,
            Fault.KILL_REDIS: self._kill_server,
            Fault.HANG_REDIS: self._hang_server,
            Fault.RESET: self._reset,
            Fault.POISON: lambda _: poison(),
        }

    def run(self, planned: Sequence[Planned], begun_s: float, leaving: Event) -> None:
        """Do each at its time, counted from `begun_s`; return when all is over and up again.

        Raises:
            GolemError: the server didn't come back.
        """
        self._begun_s = begun_s
        running: list[Future[None]] = []
        with ThreadPoolExecutor(_AT_ONCE, "fault") as pool:
            for number, each in enumerate(planned, 1):
                if leaving.wait(max(0.0, begun_s + each.at_s - time.monotonic())):
                    break
                running.append(pool.submit(self._inject, each, f"{number} of {len(planned)}"))
        for future in running:
            future.result()

    def _inject(self, planned: Planned, number: str) -> None:
        rng = random.Random(planned.seed)  # noqa: S311 - a schedule, not a secret
        if planned.fault in (Fault.KILL_REDIS, Fault.HANG_REDIS, Fault.RESET):
            with self._one_at_a_time:
                self._record(planned, number, rng)
        else:
            self._record(planned, number, rng)

    def _record(self, planned: Planned, number: str, rng: random.Random) -> None:
        due_s = time.monotonic()
        while True:
            at_s = time.monotonic()
            try:
                target = self._do[planned.fault](rng)
            except Absent as exc:
                if at_s - due_s > _PATIENCE_S:
                    progress(f"fault {number}: {planned.fault.value} left out: {exc}")
                    return
                time.sleep(_LOOK_S)
            else:
                break
        if planned.fault is Fault.POISON:  # it strikes once it is in the queue
            at_s = time.monotonic()
        self.done.append(Injected(at_s - self._begun_s, planned.fault, target))
        progress(f"fault {number}: {planned.fault.value} of {target}, seed {planned.seed}")

    def _kill_server(self, rng: random.Random) -> str:
        away_s = rng.uniform(*_AWAY_S)
        self._server.kill()
        time.sleep(away_s)
        self._server.start()
        return f"the server, back after {away_s:.1f} s"

    def _hang_server(self, rng: random.Random) -> str:
        hang_s = rng.uniform(*self._hang_s)
        os.kill(self._server.pid, signal.SIGSTOP)
        try:
            time.sleep(hang_s)
        finally:
            os.kill(self._server.pid, signal.SIGCONT)
        return f"the server for {hang_s:.1f} s"

    def _reset(self, rng: random.Random) -> str:
        with self._server.client() as client:
            own = client.client_id()
            listed: list[dict[str, Any]] = client.client_list()
            found = [each["id"] for each in listed if int(each["id"]) != own]
            if not found:
                raise Absent("nobody is connected")
            wanted = rng.choice((1, rng.randint(1, len(found)), len(found)))
            for id_ in rng.sample(found, wanted):
                client.execute_command("CLIENT", "KILL", "ID", id_)
        return f"{wanted} of {len(found)} connections"
