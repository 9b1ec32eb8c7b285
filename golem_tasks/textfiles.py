"""Texts out of files, one at a time: TXT, CSV, JSONL or Parquet, the first three also compressed.

However large the file is, memory holds one record of it. What is wrong with one record (bytes that
aren't UTF-8, no such field, not JSON) is that record's own error, and the rest is read; what is
wrong with the file as a whole (a missing column, a damaged archive) is a `ConfigurationError`.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any

from golem_tasks.contract import Limits, check_text
from golem_tasks.errors import ConfigurationError, InvalidJob, TextTooLong

__all__ = ["DEFAULT_COLUMN", "Format", "Line", "TextSource", "checked", "format_of", "open_texts"]

DEFAULT_COLUMN = "text"

_MOST_LINE_BYTES = 16 * 1024 * 1024
_SHOWN_CHARS = 200  # of what isn't a text, beside its error
_BATCH_ROWS = 1_024
_DELIMITERS = ",;\t|"
_BOM_UTF8 = b"\xef\xbb\xbf"
_BOMS_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Format(Enum):
    """What a file is made of."""

    TXT = "txt"
    """A text on each line."""
    CSV = "csv"
    """A header, then records separated by comma, semicolon, tab or bar; quoted as usual."""
    JSONL = "jsonl"
    """On each line a JSON string, or an object with the text in one of its fields."""
    PARQUET = "parquet"
    """A table; needs pyarrow."""


_ENDINGS = {
    ".txt": Format.TXT,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
}
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BROKEN_ARCHIVE = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)
_DAMAGED = (OSError, *_BROKEN_ARCHIVE)


@dataclass(frozen=True, slots=True)
class Line:
    """One record."""

    number: int
    """From 1; a CSV's header isn't counted."""
    text: str
    """The text; of a record that isn't one, what stands there instead, cut to a glance."""
    error: InvalidJob | None
    """Why no worker need see it."""
    position: int = 0
    """Bytes (of Parquet: rows) of the file read so far, for progress."""


@dataclass(frozen=True, slots=True)
class TextSource:
    """An open file of texts."""

    name: str
    lines: Iterator[Line]
    """To be read once, while the file is open.

    Raises:
        ConfigurationError: the file can't be read on.
    """
    size: int | None
    """What `Line.position` counts up to; None where that isn't known, as on a pipe."""


def checked(texts: Iterable[str], limits: Limits) -> Iterator[Line]:
    """Number texts that come from elsewhere, and check them as a file's are."""
    for number, text in enumerate(texts, 1):
        yield Line(number, text, _fault(text, limits))


def format_of(path: Path) -> Format:
    """Tell the format by the file's ending.

    Raises:
        ConfigurationError: the ending isn't known.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    found = _ENDINGS.get(suffixes[-1]) if suffixes else None
    if found is None:
        known = ", ".join(_ENDINGS)
        raise ConfigurationError(
            f"The format of {path} isn't known by its ending ({known}, and .gz, .bz2 or .xz after "
            "it): name it with --format."
        )
    return found


@contextmanager
def open_texts(
    path: Path | IO[bytes],
    *,
    kind: Format | None = None,
    column: str | None = None,
    limits: Limits | None = None,
) -> Iterator[TextSource]:
    """Open a file, or a stream such as standard input, for reading its texts.

    Args:
        path: the file; a stream is taken as it is, never decompressed.
        kind: its format; told by the ending if unset, and TXT for a stream.
        column: field of the text; unset: the only one, or ``text``.
        limits: what a text may be; one that is more has its error from here.

    Raises:
        ConfigurationError: it isn't there, or is nothing a text can be read from.
    """
    limits = limits or Limits()
    if not isinstance(path, Path):
        records = _records(path, kind or Format.TXT, column, "standard input", limits)
        yield TextSource("standard input", records, None)
        return
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder: name a file in it.")
    kind = kind or format_of(path)
    if kind is Format.PARQUET:
        with _parquet(path, column, limits) as source:
            yield source
        return
    try:
        raw = path.open("rb")
        size = path.stat().st_size if path.is_file() else None
    except OSError as exc:
        raise _unreadable(str(path), exc) from exc
    with raw:
        opener = _OPENERS.get(path.suffix.lower())
        stream = raw if opener is None else opener(raw)
        position = raw.tell if raw.seekable() else None
        records = _records(stream, kind, column, str(path), limits, position)
        yield TextSource(str(path), records, size)


def _records(
    stream: IO[bytes],
    kind: Format,
    column: str | None,
    name: str,
    limits: Limits,
    position: Any = None,
) -> Iterator[Line]:
    if kind is Format.PARQUET:
        raise ConfigurationError("Parquet can't be read from a stream: name the file with --file.")
    if kind is Format.TXT and column is not None:
        raise ConfigurationError(f"{name} is plain text, without columns: leave --column away.")
    read = {Format.TXT: _txt, Format.CSV: _csv, Format.JSONL: _jsonl}[kind]
    number = 0
    try:
        for number, (text, error) in enumerate(read(_raw_lines(stream), column), 1):
            where = 0 if position is None else position()
            yield Line(number, text, error or _fault(text, limits), where)
    except (*_DAMAGED, csv.Error) as exc:
        raise _unreadable(f"{name} after record {number}", exc) from exc


_Record = tuple[str, InvalidJob | None]


def _raw_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines with their ends; of one that is longer than any text may be, a beginning."""
    first = True
    while line := stream.readline(_MOST_LINE_BYTES):
        if first:
            if line.startswith(_BOMS_UTF16):
                raise ConfigurationError(
                    "The file is UTF-16: convert it first, as with iconv -f UTF-16 -t UTF-8."
                )
            line, first = line.removeprefix(_BOM_UTF8), False
            if not line:
                continue
        rest = line
        while len(rest) == _MOST_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(_MOST_LINE_BYTES)
        yield line


