"""The synchronous client on a real server; a thread answers in a worker's place."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
import pytest
from celery import states
from celery.exceptions import TaskRevokedError
from celery.signals import before_task_publish

from golem_tasks import (
    BrokerUnavailable,
    FailedItem,
    Golem,
    InferenceError,
    InvalidJob,
    JobError,
    JobExpired,
    JobRevoked,
    Prediction,
    ResultTimeout,
    SubmitIncomplete,
    TextTooLong,
)
from golem_tasks.contract import SENT_AT_HEADER
from golem_tasks.embedded import EmbeddedServer, free_port
from golem_tasks.settings import ClientSettings, load
from tests.support.answers import Answerer, Answers, body, messages, prediction
from tests.support.waiting import wait_until

SECRET = "hunter2-hunter2"  # noqa: S105 - nobody's
HALF_WAY_BYTES = 2_000_000  # of an append-only file; a job takes some 800


@pytest.fixture
def golem(server: EmbeddedServer) -> Iterator[Golem]:
    """A client of the emptied server."""
    with Golem(server.url) as client:
        yield client


@pytest.fixture
def answers(server: EmbeddedServer) -> Iterator[Answers]:
    """Stores results as a worker does."""
    store = Answers(server)
    yield store
    store.close()


def subscriptions(server: EmbeddedServer) -> int:
    """Channels somebody is subscribed to."""
    with server.client() as client:
        return len(client.pubsub_channels())


def quick(server_url: str, **settings: Any) -> ClientSettings:
    """Settings with short patience."""
    return load(ClientSettings, broker_url=server_url, connect_timeout_s=0.3, **settings)


def patient(server_url: str, **settings: Any) -> ClientSettings:
    """Settings for a server that is there, or will be, however busy the machine is."""
    return load(ClientSettings, broker_url=server_url, connect_timeout_s=60, **settings)


# Submitting


def test_a_submitted_job_is_the_message_a_stock_celery_client_sends(
    server: EmbeddedServer, golem: Golem
) -> None:
    """Same list, same headers and properties, same body; ours adds the time it was sent."""
    stock = celery.Celery(set_as_current=False, broker=server.url)
    stock.send_task("golem.classify", ["fine", "pair"], {"top_k": 1}, queue="golem")
    golem.submit("fine", "pair", top_k=1)
    with server.client() as client:
        theirs, ours = messages(client)
    assert body(ours) == body(theirs)
    assert ours["headers"].keys() - theirs["headers"].keys() == {SENT_AT_HEADER}
    assert not theirs["headers"].keys() - ours["headers"].keys()
    assert ours["properties"].keys() >= theirs["properties"].keys()
    for name in ("delivery_info", "delivery_mode", "body_encoding", "priority"):
        assert ours["properties"][name] == theirs["properties"][name], name
    assert ours["content-type"] == "application/json"


def test_no_text_stands_in_what_a_worker_logs(server: EmbeddedServer, golem: Golem) -> None:
    """argsrepr, which workers log and Flower shows, counts instead of quoting."""
    golem.submit("my private letter", "and its answer")
    golem.submit_batch(["my private letter", "another"])
    with server.client() as client:
        shown = [message["headers"]["argsrepr"] for message in messages(client)]
    assert shown == ["<1 text, 31 characters>", "<2 texts, 24 characters>"]


def test_lane_priority_expiry_and_countdown_go_with_the_message(
    server: EmbeddedServer, golem: Golem
) -> None:
    """Bulk jobs go to the bulk lane, and a priority to its own list."""
    golem.submit("a", bulk=True, priority=5, expires_s=60, countdown_s=5)
    with server.client() as client:
        (message,) = messages(client, "golem.bulk\x06\x163")
    assert message["properties"]["priority"] == 5
    assert message["headers"]["eta"] < message["headers"]["expires"]
    assert golem.queue_length() == golem.queue_length("golem.bulk") == 1
    assert golem.queue_length("golem") == 0


@pytest.mark.parametrize(
    ("text", "options", "field"),
    [
        ("", {}, "text"),
        ("a", {"topk": 3}, "topk"),
        ("a", {"priority": 10}, "priority"),
        ("a", {"expires_s": 0}, "expires_s"),
        ("a", {"countdown_s": float("nan")}, "countdown_s"),
        ("a", {"task_id": "two words"}, "task_id"),
    ],
)
def test_what_breaks_the_contract_is_refused_at_once_and_nothing_is_sent(
    server: EmbeddedServer, golem: Golem, text: str, options: Any, field: str
) -> None:
    """The producer learns from the call what another would learn from the job's FAILURE."""
    with pytest.raises(InvalidJob) as caught:
        golem.submit(text, **options)
    assert caught.value.field == field
    with server.client() as client:
        assert client.dbsize() == 0


