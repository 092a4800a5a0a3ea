import argparse
import datetime
import io
import pickle
import zipfile
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtable.checkpoints.student import content_digest
from kdtable.errors import BadRequest
from kdtable.files import tensor_file
from kdtable.files.tensor_file import TensorFile, safetensors_bytes
from kdtable.models import build
from kdtable.teachers.locations import home, sha256_of, teacher_path
from kdtable.teachers.manifest import by_checksum
from kdtable.teachers.weights import load_into, read_weights
from tests.teachers.own_weights import save_weights
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


def stored(prefix: str, state) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


STATE = Small().state_dict()
#: As training scripts, wrappers and profilers leave them.
WRAPPED = {
    "net": {"net": STATE, "acc": 90.0, "epoch": 1},
    "model_state_dict": {"model_state_dict": STATE, "epoch": 1},
    "student": {"student": STATE},
    "teacher": {"teacher": STATE},
    "an unusual key": {"epoch": 3, "classifier_weights": STATE},
    "a key in a key": {"model": {"state_dict": STATE}},
    "compiled": stored("_orig_mod.", STATE),
    "twice parallel": stored("module.module.", STATE),
    "compiled in parallel": stored("module._orig_mod.", STATE),
    "Lightning": {"state_dict": stored("model.", STATE), "pytorch-lightning_version": "2.0"},
    "a backbone beside a head": {"state_dict": stored("backbone.", STATE) | {"head.weight": torch.ones(2, 2)}},
    "a distiller": {"model": stored("module.student.", STATE) | stored("module.teacher.", Small(width=5).state_dict())},
    "a profiler": STATE | {"total_ops": torch.zeros(1), "fc.total_params": torch.zeros(1)},
    "numbers among the tensors": STATE | {"epoch": 3, "best": 91.0},
    "an optimiser": {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "model": STATE},
}
BESIDE = {
    "a number of NumPy": np.float64(71.2),
    "an array": np.arange(3),
    "arguments": argparse.Namespace(lr=0.05),
    "a schedule": Counter([150, 180]),
    "a device": torch.device("cpu"),
    "a date": datetime.date(2020, 1, 1),
    "a path": Path("somewhere"),
    "a dict with defaults": defaultdict(list, {"a": [1]}),
    "a queue": deque([1, 2]),
    "a generator's state": np.random.default_rng(0).bit_generator.state,
    "a module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_weights_are_found_where_training_scripts_put_them(case, tmp_path):
    target = Small()
    load_into(target, read_weights(written(tmp_path / "file.pth", as_file(WRAPPED[case]))), name="small")
    assert equal(STATE, target.state_dict())


@pytest.mark.parametrize("case", BESIDE)
def test_objects_beside_the_weights_are_passed_over(case, tmp_path):
    path, target = tmp_path / "file.pth", Small()
    load_into(target, read_weights(written(path, as_file({"model": STATE, "opt": BESIDE[case]}))), name="small")
    assert equal(STATE, target.state_dict())


@pytest.mark.parametrize("case", ["arguments", "a date"])
def test_objects_in_an_old_file_are_named(case, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"model": STATE, "opt": BESIDE[case]}, path, _use_new_zipfile_serialization=False)
    name = {"arguments": "argparse.Namespace", "a date": "datetime.date"}[case]
    with pytest.raises(BadRequest, match=rf"objects beside its tensors \({name}\).*save its network's state_dict"):
        read_weights(path)


