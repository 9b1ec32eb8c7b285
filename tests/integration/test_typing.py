"""Our types in a user's project: the wheel installed, mypy and Pyright at their strictest."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "tests" / "typed_project"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with a .venv that has our wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("typed") / "project"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    run([*build, folder / "dist"], ROOT)
    venv.create(folder / ".venv", symlinks=True)
    [site] = (folder / ".venv").glob("lib/python*/site-packages")
    [wheel] = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    return folder


@pytest.fixture(scope="module")
def pyright(project: Path) -> list[str]:
    """The command, of the version in the lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node; install Debian's packages nodejs and npm")
    run(["npm", "ci"], project)
    return ["node", str(project / "node_modules" / "pyright" / "index.js"), "--outputjson"]


def run(command: list[Any], folder: Path, *, fine: tuple[int, ...] = (0,)) -> str:
    """Run a command with the project's interpreter first on the path; return what it prints."""
    path = os.pathsep.join([str(folder / ".venv" / "bin"), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode in fine, done.stdout + done.stderr
    return done.stdout


def mistakes() -> set[int]:
    """Numbers of the lines of wrong.py that say so."""
    lines = (PROJECT / "wrong.py").read_text("utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}


def test_mypy_finds_the_mistakes_and_nothing_else(project: Path) -> None:
    """Strict: the right file passes; in the wrong one each mistake is found, on its line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    python = project / ".venv" / "bin" / "python"
    told = run(
        [*command, "--python-executable", python, "right.py", "wrong.py"], project, fine=(1,)
    )
    found = re.findall(r"^(\w+\.py):(\d+): error", told, re.MULTILINE)
    assert {(name, int(line)) for name, line in found} == {("wrong.py", n) for n in mistakes()}, (
        told
    )


def test_pyright_finds_the_mistakes_and_nothing_else(project: Path, pyright: list[str]) -> None:
    """Strict as well, by its own inference."""
    settings = {"typeCheckingMode": "strict", "include": ["right.py", "wrong.py"]}
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    told = json.loads(run(pyright, project, fine=(1,)))["generalDiagnostics"]
    found = {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in told}
    assert found == {("wrong.py", number) for number in mistakes()}, told


def test_the_public_api_is_typed_completely(project: Path, pyright: list[str]) -> None:
    """Nothing a user can name is left to inference, which differs between type checkers."""
    (project / "pyrightconfig.json").unlink(missing_ok=True)
    [commands] = (project / ".venv").glob("lib/*/site-packages/golem_tasks/cli")
    shutil.rmtree(commands)  # no API, and a third of the work
    verify = [*pyright, "--verifytypes", "golem_tasks", "--ignoreexternal"]
    symbols = json.loads(run(verify, project))["typeCompleteness"]["symbols"]
    assert len(symbols) > 300
    assert [symbol["name"] for symbol in symbols if not symbol["isTypeKnown"]] == []


def test_the_wheel_says_that_it_is_typed(project: Path) -> None:
    """By the marker of PEP 561, in both packages."""
    [wheel] = (project / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        assert {"golem_tasks/py.typed", "worker/py.typed"} <= set(archive.namelist())
