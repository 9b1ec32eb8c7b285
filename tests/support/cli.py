"""The `golem` command as its users run it: a process of its own, in an environment without ours."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from golem_tasks.settings import ENV_PREFIX

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "golem_tasks.cli")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of Golem or Celery, with these instead."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((ENV_PREFIX, "CELERY_", "COLUMNS", "FORCE_COLOR"))
    }
    path = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH")]))
    return {**ours, "PYTHONPATH": path, **more}


def golem(
    *arguments: object, stdin: str | bytes = b"", cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end and return its exit code and what it said."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=240,
        check=False,
        cwd=cwd,
        env=environment(**env),
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def start(
    *arguments: object, output: IO[bytes] | int | None = None, **env: str
) -> subprocess.Popen[bytes]:
    """Start the command and return at once; the caller ends it and waits."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env=environment(**env),
    )
