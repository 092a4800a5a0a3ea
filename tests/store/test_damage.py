"""A database that was damaged anywhere is refused with a sentence, or is read as if nothing had happened to it."""

import math
import random
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from kdtable.errors import BadRequest, Trouble
from kdtable.store import FILE_NAME, Damaged, NoStore, Store, Worker
from kdtable.store.overview import overview
from kdtable.store.seals import TABLED, seal
from tests.store.samples import ORIGIN, add, finish, own, record, rewrite, row, stranger

RUNS = 24
PAGE = 4096


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that has several pages of runs and of epochs."""
    folder = tmp_path_factory.mktemp("undamaged")
    ids = [own(f"r{number}")["id"] for number in range(RUNS)]
    with closing(Store(folder)) as store, Worker(store) as worker:
        store.plan([row(**own(f"r{number}")) for number in range(RUNS)])
        worker.claim(ids[:-5], ORIGIN)
        for number, run_id in enumerate(ids[:-8]):
            (finish if number % 5 else add)(worker, run_id, *(record(e, e / 50) for e in range(1, 9)))
        store.record_teacher({"sha256": "a", "data": "d", "network": "n", "top1": 0.9, "top5": 1.0, "images": 9})
        stranger(store, ids[-1])
    return folder


def everything(folder: Path) -> list[Any]:
    """All that commands read."""
    with closing(Store(folder, create=False)) as store:
        runs = store.all_runs()
        found = overview(store, 30)
        return [
            *(runs, store.tabled_runs(), store.teacher_accuracies()),
            *(found.counts, found.shown, found.hidden, found.sources),
            [store.epochs_of(run["id"]) for run in runs],
            [store.all_runs([run["id"]]) for run in runs[::9]],
        ]


def scanned(folder: Path) -> list[Any]:
    """All that is read without an index of runs, as for a report."""
    with closing(Store(folder, create=False, scanned=True)) as store:
        found = overview(store, 30)
        states = (found.counts, found.shown, found.hidden, found.sources)
        return [store.all_runs(), store.tabled_runs(), store.teacher_accuracies(), *states]


def flipped(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def cut_short(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def zeroed(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    length = min(draw.choice((8, 512, PAGE)), len(content) - start)
    content[start : start + length] = bytes(length)


def _page(content: bytes, draw: random.Random) -> slice:
    start = draw.randrange(len(content) // PAGE) * PAGE
    return slice(start, start + PAGE)


def swapped(content: bytearray, draw: random.Random) -> None:
    one, two = _page(content, draw), _page(content, draw)
    content[one], content[two] = content[two], content[one]


@pytest.mark.parametrize("read", [everything, scanned])
@pytest.mark.parametrize("spoil", [flipped, cut_short, zeroed, swapped])
def test_damage_anywhere(
    spoil: Callable[[bytearray, random.Random], None],
    read: Callable[[Path], list[Any]],
    undamaged: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE_NAME
    good = (undamaged / FILE_NAME).read_bytes()
    expected = read(undamaged)
    refused = 0
    for seed in range(200):
        content = bytearray(good)
        spoil(content, random.Random(seed))
        path.write_bytes(content)
        found: list[Any] = []
        if told := _refusal(lambda: found.extend(read(tmp_path))):  # noqa: B023
            assert "\n" not in told
            refused += 1
        else:
            assert found == expected, f"seed {seed}"
        assert path.read_bytes() == content
    assert refused > 20


def test_no_writer_heals_damage(undamaged: Path, tmp_path: Path) -> None:
    """What is refused stays refused: nothing is overwritten but by what was read well."""
    path = tmp_path / FILE_NAME
    good = (undamaged / FILE_NAME).read_bytes()
    ids = [own(f"r{number}")["id"] for number in range(RUNS)]
    both = 0
    for seed in range(24):
        content = bytearray(good)
        (flipped if seed % 2 else zeroed)(content, random.Random(seed))
        path.write_bytes(content)
        before = _refusal(lambda: everything(tmp_path))
        refused = _refusal(lambda: _write(tmp_path, ids))
        assert not before or _refusal(lambda: everything(tmp_path)), f"seed {seed}: {before}"
        both += bool(before and refused)
        for left in tmp_path.glob(f"{FILE_NAME}-*"):
            left.unlink()
    assert both > 1


def _refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except Trouble:  # which is no word for damage: its exit code is another
        raise
    except BadRequest as error:
        return str(error)
    return ""


def _write(folder: Path, ids: list[str]) -> None:
    with closing(Store(folder)) as store, Worker(store) as worker:
        store.plan([row(**own("new"))])
        worker.claim(ids, ORIGIN)
        for run_id in worker.claims()[:3]:
            add(worker, run_id, record(1, 0.125))


def test_a_log_that_was_damaged_loses_its_end_and_no_more(tmp_path: Path) -> None:
    """As after a power cut: an earlier state is found, whole, and runs go on from there."""
    with closing(Store(tmp_path / "whole")) as store, Worker(store) as worker:
        store.plan([row()])
        worker.claim(["r1"], ORIGIN)
        for last in range(1, 9):
            add(worker, "r1", *(record(epoch, epoch / 50) for epoch in range(1, last + 1)))
        shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    log = tmp_path / "killed" / f"{FILE_NAME}-wal"
    good = {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir() if "shm" not in path.name}
    lengths = set()
    for seed in range(40):
        place = tmp_path / str(seed)
        place.mkdir()
        for name, content in good.items():
            (place / name).write_bytes(content)
        content = bytearray(good[log.name])
        flipped(content, random.Random(seed))
        (place / log.name).write_bytes(content)
        with suppress(NoStore), closing(Store(place, create=False)) as store:
            epochs = store.epochs_of("r1")
            assert [e["test_top1"] for e in epochs] == [number / 50 for number in range(1, len(epochs) + 1)]
            lengths.add(len(epochs))
    assert len(lengths) > 2


# --- checksums of rows ------------------------------------------------------------------------------------------


def test_seals_stay_as_they_are() -> None:
    """Else stores of earlier versions could not be read."""
    assert seal(("r1", None, 3, 0.25)) == "0cac05c9d2cf32a0"
    assert seal((("main", 1, 0.5), ("main", 2, 1e-300))) == "0b5368c117f7d3ce"


CHANGES = {
    "a number of a run": ("UPDATE runs SET best_top1 = 0.99 WHERE id = 'r1'", "the row of run r1 does not fit"),
    "what no table shows": ("UPDATE runs SET created = '-' WHERE id = 'r1'", "the row of run r1 does not fit"),
    "a status": ("UPDATE runs SET status = 'dome' WHERE id = 'r1'", "the row of run r1 does not fit"),
    "a label": ("UPDATE runs SET row = 'kc' WHERE id = 'r1'", "the row of run r1 does not fit"),
    "a number of an epoch": ("UPDATE epochs SET test_top1 = 0.99", "the epochs of run r1 do not fit"),
    "a lost epoch": ("DELETE FROM epochs", "the epochs of run r1 do not fit"),
    "a teacher": ("UPDATE teachers SET top1 = 0.99", "the row of teacher a does not fit"),
    "a process": ("UPDATE workers SET host = 'fas' WHERE host = 'far'", "does not fit its checksum"),
    "a meaning": ("UPDATE protocols SET meaning = '{}'", "does not fit its id"),
    "an origin": ("UPDATE origins SET content = '{}'", "does not fit its id"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_behind_the_stores_back(case: str, store: Store, worker: Worker) -> None:
    statement, told = CHANGES[case]
    store.plan([row("r1"), row("r2")])
    store.record_teacher({"sha256": "a", "data": "d", "network": "n", "top1": 0.9, "top5": 1.0, "images": 9})
    worker.claim(["r1"], ORIGIN)
    finish(worker, "r1", record(1))
    stranger(store, "r2")
    rewrite(store, statement, seal=False)
    with pytest.raises(Damaged, match=f"{told}.*'kdtable store check' tells more, restore it from a copy"):
        _read(store)
    rewrite(store, "UPDATE meta SET schema_version = schema_version")


def test_nothing_is_kept_that_no_database_gives_back(store: Store, worker: Worker) -> None:
    """SQLite keeps NULL for NaN, which a checksum over NaN would never fit."""
    store.plan([row("r1")])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(1))
    for column, history in {
        "test_loss": [record(1), record(2, test_loss=math.nan)],
        "last_top1": [record(1, math.nan)],  # which is in the store already, and stays
    }.items():
        with pytest.raises(ValueError, match=f"{column} is NaN, which no store keeps"):
            add(worker, "r1", *history)
    _read(store)
    assert [epoch["test_top1"] for epoch in store.epochs_of("r1")] == [0.5]


@pytest.mark.parametrize("name", TABLED)
def test_what_tables_show_has_a_checksum_of_its_own(name: str, store: Store) -> None:
    """It is all that a report reads."""
    store.plan([row("r1")])
    rewrite(store, f"UPDATE runs SET {name} = {7 if name in ('test_images', 'seed') else repr('0.7')}", seal=False)
    with pytest.raises(Damaged, match="does not fit its checksum"):
        store.tabled_runs()


def test_a_row_is_sealed_with_what_tables_show(store: Store) -> None:
    store.plan([row("r1")])
    (before,) = store.tabled_runs()
    rewrite(store, "UPDATE runs SET table_seal = '0123456789abcdef'", seal=False)
    for read in (store.tabled_runs, store.all_runs):
        with pytest.raises(Damaged, match="the row of run r1 does not fit"):
            read()
    rewrite(store, "UPDATE runs SET reason = NULL")
    assert store.tabled_runs() == [before]


def _read(store: Store) -> None:
    store.tabled_runs()
    store.all_runs()
    store.teacher_accuracies()
    overview(store, 9)
    store.epochs_of("r1")


def test_a_changed_run_is_not_written(store: Store, worker: Worker) -> None:
    store.plan([row("r1"), row("r2")])
    worker.claim(["r1"], ORIGIN)
    rewrite(store, "UPDATE runs SET seed = 9", seal=False)
    for work in (lambda: worker.claim(["r2"], ORIGIN), lambda: finish(worker, "r1", record(1)), lambda: _read(store)):
        with pytest.raises(Damaged):
            work()
    with store.database.read() as db:
        assert db.exec_driver_sql("SELECT status FROM runs ORDER BY id").scalars().all() == ["running", "planned"]
    rewrite(store, "UPDATE runs SET seed = 1")


def test_a_changed_epoch_is_not_built_upon(store: Store, worker: Worker) -> None:
    store.plan([row("r1")])
    worker.claim(["r1"], ORIGIN)
    add(worker, "r1", record(1))
    rewrite(store, "UPDATE epochs SET test_top1 = 0.99", seal=False)
    with pytest.raises(Damaged, match="the epochs of run r1"):
        add(worker, "r1", record(1), record(2))
    with worker.holding("r1") as held:  # as a run does that begins again
        held.restart()
    add(worker, "r1", record(1), record(2))
    assert len(store.epochs_of("r1")) == 2
