"""CRD's table 4 from students of CIFAR-100 to probes on other data, on miniatures of the real archives."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from kdtable.errors import BadRequest
from kdtable.recipes.metrics import TRANSFER
from kdtable.store import Store
from tests.cli.command import Call, runs_in, write_teacher
from tests.data import test_stl10

STL10 = ("--data", "stl10", "--image-size", "32", "--device", "cpu", "--data-root", ".")


@pytest.fixture
def miniatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, with CIFAR-100, STL-10 and an untrained teacher in it."""
    folder, draw = tmp_path / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir()
    md5 = {}
    for part, count in (("train", 4), ("test", 2)):
        pixels = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "fine_labels": list(range(count))})
        (folder / part).write_bytes(content)
        md5[part] = hashlib.md5(content).hexdigest()
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(map(str, range(100)))}))
    meta = hashlib.md5((folder / "meta").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": meta})
    test_stl10.write(tmp_path, monkeypatch)
    write_teacher(tmp_path / "wrn_40_2.pth", "wrn_40_2", 100)
    return tmp_path


def cells(call: Call, *asked: str) -> dict[tuple[str, str], dict[str, object]]:
    done = call("report", *asked, "--format", "json")
    assert done.code == 0, done.err
    (table,) = json.loads(done.out)
    return {(cell["row"], cell["metric"]): cell for cell in table["cells"] if ":" in cell["pair"]}


@pytest.mark.slow
def test_probes_of_all_seeds_fill_the_table(miniatures: Path, call: Call) -> None:
    grid = ("run", "--paper", "crd-transfer", "--methods", "vanilla,kd", "--seeds", "2", "--epochs", "1")
    grid += ("--batch-size", "4", "--device", "cpu", "--data-root", ".", "--teacher", "wrn_40_2=wrn_40_2.pth")
    assert call(*grid).code == 0
    runs = [name for name, run in runs_in(miniatures / "results").items() if run["row"] == "vanilla"]
    empty = cells(call, "--table", "crd-transfer")
    assert {row for row, _ in empty} == {"teacher", "student", "kd", "at", "fitnet", "crd", "crd+kd"}
    assert {metric for _, metric in empty} == {"probe-stl10", "probe-tiny-imagenet"}
    assert all(cell["mean"] is None for cell in empty.values())

    told = []
    for name in runs:
        done = call("probe", name, *STL10)
        assert done.code == 0, done.err
        assert f"Stored with run {name} as probe-stl10." in done.out
        told.append(float(done.out.split("linear-probe top-1 accuracy ")[1].split()[0]))
    found = cells(call, "--table", "crd-transfer")
    assert found["student", "probe-stl10"]["mean"] == pytest.approx(np.mean(told))
    assert found["student", "probe-stl10"]["n"] == len(told) == 2
    assert found["student", "probe-tiny-imagenet"]["mean"] is None

    text = " ".join(call("report", "--table", "crd-transfer", "--compare").out.split())
    assert "CRD, table 4 (arXiv 1910.10699), whose numbers could not be read" in text
    assert "here a probe has 100 epochs, lr 1, batch 256, on images scaled to 32 pixels" in text
    assert "linear-probe top-1 accuracy on STL-10" in call("show", runs[0]).out
    assert call("store", "check").code == 0
    other = call("probe", runs[0], *STL10, "--epochs", "1")
    assert "Not stored: tables have probes of 100 epochs, lr 1, batch 256, seed 1." in other.out
    of_file = call("probe", f"results/runs/{runs[0]}/student.safetensors", *STL10, "--epochs", "1")
    assert of_file.code == 0, of_file.err
    assert "tored" not in of_file.out
    assert cells(call, "--table", "crd-transfer") == found


def test_tables_show_the_mean_of_probes_over_seeds(after_grid: Path, call: Call) -> None:
    store = Store(after_grid / "results")
    taught = [run for run in store.runs() if run.row == "at"]
    for run, value in zip(taught, (0.25, 0.75), strict=True):
        store.record_probe(run.id, {TRANSFER["stl10"].stored: value})
    found = cells(call, "--metric", "probe-stl10,top1")
    assert (found["at", "probe-stl10"]["mean"], found["at", "probe-stl10"]["n"]) == (50.0, 2)
    assert found["kd", "probe-stl10"]["mean"] is None
    assert found["kd", "top1"]["n"] == 2
    best = cells(call, "--metric", "probe-stl10,top1", "--epoch", "best")
    assert best["at", "probe-stl10"]["mean"] is None, "the student of the last epoch was probed"
    assert "linear-probe top-1 accuracy on STL-10 25.00 %" in " ".join(call("show", taught[0].id).out.split())
    assert call("store", "check").code == 0
    of_other_data = call("probe", taught[0].id, "--data", "npz:tiny.npz", "--epochs", "1", "--device", "cpu")
    assert of_other_data.code == 0, of_other_data.err
    assert "Not stored: tables have probes on cifar10, cifar100, stl10, tiny-imagenet." in of_other_data.out


def test_a_probe_is_stored_with_a_finished_run_alone(after_grid: Path) -> None:
    store = Store(after_grid / "results")
    (run,) = [run for run in store.runs() if run.row == "at" and run.seed == 1]
    stored = {kind: metric.stored for kind, metric in TRANSFER.items()}
    store.record_probe(run.id, {stored["stl10"]: 0.25})
    store.record_probe(run.id, {stored["cifar10"]: 0.5})
    store.record_probe(run.id, {stored["stl10"]: 0.75})
    (again,) = store.runs([run.id])
    assert again.metrics_of("probes") == {stored["stl10"]: 0.75, stored["cifar10"]: 0.5}
    assert again.metrics_of("last") == run.metrics_of("last")
    assert store.history(run.id)
    with pytest.raises(BadRequest, match="has no result to store a probe with"):
        store.record_probe("0" * 16, {stored["stl10"]: 0.25})


def test_metrics_of_probes_are_named_where_others_are_unknown(after_grid: Path, call: Call) -> None:
    done = call("report", "--metric", "probe-stl")
    assert (done.code, done.out) == (2, "")
    assert "probe-stl10" in done.err
