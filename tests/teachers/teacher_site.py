"""A web site on loopback whose every answer a test decides, and what it serves."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from kdtable.files.download import Patience
from kdtable.teachers.fetch import fetch
from kdtable.teachers.manifest import Published, Source
from kdtable.teachers.weights import load_into, read_weights


@dataclass(frozen=True)
class Reply:
    """How one request is answered."""

    body: bytes = b""
    status: int = 200
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    obeys_if_range: bool = True
    starts_late: int = 0
    stops_after: int | None = None
    seconds: float = 0.0
    location: str | None = None
    sized: bool = True


@dataclass
class Site:
    """Replies by path, one for each request in turn; the last one is repeated."""

    url: str
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def answers(self, path: str, *replies: Reply) -> str:
        self.replies[path] = list(replies)
        return f"{self.url}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.site.requests.append((self.path, headers))
        queue = self.site.replies.get(self.path, [Reply(b"not here", status=404)])
        reply = queue.pop(0) if len(queue) > 1 else queue[0]
        time.sleep(reply.seconds)
        self._send(reply, self._start(reply, headers))

    def _start(self, reply: Reply, headers: dict[str, str]) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if match is None or not reply.ranges or reply.status != 200:
            return None
        if reply.obeys_if_range and headers.get("if-range") not in {reply.etag, reply.modified}:
            return None
        return int(match[1])

    def _send(self, reply: Reply, start: int | None) -> None:
        body = reply.body
        if start is not None and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(reply.status if start is None else 206)
        if start is not None:
            start += reply.starts_late
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        optional = {"ETag": reply.etag, "Last-Modified": reply.modified, "Location": reply.location}
        optional["Content-Length"] = str(len(body)) if reply.sized else None
        for key, value in optional.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: reply.stops_after])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def open_site() -> Iterator[Site]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("SiteHandler", (Handler,), {"site": site})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Small(nn.Module):
    """A network with batch-norm counters and a classifier, as large as a test needs."""

    def __init__(self, classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)


def as_file(content: object) -> bytes:
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def teacher(*sources: str | Source, sha256: str | None = None) -> Published:
    return Published(
        name="cifar100/resnet56",
        network="resnet56",
        dataset="cifar100",
        num_classes=100,
        sources=tuple(Source(source) if isinstance(source, str) else source for source in sources),
        sha256=sha256,
        claimed_top1=72.34,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        paper="crd",
        citation="a test",
        suffix=".pth",
    )


@dataclass(frozen=True)
class Case:
    """A site, and an empty folder to fetch into."""

    site: Site
    folder: Path

    @property
    def final(self) -> Path:
        return self.folder / "cifar100" / "resnet56.pth"

    def get(self, published: Published, **options: object) -> Path:
        """Fetch, without waiting between attempts; the file must fit a Small network."""
        own = {"pause": lambda _: None, "retries": 2} | {
            field.name: options.pop(field.name) for field in fields(Patience) if field.name in options
        }
        usual = {"patience": Patience(**own), "verify": verify, "folder": self.folder}
        # What these tests serve has no checksum, and loopback no certificate.
        options = usual | {"allow_unverified": True} | options
        return fetch(published, **options)

    def left(self) -> list[str]:
        """What lies in the data set's folder."""
        return sorted(file.name for file in self.final.parent.iterdir())


def verify(path: Path) -> str | None:
    weights = read_weights(path)
    load_into(Small(), weights, name="small")
    return weights.run
