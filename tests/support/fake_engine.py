"""An engine without a model: the real interface, answers known beforehand, trouble on demand.

Its answer to a text is a function of the text (`expected_label`, `expected_logits`), so that a test
can compare every answer it gets, whatever happened on the way. A text may also be an order, carried
out when its row is launched (`ORDERS`)::

    raise:why       the model raises RuntimeError("why")
    raises:Name     the model raises what `EXCEPTIONS` has by this name
    crowd:4         the model raises in company of so many rows, itself included
    oom             the model runs out of memory, as torch does
    memory          the model runs out of memory, as Python does
    lost            the device is lost (`DeviceLost`)
    nan             the row's logits are NaN
    spread          the logits of the row and of all its mates are NaN
    labels:5        so many logits come back for the row
    words           the row's logits aren't numbers
    rows:-1         one row fewer comes back than was sent (rows:+1: one more)
    slow:0.5        the forward pass takes half a second more
    until:/path     the forward pass goes on until the file exists
    hang            the forward pass never ends
    exit:3          the process exits with code 3, without cleaning up
    segfault        the process dies of a segmentation fault
    kill            the process kills itself, as the kernel's OOM killer does
    kill-if:/path   the same for as long as the file exists
    kill-all-if:/path  and it takes the worker's main process with it, as in a full container
    encode:why      the tokenizer raises ValueError("why")
    pack            the row's length raises ValueError("no length")

In a worker process `load` builds it (``GOLEM_ENGINE=tests.support.fake_engine:load``), and these
variables choose its behaviour: ``FAKE_FORWARD_S`` seconds per forward pass, ``FAKE_LOAD_S`` seconds
to load, ``FAKE_LOAD_ERROR`` a message it fails to load with, ``FAKE_LOAD_ERROR_IF`` a file that,
if it exists, makes it fail to load, ``FAKE_LOAD_WAITS_IF`` one that, as long as it exists, keeps
it loading, ``FAKE_MAX_AREA`` the padded area it has memory for,
``FAKE_TOKEN_BUDGET`` its budget, ``FAKE_DEVICES`` a list with commas, from which each process takes
the device of its index, ``FAKE_LOG`` a file that gets one line per forward pass: the process id,
then the texts, tab-separated.
"""

import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from golem_tasks.contract import OnLong, TextItem
from golem_tasks.errors import JobError, ModelLoadError, TextTooLong
from worker.interfaces import Activation, DeviceLost, Encoded, ModelInfo, Row
from worker.settings import WorkerSettings

LABELS = ("NEGATIVE", "POSITIVE", "NEUTRAL")
SPECIAL_TOKENS = 2
_MAX_TOKENS = 512
_TOKEN_BUDGET = 4096


def expected_logits(text: str) -> list[float]:
    """The logits of a text that is no order and isn't truncated; (C,)."""
    digest = zlib.crc32(text.encode())
    return [((digest >> shift) % 1021) / 64 for shift in (0, 8, 16)]


def expected_label(text: str) -> str:
    """The label of a text that is no order and isn't truncated."""
    logits = expected_logits(text)
    return LABELS[logits.index(max(logits))]


class _Answered:
    """The device's answer, computed when it is asked for."""

    took_s: float | None = None

    def __init__(self, answer: Callable[[], list[list[float]]]) -> None:
        self._answer = answer

    def logits(self) -> list[list[float]]:
        """See `worker.interfaces.Launched`."""
        return self._answer()


