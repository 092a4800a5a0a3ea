"""The classifiers of both networks, and the last maps that they average: read, and never trained by a method."""

from typing import cast

from torch import Tensor, nn

from kdtable.models.network import Network
from kdtable.models.outputs import Outputs


def classifier_of(network: nn.Module | None) -> nn.Linear:
    """The linear layer that makes a network's logits of its embedding.

    Raises:
        ValueError: there is no network.
    """
    if network is None:
        raise ValueError("the method reads a network's classifier, and there is no network")
    return cast(Network, network).linear_classifier()


def frozen_classifier(network: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of a teacher's classifier as constants.

    Raises:
        ValueError: there is no teacher.
    """
    layer = classifier_of(network)
    return layer.weight.detach(), layer.bias.detach()


def without_last(student: Outputs, teacher: Outputs) -> str | None:
    """Why the last maps cannot be compared: a network has none; ``None`` if both have one."""
    for who, outputs in (("student", student), ("teacher", teacher)):
        if outputs.last is None:
            return f"the {who} shows no last map whose spatial mean its classifier reads"
    return None
