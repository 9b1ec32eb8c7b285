"""Unlabelled text made from the training phrases; the teacher says what it means.

The treebank is 67,000 phrases cut from 7,000 sentences: the student soon knows them by heart. What
is made here need not be good English, only different, and near the text that people send.
"""

import random
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

Words = list[str]

# Each way of making a text, and its share of all texts made.
_SHARES = {
    "cut": 0.20,
    "thin": 0.20,
    "swap": 0.30,
    "splice": 0.18,
    "join": 0.10,
    "pile": 0.02,
}
_DROP_CHANCE = 0.15
_SWAP_CHANCE = 0.25
_SWAP_LETTERS = 3  # shorter words have no near ones worth taking
_NEIGHBOURS = 12
_LONG_WORDS = 5  # fewest of a phrase that can be cut or thinned and still say something
_BARE_CHANCE, _STOP_CHANCE = 0.30, 0.14  # of no punctuation at the end, and of a full stop
_PLAIN_CHANCE = 0.5  # of spacing as people write
_PILE_SENTENCES = (4, 9)  # fewest and one more than most; the schedule cuts what is too long

# Short sentences people write open like this; the treebank has few, so they are made.
_OPENERS = {"i", "this", "it", "what", "not", "you", "we", "they", "there", "such", "very", "the"}

_SPACE_BEFORE = re.compile(r" ([.,!?;:%)]|'(?:s|re|ve|ll|d|m)\b)")


def join_contractions(text: str) -> str:
    """Write the treebank's "do n't" and "-lrb-" the way people do: "don't" and "("."""
    text = text.replace(" n't", "n't").replace("-lrb- ", "(").replace("-rrb-", ")")
    return _SPACE_BEFORE.sub(r"\1", text)


def nearest_words(tokens: Sequence[str], embeddings: Tensor) -> dict[str, list[str]]:
    """Return the nearest whole words of each whole word in a vocabulary, by cosine."""
    whole = [
        index
        for index, token in enumerate(tokens)
        if token.isalpha() and len(token) >= _SWAP_LETTERS
    ]
    vectors = normalize(embeddings[whole], dim=-1)  # (W, D)
    result = {}
    for start in range(0, len(whole), 1024):
        similar = vectors[start : start + 1024] @ vectors.T  # (<=1024, W)
        # The nearest of all is the word itself.
        best = torch.topk(similar, _NEIGHBOURS + 1).indices[:, 1:]
        for offset, row in enumerate(best.tolist()):
            result[tokens[whole[start + offset]]] = [tokens[whole[index]] for index in row]
    return result


class Augmenter:
    """Makes texts from phrases; the same seed makes the same texts."""

    def __init__(
        self, phrases: Sequence[str], neighbours: dict[str, list[str]], rng: random.Random
    ) -> None:
        self._rng = rng
        self._neighbours = neighbours
        split = [phrase.split() for phrase in phrases]
        self._phrases = [words for words in split if len(words) > 1]
        self._long = [words for words in split if len(words) >= _LONG_WORDS]
        self._opening = [words for words in self._long if words[0] in _OPENERS]
        self._ways: dict[str, Callable[[], Words]] = {
            "cut": self._cut,
            "thin": self._thin,
            "swap": self._swap,
            "splice": self._splice,
            "join": self._join,
            "pile": self._pile,
        }

    def draw(self, count: int) -> list[str]:
        """Return `count` new texts."""
        ways = self._rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=count)
        return [self._finish(self._ways[way]()) for way in ways]

    def _cut(self) -> Words:
        words = self._rng.choice(self._long)
        start = self._rng.randrange(len(words) - 2)
        return words[start : self._rng.randint(start + 2, len(words))]

    def _thin(self) -> Words:
        words = self._rng.choice(self._long)
        return [word for word in words if self._rng.random() > _DROP_CHANCE]

    def _swap(self) -> Words:
        return [
            self._rng.choice(self._neighbours[word])
            if word in self._neighbours and self._rng.random() < _SWAP_CHANCE
            else word
            for word in self._rng.choice(self._long)
        ]

    def _splice(self) -> Words:
        """Begin like one phrase and end like another: a short sentence."""
        head, tail = self._rng.choice(self._opening), self._rng.choice(self._phrases)
        return head[: self._rng.randint(1, 4)] + tail[-self._rng.randint(1, 5) :]

    def _join(self) -> Words:
        return self._rng.choice(self._long) + self._rng.choice(self._long)

    def _pile(self) -> Words:
        """Several sentences: the model is offered whole reviews, too."""
        count = self._rng.randrange(*_PILE_SENTENCES)
        return [word for _ in range(count) for word in [*self._rng.choice(self._long), "."]]

    def _finish(self, words: Words) -> str:
        """Vary what carries no meaning: the spacing of the treebank, and the full stop."""
        text = " ".join(words)
        ending = self._rng.random()
        if ending < _BARE_CHANCE:
            text = text.rstrip(" .,")
        elif ending < _BARE_CHANCE + _STOP_CHANCE:
            text = text.rstrip(" .,") + " ."
        return join_contractions(text) if self._rng.random() < _PLAIN_CHANCE else text
