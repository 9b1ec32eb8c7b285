"""The pages of docs/: their programs and commands run, with a real worker behind them.

What needs no worker is in tests/unit/test_documents.py, docs/contract.md in test_contract_page.py.
"""

import csv
import json
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.contenders import celery_batches
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.errors import ConfigurationError
from tests.support.markdown import (
    PROMISED,
    SHOWN_URL,
    all_blocks,
    blocks,
    commands,
    console,
    files,
    run,
    run_python,
    script,
)
from tests.support.servers import ROOT, reader_environment
from worker.source import EMBEDDED_FOLDER

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# These don't end, load a model of the hub, or name a dead letter there isn't.
NOT_RUN = re.compile(r"golem (worker|top --every|dead (show|requeue|drop))\b")
COMMANDS = sorted(
    {tuple(words) for page in PAGES for words in commands(page, "golem")
     if not NOT_RUN.match(" ".join(words))}
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader's files are: texts, and texts with labels."""
    praise, blame = ("I love part %d.", "POSITIVE"), ("What a waste was part %d!", "NEGATIVE")
    rows = [(text % number, label) for number in range(60) for text, label in (praise, blame)]
    for name, column in (("reviews.csv", "review"), ("dev.csv", "sentence")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([(column, "label"), *rows])
    return tmp_path


# One process for them all: each would load Celery, and some of them the model.
RUN_ALL = """
import json, sys
from golem_tasks.cli.group import run
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    if code := run(words[1:]):
        sys.exit(code)
"""


def run_all(asked: Sequence[Sequence[str]], url: str, folder: Path) -> list[str]:
    """Run commands of golem until one fails, and return what each prints."""
    env = reader_environment(GOLEM_BROKER_URL=url, GOLEM_STATE_DIR=str(folder / "state"))
    printed = run([sys.executable, "-c", RUN_ALL, json.dumps(asked)], env, folder)
    return re.split(r"^\$ .*$", printed, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: str(page.name)
)
def test_the_programs_print_what_they_promise(
    page: Path, redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    """A page's blocks, one after the other; the comments behind ``print`` tell what is printed."""
    code = script(page, redis_server.url)
    promised = PROMISED.findall(code)
    assert len(promised) == code.count("print(") > 0
    assert run_python(code, reader_environment(), tmp_path) == promised


def test_the_commands_run_and_print_what_is_shown(
    redis_server: EmbeddedServer, folder: Path
) -> None:
    """Each ends with 0; the words of the text below a command, figures aside, are in its output."""
    outputs = dict(zip(COMMANDS, run_all(COMMANDS, redis_server.url, folder), strict=True))
    assert len(outputs) >= 8
    shown = 0
    for page in PAGES:
        for asked, printed in pairwise(all_blocks(page)):
            if (asked.language, printed.language) != ("console", "text") or "[INFO" in printed.code:
                continue
            shown += 1
            really = " ".join(outputs.get(tuple(each), "") for each in console(asked.code))
            assert headings(printed.code) - headings(really) == set(), page.name
    assert shown >= 2
    answers = (folder / "answers.jsonl").read_text("utf-8").splitlines()
    assert len(answers) == 120


def headings(output: str) -> set[str]:
    """The lines of a table that hold its names, and the beginning of a sentence."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    tables = {line for line in lines if line and not re.search(r"[\d─]", line)}
    return tables | {
        match[0] for line in lines if (match := re.match(r"[A-Z][a-z]+ [a-z]+ ", line))
    }


ONE_BY_ONE = """
import one_by_one
one_by_one.app.conf.task_always_eager = True
import one_by_one_producer
"""
BATCHES = """
import batches
batches.classify.apply(["I love this"], task_id="a job").get()
print(batches.app.AsyncResult("a job").get(timeout=60)["label"])
"""


def test_what_people_migrate_from_is_shown_as_it_really_works(
    redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Celery alone and celery-batches, each in its eager way, with the embedded model."""
    page = files(DOCS / "migrating.md")
    for name, code in page.items():
        local = re.sub(r'^MODEL = ".*"$', f'MODEL = "{EMBEDDED_FOLDER}"', code, flags=re.MULTILINE)
        (tmp_path / name).write_text(local.replace(SHOWN_URL, redis_server.url))
    try:
        path, act = celery_batches().pythonpath, ONE_BY_ONE + BATCHES
    except ConfigurationError:  # no network: its half is left out, and said so below
        path, act = (), ONE_BY_ONE
    env = reader_environment(PYTHONPATH=":".join(map(str, (ROOT, *path))))
    printed = run_python(act, {**env, "TRANSFORMERS_VERBOSITY": "error"}, tmp_path)
    [promised] = PROMISED.findall(page["one_by_one_producer.py"])
    assert set(printed) == {promised} == {"POSITIVE"}
    if not path:
        pytest.skip("celery-batches can't be fetched; the other half passed")
