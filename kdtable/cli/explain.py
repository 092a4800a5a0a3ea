"""``kdtable explain``."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from kdtable.cli import completion
from kdtable.cli import options as opt
from kdtable.cli.console import print_line, print_table, shown
from kdtable.errors import BadRequest, counted
from kdtable.escaping import json_text

if TYPE_CHECKING:
    from kdtable.report.explained import Explained


def explain(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|TABLE:ROW:COLUMN]", help="A run's id or the beginning of one, or a cell: what was trained."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        opt.what(metavar="LIST", autocompletion=completion.methods, help="Rows that would be trained, as of run."),
    ] = None,
    pairs: Annotated[
        str | None,
        opt.what(metavar="LIST", autocompletion=completion.pairs, help="As of run; by default all of the paper's."),
    ] = None,
    paper: Annotated[
        str | None,
        opt.what(
            metavar="NAME", autocompletion=completion.one_of(completion.papers), help="As of run; crd by default."
        ),
    ] = None,
    data: opt.Data = None,
    epochs: opt.Epochs = None,
    overrides: opt.Set = None,
    reading: opt.Reading = "code",
    form: Annotated[Literal["terminal", "json"], typer.Option("--format")] = "terminal",
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Explain what runs optimise: terms and weights over the epochs, and hyper-parameters.

    Of trained runs also the share of each term in their loss. Nothing is trained, and no teacher is needed.

    Examples:
        kdtable explain --methods at+crd,dkd --pairs resnet56:resnet20
        kdtable explain crd-1:kd:resnet56:resnet20
    """
    if what is not None and (methods or pairs or paper or data or epochs or overrides or reading != "code"):
        raise BadRequest("a run was trained with its own settings: leave out RUN, or --methods and what goes with it")
    if what is None and methods is None and paper is None:
        raise BadRequest("nothing to explain: name a run ('kdtable status' has them), or --methods, or --paper")
    found = (
        _trained(what, results, store) if what else _planned(methods, pairs, paper, data, epochs, overrides, reading)
    )
    if form == "json":
        typer.echo(json_text([one.for_json() for one in found]))
        return
    for number, one in enumerate(found):
        if number:
            print_line("")
        _print(one, "run" if what else "pair")


def _trained(what: str, results: Path, store: str | None) -> "list[Explained]":
    from kdtable.report.explained import explained_runs
    from kdtable.report.lookup import find_runs
    from kdtable.store import Store

    opened = Store(results, store, create=False)
    runs = sorted(find_runs(opened.runs(), what), key=lambda run: run.protocol.id)
    alike = [list(group) for _, group in groupby(runs, key=lambda run: (run.protocol.id, run.row))]
    return [explained_runs(group, [opened.history(run.id) for run in group]) for group in alike]


def _planned(
    methods: str | None,
    pairs: str | None,
    paper: str | None,
    data: str | None,
    epochs: int | None,
    overrides: list[str] | None,
    reading: str,
) -> "list[Explained]":
    from dataclasses import replace

    from kdtable.planning.request import Changes, DataRequest, Request
    from kdtable.planning.resolve import resolve
    from kdtable.planning.selection import parse_selection
    from kdtable.planning.teacher_refs import MissingTeacher
    from kdtable.report.explained import explained, grouped

    chosen, names, rows, seeds = parse_selection(paper, pairs or "all", methods, "1", data)
    request = Request(
        names, rows, seeds, chosen, reading, DataRequest(data), Changes(epochs=epochs, overrides=overrides or [])
    )
    planned_runs = resolve(request, lambda network, spec: MissingTeacher(network, spec.mean, spec.std))
    found = [
        replace(
            explained(one.row, one.run.objective, one.run.recipe.epochs, one.run.task),
            of=(f"{one.pair} ({one.run.data.name})",),
            reason=one.not_applicable,
        )
        for one in planned_runs
        if not one.prerequisite
    ]
    return grouped(found)


def _print(one: "Explained", of: str) -> None:
    print_line(f"{one.row}: {counted(one.epochs, 'epoch')}", bold=True)
    print_line(f"{counted(len(one.of), of)}: {', '.join(one.of)}")
    if one.reason is not None:
        print_line(f"Not applicable: {one.reason}.")
        return
    for name, text in one.methods.items():
        print_line(f"{name}: {text}")
    for stage, epochs in one.stages.items():
        what = "Linear probe" if stage == "main" else f"Stage before: {stage}"
        print_line(f"{what}, {counted(epochs, 'epoch')}")
    for term, words in one.schedules.items():
        print_line(f"Weight of {term}: {words}")
    print_table(_terms(one))
    if one.params:
        print_table(_params(one))


def _terms(one: "Explained") -> Table:
    reached = one.shown[: len(one.terms[0].shares)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("term\nin epoch")
    for what, epochs in (("weight", one.shown), ("share", reached)):
        for epoch in epochs:
            table.add_column(f"{what}\n{epoch}", justify="right")
    if reached:
        table.add_column("share\nof all", justify="right")
    for line in one.terms:
        table.add_row(*map(shown, _cells(line.name, line.weights, line.shares, line.share)))
    return table


def _cells(name: str, weights: tuple[float, ...], shares: tuple[float, ...], share: float | None) -> Iterator[str]:
    yield name
    yield from (f"{weight:.4g}" for weight in weights)
    yield from (f"{value:.1%}" for value in (*shares, *([] if share is None else [share])))


def _params(one: "Explained") -> Table:
    table = Table("hyper-parameter", "value", "default", "what it does", box=None, padding=(0, 2, 0, 0))
    for line in one.params:
        table.add_row(*map(shown, (line.name, _text(line.value), _text(line.default), line.meaning)))
    return table


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "''" if value == "" else str(value)
