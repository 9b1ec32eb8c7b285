"""A stock Celery producer and a Golem worker: every way of sending works as Celery documents it.

The engine is the fake one, whose answer to a text is known beforehand; everything else is real.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature
from celery.exceptions import ChordError, TaskRevokedError

from golem_tasks import (
    AsyncGolem,
    FailedItem,
    Golem,
    InferenceError,
    InvalidJob,
    JobExpired,
    JobRevoked,
    Prediction,
    TextTooLong,
)
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, jobs_of, producer_for
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def app(live_server: EmbeddedServer) -> Celery:
    """A stock producer that never imports our clients."""
    return producer_for(live_server)


def classify(app: Celery, *args: Any, **kwargs: Any) -> Signature:
    """Our task by signature, as another application's code names it."""
    return app.signature("golem.classify", args=args, kwargs=kwargs, queue="golem")


def own(app: Celery, name: str, *args: Any) -> Signature:
    """A task of the producer's own worker."""
    return app.signature(f"callbacks.{name}", args=args, queue="celery")


def noted(server: EmbeddedServer, key: str) -> list[str]:
    """What callbacks have noted under a key."""
    with server.client() as client:
        return [value.decode() for value in client.lrange(key, 0, -1)]  # type: ignore[union-attr]


def test_send_task_and_get(app: Celery) -> None:
    """One line, no package of ours: a plain dictionary of the contract's shape comes back."""
    answer = app.send_task("golem.classify", ["text"], queue="golem").get(timeout=60)
    assert answer["label"] == expected_label("text")
    assert Prediction.model_validate(answer).scores[answer["label"]] == answer["score"]


def test_keyword_arguments_and_the_bulk_lane(app: Celery) -> None:
    """Options as keywords; classify_many through the other queue."""
    options = {"text": "by name", "top_k": 1, "logits": True}
    answer = app.send_task("golem.classify", kwargs=options, queue="golem").get(timeout=60)
    assert list(answer["scores"]) == [expected_label("by name")]
    assert len(answer["logits"]) == 3
    sent = app.send_task("golem.classify_many", [["a", "", "c"]], queue="golem.bulk")
    first, second, third = sent.get(timeout=60)["predictions"]
    assert (first["label"], third["label"]) == (expected_label("a"), expected_label("c"))
    assert second["error"]["type"] == "InvalidJob"


def test_a_failed_job_raises_our_class(app: Celery) -> None:
    """The producer that has our package catches what the worker raised, data included."""
    with pytest.raises(InvalidJob) as caught:
        app.send_task("golem.classify", [""], queue="golem").get(timeout=60)
    assert (caught.value.field, caught.value.reason) == ("text", "is empty")
    with pytest.raises(InferenceError, match="why not"):
        app.send_task("golem.classify", ["raise:why not"], queue="golem").get(timeout=60)


def test_a_producer_without_our_package_reads_the_same_sentence(
    live_server: EmbeddedServer,
) -> None:
    """Celery makes up a class of the same name; it needn't be importable."""
    code = f"""
import sys
from celery import Celery
app = Celery(broker={live_server.url!r}, backend={live_server.url!r})
try:
    app.send_task("golem.classify", [""], queue="golem").get(timeout=60)
except Exception as error:
    print(type(error).__name__, error.args[0], "golem_tasks" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "InvalidJob The job is invalid: text is empty. False"


def test_a_group_keeps_its_order(app: Celery) -> None:
    """Fifty jobs, fifty answers, each in its place."""
    texts = [f"group {number}" for number in range(50)]
    answers = group(classify(app, text) for text in texts).apply_async().get(timeout=60)
    assert [answer["label"] for answer in answers] == [expected_label(text) for text in texts]


@pytest.mark.usefixtures("stock_worker")
def test_a_chain_goes_through_us(app: Celery) -> None:
    """A producer's task before and another after; each passes its result on."""
    steps = chain(own(app, "write", "winter"), classify(app), own(app, "label"))
    assert steps.apply_async().get(timeout=60) == expected_label("a text about winter")


@pytest.mark.usefixtures("stock_worker")
def test_a_chord_calls_its_body_with_every_answer(app: Celery) -> None:
    """Two hundred jobs, batched as they come; the body runs once they are all answered."""
    texts = [f"chord {number}" for number in range(200)]
    body = own(app, "count")
    counted = chord((classify(app, text) for text in texts), body).apply_async().get(timeout=120)
    assert counted == Counter(expected_label(text) for text in texts)


