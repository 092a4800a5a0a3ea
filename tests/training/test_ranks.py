"""Two processes that train together end where one process ends, and do not wait for each other in vain."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtable.distributed import Ranks, shard_sizes
from kdtable.methods import get
from kdtable.training.build import build_student
from kdtable.training.cohort import OutOfMemory, _one_ahead
from kdtable.training.member import Member
from tests.training import processes
from tests.training.test_member import flat

#: Terms that are means, sums, whole-batch quotients, and comparisons of images; sweeps, stages, banks, draws.
ROWS = ["kd", "cd", "cd+gkd", "cd+gkd+edt", "mgd", "mgd, random", "reviewkd", "cse-l2", "pad-l2"]
ROWS += ["sp", "rkd", "pkt", "cc", "crd"]
#: Those that draw while they train.
DRAWING = ["mgd, random", "crd"]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return processes.trained(ROWS)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each of two processes makes of all that is asked of them below."""
    return processes.together(WORKS, tmp_path_factory.mktemp("ranks"))


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


def assert_equal(found: Any, expected: Any) -> None:
    """To the bit, but for what a clock measured."""
    left, right = flat(found), flat(expected)
    assert left.keys() == right.keys()
    for key, value in right.items():
        if not key.endswith(("/seconds", "/members")):
            assert torch.equal(left[key], value) if isinstance(value, torch.Tensor) else left[key] == value, key


# --- numbers -----------------------------------------------------------------------------------------------------


def train(ranks: Ranks) -> dict[str, Any]:
    return processes.trained(ROWS, ranks)


@pytest.mark.parametrize("row", ROWS)
def test_two_processes_end_where_one_does(row: str, alone: dict[str, Any], two: dict[str, list[Any]]) -> None:
    assert isinstance(alone[row], dict), alone[row]
    assert_close(two["train"][0][row], alone[row])


def test_all_processes_end_alike(two: dict[str, list[Any]]) -> None:
    assert_equal(*two["train"])


def resume(ranks: Ranks) -> list[dict[str, dict[str, Any]]]:
    """Train for two epochs, and go on from the first process's checkpoints of the first, as a command does."""
    sink, undisturbed = processes.run(DRAWING, ranks, epochs=2)
    checkpoints = ranks.broadcast({row: sink.states[row, 1] for row in DRAWING})
    _, resumed = processes.run(DRAWING, ranks, epochs=2, after=checkpoints)
    return [{member.run_id: member.state() for member in cohort} for cohort in (undisturbed, resumed)]


def test_a_resumed_run_ends_where_an_undisturbed_one_does(two: dict[str, list[Any]]) -> None:
    for undisturbed, resumed in two["resume"]:
        assert_equal(resumed, undisturbed)


@pytest.mark.parametrize("row", [row for row in ROWS if not get(processes.OWN.get(row, (row,))[0]).relates_samples])
def test_parts_of_a_batch_add_up_to_it(row: str, alone: dict[str, Any]) -> None:
    assert_close(processes.trained([row], Ranks(accumulate=3))[row], alone[row])


def test_it_is_batch_statistics_that_differ_elsewhere(alone: dict[str, Any]) -> None:
    """The comparison could fail: with each share's own statistics the student ends elsewhere."""
    task, teacher = processes.exact_task(Ranks(accumulate=2)), processes.exact_teacher()
    member = processes.engine.member("kd", task, teacher)
    member.student.double()
    member._begin_stage()
    processes.Cohort(task, processes.FrozenTeacher(teacher, task), [member], processes.engine.Sink()).train()
    assert not torch.allclose(member.state()["student"]["fc.weight"], alone["kd"]["student"]["fc.weight"], rtol=1e-3)


