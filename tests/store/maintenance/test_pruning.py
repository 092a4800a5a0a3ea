"""What finished runs no longer need is freed, and nothing else."""

from pathlib import Path

import pytest

from kdtable.errors import BadRequest
from kdtable.store import Store
from kdtable.store.files import CHECKPOINT, EPOCHS, PREVIOUS, STUDENT
from kdtable.store.maintenance.checking import check
from kdtable.store.maintenance.pruning import prune, spare
from tests.store.samples import columns, own, row, stranger, train


@pytest.fixture
def used(store: Store) -> Store:
    """A store with files of every kind."""
    train(store, "last", 0.1)
    train(store, "all", 0.1, kept="all")
    train(store, "none", 0.1, kept="none")
    train(store, "begun", 0.1, done=False)
    store.plan([row("planned"), row("trained")])
    stranger(store, "trained")
    for run in ("last", "begun", "trained"):
        for name in (f".{STUDENT}.{'0' * 32}", f"{CHECKPOINT}.{'0' * 32}", f"{CHECKPOINT}.corrupt", PREVIOUS):
            store.run_folder(run).mkdir(parents=True, exist_ok=True)
            (store.run_folder(run) / name).write_bytes(b"12345")
    (store.folder / "runs" / "others").mkdir()
    (store.folder / "runs" / "others" / STUDENT).write_bytes(b"of another store")
    return store


def files(store: Store) -> set[str]:
    runs = store.folder / "runs"
    return {str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file()}


LEFT = {
    f"last/.{STUDENT}.{'0' * 32}",
    f"last/{CHECKPOINT}.{'0' * 32}",
    f"last/{CHECKPOINT}.corrupt",
    f"last/{PREVIOUS}",
}
EACH_EPOCH = {f"all/{EPOCHS}/main-0001.pt"}
STUDENTS = {f"last/{STUDENT}", f"all/{STUDENT}"}


@pytest.mark.parametrize(
    ("keep", "removed", "kept"),
    [
        (None, LEFT, {"last": "last", "all": "all", "none": "none"}),
        ("last", LEFT | EACH_EPOCH, {"last": "last", "all": "last", "none": "none"}),
        ("none", LEFT | EACH_EPOCH | STUDENTS, {"last": "none", "all": "none", "none": "none"}),
    ],
)
def test_what_goes(used: Store, keep: str | None, removed: set[str], kept: dict[str, str]) -> None:
    before = files(used)
    chosen = spare(used, keep)
    assert files(used) == before, "looking removes nothing"
    assert {str(file.path.relative_to(used.folder / "runs")) for file in chosen} == removed
    assert sum(file.size for file in chosen if file.kind == "half-written files") == 10
    prune(used, chosen, keep)
    assert files(used) == before - removed
    assert {name: columns(used, name).kept for name in kept} == kept
    assert spare(used, keep) == []
    assert (used.run_folder("all") / EPOCHS).exists() == (keep is None)


def test_a_pruned_store_is_whole(store: Store) -> None:
    for name, kept in (("r1", "all"), ("r2", "last")):
        train(store, str(own(name)["run_id"]), 0.1, kept=kept, identity=own(name)["identity"])
    prune(store, spare(store, "none"), "none")
    assert list(check(store)) == []


def test_nothing_to_free(store: Store) -> None:
    train(store, "r1", 0.1)
    assert spare(store) == spare(store, "last") == []
    prune(store, [], "last")
    assert columns(store).kept == "last"


def test_a_file_that_cannot_be_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    train(store, "r1", 0.1)
    chosen = spare(store, "none")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BadRequest, match=r"student.safetensors cannot be removed \(Permission denied\)"):
        prune(store, chosen, "none")
