"""Minutes of steady load with faults, and an account of every job.

    python -m benchmarks.soak --minutes 10 --resets-every-s 10 [--restarts-every-s 120]
                              [--plot soak.png]

A producer sends jobs all the time; connections are reset and, if asked for, the server is killed
and started again (with its append-only file) at random, seeded moments. Every answer is compared
with the right one as it arrives. Memory and open files of the worker are sampled all along.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from benchmarks.backlog import Bench, make_texts
from benchmarks.contenders import CELERY, GOLEM, Contender, RunningWorker
from benchmarks.engines import GPU, read_runs
from benchmarks.ledger import Ledger, extra_runs, settle
from benchmarks.procfs import Usage
from benchmarks.report import Figure, Report, progress, publish, significant, summarise
from benchmarks.resets import held_ids, kill_connections, waiting_ids
from benchmarks.verify import Verdict, verdicts
from golem_tasks.client import Golem

__all__ = ["Plan", "Sample", "Soak", "flatness", "moments"]

_GPU_ENV = {"BENCH_LAUNCH_MS": "5", "BENCH_TOKEN_US": "40", "BENCH_ROW_TOKENS": "24"}
_TURN_S = 0.1
_SAMPLE_S = 2.0
_DRAIN_S = 120.0
"""After the last submit: longer than a reconnection, shorter than the visibility time-out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak does."""

    seconds: float
    rate: float
    """Jobs sent a second."""
    resets_every_s: float
    """Mean seconds between two resets; 0: none."""
    restarts_every_s: float
    """Mean seconds between two kills and starts of the server; 0: none."""
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at one moment."""

    at_s: float
    parent: Usage
    models: Usage


