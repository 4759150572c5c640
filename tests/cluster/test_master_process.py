"""The master as a program, with a real etcd: start, failover, etcd away, metrics, bad configuration."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio

from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from shoal.proto.v1.session_pb2_grpc import AgentsStub
from tests.etcd import Server as EtcdServer
from tests.masterproc import MasterProcess, stub_of

ROOT = Path(__file__).resolve().parents[2]
PROMTOOL = ROOT / ".tools/prometheus/usr/bin/promtool"


@pytest_asyncio.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(tmp_path / "etcd")
    await server.start()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def masters(tmp_path: Path, etcd: EtcdServer) -> Any:
    made = [MasterProcess(tmp_path, etcd, f"master-{number}") for number in range(2)]
    yield made
    for master in made:
        master.close()


def pod(name: str) -> c.Object:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name = name
    made.spec.containers.add(name="c", image="i")
    return c.Object(kind="Pod", body=made.SerializeToString())


def write(name: str) -> c.WriteRequest:
    return c.WriteRequest(request_id=name, objects=[pod(name)])


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def retried(call: Any, request: Any) -> Any:
    """As clients do: the same request until it is answered."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await call(request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                await asyncio.sleep(0.1)


async def test_it_starts_serves_and_ends_on_sigterm(masters: list[MasterProcess], tmp_path: Path) -> None:
    master = masters[0]
    master.settings["heartbeat_ms"] = 60_000  # the node says nothing after its first words
    master.start()
    async with master.channel() as channel, master.channel("node", "n1") as agents:
        stub = stub_of(channel)
        await master.until_leading(stub)
        assert (await stub.Create(write("a"))).results[0].action == "created"
        call: Any = AgentsStub(agents).Session()
        hello = s.Hello(protocol_min=1, protocol_max=1, node="n1", instance_id="i", boot_id="b")
        hello.report.addresses.add(type="InternalIP", address="10.0.0.7")
        hello.report.metrics_port = 9100
        hello.report.capacity["cpu"].text = "1500m"
        await call.write(s.Up(hello=hello))
        assert (await call.read()).welcome.pod_cidr
        http = f"http://127.0.0.1:{master.http_port}"
        assert await get(f"{http}/healthz") == (200, "ok\n")
        assert await get(f"{http}/readyz") == (200, "ok\n")
        assert await get(f"{http}/sd/nodes") == (200, '[{"targets": ["10.0.0.7:9100"], "labels": {"node": "n1"}}]')
        _, metrics = await get(f"{http}/metrics")
        check_metrics(metrics)
    assert master.stop() == 0
    assert "Traceback" not in master.output()


def check_metrics(text: str) -> None:
    for line in (
        'kube_pod_status_phase{namespace="default",phase="Pending",pod="a"',
        'kube_node_status_capacity{node="n1",resource="cpu",unit="core"} 1.5',
        'apiserver_request_total{code="OK",verb="Create"} 1.0',
        'leader_election_master_status{name="master-0"} 1.0',
        "shoal_agent_sessions 1.0",
        'etcd_request_duration_seconds_count{operation="txn"}',
        "scheduler_schedule_attempts_total",
        "scheduler_pending_pods",
    ):
        assert line in text, line
    assert PROMTOOL.exists(), "run `bash deploy/setup.sh test`: it unpacks promtool"
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_another_master_takes_over(masters: list[MasterProcess], how: signal.Signals) -> None:
    first, second = masters
    first.start()
    async with first.channel() as channel, second.channel() as other:
        await first.until_leading(stub_of(channel))
        second.start()
        follower: Any = stub_of(other)
        response = await retried(follower.Create, write("before"))  # forwarded
        assert response.results[0].action == "created"
        epoch = (await retried(follower.Version, c.VersionRequest())).epoch
        first.stop(how)
        response = await retried(follower.Create, write("after"))
        assert response.results[0].action == "created"
        listed = await follower.List(c.ListRequest(kind="Pod"))
        assert [o.Pod.FromString(obj.body).metadata.name for obj in listed.objects] == ["after", "before"]
        assert (await follower.Version(c.VersionRequest())).epoch > epoch


async def test_etcd_away_is_said_and_survived(masters: list[MasterProcess], etcd: EtcdServer) -> None:
    master = masters[0]
    master.start()
    async with master.channel() as channel:
        stub: Any = stub_of(channel)
        await master.until_leading(stub)
        etcd.freeze()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Create(write("a"))
        failure = c.Failure.FromString(dict(caught.value.trailing_metadata() or ())["shoal-failure-bin"])
        assert failure.retryable
        assert "etcd" in failure.message
        etcd.thaw()
        assert (await retried(stub.Create, write("a"))).results[0].action == "created"
    assert "Traceback" not in master.output()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal.master.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_wrong_configuration_is_explained_at_once(tmp_path: Path) -> None:
    path = tmp_path / "master.yaml"
    path.write_text("name: m\nlisten: [7000]\nadvertize: x:1\ncluster_cidr: 10.0.0.1/16\nheartbeat_ms: no\n")
    done = run("--config", str(path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for words in (
        "did you mean advertise?",
        "listen: must be a list",
        "cluster_cidr",
        "heartbeat_ms",
        "ca: is missing",
    ):
        assert words in done.stderr
    missing = run("--config", str(tmp_path / "none.yaml"))
    assert (missing.returncode, "cannot be read" in missing.stderr) == (1, True)


async def test_a_port_in_use_is_explained(masters: list[MasterProcess]) -> None:
    first, second = masters
    second.port, second.address = first.port, first.address
    first.start()
    async with first.channel() as channel:
        await first.until_leading(stub_of(channel))
        second.start()
        assert await second.ended() == 1
        assert f"cannot listen on {first.address}" in second.output()
        assert "Traceback" not in second.output()
