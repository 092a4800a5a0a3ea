"""Precisions and devices by name, and training in each that a CPU has."""

from collections.abc import Iterator

import pytest
import torch

from kdtable.errors import BadRequest
from kdtable.numerics import precision
from kdtable.numerics.layout import fix_threads
from kdtable.training.member import Member
from tests import engine


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    fix_threads()


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _unchanged_modes() -> Iterator[None]:
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_precisions_of_a_cpu(name: str) -> None:
    chosen = precision.choose(name, CPU)
    assert (chosen.name, chosen.device) == (name, CPU)
    assert chosen.scaler().is_enabled() == (name == "fp16")


@pytest.mark.parametrize("name", ["fp64", "", "FP32", "float32"])
def test_unknown_precisions(name: str) -> None:
    with pytest.raises(BadRequest, match="fp32, tf32, bf16, fp16"):
        precision.choose(name, CPU)


def test_tf32_needs_cuda() -> None:
    with pytest.raises(BadRequest, match="CUDA devices only"):
        precision.choose("tf32", CPU)


def test_tf32_is_on_only_where_it_is_asked_for() -> None:
    precision.choose("tf32", torch.device("cuda"))
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    precision.choose("fp32", torch.device("cuda"))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_cpu() -> None:
    assert precision.choose_device("cpu") == CPU


def test_auto_is_a_device_of_this_machine() -> None:
    torch.zeros(1, device=precision.choose_device("auto"))


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "CPU", "cpu0"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(BadRequest, match="unknown device"):
        precision.choose_device(name)


@pytest.mark.parametrize("name", ["cuda:999", "meta", "xpu"])
def test_devices_that_are_not_here(name: str) -> None:
    with pytest.raises(BadRequest, match="not available"):
        precision.choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(BadRequest, match="use --device auto or cpu"):
        precision.choose_device("cuda")


def trained(name: str) -> Member:
    task, teacher = engine.task(precision=name), engine.teacher()
    member = engine.member("crd+kd", task, teacher)
    member.begin_epoch()
    for batch in task.batches("main", 1):
        with torch.no_grad():
            taught = task.forward(teacher, batch, member.stage.teacher_features)
        assert taught.logits.dtype == torch.float32
        assert taught.embedding is not None
        assert taught.embedding.dtype == torch.float32
        member.step(batch, taught)
    engine.end_epoch(member)
    return member


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_an_epoch_in_low_precision(name: str) -> None:
    member = trained(name)
    (record,) = member.history
    assert torch.tensor([record.train_loss, *record.terms.values()]).isfinite().all()
    for module in (member.student, member.method):
        for key, value in module.named_parameters():
            assert value.dtype == torch.float32, key
            assert value.isfinite().all(), key
    for state in member.optimizer.state.values():
        assert state["momentum_buffer"].dtype == torch.float32
    exact = trained("fp32")
    assert record.train_loss == pytest.approx(exact.history[0].train_loss, rel=0.1)
    assert record.train_loss != exact.history[0].train_loss


def test_autocast_is_off_in_fp32() -> None:
    with precision.choose("fp32", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with precision.choose("bf16", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
