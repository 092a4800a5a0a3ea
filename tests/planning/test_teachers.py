"""Which file a plan takes for a teacher, and what it does about one that is not what it was."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.errors import BadRequest
from kdtable.files.pins import add_pin
from kdtable.files.tensor_file import TensorFile, safetensors_bytes
from kdtable.methods.objective import Objective
from kdtable.models import build
from kdtable.planning.given import GivenWeights
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher, TeacherRef
from kdtable.planning.teachers import changed_teachers, teacher_finder, trained_elsewhere
from kdtable.recipes.recipe import Recipe
from kdtable.teachers.locations import home
from tests.teachers.own_weights import save_weights
from tests.tensor_files import saved

CIFAR = BUILT_IN["cifar10"]
OWN = replace(CIFAR, kind="npz", name="own", key="own-0123", path=Path("/own.npz"), sha256="0" * 64)
#: Published without a checksum for the one set, with eight digits of one for the other.
UNSIGNED, SIGNED = ("resnet56", BUILT_IN["cifar100"]), ("resnet20_a", CIFAR)


def find(folder: Path, network: str, data: DataSpec, *, dry: bool = False, **files: Path) -> FileTeacher:
    found = teacher_finder(folder, GivenWeights(files), allow_missing=dry)(network, data)
    assert isinstance(found, FileTeacher)
    return found


def state(network: str, data: DataSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build(network, data.num_classes).state_dict()


def trained(folder: Path, network: str, data: DataSpec, taught_on: str | None = None) -> Path:
    """A teacher that a run of ours trained."""
    path = home(folder, data.key, network)
    about = {"network": network, "num_classes": data.num_classes, "mean": data.mean, "std": data.std}
    save_weights(path, state(network, data), **about, run="0123", data=taught_on or data.key)
    return path


def fetched(folder: Path, network: str, data: DataSpec, suffix: str, *, pinned: bool = True) -> Path:
    path = home(folder, data.key, network, suffix)
    path.parent.mkdir(parents=True)
    path.write_bytes(saved({"state_dict": state(network, data)}, zipped=False))
    if pinned:
        add_pin(folder, f"{data.key}/{network}", hashlib.sha256(path.read_bytes()).hexdigest(), "https://example.org")
    return path


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(BadRequest) as caught:
        find(*args, **options)  # type: ignore[arg-type]
    return str(caught.value)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_trained_teacher_is_found(tmp_path: Path) -> None:
    ref = find(tmp_path, "resnet8", CIFAR) if trained(tmp_path, "resnet8", CIFAR) else None
    assert ref is not None
    assert (ref.run, ref.claimed_top1) == ("0123", None)


@pytest.mark.parametrize(("teacher", "claim"), [(UNSIGNED, 72.34), (SIGNED, 91.73)])
def test_a_fetched_teacher_has_its_claim(teacher: tuple[str, DataSpec], claim: float, tmp_path: Path) -> None:
    suffix = ".th" if teacher is SIGNED else ".pth"
    fetched(tmp_path, *teacher, suffix)
    assert find(tmp_path, *teacher).claimed_top1 == claim


def test_a_file_of_unknown_origin_in_a_published_place_is_held_to_the_claim(tmp_path: Path) -> None:
    fetched(tmp_path, *UNSIGNED, ".pth", pinned=False)
    assert find(tmp_path, *UNSIGNED).claimed_top1 == 72.34


def test_a_trained_teacher_in_a_published_place_is_its_own(tmp_path: Path) -> None:
    path = trained(tmp_path, *UNSIGNED)
    add_pin(tmp_path, "cifar100/resnet56", "0" * 64, "https://example.org")
    ref = find(tmp_path, *UNSIGNED)
    assert (ref.path, ref.run, ref.claimed_top1) == (path, "0123", None)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped bit in a weight": lambda path: flip(path, path.stat().st_size // 2),
    "another network's": lambda path: path.write_bytes(saved(state("resnet14", CIFAR))),
    "another number of classes": lambda path: path.write_bytes(saved(state("resnet8", BUILT_IN["cifar100"]))),
    "a web page": lambda path: path.write_bytes(b"<html>"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("place", ["trained", "fetched", "fetched, no checksum published"])
def test_a_damaged_teacher_is_named_set_aside_and_how_to_get_it_again_is_said(
    case: str, place: str, tmp_path: Path
) -> None:
    network, data = {"trained": ("resnet8", OWN), "fetched": SIGNED}.get(place, UNSIGNED)
    if place == "trained":
        path, command = trained(tmp_path, network, data), "kdtable train-teachers resnet8 --data npz:/own.npz"
    else:
        path = fetched(tmp_path, network, data, ".th" if place == "fetched" else ".pth")
        command = f"kdtable fetch-teachers {data.key}/{network}"
    DAMAGE[case](path)
    bad = path.read_bytes()

    dry = refusal(tmp_path, network, data, dry=True)
    assert str(path) in dry
    assert path.read_bytes() == bad

    text = refusal(tmp_path, network, data)
    assert text.startswith(str(path))
    assert f"it was set aside as {path.name}.corrupt: get it again with '{command}'" in text
    assert not path.exists()
    assert path.with_name(f"{path.name}.corrupt").read_bytes() == bad
    assert f"there is no teacher {network}" in refusal(tmp_path, network, data)


def test_a_changed_file_that_was_fetched_is_set_aside(tmp_path: Path) -> None:
    """It is whole, fits, and is another teacher than the one that was fetched."""
    path = fetched(tmp_path, *SIGNED, ".th")
    path.write_bytes(saved(state(*SIGNED, seed=1)))
    text = refusal(tmp_path, *SIGNED)
    assert f"{path} has changed: its checksum is" in text
    assert "was seen on" in text
    assert "remove the line of cifar10/resnet20_a" in text
    assert "set aside as resnet20_a.th.corrupt" in text


def other_weights(path: Path, network: str, data: DataSpec) -> None:
    """Put other weights into a teacher of ours that still says which run trained it."""
    with path.open("rb") as file:
        metadata = TensorFile(file).metadata
    path.write_bytes(safetensors_bytes(state(network, data, seed=1), metadata))


def test_other_weights_in_the_file_of_a_run_are_set_aside(tmp_path: Path) -> None:
    path = trained(tmp_path, "resnet8", OWN)
    other_weights(path, "resnet8", OWN)
    text = refusal(tmp_path, "resnet8", OWN)
    assert f"{path} holds other weights than kdtable wrote into it" in text
    assert (
        "set aside as resnet8.safetensors.corrupt: get it again with 'kdtable train-teachers resnet8 --data npz:"
        in text
    )


def test_other_weights_in_a_named_file_of_a_run_are_refused_and_left(tmp_path: Path) -> None:
    path = trained(tmp_path, "resnet8", OWN)
    other_weights(path, "resnet8", OWN)
    before = listing(tmp_path)
    text = refusal(tmp_path / "teachers", "resnet8", OWN, resnet8=path)
    assert text.startswith(f"{path} holds other weights")
    assert "set aside" not in text
    assert listing(tmp_path) == before


def test_a_file_that_is_not_the_published_one_is_refused_and_left(tmp_path: Path) -> None:
    """Nobody fetched it, so it may be the user's own."""
    path = fetched(tmp_path, *SIGNED, ".th", pinned=False)
    before = listing(tmp_path)
    text = refusal(tmp_path, *SIGNED)
    assert f"{path} is there, but not as published" in text
    assert "12fca82f is published" in text
    assert listing(tmp_path) == before


