import hashlib
import tomllib
from contextlib import suppress
from threading import Thread

import pytest

from kdtable.errors import BadRequest
from kdtable.files.atomic import locked
from kdtable.files.pins import add_pin, read_pins
from kdtable.teachers.fetch import FetchFailed
from tests.teachers.teacher_site import Reply, Small, as_file, teacher


def test_a_changed_pinned_file_is_refused_until_the_line_is_removed(case, checkpoint):
    old, new = checkpoint, as_file(Small().state_dict())
    url = case.site.answers("/file", Reply(old), Reply(new))
    case.get(teacher(url))
    case.final.unlink()
    with pytest.raises(FetchFailed, match=r"remove the line of cifar100/resnet56 in .*checksums\.toml") as caught:
        case.get(teacher(url))
    assert all(hashlib.sha256(content).hexdigest() in str(caught.value) for content in (old, new))
    assert case.left() == []
    pins = case.folder / "checksums.toml"
    lines = [line for line in pins.read_text().splitlines() if "cifar100/resnet56" not in line]
    pins.write_text("\n".join(lines))
    case.get(teacher(url))
    assert case.final.read_bytes() == new


@pytest.mark.parametrize(
    "text",
    [
        '"cifar100/resnet56" = "0000"\n',
        '"cifar100/resnet56" = { sha256 = "" }\n',
        '"cifar100/resnet56" = { sha256 = 5 }\n',
        f'"cifar100/resnet56" = {{ sha256 = "{"AB" * 32}" }}\n',
        '"cifar100/resnet56" = { source = "me" }\n',
        "a = " + "[" * 100_000,
        "\udcff",
    ],
    ids=["no table", "empty", "number", "capitals", "no checksum", "deep", "not UTF-8"],
)
def test_pins_that_cannot_be_understood_are_said_so(text, case, checkpoint):
    case.folder.mkdir()
    (case.folder / "checksums.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadRequest, match="cannot be understood"):
        case.get(teacher(case.site.answers("/file", Reply(checkpoint))))


def test_pins_of_many_writers_all_stay(tmp_path):
    names = [f'cifar100/"network" {number}' for number in range(12)]
    writers = [Thread(target=add_pin, args=(tmp_path, name, "ab" * 32, "http://127.0.0.1/ü")) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(read_pins(tmp_path)) == set(names)
    tables = tomllib.loads((tmp_path / "checksums.toml").read_text(encoding="utf-8"))
    assert {frozenset(table) for table in tables.values()} == {frozenset({"sha256", "source", "date"})}
    before = (tmp_path / "checksums.toml").read_bytes()
    add_pin(tmp_path, names[0], "ab" * 32, "http://127.0.0.1/")
    assert (tmp_path / "checksums.toml").read_bytes() == before
    with pytest.raises(BadRequest, match="has another checksum"):
        add_pin(tmp_path, names[0], "cd" * 32, "http://127.0.0.1/")


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with suppress(RuntimeError), locked(tmp_path / ".lock"):
        raise RuntimeError("inside")
    with locked(tmp_path / ".lock", waiting=lambda: pytest.fail("still held")):
        pass


def test_a_source_of_any_characters_is_kept(tmp_path):
    source = 'http://127.0.0.1/\x7f\x1b[31m\n"\\\u2028ü'
    add_pin(tmp_path, "cifar100/resnet56", "ab" * 32, source)
    assert read_pins(tmp_path)["cifar100/resnet56"].source == source
