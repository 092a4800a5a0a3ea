"""Several teachers in one pass: what a cohort's students see, alone or in company, killed and continued."""

from dataclasses import replace

import pytest
import torch

from kdtable.data.stream import Batch
from kdtable.models.ensemble import Ensemble
from kdtable.models.network import Network
from kdtable.models.outputs import EVERYTHING
from kdtable.numerics.layout import to_device
from kdtable.tasks.closing import ClosingMeasures
from kdtable.training.build import build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.training.test_promises import assert_same

ROWS = ("vanilla", "kd", "dkd")
INPUTS = {"resnet8": ((0.5,) * 3, (0.25,) * 3), "resnet14": ((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))}


def network(name: str) -> Network:
    """Trained elsewhere: with inputs and statistics of its own."""
    torch.manual_seed(len(name))
    built = build_teacher(name, 4, *INPUTS[name])
    for norm in (module for module in built.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return to_device(built, engine.CPU)


def ensemble() -> Ensemble:
    return Ensemble(map(network, INPUTS)).eval()


def images() -> torch.Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_each_network_normalises_its_own_input() -> None:
    outputs = ensemble()(images())
    expected = [network(name)(images()).logits for name in INPUTS]
    for found, own in zip(outputs.each, expected, strict=True):
        assert torch.equal(found, own)
    mean = torch.stack([own.softmax(dim=1) for own in expected]).mean(dim=0)
    torch.testing.assert_close(outputs.logits.softmax(dim=1), mean)
    assert (outputs.stem, outputs.stages, outputs.embedding, outputs.last) == (None, (), None, None)


def test_the_frozen_pass_is_that_of_the_networks() -> None:
    """With folded batch norms, and in any micro-batch of it."""
    task, own = engine.task(), ensemble()
    labels = torch.zeros(6, dtype=torch.int64)
    batch = Batch(images(), labels, labels, 1)
    found, plain = FrozenTeacher(own, task).outputs(batch, EVERYTHING), own(images())
    torch.testing.assert_close(found.logits, plain.logits, rtol=1e-4, atol=1e-5)
    (_, first), (_, second) = task.divide(batch, found, 2)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(torch.cat([first.logits_at(4.0), second.logits_at(4.0)]), found.logits_at(4.0))


def test_train_mode_is_each_networks_own() -> None:
    """No row of several teachers asks for it, but the pass has it."""
    teacher = FrozenTeacher(ensemble(), engine.task()).in_train_mode()
    assert all(module.training for module in teacher.network.modules())


def trained(*rows: str, start: dict[str, object] | None = None) -> engine.Sink:
    task, own, sink = engine.task(), ensemble(), engine.Sink()
    members = [engine.member(row, task, None if row == "vanilla" else own) for row in rows]
    if start is not None:
        members[0].load_state(start)
    Cohort(task, FrozenTeacher(own, task), members, sink).train()
    assert not sink.failures
    return sink


@pytest.fixture(scope="module")
def company() -> engine.Sink:
    return trained(*ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_alone_or_in_company_to_the_bit(company: engine.Sink, row: str) -> None:
    last = (f"resnet8-{row}", engine.RECIPE.epochs)
    assert_same(trained(row).states[last], company.states[last])


def test_continued_to_the_same_bits(company: engine.Sink) -> None:
    sink = trained("kd", start=company.states["resnet8-kd", 1])
    assert_same(sink.states["resnet8-kd", 3], company.states["resnet8-kd", 3])


def test_agreement_is_with_the_mean_probabilities() -> None:
    """The teachers' mean is largest at the class that the student chooses."""
    each = [torch.tensor([[0.9, 0.0, 1.0]]).mul(4), torch.tensor([[0.0, 0.9, 1.0]]).mul(4)]
    student = torch.tensor([[0.0, 0.0, 3.0]])
    labels = torch.tensor([0])
    batch = Batch(torch.zeros(1, 3, 2, 2), labels, labels, 0)
    meter = ClosingMeasures(3, torch.float64, with_teacher=True)
    outputs = replace(ensemble()(images()[:1]), logits=torch.stack([z.softmax(1) for z in each]).mean(0).log())
    meter.update(replace(outputs, logits=student, each=()), outputs, batch)
    found = meter.result()
    p, q = outputs.logits.exp().double(), student.double().softmax(1)
    assert found["agreement"] == 1
    assert found["teacher-kl"] == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-6)
