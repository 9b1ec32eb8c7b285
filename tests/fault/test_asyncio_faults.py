"""The asyncio client of a worker whose Redis is cut off and restarted."""

import asyncio
from pathlib import Path

import pytest

from golem_tasks import AsyncGolem, ResultTimeout
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, numbered
from tests.support.waiting import wait_until

KEEPS_DATA = True
MANY = 5_000


def channels(server: EmbeddedServer) -> int:
    """Channels somebody is subscribed to, those of workers left out."""
    with server.client() as client:
        return len(client.pubsub_channels("celery-task-meta-*"))  # type: ignore[arg-type]


async def until(server: EmbeddedServer, count: int) -> None:
    """Wait until so many results are subscribed to."""
    await asyncio.to_thread(
        wait_until, lambda: channels(server) == count, f"{count} subscriptions", timeout_s=120
    )


async def test_1_five_thousand_awaits_over_cuts_and_a_restart(
    tmp_path: Path, alone: EmbeddedServer
) -> None:
    """Done: while 5,000 coroutines wait, their subscription is cut, then Redis restarted.

    A worker answers all the time; some waits are given up, and one answer is forgotten.
    Must hold: all others get their own answer, who gives up and who waits in vain is told, and
    no subscription is left.
    """
    patient = load(ClientSettings, broker_url=alone.url, connect_timeout_s=60)
    texts = numbered(MANY)
    async with AsyncGolem(settings=patient) as golem:
        jobs = list(await golem.submit_many(texts))  # each keeps what it has read
        lost = golem.job("nobody-knows")
        waiting = [asyncio.create_task(job.result(timeout=300)) for job in jobs]
        impatient = asyncio.create_task(lost.result(timeout=0.2))
        given_up = asyncio.create_task(golem.job("nor-this").result())
        await until(alone, MANY + 1)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        with pytest.raises(ResultTimeout, match="nobody-knows"):
            await impatient
        await until(alone, MANY)
        with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="64", FAKE_FORWARD_S="0.02") as worker:
            await asyncio.to_thread(wait_until, lambda: len(worker.runs) >= 500, "some answers")
            with alone.client() as client:
                client.client_kill_filter(_type="pubsub")
            await asyncio.to_thread(wait_until, lambda: len(worker.runs) >= 1_500, "more answers")
            await asyncio.to_thread(alone.kill)
            await asyncio.to_thread(alone.start)
            answers = await asyncio.gather(*waiting)
        assert [answer.label for answer in answers] == [expected_label(text) for text in texts]
        assert worker.runs.keys() == set(texts)
        await until(alone, 0)
        assert await golem.forget(jobs[:1]) == 1
        with pytest.raises(ResultTimeout):
            await golem.job(jobs[0].id).result(timeout=0.1)
        assert await jobs[0].result() == answers[0]  # what it has read it keeps
        await until(alone, 0)
