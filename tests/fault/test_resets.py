"""Scenario: every connection of the server is dropped again and again under load."""

from benchmarks.backlog import Bench
from benchmarks.contenders import GOLEM
from benchmarks.resets import run

JOBS = 3_000
RESETS = 15


def test_connection_resets_under_load_lose_nothing() -> None:
    """3,000 jobs, 15 resets of all connections: each has its own right answer, nothing is held.

    A reset may make a worker run again what it was running, so duplicates are bounded, not zero:
    by what can be in flight and buffered at a reset.
    """
    with Bench() as bench:
        outcome = run(bench, GOLEM, jobs=JOBS, resets=RESETS, seed=11)
    ledger = outcome.ledger
    assert outcome.resets == RESETS, outcome
    assert ledger.lost == ledger.stranded == ledger.waiting == 0, ledger
    assert ledger.wrong == ledger.failed == 0, ledger
    assert ledger.clean, ledger
    assert outcome.restarts == 0, outcome
    assert ledger.duplicates <= RESETS * 128, ledger
