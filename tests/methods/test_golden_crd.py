"""The CRD benchmark's other methods agree with its own code, in value, gradient and batch-norm statistics.

Every case goes through the method that a run trains: built from a setting, filled with the golden adaptors. A case
without adaptors begins behind them.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtable import methods
from kdtable.methods.ab import activation_boundary_loss
from kdtable.methods.base import Setting
from kdtable.methods.cc import correlation_loss
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.fsp import flow, fsp_loss
from kdtable.methods.ft import Paraphraser, Translator, factor_loss
from kdtable.methods.kdsvd import kdsvd_loss
from kdtable.methods.nst import nst_loss
from kdtable.methods.pkt import pkt_loss
from kdtable.methods.rkd import rkd_loss
from kdtable.methods.sp import similarity_loss
from kdtable.methods.vid import gaussian_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim
from tests.golden_arrays import constants
from tests.methods.golden_crd import EMPTY, Case, crd, with_embedding, with_stages

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())


@crd("hint")
def test_fitnet(case: Case) -> None:
    student, teacher = (Outputs(EMPTY, stages=(EMPTY, x)) for x in (case.s[0], case.t[0]))
    if not case.has_modules:
        check_hint_without_regressor(case)
        return
    method: Any = case.load(case.build(student, teacher, row="fitnet"))
    method.regress.relu = case.hyper["use_relu"]
    case.check_loss(case.loss(method, student, teacher), method)
    case.check("out.regressed", method.regress(case.s[0]))


def check_hint_without_regressor(case: Case) -> None:
    """The method in two stages has none between equal shapes."""
    student, teacher = (with_stages([x, x]) for x in (case.s[0], case.t[0]))
    method = case.build(
        student, teacher, row="fitnet-2stage", terms={"ce": 1.0}, hint_group=1, regressor="where-needed"
    )
    loss = method.loss("hint", student, teacher, case.batch)
    case.check_loss(loss)
    assert torch.equal(loss, hint_loss(case.s[0], case.t[0]))


@crd("sp")
def test_sp(case: Case) -> None:
    """The method compares the last tap, so it is built for each of the case's."""

    def of_method(s: Any, t: Any) -> Tensor:
        student, teacher = with_stages(s), with_stages(t)
        return case.loss(case.build(student, teacher), student, teacher)

    case.check_loss(similarity_loss(case.s, case.t))
    case.check_taps(of_method)
    assert torch.equal(of_method(case.s, case.t), similarity_loss(case.s[-1:], case.t[-1:]))


@crd("cc")
def test_cc(case: Case) -> None:
    student, teacher = with_embedding(case.s), with_embedding(case.t)
    if case.has_modules:
        method: Any = case.load(case.build(student, teacher, dim=case.hyper["feat_dim"]))
    else:
        method = case.build(student, teacher)
        method.embed_s = method.embed_t = nn.Identity()
    loss = case.loss(method, student, teacher)
    case.check_loss(loss, method)
    assert torch.equal(loss, correlation_loss(method.embed_s(case.s[0]), method.embed_t(case.t[0])))


@crd("vid")
def test_vid(case: Case) -> None:
    student, teacher = with_stages(case.s), with_stages(case.t)
    with constants(gaussian_loss, EPS=case.hyper["eps"], START=case.hyper["init_pred_var"]):
        method: Any = case.load(case.build(student, teacher))
        case.check_loss(case.loss(method, student, teacher), method)
        taps = zip(method.predictions, case.s, case.t, strict=True)
        case.check("out.losses", torch.stack([tap(s, t) for tap, s, t in taps]))


@crd("rkd")
def test_rkd(case: Case) -> None:
    hyper, student, teacher = case.hyper, with_embedding(case.s), with_embedding(case.t)
    method = case.build(student, teacher, distance_weight=hyper["w_d"], angle_weight=hyper["w_a"])
    loss = case.loss(method, student, teacher)
    case.check_loss(loss)
    assert torch.equal(loss, rkd_loss(case.s[0], case.t[0], hyper["w_d"], hyper["w_a"]))


@crd("pkt")
def test_pkt(case: Case) -> None:
    student, teacher = with_embedding(case.s), with_embedding(case.t)
    with constants(pkt_loss, EPS=case.hyper["eps"]):
        loss = case.loss(case.build(student, teacher), student, teacher)
        assert torch.equal(loss, pkt_loss(case.s[0], case.t[0]))
    case.check_loss(loss)
    # Where the reference has no gradient (a row of zeros), ours is finite.
    assert case.s[0].grad is not None
    assert case.s[0].grad.isfinite().all()


@crd("nst")
def test_nst(case: Case) -> None:
    student, teacher = with_stages(case.s), with_stages(case.t)
    case.check_loss(case.loss(case.build(student, teacher), student, teacher))
    case.check_taps(nst_loss)


@crd("ab")
def test_ab(case: Case) -> None:
    student, teacher = (Outputs(EMPTY, preacts=tuple(x)) for x in (case.s, case.t))
    margin = case.hyper["margin"]
    method: Any = case.load(case.build(student, teacher, margin=margin))
    loss = case.loss(method, student, teacher)
    case.check_loss(loss, method)
    taps = list(zip(method.connector(case.s), case.t, strict=True))
    weights = [2.0 ** (place - len(taps) + 1) for place in range(len(taps))]
    alone = [activation_boundary_loss([s], [t], margin) for s, t in taps]
    case.check("out.losses", torch.stack([weight * one for weight, one in zip(weights, alone, strict=True)]))


@crd("ft")
def test_ft(case: Case) -> None:
    if not case.has_modules:
        case.check_loss(factor_loss(case.s[0], case.t[0], p2=case.hyper["p2"]))
    elif case.s:
        check_factors(case)
    else:
        check_reconstruction(case)
    assert case.hyper.get("p1", 2) == 2, "a factor's map is of squares"


