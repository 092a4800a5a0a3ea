"""CRD beyond its formula: draws, banks, normalisers, state."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtable.data import Batch
from kdtable.methods.base import Setting
from kdtable.methods.crd import CRD
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.1, milestones=())
PARAMS: dict[str, Any] = {"dim": 8, "negatives": 10, "tau": 0.07, "bank_momentum": 0.5, "mode": "exact"}
LABELS = torch.arange(40) % 4
BANKS = ("memory_student", "memory_teacher")


def outputs(rows: int, width: int, seed: int) -> Outputs:
    draw = torch.Generator().manual_seed(seed)
    return Outputs(torch.zeros(rows, 4), embedding=torch.randn(rows, width, generator=draw))


def crd(seed: int = 1, **params: Any) -> CRD:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    terms = {"ce": 1.0, "crd": 0.8}
    shapes = (outputs(1, 6, 0), outputs(1, 5, 0))
    return CRD(Setting(RECIPE, aim(CRD, terms, PARAMS | params), LABELS, 4, *shapes, generator))


def batch(index: Tensor) -> Batch:
    return Batch(torch.zeros(len(index), 3, 4, 4), LABELS[index], index, 1)


def step(method: CRD, seed: int, index: Tensor | None = None) -> Tensor:
    rows = torch.arange(seed % 5, 40, 5) if index is None else index
    student, teacher = outputs(len(rows), 6, seed), outputs(len(rows), 5, seed + 1000)
    return method.distillation(student, teacher, batch(rows))


def watch_contrast(method: CRD, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    contrast = method.contrast
    monkeypatch.setattr(method, "contrast", lambda *args: seen.append(args[3]) or contrast(*args))  # type: ignore[func-returns-value]
    return seen


def test_exact_mode_has_the_sample_as_its_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    method = crd()
    seen = watch_contrast(method, monkeypatch)
    index = torch.tensor([3, 17, 20])
    step(method, 0, index)
    assert torch.equal(seen[0][:, 0], index)
    assert seen[0].shape == (3, 11)
    assert (LABELS[seen[0][:, 1:]] != LABELS[index].unsqueeze(1)).all()


def test_relax_mode_has_a_sample_of_the_class_as_its_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    method = crd(mode="relax")
    seen = watch_contrast(method, monkeypatch)
    index = torch.arange(40)
    for i in range(5):
        step(method, i, index)
    positives = torch.stack([contrast[:, 0] for contrast in seen])
    assert (LABELS[positives] == LABELS).all()
    assert (positives != index).any()
    assert (positives[0] != positives[1]).any()
    assert all((LABELS[contrast[:, 1:]] != LABELS.unsqueeze(1)).all() for contrast in seen)


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_banks_change_at_the_rows_of_the_batch_only(mode: str) -> None:
    method = crd(mode=mode)
    before = {name: getattr(method, name).clone() for name in BANKS}
    index = torch.tensor([0, 9, 33])
    step(method, 0, index)
    for name in BANKS:
        changed = (getattr(method, name) != before[name]).any(dim=1).nonzero().squeeze(1)
        assert torch.equal(changed, index), name
        lengths = getattr(method, name)[index].norm(dim=1)
        assert torch.allclose(lengths, torch.ones(3))


def test_bank_update_by_hand() -> None:
    method = crd(bank_momentum=0.25)
    index = torch.tensor([5, 6])
    student, teacher = outputs(2, 6, 0), outputs(2, 5, 1000)
    expected = []
    for bank, embed, side in zip(BANKS, (method.embed_s, method.embed_t), (student, teacher), strict=True):
        row = 0.25 * getattr(method, bank)[index] + 0.75 * embed(side.embedding)
        expected.append((row / row.norm(dim=1, keepdim=True)).detach())
    method.distillation(student, teacher, batch(index))
    for bank, rows in zip(BANKS, expected, strict=True):
        assert torch.allclose(getattr(method, bank)[index], rows)


def test_banks_start_with_rows_of_expected_length_one() -> None:
    method = crd(dim=128)
    for name in BANKS:
        bank = getattr(method, name)
        assert bank.shape == (40, 128)
        assert bank.abs().max() <= (3 / 128) ** 0.5
        assert abs(bank.square().sum(dim=1).mean() - 1) < 0.1
    assert not torch.equal(*(getattr(method, name) for name in BANKS))


def test_normalisers_are_fixed_by_the_first_batch() -> None:
    method = crd()
    assert method.z_student.isnan()
    assert method.z_teacher.isnan()
    step(method, 0)
    first = (method.z_student.clone(), method.z_teacher.clone())
    assert all(z.isfinite() and z > 0 for z in first)
    assert first[0] != first[1]
    for i in range(1, 4):
        step(method, i)
    assert torch.equal(method.z_student, first[0])
    assert torch.equal(method.z_teacher, first[1])


def test_a_restored_state_continues_with_the_same_draws() -> None:
    method = crd()
    for i in range(3):
        step(method, i)
    state = copy.deepcopy(method.state_dict())
    expected = [step(method, i) for i in range(3, 6)]
    restored = crd(seed=9)
    restored.load_state_dict(state)
    assert [step(restored, i).item() for i in range(3, 6)] == [loss.item() for loss in expected]
    for name in BANKS:
        assert torch.equal(getattr(restored, name), getattr(method, name))


def test_other_seeds_draw_other_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for seed in (1, 2):
        method = crd(seed=seed)
        seen = watch_contrast(method, monkeypatch)
        step(method, 0)
        drawn.append(seen[0])
    assert not torch.equal(*drawn)


def test_halves_of_the_loss_train_their_own_side() -> None:
    method = crd()
    index = torch.arange(8)
    student = torch.randn(8, 6, requires_grad=True)
    teacher = torch.randn(8, 5)
    contrast = torch.cat([index.unsqueeze(1), method.negatives.draw(index)], dim=1)
    method.contrast(student, teacher, index, contrast).backward()
    assert student.grad is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    # The teacher's own features leave the student's gradient alone, but for the banks of later steps.
    again = crd()
    twin = student.detach().clone().requires_grad_()
    again.contrast(twin, torch.randn(8, 5), index, contrast).backward()
    assert torch.equal(twin.grad, student.grad)  # type: ignore[arg-type]


def test_the_loss_stays_finite() -> None:
    method = crd()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for i in range(50):
        optimizer.zero_grad()
        loss = step(method, i)
        loss.backward()
        optimizer.step()
        assert loss.dtype == torch.float32
        assert loss.isfinite(), f"step {i}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "exactly"}, "mode is one of exact, relax"),
        ({"dim": 0}, "dim must be positive"),
        ({"negatives": 0}, "negatives must be positive"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": -0.07}, "tau must be positive"),
        ({"tau": float("nan")}, "tau"),
        ({"bank_momentum": 1.0}, "bank_momentum must"),
        ({"bank_momentum": -0.1}, "bank_momentum must"),
        ({"bank_momentum": float("nan")}, "bank_momentum must"),
        ({"kd_temperature": 0.0}, "kd_temperature must be positive"),
        ({"kd_temperature": float("nan")}, "kd_temperature"),
    ],
)
def test_parameters_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aim(CRD, {}, PARAMS | changes)


@pytest.mark.parametrize("changes", [{}, {"mode": "relax"}, {"bank_momentum": 0.0}, {"kd_temperature": 4.0}])
def test_parameters_that_can_be_used(changes: dict[str, Any]) -> None:
    aim(CRD, {}, PARAMS | changes)


def test_networks_without_embeddings_are_refused() -> None:
    plain = Outputs(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="embeddings"):
        CRD(Setting(RECIPE, aim(CRD, {"crd": 1.0}, PARAMS), LABELS, 4, plain, plain))
    with pytest.raises(ValueError, match="needs a teacher"):
        CRD(Setting(RECIPE, aim(CRD, {"crd": 1.0}, PARAMS), LABELS, 4, outputs(1, 6, 0), None))
