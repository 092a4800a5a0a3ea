"""``kdtable store``: copying, checking and pruning results."""

import shlex
import sys
from collections import defaultdict
from typing import Annotated, Literal

import typer

from kdtable.cli import options as opt
from kdtable.cli.usage import add

store_app = typer.Typer(no_args_is_help=True, help="Copy, check and prune stores of results.")


def copy_(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A results folder, or the URL of a database.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="A results folder or a URL too, made if it is missing.")],
) -> None:
    """Copy results into another store; what is there already is left as it is.

    Between folders, checkpoints and trained students come along; damaged ones are named and left out. Runs that have
    other numbers in the other store are named, and nothing is copied then. A copy that was cut short goes on when it
    is called again.

    Exit code: 0 all was copied, 1 but for damaged files, 2 bad request.

    Example: kdtable store copy results postgresql+psycopg://me@host/kdtable
    """
    from kdtable.escaping import printable
    from kdtable.store.maintenance.copying import copy

    done = copy(source, target)
    typer.echo(f"copied {done.copied:,} runs; {done.there:,} were there already")
    if not done.files:
        typer.echo(
            "Checkpoints and students were not copied: give the folder that has them as --results beside --store."
        )
    for problem in done.left_out:
        print(f"kdtable: {printable(problem)}; it was left out", file=sys.stderr)
    if done.left_out:
        advice = printable(shlex.join(["kdtable", "store", "check", "--results", source]))
        print(f"kdtable: {len(done.left_out):,} damaged files were left out; '{advice}' says more", file=sys.stderr)
        raise typer.Exit(1)


def check_(results: opt.Results = opt.RESULTS, store: opt.StoreUrl = None) -> None:
    """Check a store: its database, and every file that it speaks of.

    Exit code: 0 all is well, 1 something is not, which is said with what to do.

    Example: kdtable store check --results results
    """
    from kdtable.store import Store
    from kdtable.store.maintenance.checking import check

    number = 0
    for number, finding in enumerate(check(Store(results, store, create=False)), start=1):  # noqa: B007
        typer.echo(f"{finding.what}: {finding.advice}")
    if number:
        typer.echo(f"{number:,} findings")
        raise typer.Exit(1)
    typer.echo("all is well")


def prune_(
    keep: Annotated[
        Literal["last", "none"] | None,
        typer.Option(
            help="Weights of finished runs that stay: last (students only) or none; by default as each run was asked."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; without this, only say what would be removed.")
    ] = False,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Free what finished runs no longer need: leftovers, and weights that are not to be kept.

    Example: kdtable store prune --keep last --yes
    """
    from kdtable.store import Store
    from kdtable.store.maintenance.pruning import prune, spare

    opened = Store(results, store, create=False)
    files = spare(opened, keep)
    sizes: dict[str, list[int]] = defaultdict(list)
    for file in files:
        sizes[file.kind].append(file.size)
    for kind, found in sizes.items():
        typer.echo(f"{len(found):,} {kind}: {sum(found) / 1e6:,.1f} MB")
    total = f"{len(files):,} files, {sum(file.size for file in files) / 1e6:,.1f} MB"
    if not files:
        typer.echo("nothing to remove")
    elif not yes:
        typer.echo(f"Would remove {total}: add --yes to do it.")
    else:
        prune(Store(results, store), files, keep)
        typer.echo(f"removed {total}")


for _command in (copy_, check_, prune_):
    add(store_app, _command.__name__.rstrip("_"), _command)
