"""Whether cost stays flat as backlogs grow, and speed grows as workers are added.

    python -m benchmarks.growth [--backlogs 1000 3000 ... 300000] [--workers 1 2 4 8]
                                [--processes 1 2 3] [--plot growth.png]

Backlogs are answered by a model that costs nothing. Workers are added on simulated GPUs that sleep
a + b x tokens for each micro-batch and use no CPU, each worker having the same share of jobs. Then
one worker's processes share one such GPU: what one of them does beside computing, the others hide.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backlog import Bench, Drained, make_texts
from benchmarks.contenders import CELERY, GOLEM, Contender, RunningWorker
from benchmarks.engines import GPU, NOOP, Run, read_runs
from benchmarks.report import Figure, Report, Round, progress, publish, ratio, summarise

__all__ = ["Gpu", "measure", "spread"]

_BACKLOG = "growth"
Rounds = dict[str, list[Round]]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A simulated GPU and its share of work."""

    launch_ms: float
    token_us: float
    row_tokens: int
    rows: int
    """Texts of a dispatch; the fewer, the less the last dispatches blur the figures."""
    jobs_per_worker: int

    @property
    def env(self) -> dict[str, str]:
        """What a worker and `benchmarks.engines.simulated_gpu` read."""
        return {
            "GOLEM_MAX_ROWS": str(self.rows),
            "BENCH_LAUNCH_MS": str(self.launch_ms),
            "BENCH_TOKEN_US": str(self.token_us),
            "BENCH_ROW_TOKENS": str(self.row_tokens),
        }


def measure(
    *,
    rounds: int,
    backlogs: Sequence[int],
    celery_up_to: int,
    workers: Sequence[int],
    gpus: Sequence[Gpu],
    processes: Sequence[int] = (),
) -> Report:
    """Measure both kinds of growth.

    Args:
        rounds: how often each point is measured.
        backlogs: jobs waiting, smallest first.
        celery_up_to: the largest backlog stock Celery is given too; it needs its time.
        workers: how many workers, smallest first.
        gpus: what each of them holds.
        processes: how many model processes share one of these GPUs, smallest first.
    """
    found: Rounds = {}
    with Bench() as bench:
        for number in range(rounds):
            for jobs in backlogs:
                peers = [GOLEM, CELERY] if jobs <= celery_up_to else [GOLEM]
                for contender in peers:
                    name = f"{contender.name} {jobs} jobs"
                    figures = _backlog(bench, contender, jobs)
                    found.setdefault(name, []).append(figures)
                    progress(f"round {number + 1}/{rounds} {name}: {_brief(figures)}")
            for gpu in gpus:
                for count in workers:
                    name = _workers_name(gpu, count)
                    figures = _workers(bench, count, gpu)
                    found.setdefault(name, []).append(figures)
                    progress(f"round {number + 1}/{rounds} {name}: {_brief(figures)}")
                for count in processes:
                    name = _processes_name(gpu, count)
                    figures = _workers(bench, 1, gpu, processes=count)
                    found.setdefault(name, []).append(figures)
                    progress(f"round {number + 1}/{rounds} {name}: {_brief(figures)}")
    results = {name: summarise(each) for name, each in found.items()}
    _add_efficiency(results, workers, gpus)
    asked = {
        "rounds": rounds,
        "backlogs": list(backlogs),
        "workers": list(workers),
        "processes": list(processes),
        "gpus": [gpu.env | {"jobs_per_worker": gpu.jobs_per_worker} for gpu in gpus],
    }
    return Report(
        "growth", asked, dict(results), _ratios(results, backlogs, workers, gpus, processes)
    )


def spread(runs: Sequence[Run]) -> dict[str, float]:
    """How evenly micro-batches' rows spread over the model processes, and how busy these were.

    ``least_share`` and ``most_share`` are of an equal share: 1 is perfectly even.
    """
    rows: Counter[int] = Counter()
    busy_s: Counter[int] = Counter()
    for run in runs:
        rows[run.pid] += len(run.fingerprints)
        busy_s[run.pid] += run.ended_s - run.begun_s  # type: ignore[assignment]  # float counts
    equal = rows.total() / len(rows)
    span_s = max(run.ended_s for run in runs) - min(run.begun_s for run in runs)
    return {
        "processes": len(rows),
        "least_share": min(rows.values()) / equal,
        "most_share": max(rows.values()) / equal,
        "gpu_busy_share": busy_s.total() / (len(rows) * span_s),
        "mean_rows": rows.total() / len(runs),
    }


def _backlog(bench: Bench, contender: Contender, jobs: int) -> Round:
    bench.clear(everything=True)
    bench.prepare(_BACKLOG, make_texts(jobs))
    with RunningWorker(contender, bench.server, bench.folder, engine=NOOP) as worker:
        bench.warm_up()
        before = worker.parent_usage()
        drained = bench.drain(_BACKLOG, jobs, [worker], keep=False)
    figures = dict(drained.figures)
    figures["cpu_ms_per_job"] = (drained.parent.cpu_ms + drained.models.cpu_ms) / jobs
    figures["parent_rss_growth_mib"] = drained.parent.rss_mib - before.rss_mib
    figures["parent_fds"] = drained.parent.fds
    return figures


