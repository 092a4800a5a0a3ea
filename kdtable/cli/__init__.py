"""The command line: one file per command, without logic of its own.

No module imports torch at the top, so help is instant.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final

import typer

from kdtable.cli.completion import complete_across_colons, completing_across_colons
from kdtable.cli.data import fetch_data
from kdtable.cli.demo import demo
from kdtable.cli.doctor import doctor
from kdtable.cli.evaluate import evaluate
from kdtable.cli.explain import explain
from kdtable.cli.export import export
from kdtable.cli.heads import train_heads
from kdtable.cli.listing import list_
from kdtable.cli.new import new_app
from kdtable.cli.plot import plot
from kdtable.cli.probe import probe
from kdtable.cli.report import report
from kdtable.cli.run import run
from kdtable.cli.show import show
from kdtable.cli.status import status
from kdtable.cli.store import store_app
from kdtable.cli.sweep import sweep
from kdtable.cli.teachers import check_teachers, fetch_teachers, train_teachers
from kdtable.cli.usage import add, open_streams, own_traceback, sentence
from kdtable.errors import BadRequest, Trouble
from kdtable.escaping import printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Re-run the tables of knowledge-distillation papers, and print them beside the published numbers.",
    epilog="Example: kdtable fetch-teachers && kdtable run --pairs all --methods kd,crd --seeds 3 && kdtable report",
)


def _version(requested: bool) -> None:
    if requested:
        from kdtable import __version__

        typer.echo(f"kdtable {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


#: Commands by their heading in the help.
PANELS: Final[dict[str, tuple[Callable[..., None], ...]]] = {
    "Tables and results": (run, sweep, report, plot, show, explain, export, evaluate, probe, status, list_),
    "This machine": (demo, doctor),
    "Data and teachers": (fetch_data, fetch_teachers, check_teachers, train_teachers, train_heads),
}

#: Commands in which nothing has a name that a plug-in could add.
WITHOUT_PLUGINS: Final = (demo, doctor, fetch_data, fetch_teachers)

for _panel, _commands in PANELS.items():
    for _command in _commands:
        _name = _command.__name__.rstrip("_").replace("_", "-")
        add(app, _name, _command, _panel, plugins=_command not in WITHOUT_PLUGINS)
app.add_typer(store_app, name="store", rich_help_panel="Tables and results")
app.add_typer(new_app, name="new", rich_help_panel="Your own")


def main() -> None:
    """Entry point of the console script; a bad request prints one sentence and exits with 2, other trouble with 1."""
    open_streams()
    command = partial(app, prog_name="kdtable", standalone_mode=False)
    try:
        if completing_across_colons():
            complete_across_colons(command)
            return
        raise SystemExit(command())
    except typer.TyperException as error:
        if text := sentence(error):
            print(f"kdtable: {printable(text)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BadRequest as error:
        for line in own_traceback(error):
            print(printable(line), file=sys.stderr)
        print(f"kdtable: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, Trouble) else 2) from None
    except OSError as error:
        # An unforeseen failure of a disk, folder or device. Only an error of stdout has no file name.
        where = printable(str(error.filename or "the output"))
        print(f"kdtable: {where} cannot be used ({error.strerror}): see to that, and call again", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter fails again when it flushes stdout
        raise SystemExit(1) from None
