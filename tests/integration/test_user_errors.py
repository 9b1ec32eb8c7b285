"""What a new user meets first: each mistake is one sentence that names its cause and its remedy."""

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery.result import AsyncResult

from golem_tasks import BrokerUnavailable, Golem, InvalidJob, ResultTimeout
from golem_tasks._unavailable import sentence
from golem_tasks.embedded import EmbeddedServer, free_port
from golem_tasks.errors import SubmitIncomplete
from golem_tasks.guard import guarded
from golem_tasks.settings import ClientSettings, load
from tests.support.cli import COMMAND, environment, golem
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, producer_for, send
from tests.support.waiting import wait_until

MOST_CLUSTER_PORT = 55_535  # its bus listens 10,000 above


def client(url: str, **given: Any) -> Golem:
    """A client that isn't patient, but with a server that is there and slow."""
    given = {"connect_timeout_s": 3, **given}
    return Golem(settings=load(ClientSettings, broker_url=url, **given))


def refusal(url: str, call: Callable[[Golem], Any] = lambda golem: golem.submit("a")) -> str:
    """The sentence a call ends with; nothing may be in the queue, not even perhaps."""
    with client(url) as golem, pytest.raises(BrokerUnavailable) as caught:
        call(golem)
    assert not isinstance(caught.value, SubmitIncomplete)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def loading() -> Iterator[EmbeddedServer]:
    """A server that takes a minute to read its data from disk, and is at it."""
    slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
    with EmbeddedServer(arguments=slow) as server:
        with server.client() as admin:
            admin.mset({f"key {number}": "x" * 100 for number in range(30_000)})
            admin.save()
        server.kill()
        with server.log.open("ab") as output:
            guard = guarded(server._command(), output=output)
        try:
            with server.client() as admin:
                wait_until(lambda: _is_loading(admin), "the server to read its data")
            yield server
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()


def _is_loading(admin: Any) -> bool:
    try:
        return bool(admin.info("persistence")["loading"])
    except OSError:
        return False
    except Exception as exc:  # noqa: BLE001 - redis-py's for a server that isn't there yet
        return "loading" in str(exc)


class TestRedis:
    """What a client says of a Redis that won't do."""

    def test_one_that_still_loads_refuses_and_nothing_is_uncertain(self) -> None:
        """Neither is a submit called uncertain, nor does a cancel ask on and on until it is up."""
        with loading() as server:
            calls: list[Callable[[Golem], Any]] = [
                lambda golem: golem.submit("a"),
                lambda golem: golem.job("x").cancel(),
                lambda golem: golem.queue_length(),
            ]
            for call in calls:
                said = refusal(server.url, call)
                assert "is still reading its data from disk" in said
                assert said.endswith("try again when it has.")

    def test_a_replica_is_told_as_such_and_a_worker_on_it_asks_in_measure(
        self, tmp_path: Path, server: EmbeddedServer
    ) -> None:
        """The worker names the remedy, and doesn't fill its log with five tries in a second."""
        of = ["--replicaof", f"127.0.0.1 {server.port}"]
        with EmbeddedServer(arguments=of) as replica:
            with replica.client() as admin:
                wait_until(
                    lambda: admin.info("replication")["master_link_status"] == "up",  # type: ignore[index]
                    "the replica to follow",
                )
            said = refusal(replica.url)
            assert "is a read-only replica" in said
            assert said.endswith("name its primary in GOLEM_BROKER_URL.")
            worker = FakeWorker(tmp_path, replica).start(wait=False)
            try:
                told = "name its primary in GOLEM_BROKER_URL. The next try is in 2 s."
                wait_until(lambda: told in worker.text, "a second refusal in a row")
                assert worker.alive
                assert "Traceback" not in worker.text
                assert "Frequent restarts" not in worker.text
                with replica.client() as admin:
                    admin.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
                assert_answers(replica, "after")
            finally:
                worker.stop()

    def test_a_user_without_rights_a_password_nobody_asks_for_and_a_database_that_is_none(
        self,
    ) -> None:
        """Each refusal has a remedy of its own."""
        with EmbeddedServer() as server:
            with server.client() as admin:
                admin.acl_setuser("bob", enabled=True, passwords=["+bob"], commands=["+ping"])
            host = f"127.0.0.1:{server.port}"
            said = refusal(f"redis://bob:bob@{host}/0")
            assert "doesn't allow this user what Golem needs" in said
            assert "grant it what the users in deploy/redis have" in said
            said = refusal(f"redis://:needless@{host}/0")
            assert "it has no password, so take yours out of GOLEM_BROKER_URL" in said
            said = refusal(f"redis://{host}/16")
            assert "has no database of that number" in said
            assert "correct the end of GOLEM_BROKER_URL" in said
            said = refusal(f"sentinel://{host}/0")
            assert "isn't a Sentinel" in said
            assert "or begin it with redis://" in said

    def test_a_cluster_is_told_as_such(self) -> None:
        """Its nodes answer, but with directions to others."""
        server = EmbeddedServer(arguments=["--cluster-enabled", "yes"])
        while server.port > MOST_CLUSTER_PORT:
            server.port = free_port()
        with server:
            assert "is part of a Redis Cluster, which isn't supported" in refusal(server.url)

    def test_a_server_that_hangs_up_may_want_tls(self) -> None:
        """What a server that speaks TLS alone does with a plain connection."""
        error = ConnectionError("Connection closed by server.")
        assert "its URL begins with rediss://" in sentence(error, "redis://a/0", "X", "m")
        assert "that it speaks TLS" in sentence(TimeoutError(), "rediss://a/0", "X", "m")

    def test_an_answer_that_expired_is_named_among_what_may_be(
        self, server: EmbeddedServer
    ) -> None:
        """Redis can't tell it from an unknown id; the sentence says so, and names the setting."""
        with client(server.url) as golem, pytest.raises(ResultTimeout) as caught:
            golem.job(str(uuid4())).result(timeout=0)
        assert "one whose answer has expired (GOLEM_RESULT_EXPIRES_S)" in str(caught.value)


