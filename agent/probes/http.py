"""One GET, and the status of its answer: HTTP/1.1 as far as a probe needs it (RFC 9112).

The server closes the connection (Connection: close), so that the waiting ends of connections are its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from shoal import __version__
from shoal.agent.probes import streams
from shoal.agent.probes.state import Outcome

READ_SIZE = 16 * 1024  # bytes at once
USER_AGENT = f"shoal-probe/{__version__}"
HEAD_BYTES = 64 * 1024  # of an answer's status line and headers
BODY_BYTES = 10 * 1024  # of an answer; the rest is not waited for
REDIRECTS = 10
STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?\r?$")
END = re.compile(rb"\r?\n\r?\n")  # of a head
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
PATH_SAFE = "/?%:@!$&'()*+,;=-._~[]"
PORTS = {"http": 80, "https": 443}


class BadAnswer(Exception):
    """The server does not speak HTTP; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Request:
    """A GET that is known to the last byte. `host` is whom to connect to."""

    scheme: str  # http, https
    host: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...]

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def name(self) -> str:
        """What the server is called: the Host header, else the address."""
        given = next((value for key, value in self.headers if key.lower() == "host"), "")
        return given or self.url.partition("://")[2].partition("/")[0]

    def encode(self) -> bytes:
        names = {key.lower() for key, _ in self.headers}
        lines = [f"GET {self.path} HTTP/1.1", f"Host: {self.name()}"]
        lines += ["Connection: close"]
        lines += [] if "user-agent" in names else [f"User-Agent: {USER_AGENT}"]
        lines += [] if "accept" in names else ["Accept: */*"]
        # An empty User-Agent or Accept is how a manifest asks for none.
        lines += [
            f"{key}: {value}"
            for key, value in self.headers
            if key.lower() not in ("host", "connection") and (value or key.lower() not in ("user-agent", "accept"))
        ]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer begins with. `length` None: the body goes on until the connection ends."""

    status: int
    location: str
    length: int | None


def make_request(scheme: str, host: str, port: int, path: str, headers: Sequence[tuple[str, str]]) -> Request:
    """Of a manifest's values: nothing in them can end a line of the request."""
    path = quote(path.partition("#")[0], safe=PATH_SAFE)
    clean = tuple((CONTROL.sub("", key).strip(": "), CONTROL.sub("", value)) for key, value in headers)
    return Request(scheme.lower() or "http", host, port, path if path.startswith("/") else f"/{path}", clean)


def read_head(head: bytes) -> Head:
    """The status line and headers, without the empty line. Raises BadAnswer."""
    lines = head.split(b"\n")
    status = STATUS.match(lines[0])
    if status is None:
        raise BadAnswer(f"the answer is not HTTP/1.1: it begins with {lines[0][:64]!r}")
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        key, _, value = line.partition(b":")
        fields.setdefault(key.strip().lower(), value.strip())
    length = fields.get(b"content-length", b"")
    chunked = b"transfer-encoding" in fields
    number = int(status[1])
    bodiless = number in (204, 304)
    size = 0 if bodiless else int(length) if length.isdigit() and len(length) < 20 and not chunked else None
    return Head(number, fields.get(b"location", b"").decode("latin-1"), size)


def redirected(request: Request, location: str) -> Request | None:
    """The request that a redirect asks for; None when it leads to another host, or nowhere."""
    try:
        parts = urlsplit(urljoin(request.url, location))
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in PORTS or (parts.hostname or "").lower() != request.host.lower():
        return None
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return make_request(parts.scheme, request.host, port or PORTS[parts.scheme], path, request.headers)


async def get(request: Request) -> Outcome:
    """Asks, following redirects to the same host. 200 to 399 passes. Raises OSError."""
    for _ in range(REDIRECTS + 1):
        try:
            head = await _get_once(request)
        except BadAnswer as fault:
            return Outcome(False, f"GET {request.url}: {fault}")
        if not 300 <= head.status < 400 or not head.location:
            break
        following = redirected(request, head.location)
        if following is None:
            return Outcome(True, f"HTTP status {head.status}: the redirect to {head.location[:256]!r} is not followed")
        request = following
    else:
        return Outcome(False, f"GET {request.url}: more than {REDIRECTS} redirects")
    passed = 200 <= head.status < 400
    return Outcome(passed, f"HTTP status {head.status}" if passed else f"GET {request.url}: HTTP status {head.status}")


async def _get_once(request: Request) -> Head:
    tls_name = urlsplit(f"//{request.name()}").hostname or request.host if request.scheme == "https" else None
    async with streams.connection(request.host, request.port, tls_name) as connection:
        await connection.send(request.encode())
        data = b""
        while True:
            piece = await connection.receive(READ_SIZE)
            data += piece
            head, body = _split(data)
            if head is not None:
                break
            if not piece:
                raise BadAnswer("the connection ended before the answer" if not data else "the answer is cut off")
            if len(data) > HEAD_BYTES:
                raise BadAnswer(f"the answer's headers are over {HEAD_BYTES} bytes")
        wanted = BODY_BYTES if head.length is None else min(head.length, BODY_BYTES)
        left = wanted - len(body)
        # The answer is read to its end, so that the server does not see it refused.
        while left > 0 and piece:
            piece = await connection.receive(READ_SIZE)
            left -= len(piece)
    return head


def _split(data: bytes) -> tuple[Head | None, bytes]:
    """The head, once it is complete, and what came after it. Interim answers (1xx) are skipped."""
    while (found := END.search(data)) is not None:
        head, data = read_head(data[: found.start()]), data[found.end() :]
        if head.status >= 200:
            return head, data
    if not b"HTTP/".startswith(data[:5]):
        raise BadAnswer(f"the answer is not HTTP/1.1: it begins with {data[:64]!r}")
    return None, b""
