"""The words around tables: titles, legends and captions."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Final

from kdtable.data.spec import DETECTION, STREAMED
from kdtable.errors import counted
from kdtable.models.sums import networks_of
from kdtable.papers import Table
from kdtable.recipes.metrics import VALIDATED, Metric
from kdtable.recipes.recipe import WEAK_STRONG, Recipe
from kdtable.report.comparison import Column, Comparison, column_names
from kdtable.report.footnotes import numerics_difference
from kdtable.report.frames import lines_of
from kdtable.report.recipe_words import additions, optimisation
from kdtable.teachers.manifest import by_checksum

if TYPE_CHECKING:
    from pandas import DataFrame

#: Marks of a table, and what its legend says of them.
SYMBOLS: Final = {
    "fewer": "n = fewer seeds",
    "partly": "a/b = a of b asked runs are done",
    "none": "— = no finished run",
    "published": "† = published only, not trained here",
    "best": "bold or * = best method of its pair",
    "tied": "bold with ≈ = tied with it (the paired 95 % interval over seeds holds 0)",
    "against": "↑/↓ = {words} {versus} (the paired 95 % interval over seeds excludes 0)",
}


def in_words(metrics: Iterable[Metric]) -> str:
    """The names of metrics in a title."""
    return _joined([metric.words for metric in metrics])


def with_unit(text: str, metrics: Iterable[Metric]) -> str:
    """A title with the units of its metrics."""
    units = ", ".join(dict.fromkeys(metric.unit for metric in metrics if metric.unit))
    return f"{text} ({units})" if units else text


def of_epoch(metrics: Sequence[Metric], epoch: str, main: Metric) -> str:
    """Which metrics of which epoch are shown. ``best`` is chosen by the ``main`` metric, even if it is not shown."""
    if epoch == "last":
        return f"{in_words(metrics)} of the last epoch"
    if epoch == VALIDATED:
        held_out = main.on_validation().words
        return f"{in_words(metrics)} of the epoch of the best {held_out}, measured on the test images once"
    if epoch == "lowest-loss":
        return f"{in_words(metrics)} of the epoch of the lowest loss (distillation included) on the test images"
    best = [metric for metric in metrics if metric.stored == main.stored]
    others = [metric for metric in metrics if metric not in best]
    if not best:
        return f"{in_words(others)} of the epoch of the best {main.words}"
    return f"best {in_words(best)} over epochs" + (f", and the {in_words(others)} of that epoch" if others else "")


def legend(
    cells: "DataFrame", metrics: Sequence[Metric], epoch: str, main: Metric, seeds: int, versus: str | None
) -> str:
    """The legend: what the numbers are, and what the marks beside them mean, as far as they occur.

    Args:
        cells: of the table.
        metrics: the metrics shown.
        epoch: the epoch shown.
        main: metric that chooses the best epoch.
        seeds: largest number of seeds behind a cell.
        versus: label of the row that others are compared with.
    """
    what = of_epoch(metrics, epoch, main)
    runs = cells[cells["row"] != "teacher"]
    states, marks = set(cells["state"]), set(cells["mark"])
    found = [f"{what[0].upper()}{what[1:]}: {_counted(seeds)}"]
    if ((runs["n"] < seeds) & (runs["state"] == "done")).any():
        found.append(SYMBOLS["fewer"])
    if "partly done" in states or "not done" in states:
        found.append(SYMBOLS["partly"])
    if states & {"none", "not done"}:
        found.append(SYMBOLS["none"])
    if "published only" in states:
        found.append(SYMBOLS["published"])
    better = _direction(metrics)
    if "best" in marks:
        found.append(f"{SYMBOLS['best']}{better}")
    if "tied" in marks:
        found.append(SYMBOLS["tied"])
    if set(cells["against"]) & {"above", "below"}:
        words = "better/worse than" if better else "above/below"
        found.append(SYMBOLS["against"].format(words=words, versus=_named(versus)))
    return f"{'; '.join(found)}."


def resolution(gaps: Mapping[Metric, float]) -> list[str]:
    """A caption on the smallest difference that the table can resolve, for each metric with such a one."""
    known = {metric: gap for metric, gap in gaps.items() if not isnan(gap)}
    shown = [f"{gap:.2f} ({metric.words})" if len(gaps) > 1 else f"{gap:.2f}" for metric, gap in known.items()]
    if not shown:
        return []
    return [f"Differences of two methods of a pair below {_joined(shown)} cannot be told from noise by these seeds."]


def _direction(metrics: Iterable[Metric]) -> str:
    """Which way is better, in brackets, unless all metrics are better the higher they are."""
    directions = {metric.higher_is_better for metric in metrics}
    if directions <= {True}:
        return ""
    return " (an error is better the lower it is)" if True in directions else " (lower is better)"


def _named(versus: str | None) -> str:
    return "KD" if versus == "kd" else f"the row {versus}"


def of_published(table: Table, metrics: Sequence[Metric], epoch: str) -> list[str]:
    """The source of published numbers, and how they differ from the numbers beside them."""
    found = [f"Published numbers: {table.source}.", *([f"{table.note}."] if table.note else [])]
    found += [f"Published numbers of {row}: {source}." for row, source in table.row_sources.items()]
    origins = {metric: table.printed_as(metric) for metric in metrics}
    changed = dict.fromkeys(own for metric, own in origins.items() if own is not None and own != metric)
    if changed:
        found.append(f"Published as {in_words(list(changed))}; shown is 100 minus it.")
    if lacking := [metric for metric, own in origins.items() if own is None]:
        found.append(f"The table has no {in_words(lacking)}.")
    if epoch != table.epoch:
        found.append(f"The paper's numbers are those of the {table.epoch.replace('-', ' ')} epoch.")
    return found


def recipe(comparison: Comparison) -> str:
    """The recipe of a comparison, without what single rows change."""
    r = Recipe.from_mapping({**comparison.recipe, "lr": 0.0})
    rates = ", ".join(sorted({f"{c.lr:g}" for c in comparison.columns}))
    fill = "mirrored" if r.crop_fill == "reflect" else "zero-padded"
    size = comparison.data.get("image_size")
    if comparison.data["kind"] in DETECTION:
        crop = f"shorter side {size}" if size else "images as they are"
    elif comparison.data["kind"] in STREAMED:
        crop = f"random crop of {size}"
    else:
        crop = f"{f'images scaled to {size}, ' if size else ''}{fill} crop {r.crop_padding}"
    held = comparison.data.get(VALIDATED)
    held_out = [f"without {counted(held, 'training image')} held out for validation"] if held else []
    length = counted(r.iterations, "step") if r.iterations else counted(r.epochs, "epoch")
    unlabelled = r.views and r.views != WEAK_STRONG
    seen = [*additions(r), f"in the probe a {crop}"] if unlabelled else [crop, *additions(r)]
    parts = [length, f"batch {r.batch_size}", *optimisation(r, rates), *seen]
    return f"Recipe: {', '.join([*parts, *held_out])}; {comparison.precision}."


def differs(what: str, changed: Sequence[str]) -> list[str]:
    """A caption on the changes from the recipe ``what``, if there are any."""
    return [f"The recipe differs from {what}: {'; '.join(changed)}."] if changed else []


def left_out(comparison: Comparison, table: Table, shown: Sequence[Column]) -> list[str]:
    """A caption naming further columns of the table's pairs that it does not show."""
    names = column_names(comparison.columns)
    pairs = {(pair.teacher, pair.student) for pair in table.pairs}
    others = [names[c] for c in comparison.columns if (c.teacher, c.student) in pairs and c not in shown]
    return [f"Left out, and shown without --table: {', '.join(others)}."] if others else []


