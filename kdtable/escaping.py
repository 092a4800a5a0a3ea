"""Escape untrusted text (names of files and keys, reasons of failures): one function per output medium."""

import json
import re
from typing import Any, Final

#: Characters that start a formula in a spreadsheet.
_FORMULA: Final = ("=", "+", "-", "@")

#: Markdown's special characters. An asterisk between spaces and an underscore inside a word are harmless.
_MARKDOWN: Final = re.compile(r"^[#+-]|[\\`\[\]<>|~]|&(?=[#\w])|\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])")

#: LaTeX's special characters, what else its fonts show as another character, and the symbols of our own sentences.
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    # At the start of a row, a bracket or an asterisk would belong to the row's end before it.
    **{c: f"{{{c}}}" for c in "[]*"},
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    "√": r"$\surd$",
    "†": r"\dag{}",
    "—": r"\textemdash{}",
    "\N{EN DASH}": r"\textendash{}",
    "…": r"\dots{}",
}

#: Other characters that LaTeX's default fonts have.
_LATIN: Final = frozenset(map(chr, range(0x100))) - frozenset("«»ÐÞðþ")


def printable(text: str) -> str:
    """Text for a terminal, with control characters, line breaks and marks of reading direction spelled out."""
    return "".join(c if c.isprintable() else _spelled(c) for c in text)


def markdown(text: str) -> str:
    """Text for a line or a table cell of Markdown, shown literally."""
    return _MARKDOWN.sub(lambda match: f"\\{match.group()}", printable(text))


def latex(text: str) -> str:
    """Text for LaTeX, shown literally; characters that its usual fonts lack as ``U+4E2D``."""
    text = "".join(_LATEX.get(c, c if c in _LATIN else f"U+{ord(c):04X}") for c in printable(text))
    return re.sub("-(?=-)", "-{}", text)


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
