"""Download a file over HTTP, and resume it where an earlier attempt stopped."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from kdtable import __version__
from kdtable.files.atomic import replace_durably
from kdtable.files.tensor_file import MAX_BYTES

Progress = Callable[[int, int | None], None]

#: Timeout of the connection, at most; a host that does not accept one is given up sooner than a slow one.
CONNECT_SECONDS: Final = 10.0

#: An unfinished download's mark, in its memo, that all bytes came over https.
SAFE: Final = "https"

#: Why a source is refused.
PLAIN: Final = (
    "plain http is refused, since no whole checksum of the file is known (write one into checksums.toml, or accept "
    "it unverified with --allow-unverified)"
)

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class SourceFailed(Exception):
    """A source did not provide the file; the text gives the reason without the source."""


class _Again(Exception):
    """An attempt failed, and another may succeed."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts and retries of a download.

    Attributes:
        timeout: seconds to wait for the next bytes.
        retries: further attempts after the first.
        pause: sleeps for a number of seconds between attempts.
        progress: called with the bytes on disk and the file's size (``None`` if the server does not say).
        limit: largest size of the file in bytes, by default ``MAX_BYTES``.
    """

    timeout: float = 30.0
    retries: int = 3
    pause: Callable[[float], None] = time.sleep
    progress: Progress | None = None
    limit: int | None = None


#: The usual ones.
PATIENT: Final = Patience()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where bytes came from.

    Attributes:
        url: after redirections, as :func:`shown`.
        plain: whether any of the bytes, or a redirection, came over plain http.
    """

    url: str
    plain: bool


def shown(url: str) -> str:
    """``url`` without user, password and query, which may be secret; for printing and storing."""
    scheme, host, path, _, _ = urlsplit(url)
    return urlunsplit((scheme, host.rpartition("@")[2], path, "", ""))


def discard(part: Path) -> None:
    """Delete an unfinished download."""
    part.unlink(missing_ok=True)
    _memo(part).unlink(missing_ok=True)


def fetch_into(
    final: Path,
    sources: Iterable[tuple[str, Callable[[Path], Origin]]],
    accept: Callable[[Path, Origin], None],
) -> None:
    """Fetch a file from the first source whose bytes are accepted; ``final`` exists only after that.

    An unfinished download is kept beside it and continued by the next call.

    Args:
        final: path of the file.
        sources: for each, its printed name, and a function that fetches its bytes into a given file.
        accept: checks the bytes; raises `SourceFailed` to refuse them.

    Raises:
        SourceFailed: no source gave an accepted file; a sentence for each.
    """
    part = part_of(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for name, obtain in sources:
        try:
            accept(part, obtain(part))
        except SourceFailed as error:
            failures.append(f"{name}: {error}.")
            continue
        replace_durably(part, final)
        discard(part)
        return
    raise SourceFailed(" ".join(failures))


def part_of(final: Path) -> Path:
    """Path of a file's unfinished download."""
    return final.with_name(f"{final.name}.part")


def download(url: str, part: Path, patience: Patience, *, plain: bool) -> Origin:
    """Fetch ``url`` into the file ``part``, continuing an earlier call's download; kept on failure.

    Args:
        url: of the file.
        part: the unfinished download.
        patience: timeouts and retries.
        plain: whether plain http is allowed, redirections included.

    Raises:
        SourceFailed: the server does not have the file, all attempts failed, or plain http would be needed.
    """
    if urlsplit(url).scheme == "http" and not plain:
        raise SourceFailed(PLAIN)
    limits = httpx.Timeout(patience.timeout, connect=min(patience.timeout, CONNECT_SECONDS))
    # Without "identity", lengths and ranges could be those of a compressed body.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kdtable/{__version__}"}
    reason = ""
    with httpx.Client(follow_redirects=True, timeout=limits, headers=headers) as client:
        for attempt in range(patience.retries + 1):
            if attempt:
                patience.pause(0.5 * 2 ** (attempt - 1))
            try:
                return _translated(client, url, part, patience, plain)
            except _Again as error:
                reason = str(error)
    raise SourceFailed(f"{reason} ({patience.retries + 1} attempts)")


def _translated(client: httpx.Client, url: str, part: Path, patience: Patience, plain: bool) -> Origin:
    """Make one attempt, and sort httpx's errors into those worth another attempt and the rest."""
    try:
        return _attempt(client, url, part, patience, plain)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise SourceFailed(f"no connection ({error})") from error
    except httpx.TimeoutException as error:
        raise _Again(f"nothing came within {patience.timeout:g} s") from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise _Again(f"the connection broke off ({error})") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceFailed(str(error)) from error


def _attempt(client: httpx.Client, url: str, part: Path, patience: Patience, plain: bool) -> Origin:
    offset, validator, began_plain = _resumable(part, url, plain)
    headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}
    with client.stream("GET", url, headers=headers) as response:
        came_plain = any(hop.url.scheme == "http" for hop in (*response.history, response))
        if came_plain and not plain:
            raise SourceFailed(PLAIN)
        code = response.status_code
        if code == 206 and _continues(response, offset, validator):
            total, began_plain = _total_of_range(response), began_plain or came_plain
            _remember(part, url, validator, began_plain)
        elif code in {206, 416}:
            discard(part)
            raise _Again("the server could not continue a broken download")
        elif code == 200:
            offset, total, began_plain = 0, _length(response), came_plain
            _start_over(part, url, _validator(response.headers), came_plain)
        elif code >= 500 or code in {408, 429}:
            raise _Again(f"the server answered {code} {response.reason_phrase}")
        else:
            raise SourceFailed(f"the server answered {code} {response.reason_phrase}")
        _append(response, part, offset, total, patience)
        return Origin(shown(str(response.url)), began_plain)


