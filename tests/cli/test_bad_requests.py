"""What bad input gets: one clear sentence, exit code 2, nothing written."""

from pathlib import Path

import pytest

from tests.cli.command import SMALL, TEACHER, Call, Shell, assert_refused, listing, write_images

#: A good request, which every case spoils; a repeated option replaces the earlier one.
GOOD = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd", "--epochs", "1", *SMALL, *TEACHER)

#: What is added to the good request, and what the sentence must say.
SPOILED: dict[str, tuple[str, ...]] = {
    "--pairs resnt56:resnet8": ("unknown network 'resnt56'", "resnet56", "resnet56_a"),
    "--pairs resnet14:resnet_9": ("unknown network 'resnet_9'", "resnet8"),
    "--pairs resnet56-resnet20": ("unknown pair 'resnet56-resnet20'", "resnet56:resnet20"),
    "--pairs crd-9": ("unknown pair 'crd-9'", "crd-1", "crd-2"),
    "--pairs shufflenet:resnet8": ("'shufflenet' is ambiguous", "ShuffleV1 or ShuffleV2"),
    "--pairs resnet14:ShuffleNet": ("ambiguous", "ShuffleV1 or ShuffleV2"),
    "--pairs resnet14:": ("unknown network",),
    "--pairs ,": ("TEACHER:STUDENT",),
    "--methods vanila": ("unknown method 'vanila'", "vanilla"),
    "--methods kd,crdd": ("unknown method 'crdd'", "crd"),
    "--methods kd+kd": ("unknown method 'kd+kd'", "write kd"),
    "--methods ,": ("method",),
    "--paper cdr": ("unknown paper 'cdr'", "crd"),
    "--data cifar": ("unknown data set 'cifar'", "cifar10", "cifar100"),
    "--data npz:": ("npz:PATH",),
    "--data npz:none.npz": ("none.npz", "no such npz file"),
    "--data folder:none": ("none",),
    "--batch-size 49": ("tiny has 48 training images", "fewer than one batch of 49", "--batch-size"),
    "--batch-size 0": ("batch of 0 images", "--batch-size"),
    "--seeds 0": ("--seeds 0", "at least 1"),
    "--seeds -3": ("--seeds -3", "at least 1"),
    "--seeds 1,-2": ("--seeds 1,-2",),
    "--seeds x": ("--seeds", "7,8,9", "'x'"),
    "--seeds 1.5": ("--seeds", "'1.5'"),
    "--seeds ,": ("--seeds",),
    "--epochs 0": ("--epochs 0", "at least 1"),
    "--lr 0": ("learning rate of 0", "positive"),
    "--lr -0.1": ("learning rate of -0.1", "positive"),
    "--lr nan": ("learning rate",),
    "--lr inf": ("learning rate",),
    "--set weight_decy=1": ("unknown setting 'weight_decy'", "weight_decay"),
    "--set weight.kdd=1": ("unknown setting 'weight.kdd'", "weight.kd"),
    "--set tau=1": ("unknown setting 'tau'",),
    "--set momentum": ("KEY=VALUE", "'momentum'"),
    "--set =1": ("KEY=VALUE",),
    "--set momentum=": ("KEY=VALUE",),
    "--set epochs=3": ("--epochs",),
    "--set batch_size=3": ("--batch-size",),
    "--set lr=3": ("--lr",),
    "--set momentum=high": ("momentum", "a number", "'high'"),
    "--set crop_padding=1.5": ("crop_padding", "a whole number", "'1.5'"),
    "--set nesterov=maybe": ("nesterov", "true or false", "'maybe'"),
    "--set milestones=a": ("milestones", "150,180", "'a'"),
    "--set weight.kd=nan": ("weight.kd",),
    "--set weight_decay=inf": ("weight_decay",),
    "--set momentum=-1": ("momentum",),
    "--set weight_decay=-1": ("weight_decay",),
    "--set crop_padding=-1": ("crop_padding",),
    "--set kd_temperature=0": ("kd_temperature must be positive",),
    "--methods crd --set mode=nonsense": ("mode", "exact, relax", "'nonsense'"),
    "--methods crd --set negatives=0": ("negatives must be positive",),
    "--methods crd --set tau=-1": ("tau must be positive",),
    "--methods crd --set bank_momentum=1": ("bank_momentum",),
    "--device tpu": ("unknown device 'tpu'", "auto, cpu, cuda"),
    "--device cuda:99": ("'cuda:99' is not available", "--device auto or cpu"),
    "--precision fp8": ("unknown precision 'fp8'", "fp32, tf32, bf16, fp16"),
    "--precision tf32": ("tf32", "CUDA", "fp32 or bf16"),
    "--precision fp8 --dry-run": ("unknown precision 'fp8'",),
    "--teacher resnet14": ("NAME=FILE", "'resnet14'"),
    "--teacher resnet14=none.pth": ("there is no file none.pth",),
    "--teacher resnet20=resnet14.pth": ("resnet20", "no pair"),
    "--teacher resnt20=resnet14.pth": ("unknown network 'resnt20'", "resnet20"),
    "--pairs resnet20:resnet8 --teacher resnet20=resnet14.pth": ("resnet14.pth is not a resnet20", "lacks"),
    "--pairs wrn-16-2:resnet8 --teacher wrn-16-2=resnet14.pth": ("resnet14.pth is not a wrn_16_2",),
    "--data cifar100": ("resnet14.pth has 4 classes", "the data set has 100"),
    "--results tiny.npz": ("results folder tiny.npz cannot be written to", "--results"),
    "--results tiny.npz/results": ("results folder tiny.npz/results cannot be written to", "--results"),
}


