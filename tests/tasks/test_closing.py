"""What is measured once, at the end of a run: against plain loops, alone, in company and after an interruption."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.distributed import Ranks
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads
from kdtable.tasks.closing import BINS, ClosingMeasures
from kdtable.training.cohort import Cohort
from kdtable.training.teacher import FrozenTeacher
from tests import engine

OF_ALL = {"nll", "ece", "balanced", "majority"}
OF_TAUGHT = OF_ALL | {"agreement", "teacher-kl"}


def softmax(logits: Tensor) -> list[list[float]]:
    rows = []
    for row in logits.double().tolist():
        powers = [math.exp(value - max(row)) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def by_hand(student: Tensor, teacher: Tensor, labels: list[int]) -> dict[str, float]:
    """Every measure, image by image, class by class and bin by bin."""
    p, q, n = softmax(student), softmax(teacher), len(labels)
    chosen = [row.index(max(row)) for row in p]
    recalls = []
    for label in set(labels):
        of_class = [guess for guess, own in zip(chosen, labels, strict=True) if own == label]
        recalls.append(sum(guess == label for guess in of_class) / len(of_class))
    error = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [i for i in range(n) if low < max(p[i]) <= high]
        if inside:
            accuracy = sum(chosen[i] == labels[i] for i in inside) / len(inside)
            confidence = sum(max(p[i]) for i in inside) / len(inside)
            error += len(inside) / n * abs(accuracy - confidence)
    return {
        "nll": -sum(math.log(p[i][labels[i]]) for i in range(n)) / n,
        "ece": error,
        "balanced": sum(recalls) / len(recalls),
        "majority": max(map(labels.count, labels)) / n,
        "agreement": sum(row.index(max(row)) == guess for row, guess in zip(q, chosen, strict=True)) / n,
        "teacher-kl": sum(b * math.log(b / a) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True))
        / n,
    }


def drawn(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels of all classes but one; confident where the draw is."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes - 1, (images,), generator=draw)
    scale = 6 * torch.rand(images, 1, generator=draw)
    student, teacher = (torch.randn(images, classes, generator=draw) * scale for _ in range(2))
    student[torch.arange(0, images, 2), labels[::2]] += 3
    return student, teacher, labels


def batch_of(labels: Tensor, whole: int | None = None) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 1, 1), labels, labels, 0, None, whole or len(labels))


def measured(student: Tensor, teacher: Tensor | None, labels: Tensor, size: int, classes: int) -> dict[str, float]:
    meter = ClosingMeasures(classes, torch.float64, with_teacher=teacher is not None)
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        meter.update(
            Outputs(student[rows]), None if teacher is None else Outputs(teacher[rows]), batch_of(labels[rows])
        )
    return meter.result()


@pytest.mark.parametrize(("images", "classes", "seed"), [(60, 5, 0), (7, 2, 1), (200, 3, 2), (1, 4, 3)])
@pytest.mark.parametrize("size", [16, 1000])
def test_every_formula_equals_a_plain_loop(images: int, classes: int, seed: int, size: int) -> None:
    student, teacher, labels = drawn(images, classes, seed)
    expected = by_hand(student, teacher, labels.tolist())
    found = measured(student, teacher, labels, size, classes)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert found.keys() == OF_TAUGHT


def test_a_sure_classifier_is_in_the_last_bin() -> None:
    """Its confidence is 1 to the bit; half of its answers are wrong."""
    logits = torch.tensor([[2000.0, 0.0]] * 4)
    found = measured(logits, None, torch.tensor([0, 0, 1, 1]), 2, 2)
    assert found == {"nll": 1000.0, "ece": 0.5, "balanced": 0.5, "majority": 0.5}


def test_a_student_like_its_teacher() -> None:
    student, _, labels = drawn(40, 5, 4)
    found = measured(student, student.clone(), labels, 16, 5)
    assert (found["agreement"], found["teacher-kl"]) == (1.0, 0.0)


def test_what_is_not_finite_is_left_out() -> None:
    student, teacher, labels = drawn(40, 5, 4)
    student[3] = math.nan
    assert measured(student, teacher, labels, 16, 5).keys() == {"agreement", "balanced", "majority"}


def test_shards_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, labels = drawn(41, 5, 5)
    shards = []
    for rows in (slice(0, 21), slice(21, 41)):
        meter = ClosingMeasures(5, torch.float64, with_teacher=True)
        meter.update(Outputs(student[rows]), Outputs(teacher[rows]), batch_of(labels[rows], 41))
        shards.append(meter)
    monkeypatch.setattr(Ranks, "all_reduce", lambda _, sums: sums + shards[1]._sums)
    shards[0].merge(Ranks(0, 2))
    assert shards[0].result() == pytest.approx(by_hand(student, teacher, labels.tolist()), rel=1e-12)


# --- in training -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    fix_threads()


def logits(task: Any, network: torch.nn.Module) -> Tensor:
    network.eval()
    with torch.no_grad():
        return torch.cat(
            [task.forward(network, batch, frozenset()).logits for batch in task.evaluation_batches("test")]
        )


def trained(*rows: str, after: dict[str, Any] | None = None) -> tuple[engine.Sink, dict[str, Any], FrozenTeacher]:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    frozen = FrozenTeacher(teacher, task)
    members = {row: engine.member(row, task, None if row == "vanilla" else teacher) for row in rows}
    for row, state in (after or {}).items():
        members[row].load_state(state)
    Cohort(task, frozen, members.values(), sink).train()
    assert not sink.failures
    return sink, members, frozen


def test_the_last_epoch_has_them_and_no_other() -> None:
    _, members, frozen = trained("vanilla", "kd", "fitnet-2stage")
    task = members["kd"].task
    teacher, labels = logits(task, frozen._folded), task.images.test_labels.tolist()
    for row, member in members.items():
        *earlier, last = member.history
        assert all(not OF_TAUGHT & record.metrics.keys() for record in earlier)
        expected = by_hand(logits(task, member.student), teacher, labels)
        names = OF_ALL if row == "vanilla" else OF_TAUGHT
        assert OF_TAUGHT & last.metrics.keys() == names
        assert {name: last.metrics[name] for name in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-6)
        assert last.metrics["top1"] == task.evaluate(member.student)["top1"]


def test_the_teacher_sees_the_test_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task, teacher = engine.task(), engine.teacher()
    frozen, seen = FrozenTeacher(teacher, task), []
    outputs = frozen.outputs
    monkeypatch.setattr(frozen, "outputs", lambda batch, needs: seen.append(batch) or outputs(batch, needs))
    Cohort(task, frozen, [engine.member(row, task, teacher) for row in ("kd", "at")], engine.Sink()).train()
    assert sum(len(batch) for batch in seen if batch.epoch == 0) == len(task.images.test_labels)


def test_a_resumed_run_has_them_too() -> None:
    whole, members, _ = trained("vanilla", "kd")
    states = {row: whole.states[f"resnet8-{row}", 2] for row in ("vanilla", "kd")}
    _, resumed, _ = trained("vanilla", "kd", after=states)
    for row, member in members.items():
        assert resumed[row].history[-1].metrics == member.history[-1].metrics
