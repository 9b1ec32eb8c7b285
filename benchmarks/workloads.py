"""What is classified: texts of four length profiles, real ones where a data folder is named."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backlog import make_texts
from golem_tasks.errors import ConfigurationError

__all__ = ["WORKLOADS", "Texts", "texts_from", "texts_made_up", "workload"]

WORKLOADS = ("short", "mixed", "outlier", "even", "long")
"""Short sentences; three of them to one review; one review per 64; texts all as long as those are
on average; reviews only."""

_MIXED_SHARE = 4  # each fourth text is long
_OUTLIER_SHARE = 64  # Hugging Face's documentation of batching has one long text per 64


@dataclass(frozen=True, slots=True)
class Texts:
    """Where workloads are drawn from."""

    short: Sequence[str]
    long: Sequence[str]
    gold: Sequence[str] = ()
    """The right label of each short text, NEGATIVE or POSITIVE; none for made-up ones."""


def texts_from(folder: Path) -> Texts:
    """Read SST-2's dev sentences and film reviews of 100 to 600 words.

    Raises:
        ConfigurationError: they aren't in the folder.
    """
    try:
        with (folder / "sst2_glue" / "dev.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
        with (folder / "imdb_sample" / "imdb_100_600.jsonl").open(encoding="utf-8") as file:
            reviews = [json.loads(line)["text"] for line in file]
    except OSError as exc:
        raise ConfigurationError(
            f"The folder {folder} has no sst2_glue/dev.tsv and imdb_sample/imdb_100_600.jsonl "
            f"({exc.strerror}); name another, or leave --data away for made-up texts."
        ) from None
    gold = ["POSITIVE" if row[1] == "1" else "NEGATIVE" for row in rows]
    return Texts([row[0].strip() for row in rows], reviews, gold)


def texts_made_up() -> Texts:
    """Sentences of 8 to 20 words, and such sentences joined to 100 to 600 words."""
    rng = random.Random(0)  # noqa: S311 - a workload, not a secret
    short = make_texts(1_000)
    long = [" ".join(rng.choices(short, k=rng.randint(7, 40))) for _ in range(800)]
    return Texts(short, long)


def workload(name: str, texts: Texts, count: int) -> list[str]:
    """So many texts of a profile, the same for the same arguments.

    Raises:
        KeyError: there is no such profile.
    """
    if name == "even":
        return _even(texts, workload("outlier", texts, count))
    rng = random.Random(name)  # noqa: S311 - a workload, not a secret
    short = [texts.short[i % len(texts.short)] for i in range(count)]
    long = [texts.long[i % len(texts.long)] for i in range(count)]
    every = {"short": 0, "mixed": _MIXED_SHARE, "outlier": _OUTLIER_SHARE, "long": 1}[name]
    chosen = [long[i] if every and i % every == every - 1 else short[i] for i in range(count)]
    rng.shuffle(chosen)
    return chosen


def _even(texts: Texts, like: Sequence[str]) -> list[str]:
    """Texts of one length, in words the mean of `like`'s."""
    length = round(sum(len(text.split()) for text in like) / len(like))
    words = [word for text in texts.short for word in text.split()]
    starts = [number * length % (len(words) - length) for number in range(len(like))]
    return [" ".join(words[start : start + length]) for start in starts]
