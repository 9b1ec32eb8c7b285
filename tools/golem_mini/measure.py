"""What the saved model is worth, measured the way its users load it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sst2 import Example
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from vocabulary import load_tokenizer

# What anyone types first. Only a check: the model is never trained on these.
PLAIN_SENTENCES = (
    Example("I love this", 1),
    Example("I hate this", 0),
    Example("not bad at all", 1),
    Example("what a waste of two hours", 0),
)

_BATCH_SIZE = 64
_EVEN = 0.5  # a probability of POSITIVE above it is that answer
_MIN_ACCURACY = 0.88
_MAX_BYTES = 24_000_000


@dataclass(frozen=True)
class Measured:
    """Everything the model card says in numbers."""

    sentences: int
    correct_float32: int
    correct_bfloat16: int
    agreeing: int  # sentences on which float32 and bfloat16 have the same answer
    largest_difference: float  # between the two, in any sentence's probability of POSITIVE
    plain: tuple[tuple[Example, float], ...]  # with the probability of POSITIVE
    parameters: int
    size_bytes: int  # of every file in the folder but the model card

    @property
    def accuracy(self) -> float:
        """Share of the dev sentences that came out right, in float32."""
        return self.correct_float32 / self.sentences

    def shortcomings(self) -> list[str]:
        """Name every demand on golem-mini that this model misses."""
        misses = []
        if self.accuracy < _MIN_ACCURACY:
            misses.append(f"accuracy {self.accuracy:.4f} is below {_MIN_ACCURACY}")
        if self.size_bytes > _MAX_BYTES:
            misses.append(f"{self.size_bytes} bytes are more than {_MAX_BYTES}")
        for example, positive in self.plain:
            if (positive > _EVEN) != bool(example.label):
                misses.append(f"{example.text!r} came out wrong ({positive:.3f} positive)")
        return misses


def measure(folder: Path, dev: Sequence[Example]) -> Measured:
    """Load the model in `folder` and measure it on all of `dev`."""
    examples = [*dev, *PLAIN_SENTENCES]
    labels = torch.tensor([example.label for example in dev])  # (N,)
    texts = [example.text for example in examples]
    exact = _positive(folder, texts, torch.float32)  # (N + plain,)
    rough = _positive(folder, texts, torch.bfloat16)[: len(dev)]  # (N,)
    answers, rough_answers = exact[: len(dev)] > _EVEN, rough > _EVEN
    return Measured(
        sentences=len(dev),
        correct_float32=int((answers == labels).sum()),
        correct_bfloat16=int((rough_answers == labels).sum()),
        agreeing=int((answers == rough_answers).sum()),
        largest_difference=float((exact[: len(dev)] - rough).abs().max()),
        plain=tuple(zip(PLAIN_SENTENCES, exact[len(dev) :].tolist(), strict=True)),
        parameters=AutoModelForSequenceClassification.from_pretrained(folder).num_parameters(),
        size_bytes=sum(
            file.stat().st_size for file in folder.iterdir() if file.name != "README.md"
        ),
    )


def _positive(folder: Path, texts: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Return each text's probability of POSITIVE, computed in `dtype`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = load_tokenizer(folder)
    chunks = []
    with torch.inference_mode():
        for start in range(0, len(texts), _BATCH_SIZE):
            batch = tokenizer(
                list(texts[start : start + _BATCH_SIZE]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            chunks.append(model(**batch).logits.float().softmax(-1)[:, 1])  # (B,)
    return torch.cat(chunks)
