import argparse
import pickle
from pathlib import Path

import kdtable.teachers.files as files_module
import numpy as np
import pytest
import torch

from kdtable.errors import BadRequest
from kdtable.models import build
from kdtable.teachers.manifest import by_checksum
from kdtable.teachers.weights import (
    content_digest,
    home,
    load_into,
    read_weights,
    save_weights,
    sha256_of,
    teacher_path,
)
from tests.teachers.teacher_site import Small, as_file

SHARED = Path(__file__).parents[2].parent / "shared"
TEACHERS = SHARED / "teachers"
needs_teachers = pytest.mark.skipif(not TEACHERS.is_dir(), reason="no shared/teachers beside the repository")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("shape", ["plain", "model", "state_dict", "module", "old"])
def test_every_layout_gives_the_same_network(shape, tmp_path):
    source, target = Small(), Small()
    state = dict(source.state_dict())
    module = {f"module.{key}": value for key, value in state.items()}
    content = {
        "plain": state,
        "model": {"epoch": 240, "model": state, "accuracy": torch.tensor([75.0]), "optimizer": {"lr": 0.05}},
        "state_dict": {"state_dict": state, "best_prec1": 91.0},
        "module": {"state_dict": module, "best_prec1": 91.0},
        "old": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    }[shape]
    weights = read_weights(written(tmp_path / "file.pth", as_file(content)))
    load_into(target, weights, name="small")
    assert equal(source.state_dict(), target.state_dict())
    assert (weights.mean, weights.std, weights.run, weights.claimed_top1) == (None, None, None, None)
    assert weights.sha256 == sha256_of(tmp_path / "file.pth")


def test_our_own_file_comes_back(tmp_path):
    network = build("resnet8", 10)
    path = home(tmp_path, "cifar10", "resnet8", ".pt")
    save_weights(
        path,
        network.state_dict(),
        network="resnet8",
        num_classes=10,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.1),
        run="0123abcd",
        data="cifar10",
    )
    weights = read_weights(path)
    other = build("resnet8", 10, mean=weights.mean, std=weights.std)
    load_into(other, weights, name="resnet8")
    assert equal(network.state_dict(), other.state_dict())
    assert (weights.mean, weights.std, weights.run) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "0123abcd")
    assert [file.name for file in path.parent.iterdir()] == ["resnet8.pt"]
    assert teacher_path(tmp_path, "cifar10", "resnet8") == path


ABOUT = {"network": "small", "num_classes": 10, "mean": None, "std": None, "run": "0123", "data": "test"}


def changed(path, what, *, noted=True):
    """Replace weights in a file of ours, and nothing else; ``noted``: it has a digest, as older ones have not."""
    content = torch.load(path, weights_only=True)
    content["model"] |= what
    if not noted:
        del content["kdtable"]["content"]
    path.write_bytes(as_file(content))


def test_other_weights_do_not_pass_for_those_of_a_run(tmp_path):
    path, network = tmp_path / "file.pth", Small()
    save_weights(path, network.state_dict(), **ABOUT)
    bias = network.fc.bias.detach().clone()
    bias[0] = torch.nextafter(bias[0], torch.tensor(1.0))
    changed(path, {"fc.bias": bias})
    target = Small()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(BadRequest, match=r"file\.pth holds other weights than kdtable wrote into it") as caught:
        load_into(target, read_weights(path), name="small")
    assert "save them without the entry 'kdtable'" in str(caught.value)
    assert equal(before, target.state_dict())
    path.write_bytes(as_file({"model": torch.load(path, weights_only=True)["model"]}))
    load_into(target, read_weights(path), name="small")
    assert read_weights(path).run is None


def test_a_file_from_before_digests_is_its_runs(tmp_path):
    path, network = tmp_path / "file.pth", Small()
    save_weights(path, network.state_dict(), **ABOUT)
    changed(path, {}, noted=False)
    weights = read_weights(path)
    load_into(Small(), weights, name="small")
    assert (weights.run, weights.content) == ("0123", None)


def test_the_same_network_is_written_to_the_same_bytes(tmp_path):
    """A plan knows the file by them beside its run."""
    state = Small().state_dict()
    for name in ("one.pth", "other.pth"):
        save_weights(tmp_path / name, state, **ABOUT)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()


