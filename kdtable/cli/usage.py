"""Add commands to an app, and word the option parser's errors."""

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from traceback import TracebackException
from typing import Any

import typer
from typer.core import TyperCommand

from kdtable.cli import options as opt
from kdtable.errors import BadRequest
from kdtable.plugins import BadPlugin, configured, load


def add(
    app: typer.Typer, name: str, command: Callable[..., None], panel: str | None = None, *, plugins: bool = False
) -> None:
    """Add a function as a command of ``app``; its docstring is the help, with filled paragraphs and kept examples.

    Args:
        app: the app.
        name: of the command.
        command: the function.
        panel: heading of the command in the app's help.
        plugins: whether it has names that plug-ins may add to: it then takes ``--plugin`` and reads ``kdtable.toml``.
    """
    text = inspect.getdoc(command) or ""
    paragraphs = map(_paragraph, text.split("\n\n"))
    called = _with_plugins(command) if plugins else command
    app.command(name, cls=OnceEach, help="\n\n".join(paragraphs), rich_help_panel=panel)(called)


def _with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option ``--plugin``, which loads plug-ins before it begins."""

    @wraps(command)
    def loading(*, plugin: list[str] | None = None, **options: Any) -> None:
        load([*configured(Path()), *(plugin or [])])
        command(**options)

    signature = inspect.signature(command)
    option = inspect.Parameter("plugin", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=opt.Plugins)
    vars(loading)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
    loading.__annotations__ = command.__annotations__ | {"plugin": opt.Plugins}
    return loading


def _paragraph(text: str) -> str:
    """A paragraph in one line, which the terminal fills; one with indented lines keeps them."""
    return text if "\n    " in text else " ".join(text.split())


class OnceEach(TyperCommand):
    """A command that refuses an option given twice with different values, unless the option is repeatable."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the base class."""
        single = {name for param in self.params if not getattr(param, "multiple", False) for name in param.opts}
        given: dict[str, str] = {}
        for text, following in pairwise([*args, ""]):
            name, equals, value = text.partition("=")
            if name in single and name.startswith("--"):
                value = value if equals else following
                if given.setdefault(name, value) != value:
                    raise BadRequest(f"{name} is given as {given[name]} and as {value}: leave one out")
        return super().parse_args(ctx, args)


def open_streams() -> None:
    """Open ``/dev/null`` for each missing standard stream, else the next file to be opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def sentence(error: typer.TyperException) -> str:
    """The option parser's error as one sentence in our style; empty if the parser printed help instead."""
    text = error.format_message().rstrip(".").replace("Value error, ", "")
    if "extra argument" in text:
        text += "; a list has commas and no spaces (kd,crd)"
    return f"{text[:1].lower()}{text[1:]} (see --help)" if text else ""


def own_traceback(error: BaseException) -> list[str]:
    """The traceback of a plug-in's own code, line by line, where that is what failed; else nothing."""
    if not isinstance(error, BadPlugin) or error.__cause__ is None:
        return []
    found = TracebackException.from_exception(error.__cause__)
    own = [number for number, frame in enumerate(found.stack) if Path(frame.filename) == error.file]
    del found.stack[: own[0] if own else len(found.stack)]
    return "".join(found.format()).splitlines()
