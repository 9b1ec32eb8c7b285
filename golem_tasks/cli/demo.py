"""``golem demo``: the whole way of a text, on this machine, with nothing to set up."""

from __future__ import annotations

import dataclasses
import os
import queue as queues
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from golem_tasks.cli.common import (
    Command,
    client_settings,
    json_option,
    leaving_on_signals,
    print_json,
    require_model_side,
    stderr,
    stdout,
)
from golem_tasks.cli.demo_texts import SENTENCES, TOO_LONG, WARM_UP
from golem_tasks.cli.demo_view import (
    Arrival,
    Figures,
    figures_of,
    heading,
    result_lines,
    row,
    step,
)
from golem_tasks.contract import Prediction
from golem_tasks.errors import JobError
from golem_tasks.settings import ENV_PREFIX, ClientSettings, mask_url

if TYPE_CHECKING:
    from golem_tasks.client import Golem, Job

__all__ = ["command"]

_ANSWER_S = 120.0
_RESULT_S = 600  # the demo's answers leave your Redis after ten minutes
_FOREIGN = ("CELERY_", ENV_PREFIX)
_NEXT = """
Go on from here
  golem worker --broker-url redis://127.0.0.1:6379/0      a worker on your Redis
  golem classify "I love this"                            ask it
  golem classify --file reviews.csv --out answers.jsonl   a whole file
  golem inspect "Not bad at all"                          inside the model

  from golem_tasks import Golem                           and in your app
  golem = Golem("redis://127.0.0.1:6379/0")
  print(golem.classify("I love this", timeout=30).label)
"""


@click.command(
    "demo",
    cls=Command,
    examples="""
golem demo
golem demo --broker-url redis://127.0.0.1:6379/0
golem demo --model distilbert/distilbert-base-uncased-finetuned-sst-2-english
""",
)
@click.option("--broker-url", metavar="URL", help="Your Redis, instead of one of the demo's own.")
@click.option("--model", metavar="MODEL", help="Hub id or folder, instead of golem-mini.")
@json_option("Print answers and figures as one JSON object; the show goes to stderr.")
def command(*, broker_url: str | None, model: str | None, as_json: bool) -> None:
    """Watch sentences travel through a queue, a batch and a model.

    Needs no Redis and no configuration: it starts a server on a free port and a worker with the
    model that ships with Golem, sends them forty sentences and a job that fails, and measures what
    batching is worth. When it ends, also by Ctrl-C, nothing of it is left.
    """
    require_model_side()
    console = stderr() if as_json else stdout()
    with leaving_on_signals(), _cleaning_up(console) as stack:
        settings = _redis(stack, console, broker_url)
        from golem_tasks.client import Golem  # noqa: PLC0415 - loads Celery, which --help needn't

        golem = stack.enter_context(Golem(settings=settings))
        golem.queue_length()  # a Redis that isn't there is known before a model is loaded
        _worker(stack, console, model)
        golem.classify(WARM_UP, timeout=_ANSWER_S)
        arrivals, together_s = _together(golem, console)
        apart_s = _apart(golem, console)
        figures = figures_of(arrivals, together_s, apart_s)
        console.print()
        console.print(result_lines(figures))
        if as_json:
            print_json(_as_json(arrivals, figures))
        else:
            console.print(_NEXT, markup=False, end="")


@contextmanager
def _cleaning_up(console: Console) -> Iterator[ExitStack]:
    """Stop what was started, undisturbed by an impatient second Ctrl-C."""
    stack = ExitStack()
    try:
        yield stack
    except KeyboardInterrupt:
        console.print("Stopping ...")
        raise
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            stack.close()
        finally:
            signal.signal(signal.SIGINT, before)


def _redis(stack: ExitStack, console: Console, broker_url: str | None) -> ClientSettings:
    """Start a server, or take yours; what the worker and the client need is then in os.environ."""
    queue = "golem"
    if broker_url is None:
        from golem_tasks.embedded import EmbeddedServer  # noqa: PLC0415 - not with --broker-url

        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            del os.environ[name]  # a demo shows Golem as it comes, not as you have set it
        server = EmbeddedServer()
        stack.callback(server.stop)
        server.start()
        broker_url = server.url
        said = f"an embedded server on 127.0.0.1:{server.port}"
    else:
        # A queue of its own: a worker of yours must not answer, nor ours take your jobs.
        queue = f"golem-demo-{uuid4().hex[:8]}"
        said = f"{mask_url(broker_url)}, queue {queue}"
        stack.callback(_forget_queue, broker_url, queue)
    os.environ[f"{ENV_PREFIX}BROKER_URL"] = broker_url
    os.environ[f"{ENV_PREFIX}QUEUE"] = queue
    os.environ[f"{ENV_PREFIX}RESULT_EXPIRES_S"] = str(_RESULT_S)
    settings = client_settings(None, None, None)
    console.print(step("Redis", said))
    return settings