def assert_answers(server: EmbeddedServer, text: str) -> None:
    """A job is answered."""
    result = send(producer_for(server), text)
    assert result.get(timeout=60)["label"] == expected_label(text)


class TestCalls:
    """Wrong types in Python: refused before anything is sent, hence without any Redis."""

    @pytest.mark.parametrize("texts", ["a text", b"bytes", None, 5, object()])
    def test_what_is_no_list_of_texts_is_refused(self, texts: Any) -> None:
        """A string above all: it would be a job for each of its letters."""
        with client(f"redis://127.0.0.1:{free_port()}/0") as golem:
            for call in (golem.submit_many, golem.submit_batch):
                with pytest.raises(InvalidJob, match="texts must be a list of strings, not"):
                    call(texts)
                with pytest.raises(InvalidJob, match="text_pairs must be a list of strings"):
                    call(["a"], texts if texts is not None else 5)

    def test_a_generator_of_texts_is_fine(self, server: EmbeddedServer) -> None:
        """As is whatever else yields them."""
        with client(server.url) as golem:
            assert len(golem.submit_many(text for text in ("a", "b"))) == 2
            golem.submit_batch(dict.fromkeys(("a", "b")))  # type: ignore[arg-type]
            assert golem.queue_length() == 3

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"topk": 3}, "topk is not an option; the options are top_k, logits, on_long, bulk,"),
            ({"bulk": "no"}, "bulk must be True or False"),
            ({"priority": True}, "priority must be 0"),
            ({"expires_s": float("inf")}, "expires_s must be a number of seconds above 0, to "),
            ({"countdown_s": 1e20}, "countdown_s must be a number of seconds above 0, to "),
            ({"task_id": uuid4()}, "task_id must be a string, not UUID"),
        ],
    )
    def test_an_option_that_is_none_or_of_another_type_is_refused(
        self, options: Any, said: str
    ) -> None:
        """By its name, with what it may be."""
        with (
            client(f"redis://127.0.0.1:{free_port()}/0") as golem,
            pytest.raises(InvalidJob, match=said),
        ):
            golem.submit("a", **options)

    @pytest.mark.parametrize("job_id", [None, "", 5, uuid4()])
    def test_what_is_no_id_is_refused(self, job_id: Any) -> None:
        """Where it is picked up, not where Redis is asked for it."""
        with client("redis://127.0.0.1:1/0") as golem, pytest.raises(InvalidJob, match="job_id"):
            golem.job(job_id)

    def test_a_timeout_that_is_not_a_number_is_over(self, server: EmbeddedServer) -> None:
        """No moment is later than NaN: such a wait would never end."""
        with client(server.url) as golem, pytest.raises(ResultTimeout):
            golem.job("nobody").result(timeout=float("nan"))


