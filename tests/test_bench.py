"""The benchmarks of cohorts run, and their figures agree with one another."""

import json
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
BATCH = 4
IMAGE_BYTES = 50_000 * 3 * 32 * 32


def figures(name: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPTS / f"bench_{name}.py"), *options, "--batch-size", str(BATCH), "--turns", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (found["bench"], found["batch_size"], found["threads_per_network"]) == (name, BATCH, 1)
    return found


@pytest.fixture(scope="module")
def step() -> dict[str, Any]:
    return figures("step", "--pairs", "resnet8x4:resnet8", "--methods", "kd,fsp,sp")


@pytest.fixture(scope="module")
def grid() -> dict[str, Any]:
    (pair,) = figures("grid", "--pairs", "resnet8:resnet8", "--methods", "kd,at,ab", "--cohorts", "1,2,13")["pairs"]
    return dict(pair)


def test_parts_of_a_step_add_up(step: dict[str, Any]) -> None:
    (split,) = step["splits"]
    assert split["methods"] == ["kd", "sp"]
    assert "channels" in split["left_out"]["fsp"]
    for times in (split["wall_ms"], split["cpu_ms"]):
        *parts, whole = times
        assert parts[:3] == ["data", "teacher", "forward"]
        assert parts[3:] == ["loss ce", "loss kd", "loss sp", "backward", "optimiser", "bookkeeping"]
        assert sum(times[part] for part in parts) == pytest.approx(times[whole])
        assert min(times.values()) > 0
    assert sum(split["step_wall_ms"]) / 2 == pytest.approx(split["wall_ms"]["step"])


def test_loops_are_compared_turn_by_turn(step: dict[str, Any]) -> None:
    (compared,) = step["comparisons"]
    assert compared["student"] == "resnet8"
    for kind in (compared["wall"], compared["cpu"]):
        ours, plain = kind["seconds"]["ours"], kind["seconds"]["plain"]
        assert kind["plain_over_ours"] == pytest.approx([plain[0] / ours[0], plain[1] / ours[1]])
        assert ("fp32_over_bf16" in kind) == ("ours in bf16" in kind["seconds"])


@pytest.mark.slow
def test_cohorts_are_related_to_solo_runs(grid: dict[str, Any]) -> None:
    sizes = ["1", "2", "3"]
    assert list(grid["ratio_to_smallest"]) == list(grid["students_images_per_second"]) == sizes
    for size in sizes:
        for times, ratio in (("seconds", "ratio_to_smallest"), ("cpu_seconds", "cpu_ratio_to_smallest")):
            taken, solo = grid[times][f"cohorts of {size}"], grid[times]["cohorts of 1"]
            assert grid[ratio][size] == pytest.approx([taken[0] / solo[0], taken[1] / solo[1]])
        wall = grid["seconds"][f"cohorts of {size}"]
        assert grid["students_images_per_second"][size] == pytest.approx([3 * BATCH / value for value in wall])


@pytest.mark.slow
def test_the_largest_cohort_is_related_to_its_work(grid: dict[str, Any]) -> None:
    for times, ratio in (("seconds", "ratio_to_alone"), ("cpu_seconds", "cpu_ratio_to_alone")):
        whole, teacher, students = (grid[times][part] for part in ("cohorts of 3", "teacher alone", "students alone"))
        assert grid[ratio] == pytest.approx([whole[turn] / (teacher[turn] + students[turn]) for turn in range(2)])
    per_worker = [grid["workers"] * ratio for ratio in grid["ratio_to_alone"]]
    assert grid["ratio_to_alone_per_worker"] == pytest.approx(per_worker)
    whole = grid["seconds"]["cohorts of 3"]
    assert grid["flop_per_second"] == pytest.approx([grid["flop_per_step"] / value for value in whole])
    assert list(grid["machine_flop_per_second"]) == ["matmul", "conv"]
    assert grid["peak_bytes"] > 2 * IMAGE_BYTES  # the images, and the same padded


@pytest.mark.slow
def test_operations_are_counted_by_hand_too(grid: dict[str, Any]) -> None:
    """No loss of these methods has a product, and the first convolution makes no gradient of the images."""
    first, forward = 2 * 32**2 * 16 * 27, resnet8_operations()
    assert grid["flop_per_step"] == BATCH * (forward + 3 * (3 * forward - first))


def resnet8_operations() -> int:
    """Of a forward pass over one image; a multiplication and an addition are two."""
    stages = ((32, 16, 16), (16, 16, 32), (8, 32, 64))
    blocks = [2 * size**2 * (9 * c_in * c_out + 9 * c_out * c_out) for size, c_in, c_out in stages]
    shortcuts = [2 * size**2 * c_in * c_out for size, c_in, c_out in stages if c_in != c_out]
    return 2 * 32**2 * 16 * 27 + sum(blocks) + sum(shortcuts) + 2 * 64 * 100