@pytest.mark.usefixtures("stock_worker")
def test_a_chord_with_a_failed_member_fails(app: Celery) -> None:
    """Its body isn't called, and the error names the member's."""
    header = [classify(app, "fine"), classify(app, ""), classify(app, "fine too")]
    result = chord(header, own(app, "count")).apply_async()
    wait_until(lambda: result.state == "FAILURE", "the chord to fail")
    assert isinstance(result.result, ChordError)
    assert "InvalidJob" in str(result.result)


@pytest.mark.usefixtures("stock_worker")
def test_link_and_link_error_are_called_once_each_where_they_belong(
    app: Celery, live_server: EmbeddedServer
) -> None:
    """Success calls the link with the answer, failure the errback with the job's id."""
    key = f"noted-{uuid4()}"
    callbacks = {"link": own(app, "note", key), "link_error": own(app, "note_failure", key)}
    classify(app, "linked").apply_async(**callbacks).get(timeout=60)
    wait_until(lambda: noted(live_server, key), "the callback")
    bad = classify(app, "").apply_async(**callbacks)
    with pytest.raises(InvalidJob):
        bad.get(timeout=60)
    wait_until(lambda: len(noted(live_server, key)) > 1, "the errback")
    # One more job through both workers: a second call of either would have come by now.
    chain(classify(app, "after"), own(app, "label")).apply_async().get(timeout=60)
    assert noted(live_server, key) == [expected_label("linked"), f"{bad.id} failed"]


def test_a_countdown_is_waited_for(app: Celery, worker: FakeWorker) -> None:
    """It isn't computed before its time; one sent later without a countdown is."""
    name = uuid4().hex
    due = datetime.now(UTC) + timedelta(seconds=2)
    late = classify(app, f"late {name}").apply_async(eta=due)
    soon = classify(app, f"soon {name}").apply_async()
    assert soon.get(timeout=60)["label"] == expected_label(f"soon {name}")
    assert late.get(timeout=60)["label"] == expected_label(f"late {name}")
    assert late.date_done > due
    ran = [text for text in worker.runs if name in text]  # in the order they first ran
    # Unless the machine stood still until both could be computed.
    assert ran == [f"soon {name}", f"late {name}"] or soon.date_done > due
    assert len(ran) == 2


def test_an_expired_job_is_revoked_and_never_computed(
    app: Celery, live_server: EmbeddedServer, worker: FakeWorker
) -> None:
    """Both kinds of producer are told; ours by its own class."""
    text = f"expired {uuid4()}"
    sent = classify(app, text).apply_async(expires=-1)
    with pytest.raises(TaskRevokedError, match="expired"):
        sent.get(timeout=60)
    with Golem(live_server.url) as golem, pytest.raises(JobExpired):
        golem.job(sent.id).result(timeout=60)
    assert text not in worker.runs


def test_a_retry_policy_of_the_publish_is_accepted(app: Celery) -> None:
    """Celery's own publish options have no effect on the job."""
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}
    sent = classify(app, "policy").apply_async(retry=True, retry_policy=policy, priority=3)
    assert sent.get(timeout=60)["label"] == expected_label("policy")


def test_an_ignored_result_is_computed_and_not_stored(
    app: Celery, live_server: EmbeddedServer, worker: FakeWorker
) -> None:
    """For who only wants the link, or the log."""
    text = f"ignored {uuid4()}"
    sent = classify(app, text).apply_async(ignore_result=True)
    wait_until(lambda: text in worker.runs, "the job to be computed")
    classify(app, "after").apply_async().get(timeout=60)
    with live_server.client() as client:
        assert client.get(f"celery-task-meta-{sent.id}") is None


@contextmanager
def occupied(app: Celery, folder: Path) -> Iterator[None]:
    """The model is busy until the block ends: nothing that is sent in it is computed before."""
    gate = folder / "gate"
    blocker = classify(app, f"until:{gate}").apply_async()
    try:
        wait_until(lambda: blocker.id in [job["id"] for job in jobs_of(app, "active")], "it to run")
        yield
    finally:
        gate.touch()
    blocker.get(timeout=60)


