"""Escape untrusted text (names of files and keys, reasons of failures): one function per output medium."""

import json
import re
from typing import Any, Final

#: Characters that start a formula in a spreadsheet.
_FORMULA: Final = ("=", "+", "-", "@")

#: Markdown's special characters. An asterisk between spaces and an underscore inside a word are harmless.
_MARKDOWN: Final = re.compile(r"^[#+-]|[\\`\[\]<>|~]|&(?=[#\w])|\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])")


def printable(text: str) -> str:
    """Text for a terminal, with control characters, line breaks and marks of reading direction spelled out."""
    return "".join(c if c.isprintable() else _spelled(c) for c in text)


def markdown(text: str) -> str:
    """Text for a line or a table cell of Markdown, shown literally."""
    return _MARKDOWN.sub(lambda match: f"\\{match.group()}", printable(text))


def csv_cell(text: str) -> str:
    """Text for a CSV cell that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def json_text(value: Any) -> str:
    """``value`` as JSON, with control characters escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]
