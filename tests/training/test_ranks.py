"""Two processes that train together end where one process ends, and one that fails leaves none waiting."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kdtable.distributed import SINGLE_PROCESS, Ranks, shard_sizes
from kdtable.methods import get
from kdtable.recipes.record import EpochRecord
from kdtable.training.build import build_student
from kdtable.training.cohort import OutOfMemory, Withdrawn, _one_ahead
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
        if key.endswith(("/seconds", "/cpu_seconds", "/cohort_size")):
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
        if not key.endswith(("/seconds", "/cpu_seconds", "/cohort_size")):
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


#: Under recipes that mix images: terms that read probabilities, or compare images.
MIXING = ["kd", "sp", "cd"]


def train_later(ranks: Ranks) -> dict[str, Any]:
    return processes.trained(MIXING, ranks, **processes.LATER)


def test_two_processes_end_where_one_does_under_later_recipes(two: dict[str, list[Any]]) -> None:
    found = train_later(Ranks())
    assert set(MIXING) == found.keys()
    assert all("average" in state for state in found.values())
    assert_close(two["train_later"][0], found)
    assert_equal(*two["train_later"])


#: On two views of an image.
OF_TWO_VIEWS = ["kd", "mlkd"]


def train_on_views(ranks: Ranks) -> dict[str, Any]:
    return processes.trained(OF_TWO_VIEWS, ranks, **processes.VIEWS)


def test_two_processes_end_where_one_does_on_two_views(two: dict[str, list[Any]]) -> None:
    found = train_on_views(Ranks())
    assert set(OF_TWO_VIEWS) == found.keys()
    assert_close(two["train_on_views"][0], found)
    assert_equal(*two["train_on_views"])


def validate(ranks: Ranks) -> list[dict[str, Any]]:
    """The last states of runs with held-out images, each with what it measured."""
    sink, cohort = processes.run(["kd", "crd"], ranks, epochs=2, held_out=12)
    assert not sink.failures
    return [member.state() for member in cohort]


def test_held_out_images_choose_the_same_epoch_on_all_processes(two: dict[str, list[Any]]) -> None:
    kd, crd = validate(SINGLE_PROCESS)
    for of_rank in two["validate"]:
        assert_close(of_rank[0], kd)
        assert_close(of_rank[1], crd)
    assert_equal(*two["validate"])
    measured = kd["history"][-1]["metrics"]
    assert {"validation-top1", "top1", "nll"} <= measured.keys()


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
    whole = alone.forward(student, batch, frozenset()).logits
    shares = [task.forward(student, batch.shard(task.ranks), frozenset()).logits for task in others]
    undropped = alone.forward(student.eval(), batch, frozenset()).logits
    assert (torch.cat(shares) - whole).abs().max() < 1e-3 * (undropped - whole).abs().max()


# --- failures ----------------------------------------------------------------------------------------------------


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


def fail(ranks: Ranks) -> str:
    """The second of two processes fails in the midst of a step; the first one waits for its gradients."""

    def change(members: list[Member]) -> None:
        if ranks.rank == 1:
            members[0].learner.forward = _fail  # type: ignore[method-assign]

    try:
        processes.run(["kd", "cd"], ranks, change=change)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
    return ""


def _fail(*_: object) -> Any:
    raise ArithmeticError("made to fail")


def test_a_process_that_fails_raises_and_the_others_hear_that_it_is_gone(tmp_path: Path) -> None:
    first, second = processes.together([fail], tmp_path)["fail"]
    assert second == "ArithmeticError: made to fail"
    assert first.startswith("Trouble: another process of this run is gone")
    assert first.endswith("go on with the same command")


def lack_memory(ranks: Ranks) -> str:
    """Memory runs out on all processes."""

    def change(members: list[Member]) -> None:
        members[1].learner.forward = _out_of_memory  # type: ignore[method-assign]

    try:
        processes.run(["kd", "cd"], ranks, change=change)
    except OutOfMemory as error:
        return str(error)
    return ""


def _out_of_memory(*_: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_lack_of_memory_ends_the_cohort(two: dict[str, list[Any]]) -> None:
    assert two["lack_memory"] == ["CUDA out of memory"] * 2


def withdraw(ranks: Ranks) -> list[str]:
    """The first process's sink wants no more of a member after its first epoch."""
    task, teacher = processes.exact_task(ranks), processes.exact_teacher()
    members = processes.members(["kd", "cd"], task, teacher, epochs=2)
    sink = Withdrawing() if ranks.rank == 0 else processes.engine.Sink()
    processes.Cohort(task, processes.FrozenTeacher(teacher, task), members, sink).train()
    return [member.run_id for member in members if member.done]


class Withdrawing(processes.engine.Sink):
    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        if member.run_id == "kd":
            raise Withdrawn


def test_a_member_that_the_first_process_withdraws_leaves_on_all(two: dict[str, list[Any]]) -> None:
    assert two["withdraw"] == [["cd"]] * 2


def test_a_batch_that_was_never_begun_is_not_waited_for() -> None:
    """As when memory runs out while the pool is busy: the pool is shut down, and then the batches are."""
    pool, free = ThreadPoolExecutor(1), Event()

    def batches() -> Any:
        pool.submit(free.wait)  # the next batch has to wait for it
        yield from processes.engine.task().batches("main", 1)

    batches_with_outputs = _one_ahead(pool, batches(), None, frozenset())
    next(batches_with_outputs)
    pool.shutdown(wait=False, cancel_futures=True)
    free.set()
    closing = Thread(target=batches_with_outputs.close, daemon=True)
    closing.start()
    closing.join(processes.PATIENCE.total_seconds())
    assert not closing.is_alive()


WORKS = [train, train_later, train_on_views, validate, resume, diverge, lack_memory, withdraw]


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "parts", "sizes"), [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (1, 2, [1, 0])])
def test_shares_are_nearly_equal(count: int, parts: int, sizes: list[int]) -> None:
    assert shard_sizes(count, parts) == sizes
    rows = [Ranks(rank, parts).shard(count) for rank in range(parts)]
    assert [part.stop - part.start for part in rows] == sizes
    assert [place for part in rows for place in range(count)[part]] == list(range(count))


def test_a_world_of_one_changes_nothing() -> None:
    tensor, ranks = torch.ones(3), Ranks()
    assert ranks.all_reduce(tensor) is tensor
    assert ranks.all_gather(tensor, [3]) is tensor
    assert ranks.broadcast("x") == "x"
    ranks.broadcast_buffers(nn.BatchNorm2d(1))
