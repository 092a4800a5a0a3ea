"""Text that may come from strangers (names of files and keys, reasons of failures): one function per medium."""

import json
import re
from typing import Any, Final

#: What a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@")

#: Punctuation that means something in Markdown wherever it stands. A lone asterisk is one, and so is an underscore
#: that is not inside a word.
_MARKDOWN: Final = re.compile(r"^[#+-]|[\\`\[\]<>|~]|&(?=[#\w])|\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])")


def printable(text: str) -> str:
    """For a terminal: what could move the cursor, turn the direction of reading, or break the line, is spelled out."""
    return "".join(c if c.isprintable() else _spelled(c) for c in text)


def markdown(text: str) -> str:
    """For a line or a table's cell of Markdown, in which it is shown as it is."""
    return _MARKDOWN.sub(lambda match: f"\\{match.group()}", printable(text))


def csv_cell(text: str) -> str:
    """For a cell of CSV: no spreadsheet takes it for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def json_text(value: Any) -> str:
    """``value`` as JSON, in which control characters of any kind are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]
