"""``rediss://``: every part of Golem over TLS, on a server that also asks for certificates."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from golem_tasks import AsyncGolem, BrokerUnavailable, Golem, JobRevoked
from golem_tasks.dead import DeadLetters
from golem_tasks.settings import load
from tests.support.cli import golem as command
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker
from tests.support.redis_servers import PASSWORDS, Certificates, TlsServer
from tests.support.waiting import wait_until
from worker.settings import WorkerSettings

TEXTS = [f"text {number}" for number in range(30)]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The authority everybody trusts."""
    return Certificates(tmp_path_factory.mktemp("certificates with a space"))


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> Iterator[TlsServer]:
    """A server that takes no connection without a certificate."""
    with TlsServer(certificates) as server:
        yield server


@pytest.fixture(scope="module")
def worker(tls: TlsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorker]:
    """A worker that connects by TLS, batched."""
    folder = tmp_path_factory.mktemp("worker")
    with FakeWorker(folder, tls, GOLEM_BROKER_URL=tls.url_of("worker")) as process:
        yield process


def test_the_client_for_threads(tls: TlsServer, worker: FakeWorker) -> None:
    """Submit, wait, cancel and ask."""
    with Golem(tls.url_of("producer")) as golem:
        jobs = golem.submit_many(TEXTS)
        assert [job.result(60).label for job in jobs] == [expected_label(text) for text in TEXTS]
        later = golem.submit("never mind", countdown_s=600)
        assert later.cancel()
        with pytest.raises(JobRevoked):
            later.result(60)
        wait_until(lambda: golem.backlog().workers, "the worker to tell of itself")
    assert worker.alive


@pytest.mark.usefixtures("worker")
async def test_the_client_for_asyncio(tls: TlsServer) -> None:
    """Submit and wait, in an event loop."""
    async with AsyncGolem(tls.url_of("producer")) as golem:
        jobs = await golem.submit_many(TEXTS)
        answers = await asyncio.gather(*(job.result(60) for job in jobs))
    assert [answer.label for answer in answers] == [expected_label(text) for text in TEXTS]


@pytest.mark.usefixtures("worker")
def test_a_stock_celery_producer_takes_the_same_url(tls: TlsServer) -> None:
    """Celery documents these very parameters."""
    url = tls.url_of("producer")
    app = Celery(broker=url, backend=url, set_as_current=False)
    result = app.send_task("golem.classify", ["stock"], queue="golem")
    assert result.get(timeout=60)["label"] == expected_label("stock")


@pytest.mark.usefixtures("worker")
def test_the_operators_side(tls: TlsServer) -> None:
    """The health command and the dead letters."""
    url = tls.url_of("operator")
    healthy = command("health", "--timeout", 60, GOLEM_BROKER_URL=url)
    assert healthy.returncode == 0, healthy.stderr
    with DeadLetters(url) as letters:
        assert letters.all() == []


def test_the_worker_is_batched_and_shows_no_password(worker: FakeWorker) -> None:
    """No refusal, no fall back to the stock way of fetching, nothing secret in its log."""
    assert "refuse" not in worker.text
    assert "doesn't tell" not in worker.text
    assert not [word for word in PASSWORDS.values() if word in worker.text]


def faulty(tls: TlsServer, folder: Path) -> dict[str, tuple[str, str]]:
    """URLs that can't work, by what is wrong: each with what the error must say."""
    other = Certificates(folder, "another authority").authority
    return {
        "another authority": (tls.url_of("producer", authority=other), "verify failed"),
        "no client certificate": (tls.url_of("producer", certificate=False), "certificates ("),
        "no such file": (tls.url_of("producer", authority=folder / "none.crt"), "No such file"),
        "no TLS": (tls.url_of("producer").partition("?")[0].replace("rediss", "redis"), "reached"),
    }


FAULTS = ["another authority", "no client certificate", "no such file", "no TLS"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_wrong_is_said_in_one_sentence(
    tls: TlsServer, tmp_path: Path, fault: str
) -> None:
    """Publishing and asking fail with cause and remedy; the password isn't in it."""
    url, said = faulty(tls, tmp_path)[fault]
    settings = load(WorkerSettings, broker_url=url, connect_timeout_s=3)
    with Golem(settings=settings) as golem:
        async with AsyncGolem(settings=settings) as agolem:
            # Together, so that the limit may be one that a stalled machine keeps as well.
            raised = await asyncio.gather(
                asyncio.to_thread(golem.submit, "lost"),
                asyncio.to_thread(lambda: golem.job("x").state),
                agolem.submit("lost"),
                return_exceptions=True,
            )
    for each in raised:
        assert isinstance(each, BrokerUnavailable)
        error = str(each)
        assert said in error
        assert "GOLEM_BROKER_URL" in error
        assert "\n" not in error
        assert PASSWORDS["producer"] not in error
        assert "p%40ss" not in error


def test_a_worker_that_trusts_another_authority_says_so(tls: TlsServer, tmp_path: Path) -> None:
    """It waits for its Redis as for one that is away, and its log has the cause and no password."""
    other = Certificates(tmp_path, "another authority").authority
    url = tls.url_of("worker", authority=other)
    process = FakeWorker(tmp_path, tls, GOLEM_BROKER_URL=url).start(wait=False)
    try:
        wait_until(lambda: "certificate verify failed" in process.text, "the reason in the log")
        assert "Redis at rediss://worker:**@" in process.text
        assert not [word for word in ("p%40ss", PASSWORDS["worker"]) if word in process.text]
    finally:
        process.stop()
