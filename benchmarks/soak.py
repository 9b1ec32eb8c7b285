"""Minutes of steady load under random faults, and an account of every job.

    python -m benchmarks.soak [--minutes 20] [--every-s 10] [--seed 7] [--faults KIND,...]
                              [--contenders golem,celery,celery-batches] [--plot soak.png]

A producer sends jobs all the time. At random, seeded moments something breaks: a model process, a
whole worker or Redis is killed, Redis hangs, connections are reset, a worker is told to leave, a
text kills whoever computes it (`benchmarks.faults`). A supervisor starts again what ended. Every
answer is compared with the right one, and the time until all is well again is taken. The exit code
is 1 if Golem broke a promise (`benchmarks.promises`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.backlog import Bench
from benchmarks.contenders import CELERY, GOLEM, Contender, celery_batches
from benchmarks.faults import OF_A_WORKER, Fault
from benchmarks.promises import Outcome, broken
from benchmarks.report import Report, progress, publish, significant, summarise
from benchmarks.soak_figures import answered_over_time, job_times, over_time, recovery_times
from benchmarks.soaking import Plan, Soak
from golem_tasks.errors import ConfigurationError

__all__ = ["main", "measure"]

_LEAST_WORKERS = 2
_BATCHES = "celery-batches"
_NO_POISON = "left out: a text that ends its process is delivered again for ever here"


def measure(plan: Plan, contenders: Sequence[str], logs: Path | None = None) -> Report:
    """Soak each contender for the plan's time, one after the other, under the same faults.

    Args:
        plan: what to do.
        contenders: their names.
        logs: a folder that keeps the workers' logs; None: they go when the run is over.
    """
    results: dict[str, dict[str, Any]] = {}
    found, notes = _contenders(contenders)
    for contender in found:
        own = plan
        if contender is not GOLEM and Fault.POISON in plan.faults:
            own = replace(plan, left_out=frozenset({Fault.POISON}))
            notes[f"{contender.name}: poison"] = _NO_POISON
        with Bench(appendonly=True) as bench:
            soak = Soak(bench, contender, own, logs or bench.folder)
            results[contender.name] = _result(soak, soak.run())
    asked = {**asdict(plan), "faults": [fault.value for fault in plan.faults]}
    del asked["left_out"]
    return Report("soak", asked, results, {}, notes)


def _contenders(names: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Those asked for; and a note on one that can't be had."""
    known = {GOLEM.name: lambda: GOLEM, CELERY.name: lambda: CELERY, _BATCHES: celery_batches}
    found: list[Contender] = []
    notes: dict[str, str] = {}
    for name in names:
        try:
            found.append(known[name]())
        except ConfigurationError as exc:
            notes[name] = str(exc)
    return found, notes


def _result(soak: Soak, outcome: Outcome) -> dict[str, Any]:
    figures = {
        **outcome.ledger.figures,
        "refused": soak.book.refused,
        "uncertain": soak.uncertain,
        "uncertain_unsent": soak.unsent,
        "kills": outcome.kills,
        "duplicates_per_kill": outcome.ledger.duplicates / max(1, outcome.kills),
        "unexpected_exits": outcome.unexpected_exits,
        "orphans": outcome.orphans,
        **job_times(soak.book),
    }
    return {
        **summarise([figures]),
        **outcome.flatness,
        "recovery": recovery_times(soak.done, soak.book),
        "exits": [asdict(each) for each in outcome.exits if not each.expected],
        "broken": broken(outcome),
        "faults": [[significant(d.at_s), d.fault.value, d.target] for d in soak.done],
        "answered": answered_over_time(soak.book),
        "over_time": over_time(soak.samples),
    }


def _kinds(text: str) -> tuple[Fault, ...]:
    return tuple(Fault(name) for name in text.split(",") if name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    every_kind = ",".join(fault.value for fault in Fault)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=200.0, help="jobs sent a second")
    parser.add_argument("--every-s", type=float, default=10.0, help="mean time between faults")
    parser.add_argument("--faults", type=_kinds, default=every_kind, metavar="KIND,...")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lease-s", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--contenders", type=lambda text: text.split(","), default=[GOLEM.name],
        help=f"of {GOLEM.name},{CELERY.name},{_BATCHES}",
    )  # fmt: skip
    parser.add_argument("--logs", type=Path, help="a folder that keeps the workers' logs")
    parser.add_argument("--plot", metavar="FILE.png")
    given = parser.parse_args()
    if given.workers < _LEAST_WORKERS and OF_A_WORKER.intersection(given.faults):
        parser.error("the first worker is spared: start two, or choose other --faults")
    return given


def main() -> int:
    """Run it; 1 if Golem broke a promise."""
    given = _arguments()
    plan = Plan(
        seconds=60 * given.minutes,
        rate=given.rate,
        every_s=given.every_s,
        faults=given.faults,
        seed=given.seed,
        workers=given.workers,
        lease_s=given.lease_s,
    )
    report = measure(plan, given.contenders, given.logs)
    publish(report, given)
    for name, figures in report.results.items():
        for sentence in figures["broken"]:
            progress(f"{name}: {sentence}")
    return int(bool(report.results.get(GOLEM.name, {}).get("broken")))


if __name__ == "__main__":
    sys.exit(main())
