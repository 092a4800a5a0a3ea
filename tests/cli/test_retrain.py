"""A method's file is edited: ``run`` says so, ``--retrain`` trains again, and both results stay apart."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

import kdtable
from kdtable.hardware import available_cores
from kdtable.provenance import source_files, source_hash
from kdtable.store import RunRecord, Store
from kdtable.store.files import STUDENT, older_folder
from kdtable.store.schema import origin_row, origins, results, runs
from tests.cli.command import SMALL, Call, Done, Shell, finish, listing, students_in, wait_for

#: Rows of the grid that are trained already.
ASKED = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,at", "--seeds", "2", "--epochs", "2", *SMALL)
AT = "kdtable/methods/at.py"
LINE = f"2 stored runs of at were made by another {AT}"
NOTHING = "--retrain changes nothing: no stored run of these was made by other code than the present one\n"


def stored(folder: Path, *rows: str) -> list[RunRecord]:
    with closing(Store(folder / "results", create=False)) as store:
        return [run for run in store.runs() if run.row in rows]


def ids(folder: Path, *rows: str) -> set[str]:
    return {run.id for run in stored(folder, *rows)}


def age(folder: Path, file: str | None, *rows: str) -> str:
    """Let the stored runs of rows be made by code of another ``file``, or by unknown code; that code's hash."""
    files = {**source_files(), str(file): "0" * 16}
    code = str(origin_row(files)["id"])
    with closing(Store(folder / "results")) as store:
        if file:
            store.record_code(files)
        for run in stored(folder, *rows):
            assert run.result
            made = origin_row(json.loads(run.result.provenance.origins[0]) | {"source": code})
            with store.database.write() as db:
                db.execute(sa.dialects.sqlite.insert(origins).on_conflict_do_nothing(), [made])
                changes = {"code": code, "provenance": json.dumps([made["id"]])}
                db.execute(results.update().where(results.c.run == run.key).values(changes))
                db.execute(runs.update().where(runs.c.key == run.key).values(code=code))
    return code


def trained(done: Done) -> list[str]:
    """The rows of the students whose epochs were told."""
    return [line.split(" ")[3] for line in done.errors if " epoch 2/2" in line]


