"""The Markdown files of the project, as far as they can be checked without running anything."""

import configparser
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import golem_tasks
from golem_tasks import BrokerUnavailable, GolemError, JobError, SubmitOptions, WorkerStats
from golem_tasks.backlog import LaneBacklog
from golem_tasks.cli.group import golem
from golem_tasks.settings import ENV_PREFIX, load
from tests.support import compose
from tests.support.log_lines import log_lines, shown
from tests.support.markdown import all_blocks, blocks, commands
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = ("benchmarks", "docs", "examples", "tools", "worker")
PAGES = [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
COMMANDS = [words for page in sorted(DOCS.glob("*.md")) for words in commands(page)]
SETTINGS = {ENV_PREFIX + name.upper() for name in WorkerSettings.model_fields}
# What each kind of block is checked by, here or in tests/examples/test_docs.py.
LANGUAGES = {"console", "ini", "json", "python", "text", "yaml"}
PROGRAMS = {"docker", "export", "golem", "make", "pip"}


def text_of(name: str) -> str:
    """A page of docs/."""
    return (DOCS / name).read_text("utf-8")


def column(page: str, number: int) -> set[str]:
    """What stands in code in a column of a page's tables."""
    rows = re.findall(r"^\|(.*)\|$", page, re.MULTILINE)
    cells = [re.split(r"(?<!\\)\|", row)[number] for row in rows]
    return {code for cell in cells for code in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "node_modules" not in page.parts],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the project."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_no_page_of_the_docs_has_a_block_that_no_test_knows() -> None:
    """Their languages and their programs are those the tests look at."""
    found = {block.language for page in DOCS.glob("*.md") for block in all_blocks(page)}
    assert found == LANGUAGES
    assert {words[0] for words in COMMANDS} == PROGRAMS


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] == "golem"], ids=" ".join
)
def test_every_golem_command_of_the_docs_is_understood(words: list[str]) -> None:
    """Its options exist and their values are accepted; nothing is run."""
    command: click.Command | None = golem
    arguments = words[1:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), arguments.pop(0))
    assert command is not None, words
    with command.make_context(words[1], arguments) as context:
        if words[1] == "worker":
            names = WorkerSettings.model_fields.keys() & context.params.keys()
            load(WorkerSettings, **{name: context.params[name] for name in names})


def test_every_other_command_of_the_docs_is_understood() -> None:
    """Make's targets, Compose's files, profiles and services, pip's packages, our variables."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    services = compose.as_written()["services"]
    profiles = {name for each in services.values() for name in each.get("profiles", [])}
    for program, *words in COMMANDS:
        if program == "make":
            assert set(words) <= set(targets)
        elif program == "pip":
            assert words == ["install", "golem-tasks[worker]"]
        elif program == "export":
            assert {word.partition("=")[0] for word in words} <= SETTINGS
        elif program == "docker":
            named = dict(pairwise(words))
            assert words[0] == "compose"
            assert all((ROOT / words[i + 1]).is_file() for i, w in enumerate(words) if w == "-f")
            assert named.get("--profile", "monitoring") in profiles
            assert named.get("--scale", "worker=1").partition("=")[0] in services
            assert {word for word in words if word.startswith("worker-")} <= services.keys()


def test_the_log_page_has_every_line_worth_knowing_and_no_other() -> None:
    """All at WARNING and above, so that a new one is explained; what else it shows exists."""
    documented = {shown(line) for line in column(text_of("logs.md"), 0) if " " in line}
    said = log_lines()
    serious = {line.text for line in said if line.level not in ("debug", "info")}
    assert sorted(serious - documented) == []
    assert sorted(documented - {line.text for line in said}) == []


def test_sample_log_lines_are_what_the_worker_says() -> None:
    """A text block that begins with a bracket is of the worker's log."""
    lines = [line for page in DOCS.glob("*.md") for code in blocks(page, "text")
             for line in code.splitlines() if line.startswith("[")]  # fmt: skip
    patterns = [re.escape(line.text).replace(r"\.\.\.", ".+") for line in log_lines()]
    patterns.append("celery@.+ ready")  # Celery's own
    assert len(lines) >= 3
    for line in lines:
        level, _, said = line.partition("] ")
        assert re.fullmatch(r"\[INFO/(MainProcess|SpawnPoolWorker-1)", level)
        assert any(re.fullmatch(pattern + r"\.?", said) for pattern in patterns), line


def test_the_operators_page_names_every_figure() -> None:
    """What a worker tells of itself, and what a lane holds, in its tables."""
    known = column(text_of("operating.md"), 0)
    assert WorkerStats.model_fields.keys() - known == set()
    lane = {field.name.replace("_", " ") for field in dataclasses.fields(LaneBacklog)}
    assert lane - {"queue"} - known == set()


