"""One short epoch of each method of the DIH paper's repository, with the members that a cohort trains, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdtable import methods, models
from kdtable.data import Batch
from kdtable.methods.base import Setting
from kdtable.methods.objective import Objective
from kdtable.models.network import Network
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.classification import Classification
from kdtable.training.build import output_shapes
from kdtable.training.member import Member
from kdtable.training.step import weighted_sum
from kdtable.training.teacher import FrozenTeacher, Teacher
from tests import engine
from tests.asking import aim
from tests.dih_rows import ROWS
from tests.golden_data import fill
from tests.methods.golden_dih import MANIFEST, RECIPE, STEPS, Arrays, assert_close
from tests.models.test_golden_dih import tofd_key

CONFIG = MANIFEST["steps"]["config"]
RUNS = {run["id"]: run for run in MANIFEST["steps"]["runs"]}
SALT = MANIFEST["salt"]
CLASSES = CONFIG["classes"]


class Trained:
    """A member after the epoch, its losses before each step, and the golden numbers."""

    def __init__(self, name: str, member: Member, teacher: Teacher | None) -> None:
        self.run = RUNS[name]
        self.data = Arrays("steps.npz", name, torch.float64, STEPS)
        self.member = member
        self.teacher = teacher
        self.losses: list[float] = []
        self.batches_with_outputs = [
            (batch, teacher.outputs(batch, member.stage.teacher_features) if teacher else None) for batch in batches()
        ]
        self.before = {key: value.clone() for key, value in member.student.state_dict().items()}
        member.begin_epoch()
        for batch, teacher_outputs in self.batches_with_outputs:
            seen = member.learner.sums[0].item()
            member.step(batch, teacher_outputs)
            self.losses.append((member.learner.sums[0].item() - seen) / len(batch.labels))

    def check(self, key_of: Callable[[str], str] = str) -> None:
        """The student after the epoch: every tensor's length, some whole, and those that did not move."""
        state = {key_of(key): value for key, value in self.member.student.state_dict().items()}
        before = {key_of(key): value for key, value in self.before.items()}
        self.data.check("train_losses", torch.tensor(self.losses))
        assert_lengths(state, {k: v for k, v in self.run["l2_after"].items() if not k.startswith("link.")})
        for name in self.data.names():
            if name.startswith("after__") and "link" not in name:
                self.data.check(name, state[name.removeprefix("after__")])
        still = {key for key, value in state.items() if torch.equal(value, before[key])}
        assert still == {key for key in self.run["unchanged_keys"] if not key.startswith("link.")}

    def check_validation(self) -> None:
        """The objective on the same batches, in eval mode."""
        stage, method = self.member.stage, self.member.method
        student = self.member.student.eval()
        for (batch, teacher_outputs), expected in zip(self.batches_with_outputs, self.run["val_losses"], strict=True):
            with torch.no_grad():
                outputs = student(batch.images)
                terms = [method.loss(term.name, outputs, teacher_outputs, batch) for term in stage.terms]
            assert weighted_sum(terms, stage).item() == pytest.approx(expected, rel=STEPS)


def assert_lengths(state: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert expected.keys() == state.keys()
    for key, length in expected.items():
        assert state[key].double().norm().item() == pytest.approx(length, rel=STEPS), key


def batches() -> list[Batch]:
    def draw(i: int) -> Batch:
        count = CONFIG["batch"]
        images = np.random.default_rng(SALT + 41 + i).standard_normal((count, 3, 32, 32))
        labels = np.random.default_rng(SALT + 51 + i).integers(0, CLASSES, count)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels), torch.arange(count), 1)

    return [draw(i) for i in range(CONFIG["num_batches"])]


def network(name: str, salt: int, key_of: Callable[[str], str] = str) -> Network:
    built = models.build(name, CLASSES).double()
    fill(built, salt, key_of)
    return built


def student(kind: str = "", key_of: Callable[[str], str] = str) -> Network:
    return network(models.canonical(CONFIG["student"]) + kind, CONFIG["student_salt"], key_of)


def teacher(kind: str = "", key_of: Callable[[str], str] = str) -> Network:
    return (
        network(models.canonical(CONFIG["teacher"]) + kind, CONFIG["teacher_salt"], key_of).eval().requires_grad_(False)
    )


def with_filled_heads(network: Any) -> Any:
    for head, salt in zip(network.branches, CONFIG["head_salts"], strict=True):
        fill(head, salt)
    return network


def without_backbone(key: str) -> str:
    return key.removeprefix("backbone.")


def task() -> Classification:
    return engine.task(engine.image_set(classes=CLASSES))


def frozen(network: Network) -> FrozenTeacher:
    return FrozenTeacher(network, task())


SOFT = {"ce": 0.9, "kd": 0.1}


