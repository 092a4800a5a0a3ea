import hashlib
from io import BytesIO
from itertools import pairwise
from threading import Thread

import pytest
import torch

import kdtable.files.download as download_module
from kdtable.errors import BadRequest
from kdtable.files.pins import add_pin, read_pins
from kdtable.teachers.fetch import FetchFailed
from tests.teachers.own_weights import save_weights
from tests.teachers.teacher_site import Reply, Small, as_file, teacher

PATH = "/resnet56_vanilla/ckpt_epoch_240.pth"


def test_a_file_is_fetched_pinned_and_not_fetched_again(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint))
    notices, seen = [], []
    path = case.get(teacher(url), notice=notices.append, progress=lambda done, total: seen.append((done, total)))
    assert path == case.final
    assert case.final.read_bytes() == checkpoint
    assert case.left() == ["resnet56.pth"]
    assert seen[-1] == (len(checkpoint), len(checkpoint))
    digest = hashlib.sha256(checkpoint).hexdigest()
    pin = read_pins(case.folder)["cifar100/resnet56"]
    assert (pin.sha256, pin.source) == (digest, url)
    (notice,) = notices
    assert "unverified" in notice
    assert digest in notice
    assert case.get(teacher(url), notice=notices.append) == case.final
    assert case.site.paths() == [PATH]
    assert len(notices) == 1


def test_a_published_checksum_is_enough(case, checkpoint):
    digest = hashlib.sha256(checkpoint).hexdigest()
    notices = []
    published = teacher(case.site.answers(PATH, Reply(checkpoint)), sha256=digest)
    for _ in range(2):
        assert case.get(published, notice=notices.append, allow_unverified=False) == case.final
    assert len(case.site.requests) == 1
    assert not notices
    assert read_pins(case.folder)["cifar100/resnet56"].sha256 == digest


