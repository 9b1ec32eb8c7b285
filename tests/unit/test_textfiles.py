"""Texts out of files: every format, every way a line or a file can be wrong."""

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.contract import Limits
from golem_tasks.errors import ConfigurationError, TextTooLong
from golem_tasks.textfiles import Format, Line, format_of, open_texts

OPENERS = {"": Path.open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def read(path: Path | IO[bytes], **options: object) -> list[Line]:
    """Every record of a file."""
    with open_texts(path, **options) as source:  # type: ignore[arg-type]
        return list(source.lines)


def stream(content: bytes, kind: Format, **options: object) -> list[Line]:
    """Every record of a stream."""
    return read(io.BytesIO(content), kind=kind, **options)


def texts(lines: list[Line]) -> list[str]:
    """What the records say."""
    return [line.text for line in lines]


def reasons(lines: list[Line]) -> list[str]:
    """Why records are refused; empty where one isn't."""
    return ["" if line.error is None else line.error.reason for line in lines]


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\ntwo, too\n"),
        ("a.csv", 'id,text\n1,one\n2,"two, too"\n'),
        ("a.tsv", "id\ttext\n1\tone\n2\ttwo, too\n"),
        ("a.jsonl", '{"text": "one", "id": 1}\n"two, too"\n'),
        ("a.NDJSON", '{"text": "one"}\n{"text": "two, too"}\n'),
    ],
)
def test_each_format_is_read_also_compressed(
    tmp_path: Path, name: str, content: str, ending: str
) -> None:
    """The ending tells the format; the records are numbered and none is refused."""
    path = tmp_path / (name + ending)
    with OPENERS[ending](path, "wb") as file:
        file.write(content.encode())
    lines = read(path)
    assert [(line.number, line.text, line.error) for line in lines] == [
        (1, "one", None),
        (2, "two, too", None),
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_jsonl_gives_back_any_texts(written: list[str]) -> None:
    """Whatever a text holds, it is read as it was written."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in written)
    assert texts(stream(content.encode(), Format.JSONL)) == written


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))))
def test_csv_gives_back_any_texts(written: list[str]) -> None:
    """Delimiters, quotes and line ends within a text don't split it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "text"])
    writer.writerows([[number, text] for number, text in enumerate(written)])
    assert texts(stream(out.getvalue().encode(), Format.CSV)) == written


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))))
def test_txt_gives_back_any_lines(written: list[str]) -> None:
    """Only a line feed ends a line; what Unicode also calls one stays in its text."""
    content = "".join(text + "\n" for text in written).encode()
    assert texts(stream(content, Format.TXT)) == [
        text.removeprefix("\ufeff") if number == 0 else text for number, text in enumerate(written)
    ]


@given(st.binary(), st.sampled_from([Format.TXT, Format.JSONL, Format.CSV]))
def test_hostile_bytes_are_refused_line_by_line(content: bytes, kind: Format) -> None:
    """Any bytes give numbered records, or the one sentence; nothing else is raised."""
    try:
        lines = stream(content, kind)
    except ConfigurationError:
        return
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        line.text.encode() if line.error is None else str(line.error)


def test_line_ends_of_windows_and_a_missing_last_one_do_not_matter() -> None:
    """CRLF, a byte order mark and no line end at the end: the texts are the same."""
    content = "\ufeffone\r\ntwo".encode()
    assert texts(stream(content, Format.TXT)) == ["one", "two"]


def test_a_line_that_is_no_text_fails_alone() -> None:
    """Empty, blank, not UTF-8, with a NUL: each is refused with its reason, the rest is read."""
    lines = stream(b"good\n\n  \n\xff\xfe\nna\0ul\nlast", Format.TXT)
    assert reasons(lines) == [
        "",
        "is empty",
        "is empty",
        "isn't UTF-8 (byte 1)",
        "has a NUL at character 2",
        "",
    ]
    assert lines[3].text == "\\xff\\xfe"


