"""A run goes on from the newest checkpoint that is good in all it says, and begins again where there is none."""

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtable import tasks
from kdtable.checkpoints import checkpoint
from kdtable.execution.recorder import Recorder
from kdtable.numerics.layout import fix_threads
from kdtable.recipes.record import EpochRecord
from kdtable.store import Store, Worker
from kdtable.store.files import CHECKPOINT, EPOCHS, PREVIOUS
from kdtable.training.member import Member
from tests import engine
from tests.store.samples import ORIGIN, own, row

RUN = str(own("kept")["run_id"])

State = dict[str, Any]


def new_member() -> Member:
    member = engine.member("crd", engine.task(), engine.teacher())
    member.run_id = RUN
    return member


def trained(epoch: int) -> State:
    """A member's state behind its first epochs; weights do not matter here, but that they differ."""
    member = new_member()
    metrics = {"top1": 0.25, "top5": 1.0, "train-top1": 0.5}
    records = [EpochRecord("main", number, 0.05, 1.0, metrics, {}, 1.0, 1) for number in range(1, epoch + 1)]
    state = copy.deepcopy(member.state())
    state["student"]["conv1.weight"].fill_(float(epoch))
    trained = enumerate(member.optimizer.param_groups[0]["params"])
    state["optimizer"]["state"] = {number: {"momentum_buffer": torch.ones_like(tensor)} for number, tensor in trained}
    return state | {"epoch": epoch, "history": [asdict(record) for record in records]}


@pytest.fixture(scope="module")
def states() -> list[State]:
    """Behind each epoch of the first three, of which the last one ends the run; none of epoch 0."""
    fix_threads()
    done = trained(3) | {"position": 1}
    return [{}, trained(1), trained(2), done]


class OnProgress(SimpleNamespace):
    """Keeps what a display is told."""

    def __init__(self) -> None:
        super().__init__(notes=[], failed=lambda *_: None, reached=lambda *_: None)
        self.note = self.notes.append


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "results")) as opened:
        opened.plan([row(**own("kept"))])
        yield opened


def resumed(store: Store) -> tuple[Member, list[str]]:
    """The run's member where its files leave it, and what was said of them."""
    member, told = new_member(), OnProgress()
    with Worker(store) as worker:
        worker.claim([RUN], ORIGIN)
        run = SimpleNamespace(id=RUN, student="resnet8", start=None, data=member.task.images.spec, task=tasks.DEFAULT)
        runs: Any = {RUN: run}
        progress: Any = told
        Recorder(store, worker, runs, progress, "all").resume(member)
    return member, told.notes


def epoch_of(member: Member) -> int:
    """Which epoch's weights it has."""
    return int(member.student.state_dict()["conv1.weight"].mean())


def _student_alone(state: State) -> None:
    for key in state.keys() - {"run", "student", "history"}:
        del state[key]


def _record(**changes: Any) -> Callable[[State], object]:
    return lambda state: state["history"][0].update(changes)


def _group(**changes: Any) -> Callable[[State], object]:
    return lambda state: state["optimizer"]["param_groups"][0].update(changes)


def _slot(**changes: Any) -> Callable[[State], object]:
    return lambda state: state["optimizer"]["state"][0].update(changes)


#: What makes a good state a bad one, and what the user is told.
SPOILED: dict[str, tuple[Callable[[State], object], str]] = {
    "the student alone": (_student_alone, "has no method"),
    "a foreign tensor": (lambda state: state["student"].update(w=torch.zeros(2)), "its student has a stranger, 'w'"),
    "no place": (lambda state: state.pop("position"), "KeyError: 'position'"),
    "another stage": (lambda state: state.update(position=1), "it says that it is at another epoch"),
    "a stage before the first": (lambda state: state.update(position=-1), "it says that it is at another epoch"),
    "an epoch that never comes": (lambda state: state.update(epoch=99), "it says that it is at another epoch"),
    "a lost epoch": (lambda state: state["history"].pop(0), "its epochs are not those of the run"),
    "an epoch twice": (lambda state: state["history"].append(state["history"][0]), "its epochs are not those of"),
    "a foreign stage": (_record(stage="init"), "its epochs are not those of the run"),
    "NaN": (_record(metrics={"top1": float("nan")}), "its epoch 1 has what is no finite number"),
    "a text": (_record(train_loss="1"), "its epoch 1 has what is no finite number"),
    "an infinite term": (_record(terms={"ce": float("inf")}), "its epoch 1 has what is no finite number"),
    "seven of one": (_record(metrics={"top1": 7.0}), "its epoch 1 has an accuracy outside [0, 1]"),
    "a branch below zero": (_record(metrics={"branch2-top1": -0.5}), "its epoch 1 has an accuracy outside [0, 1]"),
    "a metric without a name": (_record(metrics={0.5: 0.5}), "names what it measured by what is no text"),
    "no company": (_record(cohort_size=0), "its epoch 1 was trained in impossible company"),
    "an unknown number": (_record(evil=1), "unexpected keyword argument 'evil'"),
    "another weight decay": (_group(weight_decay=5.0), "its optimiser has another weight_decay"),
    "another momentum": (_group(momentum=0.0), "its optimiser has another momentum"),
    "other parameters": (_group(params=[0]), "its optimiser has another params"),
    "no learning rate": (_group(lr=float("nan")), "its learning rate is none"),
    "a momentum of another shape": (_slot(momentum_buffer=torch.zeros(1)), "state of parameter 0 is of another shape"),
    "another optimiser": (_slot(exp_avg=torch.zeros(1)), "its optimiser is another one"),
    "no momentum": (lambda state: state["optimizer"]["state"].clear(), "its optimiser has lost its momentum"),
    "a scale": (lambda state: state["scaler"].update(scale=2.0), "its loss scaler is of another precision"),
    "no scale": (lambda state: state["scaler"].update(scale=float("nan")), "its loss scaler has what is no number"),
    "no generator": (lambda state: state["method"]["_extra_state"].pop("state"), "KeyError: 'state'"),
    "no state of a generator": (
        lambda state: state["method"]["_extra_state"]["state"].zero_(),
        "RuntimeError: Invalid mt19937 state",
    ),
}


