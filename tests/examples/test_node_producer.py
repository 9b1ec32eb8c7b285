"""The Node example: installed and run as its README says, with a real worker behind it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from golem_tasks.embedded import EmbeddedServer, free_port
from tests.support.markdown import blocks, commands
from tests.support.servers import ROOT, reader_environment

FOLDER = ROOT / "examples" / "node_producer"
README = FOLDER / "README.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its dependencies, exactly those of its lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node; install Debian's packages nodejs and npm")
    folder = tmp_path_factory.mktemp("node") / "producer"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("node_modules"))
    [command] = commands(README, "npm")
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def node(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run node in the folder and return its exit code and what it said."""
    return subprocess.run(
        ["node", *arguments], cwd=folder, env=reader_environment(GOLEM_BROKER_URL=url),
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@pytest.mark.usefixtures("worker")
def test_the_readmes_command_prints_what_it_promises(
    installed: Path, redis_server: EmbeddedServer
) -> None:
    """A line for each text; the score within what another CPU's arithmetic changes."""
    [command] = commands(README, "node")
    done = node(installed, redis_server.url, *command[1:])
    assert (done.returncode, done.stderr) == (0, "")
    promised = [line.split() for line in blocks(README, "text")[0].splitlines()]
    printed = [line.split() for line in done.stdout.splitlines()]
    assert [label for label, _ in printed] == [label for label, _ in promised]
    scores = [float(score) for _, score in printed]
    assert scores == pytest.approx([float(score) for _, score in promised], abs=0.01)


@pytest.mark.usefixtures("worker")
def test_a_job_that_failed_is_one_line_and_the_others_are_answered(
    installed: Path, redis_server: EmbeddedServer
) -> None:
    """Forty texts and a bad one among them, in order; the exit code tells."""
    texts = ["I love this.", "What a waste of two hours!"] * 20
    done = node(installed, redis_server.url, "classify.js", *texts, "", texts[0])
    assert done.returncode == 1
    *lines, bad, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["POSITIVE", "NEGATIVE"] * 20
    assert bad == "InvalidJob: The job is invalid: text is empty."
    assert last.split()[0] == "POSITIVE"


def test_a_redis_that_is_away_is_one_sentence(installed: Path) -> None:
    """On standard error, and exit code 1."""
    port = free_port()
    done = node(installed, f"redis://:secret@127.0.0.1:{port}/0", "classify.js", "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Redis at 127.0.0.1:{port} can't be used: ")
    assert "secret" not in done.stderr


def test_the_lock_file_pins_what_the_package_asks_for() -> None:
    """The version tested, with a checksum for every package."""
    lock = json.loads((FOLDER / "package-lock.json").read_text("utf-8"))["packages"]
    asked = json.loads((FOLDER / "package.json").read_text("utf-8"))["dependencies"]
    assert lock[""]["dependencies"] == asked
    assert {lock[f"node_modules/{name}"]["version"] for name in asked} == set(asked.values())
    assert all(package["integrity"] for path, package in lock.items() if path)