@pytest.fixture
def edited(tmp_path: Path) -> Shell:
    """The command, of a copy of the package in which attention transfer has another factor."""
    copy = tmp_path / "copy" / "kdtable"
    shutil.copytree(Path(kdtable.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "methods" / "at.py"
    text = file.read_text()
    assert text.endswith("return attention_loss(s, t)\n")
    file.write_text(text.replace("return attention_loss(s, t)\n", "return 0.5 * attention_loss(s, t)\n"))
    (copy / "methods" / "kd.py").write_text((copy / "methods" / "kd.py").read_text() + "# not asked for\n")
    (copy / "cli" / "show.py").write_text((copy / "cli" / "show.py").read_text() + "# of no run\n")
    return Shell(tmp_path, {"PYTHONPATH": str(copy.parent)})


def test_an_edited_method_is_told_of_and_trained_again(after_grid: Path, edited: Shell, call: Call) -> None:
    before, weights = listing(after_grid / "results" / "runs"), students_in(after_grid / "results")
    told = edited.run(*ASKED)
    assert (told.code, told.errors) == (0, [f"{LINE}: --retrain trains them again"])
    assert listing(after_grid / "results" / "runs") == before, "nothing is trained"
    assert f"Made by another {AT} than the present one: seeds 1, 2." in " ".join(told.out.split())

    done = edited.run(*ASKED, "--retrain")
    assert (done.code, done.errors[0]) == (0, f"{LINE}, and are trained again")
    assert trained(done) == ["at", "at"], "and nothing else"
    assert "Made by another" not in done.out
    now = students_in(after_grid / "results")
    differ = {run for run in now if any((now[run][key] != weights[run][key]).any() for key in now[run])}
    assert differ == ids(after_grid, "at")
    with closing(Store(after_grid / "results")) as store:
        for run in stored(after_grid, "at"):
            older, newer = store.results(run.id)
            assert (older.code, newer) == (source_hash(), run.result)
            kept = older_folder(store.run_folder(run.id), older.code) / STUDENT
            assert kept.read_bytes() == before[f"{run.id}/{STUDENT}"]
            assert store.history(run.id, older.code) != store.history(run.id)
    assert call("store", "check").out == "all is well\n"
    assert "2 older results are kept" in " ".join(call("status").out.split())

    # Here the edit is undone.
    back = call(*ASKED, "--retrain")
    assert (back.code, back.errors) == (0, [f"{LINE}: 2 older results by the present code are shown again"])
    assert students_in(after_grid / "results").keys() == weights.keys()
    assert listing(after_grid / "results" / "runs").items() >= before.items(), "trained once, and not again"
    assert call(*ASKED, "--retrain").err == NOTHING


def test_older_results_are_shown_and_removed(after_grid: Path, call: Call) -> None:
    code = age(after_grid, AT, "at")
    status = " ".join(call("status").out.split())
    assert f"{LINE}: 'kdtable run --retrain' trains them again" in status
    assert call(*ASKED, "--retrain", "--seeds", "1").code == 0
    (run,) = (run for run in stored(after_grid, "at") if run.seed == 1)
    assert f"1 stored run of at was made by another {AT}" in (status := " ".join(call("status").out.split()))
    assert "1 older result is kept" in status
    assert "Older results" in (shown := call("show", run.id).out)
    assert f"{code} top-1 accuracy" in " ".join(shown.split())
    frame = kdtable.results(after_grid / "results").older()
    top1 = frame[frame["metric"] == "top1"]
    assert top1[["run", "row", "seed", "code"]].to_numpy().tolist() == [[run.id, "at", 1, code]]
    values = kdtable.results(after_grid / "results").values().query(f"run == '{run.id}' and metric == 'top1'")
    assert top1["value"].tolist() == values["value"].tolist(), "the same code to the bit"

    asked = call("store", "remove", "--older")
    assert asked.out.splitlines()[-1] == "Would remove 1 older result: add --yes to do it."
    assert call("store", "remove", "--older", "--where", "row=kd", "--yes").out == "nothing to remove\n"
    assert call("store", "remove", "--older", "--yes").out.splitlines()[-1] == "removed 1 older result"
    assert "Older results" not in call("show", run.id).out
    assert not (after_grid / "results" / "runs" / run.id / "older").exists()
    assert call("store", "check").out == "all is well\n"


def test_removing_a_run_removes_all_of_its_results(after_grid: Path, call: Call) -> None:
    age(after_grid, AT, "at")
    assert call(*ASKED, "--retrain", "--seeds", "1").code == 0
    assert call("store", "remove", "--where", "row=at", "--yes").code == 0
    assert kdtable.results(after_grid / "results").older().empty
    assert not ids(after_grid, "at")
    assert call("store", "check").out == "all is well\n"


def test_a_plan_says_what_would_be_trained_again(after_grid: Path, call: Call) -> None:
    age(after_grid, AT, "at")
    before = listing(after_grid)
    told, plan = call(*ASKED, "--dry-run"), call(*ASKED, "--dry-run", "--retrain")
    assert f"{LINE}: --retrain trains them again." in " ".join(told.out.split())
    assert "4 done, 0 to train" in told.out
    assert "2 done, 2 to train" in plan.out
    assert plan.out.count("other code") == 2
    assert listing(after_grid) == before


def test_an_interrupted_retraining_goes_on_without_the_option(
    after_grid: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(after_grid, AT, "at")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("kdtable.execution.run_grid._train", interrupt)
        assert call(*ASKED, "--retrain").code == 130
    assert "2 missing" in call("status").out
    assert call(*ASKED, "--retrain").errors[0] == NOTHING.strip(), "what waits is not stale"
    assert {run.status for run in stored(after_grid, "at")} == {"done"}
    assert len(kdtable.results(after_grid / "results").older().groupby(["run", "code"])) == 2


def test_code_that_was_never_recorded(after_grid: Path, call: Call) -> None:
    age(after_grid, None, "at")
    told = call(*ASKED)
    words = "2 stored runs of at were made by code whose files are not recorded"
    assert told.errors == [f"{words}: --retrain trains them again"]
    assert "Made by another" not in told.out


def test_edits_elsewhere_are_no_matter(after_grid: Path, call: Call) -> None:
    age(after_grid, "kdtable/methods/crd.py", "at", "vanilla")
    assert call(*ASKED).err == ""
    assert call(*ASKED, "--retrain").err == NOTHING
    assert "made by" not in call("status").out.lower()


def test_a_retrained_teacher_has_its_students_trained_again(after_grid: Path, call: Call) -> None:
    words = ("train-teachers", "resnet14", "--epochs", "2", *SMALL)
    assert call(*words).err == ""
    with closing(Store(after_grid / "results")) as store:
        teacher = next(run for run in store.runs() if run.student == "resnet14")
    age(after_grid, "kdtable/methods/vanilla.py", "vanilla")
    done = call(*words, "--retrain")
    line = "1 stored run of vanilla was made by another kdtable/methods/vanilla.py, and is trained again"
    assert (done.code, done.errors[0]) == (0, line)
    assert trained(done) == ["vanilla"]
    assert teacher.id in set(kdtable.results(after_grid / "results").older()["run"])

    # The same code gives the same weights, so a file with others is put in the teacher's place.
    (file,) = (after_grid / "teachers").rglob("resnet14.safetensors")
    with closing(Store(after_grid / "results")) as store, store.database.write() as db:
        db.execute(runs.update().where(runs.c.row == "at").values(teacher_sha256="0" * 64))
    assert "is not the teacher of 2 runs of the store" in call(*ASKED).err
    again = call(*ASKED, "--retrain")
    assert f"another kdtable/methods/vanilla.py, {file.relative_to(after_grid)}, and are trained again" in again.err
    assert sorted(trained(again)) == ["at", "at", "vanilla", "vanilla"]
    assert call(*ASKED, "--retrain").err == NOTHING
    older = kdtable.results(after_grid / "results").older()
    assert source_hash() not in set(older[older["row"] == "at"]["code"]), "one code, two teachers: two hashes"
    assert call("store", "check").out == "all is well\n"


#: A row whose teacher is made by a run of another row.
DIH = ("run", "--paper", "dih", "--pairs", "resnet14:resnet8", "--methods", "dih", "--seeds", "1", "--epochs", "1")
HEADS = "kdtable/methods/heads.py"


def test_prerequisites_are_trained_again_with_what_needs_them(after_grid: Path, call: Call) -> None:
    asked = (*DIH, *SMALL)
    assert call(*asked).code == 0
    age(after_grid, HEADS, "heads")
    line = f"2 stored runs of dih, heads were made by another {HEADS}"
    assert call(*asked).errors == [f"{line}: --retrain trains them again"]
    done = call(*asked, "--retrain")
    assert done.errors[0] == f"{line}, and are trained again"
    assert [run.status for run in stored(after_grid, "heads", "dih")] == ["done", "done"]
    assert len(kdtable.results(after_grid / "results").older().groupby(["run", "code"])) == 2
    assert call(*asked, "--retrain").err == NOTHING
    assert call("store", "check").out == "all is well\n"


def test_a_student_of_an_older_prerequisite_is_stale(after_grid: Path, call: Call) -> None:
    """The heads alone were trained again, by another command, after their student."""
    asked = (*DIH, *SMALL)
    assert call(*asked).code == 0
    age(after_grid, HEADS, "heads")
    (heads,) = stored(after_grid, "heads")
    with closing(Store(after_grid / "results")) as store:
        late = dict.fromkeys(("started", "finished"), "2999-01-01T00:00:00+00:00")
        late |= {"provenance": json.dumps([_id_of_now(store)]), "code": source_hash()}
        with store.database.write() as db:
            known = db.execute(results.select().where(results.c.run == heads.key)).mappings().one()
            db.execute(results.insert().values({**known, **late}))
            db.execute(runs.update().where(runs.c.key == heads.key).values(code=source_hash()))
    assert call(*asked).errors == [f"1 stored run of dih was made by another {HEADS}: --retrain trains it again"]


def _id_of_now(store: Store) -> str:
    """The id of an origin that is the present code."""
    with store.database.read() as db:
        return next(row.id for row in db.execute(sa.select(origins)) if f'"source": "{source_hash()}"' in row.content)


def test_python_says_it_as_a_warning(after_grid: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(after_grid)
    age(after_grid, AT, "at")
    words = {"methods": "vanilla,at", "seeds": 2, "epochs": 2, "data": "npz:tiny.npz", "batch_size": 16}
    with pytest.warns(UserWarning, match=LINE):
        found = kdtable.run("resnet14:resnet8", device="cpu", **words)  # type: ignore[arg-type]
    assert found.older().empty
    with pytest.warns(UserWarning, match="and are trained again"):
        found = kdtable.run("resnet14:resnet8", device="cpu", retrain=True, **words)  # type: ignore[arg-type]
    assert set(found.older()["row"]) == {"at"}


def test_an_empty_store_has_nothing_to_train_again(tiny: Path, call: Call) -> None:
    words = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla", "--seeds", "1", "--epochs", "1", *SMALL)
    done = call(*words, "--retrain")
    assert (done.code, f"{done.errors[0]}\n") == (0, NOTHING)
    assert [run.status for run in stored(tiny, "vanilla")] == ["done"]


@pytest.mark.slow
@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
@pytest.mark.parametrize("more", [(), ("--jobs", "2")])
def test_killed_and_called_again(after_grid: Path, shell: Shell, call: Call, more: Sequence[str]) -> None:
    age(after_grid, AT, "at")
    process = shell.start(*ASKED, "--retrain", *more, own_group=True)
    wait_for("epoch 1/2", process)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    assert call(*ASKED, "--retrain", *more).code == 0
    assert {run.status for run in stored(after_grid, "at")} == {"done"}
    frame = kdtable.results(after_grid / "results").older()
    then = frame[frame["metric"] == "top1"].set_index("run")["value"].sort_index()
    now = kdtable.results(after_grid / "results").values().query("row == 'at' and metric == 'top1'")
    assert now.set_index("run")["value"].sort_index().tolist() == then.tolist(), "the same code, to the bit"
    assert call("store", "check").out == "all is well\n"
