"""Commands as all of ours are: help fills its paragraphs, and what the option parser refuses is one sentence."""

import inspect
from collections.abc import Callable

import typer


def add(app: typer.Typer, name: str, command: Callable[..., None], panel: str | None = None) -> None:
    """Make a function a command of ``app``, with its docstring as help."""
    text = inspect.getdoc(command) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    app.command(name, help="\n\n".join(paragraphs), rich_help_panel=panel)(command)


def sentence(error: typer.TyperException) -> str:
    """What the option parser refuses, as our messages are written; empty where it has printed help instead."""
    text = error.format_message().rstrip(".")
    if "extra argument" in text:
        text += "; a list has commas and no spaces (kd,crd)"
    return f"{text[:1].lower()}{text[1:]} (see --help)" if text else ""
