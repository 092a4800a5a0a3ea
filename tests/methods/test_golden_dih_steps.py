"""One short epoch of each method of the DIH paper's repository, with the members that a cohort trains, in float64."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdtable import methods
from kdtable.methods.base import Setting
from kdtable.tasks.classification import Classification
from kdtable.training.build import output_shapes
from kdtable.training.member import Member
from kdtable.training.step import weighted_sum
from kdtable.training.teacher import FrozenTeacher, Teacher
from tests import engine
from tests.asking import aim
from tests.dih_rows import ROWS
from tests.golden_arrays import fill
from tests.golden_data import checks
from tests.methods.golden_steps import SIZE, Steps, take_steps
from tests.models.golden_dih import renaming


@checks("dih/steps", arrays=Steps)
def test_steps(case: Steps) -> None:
    METHODS[case.kind](case)


class Trained:
    """A member after the epoch, and its losses before each step."""

    def __init__(self, case: Steps, member: Member, teacher: Teacher | None) -> None:
        self.case, self.member = case, member
        features = member.stage.teacher_features
        self.lessons = [(images, teacher and teacher.outputs(images, features)) for images in case.batches()]
        self.before = {key: value.clone() for key, value in member.student.state_dict().items()}
        self.losses = take_steps(case, member, self.lessons)

    def check(self, key_of: Callable[[str], str] = str) -> None:
        """The student after the epoch: every tensor's length, some whole, and those that did not move."""
        case, data = self.case, self.case.data
        state = {key_of(key): value for key, value in self.member.student.state_dict().items()}
        before = {key_of(key): value for key, value in self.before.items()}
        case.check("train_losses", self.losses)
        case.check_lengths(state, without_links(data["l2_after"]))
        for name in case.names("after__"):
            if (key := name.removeprefix("after__")) in state:
                case.check(name, state[key])
        still = {key for key, value in state.items() if torch.equal(value, before[key])}
        assert still == without_links(dict.fromkeys(data["unchanged_keys"], 0.0)).keys()
        if "val_losses" in data:
            assert self.validation() == pytest.approx(data["val_losses"], rel=1e-7, abs=0)

    def validation(self) -> list[float]:
        """The objective on the same batches, in eval mode."""
        stage, method, found = self.member.stage, self.member.method, []
        student = self.member.student.eval()
        for images, taught in self.lessons:
            with torch.no_grad():
                outputs = student(images.images)
                terms = [method.loss(term.name, outputs, taught, images) for term in stage.terms]
            found.append(weighted_sum(terms, stage).item())
        return found


def without_links(lengths: Mapping[str, float]) -> dict[str, float]:
    """Of the student alone: the links of TOFD are its method's here."""
    return {key: length for key, length in lengths.items() if not key.startswith("link.")}


def task(case: Steps) -> Classification:
    return engine.task(engine.image_set(classes=case.config["classes"]))


def member(
    case: Steps,
    row: str,
    network: nn.Module,
    taught_by: nn.Module | None,
    terms: dict[str, float],
    params: dict[str, Any],
    **stages: int,
) -> Member:
    classes = case.config["classes"]
    setting = Setting(
        case.recipe,
        aim(row, terms, params, stage_epochs=stages),
        torch.arange(4 * classes) % classes,
        classes,
        output_shapes(network, SIZE),
        None if taught_by is None else output_shapes(taught_by, SIZE),
        student=network,
    )
    return Member(row, network, methods.get(row)(setting).double(), task(case))


def soft(case: Steps, default_temperature: float) -> tuple[dict[str, float], dict[str, Any]]:
    """The terms of KD, and its temperature."""
    alpha = case.setting("alpha", 0.1)
    return {"ce": 1 - alpha, "kd": alpha}, {"kd_temperature": case.setting("temperature", default_temperature)}


def check_dih(case: Steps) -> None:
    taught_by, (terms, params) = case.teacher("+heads"), soft(case, 5.0)
    params = {**ROWS["dih"].params, **params, "alphas": str(terms["kd"])}
    trained = member(case, "dih", case.student(), taught_by, {**terms, "dih": 1.0}, params)
    Trained(case, trained, FrozenTeacher(taught_by, task(case))).check()


def check_kd(case: Steps) -> None:
    taught_by = case.teacher()
    trained = member(case, "kd", case.student(), taught_by, *soft(case, 5.0))
    Trained(case, trained, FrozenTeacher(taught_by, task(case))).check()


def check_hint_stage(case: Steps) -> None:
    """Of two stages the first, which is of the hint alone."""
    taught_by, (terms, params) = case.teacher(), soft(case, 5.0)
    params |= {"hint_group": 1, "regressor": "where-needed", "hint_modes": "all-but-last"}
    trained = member(case, "fitnet-2stage", case.student(), taught_by, terms, params, hint=1)
    assert not list(trained.method.parameters())
    Trained(case, trained, FrozenTeacher(taught_by, task(case))).check()


