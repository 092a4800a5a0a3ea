"""What the doctor finds: on a CPU for real, and what it says of devices that are not there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtable import papers
from kdtable.doctor import environment, examine, graphs, memory, parity, repeats, speed
from kdtable.doctor.check import Failure, Skip, verdict
from kdtable.doctor.identity import identity
from kdtable.doctor.image_folders import image_folders
from kdtable.doctor.resuming import resuming
from kdtable.doctor.rows import built, distinct, rows
from kdtable.errors import BadRequest, Trouble
from kdtable.planning.run import Run
from kdtable.store import verdicts
from kdtable.store.verdicts import Verdict

CPU = torch.device("cpu")
CUDA_ONLY = (
    "synchronisations",
    "recorded steps",
    "refused recordings",
    "freed recordings",
    "out of memory",
    "several GPUs",
    "speed of cohorts",
    "speed of layouts",
)


def raises(error: Exception) -> Callable[[torch.device, Path], str]:
    def check(device: torch.device, folder: Path) -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "result", "words"),
    [
        (lambda device, folder: f"on {device}, {folder.is_dir()}", "passed", "on cpu, True"),
        (raises(Skip("no GPU")), "skipped", "no GPU"),
        (raises(Failure("off by 1")), "failed", "off by 1"),
        (raises(ZeroDivisionError("of all things\nand more")), "failed", "ZeroDivisionError: of all things"),
    ],
)
def test_a_check_ends_in_a_verdict(
    check: Callable[[torch.device, Path], str], result: str, words: str, tmp_path: Path
) -> None:
    found = verdict("one", check, CPU, tmp_path / "own")
    assert (found.name, found.result, found.words) == ("one", result, words)
    assert found.seconds >= 0


@pytest.mark.parametrize("name", CUDA_ONLY)
def test_what_only_a_gpu_can_show_is_skipped_on_a_cpu(name: str) -> None:
    (found,) = examine.examine(CPU, [name])
    assert found.result == "skipped"
    assert found.words.endswith("on CUDA devices only")


def test_versions_and_flags_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    first = next(iter(examine.examine(CPU)))
    assert (first.name, first.result) == ("versions and flags", "passed")
    assert f"torch {torch.__version__.partition('+')[0]}" in first.words
    assert "OMP_NUM_THREADS=3" in first.words


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(
        BadRequest, match="no check 'parity': use some of versions and flags, synchronisations, parity of rows"
    ):
        list(examine.examine(CPU, ["parity"]))


# --- devices that are not there ----------------------------------------------------------------------------------


def init(text: str) -> Callable[[], None]:
    def raising() -> None:
        raise RuntimeError(text)

    return raising


@pytest.mark.parametrize(
    ("built", "starts", "said"),
    [
        (None, init("unused"), "is built without CUDA: install a CUDA build"),
        ("13.0", init("The NVIDIA driver on your system is too old"), "install or update NVIDIA's driver, or install"),
        ("13.0", init("out of luck"), r"CUDA does not start \(out of luck\)$"),
        ("13.0", lambda: None, "CUDA sees no GPU: see whether nvidia-smi lists one"),
    ],
)
def test_a_gpu_that_is_not_there_and_what_helps(
    built: str | None, starts: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "init", starts)
    with pytest.raises(BadRequest, match=f"^--device cuda:1 cannot be used: .*{said}"):
        examine.device_to_examine("cuda:1")
    assert examine.device_to_examine("cpu") == CPU


@pytest.mark.parametrize("name", ["nonsense", "cudagarbage", "cuda:x"])
def test_a_name_that_is_none_of_a_device(name: str) -> None:
    with pytest.raises(BadRequest, match=f"^unknown device '{name}': use"):
        examine.device_to_examine(name)


# --- on this machine ---------------------------------------------------------------------------------------------


def test_the_rows_are_those_of_all_papers_but_for_image_folders() -> None:
    assert {"crd: kd", "crd: crd", "dih: dih", "reviewkd: reviewkd", "cd: cd"} <= rows().keys()
    every = {f"{paper}: {row}" for paper in papers.names() for row in papers.load(paper).rows}
    assert len(every - rows().keys()) < len(every) / 2


def test_equal_rows_of_two_papers_are_examined_once() -> None:
    """But rows of one method with other weights or hyper-parameters are not equal."""
    assert {"crd: kd", "zoo: kd"} <= rows().keys()
    assert len({"crd: kd", "zoo: kd"} & distinct().keys()) == 1
    assert {"dih: kd", "reviewkd: kd"} & rows().keys() <= distinct().keys()


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    chosen = {name: rows()[name] for name in ("crd: at", "crd: crd")}
    monkeypatch.setattr(parity, "distinct", lambda: chosen)
    for module in (repeats, memory):
        monkeypatch.setattr(module, "rows", lambda: chosen)
    monkeypatch.setattr(repeats, "ROWS", tuple(chosen))
    monkeypatch.setattr(memory, "ROWS", tuple(chosen))
    return chosen


def test_rows_agree_with_float64(two_rows: dict[str, Run], tmp_path: Path) -> None:
    assert parity.parity(CPU, tmp_path).startswith("2 distinct rows agree with float64")
    assert parity.half_precision(CPU, tmp_path).startswith("2 distinct rows in bf16 are finite")


@pytest.mark.parametrize("part", ["terms", "weights"])
def test_a_row_that_is_off_is_named(
    part: str, two_rows: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = parity.course

    def off(run: Run, device: torch.device, name: str = "fp32", **how: Any) -> parity.Course:
        found = course(run, device, name, **how)
        if run is two_rows["crd: at"] and not how.get("exact"):
            getattr(found, part).mul_(1.01)
        return found

    monkeypatch.setattr(parity, "course", off)
    with pytest.raises(Failure, match=rf"^crd: at's {part} are off by 1\.0e-02$"):
        parity.parity(CPU, tmp_path)


def test_a_row_that_rounding_decides_may_be_off(
    two_rows: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By as much as noise of the size of rounding moves it in float64, and the verdict says so."""
    course = parity.course

    def off(run: Run, device: torch.device, name: str = "fp32", **how: Any) -> parity.Course:
        found = course(run, device, name, **how)
        if run is two_rows["crd: at"]:
            found.weights.mul_(1.004 if how.get("noise") == 1 else 1.0 if how.get("exact") else 1.01)
        return found

    monkeypatch.setattr(parity, "course", off)
    said = parity.parity(CPU, tmp_path)
    assert said.endswith("; but for crd: at (1e-02), where rounding alone does as much")
    assert said.startswith("2 distinct rows agree with float64: terms of step 1 to ")


