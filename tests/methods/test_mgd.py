"""MGD beyond its golden numbers: assignments, reducers, margins, sweeps, state."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdtable import models
from kdtable.data import Batch
from kdtable.distributed import Ranks
from kdtable.methods.mgd import MGD, partial_loss
from kdtable.methods.parts.assignment import (
    channel_cost,
)
from kdtable.methods.parts.reducers import margins, reduced, reduced_margin
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.build import network_shapes
from tests.asking import aim
from tests.methods.golden_sets import batch, built

LABELS = torch.zeros(6, dtype=torch.int64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(*taps: tuple[int, int], seed: int = 0) -> Outputs:
    """Of six images: logits, and preacts of these channels and heights."""
    preacts = tuple(draw(6, c, h, h, seed=seed + i) for i, (c, h) in enumerate(taps))
    return Outputs(draw(6, 3, seed=seed), preacts=preacts, stages=tuple(x.relu() for x in preacts))


STUDENT, TEACHER = outputs((2, 4), (3, 2)), outputs((4, 4), (7, 2), seed=20)


def mgd(*, unmatched: bool = False, student: Outputs = STUDENT, teacher: Outputs = TEACHER, **extra: Any) -> Any:
    torch.manual_seed(0)
    method: Any = built("mgd", student, teacher, **{"margins_from": "default", **extra})
    if not unmatched:
        sweep(method, student, teacher)
    return method


def sweep(method: Any, student: Outputs, teacher: Outputs, sizes: tuple[int, ...] = (6,)) -> None:
    method.begin_sweep()
    start = 0
    for size in sizes:
        shown = [replace(x, preacts=tuple(p[start : start + size] for p in x.preacts)) for x in (student, teacher)]
        method.observe(*shown, batch(LABELS[:size]))
        start += size
    method.end_sweep()


def loss(method: Any, student: Outputs = STUDENT, teacher: Outputs = TEACHER) -> Tensor:
    found: Tensor = method.loss("mgd", student, teacher, batch(LABELS))
    return found


def groups(method: Any) -> list[Tensor]:
    return [method.get_buffer(f"groups{i}").clone() for i in method.used]


# --- reducers and margins ---------------------------------------------------------------------------------------


@given(st.integers(0, 30))
def test_reducers_by_hand(seed: int) -> None:
    t, margin = draw(2, 6, 2, 2, seed=seed), draw(6, seed=seed + 1)
    owned = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).view(2, 3)
    for j, channels in enumerate(owned):
        own = t[:, channels]
        amp, sp = (reduced(t, owned, reducer)[:, j] for reducer in ("amp", "sp"))
        assert torch.equal(amp.abs(), own.abs().amax(dim=1))
        assert (own == amp.unsqueeze(1)).any(dim=1).all()
        assert torch.equal(sp, own.amax(dim=1))
        torch.testing.assert_close(reduced_margin(margin, owned, "amp")[0, j, 0, 0], margin[channels].mean())
        assert reduced_margin(margin, owned, "sp")[0, j, 0, 0] == margin[channels].max()
    # The order within a group means nothing.
    assert torch.equal(reduced(t, owned, "amp"), reduced(t, owned.flip(1), "amp"))


def test_a_draw_for_each_position() -> None:
    t, owned = draw(2, 4, 3, 3), torch.tensor([[2, 0], [3, 1]])
    values = torch.randint(2, (2, 2, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    found = reduced(t, owned, "rd", values)
    for place in np.ndindex(2, 2, 3, 3):
        n, j, h, w = place
        assert found[place] == t[n, owned[j, values[n, j, 0, h, w]], h, w]


@given(st.floats(0.01, 5), st.floats(-4, 3))
def test_margins_are_means_of_the_negative_part(scale: float, ratio: float) -> None:
    shift = ratio * scale
    found = margins(torch.tensor([scale, -scale]), torch.tensor([shift, shift])).tolist()
    below = torch.linspace(shift - 12 * scale, 0, 20_001, dtype=torch.float64)
    density = (-((below - shift) / scale).square() / 2).exp()
    expected = (below * density).sum().item() / density.sum().item()
    assert found == pytest.approx([expected, expected], rel=1e-2)
    assert max(found) < 0


@pytest.mark.parametrize(("scale", "shift", "expected"), [(2.0, 7.0, -6.0), (0.0, -1.5, -1.5), (0.0, 2.0, 0.0)])
def test_margins_of_channels_that_are_hardly_negative(scale: float, shift: float, expected: float) -> None:
    assert margins(torch.tensor([scale]), torch.tensor([shift])).item() == expected


def test_the_partial_loss_by_hand() -> None:
    margin = torch.tensor(-0.5, dtype=torch.float64).view(1, 1, 1, 1)

    def of(s: float, t: float) -> float:
        return partial_loss(*(torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1) for x in (s, t)), margin).item()

    assert of(1.0, 3.0) == 4.0  # the teacher is positive
    assert of(0.0, -2.0) == 0.25  # above the margin that the teacher is clipped to
    assert of(-1.0, -2.0) == 0.0  # below it, and the teacher is not positive
    assert of(-0.4, -0.3) == 0.0
    s, t = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda x: partial_loss(x, t, margin), s.requires_grad_())


# --- sweeps and steps -------------------------------------------------------------------------------------------


def test_a_sweep_in_parts_is_the_sweep() -> None:
    whole, parts = mgd(), mgd(unmatched=True)
    sweep(parts, STUDENT, TEACHER, (4, 2))
    assert all(map(torch.equal, groups(whole), groups(parts)))


class TwoProcesses:
    """A world whose other process adds what it has, in turn."""

    rank = 0

    def __init__(self, other: list[Tensor]) -> None:
        self.other = iter(other)

    def broadcast(self, content: object) -> object:
        return content

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor + next(self.other)


def test_processes_match_by_what_all_of_them_were_shown() -> None:
    halves = [
        [replace(x, preacts=tuple(p[rows] for p in x.preacts)) for x in (STUDENT, TEACHER)]
        for rows in (slice(0, 2), slice(2, 6))
    ]
    pairs = zip(halves[1][0].preacts, halves[1][1].preacts, strict=True)
    other = [torch.tensor(4), *(channel_cost(s, t) for s, t in pairs)]
    method = mgd(unmatched=True, ranks=TwoProcesses(other))
    sweep(method, *halves[0], sizes=(2,))
    assert all(map(torch.equal, groups(method), groups(mgd())))


class NobodySolves(Ranks):
    """Of the second of two processes, of which the first sends nothing."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, content: Any) -> Any:
        raise AssertionError("it would wait for ever")


