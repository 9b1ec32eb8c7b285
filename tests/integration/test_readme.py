"""What the README says is true: its code runs, its commands exist, its tables match the code."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ENV_PREFIX
from tests.support.markdown import PROMISED, commands, run, run_python, script
from tests.support.workers import WorkerProcess
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "README.md"
LABELS = ("POSITIVE", "NEGATIVE")  # what else is printed differs from one run to the next
README = PAGE.read_text("utf-8")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a reader who has a Redis and a worker with the embedded model."""
    with EmbeddedServer() as server:
        env = {"GOLEM_BROKER_URL": server.url}
        with WorkerProcess(tmp_path_factory.mktemp("readme"), env):
            yield {**os.environ, **env}


def test_the_python_blocks_run_and_print_what_they_promise(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """All blocks, one after the other as a reader pastes them; a comment tells what is printed."""
    code = script(PAGE, environment["GOLEM_BROKER_URL"])
    promised = [line for line in PROMISED.findall(code) if line in LABELS]
    assert len(promised) >= 3
    assert [line for line in run_python(code, environment, tmp_path) if line in LABELS] == promised


def test_the_golem_commands_run(environment: dict[str, str]) -> None:
    """Every ``golem`` command of a console block, but for the worker, which already runs."""
    asked = [words for words in commands(PAGE, "golem") if words[1] != "worker"]
    assert asked
    for words in asked:
        run([sys.executable, "-m", "golem_tasks.cli", *words[1:]], environment)


def test_the_make_targets_exist() -> None:
    """Every ``make`` target the README names is one of the Makefile's."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_settings_table_is_complete_and_right() -> None:
    """Every setting has its row with the default it really has; no row names another."""
    rows = dict(re.findall(r"^\| `(GOLEM_\w+)` \| `?([^|`]*)`? \|", README, re.MULTILINE))
    fields = WorkerSettings.model_fields
    assert rows.keys() == {ENV_PREFIX + name.upper() for name in fields}
    for name, field in fields.items():
        shown = rows[ENV_PREFIX + name.upper()].strip()
        default = getattr(field.default, "get_secret_value", lambda value=field.default: value)()
        assert shown == ("" if default is None else str(default)), name
