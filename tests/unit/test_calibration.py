from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.errors import ConfigurationError
from worker.calibration import Calibration, fit_temperature, quality, read, reliability, remark


def drawn(temperature: float, seed: int, count: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that come with the probabilities of logits / temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, 3))
    raised = np.exp(logits / temperature)
    scores = raised / raised.sum(axis=1, keepdims=True)
    truth = (scores.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return logits, np.minimum(truth, 2)


@given(st.floats(0.5, 4), st.integers(0, 5))
def test_the_temperature_the_labels_were_drawn_at_is_found(temperature: float, seed: int) -> None:
    """Within what 4,000 texts can tell."""
    assert fit_temperature(*drawn(temperature, seed)) == pytest.approx(temperature, rel=0.15)


@given(st.floats(0.5, 4), st.integers(0, 5), st.floats(0.1, 10))
def test_no_other_temperature_is_likelier(temperature: float, seed: int, other: float) -> None:
    """The fitted one has the least negative log-likelihood on the texts it was fitted on."""
    logits, truth = drawn(temperature, seed, 300)
    fitted = fit_temperature(logits, truth)
    assert quality(logits, truth, fitted).nll <= quality(logits, truth, other).nll + 1e-9


def test_calibration_changes_scores_and_never_a_label() -> None:
    """Accuracy stays; an over-confident model's error falls to what chance leaves."""
    logits, truth = drawn(2.5, seed=1)
    before, after = quality(logits, truth), quality(logits, truth, fit_temperature(logits, truth))
    assert before.accuracy == after.accuracy
    assert after.ece < 0.03 < before.ece


def test_a_model_that_is_always_right_is_left_right_and_sure() -> None:
    """Its likelihood grows with every colder temperature; the fit ends where nothing is gained."""
    logits = np.array([[3.0, -3.0], [-3.0, 3.0]])
    fitted = fit_temperature(logits, np.array([0, 1]))
    assert 0.02 <= fitted < 1
    assert quality(logits, np.array([0, 1]), fitted).nll < 1e-9


@pytest.mark.parametrize(
    ("scale", "truth", "told"),
    [
        (3.0, [0, 1, 0, 1], "right about every text"),
        (3.0, [1, 0, 1, 0], "50 is the highest temperature that is tried"),
        (1e-3, [0, 1, 0, 0], "0.02 is the lowest temperature that is tried"),
        (3.0, [0, 1, 0, 0], None),
    ],
)
def test_a_fit_without_a_best_temperature_is_remarked_on(
    scale: float, truth: list[int], told: str | None
) -> None:
    """Always right, always wrong, or logits that hardly differ; three of four right is a fit."""
    logits, labels = np.array([[scale, -scale], [-scale, scale]] * 2), np.array(truth)
    said = remark(fit_temperature(logits, labels), quality(logits, labels).accuracy)
    assert said is None if told is None else told in str(said)


def test_bins_hold_every_text_once() -> None:
    """A score of exactly 1 is in the last bin."""
    logits = np.array([[1000.0, 0.0], [0.0, 0.0], [0.2, 0.0]])
    bins = reliability(logits, np.array([0, 1, 0]), 1.0, 10)
    assert [each.count for each in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert bins[-1].score == bins[-1].accuracy == 1.0


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Temperature, labels and count."""
    file, written = tmp_path / "c.json", Calibration(1.5, ("A", "B"), 100)
    written.save(file)
    assert read(file, ["A", "B"]) == written


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't be read"),
        ("[]", "isn't a calibration"),
        ('{"temperature": 0, "labels": ["A"], "texts": 1}', "isn't at least 1e-06"),
        ('{"temperature": NaN, "labels": ["A"], "texts": 1}', "isn't at least 1e-06"),
        ('{"temperature": Infinity, "labels": ["A"], "texts": 1}', "isn't at least 1e-06"),
        ('{"temperature": 9e-7, "labels": ["A"], "texts": 1}', "isn't at least 1e-06"),
        ('{"temperature": 1e-310, "labels": ["A"], "texts": 1}', "isn't at least 1e-06"),
        ('{"temperature": 1, "labels": ["B"], "texts": 1}', "with the labels B"),
    ],
)
def test_a_file_that_doesnt_fit_is_refused_with_the_remedy(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    """Whatever is wrong with it."""
    file = tmp_path / "c.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=f"{reason}.*golem calibrate"):
        read(file, ["A"])
