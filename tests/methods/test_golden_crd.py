"""The CRD benchmark's other methods agree with its own code, in value, gradient and batch-norm statistics.

Every case goes through the method that a run trains: built from a setting, filled with the golden adaptors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.ab import activation_boundary_loss
from kdtable.methods.base import Method, Setting
from kdtable.methods.cc import correlation_loss
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.fsp import flow, fsp_loss
from kdtable.methods.ft import factor_loss
from kdtable.methods.kdsvd import kdsvd_loss
from kdtable.methods.nst import nst_loss
from kdtable.methods.pkt import pkt_loss
from kdtable.methods.rkd import rkd_loss
from kdtable.methods.sp import similarity_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim
from tests.golden_data import Arrays, cases

DTYPES = (torch.float64, torch.float32)
RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())
BATCH = Batch(torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1)
EMPTY = torch.zeros(1)


def by_id(*names: str, only: Callable[[str], bool] = lambda _: True) -> Any:
    """The cases of these methods in both types; in float64 alone those that the manifest says are exact there only."""
    chosen = [
        pytest.param(case, dtype, id=f"{case['id']}-{dtype}".replace("torch.", ""))
        for case in cases(*names)
        for dtype in DTYPES
        if only(case["id"]) and not (case.get("float64_only") and dtype == torch.float32)
    ]
    return pytest.mark.parametrize(("case", "dtype"), chosen)


class Case(Arrays):
    """A case's taps of both networks, and its checks."""

    def __init__(self, case: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__(case, dtype)
        self.s = [self.given(f"in.s{i}").requires_grad_() for i in range(len(self.names("in.s")))]
        self.t = [self.given(f"in.t{i}") for i in range(len(self.names("in.t")))]

    def build(self, student: Outputs, teacher: Outputs, **params: Any) -> Method:
        """The case's method for networks with these outputs, with the golden parameters and statistics."""
        row = {"hint": "fitnet"}.get(self.case["method"], self.case["method"])
        setting = Setting(RECIPE, aim(row, {"ce": 1.0}, params), torch.zeros(4), 10, student, teacher)
        method = methods.get(row)(setting).to(self.dtype).train()
        state = {name.partition(".")[2]: self.given(name) for name in self.names("param.") + self.names("buffer.")}
        counted = {name for name in method.state_dict() if name.endswith("num_batches_tracked")}
        assert method.state_dict().keys() - counted == state.keys()
        method.load_state_dict(state, strict=False)
        return method

    def check_gradients(self) -> None:
        for i, s in enumerate(self.s):
            if f"grad.s{i}" in self:
                assert s.grad is not None
                self.check(f"grad.s{i}", s.grad)

    def check_method(self, method: nn.Module) -> None:
        """Every golden gradient of a parameter and every statistic after one pass."""
        parameters, buffers = dict(method.named_parameters()), dict(method.named_buffers())
        for name in self.names("pgrad."):
            gradient = parameters[name.removeprefix("pgrad.")].grad
            assert gradient is not None, name
            self.check(name, gradient)
        for name in self.names("buffer_after."):
            self.check(name, buffers[name.removeprefix("buffer_after.")])

    def check_taps(self, loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> None:
        self.check("out.losses", torch.stack([loss([s], [t]) for s, t in zip(self.s, self.t, strict=True)]))


def with_stages(taps: Sequence[Tensor]) -> Outputs:
    return Outputs(EMPTY, stages=tuple(taps))


def with_embedding(taps: Sequence[Tensor]) -> Outputs:
    return Outputs(EMPTY, embedding=taps[0])


@by_id("hint")
def test_fitnet(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    if case["id"] == "hint_raw":
        loss = hint_loss(data.s[0], data.t[0])
        loss.backward()
    else:
        student, teacher = (Outputs(EMPTY, stages=(EMPTY, x)) for x in (data.s[0], data.t[0]))
        method = data.build(student, teacher)
        loss = method.loss("fitnet", student, teacher, BATCH)
        loss.backward()
        data.check_method(method)
        data.check("out.regressed", method.regress(data.s[0]))
    data.check("out.loss", loss)
    data.check_gradients()


@by_id("sp")
def test_sp(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    loss = similarity_loss(data.s, data.t)
    loss.backward()
    data.check("out.loss", loss)
    data.check_taps(similarity_loss)
    data.check_gradients()
    student, teacher = with_stages(data.s), with_stages(data.t)
    last = data.build(student, teacher).loss("sp", student, teacher, BATCH)
    assert torch.equal(last, similarity_loss(data.s[-1:], data.t[-1:]))


@by_id("cc")
def test_cc(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = with_embedding(data.s), with_embedding(data.t)
    if case["id"] == "cc_raw":
        loss = correlation_loss(data.s[0], data.t[0])
        loss.backward()
    else:
        method = data.build(student, teacher, dim=case["hyper"]["feat_dim"])
        loss = method.loss("cc", student, teacher, BATCH)
        loss.backward()
        data.check_method(method)
    data.check("out.loss", loss)
    data.check_gradients()


@by_id("vid")
def test_vid(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = with_stages(data.s), with_stages(data.t)
    method = data.build(student, teacher)
    loss = method.loss("vid", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    taps = zip(method.predictions, data.s, data.t, strict=True)
    data.check("out.losses", torch.stack([tap(s, t) for tap, s, t in taps]))
    data.check_gradients()
    data.check_method(method)


def test_vid_starts_at_the_golden_variance() -> None:
    data = Case(cases("vid")[0], torch.float32)
    setting = Setting(RECIPE, aim("vid", {}), torch.zeros(4), 10, with_stages(data.s), with_stages(data.t))
    started = methods.get("vid")(setting).state_dict()["vid0.log_scale"]
    torch.testing.assert_close(started, data.given("param.vid0.log_scale"))


@by_id("rkd")
def test_rkd(case: dict[str, Any], dtype: torch.dtype) -> None:
    data, hyper = Case(case, dtype), case["hyper"]
    student, teacher = with_embedding(data.s), with_embedding(data.t)
    method = data.build(student, teacher, distance_weight=hyper["w_d"], angle_weight=hyper["w_a"])
    loss = method.loss("rkd", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check_gradients()
    assert torch.equal(loss, rkd_loss(data.s[0], data.t[0], hyper["w_d"], hyper["w_a"]))


@by_id("pkt")
def test_pkt(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = with_embedding(data.s), with_embedding(data.t)
    loss = data.build(student, teacher).loss("pkt", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check_gradients()
    # Where the reference has no gradient (a row of zeros), ours is finite.
    assert data.s[0].grad is not None
    assert data.s[0].grad.isfinite().all()
    assert torch.equal(loss, pkt_loss(data.s[0], data.t[0]))


@by_id("nst")
def test_nst(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = with_stages(data.s), with_stages(data.t)
    loss = data.build(student, teacher).loss("nst", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check_taps(nst_loss)
    data.check_gradients()


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


@by_id("ab")
def test_ab(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = (Outputs(EMPTY, preacts=tuple(x)) for x in (data.s, data.t))
    margin = case["hyper"]["margin"]
    method = data.build(student, teacher, margin=margin)
    loss = method.loss("ab", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check_gradients()
    data.check_method(method)
    if case["id"] != "ab_connectors":
        assert torch.equal(loss, activation_boundary_loss(data.s, data.t, margin))


@by_id("ft", only=lambda name: name.startswith("ft_raw"))
def test_ft_factors(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    loss = factor_loss(data.s[0], data.t[0], p2=case["hyper"]["p2"])
    loss.backward()
    data.check("out.loss", loss)
    data.check_gradients()


@by_id("ft", only=lambda name: name == "ft_modules")
def test_ft_main_stage(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = with_stages(data.s), with_stages(data.t)
    method = data.build(student, teacher)
    loss = method.loss("ft", student, teacher, BATCH)
    loss.backward()
    # The frozen paraphraser keeps no gradient; the golden one belongs to a graph that reaches it.
    assert all(parameter.grad is None for parameter in method.paraphraser.parameters())
    data.check("out.loss", loss)
    data.check_gradients()
    frozen = data.build(student, teacher)
    factor_s, factor_t = frozen.translator(data.s[0]), frozen.paraphraser.encoder(data.t[0])
    data.check("out.factor_s", factor_s)
    data.check("out.factor_t", factor_t)
    data.s[0].grad = None
    factor_loss(factor_s, factor_t).backward()
    data.check_gradients()
    data.check_method(frozen)
    for parameter, same in zip(method.translator.parameters(), frozen.translator.parameters(), strict=True):
        assert torch.equal(parameter.grad, same.grad)


@by_id("ft", only=lambda name: name == "ft_init_reconstruction")
def test_ft_initial_stage(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    teacher = with_stages(data.t)
    setting = Setting(RECIPE, aim("ft", {"ce": 1.0, "ft": 1.0}), torch.zeros(4), 10, teacher, teacher)
    method = methods.get("ft")(setting).to(dtype)
    state = {name.removeprefix("param."): data.given(name) for name in data.names("param.")}
    assert not method.load_state_dict(state, strict=False).unexpected_keys
    loss = method.loss("reconstruction", teacher, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check("out.factor", method.paraphraser.encoder(data.t[0]))
    data.check("out.reconstruction", method.paraphraser(data.t[0]))
    data.check_method(method)


@by_id("fsp")
def test_fsp(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = (Outputs(EMPTY, stem=x[0], stages=tuple(x[1:])) for x in (data.s, data.t))
    loss = data.build(student, teacher).loss("fsp", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check_gradients()
    pairs = range(len(data.s) - 1)
    data.check("out.losses", torch.stack([fsp_loss(data.s[i : i + 2], data.t[i : i + 2]) for i in pairs]))
    for i in pairs:
        data.check(f"out.fsp_s{i}", flow(*data.s[i : i + 2]))
        data.check(f"out.fsp_t{i}", flow(*data.t[i : i + 2]))


@by_id("kdsvd")
def test_kdsvd(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = Case(case, dtype)
    student, teacher = with_stages(data.s), with_stages(data.t)
    loss = data.build(student, teacher).loss("kdsvd", student, teacher, BATCH)
    loss.backward()
    data.check("out.loss", loss)
    data.check_gradients()
    assert torch.equal(loss, kdsvd_loss(data.s, data.t))


def test_every_case_is_tested() -> None:
    here = {"hint", "sp", "cc", "vid", "rkd", "pkt", "nst", "ab", "ft", "fsp", "kdsvd"}
    elsewhere = {"kd", "objective", "at", "crd"}  # test_golden.py
    assert {case["method"] for case in cases(*here, *elsewhere)} == here | elsewhere
    from tests.golden_data import MANIFEST

    assert len(cases(*here, *elsewhere)) == MANIFEST["case_count"]


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
