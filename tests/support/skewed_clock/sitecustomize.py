"""A wall clock that is wrong by ``SKEWED_CLOCK_S`` seconds, in a process with this on its path.

Python imports a module of this name before anything else, so whatever takes `time.time` or
`datetime` from its module later gets the wrong one. The monotonic clock stays as it is.
"""

import datetime as dt
import os
import time
from typing import Self

_OFF_S = float(os.environ.get("SKEWED_CLOCK_S", "0"))
_OFF = dt.timedelta(seconds=_OFF_S)
_time, _time_ns = time.time, time.time_ns


class _Datetime(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return super().now(tz) + _OFF

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(dt.UTC).replace(tzinfo=None)


if _OFF_S:
    time.time = lambda: _time() + _OFF_S
    time.time_ns = lambda: _time_ns() + int(_OFF_S * 1e9)
    dt.datetime = _Datetime  # type: ignore[misc]  # the very purpose
