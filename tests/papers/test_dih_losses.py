"""The objectives of DIH and its baselines with the settings that are resolved, against its code's golden numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtable import methods, models
from kdtable.methods.base import Method, Setting
from kdtable.models.outputs import Outputs
from kdtable.planning.run import Run
from tests.methods.golden_dih import LOSSES, MANIFEST, Arrays, objective
from tests.methods.test_golden_dih import Saying, network_outputs, with_branches
from tests.methods.test_golden_dih_steps import Trained, frozen, student
from tests.methods.test_golden_dih_steps import member as a_member
from tests.methods.test_golden_dih_steps import teacher as a_teacher
from tests.papers.resolving import run_of


def the_run(row: str) -> Run:
    return run_of("dih", row, "resnet110:resnet8", "cifar10")


def built(row: str, student: Outputs, teacher: Outputs | None) -> Method:
    """The method of a row's run, for networks with these outputs."""
    run, classes = the_run(row), student.logits.shape[1]
    setting = Setting(
        run.recipe,
        run.objective,
        torch.zeros(4),
        classes,
        student,
        teacher,
        student=models.build("resnet8", classes) if row == "dml" else None,
    )
    return methods.get(row)(setting).double()


def case(name: str) -> tuple[dict[str, Any], Arrays]:
    """A golden loss whose settings are those of the published runs."""
    (entry,) = (entry for entry in MANIFEST["losses"] if entry["id"] == name)
    return entry["params"], Arrays(entry["file"], name, torch.float64, LOSSES[torch.float64])


def check(data: Arrays, row: str, student: Outputs, teacher: Outputs | None, **leaves: Tensor) -> None:
    loss = objective(built(row, student, teacher), student, teacher, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    for name, leaf in leaves.items():
        data.check(f"out__grad_{name}", leaf.grad)


@pytest.mark.parametrize("row", ["kd", "takd", "fitnet-2stage"])
def test_objective_of_soft_targets(row: str) -> None:
    _, data = case("kd0")
    s = data.leaf("student_logits")
    maps = (torch.zeros(1, 2, 4, 4),) * 3
    check(
        data,
        row,
        Outputs(s, stages=maps),
        Outputs(data.given("teacher_logits"), stages=maps),
        student_logits=s,
    )


@pytest.mark.parametrize("name", ["dih0", "dih1"])
def test_objective_of_dih(name: str) -> None:
    _, data = case(name)
    s, (t, *heads) = data.leaf("student_logits"), data.given("teacher_logits")
    check(data, "dih", Outputs(s), with_branches(t, heads), student_logits=s)


def test_objective_of_heads() -> None:
    _, data = case("heads0")
    heads = data.leaf("head_logits")
    check(data, "heads", with_branches(heads.detach()[0], heads.unbind()), None, head_logits=heads)


def test_objective_of_mhkd() -> None:
    params, data = case("mhkd0")
    names = ("student_logits", "student_head_logits", "teacher_head_logits")
    s, s_heads, t_heads = map(data.leaf, names)
    groups = range(params["num_heads"])
    shapes = Outputs(s.detach(), stages=tuple(torch.zeros(1, 4, 8, 8) for _ in groups))
    method: Any = built("mhkd", shapes, shapes)
    # The case begins behind the heads.
    method.student_heads, method.teacher_heads = (
        torch.nn.ModuleList(torch.nn.Identity() for _ in groups) for _ in "st"
    )
    student = Outputs(s, stages=s_heads.unbind())
    teacher = Outputs(data.given("teacher_logits"), stages=t_heads.unbind())
    loss = objective(method, student, teacher, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    for name, logits in zip(names, (s, s_heads, t_heads), strict=True):
        data.check(f"out__grad_{name}", logits.grad)


@pytest.mark.parametrize("name", ["tofd0", "tofd2"])
def test_objective_of_tofd(name: str) -> None:
    """In the first and in the last epoch, between which the temperature rises."""
    params, data = case(name)
    logits, features = data.leaf("student_logits"), data.leaf("student_features")
    student = network_outputs(logits.unbind(), features.unbind())
    teacher = network_outputs(data.given("teacher_logits").unbind(), data.given("teacher_features").unbind())
    method = built("tofd", student, teacher)
    links = data.given("link_weights")
    method.load_state_dict({f"link.{i}.weight": links[i] for i in range(params["num_student_features"])})
    batch = replace(data.batch(), epoch=params["epoch_index_from_0"] + 1)
    loss = objective(method, student, teacher, batch)
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__grad_student_logits", logits.grad)
    data.check("out__grad_student_features", features.grad)


def test_objective_of_dml() -> None:
    _, data = case("dml0")
    s, peers = data.leaf("student_logits"), data.leaf("peer_logits")
    student = Outputs(s)
    method: Any = built("dml", student, None)
    method.peers = torch.nn.ModuleList(map(Saying, peers.unbind()))
    objective(method, student, None, data.batch()).backward()
    data.check("out__grad_student_logits", s.grad)


@pytest.mark.parametrize(("row", "name"), [("kd", "step_kd"), ("fitnet-2stage", "step_fitnets_stage1")])
def test_steps(row: str, name: str) -> None:
    """The first steps, at the first rate of the paper's whole recipe."""
    run, taught_by = the_run(row), a_teacher()
    trained = a_member(row, student(), taught_by, run.objective, run.recipe)
    Trained(name, trained, frozen(taught_by)).check()