@dataclass(slots=True)
class _Book:
    """What was sent and what is still to be answered, by position."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    judged: list[Verdict] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    def sent(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        begin = len(self.ids)
        self.ids.extend(ids)
        self.texts.extend(texts)
        self.judged.extend([Verdict.ABSENT] * len(ids))
        self.open.extend(range(begin, begin + len(ids)))

    def look(self, client: Any) -> None:
        """Judge what has been answered since."""
        asked = self.open
        ids, texts = [self.ids[i] for i in asked], [self.texts[i] for i in asked]
        for position, verdict in zip(asked, verdicts(client, ids, texts), strict=True):
            self.judged[position] = verdict
        self.open = [i for i in asked if self.judged[i] is Verdict.ABSENT]


def moments(mean_s: float, seconds: float, rng: random.Random) -> list[float]:
    """Random moments, `mean_s` apart on average; none if that is 0."""
    found: list[float] = []
    now_s = rng.uniform(0.5, 1.5) * mean_s
    while mean_s and now_s < seconds:
        found.append(now_s)
        now_s += rng.uniform(0.5, 1.5) * mean_s
    return found


def flatness(samples: Sequence[Sample]) -> dict[str, Figure]:
    """Memory and files in the second quarter of the run and in its last, and the difference.

    The first quarter is left out: caches and allocators fill in it.
    """
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    found: dict[str, Figure] = {}
    for name, pick in _GAUGES.items():
        before = Figure.of([pick(each) for each in early])
        after = Figure.of([pick(each) for each in late])
        found[f"{name}_early"], found[f"{name}_late"] = before, after
        growth = significant(after.median - before.median)
        found[f"{name}_growth"] = Figure(growth, growth, growth)
    return found


_GAUGES: dict[str, Callable[[Sample], float]] = {
    "parent_rss_mib": lambda sample: sample.parent.rss_mib,
    "parent_fds": lambda sample: float(sample.parent.fds),
    "child_rss_mib": lambda sample: sample.models.rss_mib,
    "child_fds": lambda sample: float(sample.models.fds),
}


class Soak:
    """One soak of one contender.

    Args:
        bench: a server; with restarts, one that persists.
        contender: the worker under test.
        plan: what to do to it.
    """

    def __init__(self, bench: Bench, contender: Contender, plan: Plan) -> None:
        self.samples: list[Sample] = []
        self.resets = self.restarts = self.worker_restarts = 0
        self._bench = bench
        self._plan = plan
        self._book = _Book()
        self._log = bench.folder / f"{contender.name}-soak.log"
        env = _GPU_ENV | {"BENCH_LOG": str(self._log)}
        self._worker = RunningWorker(contender, bench.server, bench.folder, engine=GPU, env=env)

    def run(self) -> Ledger:
        """Run it and return the account."""
        self._bench.clear(everything=True)
        with self._worker, self._bench.golem() as golem:
            self._bench.warm_up(100)
            self._load(golem)
            self._drain()
            return self._account()

    def _load(self, golem: Golem) -> None:
        plan = self._plan
        rng = random.Random(plan.seed)  # noqa: S311 - a schedule, not a secret
        resets = moments(plan.resets_every_s, plan.seconds, rng)
        restarts = moments(plan.restarts_every_s, plan.seconds, rng)
        texts = iter(make_texts(int(plan.seconds * plan.rate) + 1, plan.seed))
        begun_s = time.monotonic()
        while (now_s := time.monotonic() - begun_s) < plan.seconds:
            self._submit(golem, texts, int(now_s * plan.rate) - len(self._book.ids))
            self._book.look(self._bench.answers)
            if resets and now_s >= resets[0]:
                resets.pop(0)
                kill_connections(self._bench.broker)
                self.resets += 1
            if restarts and now_s >= restarts[0]:
                restarts.pop(0)
                self._restart_server()
            self._watch(now_s)
            time.sleep(_TURN_S)

    def _submit(self, golem: Golem, texts: Iterator[str], count: int) -> None:
        # The client tries again through a reset or a restart; what it can't deliver it raises.
        if chosen := list(islice(texts, max(0, count))):
            self._book.sent([job.id for job in golem.submit_many(chosen)], chosen)

    def _restart_server(self) -> None:
        self._bench.server.kill()
        self._bench.server.start()
        self.restarts += 1

    def _watch(self, now_s: float) -> None:
        if not self._worker.alive:  # what any supervisor would do
            self._worker.stop()
            self._worker.start()
            self.worker_restarts += 1
        if self.samples and now_s - self.samples[-1].at_s < _SAMPLE_S:
            return
        sample = Sample(now_s, self._worker.parent_usage(), self._worker.model_usage())
        self.samples.append(sample)
        if len(self.samples) % 15 == 1:
            progress(
                f"{now_s:.0f} s: {len(self._book.ids)} sent, {len(self._book.open)} open, "
                f"{self.resets} resets, {self.restarts} restarts, parent "
                f"{sample.parent.rss_mib:.0f} MiB {sample.parent.fds} files, child "
                f"{sample.models.rss_mib:.0f} MiB {sample.models.fds} files"
            )

    def _drain(self) -> None:
        deadline_s = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline_s:
            self._book.look(self._bench.answers)
            if not self._book.open and not self._bench.broker.hlen("unacked"):
                return
            time.sleep(_TURN_S)

    def _account(self) -> Ledger:
        book = self._book
        return settle(
            book.ids,
            book.judged,
            waiting=waiting_ids(self._bench.broker),
            held=held_ids(self._bench.broker),
            duplicates=extra_runs(read_runs(self._log), book.texts),
        )


def measure(plan: Plan, contenders: Sequence[Contender]) -> Report:
    """Soak each contender for the plan's time, one after the other."""
    results: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        with Bench(appendonly=bool(plan.restarts_every_s)) as bench:
            soak = Soak(bench, contender, plan)
            ledger = soak.run()
        faults = {
            "resets": float(soak.resets),
            "restarts": float(soak.restarts),
            "worker_restarts": float(soak.worker_restarts),
        }
        results[contender.name] = {
            **summarise([ledger.figures | faults]),
            **flatness(soak.samples),
            "over_time": _over_time(soak.samples),
        }
        progress(f"{contender.name}: {ledger}")
    return Report("soak", asdict(plan), results, {})


_KEPT_SAMPLES = 120


def _over_time(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Every gauge over time, thinned out to what a picture shows."""
    kept = samples[:: max(1, len(samples) // _KEPT_SAMPLES)]
    series = {name: [significant(pick(each)) for each in kept] for name, pick in _GAUGES.items()}
    return {"at_s": [significant(each.at_s) for each in kept]} | series


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=300.0, help="jobs sent a second")
    parser.add_argument("--resets-every-s", type=float, default=10.0, help="0: none")
    parser.add_argument("--restarts-every-s", type=float, default=0.0, help="0: none")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--celery", action="store_true", help="soak stock Celery, too")
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            Plan(
                60 * given.minutes,
                given.rate,
                given.resets_every_s,
                given.restarts_every_s,
                given.seed,
            ),
            [GOLEM, CELERY] if given.celery else [GOLEM],
        ),
        given,
    )
