"""How a worker leaves: what a shutdown waits for, and what ends the waiting.

The first SIGTERM or SIGINT starts Celery's warm shutdown: nothing is fetched any more, batches that
run finish and are settled, what waits goes back to the head of its queue at once. Two things cut it
short: the end of ``GOLEM_GRACE_S``, and a second SIGTERM or SIGINT, which stock Celery would
ignore (SIGTERM) or answer with a second, nested shutdown (SIGINT). Either ends the model processes
at once, and the batches they ran go back as well. The end of the grace is the end of the process:
the model processes end a little before it, and should Redis not take back by then what was held, it
comes back when its lease ends. All that is timed by threads, from the signal on, since a Redis that
hangs may hold the event loop for longer.

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
from celery.platforms import EX_OK
from celery.utils.log import get_logger
from celery.worker import state

from worker.processes import FOLDER
from worker.settings import WorkerSettings

__all__ = ["Leaving"]

logger = get_logger(__name__)

HAND_BACK_S = 5.0
"""The last seconds of the grace, in which jobs are given back; half of it if it is short."""
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
        self._bounded = False
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)

    def close(self, worker: Any) -> None:
        """A shutdown begins, by a signal or a command: batches in flight may finish."""
        self._bound()
        worker.intake.returning.give_back_all()

    def _on_shutdown(self, sig: str, how: str, **_: Any) -> None:
        """Take over the signals of a second try; Celery's handler of the first one calls this."""
        if how != "Warm":
            return
        if sig in ("SIGTERM", "SIGINT"):  # first, since a second one may come any moment
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._leave_at_once)
        self._bound()

    def _bound(self) -> None:
        """Let the shutdown take ``grace_s`` seconds from now on, once."""
        if self._bounded:
            return
        self._bounded = True
        grace_s = self._settings.grace_s
        _later(grace_s - min(HAND_BACK_S, grace_s / 2), self._hand_back)
        _later(grace_s, self._grace_is_over)

    def _grace_is_over(self) -> None:
        self._give_up(int(state.should_stop or EX_OK))  # 78, say, if that is why it leaves

    def _hand_back(self) -> None:
        if self._end_batches():
            logger.warning("Batches outlast GOLEM_GRACE_S; they are given up and run elsewhere.")

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
        # Not the logger: the event loop may hang with its lock, or the stream behind it.
        os.write(
            2,
            b"golem: Redis doesn't take back what this worker holds; it comes back in %g s, by its "
            b"lease\n" % self._settings.lease_s,
        )
        self._end_batches()  # one may have been started meanwhile
        shutil.rmtree(os.environ.get(FOLDER, ""), ignore_errors=True)
        os._exit(code)


def _later(delay_s: float, call: Any, *arguments: Any) -> None:
    timer = threading.Timer(delay_s, call, arguments)
    timer.daemon = True  # a worker that leaves sooner doesn't wait for it
    timer.start()
