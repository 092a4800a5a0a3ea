"""Every row's first steps on the device, compared with the same steps in float64 on the CPU."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from kdtable.doctor.check import Failure
from kdtable.doctor.rows import CPU, built, rows
from kdtable.planning.run import Run

STEPS: Final = 3
#: Relative error that the loss terms of the first step may have, and the weights after all steps.
OF_TERMS: Final = 1e-4
OF_WEIGHTS: Final = 1e-3
#: A device may be off by this many times the CPU's own error in float32, where that is more.
CALIBRATION: Final = 4.0
#: Relative error of the first step's terms in half precision.
OF_HALF: Final = 0.1


@dataclass(frozen=True, slots=True)
class Course:
    """What a run's first steps gave.

    Attributes:
        terms: (terms,) float64, on the CPU: those of the first step of each stage.
        weights: (parameters,) float64, on the CPU: the student's, after the last step.
        draws: whether the method drew from its generator, whose stream differs from device to device.
    """

    terms: Tensor
    weights: Tensor
    draws: bool


def course(run: Run, device: torch.device, name: str = "fp32", *, exact: bool = False, steps: int = STEPS) -> Course:
    """Train a run's stages for a few steps each."""
    made = built(run, device, name, exact=exact)
    member, terms = made.member, []
    generator = member.method.setting.generator
    before = generator.get_state()
    for stage in member.stages:
        made.sweep()
        member.begin_epoch()
        teacher = made.stage_teacher()
        for number, batch in enumerate(made.batches(stage.name, steps)):
            member.step(batch, made.outputs(teacher, batch))
            if number == 0:
                terms.append(member.learner.sums[1:-1].cpu().double() / len(batch))
        member.advance()
    weights = torch.cat([p.detach().cpu().double().flatten() for p in member.student.parameters()])
    return Course(torch.cat(terms), weights, not torch.equal(before, generator.get_state()))


def parity(device: torch.device, folder: Path) -> str:
    """Compare every row in fp32 with float64; a row that draws random numbers elsewhere must be finite."""
    worst = {"terms": 0.0, "weights": 0.0}
    wrong, drawn = [], 0
    for name, run in rows().items():
        exact, here = course(run, CPU, exact=True), course(run, device)
        if exact.draws and device.type != "cpu":
            drawn += 1
            if not here.weights.isfinite().all():
                wrong.append(f"{name} is not finite")
            continue
        cpu = here if device.type == "cpu" else course(run, CPU)
        for part, allowed in (("terms", OF_TERMS), ("weights", OF_WEIGHTS)):
            error, own = (error_of(getattr(one, part), getattr(exact, part)) for one in (here, cpu))
            worst[part] = max(worst[part], error)
            if not error <= (allowed if device.type == "cpu" else max(allowed, CALIBRATION * own)):
                wrong.append(f"{name}'s {part} are off by {error:.1e}")
    if wrong:
        raise Failure("; ".join(wrong))
    besides = f"; {drawn} that draw random numbers are finite" if drawn else ""
    return (
        f"{len(rows()) - drawn} rows agree with float64: terms of step 1 to {worst['terms']:.0e}, "
        f"weights after {STEPS} steps of each stage to {worst['weights']:.0e}{besides}"
    )


def half_precision(device: torch.device, folder: Path) -> str:
    """Take one step of every row in bf16, and on a GPU in fp16: finite, and near fp32."""
    names = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    worst, wrong = 0.0, []
    for name, run in rows().items():
        plain = course(run, device, steps=1)
        for half in names:
            error = error_of(course(run, device, half, steps=1).terms, plain.terms)
            worst = max(worst, error)
            if not error <= OF_HALF:
                wrong.append(f"{name} in {half} is off by {error:.1e}")
    if wrong:
        raise Failure("; ".join(wrong))
    return f"{len(rows())} rows in {' and '.join(names)} are finite, and within {worst:.0e} of fp32"


def error_of(found: Tensor, expected: Tensor) -> float:
    """The relative error in the Euclidean norm; infinite if something is not finite."""
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    return float("inf") if math.isnan(error) else error
