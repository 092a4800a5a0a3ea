"""Fetching Tiny-ImageNet from a web site on loopback, and training on it. The archive is a small one of its layout."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdtable.data import fetch, spec
from kdtable.data.formats import tiny_imagenet
from kdtable.data.formats.tiny_imagenet import KEPT, LOCK
from kdtable.files.download import Patience
from kdtable.teachers.locations import sha256_of
from tests.cli.command import SECONDS, Call, Done, Shell, environment, listing, runs_in
from tests.data.test_tiny_imagenet import GREY, SPEC, TOP, pack, tiny_files
from tests.teachers.teacher_site import Reply, Site

PATH = f"/{TOP}.zip"
COMMAND = ("fetch-data", "tiny-imagenet")
ALLOWED = (*COMMAND, "--allow-unverified")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of classes and images that are asked for are those of the small archive."""
    monkeypatch.setitem(spec.BUILT_IN.targets, "tiny-imagenet", SPEC)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack(tmp_path / "made" / "a.zip", tiny_files())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of data sets, which is not there yet."""
    return tmp_path / "data"


@pytest.fixture
def official(archive: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> str:
    """The place that has the archive, over plain http."""
    url = site.answers(PATH, Reply(archive.read_bytes()))
    monkeypatch.setattr(fetch, "OFFICIAL", url)
    return url


def fetched(done: Done, data: Path, archive: Path) -> None:
    assert done.code == 0, done.err
    assert done.out == f"tiny-imagenet: data/{TOP}.zip\n"
    assert (data / f"{TOP}.zip").read_bytes() == archive.read_bytes()
    assert _files(data) == [".checksums.lock", ".fetch.lock", LOCK, "checksums.toml", KEPT, f"{TOP}.zip"]


def refused(done: Done, data: Path, *parts: str, left: tuple[str, ...] = ()) -> None:
    assert done.code == 1
    assert done.out == ""
    (sentence,) = done.errors
    missing = [part for part in parts if part not in sentence]
    assert not missing, sentence
    assert _files(data) == sorted([".fetch.lock", *left])


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _pin(folder: Path) -> str:
    pins = tomllib.loads((folder / "checksums.toml").read_text())
    checksum: str = pins["tiny-imagenet"]["sha256"]
    return checksum


# --- from where --------------------------------------------------------------------------------------------------


def test_plain_http_is_not_even_asked(official: str, site: Site, data: Path, call: Call) -> None:
    refused(call(*COMMAND), data, official, "plain http is refused", "--allow-unverified", "--from")
    assert site.requests == []


def test_the_user_may_allow_it(official: str, archive: Path, site: Site, data: Path, call: Call) -> None:
    done = call(*ALLOWED)
    fetched(done, data, archive)
    assert "unverified: it came over plain http" in done.err
    assert _pin(data) == sha256_of(archive)
    before = listing(data)
    again = call(*COMMAND)
    assert (again.code, again.out) == (0, done.out)
    assert "was there already, and is whole" in again.err
    assert site.paths() == [PATH]
    assert listing(data) == before


def test_a_checksum_that_the_user_wrote_is_enough(official: str, archive: Path, data: Path, call: Call) -> None:
    data.mkdir()
    (data / "checksums.toml").write_text(f'tiny-imagenet = {{ sha256 = "{sha256_of(archive)}" }}\n')
    done = call(*COMMAND)
    fetched(done, data, archive)
    assert done.err == ""


@pytest.mark.parametrize("words", [COMMAND, ALLOWED])
def test_another_checksum_than_the_pinned_one(words: tuple[str, ...], official: str, data: Path, call: Call) -> None:
    data.mkdir()
    (data / "checksums.toml").write_text(f'tiny-imagenet = {{ sha256 = "{"0" * 64}" }}\n')
    refused(call(*words), data, "its checksum is", "0" * 64, "checksums.toml", left=("checksums.toml",))


def test_pins_that_cannot_be_understood_are_no_fault_of_the_archive(
    official: str, site: Site, data: Path, call: Call
) -> None:
    call(*ALLOWED)
    (data / "checksums.toml").write_text("tiny-imagenet = ?")
    before = listing(data)
    done = call(*ALLOWED)
    assert done.code == 2
    assert "checksums.toml cannot be understood" in done.err
    assert listing(data) == before
    assert site.paths() == [PATH]


def test_another_place(archive: Path, site: Site, data: Path, call: Call) -> None:
    url = site.answers("/mine.zip", Reply(archive.read_bytes()))
    secret = url.replace("http://", "http://user:password@") + "?token=1"
    site.answers("/mine.zip?token=1", Reply(archive.read_bytes()))
    done = call(*ALLOWED, "--from", secret)
    fetched(done, data, archive)
    assert "password" not in done.err + done.out
    assert "token" not in (data / "checksums.toml").read_text()
    assert url in (data / "checksums.toml").read_text()


def test_a_file(archive: Path, data: Path, call: Call) -> None:
    done = call(*COMMAND, "--from", str(archive))
    fetched(done, data, archive)
    assert done.err == ""
    assert archive.exists()


def test_no_such_file(data: Path, call: Call) -> None:
    refused(call(*COMMAND, "--from", "nowhere.zip"), data, "nowhere.zip: there is no such file")


def test_a_broken_download_is_continued(official: str, archive: Path, site: Site, data: Path, call: Call) -> None:
    content = archive.read_bytes()
    site.answers(PATH, Reply(content, stops_after=len(content) // 2), Reply(content))
    fetched(call(*ALLOWED), data, archive)
    assert site.ranges() == [None, f"bytes={len(content) // 2}-"]


def test_what_came_is_kept_for_the_next_call(
    official: str, archive: Path, site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive.read_bytes()
    site.answers(PATH, Reply(content, stops_after=len(content) // 2), Reply(status=404))
    words = {"source": official, "allow_unverified": True, "patience": Patience(pause=lambda _: None)}
    quiet = spec.Listener(lambda done, total: None, lambda text: None)
    with pytest.raises(fetch.Trouble, match="404"):
        fetch.fetch(SPEC, data, quiet, **words)
    assert (data / f"{TOP}.zip.part").stat().st_size == len(content) // 2
    site.answers(PATH, Reply(content))
    assert fetch.fetch(SPEC, data, quiet, **words).read_bytes() == content
    assert site.ranges()[-1] == f"bytes={len(content) // 2}-"
    assert not list(data.glob("*.part*"))


def test_a_dead_host(data: Path, call: Call) -> None:
    refused(call(*ALLOWED, "--from", "http://127.0.0.1:9/a.zip"), data, "http://127.0.0.1:9/a.zip", "no connection")


def test_an_unknown_data_set(tmp_path: Path, call: Call) -> None:
    done = call("fetch-data", "tiny-imagnet")
    assert done.code == 2
    assert "unknown data set to fetch 'tiny-imagnet'; did you mean tiny-imagenet" in done.err
    assert not list(tmp_path.iterdir())


def test_help_has_an_example(call: Call) -> None:
    assert "Example: kdtable fetch-data tiny-imagenet" in " ".join(call("fetch-data", "--help").out.split())


# --- what came ---------------------------------------------------------------------------------------------------


def test_an_archive_of_other_contents_is_not_taken(official: str, site: Site, data: Path, call: Call) -> None:
    files = tiny_files()
    del files[GREY]
    site.answers(PATH, Reply(pack(data.parent / "made" / "b.zip", files).read_bytes()))
    refused(call(*ALLOWED), data, "what it gave is refused", "train/n02/images: has 3 images; expected 4")


def test_what_is_no_archive_is_not_taken(official: str, site: Site, data: Path, call: Call) -> None:
    site.answers(PATH, Reply(b"<html>a page of a hotel's network</html>"))
    refused(call(*ALLOWED), data, "no zip archive, or cut short")


@pytest.mark.parametrize("damage", ["cut short", "changed"])
def test_a_damaged_archive_is_set_aside_and_fetched_again(
    damage: str, official: str, archive: Path, data: Path, call: Call
) -> None:
    call(*ALLOWED)
    content = archive.read_bytes() if damage == "changed" else archive.read_bytes()[:3000]
    (data / f"{TOP}.zip").write_bytes(content + b"more" if damage == "changed" else content)
    done = call(*COMMAND)  # what is pinned shows that it is the same again
    assert done.code == 0, done.err
    assert f"it was set aside as {TOP}.zip.corrupt" in done.err
    assert (data / f"{TOP}.zip.corrupt").exists()
    (data / f"{TOP}.zip.corrupt").unlink()
    fetched(done, data, archive)


def test_a_data_folder_that_cannot_be_made(archive: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("in the way")
    done = call(*COMMAND, "--from", str(archive), "--data-root", "file/data")
    assert done.code == 1
    assert "Tiny-ImageNet cannot be put into file/data" in done.err


def test_no_room_for_what_is_decoded(archive: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; the archive itself fits."""
    limit = archive.stat().st_size + 1000
    python = (
        "import resource, signal; from dataclasses import replace; from kdtable.cli import main; "
        "from kdtable.data import spec; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "tiny = replace(spec.BUILT_IN['tiny-imagenet'], num_classes=3, train_count=12, test_count=6); "
        "spec.BUILT_IN.targets['tiny-imagenet'] = tiny; main()"
    )
    done = _python(tmp_path, python, *COMMAND, "--from", str(archive))
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert "Tiny-ImageNet cannot be put into data" in done.err
    left = [".checksums.lock", ".fetch.lock", LOCK, "checksums.toml", f"{TOP}.zip"]
    assert _files(tmp_path / "data") == left


def _python(folder: Path, code: str, *args: str) -> Done:
    words = [sys.executable, "-c", code, *args]
    done = subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


# --- use ---------------------------------------------------------------------------------------------------------


def test_a_run_on_it(archive: Path, data: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("run", "--pairs", "resnet8:resnet8", "--methods", "vanilla", "--seeds", "1", "--epochs", "1")
    words = (*asked, "--data", "tiny-imagenet", "--batch-size", "4", "--device", "cpu")
    absent = call(*words)
    assert absent.code == 2
    assert "kdtable fetch-data tiny-imagenet" in absent.err
    assert not data.exists()
    assert not (tmp_path / "results").exists()

    fetched(call(*COMMAND, "--from", str(archive)), data, archive)
    monkeypatch.setattr(tiny_imagenet, "decode", pytest.fail)  # it was decoded when it was fetched
    done = call(*words)
    assert done.code == 0, done.err
    (run,) = runs_in(tmp_path / "results").values()
    assert (run["status"], run["data"]) == ("done", "tiny-imagenet")


def test_it_is_listed(shell: Shell) -> None:
    done = shell.run("list", "datasets")
    assert re.search(r"tiny-imagenet\s*│\s*200\s*│\s*100000\s*│\s*10000", done.out), done.out