def member(
    row: str,
    network: nn.Module,
    taught_by: nn.Module | None,
    objective: Objective,
    recipe: Recipe = RECIPE,
) -> Member:
    shapes = None if taught_by is None else output_shapes(taught_by, 32)
    labels = torch.arange(40) % CLASSES
    setting = Setting(recipe, objective, labels, CLASSES, output_shapes(network, 32), shapes, student=network)
    return Member(row, network, methods.get(row)(setting).double(), task())


def test_dih() -> None:
    taught_by = with_filled_heads(teacher("+heads", without_backbone))
    row = ROWS["dih"]
    run = Trained("step_dih", member("dih", student(), taught_by, aim("dih", row.terms, row.params)), frozen(taught_by))
    run.check()
    run.check_validation()


def test_kd() -> None:
    taught_by = teacher()
    trained = member("kd", student(), taught_by, aim("kd", SOFT, {"kd_temperature": 5.0}))
    run = Trained("step_kd", trained, frozen(taught_by))
    run.check()
    run.check_validation()


def test_fitnets_hint_stage() -> None:
    taught_by = teacher()
    params = {"kd_temperature": 5.0, "hint_group": 1, "regressor": "where-needed", "hint_modes": "all-but-last"}
    trained = member(
        "fitnet-2stage", student(), taught_by, aim("fitnet-2stage", SOFT, params, stage_epochs={"hint": 1})
    )
    assert not list(trained.method.parameters())
    run = Trained("step_fitnets_stage1", trained, frozen(taught_by))
    run.check()
    run.check_validation()


def test_heads() -> None:
    """The repository's file has no numbers of the backbone: it is frozen."""
    trained = with_filled_heads(teacher("+heads", without_backbone)).requires_grad_(True)
    # Its rate for these numbers alone.
    recipe = Recipe(epochs=1, batch_size=4, lr=1e-4, milestones=(), nesterov=True)
    run = Trained("step_heads", member("heads", trained, None, aim("heads", {"heads": 1.0}), recipe), None)
    state = trained.state_dict()
    moved = {key for key, value in state.items() if not torch.equal(value, run.before[key])}
    assert moved == {key for key in state if key.startswith("branches.")}
    assert all(parameter.grad is None for parameter in trained.backbone.parameters())
    run.data.check_sums("train_losses_per_head", torch.tensor(run.losses))
    for number, head in enumerate(trained.branches, 1):
        after = head.state_dict()
        assert_lengths(after, run.run["l2_after"][f"head{number}"])
        run.data.check(f"head{number}_bias_after", after["added_linear.bias"])
        flat = after["added_linear.weight"].flatten()
        places = torch.from_numpy(np.floor(np.linspace(0, len(flat) - 1, 48)).astype(int))
        run.data.check(f"head{number}_weight_probe_after", flat[places])


def test_mhkd() -> None:
    taught_by, row = teacher(), ROWS["mhkd"]
    trained = member("mhkd", student(), taught_by, aim("mhkd", row.terms, {**row.params, "groups": "1,2"}))
    salts = RUNS["step_mhkd"]["head_salts"]
    heads = {"student": trained.method.student_heads, "teacher": trained.method.teacher_heads}
    for side, modules in heads.items():
        for head, salt in zip(modules, salts[side], strict=True):
            fill(head, salt)
    run = Trained("step_mhkd", trained, frozen(taught_by))
    run.check()
    for side, modules in heads.items():
        for number, head in enumerate(modules, 1):
            assert_lengths(head.state_dict(), run.run["l2_after_heads"][f"{side}_head{number}"])
            run.data.check(f"{side}_head{number}_linear_2_bias_after", head.linear_2.bias)


def test_tofd() -> None:
    taught_by, row = teacher("+tofd", tofd_key), ROWS["tofd"]
    recipe = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=())
    trained = member("tofd", student("+tofd", tofd_key), taught_by, aim("tofd", row.terms, row.params), recipe)
    fill(trained.method, SALT + 1)
    assert trained.stage.teacher_mode == "train"
    in_train_mode = frozen(taught_by).in_train_mode()
    run = Trained("step_tofd", trained, in_train_mode)
    run.check(tofd_key)
    # The fourth link stays as it was in the repository's code; here it is not built.
    assert "link.3.weight" in run.run["unchanged_keys"]
    for number, link in enumerate(trained.method.link):
        length = run.run["l2_after"][f"link.{number}.weight"]
        assert link.weight.norm().item() == pytest.approx(length, rel=STEPS)
        if number != 1:
            run.data.check(f"after__link.{number}.weight", link.weight)
    run.data.check("teacher_bn1_running_mean_after", in_train_mode.network.backbone.bn1.running_mean)
    assert_close(
        taught_by.backbone.bn1.running_mean, teacher("+tofd", tofd_key).backbone.bn1.running_mean, 0, "teacher"
    )


def test_every_run_is_tested() -> None:
    assert RUNS.keys() == {f"step_{name}" for name in ("dih", "kd", "fitnets_stage1", "heads", "mhkd", "tofd")}
