"""From a `worker.source` to a model and its tokenizer, or to one sentence that says why not.

Only safetensors are read, since a pickled checkpoint can run code; a folder never touches the
network; and whatever Hugging Face only warns about, but would answer jobs wrongly for ever, is
refused: a head without trained weights, a tokenizer without a vocabulary, two labels of one name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from golem_tasks.errors import GolemError, ModelLoadError
from worker.quantizing import quantize
from worker.source import Source

__all__ = ["LoadedModel", "labels_of", "load_model", "max_tokens_of"]

_UNBOUNDED_TOKENS = 4096  # for a model that names no maximum: one row stays computable
_CAUSE_CHARS = 200
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What `load_model` found."""

    model: Any
    """A ``PreTrainedModel`` with a sequence classification head, in eval mode, on its device."""
    tokenizer: Any
    """A ``PreTrainedTokenizerFast``."""
    revision: str | None
    """Commit of a hub model; None for a folder."""
    dtype: str
    """As answers name it."""
    parameters: int
    """Numbers the model was trained to, counted before it is quantized, which hides them."""


def load_model(source: Source, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load tokenizer and model, straight into `dtype`, and refuse what would answer wrongly.

    ``torch.qint8`` loads float32 and quantizes it.

    Raises:
        ConfigurationError: it can't be quantized.
        ModelLoadError: with the cause and the remedy.
    """
    quantized = dtype is torch.qint8
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(source.location, **source.arguments)
        tokenizer = AutoTokenizer.from_pretrained(
            source.location, config=config, use_fast=True, **source.arguments
        )
        # No attn_implementation: the default is SDPA, and eager where an architecture has none.
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            config=config,
            dtype=torch.float32 if quantized else dtype,
            use_safetensors=True,
            output_loading_info=True,
            **source.arguments,
        )
        model = model.to(device).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        model = quantize(model) if quantized else model
    except GolemError:
        raise
    except Exception as exc:  # many libraries raise here; all of it becomes one sentence
        cause, remedy = _explain(exc)
        raise ModelLoadError.of(source.name, cause, remedy) from exc
    _check_weights(source, model, report)
    _check_tokenizer(source, tokenizer)
    _set_pad_token(source, model, tokenizer)
    commit = getattr(config, "_commit_hash", None) or source.revision
    name = "int8" if quantized else str(dtype).removeprefix("torch.")
    revision = None if source.is_folder else commit
    return LoadedModel(model, tokenizer, revision, name, parameters)


def labels_of(source: Source, config: Any) -> tuple[str, ...]:
    """The labels in the order of the logits.

    Raises:
        ModelLoadError: one is missing, or two have the same name and would share a score.
    """
    names = [str(config.id2label.get(i, "")) for i in range(config.num_labels)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        shown = ", ".join(repr(name) for name in twice[:_SHOWN_NAMES])
        cause = f"id2label in its config.json is incomplete or names {shown} more than once"
        raise ModelLoadError.of(source.name, cause, "Give every label a name of its own there.")
    return tuple(names)


def max_tokens_of(model: Any, tokenizer: Any) -> int:
    """The longest row the model takes: its tokenizer's maximum or its positions, if fewer."""
    limits = [tokenizer.model_max_length]  # 1e30 where nobody has set it
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _position_offset(model))
    found = min(limits)
    return int(found) if found < 1e9 else _UNBOUNDED_TOKENS  # noqa: PLR2004 - any absurd number


