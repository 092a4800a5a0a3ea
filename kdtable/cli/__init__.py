"""The command line: one file per command, and no logic of its own.

Nothing here imports torch at the top, so that help is instant.
"""

import sys
from typing import Annotated

import typer

from kdtable import __version__
from kdtable.cli.listing import list_
from kdtable.cli.report import report
from kdtable.cli.run import run
from kdtable.cli.status import status
from kdtable.cli.teachers import check_teachers, fetch_teachers, train_teachers
from kdtable.errors import BadRequest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Re-run the tables of knowledge-distillation papers, and print them beside the published numbers.",
    epilog="Example: kdtable fetch-teachers && kdtable run --pairs all --methods kd,crd --seeds 3 && kdtable report",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"kdtable {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _command in (run, report, status, fetch_teachers, check_teachers, train_teachers, list_):
    app.command(_command.__name__.rstrip("_").replace("_", "-"))(_command)


def main() -> None:
    """Entry point of the console script: a bad request is one sentence and exit code 2."""
    try:
        app()
    except BadRequest as error:
        print(f"kdtable: {error}", file=sys.stderr)
        raise SystemExit(2) from None
