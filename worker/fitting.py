"""What ``golem calibrate`` does: labelled texts through the model, a temperature from half of them.

The other half judges it: figures of the texts it was fitted on would flatter it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import ConfigurationError, JobError
from worker.calibration import (
    Bin,
    Calibration,
    Floats,
    Integers,
    Quality,
    fit_temperature,
    quality,
    reliability,
    remark,
    unfit_head,
)
from worker.classifier import Classifier, Work
from worker.interfaces import Engine, ModelInfo

__all__ = ["LEAST_TEXTS", "Fitted", "fit", "require_softmax"]

LEAST_TEXTS = 100
"""With fewer, chance decides more than the model."""

_DISPATCH = 64
_SHOWN_BINS = 10


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration, and what it does for texts it hasn't seen."""

    calibration: Calibration
    judged_on: int
    """Texts, none of which it was fitted on."""
    failed: int
    """Texts the model has no answer for."""
    before: Quality
    after: Quality
    bins_before: list[Bin]
    bins_after: list[Bin]
    remark: str | None
    """What is wrong with the fit, if anything is."""


def require_softmax(info: ModelInfo) -> None:
    """Make sure that a temperature is something for this model.

    Raises:
        ConfigurationError: its head isn't one label among several.
    """
    if reason := unfit_head(info.activation, info.labels):
        raise ConfigurationError(
            f"{info.name} can't be calibrated by a temperature: it {reason}; only models of one "
            "label among several can."
        )


def fit(
    engine: Engine,
    texts: Sequence[str],
    truth: Sequence[int],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Fitted:
    """Fit a temperature on half of the texts and judge it on the other half.

    Args:
        engine: the model.
        texts: labelled texts the model wasn't trained on.
        truth: index of each one's true label.
        seed: of the split.
        progress: called with the number of texts classified since the last call.

    Raises:
        ConfigurationError: there are too few texts, or a temperature is nothing for this model.
    """
    info = engine.info
    require_softmax(info)
    logits, labels, failed = _classify(engine, texts, truth, progress)
    if len(labels) < LEAST_TEXTS:
        raise ConfigurationError(
            f"{len(labels)} labelled texts are too few to calibrate with: give at least "
            f"{LEAST_TEXTS}, better some thousand."
        )
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a split, not a secret
    half = len(order) // 2
    fitted_on = (logits[order[:half]], labels[order[:half]])
    temperature = fit_temperature(*fitted_on)
    judged = (logits[order[half:]], labels[order[half:]])
    return Fitted(
        Calibration(temperature, info.labels, half),
        len(order) - half,
        failed,
        quality(*judged),
        quality(*judged, temperature),
        reliability(*judged, 1.0, _SHOWN_BINS),
        reliability(*judged, temperature, _SHOWN_BINS),
        remark(temperature, quality(*fitted_on).accuracy),
    )


def _classify(
    engine: Engine, texts: Sequence[str], truth: Sequence[int], progress: Callable[[int], None]
) -> tuple[Floats, Integers, int]:
    """Logits (N, C) and true labels (N,) of the texts that were answered; how many weren't."""
    classifier = Classifier(engine)
    options = Options(top_k=0, logits=True)
    logits: list[list[float]] = []
    labels: list[int] = []
    for start in range(0, len(texts), _DISPATCH):
        some = texts[start : start + _DISPATCH]
        outcomes = classifier.classify([Work(TextItem(t), options, 0.0) for t in some]).outcomes
        for outcome, label in zip(outcomes, truth[start : start + _DISPATCH], strict=True):
            if not isinstance(outcome, JobError):
                logits.append(outcome["logits"])
                labels.append(label)
        progress(len(some))
    return np.array(logits), np.array(labels, dtype=np.int64), len(texts) - len(labels)
