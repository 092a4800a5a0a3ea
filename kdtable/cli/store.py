"""``kdtable store``: copying, merging, checking, pruning and removing results."""

import shlex
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from kdtable.cli import options as opt
from kdtable.cli.usage import add
from kdtable.errors import BadRequest, counted
from kdtable.escaping import printable

if TYPE_CHECKING:
    from kdtable.store.records import RunRecord

store_app = typer.Typer(no_args_is_help=True, help="Copy, merge, check and prune stores of results, and remove runs.")

#: Most runs that are listed before they are removed; the rest is counted.
LISTED: Final = 50


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
    from kdtable.store.maintenance.copying import copy

    done = copy(source, target)
    typer.echo(f"copied {counted(done.copied, 'run')}; {done.there:,} were there already")
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


def merge_(
    sources: Annotated[list[str], typer.Argument(metavar="FROM...", help="Results folders, or URLs of databases.")],
    into: Annotated[str, typer.Option("--into", metavar="TO", help="Likewise, made if it is missing.")] = "results",
) -> None:
    """Merge several stores into one, as of jobs that each had a --results of its own.

    Each is copied as by 'kdtable store copy'. One that has other numbers for a run than those before it is named and
    left out.

    Exit code: 0 all was merged, 1 but for what is named, 2 bad request.

    Example: kdtable store merge job-1 job-2 job-3 --into results
    """
    from kdtable.store.maintenance.copying import merge

    done = merge(sources, into)
    typer.echo(
        f"merged {counted(done.sources, 'store')}: {counted(done.copied, 'run')}; {done.there:,} were there already"
    )
    for problem in done.left_out:
        print(f"kdtable: {printable(problem)}; it was left out", file=sys.stderr)
    if done.left_out:
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


def remove_(
    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN...]", help="Ids of runs or their beginnings, or cells (kdtable show)."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed.")] = False,
    planned: Annotated[bool, typer.Option("--planned", help="Those that are not done, and not in training.")] = False,
    older: Annotated[
        bool, typer.Option("--older", help="Only results by other code (run --retrain), of those chosen or of all.")
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Those with these values, such as row=kd,row=at,seed=3; several values of one key are alternatives.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Remove runs with all their results, checkpoints and students, after saying which.

    Each condition narrows what the others choose, of the runs named or of all. A run in training stays, and so does
    one that others start from, unless these go too.

    Example: kdtable store remove --failed --where row=crd,data=cifar100
    """
    from kdtable.report.lookup import find_runs
    from kdtable.store import Store
    from kdtable.store.maintenance.removal import matching, removable, remove

    if not (named or failed or planned or where or older):
        raise BadRequest("nothing to remove: name runs, or say which with --failed, --planned, --older or --where")
    found = Store(results, store, create=False)
    chosen = found.runs()
    if named:
        chosen = [run for text in named for run in find_runs(chosen, text)]
    if where:
        chosen = matching(chosen, where)
    if failed or planned:
        chosen = [run for run in chosen if (failed and run.status == "failed") or (planned and run.status == "planned")]
    if older:
        _remove_older(results, store, {run.id for run in chosen}, yes=yes)
        return
    removal = removable(found, {run.id for run in chosen})
    _print_runs(removal.runs)
    for sentence in removal.kept:
        print(f"kdtable: {printable(sentence)}", file=sys.stderr)
    if not removal.runs:
        typer.echo("nothing to remove")
    elif yes or _confirmed(counted(len(removal.runs), "run")):
        remove(Store(results, store), [run.id for run in removal.runs])
        typer.echo(f"removed {counted(len(removal.runs), 'run')}")


def _print_runs(found: "Sequence[RunRecord]") -> None:
    from rich.table import Table

    from kdtable.cli.console import print_table, shown

    table = Table("run", "data", "teacher", "student", "row", "seed", "status")
    for run in found[:LISTED]:
        table.add_row(*map(shown, (run.id, run.data, run.teacher or "", run.student, run.row, run.seed, run.status)))
    if found:
        print_table(table)
    if len(found) > LISTED:
        typer.echo(f"... and {len(found) - LISTED:,} more")


def _remove_older(results: Path, store: str | None, chosen: Collection[str], *, yes: bool) -> None:
    """Remove the results by other code of the runs chosen, after saying which."""
    from kdtable.store import Store
    from kdtable.store.retraining import older_results, remove_older

    found = older_results(Store(results, store, create=False), chosen)
    _print_runs(found)
    what = counted(len(found), "older result")
    if not found:
        typer.echo("nothing to remove")
    elif yes or _confirmed(what):
        remove_older(Store(results, store), {run.id for run in found})
        typer.echo(f"removed {what}")


def _confirmed(what: str) -> bool:
    """Ask at a terminal; elsewhere say how to remove it."""
    if not sys.stdin.isatty():
        typer.echo(f"Would remove {what}: add --yes to do it.")
        return False
    try:
        agreed = typer.confirm(f"Remove {what}?")
    except typer.Abort:
        agreed = False
    if not agreed:
        typer.echo("nothing was removed")
    return agreed


for _command in (copy_, merge_, check_, prune_, remove_):
    add(store_app, _command.__name__.rstrip("_"), _command, plugins=_command is remove_)
