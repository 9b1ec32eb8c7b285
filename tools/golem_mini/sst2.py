"""The Stanford Sentiment Treebank as GLUE ships it: phrases with a label, one per line."""

import csv
from dataclasses import dataclass
from pathlib import Path

ID2LABEL = {0: "NEGATIVE", 1: "POSITIVE"}
LABEL2ID = {name: index for index, name in ID2LABEL.items()}


@dataclass(frozen=True)
class Example:
    """One phrase and its label (an index into ID2LABEL)."""

    text: str
    label: int


def find_folder(data: Path) -> Path:
    """Return the folder with train.tsv and dev.tsv: `data` itself or `data`/sst2_glue."""
    for folder in (data, data / "sst2_glue"):
        if (folder / "train.tsv").is_file() and (folder / "dev.tsv").is_file():
            return folder
    raise SystemExit(f"neither {data} nor {data / 'sst2_glue'} holds train.tsv and dev.tsv")


def read(path: Path) -> list[Example]:
    """Read one tab-separated file with the header `sentence<TAB>label`."""
    # A quotation mark is text here: with csv's default quoting, lines are silently joined.
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return [Example(row[0].strip(), int(row[1])) for row in rows]
