"""Finds an engine's token budget by measuring it (`worker.tuning`), once on a machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from celery.utils.log import get_logger

from golem_tasks.contract import TextItem
from worker.budget_file import BudgetFile
from worker.failures import forget_frames, is_out_of_memory
from worker.interfaces import Encoded, Engine
from worker.tuning import FIRST, Measured, budgets_to_try, knee, measure

__all__ = ["clock_for", "find_budget"]

logger = get_logger(__name__)

LIMIT_S = 10.0
"""Seconds after which no further budget is begun."""
_LAST_ON_CPU = 4096
"""A larger micro-batch falls out of the caches, and makes everyone in it wait."""


Clock: TypeAlias = Callable[[], float]
"""Seconds, never fewer than before."""


def find_budget(engine: Engine, state_dir: str | None, **conditions: int) -> int:
    """The padded tokens of a micro-batch at which the engine is about as fast as it gets.

    What an earlier start found on this machine is taken as it is. An engine that fails otherwise
    than by memory keeps its own budget: the warm-up that follows says what is wrong with it.

    Args:
        engine: with its model loaded.
        state_dir: the folder, `GOLEM_STATE_DIR`; None: ``golem`` in the user's cache.
        conditions: what the speed depends on beside model, device, dtype and rows; ``threads`` on
            a CPU.
    """
    file = BudgetFile(state_dir, "speeds", engine.info, max_rows=engine.max_rows, **conditions)
    # The processes of a worker load at the same time: on one device they would slow each other, and
    # each would take what it measures then for the device's own speed.
    with file.alone():
        remembered = file.recall()
        if remembered is not None:
            return remembered
        return _find(engine, file, clock_for(conditions.get("threads")))


def clock_for(threads: int | None) -> Clock:
    """The clock that tells how long a forward pass takes; `threads` of a CPU, or None.

    With one thread that is the process's own time, which nothing else on the machine adds to: when
    the first of a worker's processes measures, the others still load. Of several threads it would
    be the sum, and couldn't tell that two take as long for a small micro-batch as one.
    """
    return time.process_time if threads == 1 else time.perf_counter


def _find(engine: Engine, file: BudgetFile, clock: Clock) -> int:
    info = engine.info
    budgets = budgets_to_try(engine.max_rows, info.max_tokens)
    if info.device == "cpu":
        budgets = [budget for budget in budgets if budget <= _LAST_ON_CPU]
    try:
        found = measure(
            _probe(engine, clock), budgets, max_rows=engine.max_rows, max_tokens=info.max_tokens,
            limit_s=LIMIT_S, is_out_of_memory=is_out_of_memory,
        )  # fmt: skip
    except Exception as exc:  # noqa: BLE001 - see above
        out_of_memory = is_out_of_memory(exc)
        forget_frames(exc)
        engine.release_memory()
        return FIRST if out_of_memory else engine.token_budget
    engine.release_memory()
    chosen = knee(found)
    file.store(chosen)
    logger.info(
        "Token budget of %s (%s) on %s: %d, by %s",
        info.name, info.dtype, info.device, chosen, _shown(found),
    )  # fmt: skip
    return chosen


def _probe(engine: Engine, clock: Clock) -> Callable[[int, int], float]:
    [encoded] = engine.encode([TextItem("warm up")], ["truncate"])
    if not isinstance(encoded, Encoded):
        raise encoded
    row = encoded.rows[0]

    def probe(rows: int, length: int) -> float:
        micro_batch = [row.stretched(length)] * rows
        begun_s = clock()
        engine.launch(micro_batch).logits()
        return clock() - begun_s

    return probe


def _shown(found: list[Measured]) -> str:
    return ", ".join(f"{each.budget}: {each.tokens_per_s:,.0f} tokens/s" for each in found)
