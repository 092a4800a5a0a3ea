"""``kdtable doctor``."""

from typing import Annotated

import typer
from rich.table import Table

from kdtable.cli import options as opt
from kdtable.cli.console import print_line, print_table, shown


def doctor(
    device: Annotated[
        str | None,
        opt.where(metavar="NAME", help="Examine a device: cpu, cuda or cuda:1."),
    ] = None,
    only: Annotated[
        str | None,
        opt.where(metavar="LIST", help="With --device: only these checks, comma-separated, such as 'memory,resuming'."),
    ] = None,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Show what this machine has, and what earlier examinations of devices found.

    With --device, examine whether training on that device does what it should: each check has its own verdict, which
    is kept in the results folder.

    Exit code: 0 no check failed, 1 some check failed, 2 bad request.

    Example: kdtable doctor --device cuda:0
    """
    from kdtable.doctor.environment import environment
    from kdtable.planning.selection import split
    from kdtable.store.verdicts import FAILED, keep, read

    if device is None:
        table = Table("what", "found")
        for what, found in environment(results, data_root, store):
            table.add_row(*map(shown, (what, found)))
        print_table(table)
        for name, verdicts in read(results).items():
            print_line("")
            print_line(name, bold=True)
            for one in verdicts:
                print_line(f"{one.result}: {one.name} ({one.seconds:.0f} s): {one.words}")
        return
    from kdtable.doctor.examine import device_to_examine, examine
    from kdtable.doctor.identity import identity

    chosen = device_to_examine(device)
    examined, failed = identity(chosen), False
    print_line(examined, bold=True)
    for one in examine(chosen, None if only is None else split(only)):
        print_line(f"{one.result}: {one.name} ({one.seconds:.0f} s): {one.words}")
        keep(results, examined, [one])  # an examination that is interrupted keeps what it has found
        failed = failed or one.result == FAILED
    if failed:
        raise typer.Exit(1)
