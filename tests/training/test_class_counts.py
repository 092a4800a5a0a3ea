"""Two classes and a thousand: every loss of every row is finite, and so is every gradient."""

from dataclasses import replace

import pytest
import torch

from kdtable.doctor.rows import CPU, Built, built, rows
from kdtable.planning.run import Run

#: Rows of several papers that are trained alike are tried once.
ROWS = sorted({(run.row, repr(run.objective), run.student): name for name, run in rows().items()}.values())


def of_classes(run: Run, classes: int) -> Built:
    """The run on noise of so many classes."""
    return built(replace(run, data=replace(run.data, num_classes=classes)), CPU)


@pytest.mark.parametrize("classes", [2, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("row", ROWS)
def test_losses_and_gradients_are_finite(row: str, classes: int) -> None:
    run = of_classes(rows()[row], classes)
    member = run.member
    for stage in member.stages:
        while member.stage is not stage:
            member.advance()
        run.sweep()
        member.begin_epoch()
        (batch,) = run.batches(stage.name, 1)
        teacher = run.stage_teacher()
        for _ in range(2):  # the second step reads what the first one left, such as banks and moving averages
            outputs = run.outputs(teacher, batch)
            losses = member.learner.losses(member.learner.forward(batch), outputs, batch)
            assert all(torch.isfinite(loss) for loss in losses), f"{stage.name}: {losses}"
            member.step(batch, outputs)
        for parameter in (*member.student.parameters(), *member.method.parameters()):
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()
            assert torch.isfinite(parameter).all()
