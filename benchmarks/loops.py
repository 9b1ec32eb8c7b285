"""The ways of running a model over many texts in one process, peers of what the worker does.

Each takes texts in order of arrival and returns a label for each, tokenizing included. `SortedLoop`
is the limit: it sees all texts at once, stores nothing, and no queue stands before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification
from transformers import pipeline as make_pipeline

from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import JobError
from worker.classifier import Classifier, Work
from worker.engine import TorchEngine, build
from worker.settings import WorkerSettings
from worker.source import EMBEDDED_FOLDER

__all__ = [
    "Case",
    "GolemLoop",
    "Loop",
    "PaddedLoop",
    "PipelineLoop",
    "Ran",
    "SortedLoop",
    "save_base",
    "timed",
]

BUDGET_TOKENS = 1024
"""Padded tokens of a micro-batch, of Golem's and of the sorted loop alike."""
DISPATCH_ROWS = 256
"""Texts of a dispatch: what ``GOLEM_MAX_ROWS`` comes to by default where they take a process more
than a quarter of a second, as with both models on a CPU."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a loop made of the texts."""

    labels: list[str]
    tokens: int = 0
    """Real tokens computed, special ones included; 0 if the loop hides them."""
    padded_tokens: int = 0
    """Positions computed, padding included; 0 if the loop hides them."""
    batch_size: int = 0
    """Of batches in order of arrival, where the loop hides their positions."""


class Loop(Protocol):
    """One way of running a model."""

    def run(self, texts: Sequence[str]) -> Ran:
        """Classify all texts."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model in one dtype, loaded once and shared by the loops that want it."""

    engine: TorchEngine
    model: Any
    tokenizer: Any

    @classmethod
    def of(
        cls,
        folder: Path,
        dtype: str,
        *,
        processes: int = 1,
        threads: int | None = None,
        state_dir: Path | None = None,
        compiled: bool = False,
    ) -> Case:
        """Load a folder's model on the CPU.

        Args:
            folder: the model's.
            dtype: "float32", "bfloat16", "int8" or "auto".
            processes: that share the cores, of which this is one.
            threads: this one's; None: its share, if it is the first.
            state_dir: where several keep the weights they share.
            compiled: whether the engine runs it through ``torch.compile``.

        Raises:
            ModelLoadError: the folder has none, or it can't be compiled here.
        """
        settings = WorkerSettings.model_validate(
            {
                "model": str(folder),
                "device": "cpu",
                "dtype": dtype,
                "processes": processes,
                "compile": compiled,
                "threads": threads,
                "token_budget": BUDGET_TOKENS,
                "state_dir": None if state_dir is None else str(state_dir),
            }
        )
        engine = build(settings, 0)
        if compiled:
            engine.warm_up(BUDGET_TOKENS)
        # A tokenizer of its own: Golem's has padding and truncation switched off for good.
        return cls(engine, engine.loaded.model, AutoTokenizer.from_pretrained(folder))

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.engine.info.labels

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model reads it, cut where it is too long."""
        return [len(row) for row in self.tokenizer(list(texts), truncation=True)["input_ids"]]

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The model's logits, (B, C), for input ids and attention mask, (B, T) each."""
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits


def timed(loop: Loop, texts: Sequence[str]) -> tuple[Ran, float]:
    """What the loop made of the texts, and the seconds it took."""
    begun_s = time.perf_counter()
    ran = loop.run(texts)
    return ran, time.perf_counter() - begun_s


def save_base(folder: Path) -> Path:
    """Save a DistilBERT-base of random weights, with golem-mini's tokenizer, and return it.

    Weights don't matter for speed; 66 million of them do, and nothing has to be downloaded.
    """
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    torch.manual_seed(0)
    config = DistilBertConfig(
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1}
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class PipelineLoop:
    """Hugging Face's ``pipeline("text-classification")``, the reference."""

    def __init__(self, case: Case, batch_size: int) -> None:
        self._pipe = make_pipeline(
            "text-classification", model=case.model, tokenizer=case.tokenizer, device="cpu"
        )
        self.batch_size = batch_size

    def run(self, texts: Sequence[str]) -> Ran:
        """See `Loop`."""
        answers = self._pipe(list(texts), batch_size=self.batch_size, truncation=True)
        return Ran([answer["label"] for answer in answers], batch_size=self.batch_size)


