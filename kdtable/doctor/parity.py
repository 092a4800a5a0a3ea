"""Every row's first steps on the device, compared with the same steps in float64 on the CPU."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from kdtable.doctor.check import Failure
from kdtable.doctor.rows import CPU, Built, built, distinct
from kdtable.planning.run import Run

STEPS: Final = 3
#: Relative error that the loss terms of the first step may have, and the weights after all steps.
OF_TERMS: Final = 1e-4
OF_WEIGHTS: Final = 1e-3
ALLOWED: Final = {"terms": OF_TERMS, "weights": OF_WEIGHTS}
#: Where that is more, a device may be off by this many times what rounding makes of the float64 steps.
CALIBRATION: Final = 4.0
#: Relative noise on every layer's output that stands for rounding: that of a float32 sum over thousands of products.
ROUNDING: Final = 2.0**-17
#: Float64 courses with such noise; what it does depends on which side of a kink a number falls.
NOISY: Final = 2
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


def course(
    run: Run,
    device: torch.device,
    name: str = "fp32",
    *,
    exact: bool = False,
    steps: int = STEPS,
    noise: int | None = None,
) -> Course:
    """Train a run's stages for a few steps each; with noise that stands for rounding, if it is given a seed."""
    made = built(run, device, name, exact=exact)
    if noise is not None:
        _add_noise(made, noise)
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


def _add_noise(made: Built, seed: int) -> None:
    """Multiply what the layers of student, adaptors and teacher give by numbers near 1."""
    draws = torch.Generator().manual_seed(seed)

    def noisy(layer: nn.Module, inputs: object, output: object) -> object:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        return output * (1 + ROUNDING * (2 * torch.rand(output.shape, generator=draws, dtype=output.dtype) - 1))

    of_teacher = (
        [] if made.teacher is None else [one for one in vars(made.teacher).values() if isinstance(one, nn.Module)]
    )
    for module in (made.member.student, made.member.method, *of_teacher):
        for layer in module.modules():
            if next(layer.children(), None) is None:
                layer.register_forward_hook(noisy)


def parity(device: torch.device, folder: Path) -> str:
    """Compare every row in fp32 with float64; a row that draws random numbers elsewhere must be finite."""
    worst = dict.fromkeys(ALLOWED, 0.0)
    wrong, loose, drawn = [], [], 0
    for name, run in distinct().items():
        exact, here = course(run, CPU, exact=True), course(run, device)
        if exact.draws and device.type != "cpu":
            drawn += 1
            if not here.weights.isfinite().all():
                wrong.append(f"{name} is not finite")
            continue
        errors = _errors(here, exact)
        beyond = {part: error for part, error in errors.items() if not error <= ALLOWED[part]}
        if beyond:
            rounding = _rounding(run, exact, device)
            off = [part for part, error in beyond.items() if not error <= CALIBRATION * rounding[part]]
            wrong += [f"{name}'s {part} are off by {beyond[part]:.1e}" for part in off]
            loose += [] if off else [f"{name} ({max(beyond.values()):.0e})"]
        else:
            worst = {part: max(most, errors[part]) for part, most in worst.items()}
    if wrong:
        raise Failure("; ".join(wrong))
    besides = f"; but for {', '.join(loose)}, where rounding alone does as much" if loose else ""
    besides += f"; {drawn} that draw random numbers are finite" if drawn else ""
    return (
        f"{len(distinct()) - drawn} distinct rows agree with float64: terms of step 1 to {worst['terms']:.0e}, "
        f"weights after {STEPS} steps of each stage to {worst['weights']:.0e}{besides}"
    )


def _errors(found: Course, expected: Course) -> dict[str, float]:
    """Relative errors of terms and weights."""
    return {part: error_of(getattr(found, part), getattr(expected, part)) for part in ALLOWED}


def _rounding(run: Run, exact: Course, device: torch.device) -> dict[str, float]:
    """What rounding makes of terms and weights: as noise in float64, or for a GPU as the CPU's float32."""
    courses = [course(run, CPU, exact=True, noise=seed) for seed in range(NOISY)]
    if device.type != "cpu":
        courses.append(course(run, CPU))
    errors = [_errors(one, exact) for one in courses]
    return {part: max(one[part] for one in errors) for part in ALLOWED}


def half_precision(device: torch.device, folder: Path) -> str:
    """Take one step of every row in bf16, and on a GPU in fp16: finite, and near fp32."""
    names = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    worst, wrong = 0.0, []
    for name, run in distinct().items():
        plain = course(run, device, steps=1)
        for half in names:
            error = error_of(course(run, device, half, steps=1).terms, plain.terms)
            worst = max(worst, error)
            if not error <= OF_HALF:
                wrong.append(f"{name} in {half} is off by {error:.1e}")
    if wrong:
        raise Failure("; ".join(wrong))
    return f"{len(distinct())} distinct rows in {' and '.join(names)} are finite, and within {worst:.0e} of fp32"


def error_of(found: Tensor, expected: Tensor) -> float:
    """The relative error in the Euclidean norm; infinite if something is not finite."""
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    return float("inf") if math.isnan(error) else error
