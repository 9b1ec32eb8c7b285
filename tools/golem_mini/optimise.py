"""What teacher and student share: batches of like length, and one loop of optimiser steps."""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

log = logging.getLogger("golem_mini")

# Batches are cut from windows of this many, sorted by length: little padding, still well shuffled.
_WINDOW_BATCHES = 50
_LOG_EVERY_STEPS = 100
_MAX_GRADIENT_NORM = 1.0
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one model trains."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    max_tokens: int  # longer texts are cut

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the learning rate at a step: a linear rise, then a linear fall to zero."""
        return min(1.0, (step + 1) / self.warmup_steps) * max(0.0, 1.0 - step / total_steps)


def bf16() -> torch.autocast:
    """Matrix products in bfloat16, which recent CPUs multiply natively; weights stay float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both padded to the longest row."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # (B, T)
    mask = torch.zeros((len(rows), width), dtype=torch.long)  # (B, T)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


def bucketed(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[list[int]]:
    """Shuffle the indices of `lengths` into batches whose members are about equally long."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    window = batch_size * _WINDOW_BATCHES
    for start in range(0, len(order), window):
        chunk = sorted(order[start : start + window], key=lengths.__getitem__)
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return batches


def run(
    model: Module,
    schedule: Schedule,
    examples_per_epoch: int,
    epoch_losses: Callable[[int], Iterator[Tensor]],
) -> float:
    """Train `model` and return the seconds it took.

    `epoch_losses(epoch)` yields one loss per batch; each is stepped on before the next is asked
    for. There is no evaluation here on purpose: the last step is the result, whatever it is.
    """
    total_steps = schedule.epochs * math.ceil(examples_per_epoch / schedule.batch_size)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: schedule.factor(step, total_steps)
    )
    started, step = time.monotonic(), 0
    model.train()
    for epoch in range(schedule.epochs):
        for loss in epoch_losses(epoch):
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
            optimiser.step()
            rate.step()
            step += 1
            if step % _LOG_EVERY_STEPS == 0:
                seconds = time.monotonic() - started
                log.info("step %d/%d loss %.3f %.0f s", step, total_steps, loss.item(), seconds)
    model.eval()
    return time.monotonic() - started
