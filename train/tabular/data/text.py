"""Tables of text: which encoding, separator and decimal point they have is found out.

A plain one, of UTF-8 and commas, is read as it stands. What else was found is told in a sentence.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from onward.errors import DataError
from onward.system.threads import each
from onward.words.language import _
from train.tabular.data.columns import MISSING_WORDS
from train.tabular.data.recognise import is_nearly_all
from train.tabular.data.scratch import Scratch

_BLOCK_BYTES: Final = 2**21  # parsed at a time; larger ones take twice the time
_WHOLE_BYTES: Final = 2**25  # of a file that is parsed all at once, which takes twice its size
_STREAMED_BYTES: Final = 2**20  # parsed at a time of a larger one
_MAX_ROW_BYTES: Final = 2**24  # a megabyte is little for a row of a wide table
_HEAD_BYTES: Final = 2**18  # enough to tell how a file is written
_HEAD_ROWS: Final = 50
_FOREIGN_CHARS: Final = 4096  # enough to tell in which language a text is
_COMMON: Final = 0.6  # share of a Chinese text that is common characters and punctuation, at least
_NAMES: Final = {
    "utf-8-sig": "UTF-8 with a byte order mark",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "gb18030": "GBK (GB18030)",
}
_SEPARATORS: Final = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
# 1,5 and 1.234,56: with a decimal comma, and dots between thousands if any.
_COMMA_NUMBER: Final = r"^\s*[+-]?(\d{1,3}(\.\d{3})+|\d+)?,\d+([eE][+-]?\d+)?\s*$"
_WITHOUT_COMMA: Final = r"^\s*[+-]?(\d{1,3}(\.\d{3})+|\d+)([eE][+-]?\d+)?\s*$"

Source = Path | bytes


class _NotInEncoding(Exception):
    """The text is not in the encoding that it was read in."""


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a table of text is written.

    Args:
        encoding: Python's name of its encoding.
        separator: What stands between two fields.
        skip_rows: Number of lines above the names: the one by which Excel is told the separator.
    """

    encoding: str = "utf-8"
    separator: str = ","
    skip_rows: int = 0


def read_text(
    source: Source,
    path: Path,
    text_columns: Sequence[str] = (),
    scratch: Scratch | None = None,
) -> tuple[pa.Table, list[str]]:
    """Read a table of text.

    Args:
        source: The file, or what is in it.
        path: The file, as it is named in messages. A name that ends in .gz is unpacked.
        text_columns: Columns that are text, whatever they look like.
        scratch: Where the table of a large file is to lie; default: in memory.

    Returns:
        The table, types inferred from all rows; and a sentence on how it is written, if that is
        not plain.

    Raises:
        DataError: Its encoding is unknown.
        pa.ArrowException: It is no table.
    """
    dialect = find_dialect(source)
    try:
        table = _parse(source, dialect, text_columns, scratch)
    except _NotInEncoding:
        if not _is_chinese(source):
            raise DataError(
                _(
                    "data '{path}' is neither UTF-8, UTF-16 nor GBK: save it as UTF-8 from the "
                    "program that wrote it (Excel: 'CSV UTF-8')"
                ).format(path=path)
            ) from None
        dialect = dataclasses.replace(find_dialect(source, "gb18030"), encoding="gb18030")
        try:
            table = _parse(source, dialect, text_columns, scratch)
        except _NotInEncoding as error:
            raise DataError(
                _("data '{path}' is GBK in its beginning, and not all of it: save it as UTF-8")
                .format(path=path)
            ) from error  # fmt: skip
    num_commas = 0
    if dialect.separator != ",":
        table, num_commas = _with_decimal_commas(table, text_columns)
    return table, _told(dialect, num_commas)


def column_names(source: Source) -> list[str]:
    """Return the names in a text's first row, as `read_text` has them; the rows are not read."""
    dialect = find_dialect(source)
    head = _head(source)
    if dialect.encoding == "utf-8" and not _is_utf8(head) and _is_chinese(source):
        dialect = find_dialect(source, "gb18030")
    text = head.decode(dialect.encoding, errors="replace")
    return _unique(next(iter(_rows(text, dialect.separator)[dialect.skip_rows :]), []))


