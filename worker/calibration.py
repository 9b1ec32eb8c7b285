"""Temperature scaling: scores that mean what they say. Pure but for the one small file.

A network's probabilities are mostly too sure of themselves. Dividing its logits by one number, the
temperature, fitted on labelled texts the model hasn't seen, mends most of that and changes no
label (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golem_tasks.errors import ConfigurationError
from worker.interfaces import Activation

__all__ = [
    "FILE_NAME",
    "Bin",
    "Calibration",
    "Quality",
    "fit_temperature",
    "quality",
    "read",
    "reliability",
    "remark",
    "unfit_head",
]

FILE_NAME = "golem_calibration.json"
"""In the model's folder, where the worker finds it by itself."""

BINS = 15
"""Bins of the expected calibration error, as in the paper."""

LEAST = 1e-6
"""A lower temperature could make a logit overflow, and every score 0 or 1."""

_COLDEST, _HOTTEST = 0.02, 50.0
_HALVINGS = 60  # of an interval of 50: down to 1e-16

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the file holds."""

    temperature: float
    """What logits are divided by: above 1 makes scores less sure."""
    labels: tuple[str, ...]
    """The model's, in the order of its logits; another model's file is refused by them."""
    texts: int
    """Labelled texts it was fitted on."""

    def save(self, file: Path) -> None:
        """Write the file.

        Raises:
            ConfigurationError: it can't be written.
        """
        try:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as exc:
            raise ConfigurationError(
                f"The calibration can't be written to {file}: {exc.strerror}; name another place "
                "with --out, and set GOLEM_CALIBRATION to it."
            ) from exc


@dataclass(frozen=True, slots=True)
class Quality:
    """How far scores can be believed."""

    nll: float
    """Mean negative log-likelihood of the true label, in nats."""
    ece: float
    """Expected calibration error, 0 to 1: how far scores are from the share that is right."""
    accuracy: float
    """Share of texts whose label is right."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Texts whose best score lies between two bounds."""

    low: float
    high: float
    count: int
    score: float
    """Their mean best score; 0 where there is none."""
    accuracy: float
    """The share of them whose label is right."""


def unfit_head(activation: Activation, labels: Sequence[str]) -> str | None:
    """Say, after the model's name, why a temperature is nothing for its head; None if it is."""
    if activation is Activation.SOFTMAX:
        return None
    if activation is Activation.NONE:
        return "is a regression, which answers values and no probabilities"
    if len(labels) == 1:
        return "has one label, so there are no others for it to be likelier than"
    return "has labels that don't exclude each other"


def read(file: Path, labels: Sequence[str]) -> Calibration:
    """Read a file and check that it belongs to a model of these labels.

    Raises:
        ConfigurationError: it can't be read, isn't one, or is of another model.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        temperature, texts = float(content["temperature"]), int(content["texts"])
        found = Calibration(temperature, tuple(content["labels"]), texts)
    except OSError as exc:
        raise _unfit(file, f"can't be read: {exc.strerror}") from None
    except (ValueError, TypeError, KeyError) as exc:
        raise _unfit(file, f"isn't a calibration ({type(exc).__name__}: {exc})") from None
    if not (math.isfinite(temperature) and temperature >= LEAST):
        raise _unfit(
            file, f"has the temperature {temperature}, which isn't at least {LEAST:g} and finite"
        )
    if found.labels != tuple(labels):
        raise _unfit(file, f"is of a model with the labels {', '.join(found.labels)}")
    return found


def fit_temperature(logits: Floats, truth: Integers) -> float:
    """The temperature of the least negative log-likelihood.

    That is convex in 1/T, so its slope, mean(expected logit - true logit), has one zero.

    Args:
        logits: (N, C).
        truth: the true label of each, (N,).
    """
    true_logits = logits[np.arange(len(truth)), truth]
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (_softmax(logits * middle) * logits).sum(axis=1)
        if float((expected - true_logits).mean()) < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high)


def remark(temperature: float, accuracy: float) -> str | None:
    """Say what is wrong with a fit in which no temperature was the best; None where one was.

    Args:
        temperature: the fitted one.
        accuracy: share of the texts it was fitted on whose label is right.
    """
    if accuracy == 1:
        return (
            "The model is right about every text the temperature was fitted on: the colder, the "
            f"likelier, and {temperature:.2g} is only where nothing more is gained; calibrate with "
            "more texts, or harder ones."
        )
    if math.isclose(temperature, _COLDEST, rel_tol=1e-6):
        return (
            f"{_COLDEST:g} is the lowest temperature that is tried, and a lower one may be better: "
            "the model's logits hardly differ; check that it was trained for this."
        )
    if math.isclose(temperature, _HOTTEST, rel_tol=1e-6):
        return (
            f"{_HOTTEST:g} is the highest temperature that is tried: the model's answers say "
            "nothing about these labels; check that they are the right column, and mean what the "
            "model's mean."
        )
    return None


def quality(logits: Floats, truth: Integers, temperature: float = 1.0) -> Quality:
    """Judge the scores at a temperature.

    Args:
        logits: (N, C).
        truth: the true label of each, (N,).
        temperature: what logits are divided by.
    """
    scores = _softmax(logits / temperature)
    of_truth = np.maximum(scores[np.arange(len(truth)), truth], np.finfo(float).tiny)
    bins = reliability(logits, truth, temperature, BINS)
    ece = sum(each.count * abs(each.score - each.accuracy) for each in bins) / len(truth)
    right = float((scores.argmax(axis=1) == truth).mean())
    return Quality(float(-np.log(of_truth).mean()), ece, right)


def reliability(logits: Floats, truth: Integers, temperature: float, bins: int) -> list[Bin]:
    """Compare best scores with how often they are right, in bins of equal width.

    Args:
        logits: (N, C).
        truth: the true label of each, (N,).
        temperature: what logits are divided by.
        bins: how many.
    """
    scores = _softmax(logits / temperature)
    best, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    places = np.minimum((best * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        inside = places == place
        count = int(inside.sum())
        score = float(best[inside].mean()) if count else 0.0
        accuracy = float(right[inside].mean()) if count else 0.0
        found.append(Bin(place / bins, (place + 1) / bins, count, score, accuracy))
    return found


def _softmax(logits: Floats) -> Floats:
    raised: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: Floats = raised / raised.sum(axis=1, keepdims=True)
    return scores


def _unfit(file: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The calibration file {file} {reason}: make it again with golem calibrate, remove it, or "
        "correct GOLEM_CALIBRATION."
    )
