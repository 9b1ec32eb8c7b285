"""One dispatch in the child: read, classify, then settle each job through Celery's own tracer.

The model has already run when the tracer does, so a task's body only returns or raises the outcome
known by then (`Runner.outcome`). States, links, chains, chords, retries, signals and hooks are
therefore Celery's own, one job at a time, while Redis sees one MGET and one pipeline for them all.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery import states
from celery.app import trace
from celery.app.task import Context
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from golem_tasks.contract import SENT_AT_HEADER, Limits, ParsedJob, parse_job
from golem_tasks.errors import ConfigurationError, InferenceError, InvalidJob, JobError
from worker.classifier import Classifier, Work
from worker.failures import failure
from worker.interfaces import DeviceLost
from worker.origin import origin
from worker.patience import at_most, undisturbed
from worker.results import BatchedResults
from worker.salvage import Computed
from worker.tally import Figures

__all__ = ["Answered", "Job", "Runner", "Settled", "active", "run_dispatch", "use"]

logger = get_logger(__name__)

EX_SOFTWARE = 70  # sysexits.h

Settled = tuple[int, Any, float]
"""What Celery's pool protocol wants for a job: failed (0 or 1), value or ExceptionInfo, seconds."""


class Answered(NamedTuple):
    """What a model process returns of a dispatch."""

    settled: list[Settled]
    """One for each job, in order."""
    figures: Figures


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the parent sends it to a child."""

    task: str
    id: str
    request: dict[str, Any]
    """Celery's request without ``args`` and ``kwargs``, which travel once, in `body`."""
    body: tuple[Any, Any, Any]
    """Decoded: args, kwargs and what Celery calls embed (callbacks, errbacks, chain, chord)."""
    received_s: float
    """Unix time at which the worker received it."""
    computed: Any = None
    """Its answer, where a process that died had got so far; then it needs no model."""


@dataclass(frozen=True, slots=True)
class _Returned:
    value: Any


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


_Outcome = _Returned | _Raised


class TracerClock:
    """The clock of Celery's tracer, which reads it before and after a task's body.

    The first reading is the start of the whole dispatch, so that the runtime it reports includes
    the model's.
    """

    def __init__(self) -> None:
        self._start_s: float | None = None

    def begin(self, start_s: float) -> None:
        """Make the next reading return `start_s`."""
        self._start_s = start_s

    def __call__(self) -> float:
        start_s, self._start_s = self._start_s, None
        return time.monotonic() if start_s is None else start_s


class Runner:
    """Runs dispatches in this process, with the model it holds."""

    def __init__(
        self, classifier: Classifier, backend: BatchedResults, limits: Limits, clock: TracerClock
    ) -> None:
        self._classifier = classifier
        self._backend = backend
        self._limits = limits
        self._clock = clock
        self._outcomes: dict[str, _Outcome] = {}
        self._computed = Computed()

    def outcome(self, task_id: str) -> Any:
        """Return or raise the outcome of a job of this dispatch; the body of our tasks.

        Raises:
            JobError: the job's own.
        """
        outcome = self._outcomes.get(task_id)
        if isinstance(outcome, _Raised):
            raise outcome.error
        if outcome is None:
            raise InferenceError.at("decode", f"job {task_id} got no answer")
        return outcome.value

    def run(self, jobs: Sequence[Job], patience_s: float | None = None) -> Answered:
        """Answer and settle every job, in order; the model may take `patience_s` for them.

        Raises:
            JobError: what befell all of them, such as a result Redis won't take, with its stage.
            BaseException: a signal meant for this process, or `DeviceLost`.
        """
        start_s = time.monotonic()
        ids = [job.id for job in jobs]
        self._computed.begin()
        stage = "read"
        try:
            # Left last: the soft limit is held back until the results are written.
            with ExitStack() as settling, self._backend.dispatch(ids) as stored:
                stage = "forward"
                self._outcomes, figures = self._answer(jobs, stored, patience_s)
                stage = "decode"
                settling.enter_context(undisturbed())
                for task_id in self._backend.revoked_of(ids):
                    # Its callbacks and its chain mustn't go on from an answer nobody will see.
                    self._outcomes[task_id] = _Raised(Ignore("revoked"))
                return Answered([self._settle(job, start_s) for job in jobs], figures)
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            # The parent runs each job again alone; the one this befalls alone fails by it.
            raise failure(stage, exc) from exc
        finally:
            self._outcomes = {}

    def _answer(
        self,
        jobs: Sequence[Job],
        stored: dict[str, dict[str, Any]],
        patience_s: float | None = None,
    ) -> tuple[dict[str, _Outcome], Figures]:
        outcomes: dict[str, _Outcome] = {}
        open_jobs: list[tuple[Job, ParsedJob]] = []
        for job in jobs:
            if early := _already(stored.get(job.id)):
                outcomes[job.id] = early
                self._count_in_chord(job, early)
                continue
            if job.computed is not None:
                outcomes[job.id] = _Returned(job.computed)
                continue
            try:
                args, kwargs, _ = job.body
                open_jobs.append((job, parse_job(job.task, args, kwargs, self._limits)))
            except JobError as exc:
                outcomes[job.id] = _Raised(exc)
            except SoftTimeLimitExceeded:
                raise
            except Exception as exc:  # noqa: BLE001 - one payload's trouble is no mate's
                outcomes[job.id] = _Raised(failure("read", exc))
        works = [work for job, parsed in open_jobs for work in _works(job, parsed)]
        with at_most(patience_s):
            classified = self._classifier.classify(works)
        answers = iter(classified.outcomes)
        for job, parsed in open_jobs:
            outcomes[job.id] = _gather(parsed, answers)
        new = ((job.id, outcomes[job.id]) for job, _ in open_jobs)
        self._computed.keep({name: each.value for name, each in new if isinstance(each, _Returned)})
        figures = Figures.of(
            classified.micro_batches,
            texts=len(works),
            failed=sum(_is_failure(outcome) for outcome in outcomes.values()),
            queued_ms=max((work.queued_ms for work in works), default=0.0),
            token_budget=self._classifier.token_budget,
        )
        _log(len(jobs), figures)
        return outcomes, figures

    def _count_in_chord(self, job: Job, outcome: _Outcome) -> None:
        """Tell the chord of a job that its producer cancelled; no worker has, or it wasn't here."""
        embed = job.body[2] or {}
        if isinstance(outcome, _Raised) and embed.get("chord"):
            context = Context({**job.request, **embed})
            self._backend.mark_as_revoked(job.id, "revoked", request=context, store_result=False)

    def _settle(self, job: Job, start_s: float) -> Settled:
        self._clock.begin(start_s)
        try:
            settled = _trace(job)
        except Exception as exc:  # noqa: BLE001 - a hook may raise anything
            # MemoryError and a hook's Reject leave Celery's tracer; in the parent the one would
            # end the worker, and either would take the rest of the batch with it.
            logger.error("Job %s couldn't be settled: %s", job.id, origin(exc))  # noqa: TRY400 - no trace: it may hold content
            self._outcomes[job.id] = _Raised(InferenceError.at("decode", exc))
            return _trace(job)
        return settled if _picklable(settled) else (settled[0], saferepr(settled[1]), settled[2])


