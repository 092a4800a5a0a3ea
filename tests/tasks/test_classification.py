"""Batches, terms, and what is measured: accuracy against a plain loop."""

import copy

import pytest
import torch

from kdtable import methods, tasks
from kdtable.errors import BadRequest
from kdtable.numerics.layout import to_device
from kdtable.tasks.classification import EVALUATION_BATCH, Classification
from kdtable.training.build import build_student
from tests import engine


def network(task: Classification) -> torch.nn.Module:
    built = to_device(build_student("resnet8", task.images.spec, 1), engine.CPU)
    # Statistics other than the initial ones, so that train and eval mode differ.
    built.train()(torch.rand(8, 3, 32, 32))
    return built


def by_hand(net: torch.nn.Module, task: Classification) -> tuple[float, float]:
    net.eval()
    hits1 = hits5 = 0
    with torch.no_grad():
        for image, label in zip(task.images.test_images, task.images.test_labels, strict=True):
            logits = net((image.float() / 255).unsqueeze(0)).logits.squeeze(0)
            order = logits.argsort(descending=True).tolist()
            hits1 += order[0] == label
            hits5 += label in order[:5]
    count = len(task.images.test_labels)
    return int(hits1) / count, int(hits5) / count


@pytest.mark.parametrize(("classes", "test"), [(4, 24), (2, 7), (9, EVALUATION_BATCH + 30)])
def test_accuracy_equals_a_plain_loop(classes: int, test: int) -> None:
    task = engine.task(engine.image_set(test=test, classes=classes))
    net = network(task)
    accuracy = task.evaluate(net)
    assert (accuracy["top1"], accuracy["top5"]) == pytest.approx(by_hand(net, task))
    if classes < 5:
        assert accuracy["top5"] == 1.0
    else:
        assert accuracy["top1"] < accuracy["top5"] < 1.0


def test_evaluation_changes_no_tensor() -> None:
    task = engine.task()
    net = network(task).train()
    before = copy.deepcopy(net.state_dict())
    task.evaluate(net)
    assert not net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_evaluation_does_not_depend_on_the_mode_before() -> None:
    task = engine.task()
    net = network(task)
    assert task.evaluate(net.train()) == task.evaluate(net.eval())


def test_evaluation_draws_nothing() -> None:
    task = engine.task()
    net = network(task)
    before = torch.get_rng_state()
    task.evaluate(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_depend_on_seed_stage_and_epoch_only() -> None:
    first, again, other = (engine.task(seed=seed) for seed in (1, 1, 2))

    def indices(task: Classification, stage: str, epoch: int) -> list[int]:
        return torch.cat([batch.index for batch in task.batches(stage, epoch)]).tolist()

    expected = indices(first, "main", 2)
    assert sorted(expected) == list(range(40))
    assert indices(again, "main", 2) == expected
    others = [indices(other, "main", 2), indices(first, "main", 1), indices(first, "init", 2)]
    assert all(order != expected for order in others)


def test_what_is_learned_is_measured_over_all_batches() -> None:
    task, hits, images = engine.task(), 0, 0
    net, meter = network(task), task.meter("train")
    for batch in task.batches("main", 1):
        outputs = task.forward(net, batch, frozenset())
        meter.update(outputs, batch)
        hits += sum(int(row.argmax()) == int(label) for row, label in zip(outputs.logits, batch.labels, strict=True))
        images += len(batch)
    assert meter.result() == {"train-top1": hits / images}


def test_the_first_metric_is_the_main_one() -> None:
    metrics = {metric.name: metric.stored for metric in Classification.metrics}
    assert list(metrics)[:4] == ["top1", "top5", "top1-error", "top5-error"]
    assert set(list(metrics.values())[:4]) <= engine.task().evaluate(network(engine.task())).keys()


def test_a_probe_is_a_batch() -> None:
    """Networks that were built for it take it, in their type."""
    probe = Classification.probe(24, 3, like=torch.zeros(1, dtype=torch.float64))
    assert (probe.images.shape, probe.images.dtype, len(probe), probe.whole) == ((3, 3, 24, 24), torch.float64, 3, 3)
    assert probe.labels.dtype == torch.int64


def test_micro_batches_are_the_batch_in_order() -> None:
    task = engine.task()
    net, batch = network(task), next(task.batches("main", 1))
    teacher = task.forward(net, batch, frozenset({"embedding", "stages"}))
    parts = list(task.divide(batch, teacher, 3))
    assert [len(part) for part, _ in parts] == [6, 5, 5]
    assert all(part.whole == 16 for part, _ in parts)
    for name in ("images", "labels", "index", "view"):
        assert torch.equal(torch.cat([getattr(part, name) for part, _ in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([outputs.embedding for _, outputs in parts]), teacher.embedding)
    assert torch.equal(torch.cat([outputs.stages[1] for _, outputs in parts]), teacher.stages[1])


def test_terms_without_a_teacher_need_none() -> None:
    assert not Classification.needs_teacher(methods.get("kd"), {"ce": 1.0})
    assert Classification.needs_teacher(methods.get("kd"), {"ce": 0.1, "kd": 0.9})
    assert not Classification.needs_teacher(methods.get("heads"), {"ce": 1.0, "heads": 1.0})
    assert Classification.needs_teacher(methods.get("pad-l2"), {"ce": 1.0})


def test_tasks_are_found_by_name() -> None:
    assert tasks.get("classification") is Classification
    with pytest.raises(BadRequest, match="unknown task 'clasification'; did you mean classification"):
        tasks.get("clasification")
