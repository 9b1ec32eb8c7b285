"""Celery's Redis transport with everything batched, on Celery's own wire and key format.

Any Celery producer, Flower and stock workers share the queues with it. Select it by::

    app = Celery(..., amqp="worker.transport:AMQP")

and leave ``broker_url`` and ``broker_transport`` as they are: ``redis://``, ``rediss://``,
``redis+socket://``, ``unix://`` and ``sentinel://`` then use it, after a failover to another URL
too (``broker_transport`` is forgotten there: kombu's ``Connection.switch`` takes the new URL's
scheme). Without that argument Celery is stock. Outside Celery use `Connection` for kombu's own.

What a worker may use of it, with ``c`` a Celery consumer:

``c.connection.transport.window = function``
    A function without arguments that returns a `Room`: how many messages, of how many bytes
    together, the worker can take now. It is asked several times per turn of the event loop and
    must be cheap. Set it on every new connection before the Tasks step. Celery's prefetch count
    still holds beside it (0 switches that off). While there is no room nothing is fetched.
``c.connection.transport.unfit = function``
    Called with what could be decoded of a message no consumer will see (see below), the reason, and
    a function that moves the message to the dead letters, to be called when whoever sent it is
    told. Until then, and if it raises, the message comes again once its lease is over. Set it as
    the window.
``c.connection.transport.wake()``
    Ask the window again; needed only where room returns outside the event loop's own thread.
``message.deliveries``
    How often this message was handed to a worker, this time included; 1 at first. A delivery that
    a worker gave back in good order (a shutdown, an `adopt` that doesn't keep it) isn't counted.
``held = c.task_consumer.channel.qos.take_held()``
    Detach from a dying channel all it holds, so that closing it restores nothing: a `Held`.
    Acknowledgements that still come for these messages are remembered in it.
``taken = c.task_consumer.channel.qos.adopt(held, mine)``
    Install `held` on a new channel: its acknowledgements are sent, the messages whose delivery
    tags are in ``mine`` are kept, the others go back to the head of their queues. Returns the tags
    another worker holds by now: drop what isn't running of them. If it raises (a connection error,
    whether Redis is away or refuses) it installed nothing: then keep `held`, and
    ``held.absorb(later)`` what the next dying channel held.
``c.connection.transport.on_lost = function``
    Told, in the event loop's thread, of delivery tags whose messages another worker took over while
    this process was stopped or cut off. What isn't running yet of them should be dropped.
``qos.renew()``, ``qos.flush()``
    Renew the leases of all that is held; send pending acknowledgements. The transport calls both on
    its own: acknowledgements go out once per turn of the loop, and while Celery's shutdown drains;
    leases are renewed every quarter of ``lease_s`` by a thread, whatever the loop does.

The transport option ``lease_s`` (30) is how long a message stays with a worker that doesn't renew;
it comes back at the next sweep, every ``unacked_restore_interval`` x ``unacked_restore_throttle``
seconds. ``visibility_timeout`` (3,600) is what stock workers on the same queues promise instead,
and is to be the same there and here. How the two go together is told in `worker.transport.leases`.

The transport option ``max_message_bytes`` (64 MiB) bounds what a compressed body may grow to. A
message beyond it, one with a task or id that is no string, and one that can't be read at all go to
the list ``golem:dead:envelopes`` with a line in the log; no consumer sees them.

Leases and sweeps here go by the Redis server's clock, so workers' clocks don't matter. A stock
worker on the same queue sweeps by its own clock, what we hold included: it must not be ahead of the
server's by more than its visibility timeout. It neither renews nor counts deliveries.

Where a server refuses a script (an ACL, an old version) the worker says so in one sentence and
works as stock Celery does; where it refuses only client tracking, an idle worker asks for new
messages up to every 10 ms instead of being told (some 4 % of a core).
"""

from worker.transport.channel import Channel, SentinelChannel
from worker.transport.connection import AMQP, Connection
from worker.transport.kombu_transport import SentinelTransport, Transport
from worker.transport.messages import Held, Message, Room
from worker.transport.qos import QoS
from worker.transport.stock_held import adopt_on_stock, take_held_of_stock

__all__ = [
    "AMQP",
    "Channel",
    "Connection",
    "Held",
    "Message",
    "QoS",
    "Room",
    "SentinelChannel",
    "SentinelTransport",
    "Transport",
    "adopt_on_stock",
    "take_held_of_stock",
]