def test_a_teacher_of_other_data_is_set_aside(tmp_path: Path) -> None:
    path = trained(tmp_path, "resnet8", OWN, taught_on="other-4567")
    text = refusal(tmp_path, "resnet8", OWN)
    assert f"{path} was trained on other-4567, and stands in the place of a teacher for own-0123" in text
    assert "set aside" in text


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_the_user_named_is_never_moved(case: str, tmp_path: Path) -> None:
    path = trained(tmp_path, "resnet8", OWN)
    DAMAGE[case](path)
    before = listing(tmp_path)
    text = refusal(tmp_path / "teachers", "resnet8", OWN, resnet8=path)
    assert text.startswith(str(path))
    assert "set aside" not in text
    assert listing(tmp_path) == before


def test_a_teacher_of_other_data_may_be_named(tmp_path: Path) -> None:
    path = trained(tmp_path, "resnet8", OWN, taught_on="other-4567")
    ref = find(tmp_path / "teachers", "resnet8", OWN, resnet8=path)
    assert (ref.run, ref.trained_on) == ("0123", "other-4567")
    told = trained_elsewhere([(ref, OWN), (ref, OWN), (None, OWN), (replace(ref, trained_on=OWN.key), OWN)])
    assert told == [f"{path} was trained on other-4567, not on own-0123: its classes may be others"]


def test_a_file_that_may_not_be_read_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trained(tmp_path, "resnet8", OWN)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kdtable.teachers.weights.TensorFile", denied)
    assert "cannot be read: Permission denied" in refusal(tmp_path, "resnet8", OWN)
    assert path.exists()


# --- runs that another file taught ------------------------------------------------------------------------------

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.05, milestones=())
OF_A_RUN = FileTeacher("resnet8", OWN.mean, OWN.std, "b" * 64, Path("/teachers/resnet8.pth"), "0123")


def taught(seed: int, teacher: TeacherRef | None = OF_A_RUN) -> Run:
    return Run("kd", "resnet8", OWN, RECIPE, Objective({"ce": 0.1, "kd": 0.9}), seed, teacher=teacher)


def test_runs_that_another_file_taught_are_counted() -> None:
    runs = [taught(seed) for seed in range(5)]
    trained = {run.id: digit * 64 for run, digit in zip(runs, "ccb", strict=False)}
    assert changed_teachers([*runs, runs[0]], trained) == [
        "/teachers/resnet8.pth is not the teacher of 2 runs of the store (checksum bbbbbbbb, theirs is "
        "cccccccc): their numbers are that one's"
    ]


@pytest.mark.parametrize("teacher", [None, MissingTeacher("resnet8", OWN.mean, OWN.std)])
def test_nothing_is_said_where_there_is_no_file(teacher: TeacherRef | None) -> None:
    run = taught(1, teacher)
    assert changed_teachers([run], {run.id: "c" * 64}) == []


def test_a_teacher_trained_again_has_the_identity_that_it_had(tmp_path: Path) -> None:
    """On another machine its last bits may differ."""
    first = trained(tmp_path / "first", "resnet8", OWN)
    about = {"network": "resnet8", "num_classes": OWN.num_classes, "mean": OWN.mean, "std": OWN.std}
    again = home(tmp_path / "again", OWN.key, "resnet8")
    save_weights(again, state("resnet8", OWN, seed=1), **about, run="0123", data=OWN.key)
    refs = [find(path.parents[1], "resnet8", OWN) for path in (first, again)]
    assert refs[0].sha256 != refs[1].sha256
    assert taught(1, refs[0]).id == taught(1, refs[1]).id
