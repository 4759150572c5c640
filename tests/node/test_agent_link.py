"""The agent's link on real gRPC and mutual TLS over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.agent.grpc_link import Certificates, GrpcConnector
from shoal.agent.session import LinkLost
from shoal.deploy.certs.ca import Authority
from shoal.proto.v1 import session_pb2 as s

Handler = Callable[[Any], Coroutine[Any, Any, None]]


class Link:
    """A server with one handler for both calls, and a connector with its own certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.ensure(folder / "pki", "test")
        self.folder = folder / "pki"

    def connector(self, name: str = "n1") -> GrpcConnector:
        self.authority.issue("node", name)
        return GrpcConnector(
            Certificates(self.folder / "ca.crt", self.folder / f"{name}.crt", self.folder / f"{name}.key")
        )

    @asynccontextmanager
    async def serving(self, handler: Handler) -> AsyncIterator[str]:
        self.authority.issue("master", "m", ["127.0.0.1"])

        async def call(_: object, context: Any) -> None:
            await handler(context)

        server = grpc.aio.server()
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Session": grpc.stream_stream_rpc_method_handler(call, s.Up.FromString, s.Down.SerializeToString),
            "Tunnel": grpc.stream_stream_rpc_method_handler(
                call, s.TunnelFrame.FromString, s.TunnelFrame.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shoal.v1.Agents", methods),))
        ca, cert, key = (self.folder / name for name in ("ca.crt", "m.crt", "m.key"))
        pair = [(key.read_bytes(), cert.read_bytes())]
        credentials = grpc.ssl_server_credentials(pair, ca.read_bytes(), require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


@pytest.fixture
def link(tmp_path: Path) -> Link:
    return Link(tmp_path)


async def test_messages_go_both_ways_and_the_end_is_seen(link: Link) -> None:
    async def greet(context: Any) -> None:
        up = await context.read()
        await context.write(s.Down(reject=s.Reject(message=up.hello.node)))

    connector = link.connector()
    async with link.serving(greet) as address:
        stream = await connector.connect(address)
        await stream.send(s.Up(hello=s.Hello(node="n1")))
        down = await stream.receive()
        assert down is not None and down.reject.message == "n1"
        assert await stream.receive() is None
        await stream.close()
        await connector.close()


async def test_waiting_for_a_message_may_be_given_up_without_losing_the_call(link: Link) -> None:
    go = asyncio.Event()

    async def late(context: Any) -> None:
        await go.wait()
        await context.write(s.TunnelFrame(data=b"late"))
        assert (await context.read()).data == b"mine"
        assert (await context.read()).HasField("end")

    connector = link.connector()
    async with link.serving(late) as address:
        tunnel = await connector.tunnel(address)
        waiting = asyncio.create_task(tunnel.receive())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        go.set()
        frame = await tunnel.receive()
        assert frame is not None and frame.data == b"late", "what came meanwhile is not lost"
        await tunnel.send(s.TunnelFrame(data=b"mine"))
        await tunnel.send(s.TunnelFrame(end=s.TunnelEnd()))
        await tunnel.close()
        await connector.close()


async def test_a_refusal_and_a_server_that_goes_are_lost_links_with_the_reason(link: Link) -> None:
    begun = asyncio.Event()

    async def refuse(context: Any) -> None:
        if begun.is_set():
            await asyncio.Event().wait()
        begun.set()
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not a node")

    connector = link.connector()
    async with link.serving(refuse) as address:
        stream = await connector.connect(address)
        with pytest.raises(LinkLost, match="PERMISSION_DENIED: not a node"):
            await stream.receive()
        await stream.close()
        second = await connector.connect(address)
        waiting = asyncio.create_task(second.receive())
    with pytest.raises(LinkLost):
        await asyncio.wait_for(waiting, 60)
    with pytest.raises(LinkLost):
        await second.send(s.Up(heartbeat=s.Heartbeat(number=1)))
    await second.close()
    await connector.close()


async def test_another_authority_and_missing_files_do_not_connect(link: Link, tmp_path: Path) -> None:
    async def never(context: Any) -> None:
        raise AssertionError("nobody gets here")

    stranger = Link(tmp_path / "stranger").connector()
    async with link.serving(never) as address:
        stream = await stranger.connect(address)
        with pytest.raises(LinkLost, match=r"UNAVAILABLE: .*CERTIFICATE_VERIFY_FAILED"):
            await stream.send(s.Up(hello=s.Hello(node="n1")))
            await stream.receive()
        await stream.close()
        await stranger.close()
        nobody = GrpcConnector(Certificates(tmp_path / "no.crt", tmp_path / "no.crt", tmp_path / "no.key"))
        with pytest.raises(LinkLost, match=r"no.crt cannot be read: No such file"):
            await nobody.connect(address)