def test_arrays_of_other_programs_are_read(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(safetensors_bytes(STATE, {}))
    np.savez_compressed(tmp_path / "file.npz", **{key: value.numpy() for key, value in STATE.items()})
    for path in tmp_path.iterdir():
        target = Small()
        weights = read_weights(path)
        load_into(target, weights, name="small")
        assert equal(STATE, target.state_dict())
        assert (weights.mean, weights.run) == (None, None)


def test_a_file_of_another_program_may_say_how_its_inputs_were_normalised(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(safetensors_bytes(STATE, {"mean": "[0.5, 0.4, 0.3]", "std": "[1, 1, 1]"}))
    weights = read_weights(path)
    assert (weights.mean, weights.std, weights.run) == ((0.5, 0.4, 0.3), (1, 1, 1), None)
    for bad in ({"mean": "[0.5]", "std": "[1, 1]"}, {"mean": "[0]", "std": "[0]"}, {"mean": "a", "std": "[1]"}):
        path.write_bytes(safetensors_bytes(STATE, bad))
        with pytest.raises(BadRequest, match="input normalisation"):
            read_weights(path)


def test_a_prefix_that_our_networks_use_themselves_stays(tmp_path):
    source, target = build("resnet8+heads", 10), build("resnet8+heads", 10)
    load_into(target, read_weights(written(tmp_path / "a.pth", as_file(source.state_dict()))), name="resnet8+heads")
    assert equal(source.state_dict(), target.state_dict())


def test_our_own_file_comes_back(tmp_path):
    network = build("resnet8", 10)
    path = home(tmp_path, "cifar10", "resnet8")
    save_weights(path, network.state_dict(), network="resnet8", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), run="01ab")
    weights = read_weights(path)
    other = build("resnet8", 10, mean=weights.mean, std=weights.std)
    load_into(other, weights, name="resnet8")
    assert equal(network.state_dict(), other.state_dict())
    assert (weights.mean, weights.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (weights.run, weights.data, weights.claimed_top1) == ("01ab", "tiny", None)
    assert [file.name for file in path.parent.iterdir()] == ["resnet8.safetensors"]
    assert teacher_path(tmp_path, "cifar10", "resnet8") == path
    with pytest.raises(BadRequest, match=r"is not a resnet20: run 01ab trained a resnet8 in it"):
        load_into(build("resnet20", 10), weights, name="resnet20")


def changed(path, what, about=None):
    """Replace weights in a file of ours, or what it says of itself."""
    with path.open("rb") as file:
        content = TensorFile(file)
        tensors, metadata = content.load(), content.metadata
    path.write_bytes(safetensors_bytes(tensors | what, {**metadata, **(about or {})}))


def test_other_weights_do_not_pass_for_those_of_a_run(tmp_path):
    path, network = tmp_path / "file.safetensors", Small()
    save_weights(path, network.state_dict(), network="small")
    bias = network.fc.bias.detach().clone()
    bias[0] = torch.nextafter(bias[0], torch.tensor(1.0))
    changed(path, {"fc.bias": bias})
    target = Small()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(BadRequest, match=r"file\.safetensors holds other weights than kdtable wrote into it") as caught:
        load_into(target, read_weights(path), name="small")
    assert "save them without their metadata" in str(caught.value)
    assert equal(before, target.state_dict())
    with path.open("rb") as file:
        path.write_bytes(safetensors_bytes(TensorFile(file).load(), {}))
    load_into(target, read_weights(path), name="small")
    assert read_weights(path).run is None


@pytest.mark.parametrize("about", [{"mean": "[1.0, 1.0, 1.0]"}, {"run": "0124"}, {"data": "other"}, {"network": "x"}])
def test_a_file_of_ours_that_says_other_things_is_damaged(about, tmp_path):
    path = tmp_path / "file.safetensors"
    save_weights(path, STATE, network="small")
    changed(path, {}, about)
    with pytest.raises(BadRequest, match="is damaged: what it says of its origin has changed"):
        read_weights(path)


@pytest.mark.parametrize(
    "about",
    [{"mean": "a"}, {"mean": "[1, null]"}, {"num_classes": "ten"}, {"metrics": "[]"}, {"history": "{}"}, {"std": "[]"}],
)
def test_a_file_of_ours_that_says_nonsense_is_damaged(about, tmp_path, monkeypatch):
    monkeypatch.setattr("kdtable.checkpoints.student._checksum", lambda texts: "0")
    path = tmp_path / "file.safetensors"
    save_weights(path, STATE, network="small")
    changed(path, {}, about)
    with pytest.raises(BadRequest, match="is damaged: "):
        read_weights(path)


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


def test_a_teacher_is_found_under_any_suffix(tmp_path):
    assert teacher_path(tmp_path, "cifar10", "resnet8") is None
    (tmp_path / "cifar10").mkdir()
    for suffix in (".npz", ".pt", ".th", ".pth", ".safetensors"):  # a later one has precedence
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
    with pytest.raises(BadRequest, match=r"file\.pth is refused: .*(only running code|objects beside its tensors)"):
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
        ([1, 2], "it is a list, not a dict"),
        ({}, "holds no network"),
        ({"model": {}}, "holds no network"),
        ({"model": {"fc.weight": 3.0}, "epoch": 3}, "holds no network .its entries are 'model', 'epoch'"),
        (torch.nn.Linear(2, 2), "is a torch.nn.modules.linear.Linear as a whole: save its state_dict"),
        ({"opt": argparse.Namespace(lr=1), "model": {}}, "holds no network"),
        ({"model": {"w": torch.ones(2)}, "buffer": bytearray(2)}, "neither a dense tensor nor a plain value"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, reason, tmp_path):
    path = written(tmp_path / "file.pth", as_file(content))
    with pytest.raises(BadRequest, match=reason) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


OTHERS = {
    "a web page": (b"\n<!DOCTYPE html><title>Virus scan warning</title>", "is a web page"),
    "a page": (b"<html>not found</html>", "is a web page"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "Git-LFS pointer.*git lfs pull",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is HDF5"),
    "gzip": (b"\x1f\x8b" + bytes(99), "is compressed with gzip"),
    "tar": (bytes(257) + b"ustar" + bytes(999), "is a tar archive"),
    "an array": (b"\x93NUMPY" + bytes(99), "single NumPy array"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_formats_are_named(case, tmp_path):
    content, what = OTHERS[case]
    with pytest.raises(BadRequest, match=what):
        read_weights(written(tmp_path / "file.pth", content))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_and_other_archives_are_named(tmp_path):
    with pytest.raises(BadRequest, match="is TorchScript"):
        read_weights(written(tmp_path / "file.pth", torchscript()))
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
        archive.writestr("readme", "text")
    with pytest.raises(BadRequest, match="is a zip archive without weights"):
        read_weights(tmp_path / "file.zip")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(BadRequest, match="cannot be read: Is a directory"):
        read_weights(tmp_path)
    with pytest.raises(BadRequest, match="cannot be read: No such file"):
        read_weights(tmp_path / "none.pth")


def test_a_file_that_is_too_large_is_not_even_read(tmp_path, monkeypatch):
    path = written(tmp_path / "file.pth", b"0" * 101)
    monkeypatch.setattr(tensor_file, "MAX_BYTES", 100)
    monkeypatch.setattr(tensor_file, "Stream", lambda *_: pytest.fail("was read"))
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
    assert text == (
        "is not a resnet8: it has layer1.0.downsample.0.weight and 5 more; its tensors are those of resnet8x4"
    )
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
