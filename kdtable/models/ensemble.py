"""Several networks that teach together."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from kdtable.models.network import Network
from kdtable.models.outputs import EVERYTHING, Outputs, log_mean_softmax


class Ensemble(nn.Module):
    """Networks that see the same images, each through its own input normalisation.

        outputs = Ensemble([first, second])(torch.rand(2, 3, 32, 32))
        outputs.logits.softmax(dim=1)  # the mean of both networks' probabilities
        outputs.logits_at(4.0)  # the logits that soft targets at T = 4 read

    Args:
        networks: the networks, of the same classes.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor, keep: frozenset[str] = EVERYTHING) -> Outputs:
        """The logits of the mean probabilities of ``images`` (N, 3, H, W), and each network's own; no features."""
        each = tuple(network(images, frozenset()).logits for network in self.networks)
        return Outputs(log_mean_softmax(each), each=each)


def single_networks(network: Network | Ensemble) -> list[Network]:
    """The networks of an ensemble, or the network itself."""
    return [cast("Network", one) for one in network.networks] if isinstance(network, Ensemble) else [network]
