"""Small models with random weights, built on the spot: every kind of head, no network."""

import random
import string
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

Kind = Literal["distilbert", "bert", "roberta", "gpt2", "xlnet"]

WORDS = ("the", "film", "is", "not", "good", "bad", "and", "never", "moves", "slowly", "who")
MAX_TOKENS = 64
_SCALE = 12.0

_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_TOKENS},
    "xlnet": {"d_model": 32, "d_inner": 64, "n_layer": 2, "n_head": 4},
}
_SIZES["roberta"] = _SIZES["bert"]
_LAYERS = ("n_layers", "num_hidden_layers", "n_layer")


def build(
    folder: Path,
    kind: Kind = "distilbert",
    labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE"),
    *,
    problem_type: str | None = None,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Save a random model and its tokenizer into the folder and return it.

    Weights are larger than an untrained model's, so that answers differ from text to text.
    """
    tokenizer = build_tokenizer(kind)
    sizes = {name: layers if name in _LAYERS else size for name, size in _SIZES[kind].items()}
    if kind in ("distilbert", "bert"):
        sizes["max_position_embeddings"] = MAX_TOKENS
    elif kind == "roberta":
        sizes["max_position_embeddings"] = MAX_TOKENS + 2  # they begin after its pad id, 1
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem_type,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(_SCALE) if parameter.dim() > 1 else parameter.add_(0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """A tokenizer that knows some words and any ASCII character, in the manner of the kind."""
    if kind == "gpt2":
        return _byte_level()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "roberta":
        specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*specials, *WORDS, *characters, *("##" + c for c in characters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    if kind == "xlnet":
        single, pair = "$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"
    tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = ["input_ids", "attention_mask"]
    if kind in ("bert", "xlnet"):
        names.insert(1, "token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        model_input_names=names,
        unk_token="[UNK]",  # noqa: S106 - not a password
        pad_token="[PAD]",  # noqa: S106 - not a password
        cls_token="[CLS]",  # noqa: S106 - not a password
        sep_token="[SEP]",  # noqa: S106 - not a password
        padding_side="left" if kind == "xlnet" else "right",
    )


def _byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: no special tokens round a text, no pad token, no maximum length."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",  # noqa: S106 - not a password
        model_input_names=["input_ids", "attention_mask"],
    )


def texts(count: int, *, longest: int = 30, seed: int = 0) -> list[str]:
    """Texts of 1 to `longest` words, some of which the vocabulary has to spell."""
    chance = random.Random(seed)  # noqa: S311 - test data
    words = (*WORDS, "unseen", "x1", "really?!")
    return [" ".join(chance.choices(words, k=chance.randint(1, longest))) for _ in range(count)]
