"""The worker as its operator sees it: batches, lanes, settlement, inspection, refusals."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from golem_tasks import Golem, InferenceError, InvalidJob
from golem_tasks._publishing import Delivery
from golem_tasks._redis import broker_server
from golem_tasks._wire import Message
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings
from tests.support.fake_engine import FakeEngine, expected_label
from tests.support.fake_workers import (
    EXPIRES_S,
    FakeWorker,
    check,
    jobs_of,
    producer_for,
    send,
    send_all,
)
from tests.support.waiting import wait_until
from worker.budget_file import BudgetFile


@pytest.fixture
def alone() -> Iterator[EmbeddedServer]:
    """A server nobody else uses."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def app(alone: EmbeddedServer) -> Celery:
    """A stock producer on that server."""
    return producer_for(alone)


def test_a_deep_queue_fills_its_batches(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """With 1,000 jobs waiting, batches hold at least 80 % of the bound on average."""
    texts = [f"text {number}" for number in range(1000)]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="64") as worker:
        check(results, texts)
        wait_until(lambda: sum(worker.dispatches) == 1000, "the last batch's line in the log")
        assert sum(worker.dispatches) / len(worker.dispatches) >= 0.8 * 64
        assert worker.runs == dict.fromkeys(texts, 1)


@pytest.mark.parametrize(
    ("device", "remembered", "expected"),
    [("cuda:0", None, [100]), ("cuda:0", 4000, [100]), ("cpu", None, [65, 35])],
)
def test_a_gpus_dispatch_is_as_large_as_its_budget_asks(
    tmp_path: Path,
    alone: EmbeddedServer,
    app: Celery,
    device: str,
    remembered: int | None,
    expected: list[int],
) -> None:
    """A hundred texts of 502 tokens: a GPU's 80,000 hold them all, a CPU has the 32,768 it had.

    So they do where memory was short in an earlier run: it may be there again in this one.
    """
    info = FakeEngine(device=device).info
    BudgetFile(str(tmp_path / "state"), "ceilings", info).store(remembered)
    texts = [f"{number:4} {'words ' * 333}".ljust(2003, ".") for number in range(100)]
    results = send_all(app, texts)
    env = {"FAKE_DEVICES": device, "FAKE_TOKEN_BUDGET": "20000", "GOLEM_PROCESSES": "1"}
    with FakeWorker(tmp_path, alone, **env) as worker:
        check(results, texts)
        wait_until(lambda: sum(worker.dispatches) == 100, "the last batch's line in the log")
        assert worker.dispatches == expected
        with Golem(settings=ClientSettings(broker_url=alone.url)) as golem:
            wait_until(lambda: golem.backlog().workers, "the worker to publish its figures")
            [figures] = golem.backlog().workers
    assert (figures.token_budget, figures.token_ceiling) == (remembered or 20_000, 20_000)