def test_a_digest_is_of_keys_types_shapes_and_numbers():
    ones = torch.ones(2, 3)
    digest = content_digest({"a": ones, "b": ones})
    assert digest == content_digest({"b": torch.ones(3, 2).T, "a": torch.ones(4, 3)[:2]}), "however they lie in memory"
    others = [
        {"a": ones},
        {"a": ones, "c": ones},
        {"a": ones, "b": ones.T},
        {"a": ones, "b": ones.double()},
        {"a": ones, "b": ones.view(torch.int32)},
        {"a": ones, "b": torch.nextafter(ones, torch.zeros(2, 3))},
    ]
    assert len({digest, *map(content_digest, others)}) == len(others) + 1
    exotic = {"none": torch.empty(0, 3), "count": torch.tensor(3), "half": ones.bfloat16(), "flag": ones > 0}
    assert content_digest(exotic) != content_digest(exotic | {"flag": ones < 0})


def test_a_view_takes_only_its_own_bytes_into_the_file(tmp_path):
    path = tmp_path / "file.pt"
    about = {"network": "small", "num_classes": 2, "mean": None, "std": None, "run": None, "data": "test"}
    save_weights(path, {"fc.weight": torch.ones(1_000_000)[:4].view(2, 2)}, **about)
    assert path.stat().st_size < 10_000
    assert read_weights(path).mean is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = written(tmp_path / "file.pt", b"old")
    about = {"network": "small", "num_classes": 2, "mean": None, "std": None, "run": None, "data": "test"}

    def broken(content, file):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk is full"):
        save_weights(path, {"fc.weight": torch.ones(2, 2)}, **about)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_teacher_is_found_under_any_suffix(tmp_path):
    assert teacher_path(tmp_path, "cifar10", "resnet8") is None
    (tmp_path / "cifar10").mkdir()
    for suffix in (".pt", ".th", ".pth"):  # a later one has precedence
        place = home(tmp_path, "cifar10", "resnet8", suffix)
        place.touch()
        assert teacher_path(tmp_path, "cifar10", "resnet8") == place