def test_a_process_does_not_wait_for_a_matching_that_cannot_be() -> None:
    method = mgd(unmatched=True, ranks=NobodySolves(rank=1, size=2))
    infinite = replace(STUDENT, preacts=tuple(p * torch.inf for p in STUDENT.preacts))
    with pytest.raises(ValueError, match="not finite"):
        sweep(method, infinite, TEACHER)


def test_losses_of_shares_add_up() -> None:
    method = mgd().eval()  # batch statistics would be those of the shares
    found = [
        method.loss(
            "mgd", *(replace(x, preacts=tuple(p[r] for p in x.preacts)) for x in (STUDENT, TEACHER)), batch(LABELS[r])
        )
        for r in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(found), loss(method))
    assert "mgd" in method.summed_terms


def test_a_new_sweep_forgets_the_last() -> None:
    other = outputs((4, 4), (7, 2), seed=90)
    method, fresh = mgd(), mgd(teacher=other)
    assert not all(map(torch.equal, groups(method), groups(fresh)))
    sweep(method, STUDENT, other)
    assert all(map(torch.equal, groups(method), groups(fresh)))


def test_nothing_is_learnt_before_channels_are_matched() -> None:
    method = mgd(unmatched=True)
    with pytest.raises(ValueError, match="no sweep has matched"):
        loss(method)
    method.begin_sweep()
    with pytest.raises(ValueError, match="showed no images"):
        method.end_sweep()