class TestVersions:
    """Producers and workers of two versions on one queue."""

    def test_an_option_of_a_newer_producer_is_refused_by_name(
        self, live_server: EmbeddedServer, worker: FakeWorker
    ) -> None:
        """The job fails at once; its sentence lists the options this worker has."""
        app = producer_for(live_server)
        result = app.send_task("golem.classify", ["a"], {"temperature": 2.0}, queue="golem")
        error = result.get(timeout=60, propagate=False)
        assert isinstance(error, InvalidJob)
        assert "temperature is not an option; the options are top_k, logits, on_long" in str(error)
        assert worker.alive

    def test_the_message_of_an_older_producer_is_answered(
        self, live_server: EmbeddedServer, worker: FakeWorker
    ) -> None:
        """Protocol 2 without any header of ours, nor any option: all that version 1 promises."""
        job_id = str(uuid4())
        message = {
            "body": "W1sib2xkIl0sIHt9LCBudWxsXQ==",  # [["old"], {}, null]
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "golem.classify", "id": job_id},
            "properties": {
                "correlation_id": job_id,
                "delivery_info": {"exchange": "", "routing_key": "golem"},
                "delivery_tag": job_id,
                "body_encoding": "base64",
            },
        }
        app = producer_for(live_server)
        with live_server.client() as broker:
            broker.lpush("golem", app.backend.encode(message))
        answer = AsyncResult(job_id, app=app).get(timeout=60)
        assert answer["label"] == expected_label("old")
        assert worker.alive