@pytest.fixture(scope="module")
def fresh() -> Member:
    """A member that reads nothing but bad states, so that it stays at its start."""
    return new_member()


@pytest.mark.parametrize("case", SPOILED)
def test_a_state_that_no_run_has_is_no_checkpoint(
    case: str, fresh: Member, states: list[State], tmp_path: Path
) -> None:
    spoil, told = SPOILED[case]
    bad = copy.deepcopy(states[2])
    spoil(bad)
    checkpoint.save(tmp_path / CHECKPOINT, bad)
    optimizer = fresh.optimizer
    found = checkpoint.recover(tmp_path / CHECKPOINT, RUN, fresh.state(), use=fresh.load_state)
    assert found.state is None
    assert told in found.bad[0]
    assert (fresh.next_epoch, fresh.history, fresh.optimizer) == (("main", 1), [], optimizer)
    assert epoch_of(fresh) == 0


def test_the_one_before_takes_its_place(store: Store, states: list[State]) -> None:
    folder = store.run_folder(RUN)
    bad = copy.deepcopy(states[2])
    _student_alone(bad)
    checkpoint.save(folder / CHECKPOINT, bad)
    checkpoint.save(folder / PREVIOUS, states[1])
    member, (note,) = resumed(store)
    assert note.endswith(f"set aside as {CHECKPOINT}.corrupt, and run {RUN} goes on from the checkpoint before")
    assert (epoch_of(member), member.next_epoch) == (1, ("main", 2))
    assert sorted(path.name for path in folder.iterdir()) == [PREVIOUS, f"{CHECKPOINT}.corrupt"]
    assert [epoch.metrics["top1"] for epoch in store.history(RUN)] == [0.25]


@pytest.mark.parametrize("case", ["no state of a generator", "a momentum of another shape", "another stage"])
def test_a_run_begins_again_as_if_nothing_had_been_read(case: str, store: Store, states: list[State]) -> None:
    bad = copy.deepcopy(states[2])
    SPOILED[case][0](bad)
    checkpoint.save(store.run_folder(RUN) / CHECKPOINT, bad)
    member, (note,) = resumed(store)
    assert "begins again" in note
    checkpoint.save(store.folder / "one", member.state())
    checkpoint.save(store.folder / "other", new_member().state())
    assert (store.folder / "one").read_bytes() == (store.folder / "other").read_bytes()


def test_the_newest_good_one_of_all_epochs_takes_the_place_of_both(store: Store, states: list[State]) -> None:
    folder = store.run_folder(RUN)
    for name in (CHECKPOINT, PREVIOUS, f"{EPOCHS}/main-0003.pt"):
        (folder / EPOCHS).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"cut short")
    for epoch in (1, 2):
        checkpoint.save(folder / EPOCHS / f"main-{epoch:04d}.pt", states[epoch])
    member, notes = resumed(store)
    assert epoch_of(member) == 2
    assert len(notes) == 3
    assert all("goes on from the checkpoint before" in note for note in notes)
    assert sorted(path.name for path in (folder / EPOCHS).iterdir()) == [f"main-000{n}.pt" for n in (1, 2, 3)]
    assert len(store.history(RUN)) == 2


def test_a_run_that_had_only_to_be_finished_is(store: Store, states: list[State]) -> None:
    checkpoint.save(store.run_folder(RUN) / CHECKPOINT, states[3])
    member, notes = resumed(store)
    assert (member.done, epoch_of(member), notes) == (True, 3, [])
    assert store.statuses([RUN]) == {RUN: "done"}


def test_settings_are_the_recipes_where_a_file_has_none(store: Store, states: list[State]) -> None:
    """As one of an older torch, which knew fewer."""
    state = copy.deepcopy(states[1])
    (group,) = state["optimizer"]["param_groups"]
    for name in ("weight_decay", "foreach", "fused"):
        del group[name]
    checkpoint.save(store.run_folder(RUN) / CHECKPOINT, state)
    member, notes = resumed(store)
    (own_group,) = new_member().optimizer.param_groups
    (found,) = member.optimizer.param_groups
    assert notes == []
    assert {key: value for key, value in found.items() if key != "params"} == {
        key: value for key, value in own_group.items() if key != "params"
    }