def test_sweeps_are_asked_for_before_the_stage_and_as_often_as_set() -> None:
    method = mgd(update_every=3, sweep_images=50)
    stage = method.main_stage()
    assert [method.sweep_before(stage, epoch) for epoch in range(1, 8)] == [50, None, None, 50, None, None, 50]
    assert method.sweep_before(replace(stage, terms=stage.terms[:1]), 1) is None


def test_a_short_batch_is_divided_by_the_nominal_size() -> None:
    recipe = Recipe(epochs=1, batch_size=12, lr=0.1, milestones=())
    torch.testing.assert_close(loss(mgd()) * 4, loss(mgd(recipe=recipe)) * 12)
    torch.testing.assert_close(loss(mgd()), loss(mgd(loss_factor=100.0)) / 100)


def test_ignored_stages_keep_their_place() -> None:
    both, first, last = (mgd(ignore=ignore) for ignore in ("", "1", "0"))
    torch.testing.assert_close(loss(both), loss(first) + loss(last))
    shallow = first._partial(0, STUDENT.preacts[0], TEACHER.preacts[0])
    torch.testing.assert_close(loss(first), shallow / 2 / 4 / 1e4)
    assert last.used == [1]
    assert len(last.adaptors) == 2


def test_the_teacher_is_not_changed_and_the_student_learns() -> None:
    s = tuple(x.clone().requires_grad_() for x in STUDENT.preacts)
    before = [x.clone() for x in TEACHER.preacts]
    method = mgd()
    loss(method, replace(STUDENT, preacts=s)).backward()
    assert all(map(torch.equal, TEACHER.preacts, before))
    assert all(x.grad is not None and x.grad.any() for x in (*s, *method.parameters()))


def test_random_draws_are_the_runs_own() -> None:
    state = torch.get_rng_state()
    method = mgd(reducer="rd", generator=torch.Generator().manual_seed(7))
    torch.set_rng_state(state)
    first, second = loss(method).item(), loss(method).item()
    assert first != second
    assert torch.equal(torch.get_rng_state(), state)
    assert loss(mgd(reducer="rd", generator=torch.Generator().manual_seed(7))).item() == first


@pytest.mark.parametrize("parts", [1, 2])
def test_random_draws_of_shares_are_those_of_the_batch(parts: int) -> None:
    """Four processes have 2, 2, 1 and 1 of six images; afterwards their generators are where one process's is."""
    alone = mgd(reducer="rd", generator=torch.Generator().manual_seed(7)).eval()
    ranks = [mgd(unmatched=True, reducer="rd", ranks=Ranks(rank, 4), generator=torch.Generator()) for rank in range(4)]
    for method in ranks:
        method.eval().load_state_dict(alone.state_dict())
    for _ in range(2):
        found = sum(sum(losses_of_parts(method, parts)) for method in ranks)
        torch.testing.assert_close(found, loss(alone))
    states = [method.get_extra_state()["state"] for method in (alone, *ranks)]
    assert all(torch.equal(state, states[0]) for state in states)


def losses_of_parts(method: Any, count: int) -> list[Tensor]:
    """The losses of the parts of a process's share, as a step asks for them."""

    def part(rows: slice) -> tuple[Outputs, Outputs, Batch]:
        s, t = (replace(x, preacts=tuple(p[rows] for p in x.preacts)) for x in (STUDENT, TEACHER))
        return s, t, batch(LABELS).part(rows)

    share = method.setting.ranks.shard(len(LABELS))
    _, teacher, own = part(share)
    method.begin_step(teacher, own)
    starts = range(share.start, share.stop)
    each = [slice(start, start + 1) for start in starts] if count > 1 else [share]
    return [method.loss("mgd", *part(rows)) for rows in each]


def test_a_restored_state_continues() -> None:
    method = mgd(reducer="rd", generator=torch.Generator().manual_seed(7))
    loss(method)
    state = {name: value.clone() if isinstance(value, Tensor) else value for name, value in method.state_dict().items()}
    expected = loss(method)
    restored = mgd(unmatched=True, reducer="rd", generator=torch.Generator().manual_seed(99))
    restored.load_state_dict(state)
    assert all(map(torch.equal, groups(restored), groups(method)))
    assert torch.equal(loss(restored), expected)