class TestCommand:
    """The `golem` command."""

    @pytest.mark.parametrize("command", ["--help", "health", "worker"])
    def test_a_ctrl_c_while_python_loads_says_nothing(self, command: str) -> None:
        """Pressed as soon as our first line has run: the process dies of it."""
        # The first module after ours that is slow to load stops for the signal.
        code = (
            "import os, signal, sys\n"
            "class Slow:\n"
            "    def find_spec(self, name, *_):\n"
            "        if name == 'pydantic':\n"
            "            os.kill(os.getpid(), signal.SIGINT)\n"
            "sys.meta_path.insert(0, Slow())\n"
            "from golem_tasks.cli import main\n"
            f"sys.exit(main([{command!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False, timeout=180, env=environment(),
        )  # fmt: skip
        assert done.returncode == -signal.SIGINT
        assert (done.stdout, done.stderr) == ("", "")

    def test_a_worker_that_cannot_start_says_why_and_exits_with_78(self, tmp_path: Path) -> None:
        """The same as under `celery -A worker worker`: a supervisor mustn't take it for an end."""
        url = f"redis://127.0.0.1:{free_port()}/0"
        done = golem("worker", "--broker-url", url, "--engine", "nosuch.module:load", cwd=tmp_path)
        assert done.returncode == 78
        assert "GOLEM_ENGINE=nosuch.module:load can't be used: No module named" in done.stderr
        assert "name a function this worker can import" in done.stderr
        assert "Traceback" not in done.stderr

    def test_celerys_variables_are_named_where_they_are_at_fault(self) -> None:
        """GOLEM_BROKER_URL was never set: a sentence about it would send nobody anywhere."""
        done = golem(
            "worker", "--engine", "tests.support.fake_engine:load", CELERY_RESULT_BACKEND="rpc://"
        )
        said = (
            "CELERY_RESULT_BACKEND, which counts because GOLEM_BROKER_URL is unset, can't be used"
        )
        assert said in done.stderr
        assert done.returncode == 1

    def test_a_full_disk_is_told_and_the_next_run_goes_on(
        self, live_server: EmbeddedServer, worker: FakeWorker, tmp_path: Path
    ) -> None:
        """What was written stays; the same command finishes the rest once there is room."""
        texts = [f"text {number}" for number in range(400)]
        file, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
        file.write_text("\n".join(texts))
        command = ["classify", "--file", str(file), "--out", str(out), "--window", "64"]
        limit = 20_000  # bytes, a fifth of the output

        def small_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        done = subprocess.run(
            [*COMMAND, *command], capture_output=True, text=True, check=False, timeout=120,
            env=environment(GOLEM_BROKER_URL=live_server.url),
            preexec_fn=small_disk,
        )  # fmt: skip
        assert done.returncode == 2
        assert f"{out} can't be written on: File too large; make room for it" in done.stderr
        assert "Traceback" not in done.stderr
        assert 0 < out.stat().st_size <= limit
        again = golem(*command, GOLEM_BROKER_URL=live_server.url)
        assert again.returncode == 0, again.stderr
        labels = [
            line.partition('"label": "')[2].partition('"')[0]
            for line in out.read_text().splitlines()
        ]
        assert labels == [expected_label(text) for text in texts]
        assert worker.alive

    def test_a_file_that_is_not_our_output_is_never_cut_off(self, tmp_path: Path) -> None:
        """A single line without its end looks torn; it is somebody's all the same."""
        file, out = tmp_path / "in.txt", tmp_path / "notes.jsonl"
        file.write_text("a text\n")
        for kept in ("my only copy", '{"line": 2, "text": "of another'):
            out.write_text(kept)
            done = golem("classify", "--file", file, "--out", out)
            assert done.returncode == 2
            assert "isn't an output of golem classify" in done.stderr
            assert out.read_text() == kept

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["clasify", "a"], "No such command 'clasify'. Did you mean classify?"),
            (["classify", "--file", "folder.txt"], "folder.txt is a folder: name a file in it."),
            (["classify", "--file", ""], "is a folder"),
            (["classify", "--file", "a.txt", "--out", ""], "can't be written: Is a directory"),
            (["classify", "--file", "a.txt", "--column", "x"], "is plain text, without columns"),
            (["classify", "--file", "a.csv", "--column", "x"], "the columns are text"),
            (["classify", "--file", "bad.parquet"], "bad.parquet can't be read: "),
            (["calibrate", "--file", "a.csv"], "no column 'label': name the right one"),
        ],
    )
    def test_a_file_that_is_none_is_told_with_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str], arguments: list[str], said: str,
    ) -> None:  # fmt: skip
        """Exit code 2, one sentence."""
        from golem_tasks.cli import main  # noqa: PLC0415 - in this process, which is quicker

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GOLEM_BROKER_URL", "redis://127.0.0.1:1/0")
        (tmp_path / "folder.txt").mkdir()
        (tmp_path / "a.txt").write_text("a text\n")
        (tmp_path / "a.csv").write_text("text\na text\n")
        (tmp_path / "bad.parquet").write_bytes(b"\x00\xff" * 500)
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert "Traceback" not in err

    def test_a_file_without_texts_is_told_and_is_no_error(self, tmp_path: Path) -> None:
        """An empty file, or a CSV of its header alone; binary lines fail one by one."""
        (tmp_path / "empty.txt").touch()
        (tmp_path / "header.csv").write_text("text\n")
        (tmp_path / "binary.txt").write_bytes(bytes(range(128, 256)))
        for name in ("empty.txt", "header.csv"):
            done = golem("classify", "--file", name, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, "golem: there was no text in it.\n")
        done = golem("classify", "--file", "binary.txt", cwd=tmp_path)
        assert done.returncode == 1
        assert "InvalidJob\t-\tThe job is invalid: text isn't UTF-8" in done.stdout


def test_a_client_is_told_of_a_misspelt_variable_before_it_fails() -> None:
    """It would otherwise wonder why its URL isn't the one that can't be reached."""
    done = golem("queue", GOLEM_BROKER_URLL="redis://:hunter2@a/0", GOLEM_CONNECT_TIMEOUT_S="0.1",
                 GOLEM_BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")  # fmt: skip
    first, last = done.stderr.splitlines()
    assert "GOLEM_BROKER_URLL isn't a setting of Golem" in first
    assert "did you mean GOLEM_BROKER_URL?" in first
    assert "can't be reached" in last
    assert "hunter2" not in done.stderr
