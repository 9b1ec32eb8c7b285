"""Mistakes a type checker must find: each line that ends so, and no other."""

from golem_tasks import AsyncGolem, Golem, Prediction


def threads(golem: Golem) -> str:
    """Misspelled, misplaced and mistaken."""
    golem.submit(b"bytes")  # wrong
    golem.submit("text", topk=1)  # wrong
    golem.submit("text", on_long="cut")  # wrong
    golem.submit_many(["a"], task_id="one for many")  # wrong
    predictions: list[Prediction] = golem.submit_many(["a"])  # wrong
    golem.submit_many(["a"]).append("b")  # wrong
    return predictions[0].lable  # wrong


async def asyncio(golem: AsyncGolem) -> str:
    """Not awaited."""
    job = await golem.submit("text")
    return job.result().label  # wrong
