"""One model process with all cores, or several that share them: which is faster, for which texts?

    python -m benchmarks.threads [--rounds 3] [--models base,mini]

A worker for each way of sharing the cores stands by, on a queue of its own; round after round they
answer the same backlogs in turn, through Redis, in the default dtype. ``2x1`` is two processes of
one thread each. Then each answers texts sent one at a time, which is what the number of threads
of a process does for a lone job. Settings are the defaults but for the token budget. What a busy
machine leaves of the figures is ``texts_per_cpu_s``: of the model processes' CPU time alone.
``models_pss_mib`` is their memory, a page that they share, as those of the weights, counted once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.backlog import Bench
from benchmarks.contenders import GOLEM, RunningWorker
from benchmarks.loops import BUDGET_TOKENS, save_base
from benchmarks.procfs import pss_mib
from benchmarks.report import (
    Figure,
    Report,
    Round,
    machine,
    percentile,
    progress,
    publish,
    ratio,
    summarise,
)
from benchmarks.workloads import texts_made_up, workload
from golem_tasks.client import Golem
from worker.source import EMBEDDED_FOLDER

__all__ = ["Share", "measure", "shares"]

COUNTS = {"short": 768, "mixed": 160, "long": 64}
"""Texts of each workload for the base model."""
MODELS = {"base": 1.0, "mini": 4.0}
"""How many times as many texts a model gets."""
_SETTINGS = {
    # Fixed, since each process would measure it while the other workers load.
    "GOLEM_TOKEN_BUDGET": str(BUDGET_TOKENS),
}
_ONE = "one"
_ANSWER_TIMEOUT_S = 120.0
_TICK_MS = 10.0
"""What Linux counts CPU time in; a run of few texts may take less."""
Rounds = dict[str, list[Round]]


@dataclass(frozen=True, slots=True)
class Share:
    """A way of sharing the cores."""

    processes: int
    threads: int
    """Of each process."""

    @property
    def name(self) -> str:
        """Processes x threads."""
        return f"{self.processes}x{self.threads}"

    @property
    def queue(self) -> str:
        """The queue of its worker."""
        return f"bench-{self.name}"

    @property
    def env(self) -> dict[str, str]:
        """Its worker's settings."""
        given = {"QUEUE": self.queue, "PROCESSES": self.processes, "THREADS": self.threads}
        return _SETTINGS | {f"GOLEM_{name}": str(value) for name, value in given.items()}


def shares(cores: int) -> list[Share]:
    """All cores in one process, halves of them in two, and so on to a core for each process."""
    found, processes = [], 1
    while processes <= cores:
        found.append(Share(processes, cores // processes))
        processes *= 2
    return found


class _Race:
    """The workers of one model, all up, each on its queue."""

    def __init__(self, bench: Bench, workers: Mapping[Share, RunningWorker]) -> None:
        self._bench = bench
        self._workers = workers

    def run(self, share: Share, name: str, texts: Sequence[str]) -> Round:
        """One worker's figures for one backlog."""
        self._bench.answers.flushdb()
        worker = self._workers[share]
        drained = self._bench.drain(name, len(texts), [worker], queue=share.queue)
        cpu_ms = max(drained.models.cpu_ms, _TICK_MS)
        return {
            "texts_per_s": len(texts) / drained.wall_s,
            "texts_per_cpu_s": 1e3 * len(texts) / cpu_ms,
            "cores_busy": drained.models.cpu_ms / 1e3 / drained.wall_s,
            "models_pss_mib": pss_mib(*worker.models),
        }

    def one_by_one(self, share: Share, texts: Sequence[str]) -> Round:
        """How long a lone job takes."""
        settings = self._bench.settings().model_copy(update={"queue": share.queue})
        took_ms = []
        with Golem(settings=settings) as golem:
            for text in texts:
                begun_s = time.perf_counter()
                golem.classify(text, timeout=_ANSWER_TIMEOUT_S)
                took_ms.append(1e3 * (time.perf_counter() - begun_s))
        return {"p50_ms": percentile(took_ms, 0.5)}


def measure(
    *, rounds: int, models: Sequence[str], cores: int, singles: int, scale: float
) -> Report:
    """Let every way of sharing the cores answer every workload in turn, `rounds` times.

    Args:
        rounds: how often.
        models: of `MODELS`.
        cores: to share.
        singles: texts sent one at a time.
        scale: share of `COUNTS`.
    """
    found: Rounds = {}
    with TemporaryDirectory(prefix="golem-threads-") as scratch:
        for model in models:
            folder = EMBEDDED_FOLDER if model == "mini" else save_base(Path(scratch, model))
            texts = texts_made_up()
            counts = {name: max(1, round(COUNTS[name] * MODELS[model] * scale)) for name in COUNTS}
            drawn = {name: workload(name, texts, count) for name, count in counts.items()}
            _measure_model(model, folder, shares(cores), drawn, rounds, singles, found)
    results: dict[str, dict[str, Figure]] = {name: summarise(each) for name, each in found.items()}
    asked = {"rounds": rounds, "models": list(models), "cores": cores, "scale": scale, **_SETTINGS}
    return Report("threads", asked, dict(results), _ratios(results, models, shares(cores)))


def _measure_model(
    model: str,
    folder: Path,
    ways: Sequence[Share],
    drawn: Mapping[str, list[str]],
    rounds: int,
    singles: int,
    found: Rounds,
) -> None:
    with ExitStack() as running:
        bench = running.enter_context(Bench())
        workers = {}
        for way in ways:
            env = {"GOLEM_MODEL": str(folder), **way.env}
            worker = RunningWorker(GOLEM, bench.server, bench.folder, name=way.name, env=env)
            running.callback(worker.stop)
            workers[way] = worker.start()
        for name, texts in drawn.items():
            bench.prepare(name, texts)
        race = _Race(bench, workers)
        for name, texts in drawn.items():  # each shape once, unmeasured
            for way in ways:
                race.run(way, name, texts)
        for number in range(rounds):
            # Forth and back, so that none always has the warmer machine.
            order = ways if number % 2 == 0 else ways[::-1]
            for name, texts in drawn.items():
                for way in order:
                    _note(found, f"{way.name} {model} {name}", race.run(way, name, texts))
            for way in order:
                figures = race.one_by_one(way, drawn["short"][:singles])
                _note(found, f"{way.name} {model} {_ONE}", figures)
            progress(f"round {number + 1}/{rounds} {model} is done")


def _note(found: Rounds, key: str, figures: Round) -> None:
    found.setdefault(key, []).append(figures)
    progress(f"{key}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))


def _ratios(
    results: Mapping[str, Mapping[str, Figure]], models: Sequence[str], ways: Sequence[Share]
) -> dict[str, float]:
    found: dict[str, float | None] = {}
    whole = ways[0].name
    for model in models:
        for way in ways[1:]:
            compared = [(each, f) for f in ("texts_per_s", "texts_per_cpu_s") for each in COUNTS]
            for name, figure in [*compared, (_ONE, "p50_ms")]:
                over = results[f"{way.name} {model} {name}"][figure]
                under = results[f"{whole} {model} {name}"][figure]
                found[f"{figure} {way.name}/{whole} {model} {name}"] = ratio(over, under)
    return {name: value for name, value in found.items() if value is not None}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cores", type=int, default=machine()["cores"], help="to share")
    parser.add_argument("--singles", type=int, default=30, help="texts sent one at a time")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the texts")
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            rounds=given.rounds,
            models=given.models.split(","),
            cores=given.cores,
            singles=given.singles,
            scale=given.scale,
        ),
        given,
    )
