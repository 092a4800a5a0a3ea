"""``kdtable new``: files to begin a plug-in with."""

import os
import shlex
from collections.abc import Container
from pathlib import Path
from typing import Annotated

import typer

from kdtable.cli import options as opt
from kdtable.cli.usage import add
from kdtable.errors import BadRequest
from kdtable.plugins.scaffold import scaffold

new_app = typer.Typer(no_args_is_help=True, help="Write a commented plug-in with its tests, to begin from.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name on the command line, such as my-dkd.")]
Folder = Annotated[
    Path, typer.Option("--dir", parser=opt.folder, metavar="DIR", help="Where to write; by default here.")
]


def method_(name: Name, folder: Folder = Path()) -> None:
    """Write a method: its formula, hyper-parameters and row in one file, and a test.

    Example: kdtable new method my-dkd
    """
    from kdtable.methods import METHODS

    plugin = _written("method", name, folder, METHODS)
    typer.echo(f"Train it: kdtable run --plugin {plugin} --pairs resnet56:resnet20 --methods kd,{name} --seeds 3")


def network_(name: Name, folder: Folder = Path()) -> None:
    """Write a network: a class with its feature maps, and a test.

    Example: kdtable new network my-net
    """
    from kdtable.models import NETWORKS

    plugin = _written("network", name, folder, NETWORKS)
    typer.echo(f"Train it: kdtable run --plugin {plugin} --pairs resnet56:{name} --methods vanilla,kd --seeds 3")


def paper_(name: Name, folder: Folder = Path()) -> None:
    """Write a paper: recipe, rows and a table of published numbers as TOML, and a test.

    Example: kdtable new paper my-paper
    """
    from kdtable.papers.loader import PAPERS

    plugin = _written("paper", name, folder, PAPERS)
    typer.echo(f"Train it: kdtable run --plugin {plugin} --paper {name} --seeds 3")


def _written(kind: str, name: str, folder: Path, known: Container[str]) -> str:
    """Write the files, say which, and return the plug-in's as a command takes it."""
    if name in known:
        raise BadRequest(f"there is a {kind} '{name}' already: choose another name")
    plugin, test = (shlex.quote(os.path.relpath(path)) for path in scaffold(kind, name, folder))
    typer.echo(f"wrote {plugin} and {test}")
    typer.echo(f"Test it: pytest {test}")
    return plugin


for _command in (method_, network_, paper_):
    add(new_app, _command.__name__.rstrip("_"), _command)