@pytest.mark.parametrize("words", SPOILED)
def test_a_spoiled_request(words: str, call: Call, tiny: Path) -> None:
    before = listing(tiny)
    assert_refused(call(*GOOD, *words.split()), *SPOILED[words])
    assert listing(tiny) == before


OTHERS: dict[str, tuple[str, ...]] = {
    "report": ("no results store in results", "kdtable run", "--results"),
    "report --table crd-1": ("no results store in results",),
    "report --table crd-9": ("unknown table 'crd-9'", "crd-1", "crd-2"),
    "report --format pdf": ("unknown format 'pdf'", "csv, html, json, latex, markdown, terminal"),
    "report --format markdwn": ("unknown format 'markdwn'", "markdown"),
    "report --compare": ("--compare", "--table crd-1"),
    "report --epoch middle": ("--epoch", "last, best", "'middle'"),
    "report --results tiny.npz": ("no results store in tiny.npz",),
    "status": ("no results store in results", "kdtable run", "--results"),
    "list modls": ("unknown list 'modls'", "models"),
    "list models --format yaml": ("--format", "'yaml' is not one of 'terminal', 'json'"),
    "fetch-teachers resnt56": ("unknown published teacher 'resnt56'", "cifar100/resnet56"),
    "fetch-teachers cifar10/resnet56": ("unknown published teacher 'cifar10/resnet56'", "cifar10/resnet56_a"),
    "fetch-teachers resnet56 --mirror ftp://127.0.0.1": ("ftp://127.0.0.1", "http"),
    "check-teachers": ("no teachers in teachers", "kdtable fetch-teachers"),
    "check-teachers resnet56": ("no resnet56 in teachers", "kdtable fetch-teachers"),
    "check-teachers resnt56": ("unknown network 'resnt56'", "resnet56"),
    "check-teachers --teacher resnet14=resnet14.pth": ("resnet14.pth has 4 classes, the data set has 100",),
    "check-teachers --data npz:tiny.npz --teacher resnet20=resnet14.pth": ("resnet14.pth is not a resnet20",),
    "check-teachers --data npz:tiny.npz --teacher resnet14=resnet14.pth --device tpu": ("unknown device 'tpu'",),
    "train-teachers resnt8 --data npz:tiny.npz": ("unknown network 'resnt8'", "resnet8"),
    "train-teachers resnet8 --data npz:tiny.npz": ("48 training images", "one batch of 64", "--batch-size"),
    "train-teachers resnet8 --data npz:tiny.npz --batch-size 16 --epochs 0": ("--epochs 0",),
    "train-teachers resnet8 --data npz:tiny.npz --batch-size 16 --set tau=1": ("unknown setting 'tau'",),
    "train-teachers resnet8 --data npz:tiny.npz --batch-size 16 --epochs 1 --seed -1": ("seed",),
}


