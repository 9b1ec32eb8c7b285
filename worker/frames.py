"""Failures that are cheap to send: no copy of every frame's code positions.

For its parent, billiard copies the frames of a traceback, and with each the source position of
every instruction of its function: of Celery's tracer, thousands. That made a failed job cost 15 ms
and half a megabyte in the model process, so that a producer of nonsense could starve the others.
Nobody reads them: the traceback's text is made before.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from types import CodeType
from typing import Any

from billiard import einfo

__all__ = ["Anywhere", "spare_positions"]

_CODES = 1_000
_INSTRUCTIONS = 100_000  # more than any function has


class Anywhere:
    """For each instruction: position unknown, as Python itself says it."""

    def __iter__(self) -> Iterator[tuple[None, None, None, None]]:
        return repeat((None, None, None, None), _INSTRUCTIONS)


class _Located:
    """Stands for a function's code while billiard copies it."""

    def __init__(self, code: CodeType) -> None:
        self._code = code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._code, name)

    def co_positions(self) -> tuple[()]:
        """None of them."""
        return ()


def spare_positions() -> None:
    """Use such copies in this process, through the hook billiard's frames have for it."""
    einfo._Frame.Code = staticmethod(_copied)  # noqa: SLF001 - the hook is there, its class private


@lru_cache(_CODES)
def _copied(code: CodeType) -> Any:
    copy = einfo._Code(_Located(code))  # noqa: SLF001 - as above
    copy._co_positions = Anywhere()  # noqa: SLF001 - as above
    return copy
