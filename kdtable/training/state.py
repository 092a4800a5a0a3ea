"""The state of a member: what continues its run to the same bits, as tensors and plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kdtable.checkpoints.validation import (
    check_place,
    check_scaler,
    load_extra,
    load_optimizer,
    place_after,
)
from kdtable.methods.base import Stage
from kdtable.recipes.record import EpochRecord
from kdtable.training.step import Learner


def state_of(learner: Learner, history: Sequence[EpochRecord]) -> dict[str, Any]:
    """The state of a learner behind these epochs."""
    return {
        "student": learner.student.state_dict(),
        "method": learner.method.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "history": [asdict(record) for record in history],
    }


def read_place(state: Mapping[str, Any], stages: Sequence[Stage]) -> tuple[list[EpochRecord], tuple[int, int]]:
    """The history that a state has, and where that ends: the position of the stage and the epochs behind it there.

    Raises:
        Exception: of any kind; it is no state of a run of these stages.
    """
    history = [EpochRecord(**record) for record in state["history"]]
    place = place_after(history, [(stage.name, stage.recipe.epochs) for stage in stages])
    check_place(state, place)
    return history, place


def load_optimisation(learner: Learner, state: Mapping[str, Any], epoch: int) -> None:
    """Give a fresh learner the optimiser of a state, behind so many epochs of its stage.

    Raises:
        Exception: of any kind; it is no state of this learner, which is then to be thrown away.
    """
    check_scaler(state["scaler"], learner.scaler.state_dict())
    learner.scaler.load_state_dict(state["scaler"])
    # A scaler may have skipped every step.
    load_optimizer(learner.optimizer, state["optimizer"], moved=epoch > 0 and not learner.scaler.is_enabled())
    load_extra(learner.method, state["method"])


def load_networks(learner: Learner, state: Mapping[str, Any]) -> None:
    """Give student and method the tensors of a state, which have been compared with theirs."""
    learner.student.load_state_dict(state["student"])
    learner.method.load_state_dict(state["method"])
