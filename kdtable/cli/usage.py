"""Commands as all of ours are: what the option parser refuses is a bad request, and help fills its paragraphs."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

from kdtable.errors import BadRequest

#: Base of what the option parser raises. It is click's, or in newer versions typer's own, whose place is not public.
UsageError: Final = cast("type[Exception]", typer.BadParameter.__mro__[1])


class Command(TyperCommand):
    """A command."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the words after the command.

        Raises:
            BadRequest: they cannot be understood.
        """
        return _parsed(self, super().make_context, *args, **kwargs)

    def get_params(self, ctx: Any) -> Any:
        """The options and arguments, without Python's types: a flag has no value, an argument's name is enough."""
        return _plain(super().get_params(ctx))


class Commands(TyperGroup):
    """A group of commands."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the words before the command.

        Raises:
            BadRequest: they cannot be understood.
        """
        return _parsed(self, super().make_context, *args, **kwargs)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is named by the first word.

        Raises:
            BadRequest: there is none of this name.
        """
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise BadRequest(_unknown("command", args[0], self.commands, ctx.command_path))
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> Any:
        """The options, likewise."""
        return _plain(super().get_params(ctx))


def add(app: typer.Typer, name: str, command: Callable[..., None], panel: str | None = None) -> None:
    """Make a function a command of ``app``, with its docstring as help."""
    text = inspect.getdoc(command) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    app.command(name, cls=Command, help="\n\n".join(paragraphs), rich_help_panel=panel)(command)


def _parsed(command: Any, make: Callable[..., Any], info_name: str, args: Any, parent: Any = None, **extra: Any) -> Any:
    words = list(args)
    try:
        return make(info_name, args, parent=parent, **extra)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # help was asked for
            raise
        path = f"{parent.command_path} {info_name}" if parent else info_name
        raise BadRequest(_sentence(error, command, words, path)) from error


def _sentence(error: Any, command: Any, words: Sequence[str], path: str) -> str:
    """What is wrong and what to do; told by names of classes, as typer has no public place for these."""
    kind, see = type(error).__name__, f"see '{path} --help'"
    if kind == "NoSuchOption":
        # Of -epochs the parser names -e.
        typed = next((word.partition("=")[0] for word in words if word.startswith(error.option_name)), "")
        return _unknown("option", typed or error.option_name, [name for p in command.params for name in p.opts], path)
    if kind == "BadParameter" and error.param is not None:
        return f"{error.param.opts[0]} {error.message}"
    if kind == "MissingParameter":
        what = error.param.help.rstrip(".")
        return f"{error.param.metavar} is missing: {what[:1].lower()}{what[1:]}; {see}"
    text = error.format_message().rstrip(".")
    if kind == "BadOptionUsage" and "requires" in text:
        return f"{error.option_name} needs a value: {see}"
    if found := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text, re.DOTALL):
        lists = any(p.metavar == "LIST" for p in command.params)
        return f"unexpected '{found[1]}': " + ("a list has commas and no spaces (kd,crd); " if lists else "") + see
    return f"{text[:1].lower()}{text[1:]}: {see}"


def _unknown(kind: str, name: str, known: Iterable[str], path: str) -> str:
    plain = {other.lstrip("-"): other for other in known}
    near = [plain[other] for other in get_close_matches(name.lstrip("-"), plain)]
    return f"unknown {kind} '{name}'" + (f"; did you mean {', '.join(near)}?" if near else f": see '{path} --help'")


def _plain(params: Any) -> Any:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        elif param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: None
    return params
