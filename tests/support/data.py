"""Real text for the tests. It isn't part of the project; where it is absent, the tests skip."""

import csv
import json
import os
from functools import cache
from pathlib import Path

import pytest

# A checkout may stand beside a folder with the data; GOLEM_TEST_DATA names another place.
_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"


def data_folder() -> Path:
    """The folder with the data sets, or a visible skip."""
    folder = Path(os.environ.get("GOLEM_TEST_DATA", _BESIDE))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set GOLEM_TEST_DATA")
    return folder


@cache
def sst2_dev() -> list[tuple[str, int]]:
    """The 872 SST-2 dev sentences with label 0 (negative) or 1 (positive)."""
    with (data_folder() / "sst2_glue" / "dev.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [(text.strip(), int(label)) for text, label in rows]


@cache
def long_reviews() -> list[str]:
    """Film reviews of 100 to 600 words."""
    # Not splitlines(): the reviews hold U+0085, which it takes for the end of a line.
    with (data_folder() / "imdb_sample" / "imdb_100_600.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]
