"""AdamW, a cosine, smoothing, mixed images, RandAugment and a moving average through the command line."""

import re
import shlex
from pathlib import Path

from safetensors.torch import load_file

from kdtable.store import Store
from tests.cli.command import SMALL, TEACHER, Call, runs_in

RECIPE = ("optimizer=adamw", "schedule=cosine", "warmup_epochs=1", "label_smoothing=0.1", "mixup=0.2", "cutmix=1")
RECIPE += ("randaugment=1", "ema=0.9")
CHANGES = ("--lr", "0.002", *(word for change in RECIPE for word in ("--set", change)))


def test_a_table_by_a_recipe_of_today(tiny: Path, call: Call) -> None:
    grid = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd,crd", "--seeds", "1", "--epochs", "2", *SMALL)
    done = call(*grid, *CHANGES, *TEACHER)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert (
        "AdamW lr 0.002 on a cosine to 0, warm-up over 1 epoch, weight decay 0.0005, zero-padded crop 4, RandAugment "
        "(1 x magnitude 9), MixUp 0.2 or CutMix 1, label smoothing 0.1, measured is the moving average of decay 0.9; "
    ) in told
    assert "optimizer adamw for sgd; randaugment 1 for 0; schedule cosine for steps" in told
    assert "N/A: crd on resnet14:resnet8, because its banks have a row for each training image" in told
    (run,) = (run for run in Store(tiny / "results").runs() if run.row == "kd")
    measured = run.metrics_of("last")
    assert measured is not None

    evaluated = call("evaluate", run.id, "--data", "npz:tiny.npz")
    assert f"top-1 accuracy {100 * measured['top1']:.2f} %" in evaluated.out, "what was measured is what is kept"
    assert not any("average" in key for key in load_file(tiny / f"results/runs/{run.id}/student.safetensors"))

    shown = call("show", run.id).out
    assert re.search(r"ema +0\.9", shown)
    (command,) = (line.strip() for line in shown.splitlines() if line.strip().startswith("kdtable run"))
    _, *words = shlex.split(command.replace("FILE", "resnet14.pth"))
    before = runs_in(tiny / "results").keys()
    again = call(*words, "--device", "cpu")
    assert again.code == 0, again.err
    assert runs_in(tiny / "results").keys() == before
    assert "cohort" not in again.err + again.out


def test_a_teacher_by_a_recipe_of_today(tiny: Path, call: Call) -> None:
    done = call("train-teachers", "resnet8", "--epochs", "1", *SMALL, *CHANGES)
    assert done.code == 0, done.err
    (run,) = Store(tiny / "results").runs()
    recipe = run.protocol.identity["recipe"]
    assert (recipe["ema"], recipe["mixup"], recipe["milestones"]) == (0.9, 0.2, [])
