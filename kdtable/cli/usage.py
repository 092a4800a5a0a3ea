"""Add commands to an app, and word the option parser's errors."""

import inspect
from collections.abc import Callable

import typer


def add(app: typer.Typer, name: str, command: Callable[..., None], panel: str | None = None) -> None:
    """Add a function as a command of ``app``; its docstring is the help, with filled paragraphs."""
    text = inspect.getdoc(command) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    app.command(name, help="\n\n".join(paragraphs), rich_help_panel=panel)(command)


def sentence(error: typer.TyperException) -> str:
    """The option parser's error as one sentence in our style; empty if the parser printed help instead."""
    text = error.format_message().rstrip(".").replace("Value error, ", "")
    if "extra argument" in text:
        text += "; a list has commas and no spaces (kd,crd)"
    return f"{text[:1].lower()}{text[1:]} (see --help)" if text else ""