def check_heads(case: Steps) -> None:
    """The repository's file has no numbers of the backbone: it is frozen."""
    network: Any = case.teacher("+heads").requires_grad_(True)
    run = Trained(case, member(case, "heads", network, None, {"heads": 1.0}, {}), None)
    state = network.state_dict()
    moved = {key for key, value in state.items() if not torch.equal(value, run.before[key])}
    assert moved == {key for key in state if key.startswith("branches.")}
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    case.check_sums("train_losses_per_head", torch.tensor(run.losses))
    assert len(network.branches) == len(case.data["l2_after"])
    for number, head in enumerate(network.branches, 1):
        after = head.state_dict()
        case.check_lengths(after, case.data["l2_after"][f"head{number}"])
        case.check(f"head{number}_bias_after", after["added_linear.bias"])
        flat = after["added_linear.weight"].flatten()
        places = torch.from_numpy(np.floor(np.linspace(0, len(flat) - 1, min(48, len(flat)))).astype(int))
        case.check(f"head{number}_weight_probe_after", flat[places])


def check_mhkd(case: Steps) -> None:
    """Which stages have heads, and how their first convolution is padded, is in the note."""
    taught_by, (terms, params) = case.teacher(), soft(case, 4.0)
    salts = case.data["head_salts"]
    groups = re.findall(r"layer(\d+)", case.note) or [str(place + 1) for place in range(len(salts["student"]))]
    params |= {"kd_alpha": str(terms["kd"]), "beta": case.setting("beta", 0.5), "groups": ",".join(groups)}
    trained = member(case, "mhkd", case.student(), taught_by, {**terms, "mhkd": 1.0}, {**ROWS["mhkd"].params, **params})
    heads: Any = {"student": trained.method.student_heads, "teacher": trained.method.teacher_heads}
    for side, modules in heads.items():
        for head, salt in zip(modules, salts[side], strict=True):
            fill_head(case, head, salt)
    Trained(case, trained, FrozenTeacher(taught_by, task(case))).check()
    for side, modules in heads.items():
        for number, head in enumerate(modules, 1):
            case.check_lengths(head.state_dict(), case.data["l2_after_heads"][f"{side}_head{number}"])
            case.check(f"{side}_head{number}_linear_2_bias_after", head.linear_2.bias)


def fill_head(case: Steps, head: Any, salt: int) -> None:
    fill(head, salt)
    padding = int(case.setting("first-conv padding", head.conv_1.padding[0]))
    head.conv_1.padding = (padding, padding)


def check_tofd(case: Steps) -> None:
    """The teacher runs in train mode; its links are the method's."""
    taught_by = case.teacher("+tofd")
    params = dict(ROWS["tofd"].params)
    for ours, golden in (("feature_weight", "alpha"), ("orthogonal_weight", "beta"), ("start_temperature", "t")):
        params[ours] = case.setting(golden, float(params[ours]))
    student = case.student("+tofd")
    trained = member(case, "tofd", student, taught_by, {"ce": 1.0, "tofd": 1.0}, params)
    fill(trained.method, case.salt + 1)
    assert trained.stage.teacher_mode == "train"
    in_train_mode: Any = FrozenTeacher(taught_by, task(case)).in_train_mode()
    Trained(case, trained, in_train_mode).check(renaming(student.name))
    check_links(case, trained.method)
    case.check("teacher_bn1_running_mean_after", in_train_mode.network.backbone.bn1.running_mean)
    fresh: Any = case.teacher("+tofd")
    assert torch.equal(taught_by.backbone.bn1.running_mean, fresh.backbone.bn1.running_mean)


def check_links(case: Steps, method: Any) -> None:
    """The repository's code has some that nothing reads, and that stay as they were: here they are not built."""
    ours = {f"link.{key}": value for key, value in method.link.state_dict().items()}
    golden = {key: length for key, length in case.data["l2_after"].items() if key.startswith("link.")}
    assert golden.keys() - ours.keys() == {key for key in case.data["unchanged_keys"] if key.startswith("link.")}
    case.check_lengths(ours, {key: golden[key] for key in ours})
    for name in case.names("after__link."):
        case.check(name, ours[name.removeprefix("after__")])


METHODS: dict[str, Callable[[Steps], None]] = {
    "dih": check_dih,
    "kd": check_kd,
    "fitnets_stage1": check_hint_stage,
    "heads": check_heads,
    "mhkd": check_mhkd,
    "tofd": check_tofd,
}
