"""The output of a bulk run as its own record: whatever was cut off, the next run completes it."""

import io
import json
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.cli.outfile import Outcome, OutFile, entry_of, finished_entries, to_bytes
from golem_tasks.contract import ItemError, Model, Prediction, Timing
from golem_tasks.errors import ConfigurationError
from golem_tasks.textfiles import Line

MODEL = Model(name="test", revision=None, dtype="float32")
TIMING = Timing(queued_ms=1.0, forward_ms=2.0, batch_rows=1, padding_share=0.0)


def predicted(label: str) -> Prediction:
    """A prediction with this label."""
    return Prediction(
        label=label,
        score=0.75,
        scores={label: 0.75},
        tokens=3,
        truncated=False,
        model=MODEL,
        timing=TIMING,
    )


def outcome(number: int, text: str) -> Outcome:
    """What becomes of a text; one with an x in it fails."""
    line = Line(number, text, None)
    if "x" in text:
        return Outcome(line, ItemError(type="InvalidJob", message=f"no {text}"))
    return Outcome(line, predicted(text[:1] or "EMPTY"))


def run(path: Path, texts: list[str]) -> int:
    """Do what a run does: skip what is there, answer the rest; return how many it skipped."""
    lines: Iterator[Line] = (Line(number, text, None) for number, text in enumerate(texts, 1))
    with OutFile(path) as out:
        skipped = out.skip_finished(lines)
        out.write([outcome(line.number, line.text) for line in lines])
    return skipped


# Any character JSON gives back as it was: lone surrogates too, but no pair of them.
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.just("\ud800")), max_size=8)


@given(TEXTS)
def test_what_is_written_is_read_back(texts: list[str]) -> None:
    """Every whole line comes back as it was, with where it ends."""
    entries = [entry_of(outcome(number, text)) for number, text in enumerate(texts, 1)]
    content = b"".join(map(to_bytes, entries))
    found = list(finished_entries(io.BytesIO(content)))
    assert [entry for entry, _ in found] == entries
    assert [end for _, end in found][-1:] == ([len(content)] if entries else [])


@given(TEXTS, st.data())
def test_a_run_cut_off_at_any_byte_is_completed_by_the_next(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    """Both files end up byte for byte as without the cut, and no whole line is done again."""
    folder = tmp_path_factory.mktemp("cut")
    whole, cut = folder / "whole.jsonl", folder / "cut.jsonl"
    assert run(whole, texts) == 0
    content = whole.read_bytes()
    kept = content[: data.draw(st.integers(0, len(content)))]
    cut.write_bytes(kept)
    assert run(cut, texts) == kept.count(b"\n")
    assert cut.read_bytes() == content
    failed = [path.with_suffix(".failed.jsonl") for path in (whole, cut)]
    assert [path.exists() for path in failed] == [any("x" in text for text in texts)] * 2
    if failed[0].exists():
        assert failed[0].read_bytes() == failed[1].read_bytes()


def test_the_failed_lines_have_a_file_of_their_own(tmp_path: Path) -> None:
    """It holds the failed lines as the output does, so that it can be the next run's input."""
    path = tmp_path / "out.jsonl"
    run(path, ["good", "x1", "fine", "x2"])
    failed = (tmp_path / "out.failed.jsonl").read_text().splitlines()
    assert failed == [line for line in path.read_text().splitlines() if '"error"' in line]
    assert [json.loads(line)["text"] for line in failed] == ["x1", "x2"]


def test_a_changed_input_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    """The sentence names the line; the answers stay as they were."""
    path = tmp_path / "out.jsonl"
    run(path, ["a", "b", "c"])
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="answers line 2, and the input has another text"):
        run(path, ["a", "B", "c", "d"])
    with pytest.raises(ConfigurationError, match="answers line 3, and the input ends before it"):
        run(path, ["a", "b"])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ['{"line": 2, "text": "a"}\n', "hello\n", "[]\n", '{"line": 1, "text": "a"}\n', "\n"]
)
def test_a_file_that_is_no_output_is_left_alone(tmp_path: Path, content: str) -> None:
    """Somebody's own file, named as --out by mistake, isn't touched."""
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="isn't an output of golem classify"):
        run(path, ["a"])
    assert path.read_text() == content


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    """The second is told so, and the first goes on."""
    path = tmp_path / "out.jsonl"
    with OutFile(path), pytest.raises(ConfigurationError, match="Another golem classify writes"):
        OutFile(path)
    assert run(path, ["a"]) == 0


def test_a_file_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A folder that isn't there names the remedy."""
    with pytest.raises(ConfigurationError, match="can't be written: No such file"):
        OutFile(tmp_path / "missing" / "out.jsonl")


def test_the_tally_counts_labels_and_models_over_runs(tmp_path: Path) -> None:
    """A run that goes on counts what the one before it has done."""
    path = tmp_path / "out.jsonl"
    texts = [*string.ascii_lowercase, "apple", "xx"]
    run(path, texts[:10])
    with OutFile(path) as out:
        out.skip_finished(Line(number, text, None) for number, text in enumerate(texts, 1))
        out.write([outcome(number, text) for number, text in enumerate(texts[10:], 11)])
        assert out.tally.lines == len(texts)
        assert out.tally.failed == 2
        assert out.tally.labels["a"] == 2
        assert out.tally.models == {"test"}
