"""Validate a checkpoint's state before a run continues from it; nothing in the file is trusted.

On malformed state, the functions may raise exceptions of any type.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from kdtable.recipes.metrics import is_share
from kdtable.recipes.record import EpochRecord

#: Settings that change within a stage; all others of an optimiser's group and of a scaler stay as they start.
_RATE: Final = "lr"
#: A setting that depends on the device alone.
_CAPTURABLE: Final = "capturable"
#: What SGD and DOT keep of a parameter, each where it has a gradient; and what AdamW keeps, all or nothing.
_MOMENTA: Final = frozenset({"momentum_buffer", "kd_momentum_buffer"})
_MOMENTS: Final = frozenset({"step", "exp_avg", "exp_avg_sq"})
_SCALES: Final = ("scale", "_growth_tracker")


def read_position(
    state: Mapping[str, Any], stages: Sequence[tuple[str, int]]
) -> tuple[list[EpochRecord], tuple[int, int]]:
    """The history in a state, and where it ends: the index of the stage and the number of its finished epochs.

    At the end of the run the index is the number of stages.

    Args:
        state: as in a checkpoint.
        stages: name and number of epochs of each of the run's stages.

    Raises:
        ValueError: the history does not fit the stages or the state's own position, or has invalid values.
    """
    history = [EpochRecord(**record) for record in state["history"]]
    whole = [(name, epoch) for name, epochs in stages for epoch in range(1, epochs + 1)]
    if [(record.stage, record.epoch) for record in history] != whole[: len(history)]:
        raise ValueError("its epochs are not those of the run, each once and in their order")
    for record in history:
        _check_record(record)
    position = _position(len(history), stages)
    if (state["position"], state["epoch"]) != position:
        raise ValueError("it says that it is at another epoch than the one at which its history ends")
    return history, position


def _position(left: int, stages: Sequence[tuple[str, int]]) -> tuple[int, int]:
    for position, (_, epochs) in enumerate(stages):
        if left < epochs:
            return position, left
        left -= epochs
    return len(stages), stages[-1][1]


def _check_record(record: EpochRecord) -> None:
    numbers = [record.lr, record.train_loss, record.seconds, record.waited]
    numbers += [number for number in (record.test_loss, record.cpu_seconds) if number is not None]
    for named in (record.metrics, record.terms):
        if not all(isinstance(name, str) for name in named):
            raise TypeError(f"its epoch {record.epoch} names what it measured by what is no text")
        numbers += named.values()
    if not all(map(_finite, numbers)):
        raise ValueError(f"its epoch {record.epoch} has what is no finite number")
    if not all(0 <= value <= 1 for name, value in record.metrics.items() if is_share(name)):
        raise ValueError(f"its epoch {record.epoch} has an accuracy outside [0, 1]")
    if not all(type(number) is int and number > 0 for number in (record.epoch, record.cohort_size)):
        raise ValueError(f"its epoch {record.epoch} was trained in impossible company")


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def check_optimizer(
    given: Mapping[str, Any], settings: Mapping[str, object], fits: Callable[[object, Tensor], bool], *, moved: bool
) -> None:
    """Check an optimiser's state against its stage's optimiser.

    Args:
        given: the state.
        settings: of the only parameter group. The state may lack some, as torch's versions differ.
        fits: whether a tensor fits the parameter with an index.
        moved: whether the optimiser has made a step.

    Raises:
        ValueError: they differ.
    """
    (group,) = given["param_groups"]
    for name, value in settings.items():
        if name not in (_RATE, _CAPTURABLE) and name in group and group[name] != value:
            raise ValueError(f"its optimiser has another {name} than its recipe")
    if not _finite(group[_RATE]):
        raise ValueError("its learning rate is none")
    has_moments = "betas" in settings
    if moved and (has_moments or settings.get("momentum")) and not given["state"]:
        raise ValueError("its optimiser has lost its momentum")
    for number, slots in given["state"].items():
        if slots.keys() != _MOMENTS if has_moments else slots.keys() - _MOMENTA:
            raise ValueError("its optimiser is another one")
        shaped = [value for name, value in slots.items() if name != "step" and (has_moments or value is not None)]
        if not all(isinstance(value, Tensor) and fits(number, value) for value in shaped):
            raise ValueError(f"its optimiser's state of parameter {number} is of another shape")
        if has_moments and not _counts(slots["step"]):
            raise ValueError(f"its optimiser's state of parameter {number} has no number of steps")


def _counts(step: object) -> bool:
    """Whether it is a number of steps, as AdamW keeps it."""
    return isinstance(step, Tensor) and step.shape == () and step.dtype == torch.float32 and float(step) >= 1


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, moved: bool) -> None:
    """Load a state's tensors and learning rate into an optimiser; all other settings stay the recipe's.

    Args:
        optimizer: a fresh one for the stage.
        state: saved by an optimiser of the same stage.
        moved: whether that optimiser had made a step.

    Raises:
        ValueError: the state does not fit the stage.
    """
    (group,) = optimizer.state_dict()["param_groups"]
    parameters = optimizer.param_groups[0]["params"]
    shapes: dict[object, torch.Size] = {number: parameter.shape for number, parameter in enumerate(parameters)}
    check_optimizer(state, group, lambda number, value: shapes.get(number) == value.shape, moved=moved)
    groups = [{**group, _RATE: state["param_groups"][0][_RATE]}]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def load_extra(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a module's extra state, which only the module can check; on an error nothing changes.

    Raises:
        Exception: of any type that the module raises.
    """
    own = {key: value for key, value in module.state_dict().items() if key.endswith("_extra_state")}
    try:
        module.load_state_dict({key: state[key] for key in own}, strict=False)
    except Exception:
        module.load_state_dict(own, strict=False)
        raise


def check_scaler(given: Mapping[str, Any], own: Mapping[str, float] | None = None) -> None:
    """Check a loss scaler's state, against that of a fresh one if that is given.

    Raises:
        ValueError: it is invalid.
    """
    if not all(map(_finite, given.values())) or given.get("scale", 1) <= 0:
        raise ValueError("its loss scaler has what is no number")
    if own is None:
        return
    if given.keys() != own.keys() or any(given[name] != own[name] for name in own if name not in _SCALES):
        raise ValueError("its loss scaler is of another precision")
