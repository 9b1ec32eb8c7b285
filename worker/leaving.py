"""How a worker leaves: what a shutdown waits for, and what ends the waiting.

The first SIGTERM or SIGINT starts Celery's warm shutdown: nothing is fetched any more, batches that
run finish and are settled, what waits goes back to the head of its queue at once. Two things cut it
short: the end of ``GOLEM_GRACE_S``, and a second SIGTERM or SIGINT, which stock Celery would
ignore (SIGTERM) or answer with a second, nested shutdown (SIGINT). Either ends the model processes
at once, and the batches they ran go back as well. Should Redis not take all that back in a moment,
the process ends all the same: what it held comes back when its lease ends.

SIGQUIT stays Celery's cold shutdown, after `worker_soft_shutdown_timeout` if that is set.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from types import FrameType
from typing import Any

from celery import bootsteps, signals
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker import state

from worker.processes import FOLDER
from worker.settings import WorkerSettings

__all__ = ["Leaving"]

logger = get_logger(__name__)

HAND_BACK_S = 5.0
"""Seconds to give jobs back in when the grace is over."""
HAND_BACK_AT_ONCE_S = 2.0
"""The same after a second signal: whoever sends one wants the process gone."""


class Leaving(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Bounds a shutdown."""

    requires = ("celery.worker.components:Pool", "worker.intake:Intake")
    label = "Leaving"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._worker = worker
        self._settings: WorkerSettings = worker.app.golem_settings
        self._hurried = False
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)

    def close(self, worker: Any) -> None:
        """A shutdown begins: batches in flight may take ``grace_s`` seconds to finish."""
        _later(self._settings.grace_s, self._grace_is_over)
        worker.intake.returning.give_back_all()

    def _on_shutdown(self, sig: str, how: str, **_: Any) -> None:
        """Take over the signals of a second try; Celery's handler of the first one calls this."""
        if how == "Warm" and sig in ("SIGTERM", "SIGINT"):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._leave_at_once)

    def _grace_is_over(self) -> None:
        if self._end_batches():
            logger.warning(
                "Batches still run after GOLEM_GRACE_S; they are given up and run elsewhere."
            )
        _later(HAND_BACK_S, self._give_up, EX_FAILURE)

    def _leave_at_once(self, number: int, _: FrameType | None) -> None:
        """Leave as told a second time, with the exit code a shell gives for that signal."""
        code = 128 + number
        if self._hurried:
            os._exit(code)
        self._hurried = True
        # The one is what Celery's loop ends with if it still runs, the other what the process does.
        state.should_stop = self._worker.exitcode = code
        # Not the logger: its lock may be held by what this handler has interrupted.
        os.write(2, b"golem: told twice, so leaving at once; what still runs, runs elsewhere\n")
        self._end_batches()
        _later(HAND_BACK_AT_ONCE_S, self._give_up, code)

    def _end_batches(self) -> bool:
        """End the model processes; whether there were any. Their jobs are unacknowledged."""
        pool = self._worker.pool._pool
        running = [each for each in pool._pool if each.exitcode is None] if pool else []
        for process in running:
            os.kill(process.pid, signal.SIGKILL)
        return bool(running)

    def _give_up(self, code: int) -> None:
        logger.warning(
            "Redis doesn't take back what this worker holds; it comes back in %g s, by its lease.",
            self._settings.lease_s,
        )
        shutil.rmtree(os.environ.get(FOLDER, ""), ignore_errors=True)
        os._exit(code)


def _later(delay_s: float, call: Any, *arguments: Any) -> None:
    timer = threading.Timer(delay_s, call, arguments)
    timer.daemon = True  # a worker that leaves sooner doesn't wait for it
    timer.start()
