"""What a run optimises, as one value from a paper's TOML to the method."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

from annotated_types import Gt  # pydantic itself takes longer to import than "kdtable --help" may

from kdtable.recipes.schedule import Schedule
from kdtable.typed import changes


@dataclass(frozen=True)
class Params:
    """Hyper-parameters; every method's own extend these, with its paper's values as defaults.

    A default may be changed only together with the method's ``version``: a run that states no value has it.

    Attributes:
        kd_temperature: T > 0 of the KD term, which any method can carry.
    """

    kd_temperature: Annotated[float, Gt(0)] = 4.0


P = TypeVar("P", bound=Params)


def as_kind(params: Params, kind: type[P]) -> P:
    """Hyper-parameters as what they are to a method.

    Raises:
        TypeError: they are another method's.
    """
    if not isinstance(params, kind):
        raise TypeError(f"{kind.__name__} are needed, not {params}")
    return params


@dataclass(frozen=True)
class Objective:
    """Loss terms with their weights and courses, hyper-parameters, and the lengths of earlier stages.

    Attributes:
        terms: loss weights of the main stage, in the order of addition.
        params: the method's hyper-parameters.
        schedules: how the weights of terms change over the epochs of the main stage, by name.
        stage_epochs: epochs of the stages before the main one, by name.
        stated: hyper-parameters that a paper or a user names; of the others only those that are not at their default
            enter the identity, so that a new one leaves old runs' ids as they are.
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
        """An objective from a mapping of hyper-parameters: ``Objective.of(CRD.Params, {"crd": 0.8}, {"dim": 64})``.

        Raises:
            ValueError: a hyper-parameter that the method does not have, or cannot use.
        """
        return cls(
            terms, kind(**changes(kind, params, "hyper-parameter")), schedules or {}, stage_epochs or {}, tuple(params)
        )

    @property
    def named_params(self) -> dict[str, Any]:
        """The hyper-parameters that enter the identity, by name."""
        differing = [f.name for f in fields(self.params) if getattr(self.params, f.name) != f.default]
        return {name: getattr(self.params, name) for name in dict.fromkeys([*self.stated, *differing])}

    def identity(self) -> dict[str, Any]:
        """What enters a run's identity; what is constant or empty is left out."""
        changing = {name: found for name, schedule in self.schedules.items() if (found := schedule.identity())}
        return {
            "terms": [[name, weight] for name, weight in self.terms.items()],
            "params": self.named_params,
            **({"schedules": changing} if changing else {}),
            **({"stages": dict(self.stage_epochs)} if self.stage_epochs else {}),
        }