def _position_offset(model: Any) -> int:
    """RoBERTa and its kin count positions from ``padding_idx + 1``, so they have fewer to give."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _check_weights(source: Source, model: Any, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if not missing:
        return
    shown = ", ".join(missing[:_SHOWN_NAMES]) + (", ..." if len(missing) > _SHOWN_NAMES else "")
    saved_as = ", ".join(getattr(model.config, "architectures", None) or ["something else"])
    cause = (
        f"its checkpoint, saved as {saved_as}, has no weights for {shown}, which a sequence "
        "classification head needs"
    )
    remedy = "Choose a checkpoint fine-tuned for text classification; random answers help nobody."
    raise ModelLoadError.of(source.name, cause, remedy)


def _check_tokenizer(source: Source, tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        cause = f"{type(tokenizer).__name__} has no fast (Rust) version"
        remedy = "Save a tokenizer.json beside the model, or choose a model that has one."
        raise ModelLoadError.of(source.name, cause, remedy)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        cause = "it comes without a tokenizer, so that every word would be unknown"
        remedy = "Save one beside it with tokenizer.save_pretrained()."
        raise ModelLoadError.of(source.name, cause, remedy)


def _set_pad_token(source: Source, model: Any, tokenizer: Any) -> None:
    """Heads that read the last token find it by the pad token; GPT-like configs name none."""
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is not None:
        return
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    chosen = next((token for token in candidates if token is not None), None)
    if chosen is None and hasattr(config, "pad_token_id"):
        cause = "neither its config nor its tokenizer has a pad or an end-of-text token"
        remedy = "Set pad_token_id in its config.json; texts can't share a batch without it."
        raise ModelLoadError.of(source.name, cause, remedy)
    config.pad_token_id = chosen


_EXPLANATIONS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("trust_remote_code", "custom code"),
        "it comes with code of its own",
        "Read that code, and set GOLEM_TRUST_REMOTE_CODE=true only if you trust it.",
    ),
    (
        ("does not recognize this architecture",),
        f"transformers {transformers.__version__} doesn't know its architecture",
        "Update transformers, or choose another model.",
    ),
    (
        ("Unrecognized model in", "`model_type` key"),
        "its config.json names no model type",
        "Save it again with save_pretrained().",
    ),
    (
        ("is not a valid JSON file", "JSONDecodeError"),
        "its config.json or tokenizer files aren't JSON",
        "Copy or download it again.",
    ),
    (
        ("Permission denied", "PermissionError"),
        "this user may not read its files",
        "Grant the user of the worker the right to read them.",
    ),
    (
        ("for this kind of AutoModel",),
        "its architecture has no sequence classification head",
        "Choose a model for text classification.",
    ),
    (
        ("Couldn't instantiate the backend tokenizer", "Can't load tokenizer"),
        "it has no fast tokenizer",
        "Save a tokenizer.json beside it with tokenizer.save_pretrained().",
    ),
    (
        ("gated repo", "restricted", "401 Client Error", "403 Client Error"),
        "the hub wants you to be authorised for it",
        "Ask for access on its page, and set HF_TOKEN.",
    ),
    (
        ("not a valid model identifier", "Repository Not Found", "Repo id must"),
        "there is no such folder, and no such model on the hub",
        "Check GOLEM_MODEL; a private model needs HF_TOKEN.",
    ),
    (
        ("is not a valid git identifier", "Revision Not Found"),
        "the hub has no such revision of it",
        "Check GOLEM_MODEL_REVISION.",
    ),
    (
        ("couldn't connect", "offline mode", "Connection error", "LocalEntryNotFound"),
        "the hub can't be reached and the model isn't in the local cache",
        "Check the network, or set GOLEM_MODEL to a folder with the model.",
    ),
    (
        ("model.safetensors", "use_safetensors", ".safetensors in"),
        "it has no weights in the safetensors format",
        "Save it again with save_pretrained(), or choose a revision that has them.",
    ),
    (
        ("out of memory", "not enough memory", "can't allocate memory"),
        "it doesn't fit the memory",
        "Run fewer processes (GOLEM_PROCESSES), a smaller dtype (GOLEM_DTYPE) or a larger device.",
    ),
)


def _explain(exc: BaseException) -> tuple[str, str]:
    """Cause and remedy, out of what a dozen libraries may say."""
    text = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, SafetensorError):
        return (
            "its weights file is damaged, or a pointer of Git LFS instead of the file",
            "Copy or download it again; in a Git clone, run git lfs pull.",
        )
    for signs, cause, remedy in _EXPLANATIONS:
        if any(sign in text for sign in signs):
            return cause, remedy
    first_line = text.splitlines()[0][:_CAUSE_CHARS].rstrip(". ")
    return first_line, "Check that transformers alone can load it with from_pretrained()."
