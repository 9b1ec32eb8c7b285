"""Whether the stored answers are the right ones: a fast wrong answer is no result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from benchmarks.engines import POISON, expected
from golem_tasks.errors import GolemError, PoisonJob

if TYPE_CHECKING:
    from benchmarks.backlog import Bench

__all__ = ["Verdict", "check_answers", "judge", "verdicts"]

_MGET_KEYS = 1_000
_TOLERANCE = 1e-9


class Verdict(Enum):
    """What became of one job, as its result key tells."""

    RIGHT = "right"
    """SUCCESS with the very answer its text has; for a poison text, FAILURE as `PoisonJob`."""
    WRONG = "wrong"
    """SUCCESS with another answer."""
    FAILED = "failed"
    """Any other final state: an innocent job that failed, or a poison text blamed otherwise."""
    ABSENT = "absent"
    """No result."""


def judge(raw: bytes | None, text: str) -> Verdict:
    """Compare what is stored for a job with the answer its text has."""
    if raw is None:
        return Verdict.ABSENT
    meta: dict[str, Any] = json.loads(raw)
    if meta["status"] != "SUCCESS":
        blamed = text.startswith(POISON) and meta["result"]["exc_type"] == PoisonJob.__name__
        return Verdict.RIGHT if blamed else Verdict.FAILED
    if text.startswith(POISON):
        return Verdict.WRONG
    label, score = expected(text)
    result = meta["result"]
    right = result["label"] == label and abs(result["score"] - score) <= _TOLERANCE
    return Verdict.RIGHT if right else Verdict.WRONG


def verdicts(client: Any, ids: Sequence[str], texts: Sequence[str]) -> Iterator[Verdict]:
    """Judge single-text jobs, in order; `client` is that of the result backend's database."""
    for start in range(0, len(ids), _MGET_KEYS):
        keys = [f"celery-task-meta-{id_}" for id_ in ids[start : start + _MGET_KEYS]]
        stored = client.mget(keys)
        for raw, text in zip(stored, texts[start : start + _MGET_KEYS], strict=True):
            yield judge(raw, text)


def check_answers(bench: Bench, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Compare every answer of a backlog.

    Raises:
        GolemError: one is missing or wrong; no figure of such a run counts.
    """
    bad = sum(verdict is not Verdict.RIGHT for verdict in verdicts(bench.answers, ids, texts))
    if bad:
        raise GolemError(f"{bad} of {len(ids)} answers are missing or wrong.")