def _append(response: httpx.Response, part: Path, done: int, total: int | None, patience: Patience) -> None:
    limit, progress = patience.limit or MAX_BYTES, patience.progress
    if total is not None and total > limit:
        discard(part)
        raise SourceFailed(f"the file has {total} bytes, more than it may have ({limit})")
    with part.open("ab") as file:
        # No chunk size: httpx would buffer chunks, and lose the buffer when the connection breaks off.
        for chunk in response.iter_raw():
            file.write(chunk)
            done += len(chunk)
            if done > limit:
                discard(part)
                raise SourceFailed(f"the file has more than {limit} bytes")
            if progress is not None:
                progress(done, total)
    if total is not None and done != total:
        raise _Again(f"only {done} of {total} bytes came")


def _memo(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _resumable(part: Path, url: str, plain: bool) -> tuple[int, str, bool]:
    """Bytes to continue from, the validator of their version (ETag or date), and whether they came over plain http.

    (0, "", False) to start over, also where plain http is not allowed but earlier bytes came over it.
    """
    if not part.exists() or not _memo(part).exists():
        return 0, "", False
    lines = _memo(part).read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) != 3 or lines[0] != shown(url) or (lines[2] != SAFE and not plain):
        return 0, "", False
    return part.stat().st_size, lines[1], lines[2] != SAFE


def _start_over(part: Path, url: str, validator: str | None, plain: bool) -> None:
    # In this order, so that old bytes never lie beside the new version's validator.
    discard(part)
    part.touch()
    if validator is not None:
        _remember(part, url, validator, plain)


def _remember(part: Path, url: str, validator: str, plain: bool) -> None:
    way = "plain" if plain else SAFE
    _memo(part).write_text(f"{shown(url)}\n{validator}\n{way}\n", encoding="utf-8")


def _validator(headers: httpx.Headers) -> str | None:
    """A strong ETag, else the date; a weak ETag does not promise equal bytes."""
    etag: str = headers.get("ETag", "")
    if etag.startswith('"') and etag.isascii():
        return etag
    modified: str = headers.get("Last-Modified", "")
    return modified if modified.isascii() and modified else None


def _continues(response: httpx.Response, offset: int, validator: str) -> bool:
    """Whether a 206 response continues the same version; some servers ignore If-Range."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == offset and _validator(response.headers) in {None, validator}


def _total_of_range(response: httpx.Response) -> int | None:
    size = response.headers["Content-Range"].rpartition("/")[2]
    return None if size == "*" else int(size)


def _length(response: httpx.Response) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else int(length)