def translating(case: Case, student: Outputs, teacher: Outputs) -> Any:
    """The method with factors of as many channels as the case's."""
    method: Any = case.build(student, teacher)
    c_s, c_t = (outputs.stages[-1].shape[1] for outputs in (student, teacher))
    factors = int(c_t * case.hyper["k"])
    method.translator = Translator(c_s, factors).to(case.dtype)
    method.paraphraser = Paraphraser(c_t, factors).to(case.dtype)
    return method.train()


def check_factors(case: Case) -> None:
    student, teacher = with_stages(case.s), with_stages(case.t)
    whole = case.load(translating(case, student, teacher))
    factor_s, factor_t = whole.translator(case.s[0]), whole.paraphraser.encoder(case.t[0])
    case.check("out.factor_s", factor_s)
    case.check("out.factor_t", factor_t)
    case.check_loss(factor_loss(factor_s, factor_t, p2=case.hyper["p2"]), whole)
    if case.hyper["p2"] != 1:  # the method has no other
        return
    method = case.load(translating(case, student, teacher))
    case.s[0].grad = None
    case.check_loss(case.loss(method, student, teacher))
    # The frozen paraphraser keeps no gradient; the golden one belongs to a graph that reaches it.
    assert all(parameter.grad is None for parameter in method.paraphraser.parameters())
    for parameter, same in zip(method.translator.parameters(), whole.translator.parameters(), strict=True):
        assert torch.equal(parameter.grad, same.grad)


def check_reconstruction(case: Case) -> None:
    """The initial stage's loss; what the student is does not matter to it."""
    student, teacher = Outputs(EMPTY, stages=(torch.zeros(1, 2, 4, 4),)), with_stages(case.t)
    method = translating(case, student, teacher)
    state = {name.removeprefix("param."): case.array(name) for name in case.names("param.")}
    assert not method.load_state_dict(state, strict=False).unexpected_keys
    case.check_loss(method.loss("reconstruction", student, teacher, case.batch), method)
    case.check("out.factor", method.paraphraser.encoder(case.t[0]))
    case.check("out.reconstruction", method.paraphraser(case.t[0]))


@crd("fsp")
def test_fsp(case: Case) -> None:
    student, teacher = (Outputs(EMPTY, stem=x[0], stages=tuple(x[1:])) for x in (case.s, case.t))
    case.check_loss(case.loss(case.build(student, teacher), student, teacher))
    pairs = list(zip(pairwise(case.s), pairwise(case.t), strict=True))
    case.check("out.losses", torch.stack([fsp_loss(s, t) for s, t in pairs]))
    for place, (s, t) in enumerate(pairs):
        case.check(f"out.fsp_s{place}", flow(*s))
        case.check(f"out.fsp_t{place}", flow(*t))


@crd("kdsvd")
def test_kdsvd(case: Case) -> None:
    student, teacher = with_stages(case.s), with_stages(case.t)
    with constants(kdsvd_loss, VECTORS=case.hyper["k"]):
        loss = case.loss(case.build(student, teacher), student, teacher)
        case.check_loss(loss)
        pairs = zip(pairwise(case.s), pairwise(case.t), strict=True)
        case.check("out.losses", torch.stack([kdsvd_loss(s, t) for s, t in pairs]))
        assert torch.equal(loss, kdsvd_loss(case.s, case.t))


# --- beyond the cases --------------------------------------------------------------------------------------------


def test_vid_starts_at_a_variance_of_five() -> None:
    """ln(exp(5 - 1e-5) - 1), as the benchmark has it."""
    shapes = Outputs(EMPTY, stages=(torch.zeros(1, 3, 4, 4),))
    start = methods.get("vid")(Setting(RECIPE, aim("vid", {}), torch.zeros(4), 2, shapes, shapes)).state_dict()
    torch.testing.assert_close(start["vid0.log_scale"], torch.full((3,), 4.99322918), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("c_s", "c_t", "size"), [(3, 5, 9), (40, 24, 2), (6, 6, 4)])
def test_nst_by_either_gram_matrix(c_s: int, c_t: int, size: int) -> None:
    """The mean over pairs of channels, written out."""
    torch.manual_seed(1)
    s, t = (torch.randn(2, c, size, size, dtype=torch.float64) for c in (c_s, c_t))
    unit_s, unit_t = (torch.nn.functional.normalize(x.flatten(2), dim=2) for x in (s, t))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(dim=3).square().mean()

    expected = kernel(unit_t, unit_t) + kernel(unit_s, unit_s) - 2 * kernel(unit_s, unit_t)
    torch.testing.assert_close(nst_loss([s], [t]), expected)


@pytest.mark.parametrize("row", ["fsp", "kdsvd", "ab", "vid", "nst", "fitnet"])
def test_networks_that_do_not_fit_are_refused(row: str) -> None:
    """A method that cannot be run on two networks says why, and is not built."""
    few, many = (
        Outputs(
            EMPTY,
            stem=torch.zeros(1, 4, 8, 8),
            stages=tuple(torch.zeros(1, c, h, h) for c, h in taps),
            preacts=tuple(torch.zeros(1, c, h, h) for c, h in taps),
            embedding=torch.zeros(1, 8),
        )
        for taps in ([(4, 8), (8, 2)], [(4, 8), (16, 8), (32, 4)])
    )
    reason = methods.get(row).inapplicable(few, many)
    assert reason
    with pytest.raises(ValueError, match=reason.split(" and")[0].replace("[", r"\[").replace("]", r"\]")):
        methods.get(row)(Setting(RECIPE, aim(row, {"ce": 1.0}), torch.zeros(4), 10, few, many))
    assert methods.get(row).inapplicable(few, few) is None
