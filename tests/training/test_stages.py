"""Methods with a stage before the main one: what is trained and moves in each, company, interruptions, epochs."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtable import papers
from kdtable.checkpoints import checkpoint
from kdtable.data import spec as data_spec
from kdtable.methods import get
from kdtable.planning.request import Changes, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.recipes.record import EpochRecord
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.training.test_promises import assert_same

EARLY = {"ab": "init", "ft": "init", "fsp": "init", "fitnet-2stage": "hint"}
ROWS = tuple(EARLY)
LAST = ("main", engine.RECIPE.epochs)


class StageSink(engine.Sink):
    """Keeps the state after each epoch under its stage's name."""

    def __init__(self) -> None:
        super().__init__()
        self.stage_states: dict[tuple[str, str, int], dict[str, Any]] = {}

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        self.stage_states[member.run_id, record.stage, record.epoch] = copy.deepcopy(member.state())


def train(rows: Iterable[str], *, workers: int = 2, student: str = "resnet8") -> StageSink:
    task, teacher, sink = engine.task(), engine.teacher(), StageSink()
    Cohort(
        task,
        FrozenTeacher(teacher, task),
        [engine.member(row, task, teacher, student) for row in rows],
        sink,
        workers=workers,
    ).train()
    assert not sink.failures
    return sink


@pytest.fixture(scope="module")
def company() -> StageSink:
    return train((*ROWS, "vanilla", "kd"))


@pytest.mark.parametrize("row", ROWS)
def test_alone_or_in_company(company: StageSink, row: str) -> None:
    alone = train((row,), workers=1)
    assert_same(alone.stage_states[f"resnet8-{row}", *LAST], company.stage_states[f"resnet8-{row}", *LAST])


def test_stages_of_others_do_not_change_a_run_without_any(company: StageSink) -> None:
    alone = train(("vanilla", "kd"))
    for row in ("vanilla", "kd"):
        assert_same(alone.stage_states[f"resnet8-{row}", *LAST], company.stage_states[f"resnet8-{row}", *LAST])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("epoch", [1, engine.EARLY_EPOCHS], ids=["inside", "at-the-switch"])
def test_continued_from_a_checkpoint(company: StageSink, row: str, epoch: int, tmp_path: Path) -> None:
    run_id, stage = f"resnet8-{row}", EARLY[row]
    checkpoint.save(tmp_path / "c.pt", company.stage_states[run_id, stage, epoch])
    task, teacher, sink = engine.task(), engine.teacher(), StageSink()
    member = engine.member(row, task, teacher)
    member.load_state(checkpoint.load(tmp_path / "c.pt"))
    assert member.next_epoch == ((stage, 2) if epoch == 1 else ("main", 1))
    Cohort(task, FrozenTeacher(teacher, task), [member], sink).train()
    assert_same(sink.stage_states[run_id, *LAST], company.stage_states[run_id, *LAST])


@pytest.mark.parametrize("row", ROWS)
def test_epochs_are_recorded_under_their_stage(company: StageSink, row: str) -> None:
    history = company.stage_states[f"resnet8-{row}", *LAST]["history"]
    early = [(EARLY[row], epoch) for epoch in range(1, engine.EARLY_EPOCHS + 1)]
    main = [("main", epoch) for epoch in range(1, engine.RECIPE.epochs + 1)]
    assert [(record["stage"], record["epoch"]) for record in history] == early + main
    rate = 0.01 if row == "ft" else engine.RECIPE.lr
    assert [record["lr"] for record in history[: len(early)]] == [rate] * len(early)
    assert history[len(early)]["lr"] == engine.RECIPE.lr
    terms = {"ab": ["ab"], "ft": ["reconstruction"], "fsp": ["fsp"], "fitnet-2stage": ["hint"]}[row]
    assert all(list(record["terms"]) == terms for record in history[: len(early)])
    assert all(list(record["terms"]) == list(papers.load("crd").row(row).terms) for record in history[len(early) :])


