"""Probes over the network against real servers that answer, lie, hang and never stop."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import shoal
from shoal.agent.probes import checks, health
from shoal.agent.probes.hooks import LiveHooks
from shoal.agent.probes.state import Outcome
from shoal.agent.runtime.port import ContainerID, ProbeRun
from shoal.proto.v1 import objects_pb2 as o

HOST = "127.0.0.1"
ID = ContainerID("pod", "main", 0)
PATIENCE = 90.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class NoRunner:
    async def run_probe(self, *_: object) -> ProbeRun:
        raise AssertionError("no command is to be run")


class Server:
    """An HTTP server by hand: `replies` by path (without its query), `requests` as they came."""

    def __init__(self) -> None:
        self.replies: dict[bytes, bytes | Reply] = {}
        self.requests: list[bytes] = []
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            reply = self.replies.get(request.split(b" ")[1].partition(b"?")[0], OK)
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(request, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled: the test is over
        finally:
            self.tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    made = Server()
    server = await asyncio.start_server(made.serve, HOST, 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        tasks = list(made.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as made:
        yield made


async def ask(probe: o.Probe, seconds: float = PATIENCE) -> Outcome:
    check = checks.check_of(probe, checks.Where(ID, HOST, {"web": 1}), NoRunner(), health.check)
    return await checks.asked(check, seconds)


def http(server: Server, path: str = "/", scheme: str = "", **headers: str) -> o.Probe:
    probe = o.Probe()
    probe.httpGet.path, probe.httpGet.port.number = path, server.port
    if scheme:
        probe.httpGet.scheme = scheme
    for name, value in headers.items():
        probe.httpGet.httpHeaders.add(name=name.replace("_", "-"), value=value)
    return probe


@pytest.mark.parametrize(
    ("status", "passed"), [(200, True), (204, True), (304, True), (399, True), (400, False), (404, False), (500, False)]
)
async def test_200_to_399_passes(server: Server, status: int, passed: bool) -> None:
    server.replies[b"/"] = b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status
    outcome = await ask(http(server))
    assert outcome.passed is passed
    assert f"HTTP status {status}" in outcome.message


async def test_the_request_is_what_the_manifest_says(server: Server) -> None:
    await ask(http(server, "health?deep=1&x=a b", Host="web.example", X_Token="t", Accept=""))
    (request,) = server.requests
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /health?deep=1&x=a%20b HTTP/1.1"
    assert {"Host: web.example", "X-Token: t", "Connection: close"} <= set(lines)
    assert f"User-Agent: shoal-probe/{shoal.__version__}" in lines
    assert not any(line.startswith("Accept") for line in lines)
    await ask(http(server, User_Agent="mine"))
    assert b"User-Agent: mine\r\n" in server.requests[1]
    assert b"shoal-probe" not in server.requests[1]
    assert f"Host: {HOST}:{server.port}\r\n".encode() in server.requests[1]


async def test_values_cannot_smuggle_headers(server: Server) -> None:
    await ask(http(server, "/a\r\nX-Evil: 1", X_Good="1\r\nX-Evil: 2"))
    assert not any(line.lower().startswith(b"x-evil") for line in server.requests[0].split(b"\r\n"))
    assert server.requests[0].startswith(b"GET /a%0D%0AX-Evil:%201 HTTP/1.1\r\n")


async def test_redirects_stay_with_the_host(server: Server) -> None:
    server.replies[b"/away"] = b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n"
    server.replies[b"/here"] = b"HTTP/1.1 302 Found\r\nLocation: /broken\r\nContent-Length: 0\r\n\r\n"
    server.replies[b"/broken"] = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
    server.replies[b"/round"] = b"HTTP/1.1 302 Found\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n"
    away = await ask(http(server, "/away"))
    assert away.passed
    assert "elsewhere.example" in away.message
    assert not (await ask(http(server, "/here"))).passed
    assert "10 redirects" in (await ask(http(server, "/round"))).message
    assert sum(request.startswith(b"GET /round ") for request in server.requests) == 11


async def test_interim_answers_and_bare_newlines_are_understood(server: Server) -> None:
    server.replies[b"/"] = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.0 200 OK\nServer: old\n\nbody"
    assert (await ask(http(server))).passed


async def hang(_: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def trickle(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless_head(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Filler: " + b"y" * 4096 + b"\r\n")
        await writer.drain()


async def endless_body(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"z" * 65536)
        await writer.drain()


async def half_body(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await asyncio.Event().wait()


@pytest.mark.parametrize("reply", [hang, trickle, half_body])
async def test_a_server_that_does_not_finish_is_given_its_time_and_no_more(server: Server, reply: Reply) -> None:
    server.replies[b"/"] = reply
    begin = time.monotonic()
    outcome = await asyncio.wait_for(ask(http(server), 0.3), PATIENCE)
    assert outcome.passed is False
    assert "no answer within 0.3 s" in outcome.message
    assert time.monotonic() - begin >= 0.3


async def test_floods_are_cut_off(server: Server) -> None:
    server.replies[b"/head"], server.replies[b"/body"] = endless_head, endless_body
    head = await asyncio.wait_for(ask(http(server, "/head")), PATIENCE)
    assert (head.passed, "headers are over" in head.message) == (False, True)
    assert (await asyncio.wait_for(ask(http(server, "/body")), PATIENCE)).passed


@pytest.mark.parametrize(
    "reply",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 2", b"HTTP/1.1 abc No\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"\r\n\r\n"],
)
async def test_what_is_not_http_fails_and_is_shown(server: Server, reply: bytes) -> None:
    server.replies[b"/"] = reply
    outcome = await ask(http(server))
    assert outcome.passed is False
    assert "answer" in outcome.message


async def test_nobody_listens(server: Server) -> None:
    async with serving() as gone:
        probe = http(gone)
    outcome = await ask(probe)
    assert outcome.passed is False
    assert outcome.message == f"GET http://{HOST}:{gone.port}/: connection refused"
    refused = o.Probe()
    refused.tcpSocket.port.number = gone.port
    assert (await ask(refused)).message == f"{HOST}:{gone.port}: connection refused"


async def test_tcp_connects(server: Server) -> None:
    probe = o.Probe()
    probe.tcpSocket.port.number, probe.tcpSocket.host = server.port, "localhost"
    assert (await ask(probe)).passed


async def test_no_connection_waits_on_the_nodes_side(server: Server) -> None:
    probe = o.Probe()
    probe.tcpSocket.port.number = server.port
    for _ in range(30):
        assert (await ask(probe)).passed
        assert (await ask(http(server))).passed
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    time_wait = "06"
    assert [row for row in rows if row[2].endswith(f":{server.port:04X}") and row[3] == time_wait] == []


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's, for a name that nobody asks for, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - datetime.timedelta(days=9)).not_valid_after(now)
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    return context


async def test_https_asks_without_judging_the_certificate(tmp_path: Path, server: Server) -> None:
    async with serving(certificate(tmp_path)) as tls:
        assert (await ask(http(tls, scheme="HTTPS"))).passed
        tls.replies[b"/"] = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
        assert "HTTP status 503" in (await ask(http(tls, scheme="HTTPS", Host="web.example"))).message
        tls.replies[b"/"] = hang
        assert "no answer" in (await asyncio.wait_for(ask(http(tls, scheme="HTTPS"), 0.5), PATIENCE)).message
    plain = await ask(http(server, scheme="HTTPS"), 0.5)  # it waits for the end of a request that is none
    assert plain.passed is False and "no answer within 0.5 s" in plain.message


async def test_hooks_ask_the_same_way(server: Server) -> None:
    hooks = LiveHooks(NoRunner())
    handler = o.LifecycleHandler(httpGet=http(server, "/hook").httpGet)
    assert await hooks.run(ID, handler, HOST, {}, PATIENCE) == ""
    server.replies[b"/hook"] = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
    assert "500" in await hooks.run(ID, handler, HOST, {}, PATIENCE)
    server.replies[b"/hook"] = hang
    assert "no answer within 0.2 s" in await hooks.run(ID, handler, HOST, {}, 0.2)


# ---- grpc ----
@contextlib.asynccontextmanager
async def health_server(statuses: dict[bytes, int]) -> AsyncIterator[int]:
    """A gRPC server; `statuses` by service name, 99 never answers. It speaks the protocol's bytes."""

    async def check(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        status = statuses.get(request[2:])
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        if status == 99:
            await asyncio.Event().wait()
        return bytes([0x08, status or 0])

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(check)
    if statuses:
        made = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})
        server.add_generic_rpc_handlers((made,))
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def grpc_probe(port: int, service: str = "") -> o.Probe:
    return o.Probe(grpc=o.GRPCAction(port=port, service=service))