def find_dialect(source: Source, encoding: str | None = None) -> Dialect:
    """Return how a text is written, by its beginning.

    Args:
        source: The file, or what is in it.
        encoding: Where it is known already.
    """
    head = _head(source)
    encoding = encoding or _unicode_of(head)
    text = head.decode(encoding, errors="replace")
    if len(head) == _HEAD_BYTES:  # the last line may be cut
        text = text[: text.rfind("\n") + 1] or text
    if stated := re.match(r"sep=([,;\t|])\r?\n", text):
        return Dialect(encoding, stated[1], skip_rows=1)
    counts = {s: [len(row) for row in _rows(text, s)] for s in _SEPARATORS}
    possible = [s for s, widths in counts.items() if widths and widths[0] > 1]
    even = [s for s in possible if len(set(counts[s])) == 1]
    return Dialect(encoding, next(iter([*even, *possible]), ","))


def _rows(text: str, separator: str) -> list[list[str]]:
    rows = csv.reader(io.StringIO(text), delimiter=separator)
    found: list[list[str]] = []
    try:
        for row in rows:
            found += [row] if row else []
            if len(found) == _HEAD_ROWS:
                break
    except csv.Error:  # a field of more than a hundred thousand characters
        pass
    return found


def _parse(
    source: Source, dialect: Dialect, text_columns: Sequence[str], scratch: Scratch | None
) -> pa.Table:
    """Parse the whole text; raise `_NotInEncoding` where bytes are none of the encoding."""

    def parse(block_bytes: int, scratch: Scratch | None = None) -> pa.Table:
        # IMPORTANT: not in the main thread. There pyarrow takes signals over while it reads, and
        # one that comes as a small table is read is lost one time in five.
        act = functools.partial(_parse_blocks, source, dialect, text_columns, scratch=scratch)
        [table] = each(act, [block_bytes], 1)
        return table

    if scratch is not None and isinstance(source, Path) and _num_bytes(source) > _WHOLE_BYTES:
        # Types are those of the first block there. What comes later may be of another one, or a
        # row longer: then it is read whole, which also tells what is wrong.
        with contextlib.suppress(pa.ArrowInvalid, _NotInEncoding):
            return parse(_STREAMED_BYTES, scratch)
    try:
        return parse(_BLOCK_BYTES)
    except pa.ArrowInvalid:  # a row may be longer than a block
        return parse(_MAX_ROW_BYTES)


def _parse_blocks(
    source: Source,
    dialect: Dialect,
    text_columns: Sequence[str],
    block_bytes: int,
    scratch: Scratch | None,
) -> pa.Table:
    """Parse block by block, into a file of `scratch` if there is one; else all at once."""
    options: dict[str, Any] = {
        "read_options": pyarrow.csv.ReadOptions(
            block_size=block_bytes,
            skip_rows=dialect.skip_rows,
            encoding=dialect.encoding.removesuffix("-sig"),  # pyarrow skips the mark
        ),
        "parse_options": pyarrow.csv.ParseOptions(
            newlines_in_values=True, delimiter=dialect.separator
        ),
        "convert_options": pyarrow.csv.ConvertOptions(
            null_values=list(MISSING_WORDS),
            strings_can_be_null=True,
            column_types=dict.fromkeys(text_columns, pa.string()),
        ),
    }
    with _open(source) as stream:
        try:
            if scratch is None:
                table = pyarrow.csv.read_csv(stream, **options)
            else:
                blocks = pyarrow.csv.open_csv(stream, **options)
                table = scratch.table(blocks.schema, blocks)
            names = table.column_names
        except UnicodeDecodeError as error:
            raise _NotInEncoding from error
        except pa.ArrowInvalid as error:
            if "invalid UTF8" in str(error):
                raise _NotInEncoding from error
            raise
    pa.default_memory_pool().release_unused()  # what it keeps of the blocks that were parsed
    if any(pa.types.is_binary(field.type) for field in table.schema):
        raise _NotInEncoding
    unique = _unique(names)
    return table if unique == names else table.rename_columns(unique)


def _num_bytes(path: Path) -> int:
    """Return about how long a text is: packed, a fifth of it."""
    return path.stat().st_size * (5 if path.suffix.lower() == ".gz" else 1)


