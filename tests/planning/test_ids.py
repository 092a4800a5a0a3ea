"""The ids of all runs of all papers: stored results are found by them, so they never change.

``ids.toml`` holds, for each paper, reading and data set, the id of every row on the first pair, and a digest of the ids
of all its pairs. Written once, by ``python -m tests.planning.test_ids``.
"""

import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from kdtable import papers
from kdtable.planning.cohorts import PlannedRun
from tests.papers import resolving
from tests.papers.conftest import resolve_from_names_alone

PINS = Path(__file__).with_name("ids.toml")
READINGS = [(paper, reading) for paper in papers.names() for reading in ("code", *papers.load(paper).readings)]
#: Rows of other papers and combinations with KD, on a pair of the CRD benchmark.
GUESTS = ("dih", "tofd", "mhkd", "dml", "takd", "cd", "cd+gkd", "cd+gkd+edt")
REVIEWED = ("reviewkd", "reviewkd+kd", "cse-l2", "pad-l2")
#: Several methods at once.
TOGETHER = ("at+crd", "at+crd+kd", "dkd+reviewkd", "fitnet+sp", "ab+ft", "cse-l2+pad-l2", "cd+gkd+mgd", "dkd+nd")
COMBINED = ("at+kd", "ab+kd", "ft+kd", "pad-l2+kd", "cd+kd", "fsp+kd", "nst+kd")


@pytest.fixture(autouse=True)
def _from_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_from_names_alone(monkeypatch)


def ids_of(planned: Iterable[PlannedRun]) -> dict[str, dict[str, str]]:
    """By kind of data set: the id of every row's first run, and a digest of all ids."""
    found: dict[str, dict[str, str]] = {}
    every: dict[str, list[str]] = {}
    for one in planned:
        kind = one.run.data.kind
        found.setdefault(kind, {}).setdefault(f"{one.row} (first)" if one.prerequisite else one.row, one.run.id)
        every.setdefault(kind, []).append(one.run.id)
    digests = {kind: hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] for kind, ids in every.items()}
    return {kind: {**rows, "all": digests[kind]} for kind, rows in found.items()}


def published(paper: str, reading: str) -> dict[str, dict[str, str]]:
    tables = papers.load(paper).tables
    if tables:
        return ids_of(resolving.cells(paper, reading=reading))
    if papers.load(paper).task == "detection":
        rows = papers.load(paper).rows
        families = [f"{family}_w32:{family}_w8" for family in ("fasterrcnn", "retinanet")]
        return ids_of(resolving.cells(paper, *rows, pairs=",".join(families), reading=reading))
    return ids_of(resolving.cells(paper, "vanilla", pairs="resnet110_a:resnet20_a", reading=reading))


def guests() -> dict[str, dict[str, str]]:
    return ids_of(resolving.cells("crd", *GUESTS, *REVIEWED, *COMBINED, pairs="resnet56:resnet20"))


def together() -> dict[str, dict[str, str]]:
    return ids_of(resolving.cells("crd", *TOGETHER, pairs="resnet56:resnet20"))


def labelled_teacher() -> dict[str, dict[str, str]]:
    """Students without labels of a teacher with them, which were the pairs of the table before MoCo's own teacher."""
    return ids_of(resolving.cells("mgd-unsup", pairs="tv_resnet50:tv_resnet34,tv_resnet50:tv_resnet18"))


@pytest.mark.parametrize(("paper", "reading"), READINGS)
def test_ids_of_published_rows(paper: str, reading: str) -> None:
    assert published(paper, reading) == tomllib.loads(PINS.read_text())[paper][reading]


def test_ids_of_guests_and_combinations() -> None:
    assert guests() == tomllib.loads(PINS.read_text())["guests"]


def test_ids_of_several_methods_at_once() -> None:
    assert together() == tomllib.loads(PINS.read_text())["together"]


def test_ids_of_a_labelled_teacher_without_labels() -> None:
    assert labelled_teacher() == tomllib.loads(PINS.read_text())["labelled-teacher"]


def test_every_paper_is_pinned() -> None:
    assert tomllib.loads(PINS.read_text()).keys() == {*papers.names(), "guests", "together", "labelled-teacher"}


def _tables(prefix: str, ids: dict[str, dict[str, str]]) -> list[str]:
    lines = []
    for kind, rows in ids.items():
        lines += [f'[{prefix}."{kind}"]', *(f'"{name}" = "{run_id}"' for name, run_id in rows.items()), ""]
    return lines


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        resolve_from_names_alone(patch)
        found = [
            line for paper, reading in READINGS for line in _tables(f"{paper}.{reading}", published(paper, reading))
        ]
        found += [*_tables("guests", guests()), *_tables("together", together())]
        PINS.write_text("\n".join([*found, *_tables("labelled-teacher", labelled_teacher())]))
