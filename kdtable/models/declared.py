"""Networks of other packages, whose taps are declared as nodes of their graph.

The network's own modules run in their own order; only the taps are added. So keys, initial weights and outputs equal
the original's to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from kdtable.models.network import Hold, Network
from kdtable.models.tracing import Tracer

#: Runs a network's graph on images, hands the declared taps to a hold, and returns the embedding.
Run = Callable[[nn.Module, Tensor, Hold], Tensor]


@dataclass(frozen=True, slots=True)
class Taps:
    """Nodes of a graph, by their names in ``torchvision.models.feature_extraction``.

    Attributes:
        stem: the first feature map.
        stages: for each stage, shallow to deep, the node before its activation and the activation itself; the same node
            twice if there is no activation.
        embedding: the classifier's input. Later nodes do not run.
        delayed: activations, each with the node to move it behind. All else in that node's map must be rectified
            already, so that no output changes.
        last: the map whose spatial mean is the embedding; "" if none is declared.
    """

    stem: str
    stages: tuple[tuple[str, str], ...]
    embedding: str
    delayed: tuple[tuple[str, str], ...] = ()
    last: str = ""


class Declared(Network):
    """The children of ``source``, run as ``source`` runs them.

    Operations that would write or overwrite a tap in place run out of place.

    Args:
        source: the network; do not use it afterwards.
        taps: its taps.
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
    """A tracer that names nodes as torchvision does."""


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
    if taps.last:
        shown.append(("last", nodes[taps.last]))
    _show(graph, shown)
    for node in {node for _, node in shown}:
        _keep_from_writing(source, node)
    program = fx.GraphModule(source, graph)
    for holder in (program, tracer):
        vars(holder).clear()  # each is part of a cycle: the weights would live until a cyclic collection
    return cast("Run", type(program).forward)


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
    """Call the named method of the hold right after each node."""
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