@pytest.mark.parametrize("network", ["tv_mobilenetv2", "wrn_28_2"])
def test_a_share_of_a_batch_is_dropped_as_in_the_batch(network: str) -> None:
    images = processes.engine.image_set(train=5)
    alone, *others = (processes.engine.task(images, replace(processes.engine.RECIPE, batch_size=5)) for _ in range(3))
    for rank, task in enumerate(others):
        task.ranks = Ranks(rank, 2)
    (batch,) = alone.batches("main", 1)
    student = build_student(network, images.spec, 1).train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the statistics of a share are not those of the batch
    whole = alone.run(student, batch, frozenset()).logits
    shares = [task.run(student, batch.shard(task.ranks), frozenset()).logits for task in others]
    undropped = alone.run(student.eval(), batch, frozenset()).logits
    assert (torch.cat(shares) - whole).abs().max() < 1e-3 * (undropped - whole).abs().max()


# --- failures ----------------------------------------------------------------------------------------------------


def fail_amid_steps(ranks: Ranks) -> dict[str, Any]:
    """Three of five members cannot go on on the second process, in their third steps; two of them compare images."""

    def change(members: list[Member]) -> None:
        if ranks.rank == 1:
            _fail_at(3, members[1], "_forward")
            _fail_at(3, members[2], "_forward")
            _fail_at(3, members[3], "_losses")

    return _told(*processes.run(["kd", "cd", "crd", "pkt", "reviewkd"], ranks, change=change))


def fail_backwards(ranks: Ranks) -> dict[str, Any]:
    """A gradient cannot be had on the second process, while the first one waits for it in its own backward pass."""

    def change(members: list[Member]) -> None:
        if ranks.rank == 1:
            _fail_at(3, members[0], "_losses", _without_gradient)

    return _told(*processes.run(["crd", "kd", "sp"], ranks, change=change))


def _told(sink: Any, members: list[Member]) -> dict[str, Any]:
    return {"failures": sink.failures, "done": [member.run_id for member in members if member.done]}


def _fail_at(step: int, member: Member, name: str, failing: Callable[..., Any] | None = None) -> None:
    """Let one of a member's functions fail in a step, or do something else."""
    usual, count = getattr(member, name), 0

    def function(*args: Any) -> Any:
        nonlocal count
        count += 1
        return (failing or _fail)(usual, *args) if count == step else usual(*args)

    setattr(member, name, function)


def _fail(*_: Any) -> Any:
    raise ValueError("made to fail")


def _without_gradient(usual: Any, *args: Any) -> list[Tensor]:
    losses: list[Tensor] = usual(*args)
    losses[-1].register_hook(_fail)
    return losses


@pytest.mark.parametrize(
    ("work", "failed", "done"),
    [("fail_amid_steps", ["cd", "crd", "pkt"], ["kd", "reviewkd"]), ("fail_backwards", ["crd"], ["kd", "sp"])],
)
def test_what_one_process_cannot_do_none_goes_on_with(
    work: str, failed: list[str], done: list[str], two: dict[str, list[Any]]
) -> None:
    for said in two[work]:
        assert list(said["failures"]) == failed
        assert all("made to fail" in reason for reason in said["failures"].values())
        assert said["done"] == done


def lack_memory(ranks: Ranks) -> str:
    """Memory runs out in the teacher's pass on the second process."""
    task, teacher = processes.exact_task(ranks), processes.exact_teacher()
    frozen = processes.FrozenTeacher(teacher, task)
    if ranks.rank == 1:
        frozen.outputs = _out_of_memory  # type: ignore[method-assign]
    try:
        processes.Cohort(task, frozen, processes.members(["kd", "cd"], task, teacher), processes.engine.Sink()).train()
    except OutOfMemory as error:
        return str(error)
    return ""


def lack_memory_backwards(ranks: Ranks) -> str:
    """Memory runs out on the second process in the backward pass of a member that compares images."""

    def change(members: list[Member]) -> None:
        if ranks.rank == 1:
            _fail_at(2, members[1], "_backward", _out_of_memory)

    try:
        processes.run(["kd", "sp"], ranks, change=change)
    except OutOfMemory as error:
        return str(error)
    return ""


