"""What the state in a checkpoint must be like to continue its run: whatever a file says of itself may be untrue.

Each function raises an exception of whatever kind where a file has nothing like what is looked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from kdtable.recipes.metrics import is_share

if TYPE_CHECKING:
    from kdtable.recipes.record import EpochRecord

#: What changes in the course of a stage; all else of an optimiser's group and of a scaler is as it begins.
_RATE: Final = "lr"
_SCALES: Final = ("scale", "_growth_tracker")


def place_after(history: Sequence["EpochRecord"], stages: Sequence[tuple[str, int]]) -> tuple[int, int]:
    """Where a run is behind these epochs: the position of its stage, past the last one at the end; its epochs in that.

    Args:
        history: of the run.
        stages: name and number of epochs of each.

    Raises:
        ValueError: no run has such a history.
    """
    whole = [(name, epoch) for name, epochs in stages for epoch in range(1, epochs + 1)]
    if [(record.stage, record.epoch) for record in history] != whole[: len(history)]:
        raise ValueError("its epochs are not those of the run, each once and in their order")
    for record in history:
        _check_record(record)
    left = len(history)
    for position, (_, epochs) in enumerate(stages):
        if left < epochs:
            return position, left
        left -= epochs
    return len(stages), stages[-1][1]


def _check_record(record: "EpochRecord") -> None:
    numbers = [record.lr, record.train_loss, record.seconds, record.waited]
    if record.test_loss is not None:
        numbers.append(record.test_loss)
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


def check_place(state: Mapping[str, Any], place: tuple[int, int]) -> None:
    """Compare where a state says that its run is with where its history ends.

    Raises:
        ValueError: these are different places.
    """
    if (state["position"], state["epoch"]) != place:
        raise ValueError("it says that it is at another epoch than the one at which its history ends")


def check_optimizer(
    given: Mapping[str, Any], settings: Mapping[str, object], fits: Callable[[object, Tensor], bool], *, moved: bool
) -> None:
    """Compare an optimiser's state with what its stage's optimiser is.

    Args:
        given: the state.
        settings: of its one group. Those that the state does not have may be of another version of torch.
        fits: whether a tensor can belong to the parameter of a number.
        moved: whether it has made a step.

    Raises:
        ValueError: they differ.
    """
    (group,) = given["param_groups"]
    for name, value in settings.items():
        if name != _RATE and name in group and group[name] != value:
            raise ValueError(f"its optimiser has another {name} than its recipe")
    if not _finite(group[_RATE]):
        raise ValueError("its learning rate is none")
    if moved and settings.get("momentum") and not given["state"]:
        raise ValueError("its optimiser has lost its momentum")
    for number, slots in given["state"].items():
        if slots.keys() - {"momentum_buffer"}:
            raise ValueError("its optimiser is another one")
        if not all(value is None or (isinstance(value, Tensor) and fits(number, value)) for value in slots.values()):
            raise ValueError(f"its optimiser's state of parameter {number} is of another shape")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, moved: bool) -> None:
    """Take a state's tensors and its learning rate; all else stays the recipe's, whatever the state says.

    Args:
        optimizer: a fresh one of its stage.
        state: that another one of the same stage gave.
        moved: whether that has made a step.

    Raises:
        ValueError: it cannot be of this stage.
    """
    (group,) = optimizer.state_dict()["param_groups"]
    parameters = optimizer.param_groups[0]["params"]
    shapes: dict[object, torch.Size] = {number: parameter.shape for number, parameter in enumerate(parameters)}
    check_optimizer(state, group, lambda number, value: shapes.get(number) == value.shape, moved=moved)
    groups = [{**group, _RATE: state["param_groups"][0][_RATE]}]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def load_extra(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Take what a module keeps besides tensors, which it alone can judge; where it refuses that, all stays as it is.

    Raises:
        Exception: of whatever kind the module raises.
    """
    own = {key: value for key, value in module.state_dict().items() if key.endswith("_extra_state")}
    try:
        module.load_state_dict({key: state[key] for key in own}, strict=False)
    except Exception:
        module.load_state_dict(own, strict=False)
        raise


def check_scaler(given: Mapping[str, Any], own: Mapping[str, float] | None = None) -> None:
    """Compare a loss scaler's state with what a fresh one has, where that is known.

    Raises:
        ValueError: they differ.
    """
    if not all(map(_finite, given.values())) or given.get("scale", 1) <= 0:
        raise ValueError("its loss scaler has what is no number")
    if own is None:
        return
    if given.keys() != own.keys() or any(given[name] != own[name] for name in own if name not in _SCALES):
        raise ValueError("its loss scaler is of another precision")
