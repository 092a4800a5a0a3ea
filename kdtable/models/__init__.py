"""Networks: built by name, all with the same outputs."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from kdtable.models.names import ALIASES, NETWORKS, Entry, canonical

if TYPE_CHECKING:
    from kdtable.models.network import Network

__all__ = ["ALIASES", "NETWORKS", "Entry", "build", "canonical"]


def build(
    name: str,
    num_classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> "Network":
    """A freshly initialised network, which draws from torch's global generator.

    Args:
        name: a name or alias that ``canonical`` accepts.
        num_classes: the number of logits.
        mean: what is subtracted from each channel of the images; it comes with ``std``.
        std: what the difference is divided by. Neither adds a key to the ``state_dict``.

    Raises:
        BadRequest: ``name`` is unknown or ambiguous.
        ValueError: ``num_classes`` is below 1, or ``mean`` and ``std`` do not fit together.
    """
    entry = NETWORKS[canonical(name)]
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if (mean is None) != (std is None):
        raise ValueError("mean and std must be given together")
    network: Network = getattr(import_module(entry.module), entry.cls)(num_classes=num_classes, **entry.args)
    if mean is not None and std is not None:
        network.normalise_inputs(mean, std)
    return network
