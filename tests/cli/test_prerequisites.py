"""Runs that need others: a teacher's heads, an assistant, a teacher with classifiers of its own."""

import json
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from kdtable.execution.estimate import Estimate
from kdtable.hardware import available_cores
from kdtable.methods.heads import Heads
from tests.cli.command import (
    SMALL,
    SMALL_CRD,
    Call,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    listing,
    runs_in,
    students_in,
    wait_for,
    write_images,
    write_teacher,
)

TEACHER = ("--teacher", "resnet14=resnet14.pth")
WITH = (*SMALL, *TEACHER, "--epochs", "1")
PAIR = ("run", "--paper", "dih", "--pairs", "resnet14:resnet8", *WITH)
ASSISTED = ("--set", "assistant=resnet8")
#: What the rows that need others need: everything is trained in two cohorts.
NEEDING = (*PAIR, "--methods", "dih,takd", "--seeds", "2", *ASSISTED)
FIRST_SEED = 30

two_cores = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")


def counted(results: Path) -> Counter[tuple[str, str]]:
    """How many runs of each row there are in each status."""
    return Counter((str(run["row"]), str(run["status"])) for run in runs_in(results).values())


def trained(err: str) -> Counter[str]:
    """How often each epoch of each run was told of, such as ``resnet8 dih seed 1 main epoch 1/1``."""
    return Counter(re.findall(r"\S+ \S+ seed \d+ \S+ epoch \d+/\d+", err))


