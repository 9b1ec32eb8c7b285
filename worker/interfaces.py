"""What the model side of the worker is made of: the types that cross it and the engine's interface.

`Engine` is implemented twice: by `worker.engine`, where torch lives, and by the tests' fake. All
that stands above it (`worker.packing`, `worker.decoding`, `worker.classifier`) imports no torch,
so it runs, and is tested, without a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from golem_tasks.contract import OnLong, TextItem
from golem_tasks.errors import JobError

__all__ = [
    "Activation",
    "DeviceLost",
    "Encoded",
    "Engine",
    "Launched",
    "ModelInfo",
    "Row",
]


class DeviceLost(BaseException):
    """Raised when the device is useless to this process from now on, as after a CUDA assert.

    Not an `Exception`, because running the batch again in halves would fail every innocent job in
    it: the process has to end, and its jobs have to run in another one.
    """


class Activation(Enum):
    """What turns logits into scores; chosen as Hugging Face's text-classification pipeline does."""

    SOFTMAX = "softmax"
    """One label of several: the scores are probabilities that sum to 1."""
    SIGMOID = "sigmoid"
    """Each label on its own: several may be true. Also a single label that isn't a regression."""
    NONE = "none"
    """Regression: the score is the raw value."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model, as answers and logs name it."""

    name: str
    revision: str | None
    dtype: str
    device: str
    labels: tuple[str, ...]
    """In the order of the logits."""
    activation: Activation
    max_tokens: int
    """Longest row the model takes, special tokens included."""
    temperature: float | None = None
    """What softmax's logits are divided by; None where the model isn't calibrated."""
    checkpoint: str = ""
    """What tells a folder's weights from any others; "" where the revision does."""
    hardware: str = ""
    """What tells the device from others of its number; "" where nobody knows."""


class Row(NamedTuple):
    """One sequence for the model, special tokens included, without padding.

    A tuple, as all that is made for every text: it costs less than half of a frozen dataclass.
    """

    ids: list[int]  # (T,)
    type_ids: list[int] | None = None  # (T,), or None where the model takes none

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return len(self.ids)

    def stretched(self, length: int) -> Row:
        """A row of so many tokens out of this one's, repeated: for warm-up and measuring."""
        repeats = math.ceil(length / self.length)
        types = None if self.type_ids is None else (self.type_ids * repeats)[:length]
        return Row((self.ids * repeats)[:length], types)


class Encoded(NamedTuple):
    """One text as the model sees it: one row, or the overlapping windows of a long text."""

    rows: tuple[Row, ...]
    tokens: int
    """Tokens the text has, special tokens included, before any truncation."""
    truncated: bool
    weights: tuple[int, ...] = (1,)
    """Each row's share in the answer: its tokens of text. One row's weight doesn't matter."""


class Launched(Protocol):
    """A micro-batch the device has been given."""

    def logits(self) -> list[list[float]]:
        """Wait for the device and return the logits, (B, C); to be called once."""

    @property
    def took_s(self) -> float | None:
        """Seconds the device computed them, known once they are there; None: it can't tell.

        Then the caller's clock counts, from the launch, or the end of the one before, until the
        logits are read: on a device that is given work ahead that is too much, by what the caller
        did meanwhile.
        """


class Engine(Protocol):
    """A loaded model."""

    info: ModelInfo
    token_budget: int
    """Padded area (longest x rows) of a micro-batch that suits the device, in tokens."""
    max_rows: int
    """Most rows of a micro-batch."""

    def encode(
        self, items: Sequence[TextItem], on_long: Sequence[OnLong]
    ) -> list[Encoded | JobError]:
        """Tokenize; an item that breaks a rule of the model is its own error in the list."""

    def launch(self, rows: Sequence[Row]) -> Launched:
        """Give one micro-batch to the device; returns before a GPU has computed it.

        Raises:
            DeviceLost: the process has to end.
        """

    def release_memory(self) -> None:
        """Give what the allocator holds in reserve back to the device, after out of memory."""

    def warm_up(self, token_budget: int) -> None:
        """Run a micro-batch of this padded area, and one of a single short row.

        Raises:
            ModelLoadError: the model can't do its work.
            Exception: what says out of memory (`worker.failures`), where a smaller one may fit.
        """
