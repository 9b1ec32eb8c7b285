"""Code blocks of a Markdown file, for the tests that run what a document says."""

import re
import shlex
from pathlib import Path

BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks in a language."""
    return [code for found, code in BLOCK.findall(page.read_text("utf-8")) if found == language]


def commands(page: Path, program: str) -> list[list[str]]:
    """Every command of the console blocks that starts this program, split into its words."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.split()[:1] == [program]]
