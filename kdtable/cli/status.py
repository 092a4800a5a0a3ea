"""``kdtable status``."""

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.cli import options as opt
from kdtable.cli.console import print_table


def status(results: opt.Results = opt.RESULTS) -> None:
    """Show what the store holds: done, running, failed with reasons, and missing runs.

    Missing are the runs that were asked for and are not trained yet.

    Example: kdtable status --results results
    """
    from kdtable.provenance import source_hash
    from kdtable.store import Store

    store = Store(results, create=False)
    runs = store.all_runs()
    console = Console()
    # A process that was killed leaves its runs marked as running; they will be continued.
    running = "running" if store.in_training() else "interrupted"
    words = {"done": "done", "running": running, "failed": "failed", "planned": "missing", "n/a": "not applicable"}
    counts = {word: sum(run["status"] == name for run in runs) for name, word in words.items()}
    console.print(Text(", ".join(f"{count} {word}" for word, count in counts.items())))
    table = Table("run", "data", "teacher", "student", "row", "seed", "status", "epoch", "last top-1", "reason")
    for run in runs:
        if run["status"] != "done":
            top1 = "" if run["last_top1"] is None else f"{100 * run['last_top1']:.2f}"
            epoch = f"{run['last_epoch'] or 0}/{run['epochs']}"
            values = [
                run["id"],
                run["data"],
                run["teacher"] or "",
                run["student"],
                run["row"],
                str(run["seed"]),
            ]
            table.add_row(*map(Text, [*values, words[run["status"]], epoch, top1, run["reason"] or ""]))
    if table.row_count:
        print_table(table)
    made = {entry["source"] for run in runs for entry in json.loads(run["provenance"] or "[]")}
    if made - {source_hash()}:
        console.print("Some runs were made by other sources than today's; their numbers may differ.")
