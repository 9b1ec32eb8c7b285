"""From submit to answer: one job at a time, and at 20, 50 and 80 % of a worker's capacity.

    python -m benchmarks.latency [--rounds 3] [--plot latency.png]

Jobs arrive in an open loop, at random (Poisson) whether or not earlier ones have been answered,
and are timed from when they should have been sent, so that a slow worker can't slow its own load.
Both workers hold the same model; stock Celery is also what Golem is compared with at stock's own
rates.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.backlog import Bench, make_texts
from benchmarks.contenders import CELERY, GOLEM, Contender, RunningWorker
from benchmarks.engines import GPU
from benchmarks.report import (
    Figure,
    Report,
    Round,
    percentile,
    progress,
    publish,
    ratio,
    summarise,
)
from golem_tasks.aio import AsyncGolem
from golem_tasks.contract import Prediction

__all__ = ["Answer", "arrivals", "figures", "measure"]

LOADS = (0.2, 0.5, 0.8)
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_BACKLOG = "capacity"
_ANSWER_TIMEOUT_S = 120.0
Rounds = dict[str, list[Round]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One job's times in milliseconds."""

    total_ms: float
    """From when it should have been sent to its answer in the producer."""
    queued_ms: float
    """From its sending to its encoding, as the worker tells."""
    forward_ms: float
    """The model's."""
    rows: int
    """Rows of its micro-batch."""

    @classmethod
    def of(cls, total_ms: float, prediction: Prediction) -> Answer:
        """Take the worker's part from the prediction."""
        timing = prediction.timing
        return cls(total_ms, timing.queued_ms, timing.forward_ms, timing.batch_rows)

    @property
    def rest_ms(self) -> float:
        """Sending, encoding, decoding, storing, telling the producer."""
        return max(0.0, self.total_ms - self.queued_ms - self.forward_ms)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start at which jobs arrive, `rate` a second on average, at random."""
    rng = random.Random(seed)  # noqa: S311 - a workload, not a secret
    times: list[float] = []
    now_s = rng.expovariate(rate)
    while now_s < seconds:
        times.append(now_s)
        now_s += rng.expovariate(rate)
    return times


def figures(answers: Sequence[Answer]) -> Round:
    """Percentiles of the whole, and of each part on its own."""
    parts = {
        "": [each.total_ms for each in answers],
        "queued_": [each.queued_ms for each in answers],
        "forward_": [each.forward_ms for each in answers],
        "rest_": [each.rest_ms for each in answers],
    }
    found = {
        f"{part}{name}_ms": percentile(values, share)
        for part, values in parts.items()
        for name, share in SHARES.items()
    }
    found["mean_rows"] = sum(each.rows for each in answers) / len(answers)
    found["jobs"] = len(answers)
    return found


async def _one_at_a_time(bench: Bench, jobs: int) -> list[Answer]:
    answers = []
    async with AsyncGolem(settings=bench.settings()) as golem:
        for text in make_texts(jobs, seed=5):
            begun_s = time.perf_counter()
            prediction = await golem.classify(text, timeout=_ANSWER_TIMEOUT_S)
            answers.append(Answer.of(1e3 * (time.perf_counter() - begun_s), prediction))
    return answers


async def _open_loop(bench: Bench, rate: float, seconds: float, seed: int) -> list[Answer]:
    due_s = arrivals(rate, seconds, seed)
    async with AsyncGolem(settings=bench.settings()) as golem:
        await golem.classify("the first job opens the connections", timeout=_ANSWER_TIMEOUT_S)
        begun_s = time.perf_counter()

        async def one(text: str, at_s: float) -> Answer:
            await asyncio.sleep(begun_s + at_s - time.perf_counter())
            prediction = await golem.classify(text, timeout=_ANSWER_TIMEOUT_S)
            return Answer.of(1e3 * (time.perf_counter() - begun_s - at_s), prediction)

        texts = make_texts(len(due_s), seed=6)
        jobs = [one(text, at_s) for text, at_s in zip(texts, due_s, strict=True)]
        return list(await asyncio.gather(*jobs))


def measure(
    *, rounds: int, jobs: int, capacity_jobs: int, seconds: float, engine: str | None
) -> Report:
    """Measure both contenders in turn, `rounds` times.

    Args:
        rounds: how often.
        jobs: jobs sent one at a time.
        capacity_jobs: the backlog a contender's capacity is measured on, first of all.
        seconds: how long each open loop lasts.
        engine: ``GOLEM_ENGINE``; None is the real model.
    """
    found: Rounds = {}
    with Bench() as bench:
        capacity = {
            contender.name: _capacity(bench, contender, capacity_jobs, engine)
            for contender in (GOLEM, CELERY)
        }
        progress(f"capacity in jobs/s: {capacity}")
        for number in range(rounds):
            for contender in (GOLEM, CELERY):
                rates = _rates(contender, capacity)
                bench.clear(everything=True)
                with RunningWorker(contender, bench.server, bench.folder, engine=engine):
                    bench.warm_up(100)
                    answers = {"one at a time": asyncio.run(_one_at_a_time(bench, jobs))}
                    for name, rate in rates.items():
                        answers[name] = asyncio.run(_open_loop(bench, rate, seconds, number))
                for name, each in answers.items():
                    key = f"{contender.name} {name}"
                    found.setdefault(key, []).append(figures(each))
                    progress(f"round {number + 1}/{rounds} {key}: {_brief(found[key][-1])}")
    results: dict[str, dict[str, Figure]] = {name: summarise(each) for name, each in found.items()}
    for name, rate in capacity.items():
        results[f"{name} capacity"] = {"jobs_per_s": Figure.of([rate])}
    asked = {
        "rounds": rounds,
        "jobs": jobs,
        "capacity_jobs": capacity_jobs,
        "seconds": seconds,
        "engine": engine or "worker.engine:load",
    }
    return Report("latency", asked, dict(results), _ratios(results, capacity))


def _capacity(bench: Bench, contender: Contender, jobs: int, engine: str | None) -> float:
    bench.clear(everything=True)
    bench.prepare(_BACKLOG, make_texts(jobs))
    with RunningWorker(contender, bench.server, bench.folder, engine=engine) as worker:
        bench.warm_up(100)
        return bench.drain(_BACKLOG, jobs, [worker], keep=False).figures["jobs_per_s"]


def _rates(contender: Contender, capacity: dict[str, float]) -> dict[str, float]:
    rates = {_load(load): load * capacity[contender.name] for load in LOADS}
    if contender is GOLEM:
        rates |= {_load(load, of=CELERY): load * capacity[CELERY.name] for load in LOADS}
    return rates


def _load(load: float, of: Contender | None = None) -> str:
    return f"at {100 * load:.0f} % of {'its' if of is None else of.name + chr(39) + 's'} capacity"


def _ratios(results: dict[str, dict[str, Figure]], capacity: dict[str, float]) -> dict[str, float]:
    candidates: dict[str, float | None] = {
        "golem/celery capacity": capacity[GOLEM.name] / capacity[CELERY.name]
    }
    pairs = {"one at a time": ("one at a time", "one at a time")}
    for load in LOADS:
        shown = f"at {100 * load:.0f} % of celery's capacity"
        pairs[shown] = (_load(load, of=CELERY), _load(load))
    for shown, (ours, theirs) in pairs.items():
        for name in SHARES:
            over = results[f"golem {ours}"][f"{name}_ms"]
            candidates[f"golem/celery {name} {shown}"] = ratio(
                over, results[f"celery {theirs}"][f"{name}_ms"]
            )
    return {name: value for name, value in candidates.items() if value is not None}


def _brief(found: Round) -> str:
    names = ("p50_ms", "p95_ms", "p99_ms", "queued_p50_ms", "forward_p50_ms", "rest_p50_ms")
    return ", ".join(f"{name} {found[name]:.2f}" for name in names)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=300, help="jobs sent one at a time")
    parser.add_argument("--capacity-jobs", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each open loop")
    parser.add_argument(
        "--simulated", action="store_true", help="a simulated GPU instead of the real model"
    )
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            rounds=given.rounds,
            jobs=given.jobs,
            capacity_jobs=given.capacity_jobs,
            seconds=given.seconds,
            engine=GPU if given.simulated else None,
        ),
        given,
    )
