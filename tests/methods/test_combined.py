"""Several methods at once: their loss is the sum of theirs, and each is what it is alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdtable import methods
from kdtable.data import Batch
from kdtable.errors import BadRequest
from kdtable.methods import METHODS, methods_of
from kdtable.methods.base import Method, Setting
from kdtable.methods.combined import Combined, why_alone
from kdtable.methods.objective import CombinedParams, Objective, defaults, settable
from kdtable.models.outputs import Outputs
from kdtable.training.member import Member
from kdtable.training.step import weighted_sum
from tests import engine

#: Methods that need networks of their own, or no teacher, or gradients apart.
APART = ("vanilla", "kd", "takd", "dih", "heads", "tofd", "tofd-teacher", "dml", "dot", "simkd", "mlkd")
SINGLE = sorted(name for name in METHODS if name not in (*APART, "cd", "cd+gkd", "sdd+dkd"))
#: Every method beside its neighbour, and some beside more.
NEIGHBOURS = [f"{one}+{other}" for one, other in zip(SINGLE[::2], SINGLE[1::2], strict=False)]
PAIRS = [methods.combination_name(name) or "" for name in NEIGHBOURS]
TRIPLES = ("at+crd+kd", "dkd+reviewkd+sp", "ab+fsp+ft", "cd+gkd+mgd+ofd", "crd+nd+rkd+kd")


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return engine.teacher()


def prepared(row: str, teacher: torch.nn.Module) -> tuple[Member, Batch, Outputs]:
    """A member at its main stage, swept, with a batch and the teacher's outputs for it."""
    task = engine.task()
    member = engine.member(row, task, teacher)
    for stage in member.stages[:-1]:
        assert member.stage is stage
        member.advance()
    batch = next(task.batches("main", 2))
    with torch.no_grad():
        outputs = task.forward(teacher, batch, member.stage.teacher_features)
    if member.sweep_limit is not None:
        member.begin_sweep()
        for shown in task.sweep(1):
            member.observe(shown, task.forward(teacher, shown, member.stage.teacher_features))
        member.method.end_sweep()
    member.begin_epoch()
    return member, batch, outputs


def parts_of(member: Member, row: str, teacher: torch.nn.Module) -> list[Method]:
    """Each method as it is built alone, with the helpers and the random state that it has in the combination."""
    assert isinstance(member.method, Combined)
    found = []
    for name, own in zip(methods_of(row), member.method.methods, strict=True):
        alone = engine.method(name, engine.task(), member.student, teacher)
        alone.load_state_dict(own.state_dict())
        alone.setting.generator.set_state(member.method.setting.generator.get_state())
        alone.train()
        found.append(alone)
    return found


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    if not parameters or not loss.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


