"""The `golem` command against real workers: answers, files of any length, interruptions."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from golem_tasks.cli import main
from golem_tasks.embedded import EmbeddedServer
from tests.support.cli import COMMAND, environment, golem, start
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker
from tests.support.models import build
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess
from worker.calibration import Calibration
from worker.decoding import softmax
from worker.machine import CPU_ENVIRONMENT


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedServer]:
    """A server of this module's own, so that its worker can live as long as the module."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def worker(own: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorker]:
    """A quick worker on it."""
    with FakeWorker(tmp_path_factory.mktemp("worker"), own) as worker:
        yield worker


def answers(path: Path) -> list[dict[str, Any]]:
    """The lines of an output."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def whole_lines(path: Path) -> int:
    """How many lines of an output are finished."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check(path: Path, texts: list[str]) -> None:
    """Every line has its own answer, in order, once."""
    got = answers(path)
    assert [each["line"] for each in got] == list(range(1, len(texts) + 1))
    assert [each["text"] for each in got] == texts
    assert [each["label"] for each in got] == [expected_label(text) for text in texts]


@pytest.mark.usefixtures("worker")
def test_health_is_an_answer_through_the_queue(own: EmbeddedServer) -> None:
    """Exit code 0; JSON names the model and the milliseconds."""
    told = golem("health", "--json", GOLEM_BROKER_URL=own.url)
    health = json.loads(told.stdout)
    assert told.returncode == 0
    assert health["ok"] is True
    assert health["model"]["name"] == "fake"
    assert health["ms"] > 0
    shown = golem("health", "--broker-url", own.url)
    assert shown.returncode == 0
    assert shown.stdout.startswith("A worker answers on queue 'golem': fake (float32), in ")


def test_health_without_a_worker_names_cause_and_remedy(server: EmbeddedServer) -> None:
    """Exit code 1, one sentence, and nothing that a later worker would have to answer."""
    shown = golem("health", "--timeout", 0.5, "--broker-url", server.url)
    assert shown.returncode == 1
    assert shown.stderr.startswith("golem: No worker answered within 0.5 s on queue 'golem' at ")
    assert "start one with golem worker" in shown.stderr
    told = golem("health", "--timeout", 0.5, "--json", "--broker-url", server.url)
    assert told.returncode == 1
    assert json.loads(told.stdout)["error"] == "ResultTimeout"


@pytest.mark.usefixtures("worker")
def test_texts_are_answered_in_order_and_a_bad_one_fails_alone(own: EmbeddedServer) -> None:
    """In a pipe an answer is a line with tabs; a failed one has its reason, and the exit is 1."""
    done = golem("classify", "one", "", "three\tx", GOLEM_BROKER_URL=own.url)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [
        expected_label("one"),
        "InvalidJob",
        expected_label("three\tx"),
    ]
    assert rows[1][2] == "The job is invalid: text is empty."
    assert rows[2][2] == "three x"
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.usefixtures("worker")
def test_a_pipe_is_answered_line_by_line_as_json(own: EmbeddedServer) -> None:
    """Standard input is read when there is no text, or for -; --json prints an object a line."""
    for arguments in ([], ["-"], ["--file", "-"]):
        done = golem("classify", *arguments, "--json", stdin="one\ntwo\n", GOLEM_BROKER_URL=own.url)
        got = [json.loads(line) for line in done.stdout.splitlines()]
        assert [each["label"] for each in got] == [expected_label("one"), expected_label("two")]
        assert done.returncode == 0


@pytest.mark.usefixtures("worker")
def test_options_of_the_job_reach_the_model(own: EmbeddedServer) -> None:
    """--top-k, --logits and --on-long are the contract's."""
    long = "word " * 600
    done = golem(
        "classify", "one", long, "--top-k", 1, "--logits", "--on-long", "error", "--json",
        GOLEM_BROKER_URL=own.url,
    )  # fmt: skip
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert len(first["scores"]) == 1
    assert len(first["logits"]) == 3
    assert second["error"]["type"] == "TextTooLong"


