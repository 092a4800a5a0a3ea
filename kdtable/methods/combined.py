"""Several methods at once: ``X+Y``.

    loss = w_ce CE + w_X L_X + w_Y L_Y

Each method keeps its term, its weight, its schedule, its adaptors and its hyper-parameters (``X.NAME``), and reads the
features that it reads alone. Cross-entropy has weight 1, or that of a method which weighs it otherwise (``ctkd``: 0.1).
Early stages follow each other in the order of the names, and then all methods train the student together. Where one of
them asks for a teacher whose batch norms use the batch's statistics (``reviewkd``), all terms read that teacher, as the
KD term of ``reviewkd+kd`` does. A term or stage that two methods name alike goes by ``X.TERM``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting, Stage, Term
from kdtable.methods.objective import CombinedParams, Objective, Params, as_kind
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import CONSTANT

#: A method's number in its combination, and the name that it gives to a term itself.
_Owner = tuple[int, str]


class Combined(Method):
    """Cross-entropy and the terms of several methods. :func:`combined` makes the class of each combination."""

    hyper = CombinedParams
    #: Its methods by registered name.
    kinds: ClassVar[Mapping[str, type[Method]]] = MappingProxyType({})

    def __init__(self, setting: Setting) -> None:
        nn.Module.__init__(self)  # the base class would look for terms before there are methods
        self.setting = setting
        self.methods = nn.ModuleList(kind(_setting_of(name, self.kinds, setting)) for name, kind in self.kinds.items())
        self._owners = self._find_owners()
        self._check_terms()
        #: Stage to each method that takes part in it, by number, with the stage as the method made it.
        self._parts: dict[str, dict[int, Stage]] = {}
        self._stages = (*self._early_stages(), self.main_stage())
        self._sweeping: dict[int, int] = {}
        self._shown = self._before = 0
        self._now: dict[int, Stage] = self._parts["main"]

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Whether a term reads it, or an earlier stage of any method."""
        return super().needs_teacher(terms) or any(kind.needs_teacher({}) for kind in cls.kinds.values())

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """The first method's reason."""
        reasons = ((name, kind.inapplicable(student_shapes, teacher_shapes)) for name, kind in cls.kinds.items())
        return next((f"{name} cannot: {reason}" for name, reason in reasons if reason), None)

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """The first method's reason."""
        own = as_kind(params, CombinedParams).own
        for name, kind in cls.kinds.items():
            if reason := kind.inapplicable_with(own[name], student_shapes, teacher_shapes, norms):
                return f"{name} cannot: {reason}"
        return None

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """The first method's reason."""
        own = as_kind(objective.params, CombinedParams).own
        for name, kind in cls.kinds.items():
            if reason := kind.unfit(recipe, replace(objective, params=own[name])):
                return f"{name} cannot: {reason}"
        return None

    def _each(self) -> Iterator[tuple[int, str, Method]]:
        """Number, name and method."""
        for number, (name, method) in enumerate(zip(self.kinds, self.methods, strict=True)):
            assert isinstance(method, Method)
            yield number, name, method

    def _find_owners(self) -> dict[str, _Owner]:
        """Whose each term is: ``X.TERM``, and TERM of the method with this main term, else of the first that has it."""
        every = [(number, name, method, own) for number, name, method in self._each() for own in method.own_terms()]
        found = {f"{name}.{own}": (number, own) for number, name, _, own in every}
        for number, _, _, own in sorted(every, key=lambda one: one[3] != one[2].term):
            found.setdefault(own, (number, own))
        return found

    def _public(self, number: int, name: str, term: str) -> str:
        """Our name of a method's term; the task's own terms have one name."""
        if term in self.setting.base_terms or self._owners[term] == (number, term):
            return term
        return f"{name}.{term}"

    # --- stages

    def stages(self) -> tuple[Stage, ...]:
        """The early stages of each method in turn, and the main one."""
        return self._stages

    def _early_stages(self) -> Iterator[Stage]:
        for number, name, method in self._each():
            for stage in method.stages()[:-1]:
                qualified = f"{name}.{stage.name}"
                taken = qualified in self.setting.objective.stage_epochs or stage.name in self._parts
                ours = qualified if taken else stage.name
                self._parts[ours] = {number: stage}
                terms = tuple(replace(term, name=self._public(number, name, term.name)) for term in stage.terms)
                alone = frozenset(
                    self._public(number, name, term)
                    for term in stage.student_terms
                    if term in self.setting.base_terms or term in method.own_terms()
                )
                yield replace(stage, name=ours, terms=terms, student_terms=alone)

    def main_stage(self) -> Stage:
        """The stage of all methods: their terms and features; the teacher in train mode if one of them asks for it."""
        mains = [method.stages()[-1] for _, _, method in self._each()]
        self._parts["main"] = dict(enumerate(mains))
        modes = {stage.teacher_mode for stage in mains}
        return replace(
            mains[0],
            terms=tuple(self._terms(mains)),
            student_features=frozenset().union(*(stage.student_features for stage in mains)),
            teacher_features=frozenset().union(*(stage.teacher_features for stage in mains)),
            student_terms=frozenset(
                term for term in self.setting.objective.terms if self._own(term) in mains[self._of(term)].student_terms
            ),
            teacher_mode="train" if "train" in modes else mains[0].teacher_mode,
        )

    def _of(self, term: str) -> int:
        return self._owners[term][0] if term in self._owners else 0

    def _own(self, term: str) -> str:
        return self._owners[term][1] if term in self._owners else term

    def _terms(self, mains: list[Stage]) -> Iterator[Term]:
        """The objective's terms, with the weights that their methods give them in the main stage."""
        objective = self.setting.objective
        for name in objective.terms:
            given = {term.name: term for term in mains[self._of(name)].terms}
            yield replace(given[self._own(name)], name=name, schedule=objective.schedules.get(name, CONSTANT))

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """What any method trains in the stage, the student first."""
        parts = self._parts[stage.name]
        every = [
            p for number, _, method in self._each() if number in parts for p in method.trained(parts[number], student)
        ]
        return list(dict.fromkeys(every))

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Let the methods of the stage set the modes; the others' helpers are in eval mode."""
        self._now = self._parts[stage.name]
        self.train()
        for number, _, method in self._each():
            if number in self._now:
                method.set_modes(self._now[number], student)
            else:
                method.eval()

    # --- steps and epochs

    def begin_step(self, teacher: Outputs | None, batch: Batch) -> None:
        """See the base class."""
        for number, _, method in self._each():
            if number in self._now:
                method.begin_step(teacher, batch)

    def end_epoch(
        self, stage: Stage, epoch: int, student: nn.Module, last_test_batch: Callable[[], tuple[Outputs, Batch]]
    ) -> None:
        """See the base class."""
        parts = self._parts[stage.name]
        for number, _, method in self._each():
            if number in parts:
                method.end_epoch(parts[number], epoch, student, last_test_batch)

    def sweep_before(self, stage: Stage, epoch: int) -> int | None:
        """The most images that any method asks for; each sees as many as it asked for."""
        parts = self._parts[stage.name]
        limits = {n: method.sweep_before(parts[n], epoch) for n, _, method in self._each() if n in parts}
        self._sweeping = {number: limit for number, limit in limits.items() if limit is not None}
        return max(self._sweeping.values(), default=None)

    def begin_sweep(self) -> None:
        """See the base class."""
        self._shown = self._before = 0
        for number, _, method in self._each():
            if number in self._sweeping:
                method.begin_sweep()

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """See the base class."""
        for number, _, method in self._each():
            if self._before <= self._sweeping.get(number, -1):
                method.observe(student, teacher, batch)
        self._shown, self._before = self._shown + batch.whole, self._shown

    def end_sweep(self) -> None:
        """See the base class."""
        for number, _, method in self._each():
            if number in self._sweeping:
                method.end_sweep()

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """All methods' terms."""
        own = {number: method.own_terms() for number, _, method in self._each()}
        return {name: own[number][term] for name, (number, term) in self._owners.items()}

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """See the base class; the term of the method that has it."""
        if name not in self._owners:
            return super().loss(name, student, teacher, batch)
        number, own = self._owners[name]
        method = self.methods[number]
        assert isinstance(method, Method)
        return method.loss(own, student, teacher, batch)