def test_the_operators_page_names_every_key_of_ours() -> None:
    """Those the code writes, and no other; behind a star is what varies."""
    sources = [path for name in ("golem_tasks", "worker") for path in (ROOT / name).rglob("*")
               if path.suffix in (".py", ".lua")]  # fmt: skip
    texts = "\n".join(path.read_text("utf-8") for path in sources)
    written = set(re.findall(r"golem:[a-z]+(?::[a-z]+)*", texts))
    documented = column(text_of("operating.md"), 0)
    assert {key.removesuffix(":*") for key in documented if key.startswith("golem:")} == written


def test_the_producers_page_has_every_option_and_every_error() -> None:
    """None that a submit takes, or that a call raises, is missing, and none is made up."""
    page = text_of("producers.md")
    options, errors = page.split("## Errors")[0].split("## Options")[1], page.split("## Errors")[1]
    assert column(options, 0) == SubmitOptions.__annotations__.keys()
    public = {name: getattr(golem_tasks, name) for name in golem_tasks.__all__}
    classes = {
        name for name, value in public.items()
        if isinstance(value, type) and issubclass(value, GolemError)
    }  # fmt: skip
    of_others = {"DeadLetterError", "ModelLoadError"}  # an operator's
    roots = {GolemError.__name__, JobError.__name__}
    assert BrokerUnavailable.__name__ in classes
    assert column(errors, 0) == classes - roots - of_others


def test_the_guarantees_page_proves_what_the_readme_promises() -> None:
    """The same tests, in the same order, in as many sections as the table has rows."""
    readme = (ROOT / "README.md").read_text("utf-8").split("## Guarantees")[1].split("\n## ")[0]
    rows = [re.findall(r"\((tests/[^)]+)\)", line) for line in readme.splitlines()]
    sections = text_of("guarantees.md").split("\n## ")
    proofs = [
        re.findall(r"\(\.\./(tests/[^)]+)\)", section.split("Proof:")[1].partition("Beyond")[0])
        for section in sections if "Proof:" in section
    ]  # fmt: skip
    assert proofs == [row for row in rows if row]


def test_no_page_names_a_setting_that_isnt_one() -> None:
    """Every GOLEM_ name of the docs is a setting."""
    named = {name for page in DOCS.glob("*.md")
             for name in re.findall(r"GOLEM_[A-Z_]+", page.read_text("utf-8"))}  # fmt: skip
    assert named - SETTINGS == set()


def unit_file() -> str:
    """The systemd unit."""
    [unit] = blocks(DOCS / "deploying.md", "ini")
    return unit


def test_the_systemd_unit_lets_a_worker_leave() -> None:
    """SIGTERM to the main process alone, and more patience than the worker's own grace."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    unit.read_string(unit_file())
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert service.getint("TimeoutStopSec") > load(WorkerSettings).grace_s
    variables = [pair.partition("=")[0] for pair in service["Environment"].split()]
    assert set(variables) <= SETTINGS | {"HF_HOME"}
    command, *arguments = service["ExecStart"].split()
    assert command.endswith("/bin/golem")
    assert arguments == ["worker", "--", "--hostname", "%i@%%h"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_itself_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """With a program that exists in the place of ours."""
    file = tmp_path / "golem@.service"
    file.write_text(unit_file().replace("/opt/golem/bin/golem", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_kubernetes_manifest_follows_the_compose_file() -> None:
    """Grace, user, containment, folders and command are those of the image and of Compose."""
    [manifest] = [yaml.safe_load(block) for block in blocks(DOCS / "deploying.md", "yaml")]
    spec: dict[str, Any] = manifest["spec"]
    pod = spec["template"]["spec"]
    [worker] = pod["containers"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert pod["terminationGracePeriodSeconds"] > load(WorkerSettings).grace_s
    user = pod["securityContext"]
    assert f"{user['runAsUser']}:{user['runAsGroup']}" == compose.instruction("worker", "USER")
    assert worker["args"] == json.loads(compose.instruction("worker", "CMD"))
    assert {each["name"] for each in worker["env"]} <= SETTINGS
    assert "livenessProbe" not in worker
    probe = worker["readinessProbe"]
    name, *arguments = probe["exec"]["command"][1:]
    health = golem.get_command(click.Context(golem), name)
    assert health is not None
    with health.make_context(name, arguments) as context:
        assert context.params["timeout_s"] < probe["timeoutSeconds"]
    mounts = {each["mountPath"]: each["name"] for each in worker["volumeMounts"]}
    assert set(mounts) == {"/tmp", "/models"}  # noqa: S108 - the container's own
    assert set(mounts.values()) == {each["name"] for each in pod["volumes"]}
