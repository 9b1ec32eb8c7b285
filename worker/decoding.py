"""Logits to predictions, by the rule of Hugging Face's text-classification pipeline. Pure.

This runs once per job, thousands of times a second, on a handful of numbers: plain floats in plain
lists beat an array library there, and the answer is a plain dict that JSON takes as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from golem_tasks.contract import Options
from golem_tasks.errors import InferenceError
from worker.interfaces import Activation, Encoded, ModelInfo

__all__ = ["Decoder", "MicroBatch", "activation_for", "sigmoid", "softmax"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass that was run."""

    rows: int
    longest: int
    """Tokens of its longest row; rows x longest is what the device computed."""
    tokens: int
    """Tokens that weren't padding."""
    forward_ms: float
    padding_share: float = field(init=False)
    """Share of the computed token positions that was padding, 0 to 1, to four places."""
    _timings: dict[float, dict[str, Any]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once for the micro-batch instead of once for every text in it.
        share = 1.0 - self.tokens / (self.rows * self.longest)
        object.__setattr__(self, "padding_share", round(share, 4))
        object.__setattr__(self, "_timings", {})

    def timing(self, queued_ms: float) -> dict[str, Any]:
        """What an answer says of it; the texts of one job share the very dict."""
        timing = self._timings.get(queued_ms)
        if timing is None:
            timing = self._timings[queued_ms] = {
                "queued_ms": queued_ms,
                "forward_ms": self.forward_ms,
                "batch_rows": self.rows,
                "padding_share": self.padding_share,
            }
        return timing


def activation_for(problem_type: str | None, num_labels: int) -> Activation:
    """The activation the pipeline would apply to a model with this configuration."""
    if problem_type == "regression":
        return Activation.NONE
    if problem_type == "multi_label_classification" or num_labels == 1:
        return Activation.SIGMOID
    return Activation.SOFTMAX


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities that sum to 1; shifted by the maximum so that none overflows."""
    if len(logits) == 2:  # noqa: PLR2004 - the same numbers, for the commonest of heads, sooner
        first, second = logits
        if first >= second:
            total = 1.0 + (lesser := math.exp(second - first))
            return [1.0 / total, lesser / total]
        total = (lesser := math.exp(first - second)) + 1.0
        return [lesser / total, 1.0 / total]
    top, exp = max(logits), math.exp
    powers = [exp(value - top) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logits: Sequence[float]) -> list[float]:
    """Each label's own probability; exp() is only taken of what is at most 0."""
    return [
        1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))
        for value in logits
    ]


def _tempered(inverse_temperature: float, logits: Sequence[float]) -> list[float]:
    return softmax([value * inverse_temperature for value in logits])


_FUNCTIONS: dict[Activation, Callable[[Sequence[float]], list[float]]] = {
    Activation.SOFTMAX: softmax,
    Activation.SIGMOID: sigmoid,
    Activation.NONE: list,
}


class Decoder:
    """Turns one text's logits into a dict that validates as `golem_tasks.contract.Prediction`."""

    def __init__(self, info: ModelInfo) -> None:
        self._labels = info.labels
        self._activate = _FUNCTIONS[info.activation]
        self._model: dict[str, Any] = {
            "name": info.name,
            "revision": info.revision,
            "dtype": info.dtype,
        }
        if info.temperature is not None:
            self._activate = partial(_tempered, 1 / info.temperature)
            self._model["temperature"] = info.temperature

    def decode(
        self,
        rows: Sequence[list[float]],
        encoded: Encoded,
        options: Options,
        queued_ms: float,
        batches: Sequence[MicroBatch],
    ) -> dict[str, Any]:
        """Build the prediction.

        Args:
            rows: logits of each of the text's rows, (rows, C).
            encoded: the text's rows, as the engine encoded them.
            options: the job's options.
            queued_ms: milliseconds the job waited before it was encoded.
            batches: the micro-batch each row was in.

        Raises:
            InferenceError: the model's answer isn't one number for each label, or isn't finite.
        """
        for logits in rows:
            # The sum of float32 values can't overflow, and shows a NaN or an infinity among them.
            if len(logits) != len(self._labels) or not math.isfinite(sum(logits)):
                raise self._unfit(logits)
        prediction = self._best(rows, encoded.weights, options.top_k)
        prediction["tokens"] = encoded.tokens
        prediction["truncated"] = encoded.truncated
        prediction["model"] = self._model
        timing = batches[0].timing(queued_ms)
        prediction["timing"] = timing if len(batches) == 1 else _of_all(timing, batches)
        if options.logits:
            prediction["logits"] = _mean(rows, encoded.weights)
        return prediction

    def _best(
        self, rows: Sequence[list[float]], weights: Sequence[int], top_k: int | None
    ) -> dict[str, Any]:
        """The label, and the scores asked for.

        The label is the logits' argmax, never the scores': an activation may round two logits to
        the same score, as sigmoid does with 40 and 50, and the label mustn't depend on `top_k`.
        """
        labels = self._labels
        if len(rows) == 1:
            best: int | None = _greatest(rows[0])
        else:
            best = _agreed(rows)
        if top_k == 0 and best is not None:
            return {"label": labels[best]}
        if len(rows) == 1:
            scores = self._activate(rows[0])
        else:
            scores = _mean([self._activate(logits) for logits in rows], weights)
        if best is None:
            best = _greatest(scores)
        if top_k == 0:
            return {"label": labels[best]}
        if top_k is None and len(scores) == 2:  # noqa: PLR2004 - see softmax
            other = 1 - best
            listed = {labels[best]: scores[best], labels[other]: scores[other]}
            return {"label": labels[best], "score": scores[best], "scores": listed}
        # The label first, then the highest score; equal ones in the order of the labels.
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        if order[0] != best:
            order.remove(best)
            order.insert(0, best)
        return {
            "label": labels[best],
            "score": scores[best],
            "scores": {labels[i]: scores[i] for i in order[:top_k]},
        }

    def _unfit(self, logits: list[float]) -> InferenceError:
        if len(logits) != len(self._labels):
            cause = f"{len(logits)} logits came back for {len(self._labels)} labels"
            return InferenceError.at("forward", cause)
        return InferenceError.at("forward", "the model answered with NaN or infinity")


def _greatest(values: list[float]) -> int:
    """Where the greatest is, the first of equal ones."""
    if len(values) == 2:  # noqa: PLR2004 - see softmax
        return 0 if values[0] >= values[1] else 1
    return values.index(max(values))


def _agreed(rows: Sequence[list[float]]) -> int | None:
    """The label every row puts first, and so their mean score, too; None if they differ."""
    first, *others = map(_greatest, rows)
    return first if all(other == first for other in others) else None


def _mean(rows: Sequence[list[float]], weights: Sequence[int]) -> list[float]:
    """Mean of the rows, each by its weight; the one row there mostly is stays as it is."""
    if len(rows) == 1:
        return rows[0]
    total = sum(weights)
    return [
        math.fsum(value * weight for value, weight in zip(column, weights, strict=True)) / total
        for column in zip(*rows, strict=True)
    ]


def _of_all(timing: dict[str, Any], batches: Sequence[MicroBatch]) -> dict[str, Any]:
    """A text of several windows waited for every micro-batch its windows were in."""
    total_ms = sum({id(batch): batch.forward_ms for batch in batches}.values())
    return {**timing, "forward_ms": round(total_ms, 3)}
