"""Readers of results: one for each form that a results store, or a file of weights, has had.

To add a form of the store, write a function like :func:`read_columns` and add a line to ``STORES``: the tables and
columns that only this form has, and the function. The first line that fits a database reads it. Keep the names of
numbers that the older readers give (``train_loss``), or nothing is found to compare. To add a form of weights, add a
line to ``STUDENTS`` or ``TENSORS``.

Nothing here imports kdtable: the results of one commit are read by the code of another.
"""

import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Numbers = dict[str, float]


class Unreadable(Exception):
    """Results that no reader knows, or that cannot be matched."""


class Key(NamedTuple):
    """What a run is matched by. Its id may change from commit to commit."""

    pair: str
    row: str
    seed: int

    def __str__(self) -> str:
        return f"{self.pair} {self.row} seed {self.seed}"


class Moment(NamedTuple):
    """An epoch within its stage."""

    stage: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.stage} epoch {self.epoch}"


@dataclass
class Run:
    """What a store holds of one run.

    Attributes:
        status: ``done``, ``failed``, ``n/a``, or what else the store calls it.
        weights: the file of the trained student; ``None`` where there is none.
        epochs: the numbers of each epoch by name: ``lr``, ``train_loss``, ``train_top1``, ``test_top1``, ``test_top5``
            and whatever else was measured. The last epoch also has ``term NAME`` for each loss term and ``branch N``
            for each extra classifier. Times and the size of the cohort are left out: they describe the machine.
    """

    status: str
    weights: Path | None
    epochs: dict[Moment, Numbers] = field(default_factory=dict)


Results = dict[Key, Run]


# --- stores ------------------------------------------------------------------------------------------------------

#: Columns of an epoch in the first form that are no results.
_NO_RESULTS = {"run", "stage", "epoch", "seconds", "waited", "members"}


def read_columns(db: sqlite3.Connection, folder: Path) -> Results:
    """The first form (schema 3): each number of an epoch is a column of its own."""
    found: dict[int, Run] = {}
    results: Results = {}
    for row in db.execute("select * from runs order by key"):
        key = Key(f"{row['teacher'] or 'none'}:{row['student']}", row["row"], row["seed"])
        found[row["key"]] = Run(row["status"], student_in(folder / "runs" / row["id"]))
        _add(results, key, found[row["key"]], folder)
    for row in db.execute("select * from epochs"):
        values = {name: row[name] for name in row.keys() if name not in _NO_RESULTS}  # noqa: SIM118 (a Row lists values)
        found[row["run"]].epochs[Moment(row["stage"], row["epoch"])] = _present(values)
    for row in db.execute("select key, terms, branches from runs"):
        main = [moment for moment in found[row["key"]].epochs if moment.stage == "main"]
        if main:
            found[row["key"]].epochs[max(main)] |= _parts(row["terms"], row["branches"])
    return results


def _present(values: Mapping[str, float | None]) -> Numbers:
    return {name: value for name, value in values.items() if value is not None}


def _parts(terms: str | None, branches: str | None) -> Numbers:
    """Loss terms and accuracies of extra classifiers of a run's last epoch, which are kept as JSON."""
    named = {f"term {name}": value for name, value in json.loads(terms or "{}").items()}
    return named | {f"branch {place}": value for place, value in enumerate(json.loads(branches or "[]"), start=1)}


def read_histories(db: sqlite3.Connection, folder: Path) -> Results:
    """The second form: a run's epochs are one compressed text, with a task's metrics as a mapping."""
    contents = {(run, code): content for run, code, content in db.execute("select run, code, content from histories")}
    results: Results = {}
    for row in db.execute("select * from runs order by key"):
        key = Key(f"{row['teacher'] or 'none'}:{row['student']}", row["row"], row["seed"])
        content = contents.get((row["key"], row["code"]))
        records = json.loads(zlib.decompress(content)) if content else []
        epochs = {Moment(record["stage"], record["epoch"]): _measured(record) for record in records}
        if main := [record for record in records if record["stage"] == "main"]:
            epochs[Moment("main", main[-1]["epoch"])] |= _last_parts(main[-1])
        _add(results, key, Run(row["status"], student_in(folder / "runs" / row["id"]), epochs), folder)
    return results


