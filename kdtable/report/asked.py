"""From what ``kdtable report`` is asked for to its text."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.garbage import uncollected
from kdtable.papers import Paper, Table
from kdtable.recipes.metrics import METRICS, RULES, TRANSFER, VALIDATED, Metric, parse_metrics
from kdtable.report.aggregate import comparisons
from kdtable.report.comparison import Comparison
from kdtable.report.rendering import PAGE, known, render
from kdtable.report.result_table import ResultTable
from kdtable.report.tables import comparison_table, fits_paper, paper_table
from kdtable.store import NoStore, Store
from kdtable.store.shown import metrics_of_tasks

#: Formats that hold every seed in any case.
WHOLE = ("csv", "json", "latex", "html")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of ``kdtable report``, by their names there, and the ids of the runs to show (all by default)."""

    results: Path
    store: str | None = None
    form: str = "terminal"
    table: str | None = None
    metric: str | None = None
    epoch: str | None = None
    versus: str | None = None
    compare: bool = False
    by_seed: bool = False
    wide: bool = False
    checklist: bool = False
    only: Collection[str] | None = None


def check(asked: Asked, *, to_file: bool = False, watch: bool = False) -> None:
    """Refuse options that contradict each other.

    Raises:
        BadRequest: they do.
    """
    known(asked.form)
    if asked.epoch is not None and asked.epoch not in RULES:
        raise BadRequest(f"--epoch is one of {', '.join(RULES)}, not '{asked.epoch}'")
    if asked.by_seed and asked.form in WHOLE:
        hint = "every seed stands in it already" if asked.form in ("csv", "json") else "use terminal or markdown"
        raise BadRequest(f"--by-seed does not go with --format {asked.form}: {hint}")
    if asked.compare and asked.table is None:
        raise BadRequest("--compare needs the published table to compare with: add --table crd-1")
    if asked.wide and asked.form != "csv":
        raise BadRequest("--wide is a shape of CSV: add --format csv")
    if watch and (to_file or asked.form != "terminal"):
        raise BadRequest("--watch draws on the terminal: leave out --output and --format")


def text_of(asked: Asked) -> str:
    """What the command prints.

    Raises:
        BadRequest: unknown table, metric or row, or nothing to show.
    """
    if asked.checklist:
        from kdtable.report.checklist import checklist

        with closing(Store(asked.results, asked.store, create=False)) as store:
            return checklist(store)
    with uncollected():
        tables = result_tables(asked)
        if asked.form == PAGE:
            return _page(asked, tables)
        return render(tables, asked.form, wide=asked.wide, by_seed=asked.by_seed)


def _page(asked: Asked, tables: Sequence[ResultTable]) -> str:
    """The page of tables, which shows them under the other epoch rules too."""
    from kdtable.report.stored_page import stored_page

    shown = {table.rule for table in tables}
    others = [rule for rule in ("last", "best") if rule not in shown] if shown != {VALIDATED} else []
    more = [table for rule in others for table in result_tables(replace(asked, epoch=rule))]
    with _opened(asked) as store:
        return stored_page([*tables, *more], store)


def _of_one_rule(found: list[Comparison], asked: Asked) -> list[Comparison]:
    """The comparisons that can follow the epoch rule that is asked for.

    Raises:
        BadRequest: there are some, but none can.
    """
    if asked.epoch is None:
        return found
    kept = [one for one in found if bool(one.data.get(VALIDATED)) == (asked.epoch == VALIDATED)]
    if found and not kept and asked.epoch == VALIDATED:
        raise BadRequest("no run here held out images to choose its epoch by: train with --validation N")
    if found and not kept:
        raise BadRequest(
            f"these runs chose their epoch by held-out images and measured the test set once, so they have no "
            f"{asked.epoch} epoch on it: leave out --epoch {asked.epoch}"
        )
    return kept


def result_tables(asked: Asked) -> list[ResultTable]:
    """The tables that are asked for.

    Raises:
        BadRequest: unknown table, metric or row, or nothing to show.
    """
    published = None if asked.table is None else papers.find_table(asked.table)
    versus = asked.versus or ("vanilla" if asked.by_seed else "kd")
    with _opened(asked) as store:
        if published is not None:
            return _paper_tables(asked, store, *published, versus)
        if store is None:
            return []
        metrics = _metrics(asked, store)
        found = comparisons(store, papers.defaults, asked.epoch or "last", _stored(metrics), asked.only)
    if not found:
        raise BadRequest(f"the store in {asked.results} holds no run yet: start with 'kdtable run'")
    return [comparison_table(comparison, metrics, versus) for comparison in _of_one_rule(found, asked)]


def text_of_runs(
    ids: Collection[str],
    kinds: Collection[str],
    paper: str,
    results: Path,
    url: str | None = None,
    form: str = "terminal",
) -> str:
    """Tables of some runs, with epoch rule and metrics of their paper's tables."""
    tables = [table for table in papers.load(paper).tables.values() if table.data in kinds]
    rules = {(table.epoch, table.metrics) for table in tables}
    epoch, names = rules.pop() if len(rules) == 1 else ("last", ())
    metrics = [METRICS[name] for name in names]
    with closing(Store(results, url, create=False)) as store:
        found = comparisons(store, papers.defaults, epoch, _stored(metrics), only=ids)
    return render([comparison_table(comparison, metrics) for comparison in found], form)


@contextmanager
def _opened(asked: Asked) -> Iterator[Store | None]:
    """The store; ``None`` if there is none, and only published numbers are asked for."""
    try:
        store = Store(asked.results, asked.store, create=False)
    except NoStore:
        if not asked.compare:
            raise
        yield None
        return
    with closing(store):
        yield store


def _paper_tables(asked: Asked, store: Store | None, paper: Paper, table: Table, versus: str) -> list[ResultTable]:
    metrics = _metrics(asked, store) or tuple(METRICS[name] for name in table.metrics)
    if asked.compare and not any(map(table.printed_as, metrics)):
        raise BadRequest(
            f"table {table.name} has no published numbers of {asked.metric}: leave out --compare or --metric"
        )
    rule = asked.epoch or table.epoch
    found = comparisons(store, papers.defaults, rule, _stored(metrics), asked.only) if store else []
    shown: list[Comparison | None] = [*_of_one_rule([one for one in found if fits_paper(one, paper, table)], asked)]
    return [
        paper_table(paper, table, one, rule, compare=asked.compare, metrics=metrics, versus=versus)
        for one in shown or [None]
    ]


def _metrics(asked: Asked, store: Store | None) -> Sequence[Metric]:
    if asked.metric is None:
        return ()
    known = metrics_of_tasks(store) if store else {}
    return parse_metrics(asked.metric, known | {one.name: one for one in TRANSFER.values()} if known else METRICS)


def _stored(metrics: Sequence[Metric]) -> list[str]:
    return [metric.stored for metric in metrics]