class FakeEngine:
    """Implements `worker.interfaces.Engine`: a word is a token, a forward pass is a checksum.

    Args:
        token_budget: see the interface.
        max_rows: see the interface.
        max_area: padded area above which it runs out of memory; None: never.
        on_forward: called with the texts of every micro-batch, when its answer is awaited.
        device: anything but ``cpu`` makes the classifier launch a dispatch before it reads answers.
    """

    def __init__(
        self,
        *,
        token_budget: int = _TOKEN_BUDGET,
        max_rows: int = 128,
        max_area: int | None = None,
        on_forward: Callable[[list[str]], None] = lambda _: None,
        device: str = "cpu",
    ) -> None:
        self.info = ModelInfo(
            "fake", None, "float32", device, LABELS, Activation.SOFTMAX, _MAX_TOKENS
        )
        self.token_budget = token_budget
        self.max_rows = max_rows
        self.max_area = max_area
        self.released = 0
        self.launched: list[list[str]] = []
        self._on_forward = on_forward
        self._words: dict[str, int] = {}
        self._vocabulary: list[str] = []

    def encode(
        self, items: Sequence[TextItem], on_long: Sequence[OnLong]
    ) -> list[Encoded | JobError]:
        """See `worker.interfaces.Engine`."""
        for item in items:
            order, _, argument = item.text.partition(":")
            if order == "encode":
                raise ValueError(argument)
        return [self._encoded(item, rule) for item, rule in zip(items, on_long, strict=True)]

    def launch(self, rows: Sequence[Row]) -> _Answered:
        """See `worker.interfaces.Engine`."""
        texts = [self._text(row) for row in rows]
        self.launched.append(texts)
        crowds = (int(text.partition(":")[2]) for text in texts if text.startswith("crowd:"))
        if len(texts) >= min(crowds, default=len(texts) + 1):
            raise RuntimeError("too many")
        area = len(rows) * max(row.length for row in rows)
        if self.max_area is not None and area > self.max_area:
            raise RuntimeError(f"fake device out of memory: {area} tokens don't fit")
        for text in texts:
            _obey(text)
        return _Answered(lambda: self._forward(texts))

    def release_memory(self) -> None:
        """See `worker.interfaces.Engine`."""
        self.released += 1

    def warm_up(self, token_budget: int) -> None:
        """See `worker.interfaces.Engine`."""

    def _forward(self, texts: list[str]) -> list[list[float]]:
        self._on_forward(texts)
        logits = [_logits(text) for text in texts]
        if "spread" in texts:
            logits = [[math.nan] * len(LABELS) for _ in texts]
        surplus = sum(int(text.removeprefix("rows:")) for text in texts if text.startswith("rows:"))
        return logits[:surplus] if surplus < 0 else logits + logits[:1] * surplus

    def _encoded(self, item: TextItem, on_long: OnLong) -> Encoded | JobError:
        text = item.text if item.text_pair is None else f"{item.text} | {item.text_pair}"
        # Split at single spaces only, so that joining the words gives back the very text.
        ids = [self._id(word) for word in text.split(" ")]
        tokens, room = len(ids) + SPECIAL_TOKENS, _MAX_TOKENS - SPECIAL_TOKENS
        if text == "pack":
            row = _Unmeasurable([-1, *ids, -1])
            return Encoded((row,), tokens, truncated=False)
        if tokens <= _MAX_TOKENS:
            return Encoded((_row(ids),), tokens, truncated=False)
        if on_long == "error":
            reason = f"has {tokens} tokens, the model takes {_MAX_TOKENS}"
            return TextTooLong.because("text", reason)
        if on_long == "truncate":
            return Encoded((_row(ids[:room]),), tokens, truncated=True)
        windows = [ids[start : start + room] for start in range(0, len(ids), room)]
        weights = tuple(map(len, windows))
        return Encoded(tuple(map(_row, windows)), tokens, truncated=False, weights=weights)

    def _id(self, word: str) -> int:
        if word not in self._words:
            self._words[word] = len(self._vocabulary)
            self._vocabulary.append(word)
        return self._words[word]

    def _text(self, row: Row) -> str:
        return " ".join(self._vocabulary[i] for i in row.ids[1:-1])


class _Unmeasurable(Row):
    """A row whose length can't be told."""

    @property
    def length(self) -> int:
        """Raises instead."""
        raise ValueError("no length")