def _out_of_memory(*_: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("work", ["lack_memory", "lack_memory_backwards"])
def test_all_processes_are_told_of_memory_that_one_lacks(work: str, two: dict[str, list[Any]]) -> None:
    """Else one of them would go on with half of the cohort, and the other with the next one."""
    assert all("CUDA out of memory" in said for said in two[work])


def diverge(ranks: Ranks) -> dict[str, str]:
    """A student whose weights become NaN on the second process alone."""

    def change(members: list[Member]) -> None:
        if ranks.rank == 1:
            with torch.no_grad():
                next(members[0].student.parameters()).fill_(float("nan"))

    sink, _ = processes.run(["kd", "cd"], ranks, change=change)
    return sink.failures


def test_a_loss_that_is_not_finite_anywhere_ends_the_run_everywhere(two: dict[str, list[Any]]) -> None:
    for failures in two["diverge"]:
        assert list(failures) == ["kd"]
        assert "the loss became NaN in epoch 1" in failures["kd"]


def leave_work_amid_work(ranks: Ranks) -> list[str]:
    """The second process fails before, between and after what the first one waits in."""

    def inner(place: int) -> Any:
        return ranks.agreed(lambda: ranks.sum(torch.ones(2)) if ranks.rank == 0 or place != 1 else _fail())

    def outer(place: int) -> Any:
        if ranks.rank == 1 and place == 0:
            _fail()
        found = inner(place)
        if ranks.rank == 1 and place == 2:
            _fail()
        return ranks.sum(found).tolist()

    told = []
    for place in range(4):
        try:
            told.append(str(ranks.agreed(lambda place=place: outer(place))))  # type: ignore[misc]
        except (ValueError, RuntimeError) as error:
            told.append(str(error))
    return told


def test_wherever_one_process_fails_the_others_hear_of_it(two: dict[str, list[Any]]) -> None:
    first, second = two["leave_work_amid_work"]
    said = "another process of this run failed: ValueError: made to fail"
    assert first == [said] * 3 + ["[4.0, 4.0]"]
    assert second == ["made to fail"] * 3 + ["[4.0, 4.0]"]


def test_a_lesson_that_was_never_begun_is_not_waited_for() -> None:
    """As when memory runs out while the pool is busy: the pool is shut down, and then the lessons are."""
    pool, free = ThreadPoolExecutor(1), Event()

    def batches() -> Any:
        pool.submit(free.wait)  # the next lesson has to wait for it
        yield from processes.engine.task().batches("main", 1)

    batches_with_outputs = _one_ahead(pool, batches(), None, frozenset())
    next(batches_with_outputs)
    pool.shutdown(wait=False, cancel_futures=True)
    free.set()
    closing = Thread(target=batches_with_outputs.close, daemon=True)
    closing.start()
    closing.join(processes.PATIENCE.total_seconds())
    assert not closing.is_alive()


WORKS = [train, resume, fail_amid_steps, fail_backwards, lack_memory, lack_memory_backwards, diverge]
WORKS += [leave_work_amid_work]


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "parts", "sizes"), [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (1, 2, [1, 0])])
def test_shares_are_nearly_equal(count: int, parts: int, sizes: list[int]) -> None:
    assert shard_sizes(count, parts) == sizes
    rows = [Ranks(rank, parts).shard(count) for rank in range(parts)]
    assert [part.stop - part.start for part in rows] == sizes
    assert [place for part in rows for place in range(count)[part]] == list(range(count))


def test_a_world_of_one_changes_nothing() -> None:
    tensor, ranks = torch.ones(3), Ranks()
    assert ranks.sum(tensor) is tensor
    assert ranks.gather(tensor, [3]) is tensor
    assert ranks.broadcast("x") == "x"
    assert ranks.worst([1, 0]) == [1, 0]
    ranks.share_buffers(nn.BatchNorm2d(1))