def _workers(bench: Bench, count: int, gpu: Gpu, processes: int = 0) -> Round:
    """Workers with a GPU each; where `processes` are given, so many share each of them."""
    bench.clear(everything=True)
    jobs = count * gpu.jobs_per_worker
    bench.prepare(_BACKLOG, make_texts(jobs))
    log = bench.folder / "runs.log"
    env = gpu.env | {"BENCH_LOG": str(log)}
    if processes:
        env |= {"GOLEM_PROCESSES": str(processes), "BENCH_DEVICE": str(bench.folder / "gpu")}
    with ExitStack() as running:
        group = []
        for number in range(count):
            worker = RunningWorker(
                GOLEM, bench.server, bench.folder, engine=GPU, name=f"w{number + 1}", env=env
            )
            running.callback(worker.stop)
            group.append(worker.start(wait=False))
        for worker in group:
            worker.wait_ready()
        bench.warm_up(gpu.rows * count * max(1, processes))  # a full dispatch for each process
        log.write_bytes(b"")  # the warm-up's; the engines go on appending to the same file
        drained = bench.drain(_BACKLOG, jobs, group, keep=False)
    figures = _worker_figures(drained, log)
    if not processes:
        return figures
    busy = figures["gpu_busy_share"] * figures["processes"]  # of one device, whoever uses it
    return {**figures, "gpu_busy_share": busy}


def _worker_figures(drained: Drained, log: Path) -> Round:
    figures = dict(drained.figures) | spread(read_runs(log))
    cpu_ms = drained.parent.cpu_ms + drained.models.cpu_ms + drained.server_cpu_ms
    figures["cores_busy"] = cpu_ms / 1e3 / drained.wall_s
    return figures


def _workers_name(gpu: Gpu, count: int) -> str:
    return f"golem {count} workers, b={gpu.token_us:g} us"


def _processes_name(gpu: Gpu, count: int) -> str:
    return f"golem {count} processes on one GPU, b={gpu.token_us:g} us"


def _add_efficiency(
    results: dict[str, dict[str, Figure]], workers: Sequence[int], gpus: Sequence[Gpu]
) -> None:
    for gpu in gpus if workers else ():
        alone = results[_workers_name(gpu, workers[0])]["jobs_per_s"].median / workers[0]
        for count in workers:
            figures = results[_workers_name(gpu, count)]
            rate = figures["jobs_per_s"]
            shares = [value / (alone * count) for value in (rate.median, rate.min, rate.max)]
            figures["efficiency"] = Figure(*(round(share, 4) for share in shares))


def _ratios(
    results: dict[str, dict[str, Figure]],
    backlogs: Sequence[int],
    workers: Sequence[int],
    gpus: Sequence[Gpu],
    processes: Sequence[int],
) -> dict[str, float]:
    candidates: dict[str, float | None] = {}
    base = 3_000 if 3_000 in backlogs else min(backlogs, default=0)  # noqa: PLR2004 - a yardstick
    for jobs in backlogs:
        golem = results[f"golem {jobs} jobs"]
        if jobs != base:
            for figure in ("cpu_ms_per_job", "jobs_per_s", "redis_cpu_ms_per_job"):
                under = results[f"golem {base} jobs"][figure]
                candidates[f"{figure} at {jobs}/{base}"] = ratio(golem[figure], under)
        celery = results.get(f"celery {jobs} jobs", {}).get("jobs_per_s")
        candidates[f"golem/celery at {jobs}"] = ratio(golem["jobs_per_s"], celery)
    for gpu in gpus:
        for count in workers[1:]:
            efficiency = results[_workers_name(gpu, count)]["efficiency"].median
            candidates[f"{count} workers/{count} x one, b={gpu.token_us:g} us"] = efficiency
        for count in processes[1:]:
            over, under = (
                results[_processes_name(gpu, each)]["jobs_per_s"] for each in (count, processes[0])
            )
            name = f"{count} processes/{processes[0]} on one GPU, b={gpu.token_us:g} us"
            candidates[name] = ratio(over, under)
    return {name: value for name, value in candidates.items() if value is not None}


def _brief(figures: Round) -> str:
    names = (
        "jobs_per_s", "parent_cpu_ms_per_job", "child_cpu_ms_per_job", "parent_peak_rss_mib",
        "parent_rss_growth_mib", "least_share", "most_share", "gpu_busy_share", "cores_busy",
    )  # fmt: skip
    return ", ".join(f"{name} {figures[name]:.3g}" for name in names if name in figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--backlogs",
        type=int,
        nargs="*",
        default=[1_000, 3_000, 10_000, 30_000, 100_000, 300_000],
    )
    parser.add_argument(
        "--celery-up-to", type=int, default=10_000, help="largest backlog for stock Celery"
    )
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument(
        "--processes", type=int, nargs="*", default=[1, 2, 3], help="that share one GPU"
    )
    parser.add_argument("--launch-ms", type=float, default=5.0, help="a, of each micro-batch")
    parser.add_argument(
        "--token-us",
        type=float,
        nargs="+",
        default=[100.0, 20.0],
        help="b, of each padded token; one GPU for each value",
    )
    parser.add_argument("--row-tokens", type=int, default=24)
    parser.add_argument("--rows", type=int, default=128, help="texts of each dispatch")
    parser.add_argument(
        "--seconds-per-worker", type=float, default=8.0, help="sets the jobs of each worker"
    )
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


def _gpu(given: argparse.Namespace, token_us: float) -> Gpu:
    """A GPU with as many full micro-batches as it does in the time asked for."""
    rows = given.rows
    batch_s = (given.launch_ms + rows * given.row_tokens * token_us / 1e3) / 1e3
    batches = max(1, round(given.seconds_per_worker / batch_s))
    return Gpu(given.launch_ms, token_us, given.row_tokens, rows, rows * batches)


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            rounds=given.rounds,
            backlogs=given.backlogs,
            celery_up_to=given.celery_up_to,
            workers=given.workers,
            gpus=[_gpu(given, token_us) for token_us in given.token_us],
            processes=given.processes,
        ),
        given,
    )
