"""One soak of one kind of worker: load, faults, supervision, and the account at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from redis.exceptions import RedisError

from benchmarks.backlog import Bench, make_texts
from benchmarks.book import Book
from benchmarks.contenders import Contender, RunningWorker
from benchmarks.engines import GPU, POISON, read_runs
from benchmarks.faults import Fault, Injected, Injector, plan_faults
from benchmarks.fleet import Fleet
from benchmarks.ledger import Ledger, extra_runs, settle
from benchmarks.promises import Outcome
from benchmarks.report import progress
from benchmarks.resets import held_ids, waiting_ids
from benchmarks.soak_figures import Sample, flatness
from golem_tasks.client import Golem
from golem_tasks.errors import BrokerUnavailable, SubmitIncomplete

__all__ = ["Plan", "Soak"]

_GPU_ENV = {"BENCH_LAUNCH_MS": "5", "BENCH_TOKEN_US": "40", "BENCH_ROW_TOKENS": "24"}
_TURN_S = 0.02
_LOOK_S = 0.1
_SAMPLE_S = 2.0
_TOLD_S = 30.0
_STOP_S = 60.0
"""A worker told to leave is killed after this: GOLEM_GRACE_S and as much again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak does."""

    seconds: float
    rate: float
    """Jobs sent a second."""
    every_s: float
    """Mean seconds between two faults."""
    faults: tuple[Fault, ...]
    seed: int
    workers: int
    lease_s: int
    """Seconds after which a dead worker's jobs reappear."""
    left_out: frozenset[Fault] = frozenset()
    """Kinds whose turn is let pass, so that all else comes as it would have."""

    @property
    def quiet_s(self) -> float:
        """Without a new answer for so long, what is open stays so: a lease and a recovery."""
        return 2.0 * self.lease_s + 60.0

    @property
    def drain_s(self) -> float:
        """How long a slow worker may take to catch up after the load."""
        return max(600.0, self.seconds)


