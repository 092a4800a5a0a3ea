"""From a request to cells, and to what must be trained before them."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdtable import papers
from kdtable.data.spec import BUILT_IN
from kdtable.errors import BadRequest
from kdtable.numerics.names import TEACHER_CACHES
from kdtable.planning.cohorts import cohorts, missing, why_uncached
from kdtable.planning.request import DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher
from tests.asking import asked
from tests.planning.on_digits import DIGITS, by_row, dih, request, teacher

CRD, DIH = papers.load("crd"), papers.load("dih")


def only(request: Request) -> Run:
    (cell,) = resolve(request, teacher)
    return cell.run


def test_a_plain_request_has_the_papers_settings() -> None:
    run = only(request())
    assert run.recipe == CRD.recipe
    assert run.objective.terms == {"ce": 0.1, "kd": 0.9}
    assert run.objective.named_params == {"kd_temperature": 4.0}
    assert run.teacher == teacher("resnet56")
    assert (run.precision, run.data) == ("fp32", DIGITS)


def test_options_and_settings_change_the_run() -> None:
    run = only(
        request(epochs=24, batch_size=32, lr=0.2, overrides=["weight.kd=0.5", "kd_temperature=2", "momentum=0.8"])
    )
    assert run.recipe == replace(CRD.recipe, epochs=24, milestones=(15, 18, 21), batch_size=32, lr=0.2, momentum=0.8)
    assert run.objective.terms == {"ce": 0.1, "kd": 0.5}
    assert run.objective.named_params == {"kd_temperature": 2.0}


def test_a_mobile_student_keeps_its_rate_unless_one_is_asked_for() -> None:
    assert only(request(pairs=["vgg13:MobileNetV2"])).recipe.lr == 0.01
    assert only(request(pairs=["vgg13:MobileNetV2"], lr=0.3)).recipe.lr == 0.3


def test_vanilla_asks_for_no_teacher() -> None:
    run = resolve(request(methods=["vanilla"]), lambda *_: pytest.fail("a teacher was looked for"))[0].run
    assert run.teacher is None


def test_a_teacher_whose_term_has_weight_zero_is_still_used() -> None:
    assert only(request(overrides=["weight.kd=0"])).teacher is not None


def test_cells_are_pairs_by_methods_by_seeds() -> None:
    cells = resolve(request(pairs=["crd-1"], methods=["kd", "at", "kd"], seeds=[1, 2, 3]), teacher)
    assert len(cells) == 7 * 2 * 3


#: Why a row cannot use a teacher's cache: what it reads beside logits and embedding, in any stage.
UNCACHED = {
    "vanilla": "no teacher",
    **dict.fromkeys(("at", "fitnet", "sp", "vid", "ft", "nst", "kdsvd", "fitnet-2stage", "at+kd"), "stages"),
    "ab": "preacts",
    "fsp": "stages, stem",
}


@pytest.mark.parametrize("cache", ["fp32", "fp16"])
def test_a_teachers_cache_serves_the_rows_that_read_logits_and_embeddings(cache: str) -> None:
    rows = ["kd", "crd", "crd+kd", "rkd", "pkt", "cc", "rkd+kd", *UNCACHED]
    plain, cached = (resolve(request(methods=rows, teacher_cache=kind), teacher) for kind in ("off", cache))
    for before, cell in zip(plain, cached, strict=True):
        run = cell.run
        if cell.row in UNCACHED:
            assert run == before.run
            assert str(why_uncached(run)).endswith(UNCACHED[cell.row])
        else:
            assert run.precision == "fp32" + TEACHER_CACHES[cache]
            assert run.id != before.run.id
            assert why_uncached(run) is None


def test_cached_runs_train_apart_from_those_that_need_the_whole_teacher() -> None:
    wanted = request(methods=["vanilla", "kd", "at", "crd"], seeds=[1, 2], teacher_cache="fp32")
    planned = cohorts(missing(resolve(wanted, teacher), {}))
    assert [[run.row for run in cohort.runs] for cohort in planned] == [["vanilla", "kd", "crd"], ["at"]] * 2


def test_the_cache_is_named_with_the_precision_of_the_networks() -> None:
    assert only(request(precision="bf16", teacher_cache="fp16")).precision == "bf16-cached16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_cache": "fp8"}, "--teacher-cache is one of off, fp32, fp16, not 'fp8'"),
        ({"precision": "fp32-cached"}, "unknown precision 'fp32-cached'"),
        ({"seeds": []}, "one seed"),
        ({"methods": ["kdd"]}, "unknown method"),
        ({"paper": "dihh"}, "unknown paper"),
        ({"data": "cifar11"}, "unknown data set"),
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": 0.0}, "learning rate"),
        ({"lr": -0.1}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"lr": float("inf")}, "learning rate"),
        ({"batch_size": 0}, "batch of 0"),
        ({"batch_size": 5000}, "fewer than one batch"),
        ({"overrides": ["tau=0.1"]}, "unknown setting 'tau'"),
        ({"overrides": ["kd_temperature=0"]}, "kd_temperature must be positive"),
        ({"overrides": ["crop_padding=-1"]}, "crop_padding"),
        ({"overrides": ["weight_decay=-1"]}, "weight_decay"),
        ({"overrides": ["crop_fill=grey"]}, "crop_fill is one of zero, reflect, not 'grey'"),
        (
            {"overrides": ["crop_fill=reflect", "crop_padding=32"]},
            "crop_padding 32 is too wide: images of digits are 32",
        ),
        ({"methods": ["crd"], "overrides": ["mode=other"]}, "mode is one of exact, relax"),
        ({"overrides": ["label_smoothing=1.5"]}, r"label_smoothing must be below 1, not 1\.5"),
        ({"overrides": ["optimizer=adam"]}, "optimizer is one of sgd, adamw, not 'adam'"),
        ({"overrides": ["schedule=cosin"]}, "schedule is one of steps, cosine, linear, whole-cosine, not 'cosin'"),
        ({"overrides": ["mixup=-1"]}, "mixup must not be negative"),
        ({"overrides": ["randaugment_magnitude=31", "randaugment=2"]}, "randaugment_magnitude must be at most 30"),
        ({"overrides": ["ema=1"]}, "ema must be below 1"),
        ({"overrides": ["lr_min=0.01"]}, "--set lr_min changes nothing without schedule=cosine"),
        ({"overrides": ["schedule=cosine", "milestones=10"]}, "milestones changes nothing without schedule=steps"),
        ({"overrides": ["optimizer=adamw", "momentum=0.9"]}, "momentum changes nothing without optimizer=sgd"),
        ({"overrides": ["schedule=linear", "lr_min=0.1"]}, r"lr_min 0\.1 is above the learning rate 0\.05"),
        ({"overrides": ["mixup=0.2"], "teacher_cache": "fp32"}, "mixup changes images in endlessly many ways"),
        ({"overrides": ["randaugment=2"], "teacher_cache": "fp16"}, "leave out --teacher-cache or randaugment"),
    ],
)
def test_requests_that_cannot_be_carried_out(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        resolve(request(**changes), teacher)


def test_fields_that_nothing_reads_make_no_other_run() -> None:
    run = only(request(overrides=["schedule=cosine", "optimizer=adamw"]))
    assert (run.recipe.milestones, run.recipe.momentum, run.recipe.nesterov) == ((), 0.9, False)
    assert only(request(epochs=12, overrides=["schedule=cosine"])).recipe.epochs == 12
    assert run.recipe.settled() == run.recipe


#: Of the rows below: why they cannot learn from mixed images.
UNMIXED = {
    "crd": "its banks have a row for each training image",
    "dkd": "it sets the label's class apart",
    "rld": "it sets the label's class apart",
    "sdd": "it weighs regions by the label's class",
    "nd": "it turns an embedding to its class",
}


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["mixup=0.2"], UNMIXED),
        (["cutmix=1"], UNMIXED),
        (["optimizer=adamw"], {"dot": "it has two momenta, and optimizer adamw has none"}),
        (["ema=0.99"], {"simkd": "its projector is measured too"}),
        (["label_smoothing=0.1", "randaugment=2", "schedule=cosine"], {}),
    ],
)
def test_methods_that_cannot_have_a_recipe_are_not_applicable(overrides: list[str], refused: dict[str, str]) -> None:
    methods = ["vanilla", "kd", "at", "crd", "dkd", "nkd", "rld", "sdd", "nd", "dot", "simkd"]
    cells = resolve(request(pairs=["resnet56:resnet20"], methods=methods, overrides=overrides), teacher)
    found = {cell.row: cell.not_applicable for cell in cells if cell.not_applicable}
    assert found.keys() == refused.keys()
    assert all(reason in found[row] for row, reason in refused.items())


# --- a paper alone -----------------------------------------------------------------------------------------------


def test_no_rows_are_the_rows_of_each_table() -> None:
    rows = ["vanilla", "kd", "fitnet-2stage", "takd", "at", "crd", "tofd", "mhkd", "dih"]
    wanted = dih(pairs=["dih-cifar10"], seeds=[30], data=None)
    cells = [cell for cell in resolve(wanted, teacher) if not cell.prerequisite]
    assert [cell.row for cell in cells] == rows * len(DIH.tables["dih-cifar10"].pairs)
    assert {cell.row for cell in resolve(request(methods=[], pairs=["crd-1"]), teacher)} == {
        "vanilla",
        *CRD.tables["crd-1"].rows,
    }


def test_on_a_tables_data_set_all_are_the_pairs_of_that_table() -> None:
    cells = resolve(dih("vanilla", pairs=["all"], data="tiny-imagenet"), teacher)
    assert {cell.pair for cell in cells} == set(DIH.tables["dih-tiny"].pairs)


def test_a_guest_brings_its_settings_and_is_trained_by_the_hosts_recipe() -> None:
    cells = resolve(request(pairs=["resnet56:resnet20"], methods=["dih", "kd"]), teacher)
    dih_run, kd_run, heads = (cell.run for cell in cells)
    assert dih_run.objective.terms == {"ce": 0.9, "kd": 0.1, "dih": 1.0}
    assert dih_run.recipe == kd_run.recipe == heads.recipe == CRD.recipe
    assert dih_run.teacher is not None
    assert dih_run.teacher.run == heads.id


def test_tables_are_run_on_their_own_data() -> None:
    wanted = dih("vanilla", pairs=["dih-cifar10", "dih-tiny", "resnet32:resnet14"], data=None)
    students = {pair.student for pair in DIH.tables["dih-tiny"].pairs}
    found = {(cell.pair.student, cell.run.data.kind) for cell in resolve(wanted, teacher)}
    on_both = {(student, kind) for student in students for kind in ("cifar10", "tiny-imagenet")}
    assert found == on_both | {("resnet14", "cifar100")}, "what is in no table is run on the paper's own data"
    elsewhere = resolve(replace(wanted, data=DataRequest("digits")), teacher)
    assert {(cell.pair.student, cell.run.data.kind) for cell in elsewhere} == {
        (student, "digits") for student in (*students, "resnet14")
    }


def test_a_papers_own_normalisation_is_used() -> None:
    (cell,) = resolve(dih("vanilla", data="cifar100"), teacher)
    assert (cell.run.data.mean, cell.run.data.std) == ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
    (ours,) = resolve(request(methods=["vanilla"], data="cifar100"), teacher)
    assert ours.run.data == BUILT_IN["cifar100"]


# --- readings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "code", "paper"),
    [
        ("dih", {"teachers": "sum"}, {"teachers": "mean"}),
        (
            "tofd",
            {"pairing": "shifted", "orthogonal": "all", "teacher_mode": "train"},
            {"pairing": "aligned", "orthogonal": "resized", "teacher_mode": "eval"},
        ),
        ("mhkd", {"head_calls": 2, "detach": False}, {"head_calls": 1, "detach": True}),
    ],
)
def test_readings_change_a_row(row: str, code: dict[str, object], paper: dict[str, object]) -> None:
    ours, theirs = (by_row(resolve(dih(row, reading=name), teacher))[row].run for name in ("code", "paper"))
    assert {key: ours.objective.named_params[key] for key in code} == code
    assert theirs.objective.named_params == {**ours.objective.named_params, **paper}
    assert (ours.recipe.lr_factor, theirs.recipe.lr_factor) == (0.2, 0.1)
    assert replace(theirs.recipe, lr_factor=0.2) == ours.recipe


def test_a_reading_can_still_be_changed() -> None:
    code = ["teachers=sum", "lr_factor=0.2", "kept=test-batch"]
    run = by_row(resolve(dih("dih", reading="paper", overrides=code), teacher))["dih"].run
    assert run.id == by_row(resolve(dih("dih"), teacher))["dih"].run.id


def test_unknown_readings_are_refused() -> None:
    with pytest.raises(BadRequest, match="unknown reading of paper dih 'papre'; did you mean paper"):
        resolve(dih("dih", reading="papre"), teacher)
    with pytest.raises(BadRequest, match="unknown reading of paper crd"):
        resolve(request(reading="paper"), teacher)


def test_tofd_needs_no_weights_of_the_pairs_teacher() -> None:
    def absent(network: str, data: object) -> FileTeacher:
        raise BadRequest(f"there is no teacher {network}")

    found = by_row(resolve(dih("tofd"), absent))
    assert found["tofd"].run.needs == (found["tofd-teacher"].run.id,)
    with pytest.raises(BadRequest, match="no teacher resnet20"):
        resolve(dih("dih"), absent)


def test_a_network_that_cannot_carry_what_a_row_needs_is_not_applicable() -> None:
    cells = [cell for cell in resolve(dih("tofd", "kd", pairs=["vgg13:vgg8"]), teacher) if not cell.prerequisite]
    assert [cell.not_applicable is None for cell in cells] == [False, True]
    assert str(cells[0].not_applicable).startswith("vgg8 cannot have the classifiers 'tofd'")


def test_photographs_are_found_under_the_data_root(tmp_path: Path) -> None:
    wanted = request(paper="cd", pairs=["cd-imagenet"], methods=["vanilla"], data=None, root=tmp_path, epochs=1)
    with pytest.raises(BadRequest, match="data set 'imagenet' lacks a path: write imagenet:PATH"):
        resolve(wanted, teacher)
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "imagenet" / place).mkdir(parents=True)
        (tmp_path / "imagenet" / place / "1.jpg").touch()
    (cell,) = resolve(asked(wanted, batch_size=2), teacher)
    assert (cell.run.data.path, cell.run.student) == (tmp_path / "imagenet", "tv_resnet18")


# --- what is measured --------------------------------------------------------------------------------------------


def test_the_loss_of_the_test_images_is_measured_where_a_row_or_the_user_says() -> None:
    measured = only(dih("kd"))
    not_measured = only(dih("kd", overrides=["test_loss=false"]))
    assert (measured.test_loss, not_measured.test_loss, only(request()).test_loss) == (True, False, None)
    assert measured.id != not_measured.id
    assert measured.protocol["params"] == {"kd_temperature": 5.0, "test_objective": True}, "as it once was called"


def test_a_loss_of_training_images_is_not_measured_on_others() -> None:
    with pytest.raises(BadRequest, match="loss is of training images alone, so test_loss must be false"):
        resolve(dih("crd", overrides=["test_loss=true"]), teacher)


# --- hyper-parameters --------------------------------------------------------------------------------------------


def test_a_hyper_parameter_that_no_row_states_can_be_set() -> None:
    run = only(request(methods=["at"], overrides=["at_stages=1"]))
    assert run.objective.named_params == {"at_stages": "1"}
    assert run.id != only(request(methods=["at"])).id


def test_a_hyper_parameter_of_kd_leaves_runs_without_kd_as_they_are() -> None:
    plain, changed = (
        {cell.row: cell.run.id for cell in resolve(request(methods=["at", "kd"], overrides=texts), teacher)}
        for texts in ([], ["kd_temperature=2"])
    )
    assert plain["at"] == changed["at"]
    assert plain["kd"] != changed["kd"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("at+takd", "takd cannot be combined: it learns from a network that is trained first"),
        ("at+dih", "dih cannot be combined: it learns from a network that is trained first"),
        ("at+tofd", "tofd cannot be combined: it trains another network than the pair's student"),
        ("at+dml", "dml cannot be combined: it trains its peers"),
        ("at+simkd", "simkd cannot be combined: it measures more than the student"),
        ("at+dot", "dot cannot be combined: it keeps the gradients of two losses apart"),
        ("at+fsp", "fsp cannot: "),
    ],
)
def test_methods_that_cannot_be_combined_are_not_applicable(row: str, reason: str) -> None:
    pair = "resnet32x4:resnet20" if row == "at+fsp" else "resnet56:resnet20"  # of other channels
    (planned,) = resolve(request(methods=[row], pairs=[pair]), teacher)
    assert str(planned.not_applicable).startswith(reason)


def test_a_combination_has_the_settings_of_its_methods() -> None:
    run = only(request(methods=["ReviewKD+dkd"], epochs=24, overrides=["weight.dkd=2", "reviewkd.teacher_mode=eval"]))
    assert run.row == "dkd+reviewkd"
    assert run.objective.terms == {"ce": 1.0, "dkd": 2.0, "reviewkd": 0.6}, "of this pair"
    assert run.objective.named_params["dkd.beta"] == 2.0
    assert run.objective.named_params["reviewkd.teacher_mode"] == "eval"
    assert (run.objective.schedules["dkd"].warmup, run.objective.schedules["reviewkd"].ramp) == (2, 2)
    assert run.protocol["method"] == {"name": "dkd+reviewkd", "version": 1, "parts": {"dkd": 1, "reviewkd": 1}}
    weighed = only(request(methods=["at+ctkd"]))
    assert weighed.objective.terms["ce"] == 0.1, "as ctkd has it"


@pytest.mark.parametrize("row", ["vanilla+kd", "kd+kd", "heads+kd"])
def test_rows_that_are_not_combined_with_kd(row: str) -> None:
    with pytest.raises(BadRequest, match="unknown method"):
        resolve(request(methods=[row]), teacher)
