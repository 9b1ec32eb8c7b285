"""The answers to a file, in its order, in a file that is its own record of how far it has come.

``--out F.jsonl`` has one JSON object for each line of the input: ``line``, ``text``, and either the
answer (``label``, ``score``, ``scores``, ``tokens``, ``truncated``, ``model``) or an ``error``
(``type``, ``message``). There is no other state: whatever ended a run, the next one reads this
file beside the input, compares each text, drops a torn last line and goes on behind it. The failed
lines are copied to ``F.failed.jsonl``, which is made anew from ``--out`` when a run begins.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from golem_tasks.contract import ItemError, Prediction
from golem_tasks.errors import ConfigurationError
from golem_tasks.textfiles import Line

__all__ = ["OutFile", "Outcome", "Tally", "entry_of", "finished_entries", "to_bytes"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one line."""

    line: Line
    result: Prediction | ItemError


@dataclass(slots=True)
class Tally:
    """What has come out so far."""

    labels: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)
    failed: int = 0

    @property
    def answered(self) -> int:
        """Lines with a label."""
        return self.labels.total()

    @property
    def lines(self) -> int:
        """Lines that are done, well or badly."""
        return self.answered + self.failed

    def add(self, entry: dict[str, Any]) -> None:
        """Count one line of the output."""
        if "error" in entry:
            self.failed += 1
        else:
            self.labels[entry["label"]] += 1
            self.models.add(entry["model"])


def entry_of(outcome: Outcome) -> dict[str, Any]:
    """One line of the output."""
    entry: dict[str, Any] = {"line": outcome.line.number, "text": outcome.line.text}
    result = outcome.result
    if isinstance(result, ItemError):
        return {**entry, "error": {"type": result.type, "message": result.message}}
    entry |= {"label": result.label, "score": result.score, "scores": result.scores}
    if result.logits is not None:
        entry["logits"] = result.logits
    return entry | {
        "tokens": result.tokens,
        "truncated": result.truncated,
        "model": result.model.name,
    }


def to_bytes(entry: dict[str, Any]) -> bytes:
    """Encode one line, readable where UTF-8 can hold the text."""
    try:
        return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only escape
        return (json.dumps(entry) + "\n").encode()


def finished_entries(stream: Iterable[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole line of an output and where it ends, in bytes.

    A last line without its end is torn, and left out.

    Raises:
        ValueError: a line isn't one of ours; a torn one is told by how it begins.
    """
    end = 0
    for number, raw in enumerate(stream, 1):
        if not raw.endswith(b"\n"):
            ours = f'{{"line": {number}, "text": '.encode()
            if raw[: len(ours)] != ours[: len(raw)]:  # it would be cut off, and may be a user's all
                raise ValueError(f"line {number} isn't an answer")
            return
        end += len(raw)
        entry = json.loads(raw)
        if not _is_ours(entry, number):
            raise ValueError(f"line {number} isn't an answer")
        yield entry, end


def _is_ours(entry: Any, number: int) -> bool:
    if not isinstance(entry, dict) or entry.get("line") != number:
        return False
    return "text" in entry and ("error" in entry or {"label", "model"} <= entry.keys())


class OutFile:
    """An output being written; a context manager.

    Args:
        path: the file. It is made, or gone on with.

    Raises:
        ConfigurationError: it can't be written, or another process is at it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tally = Tally()
        self._failed: IO[bytes] | None = None
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as exc:
            raise ConfigurationError(
                f"{path} can't be written: {exc.strerror}; name another file with --out."
            ) from exc
        self.failed_path = path.with_suffix(".failed" + (path.suffix or ".jsonl"))
        self._lock()

    def skip_finished(self, lines: Iterator[Line]) -> int:
        """Take from `lines` those whose answers are here already, and return how many they are.

        Raises:
            ConfigurationError: the answers here are to other texts, or aren't answers at all.
        """
        end = 0
        self._file.seek(0)
        self.failed_path.unlink(missing_ok=True)
        entries = finished_entries(self._file)
        while True:
            try:
                entry, end = next(entries, (None, end))
            except ValueError as exc:
                raise ConfigurationError(
                    f"{self.path} isn't an output of golem classify ({exc}): name another --out."
                ) from exc
            if entry is None:
                break
            self._compare(entry, next(lines, None))
            self._count(entry, to_bytes(entry))
        self._file.seek(end)
        self._file.truncate()
        return self.tally.lines

    def write(self, outcomes: Iterable[Outcome]) -> None:
        """Append answers; they are with the operating system when this returns.

        Raises:
            ConfigurationError: the disk is full, or takes no more for another reason.
        """
        entries = [entry_of(outcome) for outcome in outcomes]
        encoded = [to_bytes(entry) for entry in entries]
        try:
            self._file.write(b"".join(encoded))
            self._file.flush()
            for entry, line in zip(entries, encoded, strict=True):
                self._count(entry, line)
        except OSError as exc:
            raise ConfigurationError(
                f"{self.path} can't be written on: {exc.strerror}; make room for it, and the same "
                "command again goes on behind its last whole line."
            ) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in (self._file, self._failed):
            if file is not None:
                with suppress(OSError):  # what it still holds didn't fit, which was said
                    file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._file.close()
            raise ConfigurationError(
                f"Another golem classify writes to {self.path} now: wait for it, or name another "
                "file with --out."
            ) from exc

    def _compare(self, entry: dict[str, Any], line: Line | None) -> None:
        if line is not None and line.text == entry["text"]:
            return
        found = "ends before it" if line is None else "has another text there"
        raise ConfigurationError(
            f"{self.path} can't be gone on with: it answers line {entry['line']}, and the input "
            f"{found}; give the same input and --column as before, or name another --out."
        )

    def _count(self, entry: dict[str, Any], encoded: bytes) -> None:
        self.tally.add(entry)
        if "error" in entry:
            if self._failed is None:
                self._failed = self.failed_path.open("wb")
            self._failed.write(encoded)
            self._failed.flush()