def test_one_bad_text_among_many_means_nothing_is_sent(
    server: EmbeddedServer, golem: Golem
) -> None:
    """Even the last of more than one pipeline."""
    with pytest.raises(InvalidJob, match=r"texts\[1200\] is empty"):
        golem.submit_many(["fine"] * 1_200 + [""])
    with server.client() as client:
        assert client.dbsize() == 0
    assert list(golem.submit_many([])) == []
    assert golem.queue_length() == 0


def test_a_message_over_the_limit_is_refused_before_anything_is_sent(
    server: EmbeddedServer,
) -> None:
    """Bytes count, not characters: an escaped emoji is twelve."""
    with Golem(settings=patient(server.url, max_message_bytes=2_048)) as golem:
        with pytest.raises(InvalidJob, match="bytes as a message, 2048 are allowed"):
            golem.submit_many(["fine"] * 600 + ["\N{BROOM}" * 200])
        assert golem.queue_length() == 0
    with (
        Golem(settings=patient(server.url, max_text_chars=10)) as golem,
        pytest.raises(TextTooLong),
    ):
        golem.submit("x" * 11)


def test_many_jobs_keep_the_order_of_their_texts(server: EmbeddedServer, golem: Golem) -> None:
    """More than one pipeline; the queue's order is the list's, and each job has its own id."""
    texts = [f"text {number}" for number in range(1_234)]
    jobs = golem.submit_many(texts, bulk=True)
    with server.client() as client:
        sent = messages(client, "golem.bulk")
    assert [body(message)[0][0] for message in sent] == texts
    assert [message["headers"]["id"] for message in sent] == [job.id for job in jobs]
    assert len({job.id for job in jobs}) == len(jobs)


def test_clients_of_two_brokers_live_in_one_process(server: EmbeddedServer) -> None:
    """Nothing global is touched: neither Celery's current app nor the other client."""
    before = celery.current_app._get_current_object()
    with EmbeddedServer() as other, Golem(server.url) as one, Golem(other.url) as two:
        one.submit("a")
        two.submit_many(["b", "c"])
        assert (one.queue_length(), two.queue_length()) == (1, 2)
    assert celery.current_app._get_current_object() is before