def _trace(job: Job) -> Settled:
    args, kwargs, embed = job.body
    # The body is a bound method: a producer's argument of this name would collide with its own.
    kwargs = {name: value for name, value in kwargs.items() if name != "self"}
    settled: Settled = trace.fast_trace_task(
        job.task, job.id, job.request, (args, kwargs, embed), None, None
    )
    return settled


def _already(meta: dict[str, Any] | None) -> _Outcome | None:
    """The outcome of a job that needs no model: one already answered, or cancelled meanwhile."""
    if meta is None:
        return None
    if meta["status"] == states.SUCCESS:
        return _Returned(meta["result"])
    if meta["status"] == states.REVOKED:
        return _Raised(Ignore("revoked"))
    return None


def _works(job: Job, parsed: ParsedJob) -> list[Work]:
    now_s = time.time()
    sent_s = job.request.get(SENT_AT_HEADER)
    # Whatever a producer writes there, the figure is a finite one.
    plausible = isinstance(sent_s, int | float) and 0 <= sent_s <= now_s
    since_s = sent_s if plausible and sent_s is not None else job.received_s
    queued_ms = round(max(0.0, now_s - since_s) * 1000, 3)
    items = [item for item in parsed.items if not isinstance(item, InvalidJob)]
    return [Work(item, parsed.options, queued_ms) for item in items]


def _gather(parsed: ParsedJob, answers: Iterator[dict[str, Any] | JobError]) -> _Outcome:
    """Take this job's answers off the stream of all of them."""
    items = [item if isinstance(item, InvalidJob) else next(answers) for item in parsed.items]
    if parsed.many:
        return _Returned({"predictions": [_many_item(item) for item in items]})
    only = items[0]
    return _Raised(only) if isinstance(only, JobError) else _Returned(only)


def _many_item(item: dict[str, Any] | JobError) -> dict[str, Any]:
    if isinstance(item, JobError):
        return {"error": {"type": type(item).__name__, "message": str(item)}}
    return item


def _picklable(settled: Settled) -> bool:
    """Whether the pool can send it; only a failure carries objects of somebody else's making."""
    if not settled[0]:
        return True
    try:
        pickle.dumps(settled)
    except Exception:  # noqa: BLE001 - whatever a foreign __reduce__ raises
        return False
    return True


def _is_failure(outcome: _Outcome) -> bool:
    return isinstance(outcome, _Raised) and not isinstance(outcome.error, Ignore)


def _log(jobs: int, figures: Figures) -> None:
    logger.info(
        "Answered %d jobs (%d failed): %d rows in %d micro-batches, %.1f ms forward, "
        "%.1f %% padding.",
        jobs,
        figures.failed,
        figures.rows,
        figures.micro_batches,
        figures.forward_ms,
        100 * figures.padding_share,
    )


_active: Runner | None = None


def use(runner: Runner | None) -> None:
    """Set the runner of this process."""
    global _active  # noqa: PLW0603 - a child holds one model for its whole life
    _active = runner


def active() -> Runner:
    """The runner of this process.

    Raises:
        ConfigurationError: this isn't a model process of a Golem worker.
    """
    if _active is None:
        raise ConfigurationError(
            f"Process {os.getpid()} holds no model: golem.classify runs only in a Golem worker; "
            "send the task instead of calling it."
        )
    return _active


def run_dispatch(pickled: bytes, patience_s: float | None = None) -> Answered:
    """The pool's entry point: answer a pickled list of `Job` with this process's runner.

    The pickle is this worker's own and came through its own pipe; on the wire there is only JSON.
    """
    jobs: list[Job] = pickle.loads(pickled)  # noqa: S301 - see above
    try:
        return active().run(jobs, patience_s)
    except DeviceLost as exc:
        # The parent sees a lost process, starts another and lets each job run again, alone.
        logger.critical("The device is lost to this process, which ends: %s", exc)
        os._exit(EX_SOFTWARE)