#: Metrics of the second form by their names in the first one.
_METRICS = {"train_top1": "train-top1", "test_top1": "top1", "test_top5": "top5"}


def _measured(record: Mapping[str, Any]) -> Numbers:
    named = {name: record["metrics"].get(metric) for name, metric in _METRICS.items()}
    return _present({name: record[name] for name in ("lr", "train_loss", "test_loss")} | named)


def _last_parts(record: Mapping[str, Any]) -> Numbers:
    """What the first form keeps of the last epoch alone."""
    branches = {
        f"branch {match[1]}": value
        for name, value in record["metrics"].items()
        if (match := re.fullmatch(r"branch(\d+)-top1", name))
    }
    return {f"term {name}": value for name, value in record["terms"].items()} | branches


Columns = Mapping[str, set[str]]
Read = Callable[[sqlite3.Connection, Path], Results]

#: Tables and columns that a database must have, and its reader. The first line that fits counts: add new ones above.
STORES: tuple[tuple[Columns, Read], ...] = (
    (
        {
            "runs": {"key", "id", "row", "student", "teacher", "seed", "status", "code"},
            "histories": {"run", "code", "content"},
        },
        read_histories,
    ),
    (
        {
            "runs": {"key", "id", "row", "student", "teacher", "seed", "status", "terms", "branches"},
            "epochs": {"run", "stage", "epoch", "train_loss", "test_top1"},
        },
        read_columns,
    ),
)


def read_store(folder: Path) -> Results:
    """The runs of a results folder. Its database may be in use.

    Raises:
        Unreadable: no database, a damaged one, one of an unknown form, or two runs that cannot be told apart.
    """
    path = min(folder.glob("*.sqlite"), default=None)
    if path is None:
        raise Unreadable(f"{folder} has no results database (*.sqlite)")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            there = _columns(db)
            for wanted, read in STORES:
                if all(names <= there.get(table, set()) for table, names in wanted.items()):
                    return read(db, folder)
    except sqlite3.Error as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    raise Unreadable(f"no reader knows the form of {path}: add one to STORES in {Path(__file__).name}")


def _columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    query = "select m.name, c.name from sqlite_master m, pragma_table_info(m.name) c where m.type = 'table'"
    found: dict[str, set[str]] = {}
    for table, column in db.execute(query):
        found.setdefault(table, set()).add(column)
    return found


def _add(results: Results, key: Key, run: Run, folder: Path) -> None:
    if key in results:
        raise Unreadable(
            f"{folder} has two runs of {key}: use a results folder for each recipe, data set and precision"
        )
    results[key] = run


# --- weights -----------------------------------------------------------------------------------------------------

#: Names of a trained student's file in the folder of its run. The first one that is there counts.
STUDENTS = ("student.safetensors", "student.pt")


def student_in(run_folder: Path) -> Path | None:
    """The file of a run's trained student; ``None`` if there is none."""
    return next((path for name in STUDENTS if (path := run_folder / name).is_file()), None)


def _read_torch(path: Path) -> dict[str, Any]:
    """A file of ``torch.save``: the tensors themselves, or a dict that has them under one of these names."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(next((content[name] for name in ("student", "model", "state_dict") if name in content), content))


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


#: Readers of files of tensors by the ends of their names.
TENSORS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their state-dict keys, on the CPU.

    Raises:
        Unreadable: it holds none.
    """
    tensors = {key: value for key, value in TENSORS[path.suffix](path).items() if isinstance(value, Tensor)}
    if not tensors:
        raise Unreadable(f"{path} holds no tensors")
    return tensors


def teacher_files(folder: Path) -> dict[str, Path]:
    """Trained teachers of a teachers folder by their place in it, without the ends of their names."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix in TENSORS)
    return {str(path.relative_to(folder).with_suffix("")): path for path in found}