def test_a_jsonl_line_that_is_no_record_fails_alone() -> None:
    """Not JSON, no such field, not a string, a lone surrogate: refused one by one."""
    content = b'{"text": "good"}\n{torn\n{"other": 1}\n{"text": 5}\n{"text": "\\ud800"}\n[1]\n'
    got = reasons(stream(content, Format.JSONL))
    assert got[0] == ""
    assert got[1].startswith("isn't JSON")
    assert got[2] == "has no field 'text'"
    assert got[3] == "must be a string, not int"
    assert got[4].startswith("has a lone surrogate")
    assert got[5] == "must be a string, not a list"


def test_json_nested_without_end_is_refused_like_any_other() -> None:
    """A line of a hundred thousand brackets is one refused line."""
    [line] = stream(b"[" * 100_000, Format.JSONL)
    assert line.error is not None


def test_a_text_over_the_limit_is_refused_as_too_long() -> None:
    """The limit is the settings'; a line no memory should hold is cut while it is read."""
    endless = b"x" * (40 * 1024 * 1024)
    lines = stream(
        b"12345\n123456\n" + endless + b"\nnext\n", Format.TXT, limits=Limits(max_text_chars=5)
    )
    assert [type(line.error) for line in lines] == [
        type(None),
        TextTooLong,
        TextTooLong,
        type(None),
    ]
    assert max(len(line.text) for line in lines) <= 200


def test_a_short_csv_record_fails_alone() -> None:
    """A record without the field is refused; an empty line is an empty text."""
    lines = stream(b"id,text\n1,one\n2\n\n3,three\n", Format.CSV)
    assert reasons(lines) == ["", "has 1 fields of 2", "is empty", ""]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(mark: str) -> None:
    """Whichever of the usual four stands in the header separates the fields."""
    content = f"id{mark}text{mark}more\n1{mark}one{mark}x\n".encode()
    assert texts(stream(content, Format.CSV)) == ["one"]


def test_the_column_is_the_named_one_or_text_or_the_only_one() -> None:
    """A name goes first; without one a single column needs none."""
    two = b"text,review\na,b\n"
    assert texts(stream(two, Format.CSV)) == ["a"]
    assert texts(stream(two, Format.CSV, column="review")) == ["b"]
    assert texts(stream(b"review\nb\n", Format.CSV)) == ["b"]
    assert texts(stream(b'{"review": "b"}\n', Format.JSONL, column="review")) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("missing.txt", None, "missing.txt can't be read: No such file"),
        ("a.docx", b"", "name it with --format"),
        ("a.csv", b"id,body\n1,x\n", "has no column 'text'.*the columns are id, body"),
        ("a.txt", b"\xff\xfea\0", "UTF-16"),
        ("a.txt.gz", gzip.compress(b"a text\n" * 9999, mtime=0)[:99], "damaged or cut off"),
        ("a.txt.gz", b"not gzip", "damaged"),
        ("a.txt.xz", b"not xz", "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, named: str
) -> None:
    """The sentence names the file, the cause and the remedy."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=named):
        read(tmp_path / name)


def test_parquet_without_pyarrow_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pyarrow isn't installed the sentence says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigurationError, match="pip install pyarrow"):
        read(tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match="name the file"):
        stream(b"", Format.PARQUET)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow isn't installed")
def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    """The text column's rows in order; a null is refused alone."""
    pa = __import__("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"id": [1, 2, 3], "text": ["one", None, "three"]}), path)
    lines = read(path)
    assert texts(lines) == ["one", "null", "three"]
    assert reasons(lines) == ["", "must be a string, not null", ""]
    with pytest.raises(ConfigurationError, match="has no column 'body'"):
        read(path, column="body")


def test_reading_a_line_does_not_read_the_file(tmp_path: Path) -> None:
    """However long the file, a record is had after a buffer's worth of it; so memory is bounded."""
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 200_000)
    with open_texts(path) as source:
        first = next(iter(source.lines))
        assert source.size == path.stat().st_size
        assert 0 < first.position < source.size / 10
        assert max(line.position for line in source.lines) == source.size


def test_a_known_ending_is_a_format_whatever_its_case() -> None:
    """Endings of other systems count too."""
    assert format_of(Path("A.CSV.GZ")) is Format.CSV
    assert format_of(Path("x.v2.parquet")) is Format.PARQUET