@pytest.mark.parametrize("row", [*PAIRS, *TRIPLES])
def test_loss_and_gradients_are_the_sum_of_the_methods(row: str, teacher: torch.nn.Module) -> None:
    if "fsp" in row or "kdsvd" in row or "l2" in row:
        teacher = engine.teacher("resnet8")  # of the student's channels
    member, batch, teacher_outputs = prepared(row, teacher)
    epoch, student = 2, list(member.student.parameters())
    alone = parts_of(member, row, teacher)
    outputs = member.learner.forward(batch)
    losses = [member.learner.loss(term.name, outputs, teacher_outputs, batch) for term in member.stage.terms]
    total = weighted_sum(losses, member.stage, epoch)
    expected, of_student = torch.zeros(()), [torch.zeros_like(p) for p in student]
    shared = [t for t in member.stage.terms if t.name in ("ce", "kd")]
    for term in shared:
        loss = term.weight_at(epoch) * member.learner.loss(term.name, outputs, teacher_outputs, batch)
        expected = expected + loss
        add(of_student, gradients(loss, student))
    for number, part in enumerate(alone):
        own = [term for term in part.stages()[-1].terms if term.name not in ("ce", "kd")]
        loss = sum(
            (t.weight_at(epoch) * part.loss(t.name, outputs, teacher_outputs, batch) for t in own),
            start=torch.zeros(()),
        )
        expected = expected + loss
        add(of_student, gradients(loss, student))
        ours, theirs = list(member.method.methods[number].parameters()), list(part.parameters())
        for mine, alone_there in zip(gradients(total, ours), gradients(loss, theirs), strict=True):
            assert (mine is None) == (alone_there is None)
            if mine is not None:
                torch.testing.assert_close(mine, alone_there, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    scale = max(float(p.abs().max()) for p in of_student)
    for found, wanted in zip(gradients(total, student), of_student, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(wanted) if found is None else found, wanted, rtol=1e-3, atol=1e-5 * scale
        )


def add(sums: list[Tensor], more: list[Tensor | None]) -> None:
    for number, gradient in enumerate(more):
        if gradient is not None:
            sums[number] = sums[number] + gradient


def test_every_method_can_be_beside_another_unless_it_says_why() -> None:
    alone = {name for name in METHODS if why_alone(METHODS[name])}
    assert alone == {"dml", "dot", "simkd", "mlkd"}, "the rows of the others in APART say why they cannot"
    assert all(PAIRS)
    assert len(PAIRS) >= 15


# --- names and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("at+crd", ("at", "crd")),
        ("at+crd+kd", ("at", "crd")),
        ("cd+gkd+crd", ("cd+gkd", "crd")),
        ("sdd+dkd+sp", ("sdd+dkd", "sp")),
        ("cd+gkd+edt+ctkd", ("cd+gkd+edt", "ctkd")),
        ("crd+kd", ("crd",)),
        ("dkd+ls", ("dkd",)),
    ],
)
def test_methods_of_a_name(name: str, parts: tuple[str, ...]) -> None:
    name = methods.combination_name(name) or name
    assert set(methods_of(name)) == set(parts)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("at+at", "unknown method 'at\\+at': at stands in it twice"),
        ("at+crdd", "unknown method 'crdd'; did you mean .*crd"),
        ("at+vanilla", "vanilla is the student alone, without a term to add; write at"),
        ("crd+at", r"unknown method 'crd\+at': here it is called at\+crd"),
        ("at+dkd+kd", r"dkd has soft targets of its own, or no teacher; write at\+dkd"),
        ("at+dkd+ls", r"write at\+dkd, and --set dkd\.standardise=true"),
        ("at+crd+kd+ls", r"write at\+crd\+kd, and --set kd_standardise=true"),
        ("at+crd+ls", r"write at\+crd without \+ls"),
        ("at+", "unknown method"),
    ],
)
def test_combinations_that_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        methods.get(name)


def test_a_class_is_made_once_and_has_all_that_its_methods_need() -> None:
    kind = methods.get("crd+kdsvd")
    assert kind is methods.get("crd+kdsvd+kd")
    assert kind.relates_samples
    assert kind.of_training_images
    assert not kind.recordable
    assert kind.teacher_features == {"embedding", "stages"}
    assert methods.identity("crd+kdsvd") == {"name": "crd+kdsvd", "version": 1, "parts": {"crd": 1, "kdsvd": 2}}
    assert methods.get("ab+sp").needs_teacher({"ce": 1.0})
    assert "gkd" in methods.get("cd+gkd+sp").summed_terms


def test_hyper_parameters_go_by_their_method() -> None:
    kind = methods.get("dist+dkd").hyper
    assert {"kd_temperature", "dist.temperature", "dkd.temperature", "dkd.standardise"} <= settable(kind).keys()
    objective = Objective.of(kind, {"ce": 1.0}, {"dkd.temperature": 2.0, "kd_temperature": 3.0})
    assert isinstance(objective.params, CombinedParams)
    assert objective.params.own["dkd"].temperature == 2.0  # type: ignore[attr-defined]
    assert objective.params.own["dist"].temperature == 4.0  # type: ignore[attr-defined]
    assert objective.named_params == {"dkd.temperature": 2.0, "kd_temperature": 3.0}
    assert defaults(kind)["dkd.beta"] == 8.0
    with pytest.raises(ValueError, match=r"unknown hyper-parameter 'dkd\.temperatur'; did you mean dkd\.temperature"):
        Objective.of(kind, {}, {"dkd.temperatur": 2.0})
    with pytest.raises(ValueError, match="temperature must be positive"):
        Objective.of(kind, {}, {"dist.temperature": -2.0})


