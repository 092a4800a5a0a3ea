"""The Python interface: train a grid, read its results as DataFrames, load a student. ``docs/api.md`` is a tour.

The same as on the command line, with the same checks: what cannot be done raises a `BadRequest` with one sentence.

    import kdtable

    found = kdtable.run(pairs="resnet56:resnet20", methods=["vanilla", "kd", "crd"], seeds=3)
    found.table().pivot(index="row", columns="pair", values="mean")
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from kdtable.checkpoints import student as student_file
from kdtable.errors import BadRequest, Trouble, counted
from kdtable.execution.progress import Progress
from kdtable.execution.run_grid import Outcome, execute
from kdtable.export.files import load_network, student_path
from kdtable.files.remote import lasting_url
from kdtable.numerics.precision import choose_device
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.given import given_weights
from kdtable.planning.request import Changes, DataRequest, Request
from kdtable.planning.requested import plan_request
from kdtable.planning.run import Sharding
from kdtable.planning.selection import parse_selection
from kdtable.plugins import load
from kdtable.recipes.metrics import RULES
from kdtable.report.asked import Asked, check, result_tables
from kdtable.report.frames import epochs_frame, older_frame, runs_frame, values_frame
from kdtable.report.lookup import find_runs
from kdtable.report.result_table import ResultTable
from kdtable.store import RunRecord, Store
from kdtable.store.files import check_keep
from kdtable.store.retraining import older_results

__all__ = ["Results", "results", "run"]

#: A name, or several with commas or as a list.
Names = str | Sequence[str]


def run(
    pairs: Names | None = None,
    methods: Names | None = None,
    seeds: int | Sequence[int] | None = None,
    *,
    paper: str | None = None,
    reading: str = "code",
    plugins: Sequence[str | Path] = (),
    data: str | None = None,
    image_size: int | None = None,
    skip_unreadable: bool = False,
    validation: int | None = None,
    epochs: int | None = None,
    iterations: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    overrides: Mapping[str, object] | None = None,
    teacher: Mapping[str, str | Path] | None = None,
    start: Mapping[str, str | Path] | None = None,
    input_mean: Mapping[str, Sequence[float]] | None = None,
    input_std: Mapping[str, Sequence[float]] | None = None,
    device: str = "auto",
    jobs: int | str = 1,
    accumulate: int = 1,
    precision: str = "fp32",
    teacher_cache: str = "off",
    keep: str = "last",
    retrain: bool = False,
    results: str | Path = "results",
    store: str | None = None,
    checkpoints: str | Path | None = None,
    teachers_dir: str | Path = "teachers",
    data_root: str | Path = "data",
    progress: Progress | None = None,
) -> "Results":
    """Train every missing run of a grid, as ``kdtable run`` does, and return the results of what was asked for.

    What the store has is not trained again; what was interrupted continues from its last epoch. Runs that fail, and
    notes on data sets and teachers, are told as Python warnings.

    Example:
        found = kdtable.run("resnet20:resnet8", "vanilla,kd", seeds=3, data="digits", epochs=5)

    Args:
        pairs: ``all``, tables (``crd-1``) or TEACHER:STUDENT; by default all of ``paper``.
        methods: rows such as ``kd`` and ``crd+kd``; by default those of the paper's tables.
        seeds: a count (3: seeds 1, 2, 3) or a list of seeds; by default the paper's.
        paper: whose recipe, settings and tables are used; the CRD benchmark's by default.
        reading: where a paper and its released code differ: ``code``, or ``paper``.
        plugins: files with methods, networks, data sets or papers of yours; an edited one is loaded again.
        data: name of the data set; by default the paper's.
        image_size: pixels that images in folders are cropped to.
        skip_unreadable: leave out images that cannot be read.
        validation: number of training images to hold out: they choose the epoch, and the test set is measured once.
        epochs: of the main stage; milestones, schedules and earlier stages change in proportion.
        iterations: steps of the main stage instead of epochs; milestones and warm-up change in proportion.
        batch_size: images per step.
        lr: learning rate of every student.
        overrides: what ``--set`` changes: ``{"weight_decay": 1e-4, "weight.at": 500, "milestones": [3, 4]}``.
        teacher: files of teachers by network.
        start: files that students start from, by network.
        input_mean: mean per channel of such a file's inputs, by network; by default the file's, else the data set's.
        input_std: standard deviation of the same.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        jobs: number of worker processes, or ``auto``; a script then needs ``if __name__ == "__main__":``.
        accumulate: number of parts of a batch whose gradients are summed.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        teacher_cache: ``fp32`` or ``fp16`` to keep the teacher's outputs on disk.
        keep: weights of a finished run that stay: ``last``, ``all`` or ``none``.
        retrain: train again the runs whose code was edited; :meth:`Results.older` has what they were.
        results: folder of the results store.
        store: URL of its database; SQLite in ``results`` by default.
        checkpoints: folder or URL (``s3://...``) for checkpoints and students; ``results`` by default.
        teachers_dir: folder of fetched and trained teachers.
        data_root: folder of data sets.
        progress: receives events; by default nothing is shown.

    Raises:
        BadRequest: the request cannot be carried out.
        Trouble: every worker process was killed.
    """
    check_keep(keep)
    load(plugins)
    if "RANK" in os.environ:
        raise BadRequest("kdtable.run trains in processes of its own: under torchrun use the command, kdtable run")
    chosen, pair_names, rows, numbers = parse_selection(paper, _listed(pairs), _listed(methods), _seeds(seeds), data)
    request = Request(
        pairs=pair_names,
        methods=rows,
        seeds=numbers,
        paper=chosen,
        reading=reading,
        data=DataRequest(data, Path(data_root), image_size, skip_unreadable, validation),
        changes=Changes(epochs, batch_size, lr, [*_settings(overrides or {})], iterations=iterations),
        precision=precision,
        teacher_cache=teacher_cache,
        sharding=Sharding(accumulate=accumulate),
    )
    inputs = _texts(input_mean or {}), _texts(input_std or {})
    given = given_weights((teacher or {}).items(), (start or {}).items(), *inputs)
    planned_runs = plan_request(request, Path(teachers_dir), given)
    _warn_of_data(planned_runs)
    with _same_threads():
        outcome = execute(
            planned_runs,
            Path(results),
            device=choose_device(device),
            data_root=Path(data_root),
            progress=progress or _Warnings(),
            url=store,
            keep=keep,
            jobs=str(jobs),
            retrain=retrain,
            checkpoints=None if checkpoints is None else lasting_url(str(checkpoints)),
        )
    _check(outcome)
    return Results(results, store, only=[planned.run.id for planned in planned_runs])


def results(
    folder: str | Path = "results", store: str | None = None, *, plugins: Sequence[str | Path] = ()
) -> "Results":
    """The results in a store, which may be growing.

    Example:
        kdtable.results("results").runs().groupby(["row", "status"]).size()

    Args:
        folder: of the store.
        store: URL of its database; SQLite in ``folder`` by default.
        plugins: files that its runs need: with them, labels name what differs from a plug-in's own settings.

    Raises:
        BadRequest: there is no store, or it cannot be read.
    """
    load(plugins)
    return Results(folder, store)


class Results:
    """The results of a store as DataFrames, and its students as networks. Every call reads the store anew.

    Args:
        folder: of the store.
        store: URL of its database; SQLite in ``folder`` by default.
        only: ids of the runs to show; all by default.

    Raises:
        BadRequest: there is no store, or it cannot be read.
    """

    def __init__(self, folder: str | Path, store: str | None = None, only: Iterable[str] | None = None) -> None:
        self.folder = Path(folder)
        self._url = store
        self._only = None if only is None else frozenset(only)
        with self._store():
            pass

    def __repr__(self) -> str:
        return f"Results({str(self.folder)!r}, {counted(len(self._records()), 'run')})"

    def runs(self) -> pd.DataFrame:
        """A line per run: id, names, seed, status, seconds, parameters and more (:func:`runs_frame` lists all).

        Example:
            runs = found.runs()
            runs[runs["status"] == "failed"][["run", "reason"]]
        """
        return runs_frame(self._records())

    def values(self, epoch: str | None = None) -> pd.DataFrame:
        """A line per finished run and metric, in the unit that tables show.

        Example:
            found.values("best").query("metric == 'top1'").groupby(["pair", "row"])["value"].agg(["mean", "std"])

        Args:
            epoch: ``last``, ``best``, ``lowest-loss`` or ``validation``; by default ``validation`` of runs with
                held-out images, ``last`` of others.

        Raises:
            BadRequest: another epoch.
        """
        _check_epoch(epoch)
        return values_frame(self._records(), epoch)

    def older(self, epoch: str = "last") -> pd.DataFrame:
        """The columns of :meth:`values` and ``code``, of the results that other code made and that newer ones replaced.

        Example:
            then, now = found.older(), found.values()
            then.merge(now, on=["run", "metric"], suffixes=("_then", "_now"))[["value_then", "value_now"]]

        Args:
            epoch: ``last``, ``best`` or ``lowest-loss``.

        Raises:
            BadRequest: another epoch.
        """
        _check_epoch(epoch)
        with self._store() as store:
            records = older_results(store, self._only)
        return older_frame(records, epoch)

    def table(
        self, name: str | None = None, *, versus: str | None = None, metric: str | None = None, epoch: str | None = None
    ) -> pd.DataFrame:
        """A line per cell of the tables that ``kdtable report`` prints: mean, std and n, and what stands beside them.

        The columns are ``table`` (its title) and those of a ``ResultTable``: ``published`` and ``difference``
        if a table is named, ``gap``, ``gap_low`` and ``gap_high`` (paired difference to the row ``versus``, with its
        95 % interval), ``mark`` ("best", "tied", "second"); ``notes`` are sentences.

        Example:
            found.table("crd-1").pivot(index="row", columns="pair", values=["mean", "published"])

        Args:
            name: a published table, such as ``crd-1``; by default all that was run.
            versus: the row that others are compared with; ``kd`` by default.
            metric: names of metrics, with commas; by default the table's, else the main one.
            epoch: ``last``, ``best``, ``lowest-loss`` or ``validation``; by default ``validation`` of runs with
                held-out images, of others the table's rule, else ``last``.

        Raises:
            BadRequest: an unknown name, or nothing to show.
        """
        compare = name is not None
        asked = Asked(self.folder, self._url, "terminal", name, metric, epoch, versus, compare=compare, only=self._only)
        check(asked)
        return pd.concat([_cells(table) for table in result_tables(asked)], ignore_index=True)

    def epochs(self) -> pd.DataFrame:
        """A line per number recorded of an epoch: run, row, pair, seed, stage, epoch, kind, name, value (as measured).

        Example:
            top1 = found.epochs().query("stage == 'main' and name == 'top1'")
            top1.pivot_table(index="epoch", columns="row", values="value")  # the learning curves
        """
        with self._store() as store:
            records = store.runs(self._only)
            epochs = epochs_frame(store, [record.id for record in records])
        return runs_frame(records)[["run", "row", "pair", "seed"]].merge(epochs, on="run")

    def file(self, run: str) -> Path:
        """The file of a finished run's student: safetensors, which may also be a teacher of other runs.

        Example:
            kdtable.run("resnet20:resnet8", "kd", teacher={"resnet20": found.file(run)})

        Args:
            run: its id or the beginning of it, or a cell of one seed (``digits:kd:resnet20:resnet8``).

        Raises:
            BadRequest: there is no such run, it is not done, or its weights were not kept.
        """
        with self._store() as store:
            found = find_runs(store.runs(self._only), run)
            if len(found) > 1:
                raise BadRequest(f"{run} are {len(found)} runs: name one by its id")
            return student_path(store, found[0])

    def student(self, run: str) -> nn.Module:
        """A finished run's student on the CPU, in eval mode.

        It takes images (N, 3, S, S) in [0, 1] and normalises them itself; ``student(images).logits`` is (N, classes).

        Example:
            best = found.values().query("metric == 'top1'").nlargest(1, "value")["run"].item()
            predicted = found.student(best)(images).logits.argmax(dim=1)

        Args:
            run: as for :meth:`file`.

        Raises:
            BadRequest: see :meth:`file`; or the file is damaged.
        """
        return load_network(*student_file.load(self.file(run)))

    def _store(self) -> closing[Store]:
        return closing(Store(self.folder, self._url, create=False))

    def _records(self) -> list[RunRecord]:
        with self._store() as store:
            return store.runs(self._only)


def _check_epoch(epoch: str | None) -> None:
    if epoch is not None and epoch not in RULES:
        raise BadRequest(f"--epoch is one of {', '.join(RULES)}, not '{epoch}'")


def _cells(table: ResultTable) -> pd.DataFrame:
    notes = table.cells["notes"].map(lambda numbers: tuple(table.footnotes[number - 1] for number in numbers))
    found = table.cells.assign(table=table.title, notes=notes)
    return found[["table", *table.cells.columns]]


class _Warnings(Progress):
    """Tells notes and failures as Python warnings."""

    def failed(self, run: Any, reason: str) -> None:
        """See :class:`Progress`."""
        self.note(f"{run.row} of {run.student}, seed {run.seed}, failed: {reason}")

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        warnings.warn(text, stacklevel=2)


def _warn_of_data(planned_runs: Iterable[PlannedRun]) -> None:
    specs = {planned.run.data.key: planned.run.data for planned in planned_runs}
    for spec in specs.values():
        for note in spec.notes:
            warnings.warn(f"{spec.name}: {note}", stacklevel=3)


@contextmanager
def _same_threads() -> Iterator[None]:
    """Give the caller its number of threads back: training uses one for each network."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(outcome: Outcome) -> None:
    if outcome.unfinished:
        raise Trouble("no worker process is left; finished epochs are kept: call again to go on")
    if outcome.failed:
        warnings.warn(f"{counted(outcome.failed, 'run')} failed: runs() has the reasons", stacklevel=3)


def _listed(names: Names | None) -> str | None:
    return names if names is None or isinstance(names, str) else ",".join(names)


def _seeds(seeds: int | Sequence[int] | None) -> str | None:
    return None if seeds is None else str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds)


def _texts(values: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str]]:
    return ((name, ",".join(map(str, numbers))) for name, numbers in values.items())


def _settings(overrides: Mapping[str, Any]) -> Iterator[str]:
    listed = {key: value if isinstance(value, list | tuple) else (value,) for key, value in overrides.items()}
    return (f"{key}={','.join(map(str, values))}" for key, values in listed.items())
