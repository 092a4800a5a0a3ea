"""What a run optimises, as one value that travels from a paper's TOML to the method."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, TypeVar

from annotated_types import Gt  # pydantic would make "kdtable --help" slow

from kdtable.errors import unknown
from kdtable.methods.ranges import TEMPERATURE
from kdtable.recipes.schedule import Schedule
from kdtable.typed import annotations, changes

#: The stage without labels of a run that ends in a linear probe. It has the run's recipe; ``stage_epochs`` then has the
#: epochs of ``main``, the probe.
PRETRAIN: Final = "pretrain"

#: Learning rate of a probe whose row states none: MoCo's.
PROBE_LR: Final = 30.0


@dataclass(frozen=True)
class Params:
    """Hyper-parameters of every method; a method's own type extends these, with its paper's values as defaults.

        @dataclass(frozen=True)
        class L1Params(Params):
            dim: PositiveInt = 128  # ``--set dim=64`` changes it

    Change a default only together with the method's ``version``: runs that state no value use it.

    Attributes:
        kd_temperature: T > 0 of the KD term, which any method can use.
        kd_standardise: whether the KD term compares standardised logits (``soft_targets``).
    """

    kd_temperature: Annotated[float, Gt(0), TEMPERATURE] = 4.0
    kd_standardise: bool = False


@dataclass(frozen=True)
class SoftTargetParams(Params):
    """Hyper-parameters of a method whose own term compares logits, so that ``+ls`` goes with its name.

    Attributes:
        standardise: whether that term compares standardised logits (``soft_targets``).
    """

    standardise: bool = False


@dataclass(frozen=True)
class CombinedParams(Params):
    """Hyper-parameters of methods that train one student together; those of the KD term belong to all of them.

    Those of a method go by its name and theirs: ``dkd.temperature``, ``cd+gkd.gkd_temperature``. A combination has a
    subclass, whose ``kinds`` are its methods' types by name.

    Attributes:
        own: each method's hyper-parameters.
    """

    own: Mapping[str, Params] = field(default_factory=dict)
    kinds: ClassVar[Mapping[str, type[Params]]] = MappingProxyType({})


P = TypeVar("P", bound=Params)


def settable(kind: type[Params]) -> dict[str, Any]:
    """The types of hyper-parameters, by the names that TOML files and ``--set`` use."""
    if not issubclass(kind, CombinedParams):
        return dict(annotations(kind))
    shared = annotations(Params)
    return {**shared, **{f"{of}.{n}": a for of, own in kind.kinds.items() for n, a in _beside(own, shared).items()}}


def defaults(kind: type[Params]) -> dict[str, Any]:
    """The default of each hyper-parameter, by the names of :func:`settable`."""
    return values(read_params(kind, {}))


def values(params: Params) -> dict[str, Any]:
    """The value of each hyper-parameter, by the names of :func:`settable`."""
    if not isinstance(params, CombinedParams):
        return {one.name: getattr(params, one.name) for one in fields(params)}
    shared = {name: getattr(params, name) for name in annotations(Params)}
    return {**shared, **{f"{of}.{n}": v for of, own in params.own.items() for n, v in _beside(own, shared).items()}}


def _beside(own: type[Params] | Params, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Types or values without those of the KD term."""
    found = settable(own) if isinstance(own, type) else values(own)
    return {name: value for name, value in found.items() if name not in shared}


def read_params(kind: type[P], given: Mapping[str, Any]) -> P:
    """Hyper-parameters from values by the names of :func:`settable`; the others have their defaults.

    Raises:
        ValueError: an unknown name, or an unusable value.
    """
    if not issubclass(kind, CombinedParams):
        return kind(**changes(kind, given, "hyper-parameter"))
    if strange := given.keys() - settable(kind).keys():
        raise ValueError(str(unknown("hyper-parameter", min(strange), settable(kind))))
    shared = changes(Params, {name: value for name, value in given.items() if name in annotations(Params)})
    own = {
        of: read_params(each, {**shared, **{n.removeprefix(f"{of}."): v for n, v in given.items() if _is_of(of, n)}})
        for of, each in kind.kinds.items()
    }
    return kind(**shared, own=own)


def _is_of(method: str, name: str) -> bool:
    return name.startswith(f"{method}.")


def as_kind(params: Params, kind: type[P]) -> P:
    """The hyper-parameters, typed as a method's own.

    Raises:
        TypeError: they belong to another method.
    """
    if not isinstance(params, kind):
        raise TypeError(f"{kind.__name__} are needed, not {params}")
    return params


@dataclass(frozen=True)
class Objective:
    """Loss terms with weights and schedules, hyper-parameters, and epochs of earlier stages.

        Objective({"ce": 1.0, "crd": 0.8}, CRDParams(dim=64))

    Attributes:
        terms: loss weights of the main stage by term, in the order of addition.
        params: the method's hyper-parameters.
        schedules: how weights change over the epochs of the main stage, by term.
        stage_epochs: epochs of the stages before the main one, by stage.
        stated: hyper-parameters that a paper or a user names. The others enter the identity only if they differ from
            their default, so that a new hyper-parameter leaves old run ids as they are.
    """

    terms: Mapping[str, float]
    params: Params = field(default_factory=Params)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    stage_epochs: Mapping[str, int] = field(default_factory=dict)
    stated: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        kind: type[Params],
        terms: Mapping[str, float],
        params: Mapping[str, Any],
        schedules: Mapping[str, Schedule] | None = None,
        stage_epochs: Mapping[str, int] | None = None,
    ) -> "Objective":
        """An objective from hyper-parameters by name: ``Objective.of(CRDParams, {"crd": 0.8}, {"dim": 64})``.

        Raises:
            ValueError: the method has no such hyper-parameter, or cannot use its value.
        """
        return cls(terms, read_params(kind, params), schedules or {}, stage_epochs or {}, tuple(params))

    @property
    def named_params(self) -> dict[str, Any]:
        """The hyper-parameters that enter the identity, by name."""
        known, usual = values(self.params), defaults(type(self.params))
        differing = [name for name, value in known.items() if value != usual[name]]
        return {name: known[name] for name in dict.fromkeys([*self.stated, *differing])}

    def identity(self) -> dict[str, Any]:
        """The part of a run's identity; leaves out constant schedules and empty stages."""
        changing = {name: found for name, schedule in self.schedules.items() if (found := schedule.identity())}
        return {
            "terms": [[name, weight] for name, weight in self.terms.items()],
            "params": self.named_params,
            **({"schedules": changing} if changing else {}),
            **({"stages": dict(self.stage_epochs)} if self.stage_epochs else {}),
        }


def stage_epochs(stages: Mapping[str, int], recipe_epochs: int) -> dict[str, int]:
    """Epochs of all stages of a run, in order; see ``PRETRAIN``.

    Args:
        stages: as an objective has them.
        recipe_epochs: epochs of the run's recipe.
    """
    if "main" not in stages:
        return {**stages, "main": recipe_epochs}
    return {name: count for name, count in {PRETRAIN: recipe_epochs, **stages}.items() if count}