def test_noise_that_stands_for_rounding_moves_a_course_a_little(two_rows: dict[str, Run]) -> None:
    exact, one, other = (parity.course(two_rows["crd: at"], CPU, exact=True, noise=seed) for seed in (None, 0, 1))
    assert 0 < parity.error_of(one.weights, exact.weights) < parity.OF_WEIGHTS
    assert not torch.equal(one.weights, other.weights)


def test_training_repeats_and_a_change_is_found(
    two_rows: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repeats.repeats(CPU, tmp_path).startswith("2 rows repeat to the bit (torch ")
    course = iter([SimpleNamespace(weights=torch.tensor([float(n)])) for n in range(4)])
    monkeypatch.setattr(repeats, "course", lambda *_: next(course))
    with pytest.raises(Failure, match="crd: at, crd: crd do not repeat to the bit"):
        repeats.repeats(CPU, tmp_path)


def test_memory_is_compared_with_the_estimate(
    two_rows: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "2 runs took" in memory.memory(CPU, tmp_path)
    monkeypatch.setattr(memory, "needed", lambda *_: 0.0)
    monkeypatch.setattr(memory, "BESIDES", -1)
    with pytest.raises(Failure, match=r"2 runs took .* MiB, and -0 MiB were estimated"):
        memory.memory(CPU, tmp_path)


def test_decoding_processes_give_the_images_of_one_process(tmp_path: Path) -> None:
    assert image_folders(CPU, tmp_path).startswith("96 JPEG files by 2 processes are those of one process")


@pytest.mark.slow
def test_a_killed_grid_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    assert resuming(CPU, tmp_path) == "3 killed and resumed runs end in the same weights as undisturbed ones"


def test_recorded_and_plain_cohorts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cohort that a GPU trains with and without recording, on a CPU without: the same weights each time."""
    monkeypatch.setattr(graphs, "ROWS", ("crd: kd",))
    one, other = (graphs.trained(CPU, None, graphs.Watch()) for _ in range(2))
    assert graphs._agreement(one, other, other) == "1 rows end as without recording, to 0e+00"
    with pytest.raises(Failure, match="recorded steps end elsewhere: crd: kd by"):
        graphs._agreement(one, {"crd: kd": one["crd: kd"] * 1.01}, other)


def test_a_member_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps wait for the batch, the batch's memory for them, and the end of the epoch for all of them."""
    events: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        events.append(f"on {entered.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, on: events.append(f"kept for {on.name}"))
    made = built(rows()["crd: vanilla"], CPU)
    speed.on_own_stream(made.member, CPU)
    made.member.begin_epoch()
    made.member.step(next(made.batches("main", 1)), None)
    assert list(dict.fromkeys(events)) == ["own waits for main", "kept for own", "on own"]
    made.member.begin_evaluation()
    assert events[-1] == "main waits for own"


# --- what is kept ------------------------------------------------------------------------------------------------

FOUND = Verdict("memory", "passed", "4 runs took 1 MiB", 2.5)


def test_verdicts_are_kept_by_device_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check's new verdict takes the place of its old one; those of other checks stay."""
    other, again = replace(FOUND, name="resuming"), replace(FOUND, result="failed")
    assert verdicts.read(tmp_path / "none") == {}
    for found in ([FOUND], [other, again]):
        verdicts.keep(tmp_path / "results", identity(CPU), found)
    monkeypatch.setattr(torch, "__version__", "9.9")
    verdicts.keep(tmp_path / "results", identity(CPU), [FOUND])
    kept = verdicts.read(tmp_path / "results")
    assert list(kept.values()) == [[again, other], [FOUND]]
    assert "torch 9.9" in list(kept)[1]


@pytest.mark.parametrize("content", ["{", "[1]", '{"cpu": [{"name": 1}]}', '{"cpu": 1}'])
def test_damaged_verdicts_are_said_to_be(content: str, tmp_path: Path) -> None:
    (tmp_path / "doctor.json").write_text(content)
    with pytest.raises(Trouble, match=r"doctor\.json is damaged: delete it"):
        verdicts.read(tmp_path)


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTABLE_STORE", "postgresql://me:secret@host/db")
    found = dict(environment.environment(tmp_path / "new" / "results", tmp_path, None))
    assert torch.__version__.partition("+")[0] in found["versions"]
    assert "***@host" in found["flags"]
    assert "secret" not in found["flags"]
    assert found["devices"].startswith("cpu (")
    assert f"can be made in {tmp_path}" in found["results"]
    assert "can be written to" in found["data"]
    assert found["store"] != "can be reached"


def test_extras_that_are_missing() -> None:
    declared = ["torch>=2", "no-such-thing[binary]>=3; extra == 'postgres'", "torch>=2; extra == 'there'"]
    assert environment.missing_extras([*declared, "nor-this; extra == 'dev'"]) == ["postgres"]
