"""Plain http is taken where it shows that somebody replaced the bytes on the way, or where the user says so."""

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import httpx
import pytest

from kdtable.files.pins import add_pin, read_pins
from kdtable.teachers.fetch import FetchFailed
from kdtable.teachers.manifest import Source
from tests.teachers.teacher_site import Reply, Small, as_file, teacher
from tests.teachers.test_fetch_archive import MEMBER, tar_of

PATH = "/resnet56.pth"
NAME = "cifar100/resnet56"
Answer = Callable[[httpx.Request], httpx.Response]
Web = dict[str, Answer]


@pytest.fixture
def web(monkeypatch) -> Web:
    """Answers by URL, in place of all networks: so https needs no certificate."""
    answers: Web = {}

    transport = httpx.MockTransport(lambda request: answers[str(request.url)](request))
    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=transport))
    return answers


class Body(httpx.SyncByteStream):
    """Bytes as they come from a connection, which may break off in the middle."""

    def __init__(self, content: bytes, *, breaks: bool = False) -> None:
        self.content = content
        self.breaks = breaks

    def __iter__(self):
        if self.breaks:
            yield self.content[: len(self.content) // 2]
            raise httpx.ReadError("gone")
        yield self.content


def giving(content: bytes) -> Answer:
    return lambda _: httpx.Response(200, stream=Body(content))


def redirect(url: str) -> Answer:
    return lambda _: httpx.Response(302, headers={"Location": url})


def refused(case, *sources, **options) -> str:
    with pytest.raises(FetchFailed) as caught:
        case.get(teacher(*sources, **options), allow_unverified=False)
    assert case.left() == []
    assert not read_pins(case.folder)
    return str(caught.value)


def test_plain_http_is_not_even_asked(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint))
    text = refused(case, url)
    assert f"{url}: plain http is refused" in text
    assert "checksums.toml" in text
    assert "--allow-unverified" in text
    assert case.site.requests == []


def test_a_mirror_over_plain_http_is_no_exception(case, checkpoint):
    case.site.answers("/cifar100/resnet56.pth", Reply(checkpoint))
    with pytest.raises(FetchFailed, match="plain http is refused"):
        case.get(teacher(), mirror=case.site.url, allow_unverified=False)
    assert case.site.requests == []


def test_the_user_may_allow_it(case, checkpoint):
    notices = []
    url = case.site.answers(PATH, Reply(checkpoint))
    case.get(teacher(url), allow_unverified=True, notice=notices.append)
    assert "unverified: it came over plain http" in notices[0]
    assert case.final.read_bytes() == checkpoint


def test_a_matching_pin_is_enough(case, checkpoint):
    add_pin(case.folder, NAME, hashlib.sha256(checkpoint).hexdigest(), "https://example.org")
    case.get(teacher(case.site.answers(PATH, Reply(checkpoint))), allow_unverified=False, notice=pytest.fail)
    assert case.final.read_bytes() == checkpoint


def test_a_pin_that_the_user_wrote_is_enough(case, checkpoint):
    case.folder.mkdir()
    digest = hashlib.sha256(checkpoint).hexdigest()
    (case.folder / "checksums.toml").write_text(f'"{NAME}" = {{ sha256 = "{digest}" }}\n')
    case.get(teacher(case.site.answers(PATH, Reply(checkpoint))), allow_unverified=False, notice=pytest.fail)
    assert case.final.read_bytes() == checkpoint


@pytest.mark.parametrize("allowed", [True, False])
def test_a_pin_that_does_not_match_is_final(allowed, case, checkpoint):
    add_pin(case.folder, NAME, "0" * 64, "https://example.org")
    url = case.site.answers(PATH, Reply(checkpoint))
    with pytest.raises(FetchFailed, match="its checksum is"):
        case.get(teacher(url), allow_unverified=allowed)
    assert case.left() == []


def test_eight_published_digits_are_not_a_whole_checksum(case, checkpoint):
    url = case.site.answers(PATH, Reply(checkpoint))
    assert "plain http is refused" in refused(case, url, sha256=hashlib.sha256(checkpoint).hexdigest()[:8])


def test_https_needs_no_checksum(case, checkpoint, web):
    web["https://example.org/a"] = giving(checkpoint)
    case.get(teacher("https://example.org/a"), allow_unverified=False, notice=pytest.fail)
    assert read_pins(case.folder)[NAME].source == "https://example.org/a"


@pytest.mark.parametrize(
    "way",
    [
        ["https://example.org/a", "http://example.org/b"],
        ["https://example.org/a", "http://example.org/b", "https://example.org/c"],
        ["https://example.org/a", "https://example.org/b", "http://example.org/c"],
    ],
    ids=["to http", "through http", "late"],
)
def test_a_redirection_over_plain_http_is_plain_http(way, case, checkpoint, web):
    for here, there in pairwise(way):
        web[here] = redirect(there)
    web[way[-1]] = giving(checkpoint)
    assert "plain http is refused" in refused(case, way[0])
    notices = []
    case.get(teacher(way[0]), allow_unverified=True, notice=notices.append)
    assert "unverified" in notices[0]


def test_what_began_over_plain_http_is_not_continued_as_safe(case, checkpoint, web):
    """The beginning came by a redirection that somebody on the way could have made."""
    forged = as_file(Small().state_dict())
    headers = {"ETag": '"one"', "Content-Length": str(len(forged))}
    web["https://example.org/a"] = redirect("http://example.org/b")
    web["http://example.org/b"] = lambda _: httpx.Response(200, headers=headers, stream=Body(forged, breaks=True))
    with pytest.raises(FetchFailed, match="broke off"):
        case.get(teacher("https://example.org/a"), allow_unverified=True)
    assert case.left() == ["resnet56.pth.part", "resnet56.pth.part.etag"]
    asked = []

    def whole(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("range"))
        return giving(checkpoint)(request)

    web["https://example.org/a"] = whole
    case.get(teacher("https://example.org/a"), allow_unverified=False, notice=pytest.fail)
    assert asked == [None]
    assert case.final.read_bytes() == checkpoint


def test_an_archive_is_kept_if_it_came_safely(case, checkpoint, web):
    web["https://example.org/t.tar"] = giving(tar_of((MEMBER, checkpoint)))
    source = Source("https://example.org/t.tar", MEMBER)
    case.get(teacher(source), allow_unverified=False)
    case.final.unlink()
    del web["https://example.org/t.tar"]
    case.get(teacher(source), allow_unverified=False)
    assert case.final.read_bytes() == checkpoint


def test_an_archive_that_came_over_plain_http_is_not_kept(case, checkpoint):
    """Else another teacher out of it would pass for one that came safely."""
    source = Source(case.site.answers("/t.tar", Reply(tar_of((MEMBER, checkpoint)))), MEMBER)
    case.get(teacher(source), allow_unverified=True)
    assert not list(case.folder.glob("*.tar"))
    case.final.unlink()
    (case.folder / "checksums.toml").unlink()
    with pytest.raises(FetchFailed, match="plain http is refused"):
        case.get(teacher(source), allow_unverified=False)
