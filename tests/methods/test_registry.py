"""The registry of methods, their formulas' properties, and how terms become a step."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdtable import methods
from kdtable.data import Batch
from kdtable.errors import BadRequest
from kdtable.methods.at import AT, attention_loss
from kdtable.methods.base import Setting, Stage, Term
from kdtable.methods.catalogue import ABOUT, KINDS, ON_DETECTORS, WITHOUT_LABELS, grouped
from kdtable.methods.crd import CRD
from kdtable.methods.kd import KD
from kdtable.methods.objective import Objective
from kdtable.methods.soft_targets import kd_loss
from kdtable.methods.vanilla import Vanilla
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.member import Member
from kdtable.training.step import weighted_sum
from tests import engine

RECIPE = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vanilla", Vanilla), ("kd", KD), ("at", AT), ("crd", CRD), ("at+kd", AT), ("crd+kd", CRD)],
)
def test_names(name: str, expected: type) -> None:
    assert methods.get(name) is expected


@pytest.mark.parametrize("name", ["vanilla+kd", "kd+kd", "att", "", "+kd", "kd+at", "crd+kd+kd", "KD"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(BadRequest, match="unknown method"):
        methods.get(name)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"did you mean .*\bcrd\b"):
        methods.get("crdd")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("at+ls", "at has no soft targets whose logits could be standardised; write at\\+kd\\+ls"),
        ("vanilla+ls", "vanilla has no soft targets whose logits could be standardised; write vanilla"),
        ("cd+gkd+ls", "standardised; write cd\\+gkd"),
        ("ikl+ls", "ikl has no soft targets whose logits could be standardised"),
        ("dkd+kd", "dkd has soft targets of its own"),
        ("dkd+kd+ls", "dkd has soft targets of its own"),
        ("kd+ls+ls", "unknown method"),
        ("ls", "unknown method"),
        ("masked-mgd", r"mgd is Matching Guided Distillation \(ECCV 2020\) here"),
        ("Masked Generative", r"Masked Generative Distillation \(ECCV 2022\), .* is not here"),
        ("KD++", r"write nd\+kd"),
    ],
)
def test_names_that_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        methods.get(name)


@pytest.mark.parametrize("name", ["kd+ls", "takd+ls", "at+kd+ls", "dkd+ls", "ctkd+ls", "dist+ls", "wttm+ls"])
def test_names_with_standardised_logits(name: str) -> None:
    assert methods.get(name) is methods.get(name.removesuffix("+ls"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("kdtable.methods.kd", "kd_loss"),
        ("kdtable.methods.at", "attention_loss"),
        ("kdtable.methods", "Method"),
        ("kdtable.methods", "Setting"),
        ("kdtable.methods", "get"),
    ],
)
def test_names_that_are_relied_on_from_outside(module: str, name: str) -> None:
    assert callable(getattr(import_module(module), name))


def test_names_of_a_module_that_do_not_exist() -> None:
    with pytest.raises(AttributeError):
        methods.Nothing  # noqa: B018


def test_every_registered_method_is_a_method() -> None:
    for name in methods.METHODS:
        method = methods.get(name)
        assert issubclass(method, methods.Method)
        assert method.__doc__


def test_every_method_is_in_the_catalogue() -> None:
    assert ABOUT.keys() == methods.METHODS.keys()
    assert ON_DETECTORS.keys() == methods.ON_TASKS["detection"].keys()
    assert WITHOUT_LABELS.keys() == methods.ON_TASKS["self-supervised"].keys()
    assert sorted(name for found in grouped().values() for name, _ in found) == sorted(ABOUT)
    years = {kind: [about.year for _, about in found] for kind, found in grouped().items()}
    assert list(years) == list(KINDS)
    assert all(found == sorted(found) for found in years.values())


@pytest.mark.parametrize("name", ABOUT)
def test_the_catalogue_says_what_a_method_needs(name: str) -> None:
    kind, about = methods.get(name), ABOUT[name]
    reads = kind.student_features | kind.teacher_features | kind.early_teacher_features
    if about.kind == "logits" and not name.startswith("sdd"):
        assert reads == frozenset()
    if about.kind == "embeddings":
        assert "embedding" in reads
    if about.kind == "feature maps":
        assert reads & {"stem", "stages", "preacts", "last"}
    if "the whole batch" in about.needs:
        assert kind.relates_samples
    if "an undivided batch" in about.needs:
        assert kind.keeps_gradients_apart
    if "both classifiers" in about.needs:
        assert reads == {"last"}


# --- kd ---------------------------------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_gradient_of_kd(temperature: float) -> None:
    s, t = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, t, temperature), s)


def test_kd_by_hand() -> None:
    s, t = draw(2, 3), draw(2, 3, seed=1)
    p, q = ((x / 4).softmax(dim=1) for x in (t, s))
    expected = 16 / 2 * (p * (p.log() - q.log())).sum()
    assert torch.allclose(kd_loss(s, t, 4.0), expected, rtol=1e-12)


@given(st.integers(0, 99), st.floats(0.25, 20), st.floats(-1e3, 1e3))
def test_kd_of_equal_distributions_is_zero(seed: int, temperature: float, shift: float) -> None:
    t = draw(4, 6, seed=seed, scale=5)
    assert abs(kd_loss(t + shift, t, temperature).item()) < 1e-9 * temperature**2


LOGITS = st.lists(st.sampled_from((-1e4, -1.0, 0.0, 3.0, 1e4)), min_size=3, max_size=3)


@given(LOGITS, LOGITS, st.sampled_from((0.5, 1.0, 4.0)))
def test_kd_of_large_logits_is_finite(s: list[float], t: list[float], temperature: float) -> None:
    student = torch.tensor([s], requires_grad=True)
    loss = kd_loss(student, torch.tensor([t]), temperature)
    loss.backward()
    assert loss.isfinite()
    assert loss >= -1e-4
    assert student.grad is not None
    assert student.grad.isfinite().all()


# --- at ---------------------------------------------------------------------------------------------------------


def maps(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [draw(*shape, seed=seed + i) for i, shape in enumerate(shapes)]


SHAPES = ((2, 3, 4, 4), (2, 5, 2, 2))


def test_gradient_of_attention() -> None:
    s, t = maps(0, *SHAPES), maps(9, (2, 6, 4, 4), (2, 1, 2, 2))
    assert torch.autograd.gradcheck(lambda *x: attention_loss(x, t), [x.requires_grad_() for x in s])


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_attention_does_not_see_the_scale(a: float, b: float) -> None:
    s, t = maps(0, *SHAPES), maps(9, *SHAPES)
    scaled = attention_loss([a * x for x in s], [-b * x for x in t])
    assert torch.allclose(scaled, attention_loss(s, t), rtol=1e-9)


def test_attention_of_equal_maps_is_zero() -> None:
    s = maps(0, *SHAPES)
    assert attention_loss(s, s) == 0
    # Channels are averaged: their order and number do not matter.
    assert attention_loss(s, [torch.cat([x, x.flip(1)], dim=1) for x in s]) < 1e-20


def test_attention_is_the_sum_over_taps() -> None:
    s, t = maps(0, *SHAPES), maps(9, *SHAPES)
    parts = sum(attention_loss([a], [b]) for a, b in zip(s, t, strict=True))
    assert torch.allclose(attention_loss(s, t), torch.as_tensor(parts), rtol=1e-12)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_attention_pools_the_larger_map(larger: str) -> None:
    (big,), (small,) = maps(0, (2, 3, 8, 8)), maps(9, (2, 3, 4, 4))
    pooled = nn.functional.avg_pool2d(big, 2)
    pairs = ((big, small), (pooled, small)) if larger == "student" else ((small, big), (small, pooled))
    assert torch.allclose(*(attention_loss([s], [t]) for s, t in pairs))


@pytest.mark.parametrize("counts", [(1, 2), (2, 1)])
def test_attention_of_different_numbers_of_taps_is_refused(counts: tuple[int, int]) -> None:
    s, t = (maps(0, *SHAPES)[:n] for n in counts)
    with pytest.raises(ValueError, match="zip"):
        attention_loss(s, t)


# --- terms and steps --------------------------------------------------------------------------------------------


def stage(**weights: float) -> Stage:
    return Stage("main", RECIPE, tuple(Term(name, weight) for name, weight in weights.items()))


def test_terms_are_weighted_and_added() -> None:
    losses = [torch.tensor(x, dtype=torch.float64) for x in (2.0, 3.0, 5.0)]
    assert weighted_sum(losses, stage(ce=0.1, kd=0.9, at=1000.0)).item() == 0.1 * 2 + 0.9 * 3 + 1000 * 5


def test_a_term_of_weight_zero_is_multiplied() -> None:
    assert weighted_sum([torch.tensor(1.0), torch.tensor(float("nan"))], stage(ce=1.0, kd=0.0)).isnan()


def built(kind: type[methods.Method], **terms: float) -> methods.Method:
    shapes = Outputs(torch.zeros(1, 3), embedding=torch.zeros(1, 2))
    return kind(Setting(RECIPE, Objective(terms), torch.arange(6) % 3, 3, shapes, shapes))


def batch(count: int = 4) -> Batch:
    return Batch(torch.zeros(count, 3, 4, 4), torch.arange(count) % 3, torch.arange(count), 1)


def test_the_stages_of_an_ordinary_method() -> None:
    (main,) = built(KD, ce=0.1, kd=0.9).stages()
    assert (main.name, main.recipe) == ("main", RECIPE)
    assert main.terms == (Term("ce", 0.1), Term("kd", 0.9))


def test_a_term_that_needs_a_teacher_says_so() -> None:
    with pytest.raises(ValueError, match="teacher"):
        built(KD, kd=1.0).loss("kd", Outputs(torch.zeros(4, 3)), None, batch())


def test_cross_entropy_needs_no_teacher() -> None:
    logits = torch.randn(4, 3)
    loss = built(Vanilla, ce=1.0).loss("ce", Outputs(logits), None, batch())
    assert torch.equal(loss, nn.functional.cross_entropy(logits, batch().labels))


class WithSpare(Vanilla):
    """Vanilla with a helper that no term reaches."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.spare = nn.Linear(3, 3)


