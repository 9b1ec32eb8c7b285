"""A user's project: what each verb returns is known to a type checker, without a cast."""

from collections.abc import Sequence
from typing import assert_type

from golem_tasks import (
    AsyncBulk,
    AsyncGolem,
    AsyncJob,
    Bulk,
    FailedItem,
    Golem,
    InvalidJob,
    Job,
    JobError,
    Prediction,
    Predictions,
    Progress,
    SubmitIncomplete,
    SubmitOptions,
)


def threads(golem: Golem, options: SubmitOptions) -> str:
    """Return the field at fault, or the label."""
    job = golem.submit("text", top_k=1, on_long="window")
    assert_type(job, Job[Prediction])
    assert_type(job.result(timeout=3).scores, dict[str, float])
    assert_type(job.state, str)
    for ended in golem.as_completed(golem.submit_many(["a", "b"], bulk=True), timeout=3):
        assert_type(ended, Job[Prediction])
    bulk = golem.submit_many(["a", "b"])
    assert_type(bulk, Bulk)
    jobs: Sequence[Job[Prediction]] = bulk
    assert_type(bulk[0], Job[Prediction])
    assert_type(bulk[:1] + list(jobs), list[Job[Prediction]])
    for ended in bulk.completed():
        assert_type(ended, Job[Prediction])
    for answer in golem.bulk(bulk.id).results(timeout=3):
        assert_type(answer, Prediction | JobError)
    assert_type(bulk.eta_s, float | None)
    assert_type(bulk.progress(), Progress)
    for item in golem.submit_batch(["a", "b"]).result().predictions:
        if isinstance(item, FailedItem):
            assert_type(item.error.message, str)
        else:
            assert_type(item, Prediction)
    assert_type(golem.job("id").result(), Prediction | Predictions)
    try:
        return golem.classify("text", "its pair", timeout=3, **options).label
    except InvalidJob as error:
        return error.field
    except SubmitIncomplete as error:
        return error.unsent[0]


async def asyncio(texts: list[str]) -> dict[str, float]:
    """Return the first prediction's scores."""
    async with AsyncGolem("redis://127.0.0.1:6379/0", queue="reviews") as golem:
        job = await golem.submit(texts[0], priority=3, expires_s=60)
        assert_type(job, AsyncJob[Prediction])
        async for ended in golem.as_completed(await golem.submit_many(texts)):
            assert_type(await ended.result(), Prediction)
        bulk = await golem.submit_many(texts)
        assert_type(bulk, AsyncBulk)
        async for ended in bulk.in_order():
            assert_type(await ended.result(), Prediction)
        async for answer in (await golem.bulk(bulk.id)).results():
            assert_type(answer, Prediction | JobError)
        assert_type((await bulk.progress()).done, int)
        assert_type(await golem.cancel([job, bulk[0]]), int)
        return (await golem.classify(texts[0], logits=True)).scores
