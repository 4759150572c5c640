"""Real calls over mutual TLS on loopback: who is let in, what agents and people get to hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from shoal.deploy.certs.ca import Authority
from shoal.master.api import top
from shoal.master.api.forward import Forwarder
from shoal.master.api.grpc_server import SERVER_OPTIONS, ClusterAdapter, credentials
from shoal.master.core import Master
from shoal.master.dispatcher.dispatcher import Config
from shoal.master.dispatcher.grpc_link import AgentsAdapter
from shoal.master.main import Front
from shoal.master.store.memory import MemoryEtcd
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from shoal.proto.v1.cluster_pb2_grpc import ClusterStub
from shoal.proto.v1.session_pb2_grpc import AgentsStub
from tests.masterkit import memory_master, until

# Seconds. The nodes of these tests send no heartbeats; only who waits for nobody waits for the last.
PATIENT = Config(heartbeat_period=60.0, hello_patience=60.0, tunnel_patience=5.0)


@dataclass
class Served:
    """A master that listens on loopback, and its certificate authority."""

    master: Master
    authority: Authority
    address: str
    server: grpc.aio.Server
    forwarder: Forwarder
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def channel(self, profile: str = "", name: str = "") -> grpc.aio.Channel:
        ca = self.authority.certificate.read_bytes()
        if profile:
            own = self.authority.issue(profile, name)
            shown = grpc.ssl_channel_credentials(ca, own.key.read_bytes(), own.certificate.read_bytes())
        else:
            shown = grpc.ssl_channel_credentials(ca)
        self.channels.append(grpc.aio.secure_channel(self.address, shown))
        return self.channels[-1]

    def admin(self) -> Any:
        return ClusterStub(self.channel("admin", "alice"))

    async def agent(self, name: str = "n1", instance: str = "i1", certificate: str = "") -> Agent:
        call = AgentsStub(self.channel("node", certificate or name)).Session()
        agent = Agent(self, call, name)
        hello = s.Hello(protocol_min=1, protocol_max=1, node=name, instance_id=instance, boot_id="b")
        hello.report.capacity["cpu"].text = hello.report.allocatable["cpu"].text = "4"
        hello.report.capacity["memory"].text = hello.report.allocatable["memory"].text = "4Gi"
        hello.report.capacity["pods"].text = hello.report.allocatable["pods"].text = "10"
        hello.report.conditions.add(type="RuntimeReady", status="True")
        await call.write(s.Up(hello=hello))
        return agent

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        await self.server.stop(None)
        await self.forwarder.close()


@dataclass
class Agent:
    served: Served
    call: Any
    name: str

    async def hear(self, which: str) -> s.Down:
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(60):
            while True:
                message = await self.call.read()
                assert message is not grpc.aio.EOF, "the master ended the session"
                if message.WhichOneof("message") == which:
                    return message  # type: ignore[no-any-return]

    async def tunnel(self, number: str) -> Any:
        call = AgentsStub(self.served.channel("node", self.name)).Tunnel()
        await call.write(s.TunnelFrame(hello=s.TunnelHello(id=number)))
        return call


async def serve(master: Master, authority: Authority) -> Served:
    own = authority.issue("master", "m0", ["127.0.0.1"])
    pems = (authority.certificate.read_bytes(), own.certificate.read_bytes(), own.key.read_bytes())
    forwarder = Forwarder(*pems)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    made = Served(master, authority, "", server, forwarder)
    ClusterAdapter(Front(master, forwarder), lambda verb, code, _: made.requests.append((verb, code))).add_to(server)
    AgentsAdapter(lambda: master).add_to(server)
    made.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials(*pems))}"
    await server.start()
    return made


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with memory_master(config=PATIENT) as master:
        made = await serve(master, Authority.ensure(tmp_path / "ca"))
        try:
            yield made
        finally:
            await made.close()


def pod(name: str = "web", **more: str) -> c.Object:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name = name
    made.spec.containers.add(name="c", image="i")
    made.spec.nodeName = more.get("node", "")
    return c.Object(kind="Pod", body=made.SerializeToString())


async def failure_of(call: Any) -> tuple[grpc.StatusCode, c.Failure]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), c.Failure.FromString(metadata.get("shoal-failure-bin", b""))


async def ready(served: Served, agent: Agent) -> None:
    """Waits until the node controller has judged the node."""

    def judged() -> bool:
        node = served.master.store.view.get("Node", "", agent.name)
        conditions = node.status.conditions if isinstance(node, o.Node) else []
        return any(one.type == "Ready" and one.status == "True" for one in conditions)

    await until(judged)


# ---- who is let in ----
async def test_without_a_certificate_nothing_answers(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ClusterStub(served.channel()).Version(c.VersionRequest(), timeout=60)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert served.requests == []


async def test_a_foreign_authority_is_not_trusted(served: Served, tmp_path: Path) -> None:
    foreign = Authority.ensure(tmp_path / "foreign").issue("admin", "mallory")
    shown = grpc.ssl_channel_credentials(
        served.authority.certificate.read_bytes(), foreign.key.read_bytes(), foreign.certificate.read_bytes()
    )
    async with grpc.aio.secure_channel(served.address, shown) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await ClusterStub(channel).Version(c.VersionRequest(), timeout=60)
    assert served.requests == []


@pytest.mark.parametrize("profile", ["node", "master"])
async def test_the_cluster_is_for_admins(served: Served, profile: str) -> None:
    stub: Any = ClusterStub(served.channel(profile, "somebody"))
    code, failure = await failure_of(stub.List(c.ListRequest(kind="Secret")))
    assert (code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "Forbidden")
    assert "shoal:admins" in failure.message


async def test_nobody_but_a_master_speaks_for_others(served: Served) -> None:
    stub: Any = ClusterStub(served.channel("node", "n1"))
    forged = (("shoal-forwarded-identity", "shoal:admins/alice"),)
    code, _ = await failure_of(stub.List(c.ListRequest(kind="Secret"), metadata=forged))
    assert code == grpc.StatusCode.PERMISSION_DENIED
    master: Any = ClusterStub(served.channel("master", "m1"))
    assert (await master.List(c.ListRequest(kind="Secret"), metadata=forged)).revision
    none = (("shoal-forwarded-identity", "shoal:nodes/n1"),)
    code, _ = await failure_of(master.List(c.ListRequest(kind="Secret"), metadata=none))
    assert code == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("profile", ["admin", "master"])
async def test_sessions_are_for_nodes(served: Served, profile: str) -> None:
    call: Any = AgentsStub(served.channel(profile, "n1")).Session()
    code, failure = await failure_of(call.read())
    assert (code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "Forbidden")


async def test_an_agent_with_another_nodes_certificate_is_refused(served: Served) -> None:
    agent = await served.agent("n1", certificate="n2")
    assert (await agent.hear("reject")).reject.reason == "WrongIdentity"
    assert served.master.store.view.get("Node", "", "n1") is None


async def test_a_cloned_agent_is_refused_and_an_event_says_so(served: Served) -> None:
    first = await served.agent("n1", "i1")
    await first.hear("welcome")
    clone = await served.agent("n1", "i2")
    reject = (await clone.hear("reject")).reject
    assert reject.reason == "Cloned"
    assert "i1" in reject.message
    assert reject.retry_after_ms > 0
    view = served.master.store.view
    await until(lambda: any(e.reason == "Cloned" for e in view.all("Event") if isinstance(e, o.Event)))
    await first.call.write(s.Up(heartbeat=s.Heartbeat(number=1)))
    assert (await first.hear("heartbeat_ack")).heartbeat_ack.number == 1


# ---- what they hear ----
async def test_failures_travel_in_the_trailing_metadata(served: Served) -> None:
    stub = served.admin()
    code, failure = await failure_of(stub.Get(c.GetRequest(key=c.Key(kind="Pod", name="none"))))
    assert (code, failure.reason, failure.retryable) == (grpc.StatusCode.NOT_FOUND, "NotFound", False)
    code, failure = await failure_of(stub.Create(c.WriteRequest(request_id="")))
    assert (code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "Invalid")
    code, failure = await failure_of(stub.List(c.ListRequest(kind="Pod", continue_token="x")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert ("Get", "NOT_FOUND") in served.requests


async def test_a_pod_goes_all_the_way(served: Served) -> None:
    agent = await served.agent()
    await ready(served, agent)
    stub = served.admin()
    watch = stub.Watch(c.WatchRequest(kinds=["Pod"]))
    assert not (await watch.read()).events  # a bookmark: from now on
    await stub.Create(c.WriteRequest(request_id="1", objects=[pod()]))
    while not (upserts := (await agent.hear("assignments")).assignments.upsert_pods):
        pass
    report = s.PodReport(uid=upserts[0].uid, namespace="default", name="web", status=o.PodStatus(phase="Running"))
    status = s.StatusReport(sequence=s.Sequence(agent_start=1, counter=1), pods=[report])
    await agent.call.write(s.Up(status=status))
    await agent.hear("status_ack")
    phases: list[str] = []
    async with asyncio.timeout(60):
        while "Running" not in phases:
            events = (await watch.read()).events
            phases += [o.Pod.FromString(event.object.body).status.phase for event in events]
    watch.cancel()
    await stub.Delete(c.DeleteRequest(request_id="2", keys=[c.Key(kind="Pod", name="web")]))
    while not (upserts := (await agent.hear("assignments")).assignments.upsert_pods):
        pass
    assert o.Pod.FromString(upserts[0].pod).metadata.deletionGracePeriodSeconds == 30
    report.ended, report.status.phase = True, "Failed"
    status = s.StatusReport(sequence=s.Sequence(agent_start=1, counter=2), pods=[report])
    await agent.call.write(s.Up(status=status))
    await until(lambda: served.master.store.view.get("Pod", "default", "web") is None)


async def test_a_client_that_goes_away_frees_its_session(served: Served) -> None:
    agent = await served.agent()
    await agent.hear("welcome")
    assert served.master.session_count == 1
    agent.call.cancel()
    await until(lambda: served.master.session_count == 0)
    again = await served.agent("n1", "i2")
    await again.hear("welcome")


async def seen(served: Served, start: int, deletions: int, pause: float = 0.0) -> list[tuple[int, str, str]]:
    """What a watcher from `start` hears, closing and resuming after every batch: (revision, type, body)."""
    heard: list[tuple[int, str, str]] = []
    position = start
    while sum(kind == "DELETED" for _, kind, _ in heard) < deletions:
        call = served.admin().Watch(c.WatchRequest(kinds=["Pod"], from_revision=position))
        batch = await anext(aiter(call))
        call.cancel()
        heard += [(event.object.revision, event.type, event.object.body.hex()) for event in batch.events]
        position = batch.revision
        await asyncio.sleep(pause)
    return heard


async def test_b100_two_watchers_see_one_order(served: Served) -> None:
    start = (await served.admin().List(c.ListRequest(kind="Pod"))).revision
    keys = [c.Key(kind="Pod", namespace="default", name=f"w{number}") for number in range(8)]
    watching = asyncio.gather(seen(served, start, len(keys)), seen(served, start, len(keys), pause=0.01))
    made = [pod(name=key.name) for key in keys]
    await asyncio.gather(
        *(served.admin().Create(c.WriteRequest(request_id=f"c{n}", objects=[one])) for n, one in enumerate(made))
    )
    await asyncio.gather(
        *(served.admin().Delete(c.DeleteRequest(request_id=f"d{n}", keys=[key])) for n, key in enumerate(keys))
    )
    first, second = await asyncio.wait_for(watching, 120)
    assert first == second
    assert [revision for revision, _, _ in first] == sorted(revision for revision, _, _ in first)


# ---- tunnels ----
async def running(served: Served) -> Agent:
    agent = await served.agent()
    await ready(served, agent)
    await served.admin().Create(c.WriteRequest(request_id="p", objects=[pod(node="n1")]))
    return agent


async def test_logs_come_through_a_tunnel(served: Served) -> None:
    agent = await running(served)
    logs = served.admin().Logs(c.LogsRequest(pod=c.Key(name="web"), options=s.LogsOpen(tail_lines=5)))
    opened = (await agent.hear("open")).open
    assert (opened.logs.container, opened.logs.tail_lines) == ("c", 5)
    assert opened.logs.pod_uid
    tunnel = await agent.tunnel(opened.id)
    for frame in (s.TunnelFrame(data=b"one\n"), s.TunnelFrame(data=b"two\n"), s.TunnelFrame(end=s.TunnelEnd())):
        await tunnel.write(frame)
    got = [frame async for frame in logs]
    assert b"".join(frame.data for frame in got) == b"one\ntwo\n"
    assert got[-1].WhichOneof("frame") == "end"


async def test_logs_that_break_off_are_an_error(served: Served) -> None:
    agent = await running(served)
    logs = served.admin().Logs(c.LogsRequest(pod=c.Key(name="web")))
    tunnel = await agent.tunnel((await agent.hear("open")).open.id)
    await tunnel.write(s.TunnelFrame(data=b"one\n"))
    assert (await logs.read()).data == b"one\n"
    tunnel.cancel()
    code, failure = await failure_of(logs.read())
    assert (code, failure.retryable) == (grpc.StatusCode.UNAVAILABLE, True)
    assert "broke off" in failure.message


async def test_exec_carries_input_output_and_the_exit_code(served: Served) -> None:
    agent = await running(served)
    call = served.admin().Exec()
    start = c.ExecStart(pod=c.Key(name="web"), options=s.ExecOpen(command=["cat"], stdin=True))
    await call.write(c.ExecRequest(start=start))
    tunnel = await agent.tunnel((await agent.hear("open")).open.id)
    await call.write(c.ExecRequest(frame=s.TunnelFrame(data=b"hello")))
    await call.done_writing()
    assert (await tunnel.read()).data == b"hello"
    assert (await tunnel.read()).close_input
    await tunnel.write(s.TunnelFrame(data=b"HELLO"))
    await tunnel.write(s.TunnelFrame(end=s.TunnelEnd(exit_code=3)))
    frames = [frame async for frame in call]
    assert (frames[0].data, frames[1].end.exit_code) == (b"HELLO", 3)


async def test_a_tunnel_of_another_node_or_with_a_wrong_id_is_refused(served: Served) -> None:
    agent = await running(served)
    thief = await served.agent("n2", "i9")
    logs = served.admin().Logs(c.LogsRequest(pod=c.Key(name="web")))
    number = (await agent.hear("open")).open.id
    for stolen in (await thief.tunnel(number), await agent.tunnel("0" * 32)):
        assert (await stolen.read()).end.error
    tunnel = await agent.tunnel(number)
    await tunnel.write(s.TunnelFrame(end=s.TunnelEnd()))
    assert [frame.WhichOneof("frame") async for frame in logs] == ["end"]


async def test_an_agent_that_does_not_answer_or_is_away_is_said_so(served: Served) -> None:
    agent = await running(served)
    code, failure = await failure_of(served.admin().Logs(c.LogsRequest(pod=c.Key(name="web"))).read())
    assert (code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "Unavailable")
    assert "did not answer" in failure.message
    agent.call.cancel()
    await until(lambda: served.master.session_count == 0)
    _, failure = await failure_of(served.admin().Logs(c.LogsRequest(pod=c.Key(name="web"))).read())
    assert "not connected" in failure.message


def started(verb: str) -> Any:
    """The first message of a call that streams both ways."""
    key = c.Key(name="web")
    if verb == "Attach":
        return c.AttachRequest(start=c.AttachStart(pod=key, options=s.AttachOpen(stdin=True)))
    if verb == "Copy":
        return c.CopyRequest(start=c.CopyStart(pod=key, options=s.CopyOpen(path="/tmp")))
    return c.ExecRequest(start=c.ExecStart(pod=key, options=s.ExecOpen(command=["cat"])))


@pytest.mark.parametrize("verb", ["Logs", "Exec", "Attach", "Copy", "Top"])
@pytest.mark.parametrize("profile", ["node", "master"])
async def test_reaching_into_pods_is_for_admins(served: Served, verb: str, profile: str) -> None:
    await running(served)
    stub: Any = ClusterStub(served.channel(profile, "n1"))
    if verb == "Top":
        code, _ = await failure_of(stub.Top(c.TopRequest()))
    elif verb == "Logs":
        code, _ = await failure_of(stub.Logs(c.LogsRequest(pod=c.Key(name="web"))).read())
    else:
        call = getattr(stub, verb)()

        async def ask() -> None:
            await call.write(started(verb))  # raises, too, when the refusal is here first
            await call.read()

        code, _ = await failure_of(ask())
    assert code == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("verb", ["Attach", "Copy"])
async def test_attach_and_copy_carry_frames_both_ways(served: Served, verb: str) -> None:
    agent = await running(served)
    call = getattr(served.admin(), verb)()
    await call.write(started(verb))
    opened = (await agent.hear("open")).open
    options = opened.attach if verb == "Attach" else opened.copy
    assert (options.container, bool(options.pod_uid)) == ("c", True)
    tunnel = await agent.tunnel(opened.id)
    await call.write(type(started(verb))(frame=s.TunnelFrame(data=b"in")))
    await call.done_writing()
    assert ((await tunnel.read()).data, (await tunnel.read()).close_input) == (b"in", True)
    await tunnel.write(s.TunnelFrame(data=b"out", position=s.LogPosition(offset=3)))
    await tunnel.write(s.TunnelFrame(end=s.TunnelEnd(exit_code=4)))
    frames = [frame async for frame in call]
    assert (frames[0].data, frames[0].position.offset, frames[1].end.exit_code) == (b"out", 3, 4)


async def test_a_copy_to_a_relative_path_is_refused(served: Served) -> None:
    await running(served)
    call = served.admin().Copy()
    await call.write(c.CopyRequest(start=c.CopyStart(pod=c.Key(name="web"), options=s.CopyOpen(path="tmp"))))
    _, failure = await failure_of(call.read())
    assert (failure.reason, "must be absolute" in failure.message) == ("Invalid", True)


async def test_top_asks_all_nodes_at_once_and_names_who_is_silent(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "PATIENCE_SECONDS", 4.0)
    agents = [await served.agent(name, name) for name in ("n1", "n2", "n3")]
    for agent in agents:
        await ready(served, agent)
    objects = [pod("a", node="n1"), pod("b", node="n2")]
    results = (await served.admin().Create(c.WriteRequest(request_id="p", objects=objects))).results
    uids = [o.Pod.FromString(result.object.body).metadata.uid for result in results]

    async def answer(agent: Agent, report: s.UsageReport) -> None:
        tunnel = await agent.tunnel((await agent.hear("open")).open.id)
        data = report.SerializeToString()
        await tunnel.write(s.TunnelFrame(data=data[:5]))
        await tunnel.write(s.TunnelFrame(data=data[5:]))
        await tunnel.write(s.TunnelFrame(end=s.TunnelEnd()))

    def report(*wanted: str) -> s.UsageReport:
        made = s.UsageReport(node_cpu_cores=1.5, node_memory_bytes=1 << 30)
        for uid in wanted:
            made.containers.add(pod_uid=uid, container="c", cpu_cores=0.25, memory_bytes=7)
        return made

    asked = asyncio.ensure_future(served.admin().Top(c.TopRequest(nodes=True)))
    await asyncio.gather(*(answer(agent, report()) for agent in agents[:2]))
    nodes = await asked
    assert list(nodes.missing) == ["n3"]
    assert [(n.name, n.cpu_cores, n.cpu_allocatable, n.memory_allocatable) for n in nodes.nodes] == [
        (name, 1.5, 4.0, 4 << 30) for name in ("n1", "n2")
    ]
    asked = asyncio.ensure_future(served.admin().Top(c.TopRequest()))
    await answer(agents[0], report(*uids, "unknown"))  # it speaks of another node's pod too: that is not believed
    pods = await asked
    assert [(each.name, len(each.containers)) for each in pods.pods] == [("a", 1)]
    assert list(pods.missing) == ["n2"], "n3 has no pods and is not asked"
    _, failure = await failure_of(served.admin().Top(c.TopRequest(label_selector="a in (")))
    assert failure.reason == "Invalid"


# ---- images ----
async def image_bytes(tunnel: Any, *, slow: float = 0.0) -> bytes:
    got = b""
    while (frame := await tunnel.read()) is not grpc.aio.EOF and not frame.close_input:
        got += frame.data
        assert len(frame.data) <= 64 << 10
        await asyncio.sleep(slow)
    return got


async def test_an_image_goes_to_every_ready_node_and_each_says_how_it_went(served: Served) -> None:
    agents = [await served.agent(name, name) for name in ("n1", "n2", "n3")]
    for agent in agents:
        await ready(served, agent)
    archive = bytes(range(256)) * 8192  # 2 MiB
    call = served.admin().LoadImage()

    async def send() -> None:
        await call.write(c.LoadImageRequest(start=c.LoadImageStart(name="web:1")))
        for at in range(0, len(archive), 50_000):
            await call.write(c.LoadImageRequest(data=archive[at : at + 50_000]))
        await call.done_writing()

    sending = asyncio.ensure_future(send())
    tunnels = [await agent.tunnel((await agent.hear("open")).open.id) for agent in agents]
    failing = tunnels[1]
    await failing.read()
    await failing.write(s.TunnelFrame(end=s.TunnelEnd(error="disk full")))
    await failing.done_writing()
    first, third = await asyncio.gather(image_bytes(tunnels[0]), image_bytes(tunnels[2], slow=0.005))
    assert first == archive
    assert third == archive
    for tunnel in (tunnels[0], tunnels[2]):
        await tunnel.write(s.TunnelFrame(progress="unpacked 1 layer"))
        await tunnel.write(s.TunnelFrame(end=s.TunnelEnd(images=["web:1"])))
    await sending
    lines = [line async for line in call]
    last = {line.node: line for line in lines if line.done}
    assert last.keys() == {"n1", "n2", "n3"}
    assert last["n2"].error == "disk full"
    assert (list(last["n1"].images), last["n1"].error) == (["web:1"], "")
    assert any(line.progress == "unpacked 1 layer" for line in lines)


async def test_a_client_that_breaks_off_leaves_no_half_image(served: Served) -> None:
    agent = await served.agent()
    await ready(served, agent)
    call = served.admin().LoadImage()
    await call.write(c.LoadImageRequest(start=c.LoadImageStart()))
    await call.write(c.LoadImageRequest(data=b"half"))
    tunnel = await agent.tunnel((await agent.hear("open")).open.id)
    assert (await tunnel.read()).data == b"half"
    call.cancel()
    async with asyncio.timeout(60):
        try:
            assert await tunnel.read() is grpc.aio.EOF  # and no close_input
        except grpc.aio.AioRpcError:
            pass


async def test_images_are_removed_and_bad_requests_are_refused(served: Served) -> None:
    agent = await served.agent()
    await ready(served, agent)
    call = served.admin().RemoveImage(c.RemoveImageRequest(name="web:1"))
    opened = (await agent.hear("open")).open
    assert opened.image_remove.name == "web:1"
    tunnel = await agent.tunnel(opened.id)
    await tunnel.write(s.TunnelFrame(end=s.TunnelEnd()))
    assert [(line.node, line.done, line.error) async for line in call] == [("n1", True, "")]
    _, failure = await failure_of(served.admin().RemoveImage(c.RemoveImageRequest(name="x", nodes=["gone"])).read())
    assert (failure.reason, "no such node: gone" in failure.message) == ("Invalid", True)


# ---- two masters ----
async def test_a_follower_forwards_and_sends_agents_to_the_leader(tmp_path: Path) -> None:
    etcd, authority = MemoryEtcd(), Authority.ensure(tmp_path / "ca")
    async with (
        memory_master(etcd, name="m0", config=PATIENT) as first,
        memory_master(etcd, name="m1", config=PATIENT) as second,
    ):
        lead, follow = await serve(first, authority), await serve(second, authority)
        known = second.election.leader
        assert known is not None
        second.election.leader = replace(known, address=lead.address)
        try:
            stub = follow.admin()
            response = await stub.Create(c.WriteRequest(request_id="1", objects=[pod()]))
            assert response.results[0].action == "created"
            code, failure = await failure_of(stub.Get(c.GetRequest(key=c.Key(kind="Pod", name="none"))))
            assert (code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "NotFound")
            cached = await stub.Get(c.GetRequest(key=c.Key(kind="Pod", name="web"), min_revision=response.revision))
            assert o.Pod.FromString(cached.body).metadata.name == "web"
            assert cached.revision >= response.revision
            watch = stub.Watch(c.WatchRequest(kinds=["Pod"], from_revision=response.revision - 1))
            assert (await watch.read()).events[0].type == "ADDED"
            watch.cancel()
            worker = await running(lead)
            copy = stub.Copy()
            await copy.write(started("Copy"))
            tunnel = await worker.tunnel((await worker.hear("open")).open.id)
            await copy.write(c.CopyRequest(frame=s.TunnelFrame(data=b"in")))
            assert (await tunnel.read()).data == b"in"
            await tunnel.write(s.TunnelFrame(end=s.TunnelEnd(exit_code=5)))
            assert (await copy.read()).end.exit_code == 5
            node: Any = ClusterStub(follow.channel("node", "n1"))
            code, _ = await failure_of(node.Top(c.TopRequest()))
            assert code == grpc.StatusCode.PERMISSION_DENIED
            agent = await follow.agent()
            reject = (await agent.hear("reject")).reject
            assert (reject.reason, reject.leader) == ("NotLeader", lead.address)
        finally:
            await follow.close()
            await lead.close()
    etcd.close()