def _unique(names: list[str]) -> list[str]:
    """Return the names with those that are empty in front as pandas calls them: its saved index.

    >>> _unique(["", "", "a", ""])
    ['Unnamed: 0', 'Unnamed: 1', 'a', '']
    >>> _unique(["", "Unnamed: 0", "a"])
    ['Unnamed: 0.1', 'Unnamed: 0', 'a']
    """
    num_empty = next((i for i, name in enumerate(names) if name), 0)
    found = list(names)
    for i in range(num_empty):
        candidates = itertools.chain([f"Unnamed: {i}"], (f"Unnamed: {i}.{n}" for n in range(1, 99)))
        found[i] = next((name for name in candidates if name not in found), "")
    return found


def _with_decimal_commas(table: pa.Table, text_columns: Sequence[str]) -> tuple[pa.Table, int]:
    """Return the table with 1,5 and 1.234,5 as numbers, and how many columns have such."""
    num_columns = 0
    for i, field in enumerate(table.schema):
        column = table.column(i)
        if field.name in text_columns or not pa.types.is_string(field.type):
            continue
        has_comma = pc.fill_null(pc.match_substring_regex(column, _COMMA_NUMBER), False)
        is_whole = pc.fill_null(pc.match_substring_regex(column, _WITHOUT_COMMA), False)
        is_number = pc.or_(has_comma, is_whole)
        num_known = len(column) - column.null_count
        if not pc.any(has_comma).as_py() or not is_nearly_all(pc.sum(is_number).as_py(), num_known):
            continue
        plain = pc.replace_substring(pc.replace_substring(column, ".", ""), ",", ".")
        column = pc.if_else(is_number, plain, column)
        if pc.sum(is_number).as_py() == num_known:
            column = pc.utf8_trim_whitespace(column).cast(pa.float64())
        table, num_columns = table.set_column(i, field.name, column), num_columns + 1
    return table, num_columns


def _told(dialect: Dialect, num_commas: int) -> list[str]:
    """Return, in plain English, as it is stored, how a text is written; nothing of a plain one."""
    parts = []
    if dialect.encoding in _NAMES:
        parts.append(f"in {_NAMES[dialect.encoding]}")
    if dialect.separator != ",":
        parts.append(f"separated by {_SEPARATORS[dialect.separator]}")
    if num_commas:
        parts.append(f"with decimal commas in {num_commas} column{'s' * (num_commas > 1)}")
    return [f"The table is text {', '.join(parts)}."] if parts else []


def _unicode_of(head: bytes) -> str:
    """Return the encoding that a text says it has, or that its zero bytes say."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [head[i::2].count(0) for i in (0, 1)]
    if sum(zeros) * 10 > len(head):
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a cut character at the end is none
    except UnicodeDecodeError:
        return False
    return True


def _is_chinese(source: Source) -> bool:
    """Tell whether a text that is no UTF-8 is Chinese in GB18030, and no other language's.

    Nearly any bytes are GB18030; in Chinese most are common characters, of rows 16 to 55 of the
    table of GB 2312, or its punctuation.
    """
    decoder = codecs.getincrementaldecoder("gb18030")()
    foreign = ""
    try:
        for block in _blocks(source):
            foreign += "".join(re.findall(r"[^\x00-\x7f]+", decoder.decode(block)))
            if len(foreign) > _FOREIGN_CHARS:
                break
        else:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    common = [lead for lead in foreign.encode("gb2312", "ignore")[::2] if lead < 0xD8]
    return bool(foreign) and len(common) >= _COMMON * len(foreign)


def _head(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with _open(source) as stream:
        return bytes(stream.read(_HEAD_BYTES))


def _blocks(source: Source) -> Iterator[bytes]:
    with _open(source) as stream:
        while block := bytes(stream.read(_HEAD_BYTES)):
            yield block


def _open(source: Source) -> Any:
    if isinstance(source, bytes):
        return pa.BufferReader(source)
    compression: Literal["gzip"] | None = "gzip" if source.suffix.lower() == ".gz" else None
    return pa.input_stream(str(source), compression=compression)