class Soak:
    """One soak of one contender.

    Args:
        bench: a server that keeps its data over a crash.
        contender: the workers under test.
        plan: what to do to them.
        logs: where the logs of workers and engines go.
    """

    def __init__(self, bench: Bench, contender: Contender, plan: Plan, logs: Path) -> None:
        self.samples: list[Sample] = []
        self.book = Book()
        self.done: list[Injected] = []
        self.uncertain = self.unsent = 0
        """Jobs whose producer was told that they may be in the queue, and those that were not."""
        self._bench = bench
        self._plan = plan
        drawn = plan_faults(plan.faults, plan.every_s, plan.seconds, plan.seed)
        self._planned = [each for each in drawn if each.fault not in plan.left_out]
        self._runs = logs / f"{contender.name}-runs.log"
        self._runs.unlink(missing_ok=True)
        self._poison: SimpleQueue[tuple[str, Event]] = SimpleQueue()
        self._begun_s = self._looked_s = 0.0
        env = {
            **_GPU_ENV,
            "BENCH_LOG": str(self._runs),
            "GOLEM_LEASE_S": str(plan.lease_s),
            "GOLEM_VISIBILITY_TIMEOUT_S": str(plan.lease_s),  # what the peers go by
        }
        self._fleet = Fleet(
            [
                RunningWorker(contender, bench.server, logs, engine=GPU, name=f"w{n + 1}", env=env)
                for n in range(plan.workers)
            ],
            stop_s=_STOP_S,
        )

    def run(self) -> Outcome:
        """Run it and return what it came to."""
        self._bench.clear(everything=True)
        with self._fleet, self._bench.golem() as golem:
            self._bench.warm_up(100)
            self._load(golem)
            self._drain()
            orphans = self._fleet.surviving_orphans()
            ledger = self._account()
        return Outcome(
            ledger,
            [each.fault for each in self._planned],
            [each.fault for each in self.done],
            self._fleet.exits,
            orphans,
            self._plan.seconds,
            flatness(self.samples),
        )

    def _load(self, golem: Golem) -> None:
        plan = self._plan
        texts = iter(make_texts(int(plan.seconds * plan.rate) + 1, plan.seed))
        injector = Injector(
            self._bench.server,
            self._fleet,
            most_hang_s=plan.lease_s / 4,
            poison=self._send_poison,
        )
        leaving = Event()
        self._begun_s = time.monotonic()
        with ThreadPoolExecutor(1, "injector") as pool:
            injecting = pool.submit(injector.run, self._planned, self._begun_s, leaving)
            try:
                while self._now_s < plan.seconds or not injecting.done():
                    self._turn(golem, texts)
                    if injecting.done():
                        injecting.result()  # raises what it ended with, if it did
            finally:
                leaving.set()
        self.done = sorted(injector.done, key=lambda each: each.at_s)

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._begun_s

    def _send_poison(self) -> str:
        text = f"{POISON}{len(self.book.ids)}"
        sent = Event()
        self._poison.put((text, sent))
        sent.wait(self._plan.quiet_s)
        return "whoever computes the text"

    def _turn(self, golem: Golem, texts: Iterator[str]) -> None:
        due = min(self._now_s, self._plan.seconds) * self._plan.rate
        chosen = list(islice(texts, max(0, int(due) - self._entered)))
        poison = [self._poison.get() for _ in range(self._poison.qsize())]
        if chosen or poison:
            self._submit(golem, [*chosen, *(text for text, _ in poison)])
        for _, sent in poison:
            sent.set()
        self._look()
        self._watch()
        time.sleep(_TURN_S)

    @property
    def _entered(self) -> int:
        return len(self.book.ids) + self.book.refused

    def _submit(self, golem: Golem, texts: list[str]) -> None:
        try:
            ids = [job.id for job in golem.submit_many(texts)]
        except SubmitIncomplete as exc:
            # A connection that breaks leaves a confirmed start, an uncertain rest of one pipeline
            # and later pipelines untouched: the lists, put together, are in the texts' order.
            sent, known = len(exc.sent), len(exc.sent) + len(exc.uncertain)
            self.book.enter(exc.sent, texts[:sent], self._now_s)
            self.book.enter(exc.uncertain, texts[sent:known], self._now_s, uncertain=True)
            self.book.refused += len(exc.unsent)
        except BrokerUnavailable:
            self.book.refused += len(texts)
        else:
            self.book.enter(ids, texts, self._now_s)

    def _look(self) -> None:
        if self._now_s < self._looked_s + _LOOK_S:
            return
        self._looked_s = self._now_s
        try:
            self.book.look(self._bench.answers, self._now_s)
        except (RedisError, OSError):
            return  # away by our own doing; the next turn looks again

    def _watch(self) -> None:
        now_s = self._now_s
        if self.samples and now_s - self.samples[-1].at_s < _SAMPLE_S:
            return
        veteran = self._fleet.veteran
        sample = Sample(now_s, veteran.parent_usage(), veteran.model_usage())
        told = self.samples and int(now_s / _TOLD_S) == int(self.samples[-1].at_s / _TOLD_S)
        self.samples.append(sample)
        if not told:
            progress(
                f"{now_s:.0f} s: {len(self.book.ids)} sent, {self.book.open} open, "
                f"{self.book.refused} refused, parent {sample.parent.rss_mib:.0f} MiB "
                f"{sample.parent.fds} files"
            )

    def _drain(self) -> None:
        begun_s = moved_s = self._now_s
        seen = self._left()
        while any(seen) and self._now_s < min(
            moved_s + self._plan.quiet_s, begun_s + self._plan.drain_s
        ):
            time.sleep(_LOOK_S)
            self._look()
            self._watch()
            if (left := self._left()) != seen:
                seen, moved_s = left, self._now_s

    def _left(self) -> tuple[int, int]:
        """Jobs without an answer and messages without an acknowledgement."""
        held: Any = self._bench.broker.hlen("unacked")
        return self.book.certain_open, int(held)

    def _account(self) -> Ledger:
        book = self.book
        waiting, held = waiting_ids(self._bench.broker), held_ids(self._bench.broker)
        book.audit(self._bench.answers)
        self.uncertain = len(book.uncertain)
        self.unsent = book.forget_unsent(waiting | held)
        return settle(
            book.ids,
            book.judged,
            waiting=waiting,
            held=held,
            duplicates=extra_runs(read_runs(self._runs), book.texts),
        )
