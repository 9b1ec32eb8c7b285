"""Jobs a second through a model that costs nothing: golem, stock Celery and celery-batches.

    python -m benchmarks.plumbing [--rounds 3] [--jobs 20000] [--plot plumbing.png]

A backlog waits, the worker is up and warm, and the time runs from the backlog's appearance to the
last answer in Redis. Beside it: texts in ``classify_many`` messages, and what producers enqueue.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from celery import Celery

from benchmarks.backlog import Bench, make_texts
from benchmarks.contenders import CELERY, GOLEM, QUEUE, Contender, RunningWorker, celery_batches
from benchmarks.engines import NOOP
from benchmarks.report import Figure, Report, Round, progress, publish, ratio, summarise
from benchmarks.verify import check_answers
from golem_tasks.contract import CLASSIFY
from golem_tasks.errors import ConfigurationError

__all__ = ["measure"]

PEERS = (CELERY.name, "celery-batches")
_SINGLE, _MANY = "single", "many"
Rounds = dict[str, list[Round]]


def measure(
    *,
    rounds: int,
    jobs: int,
    messages: int,
    per_message: int,
    producer_jobs: int,
    peers: Sequence[str] = PEERS,
) -> Report:
    """Run every contender `rounds` times, in turn, on one server.

    Args:
        rounds: how often each is run.
        jobs: single-text jobs in the backlog.
        messages: ``classify_many`` messages in theirs.
        per_message: texts in each of these.
        producer_jobs: jobs each producer enqueues.
        peers: which of `PEERS` take part.
    """
    contenders, notes = _contenders(peers)
    found: Rounds = {}
    with Bench() as bench:
        singles = bench.prepare(_SINGLE, make_texts(jobs))
        bench.prepare(_MANY, make_texts(messages * per_message), per_message)
        for number in range(rounds):
            for contender in contenders:
                figures = _run(bench, contender, singles, messages, per_message)
                found.setdefault(contender.name, []).append(figures)
                progress(f"round {number + 1}/{rounds} {contender.name}: {_brief(figures)}")
            for name, enqueue in _PRODUCERS.items():
                rate = _enqueue_rate(bench, enqueue, producer_jobs)
                found.setdefault(name, []).append({"jobs_per_s": rate})
                progress(f"round {number + 1}/{rounds} {name}: {rate:.0f} enqueued/s")
    results = {name: summarise(each) for name, each in found.items()}
    asked = {
        "rounds": rounds,
        "jobs": jobs,
        "messages": messages,
        "texts_per_message": per_message,
        "producer_jobs": producer_jobs,
    }
    return Report("plumbing", asked, dict(results), _ratios(results, per_message), notes)


def _contenders(peers: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Golem and its peers; and a note on one that can't be had."""
    contenders, notes = [GOLEM], {}
    if CELERY.name in peers:
        contenders.append(CELERY)
    if "celery-batches" in peers:
        try:
            contenders.append(celery_batches())
        except ConfigurationError as exc:
            notes["celery-batches"] = str(exc)
    return contenders, notes


def _run(
    bench: Bench, contender: Contender, singles: Sequence[str], messages: int, per_message: int
) -> Round:
    bench.clear()
    with RunningWorker(contender, bench.server, bench.folder, engine=NOOP) as worker:
        bench.warm_up()
        figures = dict(bench.drain(_SINGLE, len(singles), [worker]).figures)
        check_answers(bench, singles, make_texts(len(singles)))
        if contender.name == "celery-batches":  # its batches are made of single-text jobs
            return figures
        bench.answers.flushdb()
        many = bench.drain(_MANY, messages, [worker]).figures
        figures["texts_per_s_in_messages"] = many["jobs_per_s"] * per_message
        figures["parent_cpu_ms_per_text_in_messages"] = many["parent_cpu_ms_per_job"] / per_message
        figures["child_cpu_ms_per_text_in_messages"] = many["child_cpu_ms_per_job"] / per_message
    return figures


def _submit_many(bench: Bench, texts: Sequence[str]) -> None:
    with bench.golem() as golem:
        golem.submit_many(texts)


def _submit(bench: Bench, texts: Sequence[str]) -> None:
    with bench.golem() as golem:
        for text in texts:
            golem.submit(text)


def _producer_app(bench: Bench) -> Celery:
    settings = bench.settings()
    return Celery(broker=settings.broker, backend=settings.backend, set_as_current=False)


def _send_task(bench: Bench, texts: Sequence[str]) -> None:
    with _producer_app(bench) as app:
        for text in texts:
            app.send_task(CLASSIFY, [text], queue=QUEUE)


def _send_task_held(bench: Bench, texts: Sequence[str]) -> None:
    with _producer_app(bench) as app, app.producer_pool.acquire(block=True) as producer:
        for text in texts:
            app.send_task(CLASSIFY, [text], queue=QUEUE, producer=producer)


def _send_task_ignored(bench: Bench, texts: Sequence[str]) -> None:
    with _producer_app(bench) as app, app.producer_pool.acquire(block=True) as producer:
        for text in texts:
            app.send_task(CLASSIFY, [text], queue=QUEUE, producer=producer, ignore_result=True)


_PRODUCERS: dict[str, Callable[[Bench, Sequence[str]], None]] = {
    "producer golem submit_many": _submit_many,
    "producer golem submit": _submit,
    "producer celery send_task": _send_task,
    "producer celery send_task, producer held": _send_task_held,
    "producer celery send_task, producer held, ignore_result": _send_task_ignored,
}


def _enqueue_rate(
    bench: Bench, enqueue: Callable[[Bench, Sequence[str]], None], jobs: int
) -> float:
    enqueue(bench, make_texts(10, seed=3))  # imports and first-use caches aren't the rate
    texts = make_texts(jobs, seed=4)
    begun_s = time.monotonic()
    enqueue(bench, texts)
    rate = jobs / (time.monotonic() - begun_s)
    bench.clear()
    return rate


def _ratios(results: dict[str, dict[str, Figure]], per_message: int) -> dict[str, float]:
    golem = results["golem"]
    many = results["producer golem submit_many"].get("jobs_per_s")
    candidates = {
        f"golem/{peer}": ratio(golem.get("jobs_per_s"), results[peer].get("jobs_per_s"))
        for peer in PEERS
        if peer in results
    }
    candidates[f"golem texts in {per_message}s/single"] = ratio(
        golem.get("texts_per_s_in_messages"), golem.get("jobs_per_s")
    )
    for name, figures in results.items():
        if name.startswith("producer celery"):
            short = name.removeprefix("producer celery ")
            candidates[f"submit_many/{short}"] = ratio(many, figures.get("jobs_per_s"))
    return {name: value for name, value in candidates.items() if value is not None}


def _brief(figures: Round) -> str:
    texts = figures.get("texts_per_s_in_messages")
    more = "" if texts is None else f", {texts:.0f} texts/s in messages"
    return (
        f"{figures['jobs_per_s']:.0f} jobs/s, {figures['parent_cpu_ms_per_job']:.3f} ms parent, "
        f"{figures['child_cpu_ms_per_job']:.3f} ms child{more}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plumbing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=20_000, help="single-text jobs in the backlog")
    parser.add_argument("--messages", type=int, default=1_000, help="classify_many messages")
    parser.add_argument("--per-message", type=int, default=64, help="texts in each of them")
    parser.add_argument("--producer-jobs", type=int, default=5_000)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            rounds=given.rounds,
            jobs=given.jobs,
            messages=given.messages,
            per_message=given.per_message,
            producer_jobs=given.producer_jobs,
            peers=given.peers,
        ),
        given,
    )
