"""What Golem promises of a soak, and in words what of it an outcome breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.faults import KILLS, Fault
from benchmarks.fleet import Exit
from benchmarks.ledger import Ledger
from benchmarks.report import Figure

__all__ = ["FLAT_AFTER_S", "GROWTH_FDS", "GROWTH_MIB", "Outcome", "broken"]

DUPLICATES_PER_KILL = 2.0
FLAT_AFTER_S = 300.0
"""A shorter run says nothing of memory: caches still fill."""
GROWTH_MIB = 8.0
"""Most growth of a main process's memory from the run's second quarter to its last."""
GROWTH_FDS = 4.0
"""Most growth of its open files; pool and connections open and close a few as they are replaced."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a soak came to."""

    ledger: Ledger
    planned: Sequence[Fault]
    faults: Sequence[Fault]
    """Those of the planned ones that were done, for all found something to hit."""
    exits: Sequence[Exit]
    orphans: int
    """Model processes that outlived their main process."""
    seconds: float
    flatness: Mapping[str, Figure]

    @property
    def kills(self) -> int:
        """Faults after which a job may run again."""
        return sum(fault in KILLS for fault in self.faults)

    @property
    def unexpected_exits(self) -> int:
        """How often a main process ended by itself, or not as it was told."""
        return sum(not each.expected for each in self.exits)


def broken(outcome: Outcome) -> list[str]:
    """A sentence for each promise that doesn't hold; none if all do."""
    ledger, kills = outcome.ledger, outcome.kills
    pending = ledger.waiting + ledger.stranded
    checks = [
        (ledger.lost, f"{ledger.lost} jobs are lost."),
        (ledger.wrong, f"{ledger.wrong} jobs have a wrong answer."),
        (pending, f"{pending} jobs are still pending."),
        (ledger.failed, f"{ledger.failed} jobs failed that had no fault, or another than theirs."),
        (ledger.held_after, f"{ledger.held_after} messages were never acknowledged."),
        (
            ledger.duplicates and ledger.duplicates >= DUPLICATES_PER_KILL * kills,
            f"{ledger.duplicates} jobs ran again, after {kills} kills.",
        ),
        (outcome.orphans, f"{outcome.orphans} model processes outlived their worker."),
        *(
            (not each.expected, f"{each.worker} ended with code {each.code} after {each.cause}.")
            for each in outcome.exits
        ),
        *(
            (kind not in outcome.faults, f"No {kind.value} was done, though one was due.")
            for kind in dict.fromkeys(outcome.planned)
        ),
        *_growth(outcome),
    ]
    return [sentence for wrong, sentence in checks if wrong]


def _growth(outcome: Outcome) -> list[tuple[bool, str]]:
    if outcome.seconds < FLAT_AFTER_S:
        return []
    rss = outcome.flatness["parent_rss_mib_growth"].median
    fds = outcome.flatness["parent_fds_growth"].median
    return [
        (rss > GROWTH_MIB, f"A main process grew by {rss:g} MiB."),
        (fds > GROWTH_FDS, f"A main process has {fds:g} more open files."),
    ]