def test_a_parameter_that_no_term_reaches_stays_put() -> None:
    task = engine.task()
    plain = engine.member("vanilla", task, None)
    setting = plain.method.setting
    member = Member("spare", plain.student, WithSpare(setting), task)
    spare = member.method.spare
    before = [p.detach().clone() for p in spare.parameters()]
    weight = next(member.student.parameters()).detach().clone()
    member.begin_epoch()
    for b in task.batches("main", 1):
        member.step(b, None)
    assert all(p.grad is None for p in spare.parameters())
    assert all(torch.equal(p, old) for p, old in zip(spare.parameters(), before, strict=True))
    assert member.optimizer.param_groups[0]["weight_decay"] > 0
    assert not torch.equal(next(member.student.parameters()), weight)


def test_a_student_whose_own_term_has_weight_zero_learns_as_without_it() -> None:
    """Multiplied by zero, a finite term adds nothing to a gradient."""
    task, teacher = engine.task(), engine.teacher()
    results = []
    for row, terms in (("vanilla", {"ce": 1.0}), ("at", {"ce": 1.0, "at": 0.0})):
        member = engine.member(row, task, teacher)
        setting = replace(member.method.setting, objective=replace(member.method.setting.objective, terms=terms))
        member = Member(row, member.student, type(member.method)(setting), task)
        member.begin_epoch()
        for b in task.batches("main", 1):
            with torch.no_grad():
                teacher_outputs = teacher(b.images)
            member.step(b, teacher_outputs)
        results.append([p.detach() for p in member.student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