def notes(comparison: Comparison) -> list[str]:
    """Further captions of a comparison: own recipes, preparations, failures, N/A, mixed provenance."""
    found = [f"Other recipe of {row}: {'; '.join(fields)}." for row, fields in comparison.own.items()]
    found += [*_published_weights(comparison), *comparison.prepared]
    if comparison.failed:
        count = "1 failed run is" if comparison.failed == 1 else f"{comparison.failed} failed runs are"
        found.append(f"{count} left out; 'kdtable status' has the reasons.")
    names = column_names(comparison.columns)
    for cell in lines_of(comparison.cells.dropna(subset="not_applicable")):
        column = names[comparison.columns[cell.column]]
        found.append(f"N/A: {cell.label} on {column}, because {cell.not_applicable}.")
    return [*found, *_mixed(comparison)]


def _published_weights(comparison: Comparison) -> list[str]:
    """Captions naming the torchvision file of a teacher: torchvision replaces files, and papers used older ones."""
    known = {
        network: by_checksum(origin)
        for column in comparison.columns
        if column.teacher
        for network, origin in zip(networks_of(column.teacher), column.origin.split("+"), strict=True)
    }
    files = {name: entry.sources[0].url for name, entry in known.items() if entry is not None and entry.on_request}
    return [
        f"Teacher {name}: torchvision's file {url.rpartition('/')[2]}; papers may have used an earlier one."
        for name, url in files.items()
    ]


def _mixed(comparison: Comparison) -> list[str]:
    found = []
    if any("#" in label for label in comparison.labels):
        found.append(
            "Rows marked # differ in the version of a method or network, in an input normalisation, in the epochs of "
            "an earlier stage, in an assistant, or in whether the teacher's outputs were kept on disk."
        )
    if len(comparison.numerics) > 1:
        found.append(
            f"Made under {len(comparison.numerics)} kinds of numerics: {numerics_difference(comparison.numerics)}."
        )
    if len(comparison.sources) > 1:
        found.append(f"Made by {len(comparison.sources)} states of the code: {', '.join(sorted(comparison.sources))}.")
    return found


def _counted(seeds: int) -> str:
    if seeds == 0:
        return "no finished run"
    return "one seed" if seeds == 1 else f"mean ± sample standard deviation over {seeds} seeds"


def _joined(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
