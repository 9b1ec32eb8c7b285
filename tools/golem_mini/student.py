"""Stage 2, the student: three of the teacher's six layers as a DistilBERT, distilled."""

import logging
import random
from collections.abc import Iterator, Sequence

import torch
from augment import Augmenter, nearest_words
from optimise import Schedule, bf16, bucketed, pad, run
from sst2 import ID2LABEL, LABEL2ID, Example
from teacher import Teacher
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, mse_loss
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from vocabulary import MAX_TOKENS

log = logging.getLogger("golem_mini")

SCHEDULE = Schedule(epochs=3, batch_size=128, learning_rate=1e-4, warmup_steps=200, max_tokens=192)
FRAGMENTS_PER_EPOCH = 40_000  # fresh ones in every epoch

# The first layer, one from the middle, and the last, whose output the head was trained on.
_TEACHER_LAYERS = (0, 2, 5)
LABEL_WEIGHT = 0.3  # of the cross-entropy, next to the squared error of the logits
_NO_LABEL = -100  # ignored by cross_entropy

_LAYER_NAMES = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


def build(teacher: BertForSequenceClassification) -> DistilBertForSequenceClassification:
    """Return a student that starts from the teacher's embeddings and three of its layers."""
    source = teacher.config
    config = DistilBertConfig(
        vocab_size=source.vocab_size,
        dim=source.hidden_size,
        n_heads=source.num_attention_heads,
        hidden_dim=source.intermediate_size,
        n_layers=len(_TEACHER_LAYERS),
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=source.pad_token_id,
        attention_dropout=0.0,
        seq_classif_dropout=0.1,
        id2label=ID2LABEL,
        label2id=LABEL2ID,
    )
    student = DistilBertForSequenceClassification(config)
    student.set_attn_implementation("eager")  # faster to train on a CPU, see the teacher
    with torch.no_grad():
        _copy_embeddings(teacher, student)
        for index, layer in zip(_TEACHER_LAYERS, student.distilbert.transformer.layer, strict=True):
            _copy_layer(teacher.bert.encoder.layer[index], layer)
    # The head starts anew: DistilBERT's has ReLU where BERT's has tanh.
    return student


def train(
    teacher: Teacher, examples: Sequence[Example], seed: int
) -> tuple[DistilBertForSequenceClassification, float]:
    """Distil the teacher into a new student; return it and the seconds it took."""
    rng = random.Random(seed)
    torch.manual_seed(seed)  # dropout and head: the same whether the teacher was cached or not
    student = build(teacher.model)
    phrases = [example.text for example in examples]
    augmenter = Augmenter(phrases, _neighbours(teacher), rng)
    labels = torch.tensor(
        [example.label for example in examples] + [_NO_LABEL] * FRAGMENTS_PER_EPOCH
    )  # (N,)

    phrase_rows = _tokenized(teacher, phrases)
    phrase_targets = teacher.logits(phrase_rows)  # (phrases, 2)

    def epoch_losses(epoch: int) -> Iterator[Tensor]:
        fragment_rows = _tokenized(teacher, augmenter.draw(FRAGMENTS_PER_EPOCH))
        rows = phrase_rows + fragment_rows
        targets = torch.cat([phrase_targets, teacher.logits(fragment_rows)])  # (N, 2)
        log.info("student: epoch %d, %d texts labelled by the teacher", epoch, len(rows))
        for batch in bucketed([len(row) for row in rows], SCHEDULE.batch_size, rng):
            ids, mask = pad([rows[index] for index in batch], teacher.tokenizer.pad_token_id)
            with bf16():
                scores = student(input_ids=ids, attention_mask=mask).logits.float()  # (B, 2)
            yield _loss(scores, targets[batch], labels[batch])

    return student, run(student, SCHEDULE, len(labels), epoch_losses)


def _tokenized(teacher: Teacher, texts: list[str]) -> list[list[int]]:
    rows: list[list[int]] = teacher.tokenizer(
        texts, truncation=True, max_length=SCHEDULE.max_tokens
    )["input_ids"]
    return rows


def _loss(scores: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Distance from the teacher's logits, plus a share of the error on what is labelled."""
    loss = mse_loss(scores, targets)
    if bool((labels != _NO_LABEL).any()):  # the mean over no labels at all is NaN
        loss = loss + LABEL_WEIGHT * cross_entropy(scores, labels, ignore_index=_NO_LABEL)
    return loss


def _neighbours(teacher: Teacher) -> dict[str, list[str]]:
    tokens = teacher.tokenizer.convert_ids_to_tokens(list(range(len(teacher.tokenizer))))
    weight = teacher.model.bert.embeddings.word_embeddings.weight.detach()  # (V, D)
    return nearest_words(tokens, weight)


def _copy_embeddings(
    teacher: BertForSequenceClassification, student: DistilBertForSequenceClassification
) -> None:
    source, target = teacher.bert.embeddings, student.distilbert.embeddings
    target.word_embeddings.weight.copy_(source.word_embeddings.weight)
    # DistilBERT has no token types; every token here is of type 0, so that one is a constant.
    target.position_embeddings.weight.copy_(
        source.position_embeddings.weight + source.token_type_embeddings.weight[0]
    )
    target.LayerNorm.load_state_dict(source.LayerNorm.state_dict())


def _copy_layer(source: Module, target: Module) -> None:
    """Copy one BERT layer into a DistilBERT layer: the same arithmetic under other names."""
    for target_name, source_name in _LAYER_NAMES.items():
        state = source.get_submodule(source_name).state_dict()
        target.get_submodule(target_name).load_state_dict(state)