class PaddedLoop:
    """The loop everybody writes first: batches in order of arrival, each padded to its longest."""

    def __init__(self, case: Case, batch_size: int = 64) -> None:
        self._case = case
        self._batch_size = batch_size

    @torch.inference_mode()
    def run(self, texts: Sequence[str]) -> Ran:
        """See `Loop`."""
        labels: list[str] = []
        tokens = padded = 0
        for start in range(0, len(texts), self._batch_size):
            batch = self._case.tokenizer(
                list(texts[start : start + self._batch_size]),
                padding=True, truncation=True, return_tensors="pt",
            )  # fmt: skip
            tokens += int(batch["attention_mask"].sum())
            padded += batch["input_ids"].numel()
            logits = self._case.forward(batch["input_ids"], batch["attention_mask"])
            labels += _best(self._case, logits)
        return Ran(labels, tokens, padded)


class SortedLoop:
    """All texts tokenized at once, sorted by length, cut at a budget of padded tokens.

    Args:
        case: the model, its tokenizer and its labels.
        budget_tokens: padded tokens of a micro-batch.
        forward: input ids and attention mask, (B, T) each, to logits, (B, C); the model's own pass
            if unset.
    """

    def __init__(
        self,
        case: Case,
        budget_tokens: int = BUDGET_TOKENS,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._case = case
        self._budget_tokens = budget_tokens
        self._forward = forward or case.forward

    @torch.inference_mode()
    def run(self, texts: Sequence[str]) -> Ran:
        """See `Loop`."""
        rows = self._case.tokenizer(list(texts), truncation=True)["input_ids"]
        labels = [""] * len(rows)
        padded = 0
        for indexes in self._cut(sorted(range(len(rows)), key=lambda i: -len(rows[i])), rows):
            longest = len(rows[indexes[0]])
            ids = torch.zeros(len(indexes), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for position, index in enumerate(indexes):
                length = len(rows[index])
                ids[position, :length] = torch.tensor(rows[index])
                mask[position, :length] = 1
            padded += ids.numel()
            best = _best(self._case, self._forward(ids, mask))
            for index, label in zip(indexes, best, strict=True):
                labels[index] = label
        return Ran(labels, sum(map(len, rows)), padded)

    def _cut(self, order: Sequence[int], rows: Sequence[list[int]]) -> Iterator[list[int]]:
        start = 0
        while start < len(order):
            count = max(1, self._budget_tokens // len(rows[order[start]]))
            yield list(order[start : start + count])
            start += count


class GolemLoop:
    """What a model process does with its dispatches, in this process and without a queue."""

    def __init__(self, case: Case) -> None:
        self._classifier = Classifier(case.engine)

    def run(self, texts: Sequence[str]) -> Ran:
        """See `Loop`.

        Raises:
            JobError: a text failed; no figure of such a run counts.
        """
        labels: list[str] = []
        tokens = padded = 0
        for start in range(0, len(texts), DISPATCH_ROWS):
            some = texts[start : start + DISPATCH_ROWS]
            done = self._classifier.classify([Work(TextItem(t), Options(), 0.0) for t in some])
            for outcome in done.outcomes:
                if isinstance(outcome, JobError):
                    raise outcome
                labels.append(outcome["label"])
            tokens += sum(batch.tokens for batch in done.micro_batches)
            padded += sum(batch.rows * batch.longest for batch in done.micro_batches)
        return Ran(labels, tokens, padded)


def _best(case: Case, logits: torch.Tensor) -> list[str]:
    scores, best = logits.float().softmax(-1).max(-1)
    scores.tolist()  # an answer has a score, too
    return [case.labels[index] for index in best.tolist()]
