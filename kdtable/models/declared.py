"""Networks of other packages, whose taps are declared as places in their graph.

The network's own modules run in its own order, and what is shown is added. So its keys, its start and its outputs are
its own, to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from kdtable.models.network import Hold, Network
from kdtable.models.tracing import Tracer

#: Runs a network's graph on images, and shows a hold what is declared; gives the embedding.
Run = Callable[[nn.Module, Tensor, Hold], Tensor]


@dataclass(frozen=True, slots=True)
class Taps:
    """Places in a graph, by the names that ``torchvision.models.feature_extraction`` gives to nodes.

    Attributes:
        stem: the first feature map.
        stages: of each stage, shallow to deep, the node before its activation and the activation itself; one node
            twice where there is none.
        embedding: the classifier's input. What follows it is not run.
        delayed: activations, each with the node that it is to follow instead. The map that it is to act on must
            consist of its old input and of what was rectified before, so that no output changes.
    """

    stem: str
    stages: tuple[tuple[str, str], ...]
    embedding: str
    delayed: tuple[tuple[str, str], ...] = ()


class Declared(Network):
    """The children of ``source``, run as ``source`` runs them.

    No operation in place is left that writes a map which is shown, or over one.

    Args:
        source: the network; it is used up.
        taps: what to show of it.
    """

    def __init__(self, source: nn.Module, taps: Taps) -> None:
        super().__init__()
        self._run = _program(source, taps)
        for name, child in source.named_children():
            self.add_module(name, child)

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        return self._run(self, x, hold)


class _Tracer(Tracer, NodePathTracer):  # type: ignore[misc]
    """Names nodes as torchvision does."""


def _program(source: nn.Module, taps: Taps) -> Run:
    """The graph up to the embedding, as a function of any network that has these children."""
    tracer = _Tracer()
    graph = tracer.trace(source)
    nodes = {name: node for node, name in tracer.node_to_qualname.items()}
    for activation, position in taps.delayed:
        _delay(nodes[activation], nodes[position])
    _end_at(graph, nodes[taps.embedding])
    shown = [("stem", nodes[taps.stem])]
    for before, after in taps.stages:
        shown += [("preact", nodes[before]), ("stage", nodes[after])]
    _show(graph, shown)
    for node in {node for _, node in shown}:
        _keep_from_writing(source, node)
    # A graph module's class holds the function, and no module.
    return cast("Run", type(fx.GraphModule(source, graph)).forward)


def _delay(activation: fx.Node, position: fx.Node) -> None:
    activation.replace_all_uses_with(activation.all_input_nodes[0])
    position.replace_all_uses_with(activation)
    activation.args = (position,)
    position.append(activation)


def _end_at(graph: fx.Graph, embedding: fx.Node) -> None:
    end = next(iter(reversed(graph.nodes)))
    end.args = (embedding,)
    for node in reversed(list(graph.nodes)):
        if node is embedding:
            break
        if node is not end:
            graph.erase_node(node)


def _show(graph: fx.Graph, shown: list[tuple[str, fx.Node]]) -> None:
    """Call the method of the hold that is named beside each node, as soon as the node is there."""
    images = next(iter(graph.nodes))
    with graph.inserting_after(images):
        hold = graph.placeholder("hold")
    for method, node in shown:
        with graph.inserting_after(node):
            graph.call_method(method, (hold, node))


def _keep_from_writing(source: nn.Module, shown: fx.Node) -> None:
    for node in (shown, *shown.users):
        if node.op == "call_module":
            module = source.get_submodule(str(node.target))
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