@pytest.mark.parametrize("mark", [{}, {"etag": None, "modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_truncated_body_is_resumed(mark, case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint, stops_after=1000, **mark), Reply(checkpoint, **mark))
    case.get(teacher(url))
    assert case.final.read_bytes() == checkpoint
    assert case.site.ranges() == [None, "bytes=1000-"]
    assert case.site.requests[1][1]["if-range"] == (mark.get("modified") or '"one"')


def test_a_later_call_resumes(case, checkpoint):
    url = case.site.answers(PATH, *(Reply(checkpoint, stops_after=700) for _ in range(3)), Reply(checkpoint))
    with pytest.raises(FetchFailed, match=r"broke off .* \(3 attempts\)"):
        case.get(teacher(url))
    assert case.left() == ["resnet56.pth.part", "resnet56.pth.part.etag"]
    case.get(teacher(url))
    assert case.site.ranges() == [None, "bytes=700-", "bytes=1400-", "bytes=2100-"]
    assert case.final.read_bytes() == checkpoint
    assert case.left() == ["resnet56.pth"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_mark_it_starts_again(etag, case, checkpoint):
    replies = Reply(checkpoint, stops_after=1000, etag=etag), Reply(checkpoint, etag=etag)
    case.get(teacher(case.site.answers(PATH, *replies)))
    assert case.site.ranges() == [None, None]
    assert case.final.read_bytes() == checkpoint


@pytest.mark.parametrize(
    "second",
    [{"ranges": False}, {"etag": '"two"'}, {"etag": '"two"', "obeys_if_range": False}, {"starts_late": 5}],
    ids=["no ranges", "changed", "changed, If-Range ignored", "wrong start"],
)
def test_what_cannot_be_continued_starts_again(second, case, checkpoint):
    old = b"old" * 400
    url = case.site.answers(PATH, Reply(old, stops_after=1000), Reply(checkpoint, **second), Reply(checkpoint))
    case.get(teacher(url))
    assert case.final.read_bytes() == checkpoint
    assert case.site.ranges()[:2] == [None, "bytes=1000-"]


def test_a_range_beyond_the_end_starts_again(case, checkpoint):
    short = Reply(b"x" * 500)
    url = case.site.answers(PATH, Reply(checkpoint, stops_after=1000), short, Reply(checkpoint))
    case.get(teacher(url))
    assert case.site.ranges() == [None, "bytes=1000-", None]
    assert case.final.read_bytes() == checkpoint


def test_another_source_never_continues_the_first_one(case, checkpoint):
    first = case.site.answers("/first", Reply(b"z" * 3000, stops_after=1000))
    second = case.site.answers("/second", Reply(checkpoint))
    case.get(teacher(first, second))
    assert case.final.read_bytes() == checkpoint
    assert case.site.paths() == ["/first"] * 3 + ["/second"]
    assert case.site.ranges()[-1] is None


def test_a_dead_second_source_leaves_the_first_ones_bytes(case, checkpoint):
    first = case.site.answers("/first", *(Reply(checkpoint, stops_after=700) for _ in range(3)), Reply(checkpoint))
    with pytest.raises(FetchFailed):
        case.get(teacher(first, f"{case.site.url}/missing"))
    case.get(teacher(first))
    assert case.site.ranges()[-1] == "bytes=2100-"


def test_a_body_of_unknown_length(case, checkpoint):
    seen = []
    url = case.site.answers(PATH, Reply(checkpoint, sized=False))
    case.get(teacher(url), progress=lambda done, total: seen.append(total))
    assert case.final.read_bytes() == checkpoint
    assert set(seen) == {None}


def test_500_then_fine_and_the_pauses_grow(case, checkpoint):
    bad = Reply(b"oops", status=503)
    pauses = []
    case.get(teacher(case.site.answers(PATH, bad, bad, Reply(checkpoint))), pause=pauses.append)
    assert case.final.read_bytes() == checkpoint
    assert all(later > earlier > 0 for earlier, later in pairwise(pauses))
    assert len(pauses) == 2


def test_a_slow_server_is_tried_again(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint, seconds=0.6), Reply(checkpoint))
    case.get(teacher(url), timeout=0.2)
    assert case.final.read_bytes() == checkpoint
    case.final.unlink()
    slow = case.site.answers("/slow", Reply(checkpoint, seconds=0.4))
    with pytest.raises(FetchFailed, match=r"nothing came within 0\.1 s \(1 attempts\)"):
        case.get(teacher(slow), timeout=0.1, retries=0)


def test_a_redirection_is_followed(case, checkpoint):
    target = case.site.answers("/elsewhere", Reply(checkpoint))
    case.get(teacher(case.site.answers(PATH, Reply(status=302, location=target))))
    assert case.final.read_bytes() == checkpoint
    assert read_pins(case.folder)["cifar100/resnet56"].source == target


def test_when_all_fail_each_source_has_its_sentence(case):
    html = case.site.answers("/page", Reply(b"<html>we have moved</html>"))
    loop = case.site.answers("/loop", Reply(status=302, location="/loop"))
    dead = "http://127.0.0.1:1/dead"
    with pytest.raises(FetchFailed) as caught:
        case.get(teacher(dead, f"{case.site.url}/gone", html, loop, "ftp://127.0.0.1/file"))
    text = str(caught.value)
    assert f"{dead}: no connection" in text
    assert "/gone: the server answered 404 Not Found." in text
    assert "is a web page, not a file of weights" in text
    assert "/loop: Exceeded maximum allowed redirects" in text
    assert "ftp://127.0.0.1/file: " in text
    assert all(way in text for way in ("--mirror URL", "--train-missing", "--teacher resnet56=FILE"))
    assert isinstance(caught.value, BadRequest)
    assert case.left() == []
    assert not read_pins(case.folder)


def test_a_wrong_checksum_is_deleted_and_the_next_source_tried(case, checkpoint):
    other = case.site.answers("/other", Reply(as_file({"a": 1})))
    right = case.site.answers("/right", Reply(checkpoint))
    digest = hashlib.sha256(checkpoint).hexdigest()
    with pytest.raises(FetchFailed, match=f"its checksum is .*, but {digest[:8]} is published"):
        case.get(teacher(other, sha256=digest[:8]))
    assert case.left() == []
    case.get(teacher(other, right, sha256=digest[:8]))
    assert case.final.read_bytes() == checkpoint
    assert case.site.paths() == ["/other", "/other", "/right"]


def test_a_mirror_comes_first_and_may_fail(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint))
    case.get(teacher(url), mirror=f"{case.site.url}/mirror/")
    assert case.site.paths() == ["/mirror/cifar100/resnet56.pth", PATH]
    case.final.unlink()
    case.site.answers("/mirror/cifar100/resnet56.pth", Reply(checkpoint))
    case.get(teacher(url), mirror=f"{case.site.url}/mirror")
    assert len(case.site.requests) == 3


def test_a_mirrors_password_is_neither_printed_nor_stored(case, checkpoint):
    secret = case.site.url.replace("//", "//me:secret@")
    half = Reply(checkpoint, stops_after=1000)
    case.site.answers("/cifar100/resnet56.pth", half, half, half, Reply(checkpoint))
    notices = []
    with pytest.raises(FetchFailed) as caught:
        case.get(teacher(), mirror=secret)
    assert "secret" not in (case.final.parent / "resnet56.pth.part.etag").read_text()
    case.get(teacher(), mirror=secret, notice=notices.append)
    pin = read_pins(case.folder)["cifar100/resnet56"]
    assert pin.source == f"{case.site.url}/cifar100/resnet56.pth"
    assert "secret" not in str(caught.value) + " ".join(notices)
    assert case.site.requests[0][1]["authorization"].startswith("Basic ")


def present(case, content):
    case.final.parent.mkdir(parents=True)
    case.final.write_bytes(content)


def test_a_file_of_ones_own_is_never_moved(case, checkpoint):
    own = as_file(Small().state_dict())
    present(case, own)
    url = case.site.answers(PATH, Reply(checkpoint))
    notices = []
    assert case.get(teacher(url), notice=notices.append) == case.final
    assert "no checksum of it is known" in notices[0]
    with pytest.raises(BadRequest, match=r"is there, but not as published: .* 12fca82f .* move the file away"):
        case.get(teacher(url, sha256="12fca82f"))
    assert case.final.read_bytes() == own
    assert case.left() == ["resnet56.pth"]
    assert case.site.requests == []


def test_a_teacher_that_was_trained_in_its_place_is_used(case):
    save_weights(case.folder / "own.safetensors", Small().state_dict(), network="small", data="cifar100")
    own = (case.folder / "own.safetensors").read_bytes()
    present(case, own)
    add_pin(case.folder, "cifar100/resnet56", "0" * 64, "https://127.0.0.1/")
    assert case.get(teacher(), notice=pytest.fail) == case.final
    assert case.final.read_bytes() == own


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def damage(content: bytes, how: str) -> bytes:
    """What must have happened to a fetched file for it not to be used any more."""
    return {
        "cut short": content[: len(content) // 2],
        "empty": b"",
        "flipped bit": flipped(content, content.index(torch.load(BytesIO(content))["model"]["fc.bias"].numpy())),
        "another network": as_file(Small(width=5).state_dict()),
        "another teacher": as_file(Small().state_dict()),
        "not a number": as_file(Small().state_dict() | {"fc.bias": torch.full((10,), torch.nan)}),
    }[how]


@pytest.mark.parametrize(
    "how", ["cut short", "empty", "flipped bit", "another network", "another teacher", "not a number"]
)
def test_a_fetched_file_that_is_not_what_it_was_is_set_aside_and_fetched_again(how, case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint))
    case.get(teacher(url))
    bad = damage(checkpoint, how)
    case.final.write_bytes(bad)
    notices = []
    assert case.get(teacher(url), notice=notices.append) == case.final
    assert case.final.read_bytes() == checkpoint
    assert case.final.with_name("resnet56.pth.corrupt").read_bytes() == bad
    assert len(case.site.requests) == 2
    assert str(case.final) in notices[0]
    assert "set aside as resnet56.pth.corrupt, and is fetched again" in notices[0]


def test_what_was_set_aside_is_never_overwritten(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint))
    for content in (b"first", b"second", b"third"):
        case.get(teacher(url))
        case.final.write_bytes(content)
    case.get(teacher(url))
    kept = [f"resnet56.pth.corrupt{number}" for number in ("", "-2", "-3")]
    assert [case.final.with_name(name).read_bytes() for name in kept] == [b"first", b"second", b"third"]


def test_a_hostile_file_is_refused_and_its_code_not_run(case, trap):
    content = as_file({"model": Small().state_dict(), "opt": trap})
    url = case.site.answers(PATH, Reply(content))
    with pytest.raises(FetchFailed, match="only running code"):
        case.get(teacher(url))
    with pytest.raises(FetchFailed, match="only running code"):  # a matching checksum changes nothing
        case.get(teacher(url, sha256=hashlib.sha256(content).hexdigest()))
    assert not trap.marker.exists()
    assert case.left() == []
    assert not read_pins(case.folder)


@pytest.mark.parametrize(
    ("options", "reason"), [({"classes": 100}, "has 100 classes"), ({"width": 5}, "is not a small")]
)
def test_a_file_of_another_network_is_refused(options, reason, case):
    url = case.site.answers(PATH, Reply(as_file(Small(**options).state_dict())))
    with pytest.raises(FetchFailed, match=reason):
        case.get(teacher(url))
    assert case.left() == []
    assert not read_pins(case.folder)


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_that_is_too_large_is_not_fetched_to_its_end(sized, case, monkeypatch):
    monkeypatch.setattr(download_module, "MAX_BYTES", 1000)
    with pytest.raises(FetchFailed, match="more than"):
        case.get(teacher(case.site.answers(PATH, Reply(b"x" * 2000, sized=sized))))
    assert case.left() == []


def test_a_folder_that_cannot_be_used(case, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="cannot be used"):
        case.get(teacher(f"{case.site.url}{PATH}"), folder=tmp_path / "file")


def test_two_fetches_at_once_download_once(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint, seconds=0.1))
    notices = []
    threads = [Thread(target=case.get, args=(teacher(url),), kwargs={"notice": notices.append}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert case.site.paths() == [PATH]
    assert sum("waiting" in notice for notice in notices) == 3