def _logits(text: str) -> list[Any]:
    if text == "nan":
        return [math.nan] * len(LABELS)
    if text == "words":
        return ["one"] * len(LABELS)
    if text.startswith("labels:"):
        return [1.0] * int(text.removeprefix("labels:"))
    return expected_logits(text)


def _row(ids: list[int]) -> Row:
    return Row([-1, *ids, -1])


def _raise(why: str) -> None:
    raise RuntimeError(why)


def _out_of_memory(_: str) -> None:
    raise RuntimeError("fake device out of memory")


def _memory_error(_: str) -> None:
    raise MemoryError


class Mute(Exception):
    """Can't be told, nor sent to another process."""

    def __str__(self) -> str:
        raise RuntimeError("no words for it")

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("not to be pickled")


EXCEPTIONS: dict[str, BaseException] = {
    "Ignore": Ignore("not wanted"),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "MemoryError": MemoryError("no room"),
    "Mute": Mute(),
    "RecursionError": RecursionError("too deep"),
    "Reject": Reject("not wanted", requeue=False),
    "Retry": Retry("later"),
    "SystemExit": SystemExit(3),
}


def _raise_named(name: str) -> None:
    raise EXCEPTIONS[name]


def _lost(_: str) -> None:
    raise DeviceLost("device-side assert")


def _hang(_: str) -> None:
    while True:
        time.sleep(1)


def _wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.01)


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_if_file(path: str) -> None:
    if Path(path).exists():
        _kill(path)


def _kill_all_if_file(path: str) -> None:
    if Path(path).exists():
        os.kill(os.getppid(), signal.SIGKILL)
        _kill(path)


ORDERS: dict[str, Callable[[str], None]] = {
    "raise": _raise,
    "raises": _raise_named,
    "oom": _out_of_memory,
    "memory": _memory_error,
    "lost": _lost,
    "slow": lambda seconds: time.sleep(float(seconds)),
    "until": _wait_for_file,
    "hang": _hang,
    "exit": lambda code: os._exit(int(code)),
    "segfault": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "kill": _kill,
    "kill-if": _kill_if_file,
    "kill-all-if": _kill_all_if_file,
}


def _obey(text: str) -> None:
    order, _, argument = text.partition(":")
    if order in ORDERS and " " not in order:
        ORDERS[order](argument)


def load(settings: WorkerSettings, index: int) -> FakeEngine:
    """Build it in a model process; same signature as `worker.engine.load`.

    Raises:
        ModelLoadError: if ``FAKE_LOAD_ERROR`` or ``FAKE_LOAD_ERROR_IF`` asks for it.
    """
    environ = os.environ
    time.sleep(float(environ.get("FAKE_LOAD_S", "0")))
    blocked = Path(environ.get("FAKE_LOAD_WAITS_IF", os.devnull + "/none"))
    while blocked.exists():
        time.sleep(0.05)
    if cause := environ.get("FAKE_LOAD_ERROR"):
        raise ModelLoadError.of(settings.model, cause, "Ask the test.")
    if (broken := environ.get("FAKE_LOAD_ERROR_IF")) and Path(broken).exists():
        raise ModelLoadError.of(settings.model, "it broke meanwhile", "Ask the test.")
    forward_s, log = float(environ.get("FAKE_FORWARD_S", "0")), environ.get("FAKE_LOG")

    def on_forward(texts: list[str]) -> None:
        if log:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write("\t".join([str(os.getpid()), *texts]) + "\n")
        time.sleep(forward_s)

    max_area, devices = environ.get("FAKE_MAX_AREA"), environ.get("FAKE_DEVICES", "cpu").split(",")
    budget = settings.token_budget if isinstance(settings.token_budget, int) else _TOKEN_BUDGET
    return FakeEngine(
        token_budget=int(environ.get("FAKE_TOKEN_BUDGET", budget)),
        max_rows=settings.most_rows,
        max_area=None if max_area is None else int(max_area),
        on_forward=on_forward,
        device=devices[index % len(devices)],
    )
