"""Several methods at once, and settings by pair, from the command to the table."""

import json
from contextlib import closing
from pathlib import Path

from kdtable.store import Store
from tests.cli.command import SMALL, TEACHER, Call

SETTINGS = ("--set", "crd.negatives=16", "--set", "dim=8")
RUN = ("run", *SMALL, *TEACHER, "--epochs", "1", "--seeds", "1", "--pairs", "resnet14:resnet8,resnet14:resnet14")


def test_a_row_of_several_methods(tiny: Path, call: Call) -> None:
    words = (*RUN, "--methods", "kd,CRD+AT,at+dml", *SETTINGS, "--set", "resnet14:resnet8/weight.at=500")
    done = call(*words)
    assert done.code == 0, done.err
    (row,) = [line for line in done.out.splitlines() if "at+crd" in line and "│" in line]
    assert "at+crd (crd.dim=8, crd.negatives=16)" in row, "one row, by what all pairs have"
    assert "Settings of this pair: weight.at=500.0." in done.out
    assert "N/A: at+dml on resnet14:resnet8, because dml cannot be combined: it trains its peers" in done.out
    with closing(Store(tiny / "results", create=False)) as store:
        trained = [run for run in store.runs() if run.row == "at+crd"]
    assert {run.protocol.identity["method"]["name"] for run in trained} == {"at+crd"}
    assert {json.dumps(run.protocol.identity["method"]["parts"]) for run in trained} == {'{"at": 1, "crd": 1}'}
    again = call(*words, "--dry-run")
    assert "4 done, 0 to train" in again.out
    shown = call("show", trained[0].id)
    assert "at+crd, version 1 (at 1, crd 1)" in shown.out
    assert "--set crd.dim=8" in shown.out