def test_the_trap_works(tmp_path, trap):
    torch.load(written(tmp_path / "file.pth", as_file(trap)), weights_only=False)
    assert trap.marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(zipped, tmp_path, trap):
    path = tmp_path / "file.pth"
    content = {"model": Small().state_dict(), "opt": trap}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadRequest, match=r"file\.pth is refused: .* only running code"):
        read_weights(path)
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(BadRequest, match=r"file\.pth"):
        read_weights(path)
    assert not trap.marker.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(kept, zipped, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"model": Small().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(BadRequest, match=r"file\.pth is .*(truncated|no checkpoint)"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no network"),
        ({"model": {}}, "holds no network"),
        ({"model": torch.ones(2)}, "holds no network"),
        ({"model": {"fc.weight": 3.0}}, "'fc.weight' is not a tensor"),
        ({"epoch": 3, "weights": torch.ones(2)}, "'epoch' is not a tensor"),
        ({"opt": argparse.Namespace(lr=1), "model": {}}, "only running code"),
        ({"model": {"w": torch.ones(2)}, "array": np.float64(2)}, "only running code"),
        ({"model": {"w": torch.ones(2)}, "kdtable": {"format": 2}}, "another version"),
        ({"model": {"w": torch.ones(2)}, "kdtable": {"format": 1, "mean": "a"}}, "normalisation"),
        ({"model": {"w": torch.ones(2)}, "kdtable": {"format": 1, "run": 7}}, "run is not an id"),
        ({"model": {"w": torch.ones(2)}, "kdtable": {"format": 1, "content": 7}}, "digest is none"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, reason, tmp_path):
    path = written(tmp_path / "file.pth", as_file(content))
    with pytest.raises(BadRequest, match=reason) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


def test_html_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(BadRequest, match="no checkpoint"):
        read_weights(written(tmp_path / "page.pth", b"<html>not found</html>"))
    with pytest.raises(BadRequest, match="cannot be read: Is a directory"):
        read_weights(tmp_path)
    with pytest.raises(BadRequest, match="cannot be read: No such file"):
        read_weights(tmp_path / "none.pth")


def test_a_file_that_is_too_large_is_not_even_read(tmp_path, monkeypatch):
    path = written(tmp_path / "file.pth", b"0" * 101)
    monkeypatch.setattr(files_module, "MAX_BYTES", 100)
    monkeypatch.setattr(files_module, "TensorFile", lambda *_: pytest.fail("was read"))
    with pytest.raises(BadRequest, match="101 bytes"):
        read_weights(path)


def refusal(network, state, tmp_path, name="resnet8") -> str:
    """The refusal's text; checks that nothing was copied."""
    path = tmp_path / "file.pth"
    torch.save(state, path)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(BadRequest) as caught:
        load_into(network, read_weights(path), name=name)
    assert equal(before, network.state_dict())
    return str(caught.value).removeprefix(f"{path} ")


def test_another_architecture_is_named_by_its_keys(tmp_path):
    text = refusal(build("resnet8", 10), Small().state_dict(), tmp_path)
    assert text.startswith("is not a resnet8: it lacks conv1.weight and ")
    assert " more and has conv.weight and " in text


def test_a_wider_network_is_named_by_its_keys_or_its_shapes(tmp_path):
    text = refusal(build("resnet8", 10), build("resnet8x4", 10).state_dict(), tmp_path)
    assert text == "is not a resnet8: it has layer1.0.downsample.0.weight and 5 more"
    text = refusal(Small(), Small(width=5).state_dict(), tmp_path, "small")
    assert text == "is not a small: its conv.weight is 5x3x3x3, not 4x3x3x3"


def test_a_wider_embedding_is_no_other_number_of_classes(tmp_path):
    state = Small().state_dict() | {"fc.weight": torch.ones(10, 9)}
    assert refusal(Small(), state, tmp_path, "small") == "is not a small: its fc.weight is 10x9, not 10x4"


def test_a_scalar_where_a_vector_belongs(tmp_path):
    state = Small().state_dict() | {"bn.weight": torch.tensor(1.0)}
    text = refusal(Small(), state, tmp_path, "small")
    assert text == "is not a small: its bn.weight is a single number, not 4"


@pytest.mark.parametrize("network", ["resnet8", "vgg8", "wrn_16_1"])
def test_another_number_of_classes_is_said_so(network, tmp_path):
    text = refusal(build(network, 10), build(network, 100).state_dict(), tmp_path, network)
    assert text == "has 100 classes, the data set has 10"


@needs_teachers
@pytest.mark.parametrize(
    ("file", "network", "top1"),
    [
        ("resnet20-12fca82f.th", "resnet20_a", 91.73),
        ("resnet32-d509ac18.th", "resnet32_a", 92.63),
        ("resnet44-014dd654.th", "resnet44_a", 93.10),
        ("resnet56-4bfd9763.th", "resnet56_a", 93.39),
    ],
)
def test_the_published_cifar10_teachers_are_recognised(file, network, top1):
    weights = read_weights(TEACHERS / file)
    known = by_checksum(weights.sha256)
    assert known.network == network
    assert weights.claimed_top1 == top1
    assert (weights.mean, weights.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    load_into(build(network, known.num_classes, mean=weights.mean, std=weights.std), weights, name=network)
    with pytest.raises(BadRequest, match="has 10 classes, the data set has 100"):
        load_into(build(network, 100), weights, name=network)


@needs_teachers
def test_a_published_teacher_classifies_as_measured():
    excerpt = SHARED / "data" / "cifar10_excerpt.npz"
    if not excerpt.is_file():
        pytest.skip("no shared/data/cifar10_excerpt.npz beside the repository")
    data = np.load(excerpt)
    weights = read_weights(TEACHERS / "resnet20-12fca82f.th")
    network = build("resnet20_a", 10, mean=weights.mean, std=weights.std).eval()
    load_into(network, weights, name="resnet20_a")
    with torch.no_grad():
        logits = network(torch.from_numpy(data["test_images"]) / 255).logits
    right = logits.argmax(1) == torch.from_numpy(data["test_labels"])
    assert right.double().mean().item() == pytest.approx(0.9164, abs=0.0011)  # one image is 0.00098