def test_celerys_own_environment_is_not_ours(
    server: EmbeddedServer, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application's CELERY_BROKER_URL would otherwise win over any configuration."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("CELERY_BROKER_URL", nowhere)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "rpc://")
    with Golem(server.url) as golem:
        job = golem.submit("a")
        answers.store(job.id, prediction("A"))
        assert job.result(timeout=10).label == "A"
        assert golem.submit("b").cancel()


def test_keys_carry_the_global_prefix(server: EmbeddedServer) -> None:
    """Queue, result key and channel alike, as Celery does it."""
    settings = load(ClientSettings, broker_url=server.url, global_keyprefix="mine:")
    store = Answers(server, prefix="mine:")
    with Golem(settings=settings) as golem, server.client() as client:
        job = golem.submit("a")
        assert client.keys() == [b"mine:golem"]
        assert golem.queue_length() == 1
        store.store(job.id, prediction("A"))
        assert job.result(timeout=10).label == "A"
    store.close()


# Waiting


def test_an_answer_comes_back_as_a_prediction(server: EmbeddedServer, golem: Golem) -> None:
    """classify, a job's result, and a batch's items in order."""
    with Answerer(server):
        assert golem.classify("one", timeout=60).label == "one"
        many = golem.submit_batch(["a", "b"]).result(timeout=60)
    assert [item.label for item in many.predictions if isinstance(item, Prediction)] == ["a", "b"]


def test_jobs_are_yielded_as_they_complete(golem: Golem, answers: Answers) -> None:
    """Not in the order they were submitted, each once, those already done included."""
    first, second, third = golem.submit_many(["a", "b", "c"])
    answers.store(second.id, prediction("b"))
    completed = golem.as_completed([first, second, third], timeout=60)
    assert next(completed) is second
    answers.store(third.id, prediction("c"))
    assert next(completed) is third
    answers.store(first.id, prediction("a"))
    assert list(completed) == [first]
    assert {job.result().label for job in golem.as_completed([first, second])} == {"a", "b"}


def test_an_answer_is_found_whenever_it_is_stored(server: EmbeddedServer, golem: Golem) -> None:
    """Before, between and after subscription and confirmation: 300 waits race with the answer."""
    with Answerer(server), ThreadPoolExecutor(8) as threads:
        labels = list(threads.map(lambda n: golem.classify(f"{n}", timeout=60).label, range(300)))
    assert labels == [str(number) for number in range(300)]
    assert subscriptions(server) == 0


def test_a_job_is_picked_up_by_its_id(server: EmbeddedServer, golem: Golem) -> None:
    """From another client, as from another process or after a restart."""
    job = golem.submit("a", task_id="order-17")
    assert (job.state, job.done) == ("PENDING", False)
    with Answerer(server), Golem(server.url) as other:
        assert other.job("order-17").result(timeout=60).label == "a"  # type: ignore[union-attr]
    assert (job.state, job.done) == ("SUCCESS", True)


def test_a_wait_that_times_out_names_id_state_and_queue_length(golem: Golem) -> None:
    """What a person needs to decide what to do: wait on, or look after the worker."""
    golem.submit("another", priority=9)
    job = golem.submit("a")
    with pytest.raises(ResultTimeout) as caught:
        job.result(timeout=0.05)
    error = caught.value
    assert (error.job_id, error.state, error.queue_length) == (job.id, "PENDING", 2)
    assert job.id in str(error)
    assert "2 jobs wait in the queue" in str(error)


@pytest.mark.parametrize(
    ("result", "state", "raised", "said"),
    [
        (InvalidJob.because("text", "is empty"), states.FAILURE, InvalidJob, "text is empty"),
        (InferenceError.at("forward", "nan"), states.FAILURE, InferenceError, "nan"),
        (TaskRevokedError("expired"), states.REVOKED, JobExpired, "expired before"),
        (TaskRevokedError("revoked"), states.REVOKED, JobRevoked, "cancelled"),
        (TaskRevokedError("terminated"), states.REVOKED, JobRevoked, "cancelled"),
        (KeyError("golem.classify"), states.FAILURE, JobError, "KeyError"),
        ({"label": "A"}, states.SUCCESS, JobError, "isn't a prediction"),
        ([1, 2], states.SUCCESS, JobError, "isn't a prediction"),
    ],
)
def test_a_job_that_ended_badly_raises_what_happened(
    golem: Golem, answers: Answers, result: Any, state: str, raised: type[JobError], said: str
) -> None:
    """The class the worker raised, where it is one of ours; always a JobError."""
    job = golem.submit("a")
    answers.store(job.id, result, state)
    for _ in range(2):
        with pytest.raises(JobError, match=said) as caught:
            job.result(timeout=10)
        assert type(caught.value) is raised
    assert job.done


def test_a_result_nobody_can_read_fails_its_job_alone(
    server: EmbeddedServer, golem: Golem, answers: Answers
) -> None:
    """A foreign record under one key doesn't break a wait for many."""
    bad, good = golem.submit_many(["a", "b"])
    with server.client() as client:
        client.set(f"celery-task-meta-{bad.id}", b"\x80\x04not json", ex=60)
    answers.store(good.id, prediction("b"))
    assert {job.id for job in golem.as_completed([bad, good], timeout=10)} == {bad.id, good.id}
    assert good.result().label == "b"
    with pytest.raises(JobError, match="can't be read"):
        bad.result()


def test_no_time_at_all_still_finds_what_is_stored(golem: Golem, answers: Answers) -> None:
    """A time-out of 0 asks once."""
    job = golem.submit("a")
    with pytest.raises(ResultTimeout):
        job.result(timeout=0)
    answers.store(job.id, prediction("a"))
    assert job.result(timeout=0).label == "a"


def test_what_json_can_not_carry_is_an_invalid_job(golem: Golem) -> None:
    """Refused here, whatever the encoder says about it."""
    with pytest.raises(InvalidJob, match="can't be encoded as JSON"):
        golem.submit_batch(["fine", object()])  # type: ignore[list-item]
    assert golem.queue_length() == 0


def test_celerys_publish_signals_are_sent(server: EmbeddedServer, golem: Golem) -> None:
    """What traces or tags an application's messages sees ours too."""

    def tag(headers: dict[str, Any], **_: Any) -> None:
        headers["traced"] = "yes"

    before_task_publish.connect(tag, sender="golem.classify")
    try:
        golem.submit("a")
    finally:
        before_task_publish.disconnect(tag, sender="golem.classify")
    with server.client() as client:
        assert messages(client)[0]["headers"]["traced"] == "yes"


def test_states_before_the_end_are_told_and_waited_through(golem: Golem, answers: Answers) -> None:
    """STARTED and RETRY are no answers."""
    job = golem.submit("a")
    answers.store(job.id, None, states.STARTED)
    assert (job.state, job.done) == ("STARTED", False)
    with pytest.raises(ResultTimeout) as caught:
        job.result(timeout=0.05)
    assert caught.value.state == "STARTED"


def test_nobody_who_only_submits_holds_a_subscription(server: EmbeddedServer, golem: Golem) -> None:
    """200 submits, alone and in bulk; Celery's own client would hold 200 by now."""
    for number in range(100):
        golem.submit(f"{number}")
    golem.submit_many(["a"] * 100)
    with server.client() as client:
        assert client.pubsub_channels() == []
        assert client.client_list(_type="pubsub") == []


def test_a_wait_given_up_leaves_no_subscription(server: EmbeddedServer, golem: Golem) -> None:
    """By its time-out, and by a caller who breaks out of the loop."""
    jobs = golem.submit_many(["a", "b", "c"])
    with pytest.raises(ResultTimeout):
        jobs[0].result(timeout=0.05)
    with Answers(server).closing() as store:
        store.store(jobs[1].id, prediction("b"))
        for job in golem.as_completed(jobs, timeout=60):
            assert job is jobs[1]
            break
    wait_until(lambda: subscriptions(server) == 0, "the subscriptions to end")


def test_a_wait_outlives_its_connections(
    server: EmbeddedServer, golem: Golem, answers: Answers
) -> None:
    """Every connection is cut again and again; all 200 answers are found."""
    jobs = golem.submit_many([f"{number}" for number in range(200)])
    with server.client() as client, ThreadPoolExecutor(1) as threads:
        found = threads.submit(lambda: [job.id for job in golem.as_completed(jobs, timeout=60)])
        for start in range(0, 200, 40):
            wait_until(lambda: subscriptions(server) > 0, "the wait to subscribe")
            client.client_kill_filter(_type="pubsub")
            client.client_kill_filter(_type="normal", skipme=True)
            for job in jobs[start : start + 40]:
                answers.store(job.id, prediction("x"))
        assert sorted(found.result()) == sorted(job.id for job in jobs)


def test_a_wait_outlives_a_restart_of_redis() -> None:
    """With the results on disk, a server that is killed and comes back has them."""
    with EmbeddedServer(appendonly=True) as server, Golem(server.url) as golem:
        job = golem.submit("a")
        with ThreadPoolExecutor(1) as threads:
            found = threads.submit(job.result, 60)
            wait_until(lambda: subscriptions(server) > 0, "the wait to subscribe")
            server.kill()
            server.start()
            with Answers(server).closing() as store:
                store.store(job.id, prediction("a"))
            assert found.result().label == "a"


# Cancelling


def test_a_cancelled_job_is_revoked_for_everybody(server: EmbeddedServer, golem: Golem) -> None:
    """Stored, with a TTL, as Celery stores it: no worker need run at the time."""
    job = golem.submit("a")
    assert job.cancel()
    with pytest.raises(JobRevoked):
        job.result(timeout=10)
    stock = celery.Celery(set_as_current=False, backend=server.url)
    assert stock.AsyncResult(job.id).state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        stock.AsyncResult(job.id).get(timeout=10)
    with server.client() as client:
        assert 0 < client.ttl(f"celery-task-meta-{job.id}") <= 3600  # type: ignore[operator]


def test_a_job_that_has_ended_can_not_be_cancelled(golem: Golem, answers: Answers) -> None:
    """Its answer stays; cancelling twice is still cancelled."""
    done, waiting, started = golem.submit_many(["a", "b", "c"])
    answers.store(done.id, prediction("a"))
    answers.store(started.id, None, states.STARTED)
    assert not done.cancel()
    assert golem.cancel([done, waiting, started]) == 2
    assert waiting.cancel()
    assert done.result(timeout=10).label == "a"


def test_who_waits_learns_of_a_cancellation_at_once(server: EmbeddedServer, golem: Golem) -> None:
    """It is published as any result is."""
    job = golem.submit("a")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(job.result, 60)
        wait_until(lambda: subscriptions(server) > 0, "the wait to subscribe")
        assert golem.job(job.id).cancel()
        with pytest.raises(JobRevoked):
            waiting.result()


# Redis away


def test_a_broker_that_is_not_there_is_one_sentence_without_the_password() -> None:
    """Within the connection's own time limit, and with the remedy."""
    url = f"redis://:{SECRET}@127.0.0.1:{free_port()}/0"
    with Golem(settings=quick(url)) as golem:
        for call in (
            lambda: golem.submit("a"),
            lambda: golem.submit_many(["a"] * 600),
            lambda: golem.job("x").result(timeout=60),
            lambda: golem.job("x").state,
            lambda: golem.job("x").cancel(),
            golem.queue_length,
        ):
            with pytest.raises(BrokerUnavailable, match="can't be reached") as caught:
                call()
            assert not isinstance(caught.value, SubmitIncomplete)
            assert SECRET not in str(caught.value)
            assert "start it, or correct GOLEM_BROKER_URL." in str(caught.value)


def test_a_wrong_password_is_told_as_such() -> None:
    """And the right one works, with an escaped character in it."""
    with EmbeddedServer() as server:
        with server.client() as client:
            client.config_set("requirepass", "p@ss")
        host = f"127.0.0.1:{server.port}/0"
        for login in ("", f":{SECRET}@", f"nobody:{SECRET}@"):
            with (
                Golem(f"redis://{login}{host}") as golem,
                pytest.raises(BrokerUnavailable, match="refused the login") as caught,
            ):
                golem.submit("a")
            assert SECRET not in str(caught.value)
        with Golem(f"redis://:p%40ss@{host}") as golem:
            golem.submit("a")
            assert golem.queue_length() == 1


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_that_is_not_redis_is_told_as_such(greeting: bytes) -> None:
    """One that answers in another protocol, and one that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            kept = []
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    break
                peer.sendall(greeting)
                kept.append(peer)
            for peer in kept:
                peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        said = "isn't Redis" if greeting else "didn't answer in time"
        # Only what says nothing is waited for; who answers may take its time.
        settings = patient(url) if greeting else quick(url)
        with (
            Golem(settings=settings) as golem,
            pytest.raises(BrokerUnavailable, match=said),
        ):
            golem.submit("a")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_full_redis_refuses_loudly_and_says_what_is_in() -> None:
    """LPUSH's reply is the proof: each job is in the queue or listed as not."""
    arguments = ["--maxmemory", "6mb", "--maxmemory-policy", "noeviction"]
    texts = [f"{number} " + "x" * 2_000 for number in range(3_000)]
    with EmbeddedServer(arguments=arguments) as server, Golem(server.url) as golem:
        with pytest.raises(SubmitIncomplete, match="is full") as caught:
            golem.submit_many(texts)
        error = caught.value
        with server.client() as client:
            queued = [message["headers"]["id"] for message in messages(client)]
    assert error.uncertain == []
    assert error.sent == queued
    assert len(error.sent) + len(error.unsent) == len(texts)
    assert not set(error.sent) & set(error.unsent)


def test_a_submit_goes_through_a_restart_of_redis() -> None:
    """The connection from before is dead; the submit finds the server again by itself."""
    with EmbeddedServer(appendonly=True) as server, Golem(settings=patient(server.url)) as golem:
        golem.submit("before")
        server.kill()
        with ThreadPoolExecutor(1) as threads:
            submitting = threads.submit(golem.submit, "after")
            server.start()
            assert submitting.result().id
        assert golem.queue_length() == 2


def test_every_id_of_a_broken_submit_is_accounted_for() -> None:
    """Redis dies half-way: what is listed as sent is in the queue, what isn't is not."""
    texts = [f"text {number}" for number in range(5_000)]
    with EmbeddedServer(appendonly=True) as server:
        settings = load(ClientSettings, broker_url=server.url, connect_timeout_s=2)
        with Golem(settings=settings) as golem:
            assert golem.queue_length() == 0
            # The kernel ends it as its file grows beyond this: past the first pipeline of 500.
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (HALF_WAY_BYTES,) * 2)
            with pytest.raises(SubmitIncomplete) as caught:
                golem.submit_many(texts)
        error = caught.value
        server.shutdown()  # it is gone: only its guard is left
        server.start()
        with server.client() as client:
            queued = {message["headers"]["id"] for message in messages(client)}
    assert len(error.sent) + len(error.unsent) + len(error.uncertain) == len(texts)
    assert set(error.sent) <= queued
    assert queued <= set(error.sent) | set(error.uncertain)
    assert error.sent
    assert error.unsent


