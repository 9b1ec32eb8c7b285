"""Code blocks of a Markdown file, for the tests that run what a document says.

Three conventions make a page's Python run as a reader would run it: a block that begins with a
comment like ``# tasks.py`` is that file; the others, one after the other, are one program; and a
comment after a ``print`` says what is printed.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
PROMISED = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)
SHOWN_URL = "redis://127.0.0.1:6379/0"


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    code: str


def all_blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    return [Block(*found) for found in BLOCK.findall(page.read_text("utf-8"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks in a language."""
    return [block.code for block in all_blocks(page) if block.language == language]


def console(code: str, program: str = "") -> list[list[str]]:
    """The commands of a console block, all or those of a program, split into their words."""
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words for words in lines if words and program in ("", words[0])]


def commands(page: Path, program: str = "") -> list[list[str]]:
    """Every command of the console blocks, or those that start this program."""
    return [words for code in blocks(page, "console") for words in console(code, program)]


def files(page: Path) -> dict[str, str]:
    """The Python files a page shows, by their names."""
    named = [(FILE_NAME.match(code), code) for code in blocks(page, "python")]
    return {found[1]: code for found, code in named if found}


def script(page: Path, url: str) -> str:
    """The Python of a page that isn't a file's, its broker replaced by this one."""
    shown = [code for code in blocks(page, "python") if not FILE_NAME.match(code)]
    return "\n".join(shown).replace(SHOWN_URL, url)


def run(command: list[str], env: dict[str, str], folder: Path | None = None) -> str:
    """Run a command of a page and return what it prints; fail with what it said if it fails."""
    done = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_python(code: str, env: dict[str, str], folder: Path) -> list[str]:
    """Run a program in a folder, whose modules it finds, and return the lines it prints."""
    path = os.pathsep.join(filter(None, [str(folder), env.get("PYTHONPATH")]))
    return run([sys.executable, "-c", code], {**env, "PYTHONPATH": path}, folder).splitlines()
