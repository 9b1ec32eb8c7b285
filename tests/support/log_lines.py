"""What the worker's code may say in its log, read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
_PLACEHOLDER = re.compile(r"%[-.\d]*[a-z]")
_FULL_STOP = re.compile(r"(?<!\.)\.$|(?<=\.{3})\.")


class LogLine(NamedTuple):
    """A line with ``...`` for what varies, and without a full stop at its end."""

    level: str
    text: str


def shown(template: str) -> str:
    """A line as a document shows it: ``...`` for each placeholder, no full stop after one."""
    line = _PLACEHOLDER.sub("...", template.replace("%%", "\0")).replace("\0", "%")
    return _FULL_STOP.sub("", line)


def log_lines(package: str = "worker") -> set[LogLine]:
    """Every line a package's modules log, those passed on by a helper of the same file included."""
    found: set[LogLine] = set()
    for module in (ROOT / package).rglob("*.py"):
        for call in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                found.update(_said(call.func.attr, call.args))
    return found


def _said(method: str, arguments: list[ast.expr]) -> Iterator[LogLine]:
    if not (arguments and isinstance(first := arguments[0], ast.Constant)):
        return
    if not isinstance(first.value, str):
        return
    if method == "_complain":  # logs its sentence, a colon and the cause
        yield LogLine("warning", shown(f"{first.value}: %s"))
    elif method in LEVELS and re.search(r"[a-z]{3}", _PLACEHOLDER.sub("", first.value)):
        yield LogLine(method, shown(first.value))
