"""Students without labels: what they see, their state, the probe, and how they are measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdtable import methods
from kdtable.checkpoints import checkpoint
from kdtable.data.validation import hold_out
from kdtable.distributed import Ranks
from kdtable.errors import BadRequest
from kdtable.methods.objective import Objective, stage_epochs
from kdtable.models.split_norms import SplitBatchNorm, split_batch_norms
from kdtable.tasks import neighbours
from kdtable.tasks.neighbours import nearest
from kdtable.training.member import Member
from tests import engine
from tests.tasks.students import PROBE, RECIPE, ROWS, image_set, member, task_finder, teacher, train
from tests.training.test_promises import assert_same

TAUGHT = [row for row in ROWS if row != "vanilla"]
LAST = RECIPE.epochs + PROBE


@pytest.fixture(scope="module")
def company() -> engine.Sink:
    return train(ROWS)[0]


def state(sink: engine.Sink, row: str, epochs: int | None = None) -> Any:
    """A run's state after so many epochs; by default the last one."""
    return sink.states[row, epochs or (PROBE if row == "vanilla" else LAST)]


def history(sink: engine.Sink, row: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = state(sink, row)["history"]
    return found


def test_two_stages_and_what_they_measure(company: engine.Sink) -> None:
    for row in TAUGHT:
        stages = [(record["stage"], record["epoch"]) for record in history(company, row)]
        assert stages == [("pretrain", 1), ("pretrain", 2), ("main", 1), ("main", 2)]
        first, last = history(company, row)[0], history(company, row)[-1]
        assert first["metrics"].keys() == {"knn"}
        assert last["metrics"].keys() == {"probe-top1", "probe-top5", "train-top1", "knn"}
        assert history(company, row)[1]["metrics"]["knn"] == last["metrics"]["knn"]  # the trunk is frozen since
    assert [record["stage"] for record in history(company, "vanilla")] == ["main"] * PROBE


@pytest.mark.parametrize("row", ROWS)
def test_alone_or_in_company(row: str, company: engine.Sink) -> None:
    alone, _ = train([row])
    assert_same(state(alone, row), state(company, row))


@pytest.mark.parametrize(("row", "epochs"), [("moco", 1), ("mgd", 1), ("seed", 1), ("moco", 2), ("mgd", 3)])
def test_continued_from_a_checkpoint(row: str, epochs: int, company: engine.Sink, tmp_path: Path) -> None:
    """Queue, pointer, key encoder and draws included; amid both stages and between them."""
    checkpoint.save(tmp_path / "c.pt", state(company, row, epochs))
    kept = checkpoint.load(tmp_path / "c.pt")
    resumed, _ = train([row], change=lambda one: one.load_state(kept))
    assert (row, epochs) not in resumed.states
    assert_same(state(resumed, row), state(company, row))


@pytest.mark.parametrize("row", TAUGHT)
def test_labels_change_nothing_before_the_probe(row: str, company: engine.Sink) -> None:
    labels = image_set().train_labels.tolist()
    permuted, _ = train([row], image_set(labels=labels[7:] + labels[:7]))
    first, other = state(company, row, RECIPE.epochs), state(permuted, row, RECIPE.epochs)
    for part in ("student", "method", "optimizer"):
        assert_same(first[part], other[part])
    for ours, theirs in zip(first["history"], other["history"], strict=True):
        assert ours["terms"] == theirs["terms"]
    last, others = state(company, row), state(permuted, row)
    assert not torch.equal(last["student"]["fc.weight"], others["student"]["fc.weight"])


@pytest.mark.parametrize("row", TAUGHT)
def test_the_probe_changes_the_classifier_alone(row: str, company: engine.Sink) -> None:
    start, before, after = (state(company, row, epochs)["student"] for epochs in (1, RECIPE.epochs, LAST))
    for key in before:
        frozen = key not in ("fc.weight", "fc.bias")
        assert torch.equal(before[key], after[key]) == frozen, key
    assert torch.equal(start["fc.weight"], before["fc.weight"])
    assert not torch.equal(start["conv1.weight"], before["conv1.weight"])
    assert before["fc.weight"].std().item() == pytest.approx(0.01, rel=0.2)
    assert not before["fc.bias"].any()


def test_held_out_images_choose_the_epoch_of_the_probe(tmp_path: Path) -> None:
    images = image_set(train=28)
    sink, (one,) = train(["moco"], replace(images, spec=hold_out(images.spec, 8)).held_out())
    first, *_, last = history(sink, "moco")
    assert first["metrics"].keys() == {"validation-knn"}
    tested = {"probe-top1", "probe-top5", "knn"}
    assert last["metrics"].keys() == {"train-top1"} | tested | {f"validation-{name}" for name in tested}
    assert one.trained_student().keys() == one.student.state_dict().keys()


def test_a_random_trunk_is_left_as_it_is(company: engine.Sink) -> None:
    first, last = state(company, "vanilla", 1)["student"], state(company, "vanilla")["student"]
    assert torch.equal(first["conv1.weight"], last["conv1.weight"])
    assert torch.equal(first["bn1.running_mean"], torch.zeros(16))
    assert not torch.equal(first["fc.weight"], last["fc.weight"])


def begun(row: str, **more: Any) -> tuple[Member, Any]:
    images = image_set()
    task_of = task_finder(images)
    one = member(row, task_of, teacher(images), **more)
    one.begin_epoch()
    return one, next(iter(task_of("two-views").batches("pretrain", 1)))


def test_the_key_encoder_follows_before_keys_are_computed() -> None:
    """By parameters alone: the statistics are those of its own passes."""
    one, batch = begun("moco", key_momentum=0.75, bn_splits=1)
    method: Any = one.method
    with torch.no_grad():
        one.student.conv1.weight.add_(1.0)  # type: ignore[operator, union-attr]
    before = method.key_trunk.conv1.weight.clone()
    expected = 0.75 * before + 0.25 * one.student.conv1.weight.detach()  # type: ignore[operator, union-attr]
    one.step(batch, None)
    torch.testing.assert_close(method.key_trunk.conv1.weight, expected)
    assert not any(parameter.requires_grad for parameter in method.key_trunk.parameters())
    seen = method.key_trunk.conv1((batch.other - 0.5) / 0.5)
    torch.testing.assert_close(method.key_trunk.bn1.running_mean, 0.1 * seen.mean(dim=(0, 2, 3)))


def test_the_queue_turns_and_holds_the_last_keys() -> None:
    one, batch = begun("moco", queue=16, bn_splits=1)
    queue, method = one.method.queue, one.method
    for step in range(3):
        old = queue.vectors.clone()
        one.step(batch, None)
        keys = F.normalize(
            method.key_head(  # type: ignore[operator]
                method.key_trunk(batch.other, frozenset({"embedding"})).embedding
            ),
            dim=1,
        )  # type: ignore[operator]
        place = 8 * (step % 2)
        torch.testing.assert_close(queue.vectors[:, place : place + 8], keys.T.detach())
        kept = [column for column in range(16) if not place <= column < place + 8]
        assert torch.equal(queue.vectors[:, kept], old[:, kept])
        assert int(queue.pointer) == (8 * (step + 1)) % 16


def test_micro_batches_share_a_key_pass_and_a_move() -> None:
    """With batch norms that see images one by one, they add up to the batch."""
    grads, queues = [], []
    for accumulate in (1, 2):
        images = image_set()
        task_of = task_finder(images, ranks=Ranks(accumulate=accumulate))
        one = member("moco", task_of, teacher(images), bn_splits=1)
        one.begin_epoch()
        one.student.eval()
        one.learner.update = lambda: None  # type: ignore[method-assign]
        one.step(next(iter(task_of("two-views").batches("pretrain", 1))), None)
        grads.append(torch.cat([p.grad.flatten() for p in one.student.parameters() if p.grad is not None]))
        queues.append(one.method.queue.vectors)  # type: ignore[union-attr]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(*queues)


def test_split_batch_norms_normalise_parts_by_their_own_statistics() -> None:
    plain = torch.nn.BatchNorm2d(3)
    torch.nn.init.uniform_(plain.weight)
    split = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    split[0].load_state_dict(plain.state_dict())
    split_batch_norms(split, 2)
    assert isinstance(split[0], SplitBatchNorm)
    assert split.state_dict().keys() == {f"0.{key}" for key in plain.state_dict()}
    x = torch.randn(8, 3, 4, 4)
    found, start = split(x), {key: value.clone() for key, value in plain.state_dict().items()}
    statistics = []
    for part, ours in zip(x.chunk(2), found.chunk(2), strict=True):
        plain.load_state_dict(start)
        torch.testing.assert_close(plain(part), ours)
        statistics.append({key: value.clone() for key, value in plain.named_buffers()})
    for key in ("running_mean", "running_var"):
        mean = (statistics[0][key] + statistics[1][key]) / 2
        torch.testing.assert_close(split[0].state_dict()[key], mean)
    plain.load_state_dict(split[0].state_dict())
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))


