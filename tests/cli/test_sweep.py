"""``kdtable sweep``: trials are ordinary runs, held-out images choose, and the final runs are a command away."""

import re
import shlex
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from kdtable.store import RunRecord, Store
from tests.cli.command import SMALL, TEACHER, Call, Done, assert_refused
from tests.faults.forks import Forks

PAIR = ("--pairs", "resnet14:resnet8", "--epochs", "1", *SMALL, *TEACHER, "--validation", "8", "--seeds", "2")
GRID = ("sweep", *PAIR, "--methods", "kd", "--set", "kd_temperature=2,4", "--set", "weight.kd=0.5,0.9")


@pytest.fixture(scope="module")
def swept(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("swept")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    done = forks.run(folder, *GRID)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def there(swept: tuple[Path, Done], tmp_path: Path) -> Path:
    shutil.copytree(swept[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def runs(folder: Path) -> list[RunRecord]:
    with closing(Store(folder / "results", create=False)) as store:
        return store.runs()


def final_commands(done: Done) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in done.out.splitlines() if line.startswith("  kdtable run ")]


def test_the_best_mean_on_held_out_images_is_chosen(swept: tuple[Path, Done]) -> None:
    folder, done = swept
    by_setting: dict[tuple[str, str], list[float]] = {}
    for run in runs(folder):
        identity, measured = run.protocol.identity, run.metrics_of("validation")
        assert measured is not None
        key = f"{identity['params']['kd_temperature']:g}", f"{dict(identity['terms'])['kd']:g}"
        by_setting.setdefault(key, []).append(100 * measured["validation-top1"])
    means = {key: sum(values) / 2 for key, values in by_setting.items()}
    assert len(means) == 4
    lines = [re.split(r"\s*│\s*", line.strip("│ ")) for line in done.out.splitlines() if re.match(r"│ \d", line)]
    shown = {(line[1], line[2]): line[3] for line in lines}
    for key, mean in means.items():
        assert shown[key].startswith(f"{mean:.2f} ± ")
    (best,) = [key for key, text in shown.items() if text.endswith("*")]
    assert means[best] == max(means.values())
    (command,) = final_commands(done)
    assert [f"kd_temperature={best[0]}", f"weight.kd={best[1]}"] == command[-3::2]
    assert "Validation top-1 accuracy on 8 training images held out: mean ± sample standard deviation over 2 seeds" in (
        done.out
    )


def test_trials_are_ordinary_runs(there: Path, call: Call, swept: tuple[Path, Done]) -> None:
    before = {run.id for run in runs(there)}
    (command,) = final_commands(swept[1])
    # Three seeds, of which the sweep has trained two.
    assert call(*command, "--dry-run").out.startswith("3 runs: 2 done, 1 to train")
    again = call(*GRID, "-o", "map.png")
    assert (again.code, again.err) == (0, "")
    assert again.out == swept[1].out
    assert (there / "map.png").read_bytes().startswith(b"\x89PNG")
    assert {run.id for run in runs(there)} == before
    more = call(*GRID[:-2], "--set", "weight.kd=0.5,0.9,2", "--dry-run")
    assert "12 runs: 8 done, 4 to train" in more.out


def test_a_search_says_its_trials_before_it_trains(tiny: Path, call: Call) -> None:
    done = call("sweep", *PAIR, "--methods", "KD,at", "--trials", "3", "--dry-run")
    assert done.code == 0, done.err
    assert "kd: 3 trials" in done.out
    assert "4 (own)" in done.out
    assert "weight.at from 100 to 10000" in done.out
    assert "12 runs: 0 done, 12 to train in 2 cohorts" in done.out  # one teacher pass for all trials of a seed
    assert not (tiny / "results").exists()


def test_a_trial_that_fails_is_not_chosen(tiny: Path, call: Call) -> None:
    done = call("sweep", *PAIR, "--methods", "kd", "--seeds", "1", "--set", "weight.kd=1e38,0.9", "-o", "x.svg")
    assert_refused(done, "a heat map (--output) needs a grid of two settings")
    done = call("sweep", *PAIR, "--methods", "kd", "--seeds", "1", "--set", "weight.kd=1e38,0.9")
    assert done.code == 1
    assert "1 of 1 not done" in done.out
    assert "--set" not in final_commands(done)[0], "0.9 is the own weight of kd, and run refuses what changes nothing"
    assert "1 run failed; 'kdtable status' has the reasons" in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (GRID[:-4], "a sweep needs something to choose between"),
        ((*GRID, "-o", "map.txt"), "a figure's file ends in .pdf, .svg, .png, not 'map.txt'"),
        ((*GRID, "--trials", "4"), "--set kd_temperature=2,4 is a grid: leave out --trials"),
        ((*GRID[:-4], "--set", "temperature=2,4"), "unknown setting 'temperature': here it is called kd_temperature"),
        ((*GRID[:-4], "--set", "kd_temperature=2,x"), "--set kd_temperature takes a number, not 'x'"),
        ((*GRID[:-4], "--set", "lr=0.1,x"), "--set lr takes a number, not 'x'"),
        ((*GRID, "--validation", "47"), "--validation 47 leaves too little to train on"),
    ],
)
def test_what_is_no_sweep_is_refused(tiny: Path, call: Call, words: tuple[str, ...], sentence: str) -> None:
    assert_refused(call(*words), sentence)
    assert not (tiny / "results").exists()


def test_a_sweep_without_held_out_images_is_refused(tiny: Path, call: Call) -> None:
    words = [word for number, word in enumerate(GRID) if "--validation" not in (word, GRID[number - 1])]
    assert_refused(call(*words), "a sweep chooses by held-out training images, never by the test set: say how many")
