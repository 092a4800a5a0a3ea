"""DIH, the fine-tuning of heads, and the training of networks with branches."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtable import methods
from kdtable.data import Batch
from kdtable.errors import BadRequest
from kdtable.methods.base import Setting
from kdtable.methods.dih import DIH, dih_loss
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.build import build_student, output_shapes
from tests import engine
from tests.asking import aim
from tests.dih_rows import ROWS

RECIPE = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=())
LABELS = torch.tensor([0, 2, 1, 1])
BATCH = Batch(torch.zeros(4, 3, 4, 4), LABELS, torch.arange(4), 1)


def draw(seed: int) -> Tensor:
    return 3 * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def teacher(heads: int = 3) -> Outputs:
    return Outputs(draw(1), branches=tuple((draw(2 + i), torch.zeros(1, 2)) for i in range(heads)))


def dih(heads: int = 3, terms: dict[str, float] | None = None, **params: Any) -> DIH:
    row = ROWS["dih"]
    all_params = {**row.params, **params}
    return DIH(Setting(RECIPE, aim(DIH, terms or row.terms, all_params), LABELS, 5, Outputs(draw(0)), teacher(heads)))


def weights(method: DIH) -> dict[str, float]:
    return {term.name: term.weight for term in method.main_stage().terms}


@pytest.mark.parametrize("heads", [3, 4])
def test_the_row_counts_labels_once_for_each_teacher(heads: int) -> None:
    s, method = Outputs(draw(0)), dih(heads)
    teacher_outputs = teacher(heads)
    total = sum(term.weight * method.loss(term.name, s, teacher_outputs, BATCH) for term in method.main_stage().terms)
    soft = sum(
        kd_loss(s.logits, t, 5.0) for t in (teacher_outputs.logits, *(logits for logits, _ in teacher_outputs.branches))
    )
    expected = 0.9 * (heads + 1) * nn.functional.cross_entropy(s.logits, LABELS) + 0.1 * soft
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(
    ("terms", "alphas", "teachers"),
    [
        (None, "0.1", 4),
        (None, "0.1,0,0.3", 3),
        ({"ce": 0.0, "kd": 0.0, "dih": 1.0}, "0.1,0,0.3", 2),
    ],
)
def test_the_mean_divides_by_those_that_teach(terms: dict[str, float] | None, alphas: str, teachers: int) -> None:
    summed, mean = (weights(dih(terms=terms, alphas=alphas, teachers=reading)) for reading in ("sum", "mean"))
    assert mean == {name: weight / teachers for name, weight in summed.items()}


def test_a_head_of_weight_zero_teaches_nothing() -> None:
    s, (x, y, z) = draw(0), (draw(i) for i in (2, 3, 4))
    expected = dih_loss(s, [x, z], LABELS, (0.1, 0.3), 5.0)
    torch.testing.assert_close(dih_loss(s, [x, y, z], LABELS, (0.1, 0.0, 0.3), 5.0), expected)
    assert dih_loss(s, [x], LABELS, (0.0,), 5.0) == 0


def test_gradient() -> None:
    heads = [draw(2), draw(3)]
    assert torch.autograd.gradcheck(lambda s: dih_loss(s, heads, LABELS, (0.1, 0.4), 5.0), draw(0).requires_grad_())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"alphas": "0.1,2"}, "alphas lies in"),
        ({"alphas": "a"}, "alphas takes a number or a list"),
        ({"alphas": "nan"}, "alphas lies in"),
        ({"teachers": "all"}, "teachers is one of sum, mean"),
        ({"kd_temperature": 0.0}, "kd_temperature must be positive"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(DIH, {}, {**ROWS["dih"].params, **change})


def test_one_alpha_for_each_head_or_one_for_all() -> None:
    assert dih(alphas="0.2").alphas == (0.2, 0.2, 0.2)
    with pytest.raises(ValueError, match="alphas has 2 numbers for 3 places"):
        dih(alphas="0.2,0.1")


def test_a_teacher_without_heads_is_refused() -> None:
    plain = Outputs(draw(0))
    assert DIH.inapplicable(plain, teacher()) is None
    with pytest.raises(ValueError, match="the teacher has no heads"):
        DIH(Setting(RECIPE, aim(DIH, {"ce": 1.0}), LABELS, 5, plain, plain))


@pytest.mark.parametrize("row", ["heads", "tofd-teacher", "dml"])
def test_what_needs_no_teacher(row: str) -> None:
    assert not methods.get(row).needs_teacher(ROWS[row].terms)
    assert methods.get(row).needs_teacher({**ROWS[row].terms, "kd": 1.0})
    assert not engine.member(row, engine.task(), None).stage.uses_teacher


@pytest.mark.parametrize("row", ["dih", "tofd", "mhkd"])
def test_what_needs_one(row: str) -> None:
    assert methods.get(row).needs_teacher(ROWS[row].terms)
    assert engine.member(row, engine.task(), engine.teacher_of(row)).stage.uses_teacher


@pytest.mark.parametrize("row", ROWS)
def test_none_is_combined_with_kd(row: str) -> None:
    with pytest.raises(BadRequest, match="unknown method"):
        methods.get(f"{row}+kd")


@pytest.mark.parametrize("row", ["heads", "tofd-teacher"])
def test_a_network_without_branches_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match="to train: name the network with them"):
        methods.get(row)(Setting(RECIPE, aim(row, ROWS[row].terms), LABELS, 5, Outputs(draw(0))))


def test_terms_of_a_teacher_still_need_one() -> None:
    method = engine.member("tofd-teacher", engine.task(), None).method
    with pytest.raises(ValueError, match="uses the teacher"):
        method.loss("kd", Outputs(draw(0)), None, BATCH)


def test_a_network_with_branches_is_trained_as_a_whole() -> None:
    task = engine.task()
    member = engine.member("tofd-teacher", task, None)
    before = {name: p.detach().clone() for name, p in member.student.named_parameters()}
    member.begin_epoch()
    batch = next(task.batches("main", 1))
    outputs = copy.deepcopy(member.student)(batch.images)
    losses = [nn.functional.cross_entropy(x, batch.labels) for x in (outputs.logits, *(b for b, _ in outputs.branches))]
    member.step(batch, None)
    assert member.learner.sums[0].item() / len(batch.labels) == pytest.approx(sum(losses).item(), rel=1e-5)
    assert all(not torch.equal(p, before[name]) for name, p in member.student.named_parameters())


def test_the_networks_own_classifier_has_no_part_in_the_heads_loss() -> None:
    member = engine.member("heads", engine.task(), None)
    out = Outputs(draw(0).requires_grad_(), branches=((draw(1).requires_grad_(), torch.zeros(1)),))
    member.method.loss("heads", out, None, BATCH).backward()
    assert out.logits.grad is None
    assert out.branches[0][0].grad is not None


class Judged:
    """Heads of which it is known how good they are on the next few test images: ``losses`` of each."""

    def __init__(self, kept: str) -> None:
        self.student = build_student("resnet8+heads", engine.image_set().spec, 1)
        recipe, shapes = Recipe(epochs=3, batch_size=4, lr=0.1, milestones=()), output_shapes(self.student, 32)
        setting = Setting(
            recipe, aim("heads", ROWS["heads"].terms, {"kept": kept}), LABELS, 4, shapes, student=self.student
        )
        self.method = methods.get("heads")(setting)
        self.epoch = 0

    def end_epoch(self, *losses: float) -> list[float]:
        """The biases that the heads have after an epoch at whose end they all were its number."""
        self.epoch += 1
        heads = self.student.get_submodule("branches")
        for parameter in heads.parameters():
            nn.init.constant_(parameter, self.epoch)
        # The loss of two equal labels that a logit of its own decides.
        labels = torch.zeros(2, dtype=torch.int64)
        logits = [torch.tensor([[0.0, torch.tensor(loss).expm1().log()]]).expand(2, 2) for loss in losses]
        outputs = Outputs(torch.zeros(2, 2), branches=tuple((x, torch.zeros(2, 1)) for x in logits))
        batch = Batch(torch.zeros(2, 3, 32, 32), labels, torch.arange(2), 0)
        self.method.end_epoch(self.method.main_stage(), self.epoch, self.student, lambda: (outputs, batch))
        return [next(head.parameters()).flatten()[0].item() for head in heads.children()]


def test_each_head_is_kept_from_the_epoch_that_was_luckiest_for_it() -> None:
    judged = Judged("test-batch")
    assert judged.end_epoch(0.2, 0.9, 0.5) == [1, 1, 1]
    assert judged.end_epoch(0.3, 0.8, 0.5) == [2, 2, 2], "training goes on with the heads as they are"
    assert judged.end_epoch(0.4, 0.9, 0.6) == [1, 2, 2], "of equal ones the latest"


def test_or_from_the_last_epoch() -> None:
    judged = Judged("last")
    assert [judged.end_epoch(0.2, 0.2, 0.2), judged.end_epoch(0.3, 0.3, 0.3)][-1] == [2, 2, 2]
    assert judged.end_epoch(0.4, 0.4, 0.4) == [3, 3, 3]
    assert not judged.method.state_dict()


def test_heads_are_judged_by_the_last_batch_of_the_shuffled_test_images() -> None:
    """24 test images in batches of 16: 8 of them, other ones each epoch."""
    task = engine.task()
    drawn = [task.last_watched_batch("main", epoch) for epoch in (1, 2)]
    assert [len(batch.labels) for batch in drawn] == [8, 8]
    assert not torch.equal(drawn[0].index, drawn[1].index)
    assert torch.equal(drawn[0].index, task.last_watched_batch("main", 1).index)
    assert torch.equal(drawn[0].labels, task.images.test_labels[drawn[0].index])
