"""The table of fault scenarios names tests that exist."""

import re

from tests.support.compose import ROOT

FOLDER = ROOT / "tests" / "fault"
NAMED = re.findall(r"`([./\w]+\.py)::(\w+)`", (FOLDER / "README.md").read_text("utf-8"))


def scenarios_in(path: str) -> set[str]:
    """Names of the tests in a file, given from the folder of fault tests."""
    code = (FOLDER / path).read_text("utf-8")
    return set(re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE))


def test_every_test_the_table_names_exists() -> None:
    """A scenario that was renamed or dropped is noticed."""
    assert NAMED
    assert [f"{path}::{name}" for path, name in NAMED if name not in scenarios_in(path)] == []