def test_an_item_of_a_batch_that_failed_is_told_apart(golem: Golem, answers: Answers) -> None:
    """The texts round a bad one have their answers."""
    job = golem.submit_batch(["a", "", "c"])
    error = {"error": {"type": "InvalidJob", "message": "It is empty."}}
    answers.store(job.id, {"predictions": [prediction("a"), error, prediction("c")]})
    first, second, third = job.result(timeout=10).predictions
    assert isinstance(first, Prediction)
    assert isinstance(second, FailedItem)
    assert isinstance(third, Prediction)


def test_many_threads_share_one_client(server: EmbeddedServer, golem: Golem) -> None:
    """More threads than connections; each has its own answers."""
    began = threading.Barrier(64)

    def work(number: int) -> list[str]:
        began.wait()
        jobs = golem.submit_many([f"{number}-{index}" for index in range(10)])
        return [job.result(timeout=60).label for job in jobs]

    with Answerer(server), ThreadPoolExecutor(64) as threads:
        for number, labels in enumerate(threads.map(work, range(64))):
            assert labels == [f"{number}-{index}" for index in range(10)]
    assert subscriptions(server) == 0


def test_the_time_sent_is_the_producers_clock(server: EmbeddedServer, golem: Golem) -> None:
    """Seconds since the epoch, from which a worker reckons how long a job queued."""
    before = time.time()
    golem.submit("a")
    with server.client() as client:
        (message,) = messages(client)
    assert before <= message["headers"][SENT_AT_HEADER] <= time.time()
