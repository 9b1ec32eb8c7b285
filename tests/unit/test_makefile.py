"""The Makefile: what each target would run, and when it would install."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.compose import ROOT

MAKEFILE = ROOT / "Makefile"
TARGETS = re.findall(r"^([a-z]+):.*## ", MAKEFILE.read_text("utf-8"), re.MULTILINE)


def make(folder: Path, *arguments: str, **env: str) -> str:
    """What make says; fails if it fails. Variables of an outer make don't reach it."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder, env={**inherited, **env}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the Makefile depends on, and an installation newer than that."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1_000, 1_000))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    os.utime(tmp_path / ".venv" / ".installed", (2_000, 2_000))
    return tmp_path


def test_help_is_the_default_and_lists_every_target(checkout: Path) -> None:
    """`make` alone says what there is."""
    listed = re.findall(r"^  make (\w+)", make(checkout), re.MULTILINE)
    assert listed == TARGETS
    assert {"demo", "test", "lint", "types", "docs", "bench", "soak", "clean", "help"} <= set(
        listed
    )


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "docs", "bench", "soak"])
def test_a_target_doesnt_install_twice(checkout: Path, target: str) -> None:
    """With an installation newer than its inputs, only the target's own command runs."""
    assert "pip install" not in make(checkout, "-n", target)


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "docs", "bench", "soak"])
def test_a_target_installs_on_first_use(checkout: Path, target: str) -> None:
    """Without .venv, each target makes it first, with the tested versions."""
    shutil.rmtree(checkout / ".venv")
    planned = make(checkout, "-n", target)
    assert planned.index("-m venv .venv") < planned.index("--constraint constraints.txt")


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again(checkout: Path, changed: str) -> None:
    """An installation older than its inputs is brought up to date."""
    os.utime(checkout / changed, (3_000, 3_000))
    assert "pip install" in make(checkout, "-n", "lint")


def test_a_machine_without_python_is_told_what_to_do(checkout: Path) -> None:
    """No Python that is new enough: one sentence, not a shell error."""
    shutil.rmtree(checkout / ".venv")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make(checkout, "lint", "PYTHON=")
    assert "Golem needs Python 3.11 or newer" in failed.value.stderr


def test_clean_leaves_the_installation(checkout: Path) -> None:
    """`clean` removes caches, `distclean` the installation as well."""
    (checkout / "worker" / "__pycache__").mkdir(parents=True)
    make(checkout, "clean")
    assert not (checkout / "worker" / "__pycache__").exists()
    assert (checkout / ".venv" / ".installed").exists()
    make(checkout, "distclean")
    assert not (checkout / ".venv").exists()


def test_ci_runs_every_check() -> None:
    """What CI runs is what a person can run: lint, types, tests."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.findall(r"^make (\w+)", script, re.MULTILINE) == ["lint", "types", "test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
