"""`shoal agent --hollow` against a real master with a real etcd: nodes join, pods run and go, the process dies."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.etcd import Server as EtcdServer
from tests.masterproc import MasterProcess, stub_of

NODES, REPLICAS = 30, 100


class Hollow:
    """The process, started again at will."""

    def __init__(self, master: MasterProcess, folder: Path) -> None:
        self._command = [sys.executable, "-m", "shoal.deploy.cli.main", "agent", "--hollow", str(NODES)]
        self._command += ["--authority", str(master.folder / "certs"), "--master", master.address]
        self._command += ["--hollow-zones", "3", "--hollow-cpu", "2", "--hollow-pods", "20"]
        self._log = folder / "hollow.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(timeout=30)

    def output(self) -> str:
        return self._log.read_text()


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[Any, Hollow]]:
    etcd = EtcdServer(tmp_path / "etcd")
    await etcd.start()
    master = MasterProcess(tmp_path, etcd)
    hollow = Hollow(master, tmp_path)
    try:
        master.start()
        async with master.channel() as channel:
            await master.until_leading(stub_of(channel))
            hollow.start()
            yield stub_of(channel), hollow
    finally:
        if hollow.process is not None:
            hollow.end()
        master.close()
        etcd.remove()


async def listed(stub: Any, kind: str, cls: Any) -> list[Any]:
    try:
        return [cls.FromString(one.body) for one in (await stub.List(c.ListRequest(kind=kind))).objects]
    except grpc.aio.AioRpcError:
        return []


async def until(stub: Any, hollow: Hollow, kind: str, cls: Any, enough: Callable[[list[Any]], bool]) -> list[Any]:
    found: list[Any] = []
    try:
        async with asyncio.timeout(60):
            while not enough(found := await listed(stub, kind, cls)):
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"not reached with {len(found)} of {kind}: {found[:1]}; {hollow.output()[-2000:]}")
    return found


def ready(node: o.Node) -> bool:
    return any(x.type == "Ready" and x.status == "True" for x in node.status.conditions)


def deployment() -> o.Deployment:
    made = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    made.metadata.name, made.metadata.namespace = "web", "default"
    made.spec.replicas = REPLICAS
    made.spec.selector.matchLabels["app"] = "web"
    made.spec.template.metadata.labels["app"] = "web"
    container = made.spec.template.spec.containers.add(name="c", image="app:1")
    container.resources.requests["cpu"].text = "100m"
    return made


@pytest.mark.slow
async def test_thirty_nodes_join_hold_a_deployment_lose_it_and_come_back(cluster: tuple[Any, Hollow]) -> None:
    stub, hollow = cluster
    nodes = await until(stub, hollow, "Node", o.Node, lambda found: sum(map(ready, found)) == NODES)
    assert {n.metadata.labels["topology.kubernetes.io/zone"] for n in nodes} == {"zone-0", "zone-1", "zone-2"}
    assert {n.status.allocatable["cpu"].text for n in nodes} == {"2"}

    body = deployment().SerializeToString()
    answer = await stub.Create(c.WriteRequest(request_id="d", objects=[c.Object(kind="Deployment", body=body)]))
    assert answer.results[0].action == "created", answer
    await until(
        stub, hollow, "Deployment", o.Deployment, lambda found: all(d.status.readyReplicas == REPLICAS for d in found)
    )
    pods = await listed(stub, "Pod", o.Pod)
    assert {pod.status.phase for pod in pods} == {"Running"} and len(pods) == REPLICAS
    assert len({pod.status.podIP for pod in pods}) == REPLICAS

    logs = c.LogsRequest(pod=c.Key(kind="Pod", namespace="default", name=pods[0].metadata.name))
    assert "hollow" in [frame async for frame in stub.Logs(logs)][-1].end.error

    hollow.end()
    await until(stub, hollow, "Node", o.Node, lambda found: not any(map(ready, found)))
    hollow.start()
    await until(stub, hollow, "Node", o.Node, lambda found: sum(map(ready, found)) == NODES)

    key = c.Key(kind="Deployment", namespace="default", name="web")
    await stub.Delete(c.DeleteRequest(request_id="gone", keys=[key]))
    await until(stub, hollow, "Pod", o.Pod, lambda found: not found)
    async with asyncio.timeout(10):
        while f"{NODES} of {NODES} hollow nodes have a session, 0 pods" not in hollow.output():
            await asyncio.sleep(0.1)
    assert hollow.end(signal.SIGTERM) == 0


async def test_wrong_flags_are_refused_with_what_to_do(tmp_path: Path) -> None:
    def refused(*flags: str) -> str:
        command = [sys.executable, "-m", "shoal.deploy.cli.main", "agent", "--hollow", "2", "--master", "m:1", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        return done.stderr

    assert "--authority" in refused("--authority", str(tmp_path))
    assert "--hollow-cpu" in refused("--hollow-cpu", "many") and "--hollow-cpu -1" in refused("--hollow-cpu=-1")
    assert "KEY=VALUE" in refused("--hollow-labels", "zone")
    assert "--hollow-labels" in refused("--hollow-labels", "a b=c")
    assert "Big" in refused("--hollow-name", "Big")
    assert "--nothing" in refused("--nothing")
