"""The list of runs, and what a click on a cell shows of them."""

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from kdtable.models.foreign import split_names
from kdtable.report.details import Curve, Details
from kdtable.report.page.axes import thinned
from kdtable.report.page.views import lines_of
from kdtable.report.page.words import duration

if TYPE_CHECKING:
    import pandas as pd

#: Points of a curve at most, and of all curves of all runs together.
POINTS: Final = 60
ALL_POINTS: Final = 40_000


@dataclass(frozen=True, slots=True)
class RunLine:
    """A line of the list of runs."""

    run: str
    row: str
    pair: str
    data: str
    seed: int
    state: str
    time: str
    seconds: str
    finished: str


def run_lines(all_runs: "pd.DataFrame") -> list[RunLine]:
    """A line per run, by pair, row and seed."""
    ordered = all_runs.sort_values(["data", "pair", "row", "seed"], kind="stable")
    return [
        RunLine(
            line.run,
            line.row,
            " → ".join(split_names(line.pair)),
            line.data,
            line.seed,
            f"{line.status}: {line.reason}" if isinstance(line.reason, str) and line.reason else line.status,
            duration(float(line.seconds)) if line.status == "done" else "",
            f"{float(line.seconds):.1f}" if line.status == "done" else "",
            line.finished[:16].replace("T", " ") if isinstance(line.finished, str) else "",
        )
        for line in lines_of(ordered)
    ]


def packed_details(details: Mapping[str, Details]) -> str:
    """What a click shows, for a script element: JSON, deflated, in base64; lines and sections each once.

    ``{"lines": [[label, text]], "sections": [[title, [line]]], "runs": {id: [[section], [curve]]}}``; a curve is
    ``[stage, kind, name, [epoch], [value]]``.
    """
    lines, sections = _Pool(), _Pool()
    most = _points(details)
    runs = {}
    for run, found in details.items():
        own = [sections.add((part.title, tuple(lines.add(line) for line in part.lines))) for part in found.sections]
        runs[run] = [own, [_thinned(curve, most) for curve in _losses(found)]]
    whole = {"lines": lines.items, "sections": sections.items, "runs": runs}
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False)
    return b64encode(zlib.compress(text.encode(), 9)).decode()


class _Pool:
    """Numbers distinct values in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def items(self) -> list[Any]:
        return list(self._numbers)


def _losses(found: Details) -> Iterator[Curve]:
    return (curve for curve in found.curves if curve.kind in ("loss", "term") and len(curve.values) > 1)


def _points(details: Mapping[str, Details]) -> int:
    many = sum(1 for found in details.values() for _ in _losses(found))
    return max(8, min(POINTS, ALL_POINTS // max(many, 1)))


def _thinned(curve: Curve, most: int) -> list[Any]:
    keep = thinned(len(curve.epochs), most)
    values = [float(f"{curve.values[index]:.3g}") if isfinite(curve.values[index]) else None for index in keep]
    return [curve.stage, curve.kind, curve.name, [curve.epochs[index] for index in keep], values]
