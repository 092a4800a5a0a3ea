"""MLKD: both readings against sums written out, what counts, degenerate logits, and what refuses one or two views."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods import METHODS, get
from kdtable.methods.base import Setting
from kdtable.methods.base_terms import CLASSIFIERS
from kdtable.methods.mlkd import LOSSES, counted
from kdtable.methods.objective import Objective, Params
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim
from tests.methods.test_numerics_logits import KINDS, draw, logits

ONE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())
TWO = replace(ONE, views="weak-strong", randaugment=2, randaugment_magnitude=10)
READINGS = tuple(LOSSES)
ALL = (2.0, 3.0, 4.0, 5.0, 6.0)


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[list[float]], q: list[list[float]], i: int, temperature: float) -> float:
    return temperature**2 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p[i], q[i], strict=True))


def columns(x: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*x, strict=True)]


def alike(p: list[list[float]], q: list[list[float]], i: int) -> float:
    """The squared differences of two networks in how alike row i is to every row."""

    def product(x: list[list[float]], k: int) -> float:
        return sum(a * b for a, b in zip(x[i], x[k], strict=True))

    return sum((product(p, k) - product(q, k)) ** 2 for k in range(len(p)))


def written_out(reading: str, weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor]) -> float:
    """The loss by plain loops over images, classes and temperatures."""
    s, t, s2, t2 = (x.tolist() for x in (*weak, *strong))
    batch, classes = len(s), len(s[0])
    plain = [softmax(row, 1.0) for row in t]
    surest, sums = [max(row) for row in plain], [sum(row[j] for row in plain) for j in range(classes)]

    def median(x: list[float]) -> float:
        low, high = sorted(x)[(len(x) - 1) // 2], sorted(x)[len(x) // 2]
        return (low + high) / 2

    of_images = [x <= median(surest) for x in surest]
    of_classes = [x <= median(sums) for x in sums]
    total = 0.0
    for temperature in ALL:
        p, q, p2, q2 = ([softmax(row, temperature) for row in x] for x in (s, t, s2, t2))

        every, each = range(batch), range(classes)
        if reading == "code":
            m, n = sum(of_images) / batch, sum(of_classes) / classes
            kd = sum(kl(p, q, i, temperature) for i in every) / batch
            total += m * kd + m * sum(alike(p, q, i) for i in every) / batch
            total += n * sum(alike(columns(p), columns(q), j) for j in each) / classes
            total += kd if temperature in (2.0, 6.0) else sum(kl(p2, q2, i, temperature) for i in every) / batch
        else:
            total += (
                sum(kl(p, q, i, temperature) + alike(p, q, i) + alike(p2, q2, i) for i in every if of_images[i]) / batch
            )
            total += sum(kl(p2, q2, i, temperature) for i in every) / batch
            total += sum(alike(columns(p), columns(q), j) for j in each if of_classes[j]) / classes
            total += sum(alike(columns(p2), columns(q2), j) for j in each) / classes
    return total


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("batch", "classes"), [(5, 3), (4, 6), (1, 2)])
def test_sums_written_out(reading: str, batch: int, classes: int) -> None:
    s, t, s2, t2 = (draw(batch, classes, seed=seed) for seed in range(4))
    found = LOSSES[reading]((s, t), (s2, t2), ALL)
    assert float(found) == pytest.approx(written_out(reading, (s, t), (s2, t2)), rel=1e-9)


def test_two_images_of_two_classes_by_hand() -> None:
    """At T = 1: teacher [[.8, .2], [.6, .4]], student always [.5, .5]; the second image and the second class count."""
    t = torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64).log()
    s = torch.zeros(2, 2, dtype=torch.float64)
    assert [mask.tolist() for mask in counted(t)] == [[0.0, 1.0], [0.0, 1.0]]
    kl = [0.8 * math.log(1.6) + 0.2 * math.log(0.4), 0.6 * math.log(1.2) + 0.4 * math.log(0.8)]
    # p p' is 1/2 everywhere; q q' = [[.68, .56], [.56, .52]]; p' p is 1/2 everywhere, q' q = [[1, .4], [.4, .2]].
    images = [0.18**2 + 0.06**2, 0.06**2 + 0.02**2]
    classes = [0.5**2 + 0.1**2, 0.1**2 + 0.3**2]
    half = (sum(kl) + sum(images) + sum(classes)) / 4
    assert float(LOSSES["code"]((s, t), (s, t), (1.0,))) == pytest.approx(half + sum(kl) / 2, rel=1e-9)
    selected = (kl[1] + 2 * images[1] + classes[1]) / 2
    expected = selected + sum(kl) / 2 + sum(classes) / 2
    assert float(LOSSES["paper"]((s, t), (s, t), (1.0,))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("reading", READINGS)
def test_gradients(reading: str) -> None:
    s, t, s2, t2 = (draw(4, 3, seed=seed) for seed in range(4))
    assert torch.autograd.gradcheck(
        lambda a, b: LOSSES[reading]((a, t), (b, t2), ALL), (s.requires_grad_(), s2.requires_grad_())
    )


@given(st.sampled_from(READINGS), st.integers(0, 99), st.integers(1, 6), st.integers(2, 8))
def test_the_teachers_own_logits_cost_nothing_and_others_do(reading: str, seed: int, batch: int, classes: int) -> None:
    t, t2, s = (draw(batch, classes, seed=seed + k) for k in (0, 100, 200))
    shift = draw(batch, 1, seed=seed + 300)
    own = t.clone().requires_grad_()
    loss = LOSSES[reading]((own + shift, t), (t2, t2), ALL)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert own.grad is not None
    assert own.grad.abs().max() < 1e-6
    assert LOSSES[reading]((s, t), (t2, t2), ALL) > 0


@given(st.integers(0, 99), st.integers(1, 9), st.integers(2, 9))
def test_half_or_more_count(seed: int, batch: int, classes: int) -> None:
    for mask in counted(draw(batch, classes, seed=seed)):
        assert 2 * mask.sum() >= len(mask)
    assert counted(torch.zeros(batch, classes)).images.all()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("precision", ["float32", "bf16", "inside bf16 autocast"])
@settings(max_examples=40, deadline=None)
@given(
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 4),
    batch=st.sampled_from((1, 2, 5)),
    classes=st.sampled_from((2, 3, 10)),
    seed=st.integers(0, 10),
)
def test_degenerate_logits(
    reading: str, precision: str, kinds: tuple[str, ...], batch: int, classes: int, seed: int
) -> None:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    s, s2, t, t2 = (logits(kind, batch, classes, seed + k).to(dtype).float() for k, kind in enumerate(kinds))
    s.requires_grad_()
    s2.requires_grad_()
    kind, shapes = get("mlkd"), Outputs(torch.zeros(1, classes))
    aimed = aim(kind, {"ce": 0.1, "mlkd": 0.9}, {"reading": reading})
    method = kind(Setting(TWO, aimed, torch.arange(classes), classes, shapes, shapes))
    given_batch = Batch(torch.zeros(batch), torch.arange(batch) % classes, torch.arange(batch), 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "inside bf16 autocast"):
        loss = method.loss("mlkd", Outputs(s, strong=Outputs(s2)), Outputs(t, strong=Outputs(t2)), given_batch)
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_base_terms_of_two_views_are_sums() -> None:
    s, s2, t, t2 = (draw(4, 3, seed=seed) for seed in range(4))
    labels = torch.tensor([0, 2, 1, 1])
    batch = Batch(torch.zeros(4), labels, labels, 1)

    def loss(name: str, student: Outputs, teacher: Outputs) -> float:
        return float(CLASSIFIERS[name].loss(student, teacher, batch, Params()))

    for name in ("ce", "kd"):
        both = loss(name, Outputs(s, strong=Outputs(s2)), Outputs(t, strong=Outputs(t2)))
        apart = loss(name, Outputs(s), Outputs(t)) + loss(name, Outputs(s2), Outputs(t2))
        assert both == pytest.approx(apart, rel=1e-12)


def test_one_view_or_two_is_no_mistake() -> None:
    taking = {name for name in METHODS if not get(name).one_view}
    assert taking == {"vanilla", "kd", "takd", "dot", "mlkd"}
    for name in ("at", "dkd", "mlkd"):
        kind = get(name)
        assert (kind.unfit(TWO, Objective.of(kind.hyper, {}, {})) is None) == (name == "mlkd")
        assert (kind.unfit(ONE, Objective.of(kind.hyper, {}, {})) is None) == (name != "mlkd")


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"temperatures": "4,0"}, "above 0"),
        ({"temperatures": "hot"}, "a number or a list"),
        ({"reading": "text"}, "reading"),
    ],
)
def test_wrong_settings_are_one_sentence(params: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Objective.of(methods.get("mlkd").hyper, {}, params)
