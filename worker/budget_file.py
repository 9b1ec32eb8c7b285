"""Token budgets learned on this machine, remembered over restarts: a small file for each.

::

    GOLEM_STATE_DIR/ceilings/<hash>.json    what memory had room for (`worker.ceiling`)
    GOLEM_STATE_DIR/speeds/<hash>.json      where the device is fast (`worker.tuning`)

    {"model", "checkpoint", "revision", "device", "hardware", "dtype", ..., "token_budget",
     "learned_at"}

A file on the machine, not a key in Redis: what a model finds is a property of the very device, and
of whoever shares it, so that one machine's figure would be wrong for the next; and it has to be
known before the warm-up, also when Redis is away. Where machines share a home, the hardware tells
them apart, and not their names: a container has a new one at each start. What is lost with a file
is little: it is learned again. So nothing here ever raises: a file that can't be read counts as
none, and a disk that can't be written is told once. Processes that share a device write the same
file, each time whole; the last one counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from celery.utils.log import get_logger

from worker.interfaces import ModelInfo
from worker.state_folder import one_at_a_time, state_folder

__all__ = ["BudgetFile", "Kind"]

logger = get_logger(__name__)

Kind = Literal["ceilings", "speeds"]

KEPT_S = 30 * 86_400
"""A figure older than this, in seconds, is no longer believed."""

MAX_FILES = 64
"""Files in the folder; the oldest go first."""

TURN_S = 60.0
"""Seconds others on the device are waited for; each takes some ten."""

_MAX_BYTES = 4096


class BudgetFile:
    """The remembered token budget of one model on one device.

    Args:
        state_dir: the folder, `GOLEM_STATE_DIR`; None: ``golem`` in the user's cache.
        kind: what the budget was learned from.
        info: model, checkpoint, revision, device, hardware and dtype: each makes another file.
        conditions: what else makes another one.
    """

    def __init__(
        self, state_dir: str | None, kind: Kind, info: ModelInfo, **conditions: int
    ) -> None:
        self._key = {
            "model": info.name,
            "checkpoint": info.checkpoint,
            "revision": info.revision,
            "device": info.device,
            "hardware": info.hardware,
            "dtype": info.dtype,
            **conditions,
        }
        folder = state_folder(state_dir)
        self._path = folder / kind / f"{_digest(json.dumps(self._key, sort_keys=True))}.json"
        self._turn = folder / f"{kind}-{_digest(_who_computes(info))}"
        self._told = False

    def recall(self) -> int | None:
        """The padded tokens remembered, at least 1; None if there are none to trust."""
        try:
            with self._path.open("rb") as file:
                content = json.loads(file.read(_MAX_BYTES))
            return _believed(content, self._key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as exc:
            logger.warning("The token budget in %s can't be used: %s", self._path, exc)
            return None

    def store(self, token_budget: int | None) -> None:
        """Remember the budget; None forgets it, where memory doesn't bound it any more."""
        try:
            if token_budget is None:
                self._path.unlink(missing_ok=True)
            else:
                self._write({**self._key, "token_budget": token_budget, "learned_at": time.time()})
        except OSError as exc:
            if not self._told:
                self._told = True
                logger.warning(
                    "The token budget isn't remembered over a restart, since %s can't be written: "
                    "%s. GOLEM_STATE_DIR names another folder.",
                    self._path.parent,
                    exc,
                )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is in here for the same device, where one can tell.

        Whatever its model: two that compute disturb each other. After `TURN_S` it goes on anyway.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # late; or can't be written, which `store` tells
                stack.enter_context(one_at_a_time(self._turn, TURN_S))
            yield

    def _write(self, content: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_text(json.dumps(content), encoding="utf-8")
            part.replace(self._path)  # a reader sees all of it or nothing
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        with contextlib.suppress(OSError):  # another process is at it as well
            _prune(self._path.parent)


def _who_computes(info: ModelInfo) -> str:
    """What two that compute on it disturb each other.

    One GPU may be another's cuda:0: CUDA_VISIBLE_DEVICES numbers them for each process. A CPU is
    one, though what containers on it are told of their memory, and so their hardware, differs.
    """
    return info.hardware if info.hardware and info.device.startswith("cuda") else info.device


def _digest(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _believed(content: Any, key: dict[str, Any]) -> int | None:
    if not isinstance(content, dict) or any(content.get(name) != key[name] for name in key):
        raise ValueError("it isn't this model's")
    token_budget, learned_at = content.get("token_budget"), content.get("learned_at")
    if not isinstance(token_budget, int) or token_budget < 1:
        raise ValueError(f"{token_budget!r} isn't a number of tokens")
    if not isinstance(learned_at, int | float):
        raise ValueError(f"{learned_at!r} isn't a time")  # noqa: TRY004 - all the file's faults alike
    return token_budget if 0 <= time.time() - learned_at < KEPT_S else None


def _prune(folder: Path) -> None:
    """Bound the folder: what counts is little, and a killed process may have left a part."""
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_FILES]:
        file.unlink(missing_ok=True)