def _forget_queue(broker_url: str, queue: str) -> None:
    """Take out of your Redis what kombu keeps of a queue for ever."""
    import redis  # noqa: PLC0415 - only with --broker-url

    from golem_tasks._redis import FAILED, broker_server  # noqa: PLC0415 - as above

    settings = client_settings(broker_url, None, queue)
    names = [f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}"]
    names += [settings.queue, settings.bulk_queue]
    pool = broker_server(settings).pool()
    with suppress(*FAILED), redis.Redis(connection_pool=pool) as client:
        client.delete(*(settings.global_keyprefix + name for name in names))
    pool.disconnect()


def _worker(stack: ExitStack, console: Console, model: str | None) -> None:
    from golem_tasks.cli.local_worker import LocalWorker  # noqa: PLC0415 - as heavy as it is rare

    name = model or "golem-mini"
    worker = LocalWorker(["--model", name], dict(os.environ))
    stack.callback(worker.stop)
    begun_s = time.monotonic()
    worker.start()
    if not console.is_terminal:
        console.print(step("Worker", f"starts and loads {name} ..."))
    with console.status("") as status:
        worker.wait_ready(
            lambda seconds: status.update(f"A worker starts and loads {name} ... {seconds:.0f} s")
        )
    console.print(step("Worker", f"{worker.about}; ready in {time.monotonic() - begun_s:.0f} s"))
    console.print()


def _together(golem: Golem, console: Console) -> tuple[list[Arrival], float]:
    """Send everything at once, show the answers as they come, and time the whole."""
    sent: dict[str, tuple[str, float]] = {}
    jobs: list[Job[Prediction]] = []

    def remember(some: Sequence[Job[Prediction]], texts: tuple[str, ...], at_s: float) -> None:
        jobs.extend(some)
        sent.update({job.id: (text, at_s) for job, text in zip(some, texts, strict=True)})

    middle = len(SENTENCES) // 2
    begun_s = time.monotonic()
    remember(golem.submit_many(SENTENCES[:middle]), SENTENCES[:middle], begun_s)
    now_s = time.monotonic()
    remember([golem.submit(TOO_LONG, on_long="error")], (TOO_LONG,), now_s)
    now_s = time.monotonic()
    remember(golem.submit_many(SENTENCES[middle:]), SENTENCES[middle:], now_s)

    console.print(heading(console))
    arrivals = []
    with _progress(console, "answers", len(jobs)) as advance:
        for job, at_s in _as_they_come(golem, jobs):
            text, since_s = sent[job.id]
            arrivals.append(Arrival(text, _outcome(job), (at_s - since_s) * 1000))
            console.print(row(console, arrivals[-1]))
            advance()
    return arrivals, at_s - begun_s


def _as_they_come(
    golem: Golem, jobs: list[Job[Prediction]]
) -> Iterator[tuple[Job[Prediction], float]]:
    """Yield each job with the time it ended; drawing the others doesn't count as its latency."""
    ended: queues.SimpleQueue[tuple[Job[Prediction], float] | BaseException] = queues.SimpleQueue()

    def listen() -> None:
        try:
            for job in golem.as_completed(jobs, _ANSWER_S):
                ended.put((job, time.monotonic()))
        except Exception as exc:  # noqa: BLE001 - it is raised where somebody sees it
            ended.put(exc)

    threading.Thread(target=listen, daemon=True).start()
    for _ in jobs:
        each = ended.get()
        if isinstance(each, BaseException):
            raise each
        yield each


def _apart(golem: Golem, console: Console) -> float:
    """Send the same valid sentences one after the other and return the seconds it took."""
    begun_s = time.monotonic()
    with _progress(console, "the same, one at a time", len(SENTENCES)) as advance:
        for text in SENTENCES:
            golem.classify(text, timeout=_ANSWER_S)
            advance()
    return time.monotonic() - begun_s


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Any]:
    """Show a bar below the table while it grows; nothing of it in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _outcome(job: Job[Prediction]) -> Prediction | JobError:
    try:
        return job.result()
    except JobError as exc:
        return exc


def _as_json(arrivals: list[Arrival], figures: Figures) -> dict[str, Any]:
    answers = []
    for each in arrivals:
        outcome: dict[str, Any]
        if isinstance(each.outcome, Prediction):
            outcome = each.outcome.model_dump(exclude={"logits"})
        else:
            error = {"type": type(each.outcome).__name__, "message": str(each.outcome)}
            outcome = {"error": error}
        answers.append({"text": each.text, "latency_ms": round(each.latency_ms, 3), **outcome})
    summary = {**dataclasses.asdict(figures), "speedup": round(figures.speedup, 2)}
    return {"answers": answers, "summary": summary}