def test_a_revoked_job_is_not_computed(app: Celery, worker: FakeWorker, tmp_path: Path) -> None:
    """Celery's own revoke, while the worker holds the job for its countdown."""
    text = f"revoked {uuid4()}"
    with occupied(app, tmp_path):
        sent = classify(app, text).apply_async(countdown=2)
        asked = {"destination": ["w1@test"], "reply": True, "timeout": 10}
        wait_until(lambda: app.control.revoke(sent.id, **asked), "the worker's consent")
    with pytest.raises(TaskRevokedError):
        sent.get(timeout=60)
    assert text not in worker.runs


# Our own clients, at the same worker


def test_our_client_and_a_stock_one_share_a_worker(live_server: EmbeddedServer) -> None:
    """Single, many and batched jobs in both lanes, every answer compared."""
    texts = [f"ours {number}" for number in range(300)]
    with Golem(live_server.url) as golem:
        one = golem.classify("ours", timeout=60, logits=True)
        assert one.label == expected_label("ours")
        assert one.timing.queued_ms > 0
        jobs = golem.submit_many(texts[:200], bulk=True) + golem.submit_many(texts[200:])
        done = {job.id: job.result().label for job in golem.as_completed(jobs, timeout=120)}
        assert [done[job.id] for job in jobs] == [expected_label(text) for text in texts]
        items = golem.submit_batch([*texts, ""]).result(timeout=60).predictions
        labels = [item.label for item in items if isinstance(item, Prediction)]
        assert labels == [expected_label(text) for text in texts]
        assert isinstance(items[-1], FailedItem)


async def test_our_asyncio_client_at_a_real_worker(live_server: EmbeddedServer) -> None:
    """Many awaits at once, and completion order, every answer compared."""
    texts = [f"await {number}" for number in range(300)]
    async with AsyncGolem(live_server.url) as golem:
        jobs = await golem.submit_many(texts)
        done = {job.id: await job.result() async for job in golem.as_completed(jobs, timeout=120)}
        labels = [done[job.id].label for job in jobs]
        assert labels == [expected_label(text) for text in texts]
        with pytest.raises(InferenceError, match="no reason"):
            await golem.classify("raise:no reason", timeout=60)


def test_a_job_cancelled_while_it_waits_is_not_computed(
    app: Celery, live_server: EmbeddedServer, worker: FakeWorker, tmp_path: Path
) -> None:
    """Held by a worker for its countdown; one sent after it, and due later, is computed."""
    name = uuid4().hex
    with Golem(live_server.url) as golem:
        with occupied(app, tmp_path):
            cancelled = golem.submit(f"cancelled {name}", countdown_s=1)
            kept = golem.submit(f"kept {name}", countdown_s=2)
            assert cancelled.cancel()
        assert kept.result(timeout=60).label == expected_label(f"kept {name}")
        with pytest.raises(JobRevoked):
            cancelled.result()
    assert [text for text in worker.runs if name in text] == [f"kept {name}"]


def test_a_job_cancelled_while_no_worker_runs_is_not_computed_by_the_next(
    tmp_path: Path,
) -> None:
    """The cancellation is stored, not only broadcast to who listens."""
    with EmbeddedServer() as server, Golem(server.url) as golem:
        jobs = golem.submit_many([f"text {number}" for number in range(10)])
        assert golem.cancel(jobs[::2]) == 5
        with FakeWorker(tmp_path, server) as worker:
            for job in jobs[1::2]:
                job.result(timeout=60)
            for job in jobs[::2]:
                with pytest.raises(JobRevoked):
                    job.result(timeout=60)
            wait_until(lambda: golem.queue_length() == 0, "the queue to be empty")
            assert worker.runs == Counter(f"text {number}" for number in range(1, 10, 2))


@pytest.mark.usefixtures("stock_worker")
def test_no_text_of_ours_stands_in_a_workers_log(
    live_server: EmbeddedServer, worker: FakeWorker, stock_worker: WorkerProcess
) -> None:
    """Neither received, nor answered, nor failed."""
    secret = uuid4().hex
    with Golem(live_server.url) as golem:
        golem.classify(f"private {secret}", timeout=60)
        golem.submit_batch([f"private {secret}"] * 3).result(timeout=60)
        with pytest.raises(TextTooLong):
            golem.classify(f"private {secret} " * 600, timeout=60, on_long="error")
    assert secret not in worker.text + stock_worker.text