# --- stages, sweeps, clashes ----------------------------------------------------------------------------------------


def test_early_stages_follow_each_other(teacher: torch.nn.Module) -> None:
    member = engine.member("ab+ft", engine.task(), teacher)
    assert [stage.name for stage in member.stages] == ["ab.init", "ft.init", "main"]
    first, second, main = member.stages
    factors = set(map(id, member.method.methods[1].parameters()))  # type: ignore[index, union-attr]
    trained = [set(map(id, member.method.trained(stage, member.student))) for stage in (first, second, main)]
    student = set(map(id, member.student.parameters()))
    assert trained[0] < student, "the features, without the classifier; the connectors are identities here"
    assert trained[1] < factors
    assert student < trained[2]
    assert [term.name for term in main.terms] == ["ce", "ft"]


def test_a_stage_that_only_one_method_has_is_its_own(teacher: torch.nn.Module) -> None:
    """So that its batches are those of the method alone."""
    alone, beside = (engine.member(row, engine.task(), teacher) for row in ("ab", "ab+at"))
    assert beside.stages[0] == alone.stages[0]


def test_terms_of_one_name_are_told_apart(teacher: torch.nn.Module) -> None:
    member = engine.member("cse-l2+pad-l2", engine.task(), engine.teacher("resnet8"))
    early, main = member.stages
    assert [term.name for term in early.terms] == ["ce", "pad-l2.l2"]
    assert [term.name for term in main.terms] == ["ce", "l2", "pad"]


class Sweeper(Method):
    """Counts the images that a sweep shows."""

    asked = 0
    term = "sweeper"
    teacher_features = student_features = frozenset({"embedding"})

    def sweep_before(self, stage: object, epoch: int) -> int | None:
        return self.asked

    def begin_sweep(self) -> None:
        self.seen = 0

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        self.seen += len(batch.labels)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        return student.embedding.sum() * 0


class Few(Sweeper):
    """Asks for fewer."""

    asked = 10
    term = "few"


def test_each_method_sees_as_many_images_of_a_sweep_as_it_asks_for() -> None:
    from kdtable.methods.combined import combined

    class Many(Sweeper):
        asked = 33

    kind = combined((("few", Few), ("many", Many)))
    shapes = Outputs(torch.zeros(1, 3), embedding=torch.zeros(1, 2))
    objective = Objective.of(kind.hyper, {"ce": 1.0, "few": 1.0, "sweeper": 2.0}, {})
    method = kind(Setting(engine.RECIPE, objective, torch.arange(6) % 3, 3, shapes, shapes))
    (main,) = method.stages()
    assert method.sweep_before(main, 1) == 33
    method.begin_sweep()
    batch = Batch(torch.zeros(16, 3, 4, 4), torch.zeros(16, dtype=torch.int64), torch.arange(16), 1)
    for _ in range(3):  # a sweep ends after the batch that begins beyond the limit
        method.observe(shapes, shapes, batch)
    assert [part.seen for part in method.methods] == [32, 48]  # type: ignore[union-attr]


def test_methods_whose_terms_have_one_name() -> None:
    from kdtable.methods.combined import combined

    kind = combined((("one", Few), ("two", Few)))
    shapes = Outputs(torch.zeros(1, 3), embedding=torch.zeros(1, 2))
    setting = Setting(
        engine.RECIPE,
        Objective.of(kind.hyper, {"ce": 1.0, "one.few": 2.0, "two.few": 3.0}, {}),
        torch.arange(6) % 3,
        3,
        shapes,
        shapes,
    )
    (main,) = kind(setting).stages()
    assert [(term.name, term.weight) for term in main.terms] == [("ce", 1.0), ("one.few", 2.0), ("two.few", 3.0)]
    with pytest.raises(ValueError, match="has no term three"):
        kind(replace(setting, objective=replace(setting.objective, terms={"three": 1.0})))