async def test_grpc_health() -> None:
    long = "service-" * 40
    async with health_server({b"": 1, b"web": 1, b"sick": 2, b"slow": 99, long.encode()[1:]: 1}) as port:
        assert (await ask(grpc_probe(port))).passed
        assert (await ask(grpc_probe(port, "web"))).passed
        assert "NOT_SERVING" in (await ask(grpc_probe(port, "sick"))).message
        assert "knows no service" in (await ask(grpc_probe(port, "unheard"))).message
        slow = await asyncio.wait_for(ask(grpc_probe(port, "slow"), 0.3), PATIENCE)
        assert (slow.passed, "within 0.3 s" in slow.message) == (False, True)
    gone = await ask(grpc_probe(port))
    assert (gone.passed, "UNAVAILABLE" in gone.message) == (False, True)


async def test_grpc_against_what_is_none(server: Server) -> None:
    async with health_server({}) as port:
        assert "does not serve grpc.health.v1.Health" in (await ask(grpc_probe(port))).message
    outcome = await asyncio.wait_for(ask(grpc_probe(server.port), 1.0), PATIENCE)
    assert outcome.passed is False


def test_grpc_requests_are_protobuf() -> None:
    assert health.encode_request("") == b""
    assert health.encode_request("web") == b"\x0a\x03web"
    assert health.encode_request("x" * 300) == b"\x0a\xac\x02" + b"x" * 300
    assert [health.decode_status(data) for data in (b"", b"\x08", b"\x08\x01", b"\x10\x01")] == [0, 0, 1, 0]