def test_taps_of_the_student() -> None:
    usual, stages, mixed = (mgd(student_taps=taps) for taps in ("preacts", "stages", "preacts,stages"))
    assert usual.main_stage().student_features == MGD.student_features == {"preacts"}
    assert mixed.main_stage().student_features == {"preacts", "stages"}
    assert mixed.main_stage().teacher_features == {"preacts"}
    assert all(map(torch.equal, mixed._student(STUDENT), (STUDENT.preacts[0], STUDENT.stages[1])))
    assert stages.main_stage().student_features == {"stages"}


# --- networks ---------------------------------------------------------------------------------------------------


def test_margins_come_from_the_norms_before_the_taps() -> None:
    teacher = models.build("resnet14", 3)
    nn.init.normal_(teacher.layer2[-1].bn2.bias)
    shapes = [network_shapes(name, 3, 32) for name in ("resnet8", "resnet14")]
    method: Any = built("mgd", *shapes, network=teacher)
    norm = teacher.layer2[-1].bn2
    assert torch.equal(method.get_buffer("margin1"), margins(norm.weight, norm.bias).double())
    plain: Any = built("mgd", *shapes, network=teacher, margins_from="default")
    assert plain.get_buffer("margin1").unique().item() == pytest.approx(-((2 / torch.pi) ** 0.5))


def test_teachers_without_norms_are_refused() -> None:
    shapes = [network_shapes("resnet8", 3, 32)] * 2
    for norm, reason in ((nn.Identity(), "has no batch norm in front of stage 2"), (nn.BatchNorm2d(32), "32 of 64")):
        teacher = models.build("resnet8", 3)
        teacher.layer3[-1].bn2 = norm
        with pytest.raises(ValueError, match=reason):
            built("mgd", *shapes, network=teacher)
        built("mgd", *shapes, network=teacher, ignore="2")
        built("mgd", *shapes, network=teacher, margins_from="default")


@pytest.mark.parametrize(
    ("student", "params", "reason"),
    [
        (outputs((2, 4)), {}, "the student has 1 feature maps to compare and the teacher 2"),
        (
            outputs((5, 4), (3, 2)),
            {},
            "each channel of the student's map needs one of the teacher's, and at stage 0 (from 0) the student's is "
            "5 x 4 x 4, the teacher's 4 x 4 x 4",
        ),
        (
            outputs((2, 4), (3, 3)),
            {},
            "it compares maps of equal size, and at stage 1 (from 0) the student's is 3 x 3 x 3, "
            "the teacher's 7 x 2 x 2",
        ),
        (outputs((5, 3), (3, 2)), {"ignore": "0"}, None),
        (STUDENT, {"ignore": "0,1"}, "every stage is ignored"),
        (STUDENT, {"student_taps": "stages,stages,stages"}, "student_taps names neither one tap nor one for each of"),
        (STUDENT, {}, None),
    ],
)
def test_networks_that_cannot_be_matched(student: Outputs, params: dict[str, Any], reason: str | None) -> None:
    norms = [nn.BatchNorm2d(x.shape[1]) for x in TEACHER.preacts]
    found = MGD.inapplicable_with(aim(MGD, {}, params).params, student, TEACHER, lambda: norms)
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)
    if reason is not None:
        with pytest.raises(ValueError, match=r"stage|feature maps"):
            built("mgd", student, TEACHER, margins_from="default", **params)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reducer": "max"}, "reducer is one of amp, rd, sp, sm"),
        ({"margins_from": "checkpoint"}, "margins_from is one of teacher, default"),
        ({"student_taps": "stem"}, "student_taps is one of preacts, stages"),
        ({"loss_factor": 0.0}, "loss_factor must be positive"),
        ({"sweep_images": 0}, "sweep_images must be positive"),
        ({"update_every": 0}, "update_every must be positive"),
        ({"ignore": "-1"}, "ignore takes whole numbers from 0"),
        ({"update_after": "1.5"}, "update_after takes whole numbers from 0"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(MGD, {}, change)


def test_a_list_may_have_one_number() -> None:
    aim(MGD, {}, {"ignore": "0", "update_after": "3", "loss_factor": 100})
    assert mgd(ignore="0").used == [1]
