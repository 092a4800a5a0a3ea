"""The Python interface."""

import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

import kdtable
from kdtable import api
from kdtable.errors import BadRequest
from kdtable.store import Store
from tests.cli.command import write_images, write_teacher
from tests.plugins.written import METHOD, write

GRID = {"methods": ["vanilla", "kd", "at"], "seeds": 2, "epochs": 2, "batch_size": 16, "device": "cpu"}
PAIR = "resnet14:resnet8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set, a teacher, and a trained grid in ``results``."""
    folder = tmp_path_factory.mktemp("api")
    write_images(folder / "tiny.npz")
    write_teacher(folder / "resnet14.pth")
    _run(folder)
    return folder


def _run(folder: Path, **changes: object) -> "kdtable.Results":
    places = {"data": f"npz:{folder / 'tiny.npz'}", "teacher": {"resnet14": folder / "resnet14.pth"}}
    options = GRID | places | {"pairs": PAIR, "results": folder / "results"} | changes
    return kdtable.run(**options)  # type: ignore[arg-type]


@pytest.fixture
def found(folder: Path) -> "kdtable.Results":
    return kdtable.results(folder / "results")


def test_importing_kdtable_imports_nothing_heavy() -> None:
    code = "import sys, kdtable; print(sorted({'torch', 'pandas', 'numpy', 'kdtable.api'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert kdtable.run is api.run
    assert kdtable.results is api.results
    assert kdtable.Results is api.Results
    with pytest.raises(AttributeError, match="module 'kdtable' has no attribute 'train'"):
        kdtable.train  # type: ignore[attr-defined] # noqa: B018


def test_a_grid_is_trained_once_and_returned(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "results" / "runs").rglob("*.safetensors")}
    threads = torch.get_num_threads()
    asked = _run(folder, methods="vanilla,kd", seeds=[2])
    assert torch.get_num_threads() == threads
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 6
    runs = asked.runs()
    assert sorted(zip(runs["row"], runs["seed"], runs["status"], strict=True)) == [
        ("kd", 2, "done"),
        ("vanilla", 2, "done"),
    ]
    assert len(asked.table().query("n == 1 and row != 'teacher'")) == 2
    assert repr(asked) == f"Results({str(folder / 'results')!r}, 2 runs)"


def test_checkpoints_in_another_place(folder: Path, found: "kdtable.Results", tmp_path: Path) -> None:
    elsewhere = _run(folder, methods="kd", seeds=[1], results=tmp_path / "results", checkpoints=tmp_path / "files")
    (run,) = elsewhere.runs()["run"]
    assert len(list((tmp_path / "files").rglob("student-*"))) == 1
    ours, usual = (one.student(run).state_dict() for one in (elsewhere, found))
    assert all(torch.equal(ours[name], usual[name]) for name in usual)
    with pytest.raises(BadRequest, match="memory:// is gone"):
        _run(folder, results=tmp_path / "results", checkpoints="memory://place")


def test_runs_and_values_are_the_stores(folder: Path, found: "kdtable.Results") -> None:
    records = {record.id: record for record in Store(folder / "results", create=False).runs()}
    assert set(found.runs()["run"]) == set(records)
    top1 = found.values("best").query("metric == 'top1'").set_index("run")["value"]
    assert dict(top1) == {run: 100 * record.metrics_of("best")["top1"] for run, record in records.items()}  # type: ignore[index]


def test_tables_are_those_of_the_report(found: "kdtable.Results") -> None:
    cells = found.table(versus="vanilla").set_index("row")
    values = found.values().query("metric == 'top1'").pivot(index="seed", columns="row", values="value")
    assert list(cells.index) == ["teacher", "student", "kd", "at"]
    for row, plain in (("student", "vanilla"), ("kd", "kd"), ("at", "at")):
        assert cells.loc[row, "mean"] == pytest.approx(values[plain].mean())
        assert cells.loc[row, "std"] == pytest.approx(values[plain].std())
    assert cells.loc["kd", "gap"] == pytest.approx((values["kd"] - values["vanilla"]).mean())
    errors = found.table(metric="top1-error", epoch="last").set_index("row")
    assert errors.loc["kd", "mean"] == pytest.approx(100 - cells.loc["kd", "mean"])
    assert any("Never left chance level" in note for notes in cells["notes"] for note in notes)
    published = found.table("crd-1").query("row == 'crd' and pair == 'resnet56:resnet20'")
    assert published["published"].item() == 71.16


