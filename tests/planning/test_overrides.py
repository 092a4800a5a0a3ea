"""``--set KEY=VALUE``."""

from dataclasses import replace

import pytest

from kdtable.errors import BadRequest
from kdtable.methods import get
from kdtable.methods.crd import CRDParams
from kdtable.methods.dml import DMLParams
from kdtable.methods.objective import Params
from kdtable.planning.overrides import Overrides
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule

RECIPE = Recipe(epochs=240, batch_size=64, lr=0.05, milestones=(150, 180, 210))


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("weight_decay=1e-4", "weight_decay", 1e-4),
        ("momentum=0", "momentum", 0.0),
        ("lr_factor=0.2", "lr_factor", 0.2),
        ("nesterov=true", "nesterov", True),
        ("nesterov=False", "nesterov", False),
        ("milestones=150,180", "milestones", (150, 180)),
        ("milestones=7", "milestones", (7,)),
        ("crop_padding=2", "crop_padding", 2),
        ("first_epoch_lr=0.01", "first_epoch_lr", 0.01),
        ("optimizer=adamw", "optimizer", "adamw"),
        ("schedule=linear", "schedule", "linear"),
        ("randaugment=2", "randaugment", 2),
        ("ema=0.999", "ema", 0.999),
    ],
)
def test_recipe_fields_keep_their_type(text: str, field: str, value: object) -> None:
    settings = Overrides([text])
    changed = getattr(settings.recipe(replace(RECIPE, nesterov=not value if field == "nesterov" else False)), field)
    settings.check_all_used()
    assert changed == value
    assert type(changed) is type(value)


def test_weights_and_hyper_parameters() -> None:
    settings = Overrides(["weight.kd=2", "kd_temperature=3", "mode=relax", "negatives=12"])
    assert settings.weights({"ce": 1.0, "kd": 0.9}) == {"ce": 1.0, "kd": 2.0}
    stated = {"kd_temperature": 4.0, "mode": "exact", "negatives": 16384, "tau": 0.07}
    params = settings.params(CRDParams, stated, ("ce", "kd"))
    assert params == {"kd_temperature": 3.0, "mode": "relax", "negatives": 12, "tau": 0.07}
    assert isinstance(params["kd_temperature"], float)
    settings.check_all_used()


def test_an_order_of_terms_survives() -> None:
    assert list(Overrides(["weight.ce=2"]).weights({"ce": 1.0, "kd": 1.0, "crd": 0.8})) == ["ce", "kd", "crd"]


def test_nothing_set_changes_nothing() -> None:
    settings = Overrides([])
    assert settings.recipe(RECIPE) == RECIPE
    assert settings.weights({"ce": 1.0}) == {"ce": 1.0}
    settings.check_all_used()


def test_a_key_given_twice() -> None:
    assert Overrides(["momentum=0.1", "momentum=0.1"]).recipe(RECIPE).momentum == 0.1
    with pytest.raises(BadRequest, match=r"--set momentum is given as 0\.1 and as 0\.2: leave one out"):
        Overrides(["momentum=0.1", "momentum=0.2"])


def test_a_value_may_hold_an_equals_sign() -> None:
    assert Overrides(["peer=a=b"]).params(DMLParams, {}, ()) == {"peer": "a=b"}


@pytest.mark.parametrize("text", ["momentum", "=1", "momentum=", "", "="])
def test_texts_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="KEY=VALUE"):
        Overrides([text])


@pytest.mark.parametrize(("key", "option"), [("epochs", "epochs"), ("batch_size", "batch-size"), ("lr", "lr")])
def test_keys_with_an_option_of_their_own(key: str, option: str) -> None:
    with pytest.raises(BadRequest, match=f"use --{option} to set {key}"):
        Overrides([f"{key}=1"])


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ("momentum=high", "a number"),
        ("nesterov=1", "true or false"),
        ("crop_padding=2.5", "a whole number"),
        ("milestones=150;180", "numbers like 150,180"),
        ("milestones=1.5", "numbers like 150,180"),
    ],
)
def test_values_of_another_type_are_refused(text: str, wants: str) -> None:
    with pytest.raises(BadRequest, match=wants) as refused:
        Overrides([text]).recipe(RECIPE)
    assert text.partition("=")[2] in str(refused.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(value: str) -> None:
    with pytest.raises(BadRequest):
        Overrides([f"weight.kd={value}"]).weights({"kd": 0.9})


def test_a_schedule_is_written_in_parts() -> None:
    own = {"at": Schedule(ramp=3)}
    changed = Overrides(["schedule.ce=off_until:2,steps:4/6,factor:0.5"]).schedules({"ce": 1.0, "at": 2.0}, own)
    assert changed == {"ce": Schedule(off_until=2, steps=(4, 6), factor=0.5), **own}


@pytest.mark.parametrize(
    "text", ["off:2", "ramp", "ramp:x", "factor:nan", "steps:4;6", "ramp:-5", "factor:-1", "warmup:2,of:0"]
)
def test_a_schedule_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="takes parts of off_until"):
        Overrides([f"schedule.ce={text}"]).schedules({"ce": 1.0}, {})


@pytest.mark.parametrize(
    ("text", "near"), [("momentun=0.5", "momentum"), ("weight.kdd=1", "weight.kd"), ("temperature=2", "kd_temperature")]
)
def test_an_unknown_key_names_the_nearest(text: str, near: str) -> None:
    settings = Overrides([text])
    settings.recipe(RECIPE)
    settings.weights({"ce": 1.0, "kd": 0.9})
    settings.params(Params, {"kd_temperature": 4.0}, ("kd",))
    with pytest.raises(BadRequest, match=f"unknown setting '{text.partition('=')[0]}'") as refused:
        settings.check_all_used()
    assert near in str(refused.value)


