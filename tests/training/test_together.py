"""Two processes that train together end where one process ends, and do not wait for each other in vain."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdtable.methods import get
from kdtable.training.cohort import OutOfMemory
from kdtable.training.member import Member
from kdtable.world import World, sizes_of
from tests.training import ranks
from tests.training.test_member import flat

#: Terms that are means, sums, whole-batch quotients, and comparisons of images; sweeps, stages, banks.
ROWS = ["kd", "cd", "cd+gkd", "cd+gkd+edt", "mgd", "reviewkd", "cse-l2", "pad-l2", "sp", "rkd", "pkt", "cc", "crd"]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return ranks.trained(ROWS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ends with."""
    return ranks.together(_train, tmp_path_factory.mktemp("ranks"))


def _train(world: World) -> dict[str, Any]:
    return ranks.trained(ROWS, world)


def assert_close(found: Any, expected: Any) -> None:
    left, right = flat(found), flat(expected)
    assert left.keys() == right.keys()
    for key, value in right.items():
        if key.endswith(("/seconds", "/members")):
            continue
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(
                left[key], value, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
            )
        elif isinstance(value, float):
            assert left[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
        elif isinstance(value, torch.Tensor):
            assert torch.equal(left[key], value), key
        else:
            assert left[key] == value, key


@pytest.mark.parametrize("row", ROWS)
def test_two_processes_end_where_one_does(row: str, alone: dict[str, Any], shared: list[dict[str, Any]]) -> None:
    name = f"resnet8-{row}"
    assert isinstance(alone[name], dict), alone[name]
    assert_close(shared[0][name], alone[name])


def test_all_processes_end_alike(shared: list[dict[str, Any]]) -> None:
    first, second = (flat(states) for states in shared)
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("row", [row for row in ROWS if not get(row).relates_samples])
def test_parts_of_a_batch_add_up_to_it(row: str, alone: dict[str, Any]) -> None:
    name = f"resnet8-{row}"
    assert_close(ranks.trained([row], World(accumulate=3))[name], alone[name])


def test_it_is_batch_statistics_that_differ_elsewhere(alone: dict[str, Any]) -> None:
    """The comparison could fail: with each share's own statistics the student ends elsewhere."""
    task = ranks.exact_task(World(accumulate=2))
    teacher = ranks.engine.teacher("resnet14").double()
    member = ranks.engine.member("kd", task, teacher)
    member.student.double()
    member._begin_stage()
    ranks.Cohort(task, ranks.FrozenTeacher(teacher, task), [member], ranks.engine.Sink()).train()
    weight = alone["resnet8-kd"]["student"]["fc.weight"]
    assert not torch.allclose(member.state()["student"]["fc.weight"], weight, rtol=1e-3)


# --- failures ----------------------------------------------------------------------------------------------------


def _one_fails(world: World) -> dict[str, Any]:
    """Two of four members cannot compute on the second process, in their third steps; one of them compares images."""
    task, teacher = ranks.exact_task(world), ranks.engine.teacher("resnet14").double()
    members = ranks.members(["kd", "cd", "crd", "reviewkd"], task, teacher)
    if world.rank == 1:
        _fail_at(members[1], 3)
        _fail_at(members[2], 3)
    sink = ranks.engine.Sink()
    cohort = ranks.Cohort(task, ranks.FrozenTeacher(teacher, task), members, sink)
    cohort.train()
    return {"failures": sink.failures, "done": [member.run_id for member in cohort.members if member.done]}


def _fail_at(member: Member, step: int) -> None:
    forward, count = member._forward, 0

    def failing(batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise ValueError("made to fail")
        return forward(batch)

    member._forward = failing  # type: ignore[method-assign]


def test_what_one_process_cannot_do_none_goes_on_with(tmp_path: Path) -> None:
    found = ranks.together(_one_fails, tmp_path)
    for said in found:
        assert list(said["failures"]) == ["resnet8-cd", "resnet8-crd"]
        assert all("made to fail" in reason for reason in said["failures"].values())
        assert said["done"] == ["resnet8-kd", "resnet8-reviewkd"]


def _teacher_fails(world: World) -> str:
    """Memory runs out in the teacher's pass on the second process."""
    task, teacher = ranks.exact_task(world), ranks.engine.teacher("resnet14").double()
    frozen = ranks.FrozenTeacher(teacher, task)
    if world.rank == 1:
        frozen.outputs = _out_of_memory  # type: ignore[method-assign]
    members = ranks.members(["kd", "cd"], task, teacher)
    try:
        ranks.Cohort(task, frozen, members, ranks.engine.Sink()).train()
    except OutOfMemory as error:
        return str(error)
    return ""


def _out_of_memory(*_: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_all_processes_are_told_of_memory_that_one_lacks(tmp_path: Path) -> None:
    """Else one of them would go on with half of the cohort, and the other with the next one."""
    assert all("CUDA out of memory" in said for said in ranks.together(_teacher_fails, tmp_path))


def _diverge(world: World) -> dict[str, str]:
    """A student whose weights become NaN on the second process alone."""
    task, teacher = ranks.exact_task(world), ranks.engine.teacher("resnet14").double()
    members = ranks.members(["kd", "cd"], task, teacher)
    if world.rank == 1:
        with torch.no_grad():
            next(members[0].student.parameters()).fill_(float("nan"))
    sink = ranks.engine.Sink()
    ranks.Cohort(task, ranks.FrozenTeacher(teacher, task), members, sink).train()
    return sink.failures


def test_a_loss_that_is_not_finite_anywhere_ends_the_run_everywhere(tmp_path: Path) -> None:
    for failures in ranks.together(_diverge, tmp_path):
        assert list(failures) == ["resnet8-kd"]
        assert "the loss became NaN in epoch 1" in failures["resnet8-kd"]


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "parts", "sizes"), [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (1, 2, [1, 0])])
def test_shares_are_nearly_equal(count: int, parts: int, sizes: list[int]) -> None:
    assert sizes_of(count, parts) == sizes


def test_a_world_of_one_changes_nothing() -> None:
    tensor, world = torch.ones(3), World()
    assert world.sum(tensor) is tensor
    assert world.gather(tensor, [3]) is tensor
    assert world.first("x") == "x"
    assert world.worst([1, 0]) == [1, 0]
    world.share_buffers(nn.BatchNorm2d(1))