@pytest.mark.slow
def test_a_store_is_filled_and_asked() -> None:
    command = [sys.executable, str(SCRIPTS / "bench_store.py"), "--runs", "200", "--epochs", "2", "--turns", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["runs"], found["epochs"]) == (200, 2)
    assert set(found["seconds"]) == {"status", "report", "report --table crd-1", "plan"}


def test_a_store_is_filled_at_any_weight_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    four, five = ({one.run.id for one in import_module("bench_store").planned_runs(decay, [1])} for decay in (4, 5))
    assert len(four) == len(five) > 0
    assert not four & five


@pytest.mark.slow
def test_detectors_are_measured() -> None:
    small = ("--pair", "retinanet_w8:retinanet_w8", "--image-size", "64", "--evaluated", "20")
    found = figures("detection", *small, "--methods", "kd,fitnet")
    seconds = found["cpu_seconds"]
    assert list(seconds) == ["cohort", "solo", "plain", "teacher alone", "students alone"]
    for turn, ratio in enumerate(found["cohort_over_solo"]["cpu"]):
        teacher, students = seconds["teacher alone"][turn], seconds["students alone"][turn]
        assert ratio == pytest.approx(seconds["cohort"][turn] / seconds["solo"][turn])
        assert found["cpu_bound"][turn] == pytest.approx(1.1 * (teacher + students) / (2 * teacher + students))
    assert found["evaluation_seconds"] > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--pairs", "resnet9:resnet8"), "resnet9"),
        (("--methods", "kdd"), "kdd"),
        (("--precision", "tf32"), "tf32"),
        (("--turns", "0"), "at least 1"),
    ],
)
def test_bad_options_are_refused(
    options: tuple[str, ...], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    tools = import_module("bench_tools")
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    with pytest.raises(SystemExit) as refused:
        tools.parse(tools.parser("a benchmark", turns=1))
    assert refused.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


# --- a simulated cluster ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return import_module("bench_cluster")
    finally:
        sys.path.remove(str(SCRIPTS))


STEPS = {"resnet20": 1.0, "resnet8x4": 3.0}


def test_a_worker_that_nothing_happens_to_takes_as_long_as_its_runs(cluster: Any) -> None:
    cohorts = [cluster.Batch((3.0, 4.0)), cluster.Batch((5.0,))]
    done = cluster.Grid(cohorts, 1, random.Random(1), lost=0.0, slow=0.0).run()
    assert (done.makespan, done.worked, done.there, done.repeated) == (12.0, 12.0, 12.0, 0.0)
    assert done.over_ideal == 1.0
    both = cluster.Grid(cohorts, 2, random.Random(1), lost=0.0, slow=0.0).run()
    assert both.makespan == 8.0  # 3 + 5 beside 4, or 4 + 3 beside 5
    assert both.over_ideal == pytest.approx(8 / 6)


def test_what_a_lost_node_trained_is_trained_again(cluster: Any) -> None:
    draw = random.Random(1)
    cohorts = cluster.made_up(2_000, 1.0, STEPS, draw)
    work = sum(sum(cohort.runs) for cohort in cohorts)
    done = cluster.Grid(cohorts, 16, draw, lost=1.0, slow=0.0).run()
    assert done.repeated > 0
    assert done.worked == pytest.approx(work + done.repeated)
    assert done.repeated < 16 * 13 * 2 * 3600 / cluster.EPOCHS  # an epoch of each run in training
    assert done.there == 16 * done.makespan - 16 * cluster.BACK


def test_slow_workers_and_lost_nodes_cost_little(cluster: Any) -> None:
    draw = random.Random(1)
    done = cluster.Grid(cluster.made_up(4_000, 1.0, STEPS, draw), 40, draw).run()
    assert 1.0 <= done.over_ideal <= 1.05


def test_what_is_asked_of_the_database(cluster: Any) -> None:
    assert cluster.asked_of_database(512, 15.0) == pytest.approx(512 / 5 + 512 / 15)


@pytest.mark.slow
def test_the_driver_and_the_database_are_measured() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'kdtable[ray]'")
    command = [sys.executable, str(SCRIPTS / "bench_cluster.py"), "--stub-runs", "40", "--runs", "0", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    driver = json.loads(done.stdout.splitlines()[-1])["driver"]
    assert driver["runs"] == 40
    assert driver["driver_cpu_ms_per_run"] > 0
    assert driver["memory_mb_at_the_end"] > 0
