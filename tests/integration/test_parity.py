"""Right answers: what comes back through Redis is what Hugging Face's pipeline says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

import worker
from golem_tasks import Golem, Prediction
from golem_tasks.embedded import EmbeddedServer
from tests.support.data import long_reviews, sst2_dev
from tests.support.workers import WorkerProcess

EMBEDDED_FOLDER = Path(worker.__file__).parent / "models" / "golem_mini"
REVIEWS = 200
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The 872 SST-2 dev sentences and 200 long reviews."""
    return [text for text, _ in sst2_dev()] + long_reviews()[:REVIEWS]


@pytest.fixture(scope="module")
def reference(texts: list[str]) -> list[dict[str, Any]]:
    """The pipeline's answers on the same folder, in float32, one text at a time."""
    classify = pipeline(
        "text-classification", model=str(EMBEDDED_FOLDER), dtype=torch.float32, device="cpu"
    )
    return [classify(text, truncation=True)[0] for text in texts]


def answers(tmp_path: Path, dtype: str, texts: list[str]) -> list[Prediction]:
    """All texts as single jobs, all at once, through a worker of their own."""
    with EmbeddedServer() as server:
        env = {"GOLEM_BROKER_URL": server.url, "GOLEM_DTYPE": dtype}
        with WorkerProcess(tmp_path, env), Golem(server.url) as golem:
            jobs = golem.submit_many(texts)
            return [job.result(timeout=300) for job in jobs]


def test_float32_gives_the_pipelines_answer_in_every_case(
    tmp_path: Path, texts: list[str], reference: list[dict[str, Any]]
) -> None:
    """Same label for all 1,072 texts, scores within 1e-4, whatever they were batched with."""
    got = answers(tmp_path, "float32", texts)
    for text, ours, theirs in zip(texts, got, reference, strict=True):
        assert ours.label == theirs["label"], text
        assert ours.score == pytest.approx(theirs["score"], abs=TOLERANCE), text


def test_bfloat16_gives_the_pipelines_label_in_995_of_1000_cases_and_is_as_often_right(
    tmp_path: Path, texts: list[str], reference: list[dict[str, Any]]
) -> None:
    """Labels move only where it was a toss-up: accuracy on SST-2 dev stays within 0.3 points."""
    got = answers(tmp_path, "bfloat16", texts)
    agree = sum(ours.label == theirs["label"] for ours, theirs in zip(got, reference, strict=True))
    assert agree >= 0.995 * len(texts)
    truth = [("NEGATIVE", "POSITIVE")[label] for _, label in sst2_dev()]
    right, right_there = (
        sum(label == true for label, true in zip(labels, truth, strict=False))  # these come first
        for labels in ([ours.label for ours in got], [theirs["label"] for theirs in reference])
    )
    assert abs(right - right_there) <= 0.003 * len(truth)