def _setting_of(name: str, kinds: Mapping[str, type[Method]], setting: Setting) -> Setting:
    """What one method knows: its own hyper-parameters, and its names of terms and stages."""
    others = [f"{other}." for other in kinds if other != name]

    def own(values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in values.items() if not key.startswith(tuple(others))}
        return {key.removeprefix(f"{name}."): value for key, value in kept.items()}

    objective = setting.objective
    params = setting.params(CombinedParams).own[name]
    part = Objective(own(objective.terms), params, own(objective.schedules), own(objective.stage_epochs))
    return replace(setting, objective=part, combined=True)


def why_alone(kind: type[Method]) -> str:
    """Why a method cannot be one of a combination, as a clause without its subject; "" if it can be."""
    if kind.alone:
        return kind.alone
    if kind.keeps_gradients_apart:
        return "keeps the gradients of two losses apart"
    return "measures more than the student" if kind.predicted is not Method.predicted else ""


@lru_cache(maxsize=256)
def combined(kinds: tuple[tuple[str, type[Method]], ...]) -> type[Combined]:
    """The class of a combination of methods, given by registered name."""
    own = [kind for _, kind in kinds]
    name = "+".join(name for name, _ in kinds)
    hyper = type(f"{name} hyper-parameters", (CombinedParams,), {"kinds": {name: kind.hyper for name, kind in kinds}})

    def all_of(attribute: str) -> frozenset[str]:
        return frozenset().union(*(getattr(kind, attribute) for kind in own))

    unions = ("student_terms", "student_features", "teacher_features", "early_teacher_features", "measured_features")
    flags = ("relates_samples", "of_training_images", "keeps_gradients_apart")
    return type(
        name,
        (Combined,),
        {
            "__doc__": f"The terms of {' and '.join(name for name, _ in kinds)}.",
            "kinds": MappingProxyType(dict(kinds)),
            "hyper": hyper,
            "summed_terms": all_of("summed_terms") | {f"{n}.{term}" for n, kind in kinds for term in kind.summed_terms},
            **{flag: all(getattr(kind, flag) for kind in own) for flag in ("recordable", "several_teachers")},
            **{attribute: all_of(attribute) for attribute in unions},
            **{flag: any(getattr(kind, flag) for kind in own) for flag in flags},
        },
    )