def test_epochs_are_a_line_per_number(folder: Path, found: "kdtable.Results") -> None:
    epochs = found.epochs()
    (run,) = found.runs().query("row == 'kd' and seed == 1")["run"]
    history = Store(folder / "results", create=False).history(run)
    own = epochs[epochs["run"] == run].set_index(["epoch", "kind", "name"])["value"]
    assert len(history) == 2
    for record in history:
        assert own[record.epoch, "metric", "top1"] == record.metrics["top1"]
        assert own[record.epoch, "term", "kd"] == record.terms["kd"]
        assert own[record.epoch, "loss", "train"] == record.train_loss
    assert set(epochs["row"]) == {"vanilla", "kd", "at"}


def test_a_student_gives_the_accuracy_that_was_stored(folder: Path, found: "kdtable.Results") -> None:
    import numpy as np

    arrays = np.load(folder / "tiny.npz")
    images, labels = torch.from_numpy(arrays["test_images"]) / 255, torch.from_numpy(arrays["test_labels"])
    random = torch.get_rng_state()
    for run, value in found.values().query("metric == 'top1'")[["run", "value"]].itertuples(index=False):
        student = found.student(run)
        assert not student.training
        with torch.no_grad():
            logits = student(images).logits
        assert 100 * (logits.argmax(dim=1) == labels).float().mean().item() == pytest.approx(value)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_student_can_teach(folder: Path, found: "kdtable.Results") -> None:
    run = found.runs()["run"].iloc[0]
    taught = _run(
        folder, pairs="resnet8:resnet8", methods="kd", seeds=1, epochs=1, teacher={"resnet8": found.file(run[:12])}
    )
    assert taught.runs()["status"].item() == "done"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": None}, "nothing to run: --pairs is missing"),
        ({"methods": "kdd"}, "unknown method 'kdd'"),
        ({"seeds": 0}, "asks for no run"),
        ({"keep": "best"}, "--keep is one of last, all, none, not 'best'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"teacher": {"resnet14": "nowhere.pth"}}, "--teacher resnet14: there is no file nowhere.pth"),
        ({"overrides": {"weight_dekay": 1e-4}}, "unknown setting 'weight_dekay'; did you mean weight_decay"),
    ],
)
def test_what_the_command_refuses_is_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        _run(folder, **changes)
    assert words in str(refused.value)


def test_overrides_are_values_of_python(folder: Path) -> None:
    changed = {"milestones": (1, 2), "weight_decay": 1e-4, "nesterov": True}
    text = _run(folder, methods="vanilla", seeds=1, overrides=changed, epochs=3)
    (record,) = Store(folder / "results", create=False).runs(text.runs()["run"])
    recipe = record.protocol.identity["recipe"]
    assert (recipe["milestones"], recipe["weight_decay"], recipe["nesterov"]) == ([1, 2], 1e-4, True)


def test_unknown_runs_and_stores_are_refused(folder: Path, found: "kdtable.Results", tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="unknown run 'nothing'"):
        found.student("nothing")
    with pytest.raises(BadRequest, match="are 2 runs: name one by its id"):
        found.file("tiny:kd:resnet14:resnet8")
    with pytest.raises(BadRequest, match="--epoch is one of"):
        found.values("first")
    with pytest.raises(BadRequest, match="there is no results store in"):
        kdtable.results(tmp_path)


def test_weights_that_were_not_kept_are_refused(folder: Path) -> None:
    found = _run(folder, methods="vanilla", seeds=[5], epochs=1, keep="none")
    with pytest.raises(BadRequest, match="was not kept"):
        found.student(found.runs()["run"].item())


def test_failed_runs_are_told(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = _run(folder, methods="vanilla", seeds=[6], lr=1e30)
    assert found.runs()["status"].item() == "failed"
    said = [str(warning.message) for warning in told]
    assert any(text.startswith("vanilla of resnet8, seed 6, failed: the loss became") for text in said)
    assert "1 run failed: runs() has the reasons" in said
    assert isinstance(found.runs(), pd.DataFrame)


def test_a_plug_in_that_is_edited_in_between_two_calls(folder: Path, tmp_path: Path) -> None:
    for text in (METHOD, METHOD.replace("scale: float = 1.0", "scale: float = 3.0")):
        file = write(tmp_path / "near.py", text)
        own = {"methods": "near", "seeds": 1, "epochs": 1, "results": tmp_path / "results", "plugins": [file]}
        found = _run(folder, **own)
        assert found.runs()[["row", "status"]].to_numpy().tolist() == [["near", "done"]]
    both = kdtable.results(tmp_path / "results").table().query("row != 'teacher'")
    assert both["row"].str.fullmatch(r"near @\w{8}").all()
    assert both["row"].nunique() == len(both) == 2