@pytest.mark.usefixtures("worker")
def test_a_file_is_answered_in_order_with_its_failed_lines_apart(
    own: EmbeddedServer, tmp_path: Path
) -> None:
    """Of 3,000 lines the three bad ones fail alone; each of the rest has its own answer."""
    texts = [f"text {number}" for number in range(3000)]
    lines: list[bytes] = [text.encode() for text in texts]
    lines[10], lines[1500], lines[2999] = b"", b"\xff\xfe", b"nu\0l"
    file, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    done = golem("classify", "--file", file, "--out", out, "--json", GOLEM_BROKER_URL=own.url)
    got = answers(out)
    assert done.returncode == 1
    assert [each["line"] for each in got] == list(range(1, 3001))
    bad = {11, 1501, 3000}
    for each, text in zip(got, texts, strict=True):
        assert ("error" in each) == (each["line"] in bad)
        assert "error" in each or each["label"] == expected_label(text)
    summary = json.loads(done.stdout)
    assert (summary["lines"], summary["answered"], summary["failed"]) == (3000, 2997, 3)
    assert sum(summary["labels"].values()) == 2997
    assert summary["models"] == ["fake"]
    failed = answers(tmp_path / "out.failed.jsonl")
    assert {each["line"] for each in failed} == bad
    again = golem("classify", "--file", file, "--out", out, GOLEM_BROKER_URL=own.url)
    assert again.returncode == 1
    assert "has 3,000 lines already" in again.stderr
    assert "3 failed (see " in again.stderr
    assert answers(out) == got


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_is_gone_on_with_and_repeats_no_line(
    tmp_path: Path, server: EmbeddedServer, number: signal.Signals
) -> None:
    """Whatever ends it, the next run answers the rest, and no finished line is computed again."""
    go = tmp_path / "go"
    texts = [f"text {number}" for number in range(1500)]
    texts[700] = f"until:{go}"  # it can't come to its end before
    file, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    file.write_text("\n".join(texts))
    asked = ("classify", "--file", file, "--out", out, "--window", 256)
    settings = {"FAKE_FORWARD_S": "0.05", "GOLEM_MAX_ROWS": "64"}
    with FakeWorker(tmp_path, server, **settings) as worker:
        with start(*asked, output=subprocess.PIPE, GOLEM_BROKER_URL=server.url) as first:
            wait_until(lambda: whole_lines(out) >= 128, "some answers")
            first.send_signal(number)
            said = first.communicate(timeout=180)[0].decode()
        go.touch()
        finished = whole_lines(out)
        assert 128 <= finished < len(texts)
        if number is signal.SIGKILL:
            assert first.returncode == -signal.SIGKILL
        else:
            assert first.returncode == 128 + number
            assert f"stopped after {finished:,} lines" in said
            assert "Traceback" not in said
        second = golem(*asked, GOLEM_BROKER_URL=server.url)
        assert second.returncode == 0, second.stderr
        assert f"has {finished:,} lines already" in second.stderr
        check(out, texts)
        assert {worker.runs[text] for text in texts[:finished]} == {1}


@pytest.mark.parametrize("appendonly", [True, False])
def test_a_bulk_run_survives_a_restart_of_redis(tmp_path: Path, *, appendonly: bool) -> None:
    """With its data or without: every line gets its answer, in order, once."""
    texts = [f"text {number}" for number in range(1500)]
    file, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    file.write_text("\n".join(texts))
    with (
        EmbeddedServer(appendonly=appendonly) as alone,
        FakeWorker(tmp_path, alone, FAKE_FORWARD_S="0.05", GOLEM_MAX_ROWS="64"),
        start(
            "classify", "--file", file, "--out", out, "--window", 256,
            output=subprocess.PIPE, GOLEM_BROKER_URL=alone.url,
        ) as run,
    ):  # fmt: skip
        wait_until(lambda: whole_lines(out) >= 128, "some answers")
        alone.kill()
        alone.start()
        said = run.communicate(timeout=150)[0].decode()
        assert run.returncode == 0, said
    check(out, texts)