def test_nearest_neighbours_vote_by_similarity() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.2, 0.8]]), dim=1).T
    labels = torch.tensor([2, 2, 0, 0, 1])
    queries = F.normalize(torch.tensor([[1.0, 0.05], [0.05, 1.0]]), dim=1)
    assert nearest(queries, bank, labels, 3).tolist() == [2, 0]
    similarity = queries @ bank
    votes = torch.stack([(similarity / 0.1).exp()[:, labels == c].sum(dim=1) for c in range(3)], dim=1)
    assert nearest(queries, bank, labels, 3).tolist() == votes.argmax(dim=1).tolist()


def test_only_so_many_neighbours_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "NEIGHBOURS", 1)
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.99, -0.1]]), dim=1).T
    assert nearest(torch.tensor([[1.0, 0.0]]), bank, torch.tensor([1, 0, 0]), 2).tolist() == [1]


def test_teachers_are_measured_by_their_own_classifier_and_neighbours() -> None:
    images = image_set()
    found = task_finder(images)("self-supervised").evaluate(teacher(images))
    assert found.keys() == {"probe-top1", "probe-top5", "knn"}


def test_epochs_of_a_run_by_stage() -> None:
    assert stage_epochs({"main": 3}, 7) == {"pretrain": 7, "main": 3}
    assert stage_epochs({"main": 3, "pretrain": 0}, 7) == {"main": 3}
    assert stage_epochs({"hint": 3}, 7) == {"hint": 3, "main": 7}


@pytest.mark.parametrize(
    ("row", "params", "batch", "sentence"),
    [
        ("moco", {"queue": 100, "bn_splits": 1}, 8, r"a queue of 100 vectors is no multiple of the batch of 8 .*=104"),
        ("seed", {"queue": 100}, 8, r"use --set queue=104, or another --batch-size"),
        ("mgd", {"queue": 96, "bn_splits": 8}, 12, r"a batch of 12 images has no 8 equal parts of two"),
    ],
)
def test_settings_that_contradict_the_batch(row: str, params: Any, batch: int, sentence: str) -> None:
    kind = methods.get(row, "self-supervised")
    with pytest.raises(BadRequest, match=sentence):
        kind.unfit(replace(RECIPE, batch_size=batch), Objective.of(kind.hyper, {}, params))


def test_methods_belong_to_their_task() -> None:
    with pytest.raises(BadRequest, match="method 'moco' trains without labels: use it with --paper"):
        methods.get("moco", "classification")
    with pytest.raises(BadRequest, match="method 'kd' is not one of self-supervised, whose methods are vanilla, moco"):
        methods.get("kd", "self-supervised")
    assert methods.get("mgd", "classification") is not methods.get("mgd", "self-supervised")
