"""The state of a run's own generator, for methods that draw while they train."""

from typing import Any

import torch

from kdtable import seeding


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """What continues the generator's stream, as part of a checkpoint."""
    return {"device": generator.device.type, "state": generator.get_state()}


def restore_generator(generator: torch.Generator, state: dict[str, Any]) -> None:
    """Continue the stream of what :func:`generator_state` gave.

    A generator cannot continue another kind of device's stream: there the draws begin a stream of their own.
    """
    if state["device"] == generator.device.type:
        generator.set_state(state["state"])
    else:
        generator.manual_seed(seeding.derive("continued", generator.initial_seed()))
