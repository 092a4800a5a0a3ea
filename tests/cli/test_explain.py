"""``kdtable explain``: what runs optimise, before and after training."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdtable.recipes.record import EpochRecord
from kdtable.report.explained import explained_runs
from tests.cli.command import Call
from tests.report.samples import stored

PAIR = ("--pairs", "resnet56:resnet20")


def record(epoch: int, **terms: float) -> EpochRecord:
    return EpochRecord("main", epoch, 0.1, 1.0, {}, terms, 1.0, 1)


def explained(call: Call, *words: str) -> list[dict[str, Any]]:
    done = call("explain", *words, "--format", "json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


def test_terms_weights_and_hyper_parameters(call: Call) -> None:
    (one,) = explained(call, "--methods", "crd+dkd", *PAIR, "--epochs", "24", "--set", "crd.tau=0.1")
    assert one["shown"] == [1, 12, 24]
    weights = {term["name"]: term["weights"] for term in one["terms"]}
    assert weights == {"ce": [1, 1, 1], "crd": [0.8] * 3, "dkd": [0.5, 1, 1]}, "the warm-up of 20 epochs is 2 of 24"
    params = {param["name"]: (param["value"], param["default"], param["meaning"]) for param in one["params"]}
    assert params["crd.tau"] == (0.1, 0.07, "temperature of the scores.")
    assert params["dkd.beta"] == (2.0, 8.0, "weight of the other classes' part.")
    assert "kd_temperature" not in params, "no KD term reads it"
    assert one["methods"] == {
        "crd": "Contrastive representation distillation on the embeddings.",
        "dkd": "The label's part of KD, and that of the other classes.",
    }


def test_pairs_that_are_alike_are_told_once(call: Call) -> None:
    found = explained(call, "--methods", "kd,dkd", "--pairs", "resnet56:resnet20,vgg13:vgg8,resnet110:resnet32")
    assert [(one["row"], len(one["of"])) for one in found] == [("kd", 3), ("dkd", 2), ("dkd", 1)]


def test_earlier_stages_schedules_and_what_cannot_be_run(call: Call) -> None:
    done = call("explain", "--methods", "ab+ft,reviewkd,at+dml", *PAIR)
    assert done.code == 0
    assert "Stage before: ft.init, 30 epochs" in done.out
    assert "Weight of reviewkd: rises from 0 in epoch 1 to its full value in epoch 21" in done.out
    assert "Not applicable: dml cannot be combined: it trains its peers by one loss" in done.out


def test_the_shares_of_terms_are_those_of_the_epochs() -> None:
    """Hand-computed: 0.1 CE + 0.9 KD, over two seeds and two epochs of 240."""
    runs = [stored("kd", seed) for seed in (1, 2)]
    histories = [[record(1, ce=2.0, kd=2.0), record(120, ce=1.0, kd=0.0)], [record(1, ce=2.0, kd=0.0)]]
    found = explained_runs(runs, histories)
    ce, kd = found.terms
    assert ce.shares == (pytest.approx(0.4 / 2.2), 1.0), "epoch 240 is not reached yet"
    assert kd.shares == (pytest.approx(1.8 / 2.2), 0.0)
    assert (ce.share, kd.share) == (pytest.approx(0.5 / 2.3), pytest.approx(1.8 / 2.3))
    assert found.of == tuple(run.id for run in runs)
    assert explained_runs(runs, [[], []]).terms[0].share is None


def test_of_stored_runs(after_grid: Path, call: Call) -> None:
    (kd,) = explained(call, "tiny:kd:resnet14:resnet8")
    assert len(kd["of"]) == 2
    assert sum(term["share"] for term in kd["terms"]) == pytest.approx(1)
    (crd,) = explained(call, "tiny:crd:resnet14:resnet8")
    assert {param["name"]: param["value"] for param in crd["params"]}["negatives"] == 16


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nothing to explain: name a run"),
        (("abc", "--methods", "kd"), "a run was trained with its own settings"),
        (("--methods", "at+crdd", *PAIR), "unknown method 'crdd'; did you mean"),
        (("--methods", "kd", *PAIR, "--set", "weight.kd=0.9"), "--set weight.kd=0.9 changes nothing, as weight.kd has"),
    ],
)
def test_what_is_refused(call: Call, words: tuple[str, ...], sentence: str) -> None:
    done = call("explain", *words)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert len(done.errors) == 1
