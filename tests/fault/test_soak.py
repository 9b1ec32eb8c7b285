"""Scenario: every kind of fault within seconds, at random moments: the short `make soak`."""

from collections import Counter
from pathlib import Path

from benchmarks.backlog import Bench
from benchmarks.contenders import GOLEM
from benchmarks.faults import Fault, plan_faults
from benchmarks.promises import broken
from benchmarks.soaking import Plan, Soak
from worker.pace import MOST_ROWS

PLAN = Plan(
    seconds=9.0,
    rate=100.0,
    every_s=1.2,
    faults=tuple(Fault),
    seed=3068,  # each kind once, and the kills of a main process not at the very end
    workers=2,
    lease_s=10,
)


def test_one_fault_of_each_kind_loses_nothing_and_blames_only_poison(tmp_path: Path) -> None:
    """Two workers, eight faults in nine seconds: each job has its own right outcome.

    A kill during another fault may find a whole batch computed that couldn't be stored yet; so what
    runs twice is bounded here by what kills can find, and by two a kill in the long soak only.
    """
    planned = Counter(each.fault for each in plan_faults(PLAN.faults, 1.2, 9.0, PLAN.seed))
    assert planned == dict.fromkeys(Fault, 1)
    with Bench(appendonly=True) as bench:
        outcome = Soak(bench, GOLEM, PLAN, tmp_path).run()
    logs = "".join(log.read_text("utf-8", "replace") for log in tmp_path.glob("golem-w*.log"))
    said = [each for each in broken(outcome) if "ran again" not in each]
    assert said == [], logs[-8000:]
    assert outcome.ledger.right == outcome.ledger.submitted > 500
    assert outcome.ledger.duplicates <= outcome.kills * MOST_ROWS