def test_a_job_the_producer_sent_twice_is_computed_once(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """A connection broke before Redis's reply: the copy that follows waits beside the first."""
    with Golem(settings=ClientSettings(broker_url=alone.url)) as golem, alone.client() as client:
        jobs = golem.submit_many([f"text {number}" for number in range(40)])
        raw = client.lrange("golem", 0, -1)
        delivery = Delivery(broker_server(golem.settings), [])
        delivery.begin([Message("any", "golem", each.decode(), 1) for each in raw])
        delivery.account([])  # no reply came
        client.lpush("golem", *(message.payload for message in delivery.todo))
        with FakeWorker(tmp_path, alone) as worker:
            assert [job.result(60).label for job in jobs] == [
                expected_label(f"text {number}") for number in range(40)
            ]
            wait_until(lambda: not client.exists("golem", "unacked"), "all to be acknowledged")
            assert worker.runs == {f"text {number}": 1 for number in range(40)}


def test_a_lone_job_is_not_kept_waiting_for_company(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """An idle worker runs each job by itself when the next comes only after its answer."""
    with FakeWorker(tmp_path, alone) as worker:
        for number in range(5):
            check([send(app, f"lone {number}")], [f"lone {number}"])
        wait_until(lambda: len(worker.dispatches) == 5, "the last batch's line in the log")
        assert worker.dispatches == [1] * 5


def test_jobs_that_come_while_the_model_is_busy_share_the_next_batch(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """While the only process is busy, what arrives is collected into one batch."""
    go = tmp_path / "go"
    with FakeWorker(tmp_path, alone) as worker:
        first = send(app, f"until:{go}")
        wait_until(lambda: jobs_of(app, "active"), "the first to start")
        texts = [f"text {number}" for number in range(40)]
        results = send_all(app, texts)
        wait_until(lambda: len(jobs_of(app, "reserved")) == 40, "all to be buffered")
        go.touch()
        check(results, texts)
        first.get(timeout=60)
        wait_until(lambda: sum(worker.dispatches) == 41, "the last batch's line in the log")
        assert worker.dispatches == [1, 40]


def test_the_interactive_queue_goes_before_bulk(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Bulk jobs get what interactive ones leave, though they came first."""
    bulk = [f"bulk {number}" for number in range(20)]
    urgent = [f"urgent {number}" for number in range(20)]
    results = send_all(app, bulk, queue="golem.bulk") + send_all(app, urgent)
    with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="10") as worker:
        check(results, bulk + urgent)
        order = [text.split()[0] for text in worker.runs]
    assert order == ["urgent"] * 20 + ["bulk"] * 20


def test_an_interactive_job_waits_for_what_is_in_flight_and_for_nothing_else(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """With a full dispatch of bulk jobs buffered, all of them old, it goes with the next one."""
    go = tmp_path / "go"
    bulk, urgent = [f"bulk {number}" for number in range(40)], ["urgent 0", "urgent 1"]
    with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="8", GOLEM_MAX_AGE_MS="1") as worker:
        first = send(app, f"until:{go}")
        wait_until(lambda: jobs_of(app, "active"), "the first to start")
        results = send_all(app, bulk, queue="golem.bulk")
        wait_until(lambda: len(jobs_of(app, "reserved")) == 8, "a dispatch to be buffered")
        results += send_all(app, urgent)
        wait_until(lambda: len(jobs_of(app, "reserved")) == 10, "both to be here as well")
        with alone.client() as client:
            assert client.llen("golem.bulk") == 32
        go.touch()
        check([first, *results], [f"until:{go}", *bulk, *urgent])
        wait_until(lambda: sum(worker.dispatches) == 43, "the last batch's line in the log")
        # Whether the next full one is here in time is decided by what is quicker, Redis or a model.
        assert worker.dispatches[:2] == [1, 8]
        assert max(worker.dispatches) == 8
        passes = [line.split("\t")[1:] for line in worker.runs_file.read_text().splitlines()]
        assert set(urgent) <= set(passes[1])


def test_one_failing_job_leaves_its_batch_mates_alone(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Of 64 jobs, the invalid one, the one the model raises on and no other fail."""
    texts = [f"text {number}" for number in range(62)]
    good = send_all(app, texts)
    invalid, raising = send(app, "\0"), send(app, "raise:boom")
    with FakeWorker(tmp_path, alone):
        check(good, texts)
        with pytest.raises(InvalidJob, match="NUL"):
            invalid.get(timeout=60)
        with pytest.raises(InferenceError, match="boom") as caught:
            raising.get(timeout=60)
        assert caught.value.stage == "forward"


def test_buffered_jobs_obey_revoke_and_expires(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """What is revoked or expires in the buffer is never computed; its mates are."""
    go = tmp_path / "go"
    with FakeWorker(tmp_path, alone) as worker:
        busy = send(app, f"until:{go}")
        wait_until(lambda: jobs_of(app, "active"), "the first to start")
        revoked, expiring = send(app, "revoked"), list[AsyncResult]()
        kept = send_all(app, ["kept one", "kept two"])

        def buffered() -> bool:
            # One that comes late has expired on its way there: then the next one is tried.
            if not expiring or expiring[-1].state == "REVOKED":
                expiring.append(send(app, "expired", expires=EXPIRES_S))
            reserved = {job["id"] for job in jobs_of(app, "reserved")}
            return {revoked.id, *(each.id for each in kept), expiring[-1].id} <= reserved

        wait_until(buffered, "them to be buffered")
        asked = {"destination": ["w1@test"], "reply": True, "timeout": 10}
        wait_until(lambda: app.control.revoke(revoked.id, **asked), "the worker's consent")
        over = datetime.now(UTC) + timedelta(seconds=EXPIRES_S)
        wait_until(lambda: datetime.now(UTC) > over, "the second to expire")
        go.touch()
        busy.get(timeout=60)
        check(kept, ["kept one", "kept two"])
        for result, reason in ((revoked, "revoked"), *((each, "expired") for each in expiring)):
            with pytest.raises(TaskRevokedError, match=reason):
                result.get(timeout=60)
        assert worker.runs.keys() == {f"until:{go}", "kept one", "kept two"}


def test_inspect_shows_jobs_as_in_any_celery_worker(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Active lists what is computed, reserved also what is buffered; stats count them."""
    go = tmp_path / "go"
    with FakeWorker(tmp_path, alone):
        busy = send(app, f"until:{go}")
        wait_until(lambda: jobs_of(app, "active"), "the first to start")
        waiting = send(app, "waiting")
        wait_until(
            lambda: waiting.id in [job["id"] for job in jobs_of(app, "reserved")],
            "the second to be reserved",
        )
        # Asked again: a busy worker's reply may come too late.
        active = wait_until(lambda: jobs_of(app, "active"), "its active jobs")
        assert [job["id"] for job in active] == [busy.id]
        go.touch()
        check([waiting], ["waiting"])
        busy.get(timeout=60)
        wait_until(lambda: not jobs_of(app, "active"), "both to be settled")
        inspect = app.control.inspect(destination=["w1@test"], timeout=10)
        stats = wait_until(inspect.stats, "its figures")["w1@test"]
        assert stats["total"] == {"golem.classify": 2}


def test_tasks_that_are_not_ours_run_as_in_any_celery_worker(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """A plain task of an included module runs in the same worker, and fails by its own error."""
    include = ["--include", "tests.support.plain_tasks"]
    with FakeWorker(tmp_path, alone, arguments=include):
        added = [app.send_task("plain.add", (n, 1), queue="golem") for n in range(20)]
        texts = [f"text {number}" for number in range(20)]
        results = send_all(app, texts)
        assert [result.get(timeout=60) for result in added] == list(range(1, 21))
        check(results, texts)
        failing = app.send_task("plain.fail", ("why",), queue="golem")
        with pytest.raises(ValueError, match="why"):
            failing.get(timeout=60)


def test_several_processes_share_the_work(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Two model processes answer one queue, each batch by one of them."""
    texts = [f"text {number}" for number in range(200)]
    results = send_all(app, texts)
    settings = {"GOLEM_PROCESSES": "2", "GOLEM_MAX_ROWS": "10", "FAKE_FORWARD_S": "0.05"}
    with FakeWorker(tmp_path, alone, **settings) as worker:
        check(results, texts)
        pids = {line.split("\t")[0] for line in worker.runs_file.read_text().splitlines()}
        assert pids == {str(pid) for pid in worker.children}
        assert worker.runs == dict.fromkeys(texts, 1)


def test_a_model_that_cannot_be_loaded_ends_the_worker_with_one_sentence(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Exit code 78, the model and the cause named once, and no loop of crashing children."""
    worker = FakeWorker(tmp_path, alone, FAKE_LOAD_ERROR="no such weights").start(wait=False)
    assert worker.wait() == 78
    assert worker.text.count("no such weights") == 1
    assert "golem-mini" in worker.text
    assert "Traceback" not in worker.text


@pytest.mark.parametrize("arguments", [["--pool", "solo"], ["--autoscale", "4,1"]])
def test_a_worker_that_could_not_batch_refuses_to_start(
    tmp_path: Path, alone: EmbeddedServer, arguments: list[str]
) -> None:
    """A pool or an option that breaks batching is refused in one sentence."""
    worker = FakeWorker(tmp_path, alone, arguments=arguments).start(wait=False)
    assert worker.wait() == 1
    assert "golem: " in worker.text
    assert "Traceback" not in worker.text


def test_a_bad_setting_ends_the_start_with_one_sentence(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """The sentence names the setting; the secret in another setting isn't shown."""
    secret = alone.url.replace("redis://", "redis://user:hunter2@")
    settings = {"GOLEM_BROKER_URL": secret, "GOLEM_MAX_ROWS": "many"}
    worker = FakeWorker(tmp_path, alone, **settings).start(wait=False)
    assert worker.wait() == 1
    assert "GOLEM_MAX_ROWS can't be used" in worker.text
    assert "Traceback" not in worker.text
    assert "hunter2" not in worker.text


def test_the_settings_are_logged_with_secrets_masked(tmp_path: Path, alone: EmbeddedServer) -> None:
    """A password reaches neither the settings' line nor any other."""
    with alone.client() as client:
        client.execute_command("ACL", "SETUSER", "ops", "on", ">hunter2", "~*", "&*", "+@all")
    secret = alone.url.replace("redis://", "redis://ops:hunter2@")
    with FakeWorker(tmp_path, alone, GOLEM_BROKER_URL=secret) as worker:
        assert "GOLEM_BROKER_URL=redis://ops:**@" in worker.text
        assert "hunter2" not in worker.text


def test_celerys_own_variables_count_only_where_ours_say_nothing(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """CELERY_BROKER_URL doesn't move a worker whose GOLEM_BROKER_URL names a Redis."""
    elsewhere = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "bogus://"}
    with FakeWorker(tmp_path, alone, **elsewhere):
        check([send(app, "here")], ["here"])


def test_the_stock_transport_answers_all_the_same(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """GOLEM_TRANSPORT=stock turns the batched fetch off; batches still form, every job is right."""
    texts = [f"text {number}" for number in range(300)]
    results = send_all(app, texts)
    with FakeWorker(tmp_path, alone, GOLEM_TRANSPORT="stock", FAKE_FORWARD_S="0.1") as worker:
        check(results, texts)
        assert worker.runs == dict.fromkeys(texts, 1)
        wait_until(lambda: sum(worker.dispatches) == 300, "the last batch's line in the log")
        assert max(worker.dispatches) > 1


@pytest.mark.parametrize("texts_per_job", [1, 7, 500])
def test_texts_reach_the_model_in_full_batches_however_they_are_sent(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, texts_per_job: int
) -> None:
    """500 texts in one message, or in 500, or in between: the same few forward passes."""
    texts = [f"text {number}" for number in range(500)]
    jobs = [texts[n : n + texts_per_job] for n in range(0, 500, texts_per_job)]
    results = [app.send_task("golem.classify_many", [job], queue="golem") for job in jobs]
    with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="250") as worker:
        answers = [result.get(timeout=60)["predictions"] for result in results]
        assert [item["label"] for job in answers for item in job] == [
            expected_label(text) for text in texts
        ]
        assert worker.runs == dict.fromkeys(texts, 1)
        assert len(worker.runs_file.read_text().splitlines()) <= 3


def test_with_a_key_prefix_nothing_of_ours_is_outside_it(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Producer and worker share a prefix, and every key in Redis begins with it."""
    prefix = "shop:"
    settings = ClientSettings(broker_url=alone.url, global_keyprefix=prefix)
    with (
        FakeWorker(tmp_path, alone, GOLEM_GLOBAL_KEYPREFIX=prefix),
        Golem(settings=settings) as golem,
        alone.client() as client,
    ):
        jobs = golem.submit_many([f"text {number}" for number in range(50)])
        for number, job in enumerate(jobs):
            assert job.result(timeout=60).label == expected_label(f"text {number}")
        assert {key.decode().partition(":")[0] for key in client.scan_iter()} == {"shop"}