def _txt(lines: Iterator[bytes], _column: str | None) -> Iterator[_Record]:
    for line in lines:
        # Not splitlines(): a text may hold U+0085 or U+2028, which it takes for line ends.
        yield _text(line.removesuffix(b"\n").removesuffix(b"\r"))


def _jsonl(lines: Iterator[bytes], column: str | None) -> Iterator[_Record]:
    field = column or DEFAULT_COLUMN
    for line in lines:
        shown, error = _text(line.strip())
        if error is not None:
            yield shown, error
            continue
        try:
            value = json.loads(shown)
        except (ValueError, RecursionError) as exc:
            yield _cut(shown), InvalidJob.because("the line", f"isn't JSON ({exc})")
            continue
        if isinstance(value, dict):
            if field not in value:
                yield _cut(shown), InvalidJob.because("the line", f"has no field {field!r}")
                continue
            value = value[field]
        yield _value(value)


def _csv(lines: Iterator[bytes], column: str | None) -> Iterator[_Record]:
    csv.field_size_limit(_MOST_LINE_BYTES)
    header_line = next(lines, None)
    if header_line is None:
        return
    delimiter = _delimiter(header_line)
    header = next(csv.reader([header_line.decode(errors="surrogateescape")], delimiter=delimiter))
    index = header.index(_column(header, column))
    decoded = (line.decode(errors="surrogateescape") for line in lines)
    for row in csv.reader(decoded, delimiter=delimiter):
        if not row:
            yield "", None  # an empty line is an empty text, and fails as one
        elif index >= len(row):
            yield "", InvalidJob.because("the record", f"has {len(row)} fields of {len(header)}")
        else:
            yield _text(row[index].encode(errors="surrogateescape"))


def _delimiter(header: bytes) -> str:
    # Only the header is asked: a guess from the texts would depend on what people write.
    counts = {mark: header.count(mark.encode()) for mark in _DELIMITERS}
    return max(_DELIMITERS, key=lambda mark: counts[mark])


def _column(columns: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(columns) == 1:
        return columns[0]
    if (name := wanted or DEFAULT_COLUMN) in columns:
        return name
    listed = ", ".join(columns[:20])
    raise ConfigurationError(
        f"The file has no column {name!r}: name the right one on the command line; "
        f"the columns are {listed}."
    )


@contextmanager
def _parquet(path: Path, column: str | None, limits: Limits) -> Iterator[TextSource]:
    try:
        # By name: an optional package, without types of its own.
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigurationError(
            "Parquet needs the package pyarrow: pip install pyarrow, or convert the file to CSV."
        ) from None
    try:
        table = parquet.ParquetFile(path)
    except (OSError, ValueError) as exc:  # what pyarrow raises derives from ValueError
        raise _unreadable(str(path), exc) from exc
    with table:
        name = _column(table.schema_arrow.names, column)
        yield TextSource(str(path), _rows(table, name, limits), table.metadata.num_rows)


def _rows(table: Any, column: str, limits: Limits) -> Iterator[Line]:
    number = 0
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[column]):
        for value in batch.column(0).to_pylist():
            number += 1
            text, error = _value(value)
            yield Line(number, text, error or _fault(text, limits), number)


def _text(raw: bytes) -> _Record:
    if len(raw) >= _MOST_LINE_BYTES - 1:
        reason = f"has more than {_MOST_LINE_BYTES} bytes"
        return raw[:_SHOWN_CHARS].decode(errors="replace"), TextTooLong.because("text", reason)
    try:
        return raw.decode(), None
    except UnicodeDecodeError as exc:
        reason = f"isn't UTF-8 (byte {exc.start + 1})"
        return raw.decode(errors="backslashreplace"), InvalidJob.because("text", reason)


def _value(value: Any) -> _Record:
    if isinstance(value, str):
        return value, None
    return _cut(json.dumps(value, default=str)), _fault(value, Limits())


def _fault(text: Any, limits: Limits) -> InvalidJob | None:
    try:
        check_text(text, "text", limits)
    except InvalidJob as exc:
        return exc
    return None


def _cut(shown: str) -> str:
    return shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "..."


def _unreadable(name: str, error: Exception) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, _BROKEN_ARCHIVE):
        reason = f"the archive is damaged or cut off ({reason})"
    return ConfigurationError(f"{name} can't be read: {reason}; check the file and its path.")
