"""Networks of other libraries as they are, whose feature maps hooks pick up during their own forward pass.

Modules, keys, initial weights and logits are the library's. Random parts (dropout, stochastic depth) are taken out,
since they draw from torch's global generator, which threads share.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, cast

from torch import Tensor, nn

from kdtable.errors import BadRequest
from kdtable.models.network import Hold, Network

_ACTIVATIONS: Final = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_RANDOM: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_RANDOM_NAMES: Final = ("DropPath", "StochasticDepth", "DropBlock2d")


@dataclass(frozen=True, slots=True)
class Level:
    """A feature map: the output of a module.

    Attributes:
        module: the module's name in the network.
        stem: whether it is the stem, not a stage.
        channels_last: whether the output is (N, H, W, C).
    """

    module: str
    stem: bool = False
    channels_last: bool = False


def levels_of(modules: Sequence[tuple[str, int]], *, channels_last: bool = False) -> tuple[Level, ...]:
    """Levels of feature maps by module and stride, shallow to deep; a first one of stride 1 or 2 is the stem."""
    stem = len(modules) > 2 and modules[0][1] <= 2
    return tuple(Level(name, stem and not place, channels_last) for place, (name, _) in enumerate(modules))


@dataclass
class _Pass:
    """A forward pass under way: the hold, and input and output of the last activation and the last global average."""

    hold: Hold
    activation: tuple[Tensor, Tensor] | None = None
    average: tuple[Tensor, Tensor] | None = field(default=None)


#: The forward pass of this thread.
_PASS: ContextVar[_Pass | None] = ContextVar("pass", default=None)


class Hooked(Network):
    """``source`` with its own children and parameters, run by its own forward pass.

    A stage's preact is the input of the activation module that makes the stage; where none does, the stage itself.
    The last map is the input of the global average that makes the embedding; ``None`` where another module does.
    A level whose output is no map (N, C, H, W), as a transformer's tokens, is left out. ``norms`` names none.

    Args:
        source: the network; do not use it afterwards.
        classifier: name of the linear layer that makes the logits.
        levels: its feature maps, in the order of the pass.

    Raises:
        BadRequest: the classifier is not one linear layer.
    """

    head: ClassVar = ()
    foldable = False  # hooks give the maps, and a graph has no hooks
    _source: nn.Module

    def __init__(self, source: nn.Module, classifier: str, levels: Iterable[Level]) -> None:
        super().__init__()
        _take_out_randomness(source)
        self._classifier = classifier
        layer = source.get_submodule(classifier)
        layer.__class__ = _Classifier
        _hook(source, levels)
        source._buffers |= self._buffers
        self._parameters, self._buffers, self._modules = source._parameters, source._buffers, source._modules
        source._non_persistent_buffers_set |= self._non_persistent_buffers_set
        self._non_persistent_buffers_set = source._non_persistent_buffers_set
        self.__dict__["_source"] = source  # no child: the children are its own

    def train(self, mode: bool = True) -> "Hooked":
        """See :class:`torch.nn.Module`."""
        self._source.training = mode
        super().train(mode)
        return self

    def embed(self, x: Tensor, hold: Hold) -> Tensor:
        """See the base class."""
        with _passing(hold) as run:
            embedding: Any = self._source(x)
        width = self.linear_classifier().in_features
        if not isinstance(embedding, Tensor) or embedding.dim() != 2 or embedding.shape[1] != width:
            raise BadRequest(f"{self.name} cannot be used: its classifier reads no embedding (images, {width})")
        if run.average is not None and _same(run.average[1], embedding):
            hold.last(run.average[0])
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """See the base class."""
        logits: Tensor = self.linear_classifier()(embedding)
        return logits

    def linear_classifier(self) -> nn.Linear:
        """See the base class."""
        return cast("nn.Linear", self._source.get_submodule(self._classifier))

    def get_submodule(self, target: str) -> nn.Module:
        """See :class:`torch.nn.Module`; the source's children may have the names of attributes of ours."""
        return self._source.get_submodule(target) if target else self

    def feature_modules(self) -> list[nn.Module]:
        """See the base class: all children but the one that has the classifier."""
        head = self._classifier.partition(".")[0]
        return [module for name, module in self.named_children() if name != head]


class _Classifier(nn.Linear):
    """A linear layer that gives its input during :meth:`Hooked.embed`, and else its output."""

    def forward(self, input: Tensor) -> Tensor:
        return input if _PASS.get() is not None else super().forward(input)


class _Still(nn.Module):
    """Stands in for a random part and passes its input on; some networks read these numbers."""

    p = drop_prob = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x


def linear_name(source: nn.Module, layer: object, name: str) -> str:
    """The name in ``source`` of its classifier, which must be a linear layer.

    Raises:
        BadRequest: ``layer`` is something else.
    """
    if isinstance(layer, nn.Linear) and type(layer).__name__ == "Linear":
        found: str = next(key for key, module in source.named_modules() if module is layer)
        return found
    raise BadRequest(f"{name} cannot be used: what makes its logits is not one linear layer")


@contextmanager
def _passing(hold: Hold) -> Iterator[_Pass]:
    run = _Pass(hold)
    token = _PASS.set(run)
    try:
        yield run
    finally:
        _PASS.reset(token)


def _take_out_randomness(source: nn.Module) -> None:
    """Exchange modules that draw random numbers, and let none overwrite its input, which may be a feature map."""
    for module in list(source.modules()):
        for name, child in module.named_children():
            if isinstance(child, _RANDOM) or type(child).__name__ in _RANDOM_NAMES:
                module.register_module(name, _Still())
        for name in ("drop_rate", "drop_connect_rate", "drop_path_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]


def _hook(source: nn.Module, levels: Iterable[Level]) -> None:
    modules: Mapping[str, nn.Module] = dict(source.named_modules())
    levels = [level for level in levels if level.module in modules]
    for module in {id(m): m for level in levels for m in modules[level.module].modules()}.values():
        if type(module).__module__ in _ACTIVATIONS and not isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(_at_activation)
    for module in modules.values():
        if _is_global_average(module):
            module.register_forward_hook(_at_average)
    for level in levels:
        modules[level.module].register_forward_hook(partial(_at_level, level))


def _is_global_average(module: nn.Module) -> bool:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    return type(module).__name__ == "FastAdaptiveAvgPool" and getattr(module, "dim", None) in ((2, 3), [2, 3])


def _at_activation(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if (run := _PASS.get()) is not None:
        run.activation = args[0], output


def _at_average(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if (run := _PASS.get()) is not None:
        run.average = args[0], output


def _at_level(level: Level, _: nn.Module, __: Any, output: Any) -> None:
    run = _PASS.get()
    if run is None or not isinstance(output, Tensor) or output.dim() != 4:
        return
    if level.stem:
        run.hold.stem(_channels_first(output, level))
        return
    before = output
    if run.activation is not None and run.activation[1] is output:
        before = run.activation[0]
    run.hold.preact(_channels_first(before, level))
    run.hold.stage(_channels_first(output, level))


def _channels_first(x: Tensor, level: Level) -> Tensor:
    return x.permute(0, 3, 1, 2) if level.channels_last else x


def _same(average: Tensor, embedding: Tensor) -> bool:
    """Whether an embedding (N, D) is an average, or a view of it without its last dimensions of size 1."""
    return embedding is average or embedding._base is average
