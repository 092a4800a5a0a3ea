"""Damaged and forged teachers: the right weights, or a refusal."""

import argparse
import hashlib
import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtable.errors import BadRequest
from kdtable.teachers.locations import BadTeacher
from kdtable.teachers.manifest import published
from kdtable.teachers.weights import TeacherWeights, load_into, read_weights
from tests.teachers.own_weights import save_weights
from tests.teachers.teacher_site import Small
from tests.tensor_files import Claim, forged, mutations, saved

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in texts that a mutation made

STATE = Small().state_dict()


def files(tmp_path: Path) -> dict[str, tuple[str, bytes]]:
    """A teacher of each kind: its file's name and content."""
    own = tmp_path / "made.safetensors"
    save_weights(own, STATE, network="small")
    arrays = BytesIO()
    np.savez(arrays, **{key: value.numpy() for key, value in STATE.items()})
    benchmark = {"epoch": 240, "model": STATE, "accuracy": torch.tensor([75.0]), "optimizer": {"state": {0: STATE}}}
    module = {f"module.{key}": value for key, value in STATE.items()}
    return {
        "ours": ("resnet14.safetensors", own.read_bytes()),
        "arrays": ("weights.npz", arrays.getvalue()),
        "beside objects": ("last.pth", saved({"opt": argparse.Namespace(lr=0.1), "model": STATE})),
        "the benchmark's": ("ckpt_epoch_240.pth", saved(benchmark)),
        "plain": ("weights.pt", saved(STATE)),
        "old": ("resnet20.th", saved({"state_dict": module, "best_prec1": 91.0}, zipped=False)),
    }


def loaded(path: Path) -> tuple[TeacherWeights, dict[str, torch.Tensor]]:
    network = Small()
    weights = read_weights(path)
    load_into(network, weights, name="small")
    return weights, network.state_dict()


KINDS = ["ours", "arrays", "beside objects", "the benchmark's", "plain", "old"]


def fuzz(kind: str, tmp_path: Path, count: int, seed: int = 0) -> int:
    """How many of so many damaged copies are refused; the others give the same network."""
    name, whole = files(tmp_path)[kind]
    path = tmp_path / name
    refused = 0
    for what, content in mutations(whole, count, seed):
        path.write_bytes(content)
        try:
            weights, tensors = loaded(path)
        except BadTeacher as error:
            refused += 1
            if len(str(error)) > 800 or not str(error).isprintable():
                pytest.fail(f"{what}: {error}")
            continue
        same = all(torch.equal(tensors[key], value) for key, value in STATE.items())
        # The old format has no checksums of its own. Its files are told apart by that of the whole.
        assert same or kind == "old", what
        assert weights.sha256 == hashlib.sha256(content).hexdigest()
        about = ("0123", "tiny", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)) if kind == "ours" else (None,) * 4
        assert (weights.run, weights.data, weights.mean, weights.std) == about, what
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_teacher_teaches_the_same_or_not_at_all(kind: str, tmp_path: Path) -> None:
    assert fuzz(kind, tmp_path, 40) > 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_damaged_teachers_teach_the_same_or_not_at_all(kind: str, tmp_path: Path) -> None:
    assert fuzz(kind, tmp_path, 400, seed=1) > 100


def test_every_flipped_bit_of_a_published_file_shows_in_its_checksum(tmp_path: Path, monkeypatch) -> None:
    """A file that bears the checksum in its name is then not what it says."""
    _, whole = files(tmp_path)["old"]
    entry = published()["cifar10/resnet20_a"]
    digest = hashlib.sha256(whole).hexdigest()
    found = {entry.name: replace(entry, sha256=digest[:8])}
    monkeypatch.setattr("kdtable.teachers.manifest._manifest", lambda: found)
    path = tmp_path / f"resnet20-{digest[:8]}.th"
    path.write_bytes(whole)
    assert read_weights(path).claimed_top1 == entry.claimed_top1
    for what, content in mutations(whole, 60, seed=1):
        path.write_bytes(content)
        with pytest.raises(BadTeacher):
            read_weights(path)
        assert what
    path.write_bytes(saved(STATE))
    with pytest.raises(BadTeacher, match=f"bears the name of the published {entry.name}, but its checksum is"):
        read_weights(path)


def claiming(**claims: Claim) -> bytes:
    """A file with the keys of a small network, of which some claim what is not there."""
    tensors = {key: Claim(tuple(value.shape), value.stride(), numel=1000) for key, value in STATE.items()}
    tensors["bn.num_batches_tracked"] = Claim((), (), numel=1, key="1", kind=torch.LongStorage)
    return forged({"model": tensors | claims}, storages={"0": bytes(4000), "1": bytes(8)})


def test_a_file_without_a_false_claim_is_read(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(claiming())
    assert loaded(tmp_path / "file.pth")[1]["fc.weight"].shape == (10, 4)


CLAIMS = {
    "a terabyte": Claim((2**38,), (1,), numel=2**38),
    "a terabyte spread from one number": Claim((2**38,), (0,), numel=1000),
    "too many classes": Claim((250, 4), (4, 1), numel=1000),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_claim_is_refused_before_it_takes_memory(case: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(claiming(**{"fc.weight": CLAIMS[case]}))
    tracemalloc.start()
    try:
        with pytest.raises(BadTeacher):
            loaded(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2**20


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("fc.bias", torch.zeros(10, dtype=torch.int64), "its fc.bias holds torch.int64"),
        ("fc.bias", torch.zeros(10, dtype=torch.uint8), "its fc.bias holds torch.uint8"),
        ("bn.num_batches_tracked", torch.tensor(1.5), "its bn.num_batches_tracked holds torch.float32"),
        ("fc.bias", torch.full((10,), torch.nan), "its fc.bias holds numbers that are NaN or infinite"),
        ("bn.running_var", torch.full((4,), torch.inf), "its bn.running_var holds numbers that are NaN or infinite"),
    ],
)
def test_numbers_that_no_network_has_are_refused(key: str, value: torch.Tensor, reason: str, tmp_path: Path) -> None:
    network = Small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    (tmp_path / "file.pth").write_bytes(saved(STATE | {key: value}))
    with pytest.raises(BadTeacher, match=reason):
        load_into(network, read_weights(tmp_path / "file.pth"), name="small")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}
    (tmp_path / "file.pth").write_bytes(saved(state))
    assert torch.equal(loaded(tmp_path / "file.pth")[1]["fc.weight"], state["fc.weight"].float())


def test_a_file_that_changes_between_two_looks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(saved(STATE))
    weights = read_weights(path)
    path.write_bytes(saved(Small().state_dict()))
    with pytest.raises(BadRequest, match="changed while it was in use"):
        load_into(Small(), weights, name="small")
