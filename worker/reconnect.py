"""A lost connection to Redis loses nothing and runs nothing twice.

Stock Celery puts every unacknowledged message back into the queue when its connection breaks, those
being computed included, and drops from memory what it holds; 5.7.0 even ends the worker when Redis
restarts (its second ``connection.close`` meets a transport without a client). On Redis none of this
is needed: an acknowledgement is tied to the message's delivery tag, not to the connection.

So the messages are taken off the dying channel before Celery's own handler runs, and adopted by the
new one: the buffer stays, batches in flight finish, and only what this worker gave up itself (jobs
waiting for an ETA, whose timers Celery cancels) goes back to the queue at once.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import _run_ready_callbacks
from celery.exceptions import CPendingDeprecationWarning
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.state import active_requests
from redis.exceptions import ResponseError

from golem_tasks._redis import broker_server
from worker.intake import Intake
from worker.refusals import RefusingConsumer
from worker.transport import Held, QoS, adopt_on_stock, take_held_of_stock

__all__ = ["Adoption", "SteadyConsumer"]

logger = get_logger(__name__)

FIRST_PAUSE_S, MOST_PAUSE_S = 1, 2
"""Whole seconds, for only in between does kombu look whether the worker is told to leave."""


REFUSALS_IN_A_ROW_S = 10
"""Refusals no further apart than this, in seconds, are one trouble."""


class SteadyConsumer(RefusingConsumer):
    """Celery's consumer, whose messages outlive their connection."""

    held: Held | None = None
    """What was taken off the last channel and waits for the next."""
    _refused_s = -math.inf
    """When Redis last refused a command that the connection depends on."""

    def connect(self) -> Any:
        """Connect, and let the transport fetch no more than the worker can use."""
        connection = super().connect()
        connection.transport.window = self.controller.intake.window
        connection.transport.unfit = self.fail_unfit
        connection.transport.on_lost = self.controller.intake.forget
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes, and soon after Redis is back.

        kombu waits 2, 4, 6 and up to 30 s between two tries. So long after a long outage nothing
        ran, and other workers took over what this one held, for its leases had run out.
        """
        conn.ensure_connection = partial(self._ensure, conn.ensure_connection)
        return super().ensure_connected(conn)

    def _ensure(self, ensure: Callable[..., Any], _errback: Any, *args: Any, **options: Any) -> Any:
        """kombu's, with our pauses, and with our sentence instead of Celery's `_errback`."""
        pauses = {"interval_start": FIRST_PAUSE_S, "interval_max": MOST_PAUSE_S, "interval_step": 1}
        return ensure(self._say, *args, **{**options, **pauses})

    def _say(self, exc: BaseException, pause_s: float) -> None:
        server = broker_server(self.app.golem_settings)
        when = f"The next try is in {pause_s:g} s." if pause_s else "Trying again."
        logger.error("%s %s", server.unavailable(exc), when)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Detach what is held before Celery closes the channel, which would put it all back."""
        qos = getattr(getattr(self.task_consumer, "channel", None), "qos", None)
        if qos is not None:
            taken = qos.take_held() if isinstance(qos, QoS) else take_held_of_stock(qos)
            if self.held is None:
                self.held = taken
            else:  # lost again before it was adopted
                self.held.absorb(taken)
        with warnings.catch_warnings():
            # Four lines on what becomes of running tasks, none of which is true here.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        if isinstance(exc, ResponseError):
            self._bear_refusal(exc)

    def _bear_refusal(self, exc: ResponseError) -> None:
        """Say what a Redis refuses that lets us in, and don't ask again at once for ever.

        A replica, say, or one whose user may do too little: Celery connected five times in half a
        second, paused for one, and so on, with a traceback each time. A first refusal costs no
        time: after a failover the Sentinels name the new primary.
        """
        again = time.monotonic() - self._refused_s < REFUSALS_IN_A_ROW_S
        pause_s = MOST_PAUSE_S if again else 0
        self._say(exc, pause_s)
        over_s = time.monotonic() + pause_s
        while time.monotonic() < over_s and state.should_stop is state.should_terminate is None:
            time.sleep(0.1)
        self._refused_s = time.monotonic()

    def on_close(self) -> None:
        """Let Celery clean up, then take back the batches that its pool flush dropped."""
        intake: Intake = self.controller.intake
        with ExitStack() as kept:
            for dispatch in intake.dispatches:
                kept.enter_context(dispatch.kept())
            super().on_close()
        intake.recover()

    def shutdown(self) -> None:
        """Let what ended with the pool be stored and acknowledged, then close the connection."""
        self.controller.intake.finish()
        if not state.should_terminate:
            # Acknowledgements are calls for a next turn, which this event loop won't have.
            _run_ready_callbacks(self.hub)
        super().shutdown()


class Adoption(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Gives the held messages to the channel of a new connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Adoption"

    def start(self, consumer: Any) -> None:
        """Adopt what this worker still works on; put the rest back into the queue."""
        held = consumer.held
        if held is None:
            return
        intake: Intake = consumer.controller.intake
        # Plain Celery tasks that a child runs now are kept as well, as stock Celery does.
        mine = intake.tags() | {request.message.delivery_tag for request in tuple(active_requests)}
        mine &= held.messages.keys()
        returned = len(held.messages) - len(mine)
        taken = _adopt(consumer.task_consumer.channel, held, mine)
        consumer.held = None  # only now: if adopting failed, the next connection tries again
        intake.forget(taken)
        logger.warning(
            "Connected to Redis again: %d jobs kept, %d put back into the queue, %d taken over by "
            "other workers meanwhile.",
            len(mine) - len(taken),
            returned,
            len(taken),
        )


def _adopt(channel: Any, held: Held, mine: set[str]) -> set[str]:
    """Give `held` to the channel; the tags another worker has by now."""
    if isinstance(channel.qos, QoS):
        return channel.qos.adopt(held, mine)
    adopt_on_stock(channel, held, mine)
    return set()  # a stock worker can't know