#: Student children that stay as they were in the early stage.
STILL = {
    ("ab", "resnet8"): {"fc"},
    ("ab", "wrn_16_1"): {"bn1", "fc"},
    ("fsp", "resnet8"): {"fc"},
    ("fsp", "wrn_16_1"): {"bn1", "fc"},
    ("ft", "resnet8"): {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"},
    ("ft", "wrn_16_1"): {"conv1", "block1", "block2", "block3", "bn1", "fc"},
    ("fitnet-2stage", "resnet8"): {"layer3", "fc"},
    ("fitnet-2stage", "wrn_16_1"): {"block3", "bn1", "fc"},
    ("ab", "resnet8x4"): {"fc"},
}
#: Children of the method that move in the early stage and in the main one.
HELPERS = {
    "ab": ({"connector"}, set()),
    "ft": ({"paraphraser"}, {"translator"}),
    "fsp": (set(), set()),
    "fitnet-2stage": ({"regress"}, set()),
}


def epoch_of(member: Member, task: Any, teacher: torch.nn.Module) -> set[str]:
    """Train an epoch; the state keys (parameters and statistics) that moved."""
    before = {
        f"{owner}.{key}": value.clone()
        for owner, module in (("student", member.student), ("method", member.method))
        for key, value in module.state_dict().items()
    }
    stage, epoch = member.next_epoch
    member.begin_epoch()
    for batch in task.batches(stage, epoch):
        with torch.no_grad():
            teacher_outputs = task.forward(teacher, batch, member.stage.teacher_features)
        member.step(batch, teacher_outputs if member.stage.uses_teacher else None)
    after = {
        f"{owner}.{key}": value
        for owner, module in (("student", member.student), ("method", member.method))
        for key, value in module.state_dict().items()
    }
    engine.end_epoch(member)
    return {key for key, value in after.items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize(("row", "student"), STILL, ids=lambda value: value)
def test_only_what_a_stage_trains_moves(row: str, student: str) -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member(row, task, teacher, student)
    keys = set(member.student.state_dict())
    helpers = set(member.method.state_dict())
    early, main = HELPERS[row]
    for still, moving in ((STILL[row, student], early), *[(set(), main)] * 2):
        moved = epoch_of(member, task, teacher)
        if member.stage.name == EARLY[row]:  # go on to the switch
            epoch_of(member, task, teacher)
        expected = {f"student.{key}" for key in keys if key.partition(".")[0] not in still}
        expected |= {f"method.{key}" for key in helpers if key.partition(".")[0] in moving}
        # Translator biases in front of a batch norm have no gradient but rounding, and weight decay.
        assert moved == expected


def modes(module: torch.nn.Module) -> dict[str, bool]:
    """Train mode of every batch norm, by name."""
    return {name: m.training for name, m in module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1", "MobileNetV2", "ShuffleV2"])
def test_modes(row: str, student: str) -> None:
    """Of the student's batch norms, those that a stage trains are in train mode, and no others."""
    task = engine.task()
    network, teacher = (engine.build_student(name, task.images.spec, 1) for name in (student, "resnet14"))
    if row in ("fsp", "fitnet-2stage", "ab") and student in ("MobileNetV2", "ShuffleV2"):
        teacher = network
    method = engine.method(row, task, network, teacher)
    early, main = method.stages()
    for stage in (early, main):
        trained = {id(parameter) for parameter in method.trained(stage, network)}
        method.set_modes(stage, network)
        for name, training in modes(network).items():
            assert training == (id(network.get_submodule(name).weight) in trained), f"{stage.name} {name}"
        for child, module in method.named_children():
            held = {id(parameter) for parameter in module.parameters()} <= trained
            if list(module.parameters()):
                assert module.training == held, f"{stage.name} {child}"
    assert all(modes(network).values())


def test_looking_for_what_is_below_the_hint_changes_nothing() -> None:
    from kdtable.methods.fitnet_2stage import below_hint

    network = engine.build_student("wrn_16_1", engine.image_set().spec, 1).train()
    network.fc.eval()
    before, training = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    found = below_hint(network)
    assert_same(before, network.state_dict())
    assert training == [m.training for m in network.modules()]
    assert all(parameter.grad is None for parameter in network.parameters())
    names = {name for name, parameter in network.named_parameters() if any(parameter is p for p in found)}
    assert {name.partition(".")[0] for name in names} == {"conv1", "block1", "block2"}


@pytest.mark.parametrize(("epochs", "early"), [(None, 30), (24, 3), (8, 1), (1, 1)])
@pytest.mark.parametrize("row", ROWS)
def test_early_stages_shrink_with_the_main_one(row: str, epochs: int | None, early: int) -> None:
    def find(name: str, data: data_spec.DataSpec) -> FileTeacher:
        return FileTeacher(name, data.mean, data.std, "0" * 64, Path("none"))

    request = Request(["resnet56:resnet20"], [row], [1], changes=Changes(epochs))
    (cell,) = resolve(request, find)
    assert cell.run.objective.stage_epochs == {EARLY[row]: early}
    assert cell.run.teacher is not None  # also where the main stage is cross-entropy alone
    assert cell.run.total_epochs == (epochs or 240) + early


def test_the_paraphraser_has_its_own_rate_for_some_families() -> None:
    row = papers.load("crd").row("ft")
    slow = [name for name in ("resnet20", "resnet8x4", "wrn_16_2") if row.params_for(name) != {"init_lr": 0.01}]
    assert not slow
    assert all(row.params_for(name) == {} for name in ("vgg8", "MobileNetV2", "ShuffleV1", "cifar_resnet50"))


def test_pairs_that_flow_matrices_cannot_be_compared_on() -> None:
    request = Request(["crd-1", "crd-2"], ["fsp", "kdsvd", "ab", "ft", "fitnet", "fitnet-2stage", "vid"], [1])
    cells = resolve(request, lambda name, data: FileTeacher(name, data.mean, data.std, "0" * 64, Path("none")))
    refused = {(str(cell.pair), cell.row) for cell in cells if cell.not_applicable}
    pairs = {str(pair) for pair in papers.load("crd").tables["crd-2"].pairs} | {"wrn_40_2:wrn_40_1"}
    assert refused == {(pair, row) for pair in pairs for row in ("fsp", "kdsvd")}


def test_every_row_of_the_tables_exists() -> None:
    paper = papers.load("crd")
    for table in paper.tables.values():
        assert all(paper.row(row).terms and get(row) for row in table.rows)