@pytest.mark.usefixtures("worker")
def test_a_reader_that_goes_away_ends_it_quietly(own: EmbeddedServer, tmp_path: Path) -> None:
    """As with ``golem classify ... | head -1``: no traceback, the shell's exit code for it."""
    file = tmp_path / "in.txt"
    file.write_text("".join(f"text {number}\n" for number in range(5000)))
    with subprocess.Popen(
        [*COMMAND, "classify", "--file", file, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(GOLEM_BROKER_URL=own.url),
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert json.loads(run.stdout.readline())["label"] == expected_label("text 0")
        run.stdout.close()
        said = run.stderr.read().decode()
        assert run.wait(60) == 128 + signal.SIGPIPE
    assert said == ""


@pytest.mark.usefixtures("worker")
def test_a_terminal_sees_a_progress_bar(own: EmbeddedServer, tmp_path: Path) -> None:
    """With share, lines, rate; and the summary when the bar has gone."""
    file, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    file.write_text("".join(f"text {number}\n" for number in range(3000)))
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        run = subprocess.Popen(
            [*COMMAND, "classify", "--file", file, "--out", out],
            stdin=subprocess.DEVNULL,
            stderr=theirs,
            env=environment(GOLEM_BROKER_URL=own.url, TERM="xterm", COLUMNS="80"),
        )
        os.close(theirs)
        shown = _until_closed(terminal.fileno())
        assert run.wait(60) == 0
    assert "━" in shown
    assert "/s" in shown
    assert "3,000 lines: 3,000 answered, in " in shown


def test_nobody_answers_is_an_error_after_a_while(server: EmbeddedServer) -> None:
    """Without a worker it gives up after --timeout and says how to look further."""
    done = golem("classify", "one", "--timeout", 0.5, GOLEM_BROKER_URL=server.url)
    assert done.returncode == 1
    assert "No answer for " in done.stderr
    assert "golem health" in done.stderr


def test_golem_worker_is_celerys_worker(server: EmbeddedServer, tmp_path: Path) -> None:
    """Its options are settings, what stands after -- is Celery's, and SIGTERM ends it with 0."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        run = start(
            "worker", "--broker-url", server.url, "--queue", "reviews", "--loglevel", "warning",
            "--engine", "tests.support.fake_engine:load", "--",
            "--hostname", "cli@test", "--pidfile", tmp_path / "pid",
            output=output, CELERY_BROKER_URL="redis://127.0.0.1:1", CELERY_RESULT_BACKEND="rpc://",
        )  # fmt: skip
    with run:
        healthy = golem("health", "--queue", "reviews", "--timeout", 60, "--broker-url", server.url)
        assert healthy.returncode == 0, log.read_text()
        assert int((tmp_path / "pid").read_text()) == run.pid
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 0
    assert "cli@test" in log.read_text()
    assert "INFO/" not in log.read_text()


@pytest.mark.usefixtures("torch_as_before")
def test_inspect_gives_the_very_answer_of_the_queue(
    server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Same model, same dtype: label, logits and scores agree; the stages hang together."""
    model = {
        "GOLEM_MODEL": str(build(tmp_path / "model")),
        "GOLEM_DEVICE": "cpu",
        "GOLEM_DTYPE": "float32",
        "GOLEM_BROKER_URL": server.url,
    }
    text = "the film is not bad, and never moves slowly"
    with WorkerProcess(tmp_path, environment(**model)):
        queued = json.loads(golem("classify", "--logits", "--json", text, **model).stdout)
    for name, value in model.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", "--json", text]) == 0  # in this process, which has torch already
    box = json.loads(capsys.readouterr().out)
    answer = box["prediction"]
    assert answer["label"] == queued["label"]
    assert answer["logits"] == pytest.approx(queued["logits"], abs=1e-4)
    assert answer["scores"] == pytest.approx(queued["scores"], abs=1e-4)
    assert len(box["tokens"]) == answer["tokens"] == queued["tokens"]
    assert {token["mask"] for token in box["tokens"]} == {1}
    assert [token["token"] for token in box["tokens"] if token["special"]] == ["[CLS]", "[SEP]"]
    assert box["inputs"][0]["shape"] == [1, len(box["tokens"])]
    assert [each["logit"] for each in box["labels"]] == pytest.approx(answer["logits"])
    assert box["labels"][box["argmax"]]["label"] == answer["label"]
    assert "classifier" in [part["name"] for part in box["modules"]]
    assert main(["inspect", text]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert f"-> {answer['label']}" in shown


@pytest.mark.usefixtures("torch_as_before")
def test_inspect_tells_all_parameters_and_the_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantizing hides weights and not their number; scores beside logits say what divides them."""
    folder = build(tmp_path / "model", labels=("A", "B"))
    told = {}
    for dtype in ("float32", "int8"):
        assert main(["inspect", "--json", "--model", str(folder), "--dtype", dtype, "good"]) == 0
        told[dtype] = json.loads(capsys.readouterr().out)
    assert told["int8"]["model"]["dtype"] == "int8"
    assert told["int8"]["parameters"] == told["float32"]["parameters"] > 0
    Calibration(2.5, ("A", "B"), 100).save(folder / "golem_calibration.json")
    assert main(["inspect", "--model", str(folder), "--dtype", "float32", "good"]) == 0
    assert "softmax of logit / 2.5000" in capsys.readouterr().out
    assert main(["inspect", "--json", "--model", str(folder), "--dtype", "float32", "good"]) == 0
    box = json.loads(capsys.readouterr().out)
    assert box["model"]["temperature"] == 2.5
    assert [each["score"] for each in box["labels"]] == pytest.approx(
        softmax([each["logit"] / 2.5 for each in box["labels"]])
    )


def test_inspect_has_the_cores_and_the_environment_of_a_workers_process(tmp_path: Path) -> None:
    """So that its times are a worker's; in a process of its own, where torch isn't loaded yet.

    Of six cores, on a machine with memory enough, the first of four processes has two.
    """
    folder = build(tmp_path / "model")
    code = (
        "import os, sys; from golem_tasks.cli import main; from worker import machine\n"
        "machine.available_cores, machine.available_memory_bytes = lambda: 6, lambda: None\n"
        f"assert main(['inspect', '--json', '--model', {str(folder)!r}, 'good']) == 0\n"
        "import torch; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    env = environment(GOLEM_DEVICE="cpu")
    for name in CPU_ENVIRONMENT:
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "2 PASSIVE"


def _until_closed(terminal: int) -> str:
    """All a terminal shows until the other end is closed, which Linux reports as an error."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            return shown.decode()
