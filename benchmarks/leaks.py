"""Does a model process stay as large as it was, text after text?

``python -m benchmarks.leaks`` sends 200,000 different texts in dispatches of 256 through one engine
in this process, and reads the process's memory all along. The engine is set up as in the first of a
worker's two model processes: its weights shared with the other one, its token budget measured, and
warmed up, with a state folder of its own. One dispatch in ten meets what leaves exceptions and
their frames behind: texts that are too long, and a forward pass that raises after the model ran. No
text comes twice.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Sequence

from benchmarks.procfs import usage
from benchmarks.report import Report, Round, progress, publish, summarise
from benchmarks.workloads import texts_made_up
from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import GolemError, TextTooLong
from golem_tasks.settings import load as load_settings
from worker.ceiling import Ceiling, warm_up
from worker.child import COLLECT_AFTER
from worker.classifier import Classifier, Work
from worker.interfaces import Engine, Launched, Row
from worker.machine import set_environment
from worker.settings import WorkerSettings

__all__ = ["measure"]

ROWS = 256
"""Texts of a dispatch, as a process gets before its speed is known."""
WARM_SHARE = 0.1
"""This part of the texts warms up: allocators, thread pools and the kernels of each size take what
they need once."""
_TROUBLE_EVERY = 10
_TOLD_TIMES = 10
_STRICT = Options(on_long="error")


class _Troubled:
    """An engine whose next forward pass of several rows raises, if told so."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self.token_budget = engine.token_budget
        self.max_rows = engine.max_rows
        self.encode = engine.encode
        self.release_memory = engine.release_memory
        self.warm_up = engine.warm_up
        self.fails_next = False
        self._engine = engine

    def launch(self, rows: Sequence[Row]) -> Launched:
        """See `worker.interfaces.Engine`."""
        launched = self._engine.launch(rows)
        if self.fails_next and len(rows) > 1:
            self.fails_next = False
            raise RuntimeError("the trouble this benchmark makes")
        return launched


def measure(*, texts: int, model: str, threads: int | None, warm_share: float) -> Report:
    """Run it, checking every outcome.

    Args:
        texts: how many in all, at least two dispatches of them.
        model: as `GOLEM_MODEL`.
        threads: of the CPU; None: half of the cores, as one of two processes has.
        warm_share: part of the texts after which growth counts, between 0 and 1.

    Raises:
        GolemError: a text has no answer.
    """
    with tempfile.TemporaryDirectory(prefix="golem-leaks-") as folder:
        settings = load_settings(
            WorkerSettings, model=model, device="cpu", processes=2, threads=threads,
            state_dir=folder,
        )  # fmt: skip
        figures = _run(settings, texts, warm_share)
    asked = {
        "texts": texts, "model": model, "rows_per_dispatch": ROWS, "threads": threads,
        "warm_share": warm_share,
    }  # fmt: skip
    notes = {"growth": f"from {warm_share:.0%} of the texts to the end; the peak is the process's"}
    return Report("leaks", asked, {"golem": summarise([figures])}, {}, notes)


def _run(settings: WorkerSettings, count: int, warm_share: float) -> Round:
    set_environment()  # read when torch is loaded, in the next line
    from worker.engine import load  # noqa: PLC0415

    engine = _Troubled(load(settings, 0))
    ceiling = warm_up(engine, Ceiling.start(engine.token_budget), time.perf_counter)
    classifier = Classifier(engine, ceiling=ceiling)
    gc.set_threshold(COLLECT_AFTER)
    dispatches = max(2, count // ROWS)
    warm = min(dispatches - 1, max(1, round(dispatches * warm_share)))
    pool = texts_made_up()
    warm_mib = warm_tensors = 0.0
    begun_s = time.monotonic()
    for number in range(dispatches):
        if number == warm:
            warm_mib, warm_tensors = usage(os.getpid()).rss_mib, _tensors()
        if number * _TOLD_TIMES // dispatches != (number - 1) * _TOLD_TIMES // dispatches:
            progress(f"{number * ROWS} texts: {usage(os.getpid()).rss_mib:.1f} MiB")
        _dispatch(classifier, engine, pool.short, pool.long, number)
    wall_s = time.monotonic() - begun_s
    after = usage(os.getpid())
    return {
        "texts": dispatches * ROWS,
        "texts_per_s": dispatches * ROWS / wall_s,
        "rss_warm_mib": warm_mib,
        "rss_end_mib": after.rss_mib,
        "rss_growth_mib": after.rss_mib - warm_mib,
        "peak_rss_mib": after.peak_rss_mib,
        "tensors_growth": _tensors() - warm_tensors,
    }


def _dispatch(
    classifier: Classifier,
    engine: _Troubled,
    short: Sequence[str],
    long: Sequence[str],
    number: int,
) -> None:
    """One dispatch; each tenth with eight texts too long, and with a pass that fails."""
    texts = [f"{short[(number + i) % len(short)]} {number} {i}" for i in range(ROWS)]
    trouble = number % _TROUBLE_EVERY == 0
    if trouble:
        texts[:8] = [f"{long[(number + i) % len(long)]} {number} " * 4 for i in range(8)]
    engine.fails_next = trouble
    works = [Work(TextItem(text), _STRICT, 0.0) for text in texts]
    for outcome in classifier.classify(works).outcomes:
        if not isinstance(outcome, dict) and not (trouble and isinstance(outcome, TextTooLong)):
            raise GolemError(f"A text got no answer: {outcome}")


def _tensors() -> int:
    import torch  # noqa: PLC0415 - as above

    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaks", description=__doc__)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--model", default="golem-mini")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: half of the cores")
    parser.add_argument(
        "--warm-share", type=float, default=WARM_SHARE, help="part after which growth counts"
    )
    parser.set_defaults(plot=None)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    report = measure(
        texts=given.texts, model=given.model, threads=given.threads, warm_share=given.warm_share
    )
    publish(report, given)