def test_a_plan_shows_what_must_be_trained_first(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    before = listing(tiny)
    done = call(*NEEDING, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "6 runs: 0 done, 6 to train in 5 cohorts" in done.out
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.out.splitlines() if "│" in line]
    shown = [(seed, teacher.partition(" ")[0], student, row) for _, seed, _, teacher, student, row, *_ in lines]
    assert shown[:2] == [("30", "none", "resnet14+heads", "heads"), ("30", "resnet14", "resnet8", "kd")]
    assert sorted(shown[2:]) == [
        (seed, teacher, "resnet8", row)
        for seed in ("1", "2")
        for teacher, row in (("resnet14+heads", "dih"), ("resnet8", "takd"))
    ]
    heads = next(line for line in lines if line[5] == "heads")
    assert f"resnet14+heads (run {heads[7][:8]})" in done.out
    assert listing(tiny) == before


def test_a_plan_without_the_teacher_says_that_ids_will_change(tmp_path: Path, call: Call) -> None:
    write_images(tmp_path / "tiny.npz")
    done = call("run", "--paper", "dih", "--pairs", "resnet14:resnet8", "--methods", "dih", *SMALL, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "Not there yet, so ids will change: teachers resnet14." in " ".join(done.out.split())


def test_all_rows_of_a_paper(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_images(tmp_path / "tiny.npz")
    write_teacher(tmp_path / "resnet20.pth", "resnet20")
    teacher = ("--teacher", "resnet20=resnet20.pth")
    rows = ("--paper", "dih", "--pairs", "resnet20:resnet8", "--seeds", "1", *SMALL_CRD)
    done = call("run", *rows, *SMALL, *teacher, "--epochs", "1", "--keep", "none")
    assert done.code == 0, done.err
    methods = ["vanilla", "kd", "kd", "fitnet-2stage", "takd", "at", "crd", "tofd", "mhkd", "dih", "heads"]
    assert counted(tmp_path / "results") == Counter((row, "done") for row in (*methods, "tofd-teacher"))
    runs = runs_in(tmp_path / "results")
    first = {run_id: run for run_id, run in runs.items() if run["seed"] == FIRST_SEED}
    assert sorted((run["row"], run["student"]) for run in first.values()) == [
        ("heads", "resnet20+heads"),
        ("kd", "resnet14"),
        ("tofd-teacher", "resnet20+tofd"),
    ]
    # What others learn from stays, whatever else is kept.
    assert students_in(tmp_path / "results").keys() == first.keys()
    assert {str(run["kept"]) for run in first.values()} == {"last"}
    assert {str(run["kept"]) for run_id, run in runs.items() if run_id not in first} == {"none"}
    # The heads were put on the teacher as it is.
    (heads,) = (run_id for run_id, run in first.items() if run["row"] == "heads")
    own = torch.load(tmp_path / "resnet20.pth", weights_only=True)
    weights = students_in(tmp_path / "results")[heads]
    own = own.get("model", own)
    assert all(torch.equal(weights[f"backbone.{key}"], value) for key, value in own.items())

    (table,) = json.loads(call("report", "--format", "json").out)
    cells = {(cell["row"], cell["pair"]): cell["n"] for cell in table["cells"]}
    assert {row for (row, pair), n in cells.items() if pair == "resnet20:resnet8" and n} >= {"takd", "dih", "tofd"}
    assert {row for row, _ in cells} & {"heads", "tofd-teacher"} == set()
    text = " ".join(call("report").out.split())
    for start in ("Heads of resnet20 (run ", "Classifiers of TOFD's resnet20 (run "):
        assert start in text
    assert re.search(r"takd of resnet8 learned from resnet14 \(run \w{8}\), and that from resnet20\.", text)

    again = call("run", *rows, *SMALL, *teacher, "--epochs", "1")
    assert (again.code, again.err) == (0, "")


def test_heads_are_trained_once_for_all_seeds_and_both_commands(tiny: Path, call: Call) -> None:
    done = call("train-heads", "resnet14", *WITH)
    assert done.code == 0, done.err
    (before,) = runs_in(tiny / "results").values()
    assert (before["row"], before["status"]) == ("heads", "done")
    heads = [f"{100 * top1:.2f}" for top1 in before["branches"]]
    assert len(heads) == 3
    assert ", ".join(heads) in " ".join(done.out.split())
    assert "SGD x 0.2 after epochs" in " ".join(call("report").out.split())

    ran = call(*PAIR, "--methods", "dih", "--seeds", "2")
    assert ran.code == 0, ran.err
    assert trained(ran.err) == Counter(f"resnet8 dih seed {seed} main epoch 1/1" for seed in (1, 2))
    assert runs_in(tiny / "results")[str(before["id"])] == before
    assert counted(tiny / "results") == {("heads", "done"): 1, ("dih", "done"): 2}


def test_a_killed_command_goes_on_to_the_same_numbers(tmp_path: Path, call: Call) -> None:
    write_images(tmp_path / "tiny.npz")
    write_teacher(tmp_path / "resnet14.pth")
    words = (*PAIR[:-2], "--epochs", "3", "--methods", "dih,takd", "--seeds", "1", *ASSISTED)
    shell = Shell(tmp_path)
    process = shell.start(*words)
    try:
        wait_for("heads seed 30 main epoch 1/3", process)
    finally:
        process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert {status for (_, status) in counted(tmp_path / "results")} == {"running", "planned"}
    again = shell.start(*words)
    try:
        said = wait_for("dih seed 1 main epoch 1/3", again)
    finally:
        again.kill()
    finish(again)
    assert "heads seed 30 main epoch 1/3" not in said
    done = call(*words)
    assert done.code == 0, done.err
    assert call(*words, "--results", "undisturbed").code == 0
    assert_same_numbers(tmp_path / "results", tmp_path / "undisturbed")


def test_what_needs_a_failed_run_fails_with_its_reason(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def broken(*_: object) -> None:
        raise ValueError("no heads today")

    with monkeypatch.context() as patched:
        patched.setattr(Heads, "loss", broken)
        done = call(*NEEDING)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert done.errors[-1].startswith("kdtable: 3 runs failed")
    assert counted(tiny / "results") == {
        ("heads", "failed"): 1,
        ("dih", "failed"): 2,
        ("kd", "done"): 1,
        ("takd", "done"): 2,
    }
    reasons = {str(run["row"]): str(run["reason"]) for run in runs_in(tiny / "results").values() if run["reason"]}
    assert reasons["heads"] == "ValueError: no heads today"
    assert reasons["dih"] == ("it needs heads of resnet14+heads, seed 30, which failed: ValueError: no heads today")
    assert done.err.count(reasons["dih"]) == 2
    assert reasons["dih"] in " ".join(call("status").out.split())

    again = call(*NEEDING)
    assert again.code == 0, again.err
    assert trained(again.err) == Counter(
        ["resnet14+heads heads seed 30 main epoch 1/1"] + [f"resnet8 dih seed {seed} main epoch 1/1" for seed in (1, 2)]
    )
    assert {status for _, status in counted(tiny / "results")} == {"done"}
    assert {run["reason"] for run in runs_in(tiny / "results").values()} == {None}


def test_a_run_without_weights_is_trained_again_for_those_that_need_it(tiny: Path, call: Call) -> None:
    """As a row of its own an assistant need not be kept."""
    alone = (*PAIR, "--methods", "kd", "--seeds", f"{FIRST_SEED},", "--keep", "none")
    assert call(*alone).code == 0
    (before,) = runs_in(tiny / "results").values()
    assert (before["kept"], students_in(tiny / "results")) == ("none", {})
    done = call(*PAIR, "--methods", "takd", "--seeds", "1", *ASSISTED)
    assert done.code == 0, done.err
    assert trained(done.err) == Counter(["resnet8 kd seed 30 main epoch 1/1", "resnet8 takd seed 1 main epoch 1/1"])
    after = runs_in(tiny / "results")[str(before["id"])]
    assert (after["kept"], after["last_top1"]) == ("last", before["last_top1"])
    assert call(*alone).err == "", "it is not trained a third time"


def test_a_lost_network_is_named(tiny: Path, call: Call) -> None:
    assert call("train-heads", "resnet14", *WITH).code == 0
    (student,) = (tiny / "results").glob("runs/*/student.safetensors")
    student.unlink()
    done = call(*PAIR, "--methods", "dih", "--seeds", "1")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert str(student.relative_to(tiny)) in done.errors[-1]
    assert "'kdtable store check'" in done.errors[-1]
    assert "train it into another folder" in " ".join(call("store", "check").out.split())


@two_cores
def test_worker_processes_wait_for_what_they_need(tiny: Path, call: Call) -> None:
    done = Shell(tiny).run(*NEEDING, "--jobs", "2")
    assert done.code == 0, done.err
    told = trained(done.err)
    assert (len(told), set(told.values())) == (6, {1})
    assert call(*NEEDING, "--results", "alone").code == 0
    assert_same_numbers(tiny / "results", tiny / "alone")


def test_a_pair_without_an_assistant_is_not_applicable(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = call(*PAIR, "--methods", "vanilla,takd", "--seeds", "1")
    assert done.code == 0, done.err
    assert counted(tiny / "results") == {("vanilla", "done"): 1, ("takd", "n/a"): 1}
    why = "because no network of the student's family lies between the two (--set assistant=NETWORK names one)."
    assert f"N/A: takd on resnet14:resnet8, {why}" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--methods", "kd"), ("--pairs is missing", "--paper")),
        (("--pairs", "resnet14:resnet8"), ("--methods is missing", "--paper")),
        ((), ("--pairs is missing", "--paper")),
        (("--paper", "dih", "--reading", "papre"), ("unknown reading", "did you mean paper")),
        (("--paper", "dih", "--pairs", "resnet14:resnet8", "--set", "assistant=resnet9"), ("network 'resnet9'",)),
        (("--paper", "dih", "--pairs", "resnet14:resnet8", "--methods", "dih", *ASSISTED), ("setting 'assistant'",)),
    ],
)
def test_requests_that_are_refused(words: tuple[str, ...], parts: tuple[str, ...], tiny: Path, call: Call) -> None:
    before = listing(tiny)
    assert_refused(call("run", *words, *WITH), *parts)
    assert listing(tiny) == before


def test_a_paper_alone_means_all_of_its_tables(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set and no teacher is there."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("kdtable.cli.dry_run._estimate_words", lambda *_: "told")
    monkeypatch.setattr("kdtable.cli.dry_run.estimate", lambda *_, **__: Estimate(1.0, 1, 1))
    done = call("run", "--paper", "dih", "--device", "cpu", "--dry-run")
    assert (done.code, done.err) == (0, "")
    for data in ("cifar10 ", "cifar100 ", "tiny-imagenet "):
        for row in ("vanilla", "takd", "heads", "tofd-teacher", "dih", "mhkd"):
            assert any(data in line and f" {row} " in line for line in done.out.splitlines()), (data, row)
    assert "Not applicable: takd on wide_resnet34:wide_resnet18, seed 67: no network" in done.out
    assert listing(tmp_path) == {}
