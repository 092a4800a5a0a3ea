"""AdamW, label smoothing, mixed images and moving averages, as training computes them."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kdtable.checkpoints import checkpoint
from kdtable.checkpoints.validation import load_optimizer
from kdtable.doctor.rows import BATCH, built, rows
from kdtable.methods import METHODS, get
from kdtable.methods.base_terms import labels_term
from kdtable.methods.objective import Objective
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads
from kdtable.recipes.recipe import Recipe
from kdtable.training.average import Average
from kdtable.training.member import Member
from tests import engine
from tests.training.test_promises import assert_same

TODAY = replace(
    engine.RECIPE,
    lr=0.01,
    milestones=(),
    optimizer="adamw",
    schedule="cosine",
    label_smoothing=0.1,
    mixup=0.3,
    cutmix=1.0,
    randaugment=1,
    ema=0.8,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    fix_threads()


@pytest.fixture(scope="module")
def company() -> engine.Sink:
    return engine.trained(("vanilla", "kd", "fitnet"), TODAY)


# --- promises ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["vanilla", "kd", "fitnet"])
def test_alone_or_in_company(company: engine.Sink, row: str) -> None:
    assert_same(engine.trained((row,), TODAY).states[f"resnet8-{row}", 3], company.states[f"resnet8-{row}", 3])


def test_continued_from_a_checkpoint(company: engine.Sink, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", company.states["resnet8-kd", 1])
    fresh = engine.member("kd", engine.task(recipe=TODAY), engine.teacher(), recipe=TODAY).state()
    resumed = engine.trained(("kd",), TODAY, after={"resnet8-kd": checkpoint.load(tmp_path / "c.pt", fresh)})
    assert_same(resumed.states["resnet8-kd", 3], company.states["resnet8-kd", 3])


@pytest.mark.parametrize("field", ["optimizer", "label_smoothing", "mixup", "cutmix", "randaugment", "ema"])
def test_every_field_changes_what_is_measured(field: str) -> None:
    plain = replace(engine.RECIPE, epochs=1)
    changed = replace(plain, **{field: getattr(TODAY, field)})
    one, other = (engine.trained(("vanilla",), recipe).states["resnet8-vanilla", 1] for recipe in (plain, changed))
    weights = "average" if field == "ema" else "student"
    assert not torch.equal(other[weights]["fc.weight"], one["student"]["fc.weight"])  # type: ignore[index]
    if field == "ema":
        assert_same(other["student"], one["student"])


# --- AdamW -------------------------------------------------------------------------------------------------------


def member_of(recipe: Recipe, row: str = "vanilla") -> Member:
    task = engine.task(engine.image_set(train=16, test=8), recipe)
    return engine.member(row, task, None, recipe=recipe)


def test_steps_are_those_of_adamw() -> None:
    """m and v are means of the gradient and its square, and the weights decay apart from them."""
    recipe = Recipe(1, 16, 0.01, (), optimizer="adamw", weight_decay=0.1)
    member = member_of(recipe)
    member.begin_epoch()
    (batch,) = member.task.batches("main", 1)
    weight = member.student.fc.weight
    expected, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 4):
        member.step(batch, None)
        gradient = weight.grad
        assert gradient is not None
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = expected * (1 - 0.01 * 0.1)
        expected = expected - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strange", ["sgd", "no step", "no moment", "shape", "empty", "betas"])
def test_a_state_of_another_optimiser_is_refused(strange: str) -> None:
    recipe = replace(engine.RECIPE, optimizer="adamw")
    member, other = member_of(recipe), member_of(engine.RECIPE)
    for one in (member, other):
        one.begin_epoch()
        (batch,) = one.task.batches("main", 1)
        one.step(batch, None)
    state = copy.deepcopy(member.optimizer.state_dict())
    load_optimizer(member_of(recipe).optimizer, copy.deepcopy(state), moved=True)
    if strange == "sgd":
        state["state"] = other.optimizer.state_dict()["state"]
    elif strange == "no step":
        state["state"][0]["step"] = torch.tensor(-1.0)
    elif strange == "no moment":
        del state["state"][0]["exp_avg"]
    elif strange == "shape":
        state["state"][0]["exp_avg_sq"] = torch.zeros(1)
    elif strange == "betas":
        state["param_groups"][0]["betas"] = (0.5, 0.999)
    else:
        state["state"] = {}
    with pytest.raises(ValueError, match="its optimiser"):
        load_optimizer(member_of(recipe).optimizer, state, moved=True)


def test_a_state_of_a_gpu_is_continued_on_a_cpu() -> None:
    member = member_of(replace(engine.RECIPE, optimizer="adamw"))
    state = member.optimizer.state_dict()
    state["param_groups"][0]["capturable"] = True
    load_optimizer(member.optimizer, state, moved=False)
    assert member.optimizer.param_groups[0]["capturable"] is False


# --- labels ------------------------------------------------------------------------------------------------------


def test_smoothed_and_mixed_labels() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, logs = torch.tensor([0, 3, 1]), logits.log_softmax(dim=1)
    batch = engine.Batch(torch.zeros(3, 3, 2, 2), labels, labels, 1)
    smoothed = labels_term(0.2).loss(Outputs(logits), None, batch, None)
    target = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    assert float(smoothed) == pytest.approx(float(-(target * logs).sum() / 3))
    shares = torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 0.4, 0.6], [0, 1, 0, 0]])
    mixed = engine.Batch(batch.images, shares, labels, 1)
    found = labels_term(0.2).loss(Outputs(logits), None, mixed, None)
    assert float(found) == pytest.approx(float(-((0.8 * shares + 0.2 / 4) * logs).sum() / 3))
    assert float(labels_term().loss(Outputs(logits), None, batch, None)) == pytest.approx(
        float(F.cross_entropy(logits, labels))
    )


def test_smoothing_reaches_the_loss_of_a_member() -> None:
    recipe = replace(engine.RECIPE, label_smoothing=0.3)
    member = member_of(recipe)
    (batch,) = member.task.batches("main", 1)
    logits = copy.deepcopy(member.student)(batch.images).logits.detach()
    member.begin_epoch()
    expected = float(F.cross_entropy(logits, batch.labels, label_smoothing=0.3))
    assert engine.stepped(member, batch, None) == pytest.approx(expected, rel=1e-5)


def test_methods_that_need_one_label_or_one_image_say_so() -> None:
    refusing = {name for name in METHODS if get(name).unmixed}
    assert refusing == {"crd", "dkd", "rld", "sdd", "sdd+dkd", "nd"}
    recipe = replace(engine.RECIPE, cutmix=1.0)
    for name, params in (("ikl", {"class_prior": True}), ("gkl", {"class_prior": True}), ("ctkd", {"base": "dkd"})):
        kind = get(name)
        assert kind.unfit(recipe, Objective.of(kind.hyper, {}, params))
        assert kind.unfit(recipe, Objective.of(kind.hyper, {}, {})) is None
        assert kind.unfit(engine.RECIPE, Objective.of(kind.hyper, {}, params)) is None
    cd = get("cd")
    assert cd.unfit(recipe, Objective.of(cd.hyper, {"cd": 6.0, "gkd": 0.1}, {}))
    assert cd.unfit(recipe, Objective.of(cd.hyper, {"cd": 6.0}, {})) is None


#: Rows whose own terms read labels, and take mixed ones; and those whose sweeps and batch counts see the batch.
READING = ["dih: dih", "dih: tofd-teacher", "dih: tofd", "dih: mhkd", "dih: dml", "dih: heads", "zoo: nkd", "zoo: wsld"]
READING += ["zoo: ikl", "zoo: ctkd", "cd: cd", "mgd: mgd"]


@pytest.mark.parametrize("row", READING)
def test_a_step_on_mixed_images(row: str) -> None:
    run = rows()[row]
    recipe = replace(run.recipe, mixup=0.4)
    assert run.method.unfit(recipe, run.objective) is None
    made = built(replace(run, recipe=recipe), engine.CPU)
    made.sweep()
    made.member.begin_epoch()
    batch = next(made.batches("main", 1))
    assert batch.labels.shape == (BATCH, 10)
    made.member.step(batch, made.outputs(made.stage_teacher(), batch))
    trained = made.member.learner.end_epoch()
    assert trained.loss > 0
    assert 0 <= trained.metrics["train-top1"] <= 1


# --- moving averages ---------------------------------------------------------------------------------------------


def test_an_average_of_weights_and_statistics() -> None:
    student = torch.nn.BatchNorm2d(2)
    average = Average(student, replace(engine.RECIPE, ema=0.75))
    average.begin_epoch(1)
    values, expected = [1.0, 3.0, -2.0], 1.0
    for count, value in enumerate(values, start=1):
        with torch.no_grad():
            student.weight.fill_(value)
            student.running_mean.fill_(10 * value)  # type: ignore[union-attr]
            student.num_batches_tracked.fill_(count)  # type: ignore[union-attr]
        average.update(student)
        expected = value if count == 1 else 0.75 * expected + 0.25 * value
        assert average.network.weight.tolist() == pytest.approx([expected] * 2)
        assert average.network.running_mean.tolist() == pytest.approx([10 * expected] * 2)
        assert int(average.network.num_batches_tracked) == count
    assert not average.network.training
    assert not average.network.weight.requires_grad


def test_an_average_begins_after_the_warm_up() -> None:
    student = torch.nn.Linear(1, 1, bias=False)
    average, found = Average(student, replace(engine.RECIPE, ema=0.5, warmup_epochs=1)), []
    for epoch in (1, 2, 3):
        average.begin_epoch(epoch)
        for _ in range(2):
            with torch.no_grad():
                student.weight.add_(1.0)
            average.update(student)
            found.append((student.weight - average.network.weight).item())
    # Copies in epoch 1 and at the first step of epoch 2; then the gap g becomes (g + 1) / 2.
    assert found == pytest.approx([0, 0, 0, 0.5, 0.75, 0.875])


def test_the_average_is_measured(company: engine.Sink) -> None:
    state = company.states["resnet8-vanilla", 3]
    member = engine.member("vanilla", engine.task(recipe=TODAY), None, recipe=TODAY)
    member.load_state(copy.deepcopy(state))
    assert member.done
    found = member.task.evaluate(member.learner.measured)
    assert found.items() <= member.history[-1].metrics.items()
    assert member.learner.measured is not member.student
    assert not torch.equal(state["average"]["bn1.running_mean"], state["student"]["bn1.running_mean"])  # type: ignore[index]


def test_what_measures_more_than_the_student_is_refused() -> None:
    assert {name for name in METHODS if get(name).unaveraged} == {"simkd"}
    recipe, heads = replace(engine.RECIPE, ema=0.9), get("heads")
    assert heads.unfit(recipe, Objective.of(heads.hyper, {"heads": 1.0}, {"kept": "test-batch"}))
    assert heads.unfit(recipe, Objective.of(heads.hyper, {"heads": 1.0}, {"kept": "last"})) is None


def test_early_stages_have_a_constant_rate_and_no_average() -> None:
    recipe = replace(TODAY, mixup=0.0, cutmix=0.0, randaugment=0, warmup_epochs=1)
    member = engine.member("fitnet-2stage", engine.task(recipe=recipe), engine.teacher(), recipe=recipe)
    first, last = member.stages[0].recipe, member.stages[-1].recipe
    assert {first.lr_at(epoch) for epoch in range(1, first.epochs + 1)} == {0.01}
    assert (first.ema, last.ema) == (0.0, 0.8)
