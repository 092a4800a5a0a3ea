import hashlib
import tomllib
from contextlib import suppress
from threading import Thread

import pytest

from kdtable.atomic import locked
from kdtable.errors import BadRequest
from kdtable.teachers.fetch import FetchFailed
from kdtable.teachers.pins import add_pin, read_pins
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


def test_pins_that_cannot_be_understood_are_said_so(case, checkpoint):
    case.folder.mkdir()
    (case.folder / "checksums.toml").write_text('"cifar100/resnet56" = "0000"\n')
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
    assert not add_pin(tmp_path, names[0], "ab" * 32, "http://127.0.0.1/")
    with pytest.raises(BadRequest, match="seen on"):
        add_pin(tmp_path, names[0], "cd" * 32, "http://127.0.0.1/")


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with suppress(RuntimeError), locked(tmp_path / ".lock"):
        raise RuntimeError("inside")
    with locked(tmp_path / ".lock", waiting=lambda: pytest.fail("still held")):
        pass