#: What the option parser refuses is worded as all else is; and what the sentence must say.
USAGE: dict[str, tuple[str, ...]] = {
    "run --epochs x": ("'--epochs': takes a whole number, not 'x'",),
    "run --epochs 1.5": ("'--epochs': takes a whole number, not '1.5'",),
    "run --epochs=": ("'--epochs': takes a whole number, not ''",),
    "run --lr fast": ("'--lr': takes a number, not 'fast'",),
    "train-teachers resnet8 --seed one": ("'--seed': takes a whole number, not 'one'",),
    "fetch-data tiny-imagenet --timeout soon": ("'--timeout': takes a number, not 'soon'",),
    "run --epoch 3": ("no such option: --epoch", "--epochs"),
    "run --epoch=3": ("no such option: --epoch", "--epochs"),
    "run -epochs 3": ("no such option: -e",),
    "run --nope": ("no such option: --nope", "(see --help)"),
    "run -x": ("no such option: -x (see --help)",),
    "--nope": ("no such option: --nope (see --help)",),
    "run --pairs all --methods": ("option '--methods' requires an argument (see --help)",),
    "run --dry-run=yes": ("option '--dry-run' does not take a value (see --help)",),
    "run --pairs all --methods kd crd": ("unexpected extra argument", "(crd)", "commas and no spaces (kd,crd)"),
    "list models more": ("unexpected extra argument", "(more)"),
    "train-teachers": ("missing argument 'NAME' (see --help)",),
    "list": ("missing argument 'WHAT' (see --help)",),
    "store copy here": ("missing argument 'TO' (see --help)",),
    "reprt": ("no such command 'reprt'", "'report'"),
    "nonsense": ("no such command 'nonsense' (see --help)",),
    "store chek": ("no such command 'chek'", "'check'"),
    "-- --nope": ("no such option: --nope",),
}


@pytest.mark.parametrize("words", USAGE)
def test_words_that_the_option_parser_refuses(words: str, call: Call, tmp_path: Path) -> None:
    done = call(*words.split())
    assert_refused(done, *USAGE[words])
    assert len(done.errors[0]) < 160
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--ep\x1b[2J"),
        ("\x1b[31mrun",),
        ("run", "--epochs", "\x1b]0;x\n"),
        ("list", "models", "a\nb\x1b"),
        ("run", "-\x07"),
    ],
)
def test_what_was_typed_is_spelled_out(words: tuple[str, ...], call: Call) -> None:
    done = call(*words)
    assert_refused(done)
    assert done.err.rstrip("\n").isprintable()
    assert "\\x" in done.err


def test_the_option_parser_of_the_real_command(tmp_path: Path) -> None:
    assert_refused(Shell(tmp_path).run("run", "--epoch", "3"), "no such option: --epoch", "--epochs")


@pytest.mark.parametrize("words", OTHERS)
def test_a_bad_request_to_another_command(words: str, call: Call, tiny: Path) -> None:
    before = listing(tiny)
    assert_refused(call(*words.split()), *OTHERS[words])
    assert listing(tiny) == before


@pytest.mark.parametrize(
    "words",
    ["--pairs resnt56:resnet8", "--seeds 0", "--batch-size 49", "--data cifar100", "--results tiny.npz/results"],
)
def test_a_spoiled_request_to_the_real_command(words: str, tiny: Path) -> None:
    before = listing(tiny)
    assert_refused(Shell(tiny).run(*GOOD, *words.split()), *SPOILED[words])
    assert listing(tiny) == before


def test_the_good_request_is_good(call: Call, tiny: Path) -> None:
    before = listing(tiny)
    assert call(*GOOD, "--dry-run").code == 0
    assert listing(tiny) == before


def test_a_teacher_that_is_not_there_is_asked_for_with_a_command(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path / "tiny.npz")
    before = listing(tmp_path)
    published = call("run", "--pairs", "resnet56:resnet20", "--methods", "kd", "--device", "cpu")
    assert_refused(published, "'kdtable fetch-teachers cifar100/resnet56'", "--teacher resnet56=FILE")
    unpublished = call("run", "--pairs", "resnet14:resnet8", "--methods", "kd", *SMALL)
    command = f"'kdtable train-teachers resnet14 --data npz:{tmp_path / 'tiny.npz'}'"
    assert_refused(unpublished, command, "--teacher resnet14=FILE")
    digits = call("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--data", "digits")
    assert_refused(digits, "'kdtable train-teachers resnet14 --data digits'")
    assert listing(tmp_path) == before


def test_the_plain_student_needs_no_teacher(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path / "tiny.npz")
    done = call("run", "--pairs", "resnet56:resnet8", "--methods", "vanilla", "--dry-run", *SMALL)
    assert done.code == 0
    assert "1 to train" in done.out
