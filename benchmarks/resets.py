"""Forced connection resets under load, with an account of every job: golem and stock Celery.

    python -m benchmarks.resets [--rounds 3] [--jobs 12000] [--resets 40] [--seed 7]
                                [--plot resets.png]

The server drops every connection (CLIENT KILL, commands and pub/sub) whenever another share of the
jobs has been answered, at points drawn from the seed: the same for each contender, each of them
under load and with the worker reconnected since the last.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.backlog import Bench, make_texts
from benchmarks.contenders import CELERY, GOLEM, QUEUE, Contender, RunningWorker
from benchmarks.engines import GPU, read_runs
from benchmarks.ledger import Ledger, extra_runs, settle
from benchmarks.report import Report, Round, progress, publish, summarise
from benchmarks.verify import verdicts

__all__ = ["Outcome", "held_ids", "kill_connections", "measure", "run", "schedule", "waiting_ids"]

_BACKLOG = "resets"
_POLL_S = 0.005
_QUIET_S = 30.0
"""A worker without a new answer for so long won't give one: longer than any reconnection takes."""
_PHASE_S = 0.02
"""A reset waits a random moment, so that it isn't tied to what a worker does after an answer."""
TOKEN_US = 58.0
"""About 700 texts a second: slow enough that resets fall into running micro-batches."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One contender's run."""

    ledger: Ledger
    resets: int
    """Resets that hit; fewer than asked for when the worker stopped early."""
    restarts: int
    """How often the worker's main process ended and was started again."""
    wall_s: float
    parent_rss_growth_mib: float
    parent_fds_growth: float

    @property
    def figures(self) -> Round:
        """As a round of a report."""
        return self.ledger.figures | {
            "resets": self.resets,
            "restarts": self.restarts,
            "wall_s": self.wall_s,
            "parent_rss_growth_mib": self.parent_rss_growth_mib,
            "parent_fds_growth": self.parent_fds_growth,
        }


def schedule(jobs: int, resets: int, seed: int) -> list[int]:
    """After how many answers each reset comes: spread over the whole run, never two at once."""
    rng = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    width = jobs / (resets + 1)
    return [round((number + rng.uniform(0.1, 0.9)) * width) for number in range(resets)]


def kill_connections(client: Any) -> None:
    """Drop every connection to the server but this one."""
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def waiting_ids(client: Any) -> frozenset[str]:
    """Ids of the messages in the queue's list."""
    return frozenset(json.loads(raw)["headers"]["id"] for raw in client.lrange(QUEUE, 0, -1))


def held_ids(client: Any) -> frozenset[str]:
    """Ids of the messages recorded as unacknowledged."""
    return frozenset(json.loads(raw)[0]["headers"]["id"] for raw in client.hvals("unacked"))


def run(
    bench: Bench,
    contender: Contender,
    *,
    jobs: int,
    resets: int,
    seed: int,
    token_us: float = TOKEN_US,
) -> Outcome:
    """Run one contender through the resets; the server is emptied before.

    With a `token_us` of 0 the model costs nothing, and the resets fall into the plumbing instead.
    """
    bench.clear(everything=True)
    texts = make_texts(jobs)
    ids = bench.prepare(_BACKLOG, texts)
    log = bench.folder / f"{contender.name}-runs.log"
    log.unlink(missing_ok=True)
    worker = RunningWorker(
        contender, bench.server, bench.folder, engine=GPU, env=_gpu(token_us, str(log))
    )
    with worker:
        bench.warm_up(100)
        before = worker.parent_usage()
        begun_s = time.monotonic()
        bench.release(_BACKLOG, keep=False)
        points = schedule(jobs, resets, seed)
        hit, restarts = _harass(bench, worker, points, jobs, random.Random(seed))  # noqa: S311 - a schedule
        wall_s = time.monotonic() - begun_s
        after = worker.parent_usage()
        judged = list(verdicts(bench.answers, ids, texts))
        ledger = settle(
            ids,
            judged,
            waiting=waiting_ids(bench.broker),
            held=held_ids(bench.broker),
            duplicates=extra_runs(read_runs(log), texts),
        )
    return Outcome(
        ledger, hit, restarts, wall_s, after.rss_mib - before.rss_mib, after.fds - before.fds
    )


def _gpu(token_us: float, log: str) -> dict[str, str]:
    launch_ms = "5" if token_us else "0"
    return {
        "BENCH_LAUNCH_MS": launch_ms,
        "BENCH_TOKEN_US": str(token_us),
        "BENCH_ROW_TOKENS": "24",
        "BENCH_LOG": log,
    }


def _harass(
    bench: Bench, worker: RunningWorker, points: Sequence[int], jobs: int, rng: random.Random
) -> tuple[int, int]:
    """Reset at each point; return resets and restarts once all is settled or all is quiet."""
    left = list(points)
    hit = restarts = 0
    seen: tuple[int, int] | None = None
    seen_s = time.monotonic()
    while True:
        answered, held = _state(bench)
        if answered >= jobs and not held and not left:
            return hit, restarts
        if (answered, held) != seen:
            seen, seen_s = (answered, held), time.monotonic()
        elif time.monotonic() - seen_s > _QUIET_S:
            return hit, restarts
        if left and answered >= left[0]:
            left.pop(0)
            time.sleep(rng.uniform(0.0, _PHASE_S))
            kill_connections(bench.broker)
            hit += 1
        if not worker.alive:  # what any supervisor would do
            worker.stop()
            worker.start()
            restarts += 1
        time.sleep(_POLL_S)


def _state(bench: Bench) -> tuple[int, int]:
    size: Any = bench.answers.dbsize()
    held: Any = bench.broker.hlen("unacked")
    return int(size), int(held)


def measure(
    *, rounds: int, jobs: int, resets: int, seed: int, token_us: float = TOKEN_US
) -> Report:
    """Run both contenders `rounds` times, in turn, with another seed each round."""
    found: dict[str, list[Round]] = {}
    with Bench() as bench:
        for number in range(rounds):
            for contender in (GOLEM, CELERY):
                outcome = run(
                    bench,
                    contender,
                    jobs=jobs,
                    resets=resets,
                    seed=seed + number,
                    token_us=token_us,
                )
                found.setdefault(contender.name, []).append(outcome.figures)
                progress(f"round {number + 1}/{rounds} {contender.name}: {outcome}")
    results: dict[str, dict[str, Any]] = {
        name: {**summarise(each), "lost_in_all": sum(r["lost"] for r in each)}
        for name, each in found.items()
    }
    asked = {"rounds": rounds, "jobs": jobs, "resets": resets, "seed": seed, "token_us": token_us}
    wall = {name: figures["wall_s"].median for name, figures in results.items()}
    return Report("resets", asked, results, {"celery/golem wall_s": wall["celery"] / wall["golem"]})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resets", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=12_000)
    parser.add_argument("--resets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--token-us", type=float, default=TOKEN_US, help="of the simulated GPU; 0: it costs nothing"
    )
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            rounds=given.rounds,
            jobs=given.jobs,
            resets=given.resets,
            seed=given.seed,
            token_us=given.token_us,
        ),
        given,
    )
