"""Runs and cohorts as a plan has them."""

from pathlib import Path
from typing import Any

from kdtable import papers
from kdtable.data.spec import DataSpec
from kdtable.methods import get
from kdtable.methods.objective import Objective
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, TeacherRef
from kdtable.recipes.recipe import Recipe

HALF = (0.5, 0.5, 0.5)
DATA = DataSpec("own", "own-0", "npz", Path("/there/own.npz"), "a" * 64, 4, HALF, HALF, 32, 64, 24)
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, milestones=(1,))
TEACHER = FileTeacher("resnet14", HALF, HALF, "b" * 64, Path("/teachers/resnet14.pth"))
OTHER_TEACHER = FileTeacher("resnet20", HALF, HALF, "c" * 64, Path("/teachers/resnet20.pth"))


def run(row: str, student: str = "resnet8", teacher: TeacherRef | None = TEACHER, **others: Any) -> Run:
    """A run of the CRD paper's row; ``vanilla`` has no teacher."""
    settings = papers.load("crd").row(row)
    small = {"negatives": 16, "dim": 8} if "crd" in row else {}
    return Run(
        row,
        student,
        others.pop("data", DATA),
        others.pop("recipe", RECIPE),
        Objective.of(
            get(row).hyper,
            settings.terms,
            {**settings.params_for(student), **small},
            stage_epochs=dict.fromkeys(settings.stages, 3),
        ),
        others.pop("seed", 1),
        teacher=None if row == "vanilla" else teacher,
        **others,
    )


def cohort(*runs: Run) -> CohortPlan:
    """A cohort of these runs, with the teacher that the first of them has which has one."""
    return CohortPlan(next((run.teacher for run in runs if run.teacher), None), runs)
