"""``kdtable list methods``: the settings of each row, as ``kdtable run`` uses them."""

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from kdtable.cli.console import print_line, print_table, shown
from kdtable.methods.catalogue import ON_DETECTORS, WITHOUT_LABELS, About, grouped
from kdtable.papers import Paper
from kdtable.papers.listing import View, Words, combined, plugged, readings, views


def print_methods(papers: Iterable[Paper], kind: str | None) -> None:
    """Print each paper's rows in full, then what differs on other data sets and in other readings."""
    for number, paper in enumerate(papers):
        if number:
            print_line("")
        first, *others = views(paper, kind)
        print_line(f"{paper.name}: {paper.title}", bold=True)
        print_line(f"On {first.paper.kind}: {first.recipe()}")
        _print_rows(first.words())
        for text in (*combined(first.paper), *readings(paper)):
            print_line(text)
        for view in others:
            _print_difference(view, first)
    if words := plugged(kind).words():
        print_line("")
        print_line("Rows of plug-ins, guests of every paper", bold=True)
        _print_rows(words)


def print_kinds() -> None:
    """Print all methods by kind and year, and what each needs."""
    table = Table("kind", "year", "method", "needs beyond the logits")
    for kind, methods in _kinds().items():
        for number, (name, about) in enumerate(methods):
            table.add_row("" if number else kind, str(about.year or ""), shown(name), shown(about.needs))
    print_table(table)


def _print_difference(view: View, first: View) -> None:
    """Print what differs on another data set, if anything does."""
    before = first.words()
    changed = {name: words for name, words in view.words().items() if before.get(name) != words}
    if not changed and view.recipe() == first.recipe():
        return
    print_line("")
    print_line(f"On {view.paper.kind}: {view.recipe()}")
    print_line(f"Rows as on {first.paper.kind}" + (", but for:" if changed else "."))
    _print_rows(changed)


def _print_rows(rows: Mapping[str, Words]) -> None:
    table = Table("row", "loss", "settings")
    table.columns[0].no_wrap = True
    for name, (loss, settings) in rows.items():
        table.add_row(shown(name), shown(loss), Text("\n").join(map(shown, settings)))
    if rows:
        print_table(table)


def _kinds() -> dict[str, list[tuple[str, About]]]:
    elsewhere = {"on detectors": ON_DETECTORS, "without labels": WITHOUT_LABELS}
    return grouped() | {kind: list(methods.items()) for kind, methods in elsewhere.items()}
