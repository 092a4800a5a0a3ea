"""DML: its peers, and who learns from whom."""

import copy
from typing import Any

import pytest
import torch

from kdtable.errors import BadRequest
from kdtable.methods.base import Setting
from kdtable.methods.dml import DML, dml_loss
from kdtable.models.outputs import Outputs
from kdtable.training.member import Member
from tests import engine
from tests.asking import aim
from tests.dih_rows import ROWS
from tests.training.test_promises import assert_same


def member(student: str = "resnet8", **params: Any) -> Member:
    task = engine.task()
    network = engine.to_device(engine.build_student(student, task.images.spec, task.seed), engine.CPU)
    return Member("dml", network, engine.method("dml", task, network, None, **params), task)


def test_the_peer_is_the_students_network_with_another_start() -> None:
    trained = member()
    (peer,) = trained.method.peers
    ours, theirs = trained.student.state_dict(), peer.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert not torch.equal(ours["conv1.weight"], theirs["conv1.weight"])
    assert_same(dict(ours), dict(engine.member("vanilla", engine.task(), None).student.state_dict()))
    assert torch.equal(peer.input_mean, trained.student.input_mean)
    assert torch.equal(peer.input_std, trained.student.input_std)


def test_peers_differ_from_each_other() -> None:
    peers = member(peers=2, peer="wrn-16-1").method.peers
    assert [peer.name for peer in peers] == ["wrn_16_1"] * 2
    assert not torch.equal(peers[0].conv1.weight, peers[1].conv1.weight)


def test_a_step_is_that_of_each_network_on_its_own_loss() -> None:
    trained = member()
    batch = next(trained.task.batches("main", 1))
    (peer,) = trained.method.peers
    twins = [copy.deepcopy(network).train() for network in (trained.student, peer)]
    logits = [twin(batch.images, frozenset()).logits for twin in twins]
    for own, other in (logits, logits[::-1]):
        dml_loss(own, [other.detach()], batch.labels, 0.1, 1.0).backward()
    trained.begin_epoch()
    trained.step(batch, None)
    for network, twin in zip((trained.student, peer), twins, strict=True):
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
        assert int(network.bn1.num_batches_tracked) == 1


def test_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    s, *peers = (torch.randn(4, 5, dtype=torch.float64, generator=draw) for _ in range(3))
    labels = torch.tensor([0, 3, 1, 1])
    assert torch.autograd.gradcheck(lambda x: dml_loss(x, peers, labels, 0.3, 2.0), s.requires_grad_())


def test_shapes_alone_are_not_enough() -> None:
    shapes = Outputs(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="there is none"):
        DML(Setting(engine.RECIPE, aim(DML, {"dml": 1.0}), torch.zeros(4), 5, shapes))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"alpha": 1.5}, "alpha lies in"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"peers": 0}, "peers must be positive"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(DML, {}, {**ROWS["dml"].params, **change})


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(BadRequest, match="unknown network 'resnet9'"):
        aim(DML, {}, {**ROWS["dml"].params, "peer": "resnet9"})


def test_peers_run_in_the_runs_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, as the student does, and with float32 outputs."""
    from kdtable.models.network import Network

    task = engine.task(precision="bf16")
    trained = engine.member("dml", task, None)
    kinds: list[torch.dtype] = []
    forward = Network.forward

    def watched(network: Network, *arguments: Any) -> Outputs:
        outputs = forward(network, *arguments)
        kinds.append(outputs.logits.dtype)
        return outputs

    monkeypatch.setattr(Network, "forward", watched)
    trained.begin_epoch()
    trained.step(next(task.batches("main", 1)), None)
    assert kinds == [torch.bfloat16] * 2
