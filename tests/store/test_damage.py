"""A database that was damaged is refused with a sentence as soon as what cannot be read is met."""

import random
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kdtable.errors import BadRequest, Trouble
from kdtable.store import FILE_NAME, Damaged, NoStore, Store, Worker
from kdtable.store.overview import overview
from tests.store.samples import ACCURACY, ORIGIN, add, finish, own, record, rewrite, row, stranger, top1s

RUNS = 24
PAGE = 4096


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that has several pages of runs and of epochs."""
    folder = tmp_path_factory.mktemp("undamaged")
    ids = [str(own(f"r{number}")["run_id"]) for number in range(RUNS)]
    with closing(Store(folder)) as store, Worker(store) as worker:
        store.plan([row(**own(f"r{number}")) for number in range(RUNS)])
        worker.claim(ids[:-5], ORIGIN)
        for number, run_id in enumerate(ids[:-8]):
            (finish if number % 5 else add)(worker, run_id, *(record(e, e / 50) for e in range(1, 9)))
        store.record_teacher(ACCURACY)
        stranger(store, ids[-1])
    return folder


def read(folder: Path) -> None:
    """Read all that commands do."""
    with closing(Store(folder, create=False)) as store:
        runs = store.runs()
        overview(store, 30)
        store.teacher_accuracies()
        for run in runs:
            store.history(run.id)
            store.results(run.id)
        store.runs(run.id for run in runs[::9])


def write(folder: Path) -> None:
    with closing(Store(folder)) as store, Worker(store) as worker:
        store.plan([row(**own("new"))])
        worker.claim([str(own(f"r{number}")["run_id"]) for number in range(RUNS)], ORIGIN)
        for run_id in worker.claims()[:3]:
            add(worker, run_id, record(1, 0.125))


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


@pytest.mark.parametrize("spoil", [flipped, cut_short, zeroed, swapped])
def test_damage_anywhere(spoil: Callable[[bytearray, random.Random], None], undamaged: Path, tmp_path: Path) -> None:
    """What cannot be read is told in one sentence, and the file stays as it is."""
    path = tmp_path / FILE_NAME
    good = (undamaged / FILE_NAME).read_bytes()
    refused = 0
    for seed in range(100):
        content = bytearray(good)
        spoil(content, random.Random(seed))
        path.write_bytes(content)
        told = _refusal(lambda: read(tmp_path))
        assert "\n" not in told
        refused += bool(told)
        assert path.read_bytes() == content
    assert refused > 5


def test_a_writer_tells_of_damage_in_one_sentence(undamaged: Path, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    good = (undamaged / FILE_NAME).read_bytes()
    refused = 0
    for seed in range(24):
        content = bytearray(good)
        (swapped if seed % 2 else zeroed)(content, random.Random(seed))
        path.write_bytes(content)
        told = _refusal(lambda: write(tmp_path))
        assert "\n" not in told
        refused += bool(told)
        for left in tmp_path.glob(f"{FILE_NAME}-*"):
            left.unlink()
    assert refused > 1


def _refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except Trouble:  # which is no word for damage: its exit code is another
        raise
    except BadRequest as error:
        return str(error)
    return ""


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
            found = top1s(store)
            assert found == [number / 50 for number in range(1, len(found) + 1)]
            lengths.add(len(found))
    assert len(lengths) > 2


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE protocols SET metrics = '[{}]'", "a protocol cannot be read"),
        ("UPDATE results SET chosen = '{'", "a run cannot be read"),
        ("UPDATE results SET provenance = '[\"0\"]'", "where a result came from cannot be read"),
        ("UPDATE origins SET content = '{}'", "where a result came from cannot be read"),
        ("UPDATE histories SET content = x'00'", "the history of run r1 cannot be read"),
        ("UPDATE teachers SET metrics = 'x'", "a teacher's accuracy cannot be read"),
    ],
)
def test_a_value_that_cannot_be_understood(statement: str, told: str, tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        with Worker(store) as worker:
            store.plan([row("r1")])
            store.record_teacher(ACCURACY)
            worker.claim(["r1"], ORIGIN)
            finish(worker, "r1", record(1))
        rewrite(store, statement)
    with pytest.raises(Damaged, match=f"{told}.*'kdtable store check' tells more, restore it from a copy"):
        read(tmp_path)
