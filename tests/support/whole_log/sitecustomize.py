"""Every log line with all that its record has, in a process with this on its path.

A handler may show more than the message: what came as ``extra``, the arguments, the trace.
"""

import logging

_format = logging.Formatter.format


def _whole(self: logging.Formatter, record: logging.LogRecord) -> str:
    return f"{_format(self, record)} {record.__dict__!r}"


logging.Formatter.format = _whole  # type: ignore[method-assign]  # the very purpose
