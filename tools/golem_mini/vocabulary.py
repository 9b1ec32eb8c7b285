"""A WordPiece vocabulary cut down to what sentiment needs, without losing any text.

Word embeddings are most of a small model, and of MiniLM's 30,522 tokens the treebank uses fewer
than half. What is dropped is spelled with the pieces that stay: every single character is kept,
alone and as a continuation, so a text tokenizes to [UNK] only where MiniLM's own would.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

SIZE_TOKENS = 12_000
MAX_TOKENS = 512  # the position embeddings MiniLM comes with

_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def choose(vocabulary: dict[str, int], rows: Iterable[list[int]], size: int) -> list[int]:
    """Return the ids to keep, ascending: specials, single characters, then the most frequent."""
    needed = [vocabulary[token] for token in _SPECIALS.values()]
    needed += [index for token, index in vocabulary.items() if len(token.removeprefix("##")) == 1]
    counts = Counter(token for row in rows for token in row)
    frequent = [index for index, _ in counts.most_common()]
    # BERT numbers its tokens roughly by frequency in books and Wikipedia: a fair order for the
    # places that are left. The [unusedN] places are not worth an embedding.
    general = sorted(index for token, index in vocabulary.items() if not token.startswith("[unu"))
    return sorted(list(dict.fromkeys(needed + frequent + general))[:size])


def trimmed_tokenizer(source: Path, kept: list[int], folder: Path) -> PreTrainedTokenizerFast:
    """Write the tokenizer of `source` reduced to the ids in `kept`, and load it from `folder`."""
    definition = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    new_id = {old: new for new, old in enumerate(kept)}
    _renumber(definition, new_id)
    settings = {
        "tokenizer_class": "DistilBertTokenizer",
        "do_lower_case": True,
        "model_max_length": MAX_TOKENS,
        "model_input_names": ["input_ids", "attention_mask"],  # DistilBERT has no token types
        **_SPECIALS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    compact = json.dumps(definition, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    indented = json.dumps(settings, indent=2)
    (folder / "tokenizer_config.json").write_text(indented + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a model folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError(f"{folder} holds a slow tokenizer, {type(tokenizer).__name__}")
    return tokenizer


def _renumber(definition: dict[str, Any], new_id: dict[int, int]) -> None:
    """Give every token of a tokenizer.json its new id, in each place that names one."""
    vocabulary = definition["model"]["vocab"]
    kept = {token: new_id[old] for token, old in vocabulary.items() if old in new_id}
    definition["model"]["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    for token in definition["added_tokens"]:
        token["id"] = new_id[token["id"]]
    for special in definition["post_processor"]["special_tokens"].values():
        special["ids"] = [new_id[old] for old in special["ids"]]
    # Cutting and padding are the caller's business, not a default of this file.
    definition["truncation"] = definition["padding"] = None
