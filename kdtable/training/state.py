"""A member's state: all that is needed to resume its run bit for bit, as tensors and plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kdtable.checkpoints.validation import (
    check_scaler,
    load_extra,
    load_optimizer,
)
from kdtable.recipes.record import EpochRecord
from kdtable.training.step import Learner


def state_of(learner: Learner, history: Sequence[EpochRecord]) -> dict[str, Any]:
    """The state of a learner after the epochs of ``history``."""
    average = {} if learner.average is None else {"average": learner.average.network.state_dict()}
    return {
        **average,
        "student": learner.student.state_dict(),
        "method": learner.method.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "history": [asdict(record) for record in history],
    }


def load_optimisation(learner: Learner, state: Mapping[str, Any], epoch: int) -> None:
    """Load a state's optimiser into a fresh learner, after ``epoch`` epochs of its stage.

    Raises:
        Exception: of any kind; it is no state of this learner. The learner is then unusable.
    """
    check_scaler(state["scaler"], learner.scaler.state_dict())
    learner.scaler.load_state_dict(state["scaler"])
    # With a scaler, every step so far may have been skipped.
    load_optimizer(learner.optimizer, state["optimizer"], moved=epoch > 0 and not learner.scaler.is_enabled())
    load_extra(learner.method, state["method"])


def load_networks(learner: Learner, state: Mapping[str, Any]) -> None:
    """Load a state's tensors, already checked, into student, method and moving average."""
    learner.student.load_state_dict(state["student"])
    learner.method.load_state_dict(state["method"])
    if learner.average is not None:
        learner.average.network.load_state_dict(state["average"])