def test_a_key_that_applies_to_one_of_several_rows_is_used() -> None:
    settings = Overrides(["tau=0.1"])
    assert settings.params(Params, {}, ("ce", "kd")) == {}
    assert settings.params(CRDParams, {}, ("ce", "crd")) == {"tau": 0.1}
    settings.check_all_used()


# --- one method, one pair, and what changes nothing ------------------------------------------------------------------


def crd_of(*texts: str, method: str = "crd") -> dict[str, object]:
    settings = Overrides(list(texts))
    found = settings.params(CRDParams, {"dim": 128}, ("ce", "crd"), method)
    settings.check_all_used()
    return found


def test_a_hyper_parameter_of_one_method() -> None:
    assert crd_of("crd.dim=64") == {"dim": 64}
    assert crd_of("dim=32", "crd.dim=64")["dim"] == 64, "the one that names the method"
    with pytest.raises(BadRequest, match=r"unknown setting 'cc\.dim'"):
        crd_of("cc.dim=64")


def test_a_name_that_several_methods_have() -> None:
    kind = get("cc+crd").hyper
    settings = Overrides(["cc.dim=32", "tau=0.1"])
    assert settings.params(kind, {}, ("ce",), "cc+crd") == {"cc.dim": 32, "crd.tau": 0.1}
    settings.check_all_used()
    with pytest.raises(BadRequest, match=r"--set dim could be any of cc\.dim, crd\.dim"):
        Overrides(["dim=32"]).params(kind, {}, ("ce",), "cc+crd")


def test_settings_of_a_pair() -> None:
    settings = Overrides(["weight.at=300", "res56:resnet-20/weight.at=500", "*:vgg8/weight.at=7", "vgg13:*/dim=8"])
    terms, pairs = {"ce": 1.0, "at": 1000.0}, (("resnet56", "resnet20"), ("vgg13", "vgg8"), ("vgg13", "vgg11"))
    assert [settings.on(*pair).weights(terms)["at"] for pair in pairs] == [500, 7, 300]
    assert [settings.on(*pair).params(CRDParams, {}, ()) for pair in pairs] == [{}, {"dim": 8}, {"dim": 8}]
    settings.check_all_used()
    last = Overrides(["*:vgg8/weight.at=7", "vgg13:vgg8/weight.at=8"]).on("vgg13", "vgg8")
    assert last.weights(terms)["at"] == 8


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("resnet56/weight.at=1", "TEACHER:STUDENT/KEY=VALUE for one pair"),
        ("resnet56:/weight.at=1", "TEACHER:STUDENT/KEY=VALUE for one pair"),
        ("resnet56:resnet20/=1", "TEACHER:STUDENT/KEY=VALUE for one pair"),
        ("resnet57:resnet20/weight.at=1", "unknown network 'resnet57'"),
        ("vgg13:vgg8/weight.at=1", "no pair that was asked for is vgg13:vgg8"),
        ("resnet56:resnet20/momentum=0.5", "all pairs share momentum, so leave out resnet56:resnet20/"),
        ("resnet56:resnet20/lr=0.5", "use --lr to set lr"),
        ("resnet56:resnet20/weight.att=0.5", "unknown setting 'weight.att'"),
    ],
)
def test_settings_of_a_pair_that_are_refused(text: str, sentence: str) -> None:
    def use() -> None:
        settings = Overrides([text])
        settings.recipe(RECIPE)
        settings.on("resnet56", "resnet20").weights({"ce": 1.0, "at": 1000.0})
        settings.check_all_used()

    with pytest.raises(BadRequest, match=sentence):
        use()


@pytest.mark.parametrize(
    "text", ["momentum=0.9", "weight.at=1000", "schedule.at=ramp:3", "schedule.ce=warmup:0", "dim=128"]
)
def test_what_changes_nothing_is_refused(text: str) -> None:
    settings = Overrides([text])
    settings.recipe(RECIPE)
    settings.weights({"ce": 1.0, "at": 1000.0})
    settings.schedules(["ce", "at"], {"at": Schedule(ramp=3)})
    settings.params(CRDParams, {}, ())
    with pytest.raises(BadRequest, match=f"--set {text} changes nothing, as .* has this value already: leave it out"):
        settings.check_all_used()


def test_what_changes_one_of_several_rows_is_a_change() -> None:
    settings = Overrides(["weight.ce=0.1", "*:*/weight.kd=0.9"])
    assert settings.on("a", "b").weights({"ce": 0.1, "kd": 0.9}) == {"ce": 0.1, "kd": 0.9}
    assert settings.on("a", "c").weights({"ce": 1.0, "kd": 1.0}) == {"ce": 0.1, "kd": 0.9}
    settings.check_all_used()


def test_an_override_that_another_one_replaces_is_refused() -> None:
    settings = Overrides(["weight.at=3", "*:*/weight.at=4"])
    assert settings.on("a", "b").weights({"at": 1.0}) == {"at": 4.0}
    with pytest.raises(BadRequest, match=r"--set weight\.at=3 changes nothing, as another --set takes its place"):
        settings.check_all_used()


@pytest.mark.parametrize(
    ("text", "epochs", "expected"),
    [
        ("warmup:20", 24, Schedule(warmup=20)),
        ("warmup:20,of:240", 240, Schedule(warmup=20)),
        ("warmup:20,of:240", 24, Schedule(warmup=2)),
        ("off_until:30,steps:60/90,factor:0.5,ramp:12,of:120", 60, Schedule(15, (30, 45), 0.5, 6)),
    ],
)
def test_a_schedule_scales_from_the_length_that_it_names(text: str, epochs: int, expected: Schedule) -> None:
    assert Overrides([f"schedule.at={text}"]).schedules(["at"], {}, epochs) == {"at": expected}
