"""A development cluster under faults: nodes without power, cut off or frozen, etcd away, a full disk, a clone.

One cluster for the module; each test leaves it whole again. What runs is read from the kernel, not from Shoal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.deploy.devcluster import cgroups, enter, links
from shoal.deploy.devcluster.plan import DATA_ROOT, NodePlan
from shoal.deploy.devcluster.processes import Process, identify
from tests import images, leaks
from tests.devcluster import Cluster, until
from tests.etcd import binary

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
APPLETS = ("sh", "sleep", "cat", "echo")
HEARTBEAT_MS = 1000  # three missed make a node NotReady
NOTICE_SECONDS = 60.0
REPLACE_SECONDS = 120.0  # the toleration of 5 s, and the replacement's start
SETTLE_SECONDS = 150.0
PATIENCE_SECONDS = 120.0  # the command's own is 30 s
ROOM_BYTES = 64 << 10  # a full disk has less than this: less than any image
FILL_BYTES = 1024  # the small file system's block
# What a full disk does by itself; how pods leave nodes that run short is tests/behaviours/test_pressure.py's.
NO_EVICTION = {
    "eviction": {"hard": {"nodefs.available": 0, "imagefs.available": 0, "nodefs.inodesFree": 0}},
    "image_gc": {"high": 100, "low": 99},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORKLOAD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: %d
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: busy:1
        command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
"""


class World:
    """The cluster, and what can be asked of it and done to it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    # ---- what there is ----
    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["metadata"]["name"]: node for node in self.cluster.objects("nodes")}

    def ready(self, node: str) -> dict[str, Any]:
        """A node's Ready condition."""
        conditions = self.nodes()[node]["status"]["conditions"]
        found: dict[str, Any] = next(c for c in conditions if c["type"] == "Ready")
        return found

    def pods(self) -> dict[str, dict[str, Any]]:
        """By uid."""
        return {pod["metadata"]["uid"]: pod for pod in self.cluster.objects("pods", "-l", "app=app")}

    def running(self) -> dict[str, Process]:
        """Pod uid -> its container, from the kernel; a second one of the same pod fails."""
        containers = list(self.cluster.containers().values())
        assert len({c.pod for c in containers}) == len(containers)
        return {c.pod: c.process for c in containers}

    def busy_node(self) -> NodePlan:
        """A node with a pod of the workload."""
        name = sorted(c.node for c in self.cluster.containers().values())[0]
        return next(node for node in self.cluster.plan.nodes if node.name == name)

    def on(self, node: NodePlan) -> dict[str, Process]:
        return {c.pod: c.process for c in self.cluster.containers().values() if c.node == node.name}

    def part(self, name: str) -> Process:
        process = self.cluster.part(name)
        assert process is not None, f"{name} does not run"
        return process

    # ---- waiting ----
    def unready(self, without: dict[str, Process]) -> str:
        """Why the workload is not whole without these pods; "" when it is."""
        [app] = self.cluster.objects("deployments")
        wanted, there = app["spec"]["replicas"], app["status"].get("readyReplicas", 0)
        pods = self.pods()
        live = [uid for uid in self.running() if uid in pods and pods[uid]["status"]["phase"] == "Running"]
        fresh = [uid for uid in live if uid not in without]
        return "" if there == wanted == len(fresh) else f"{there} of {wanted} ready; {len(fresh)} others run"

    def unsettled(self) -> str:
        """Why the cluster is not whole: every node ready, exactly the wished pods as records and as processes."""
        nodes = [name for name, node in self.nodes().items() if "True" not in ready_status(node)]
        records, processes = set(self.pods()), set(self.running())
        wrong = [f"{name} is not ready" for name in nodes]
        if records != processes:
            wrong.append(f"records {sorted(records)}, but processes of {sorted(processes)}")
        return "; ".join(wrong) or self.unready({})

    def settle(self) -> None:
        until(self.unsettled, SETTLE_SECONDS)

    def until_not_ready(self, node: str) -> None:
        until(lambda: f"{node} is ready" if self.ready(node)["status"] == "True" else "", NOTICE_SECONDS)

    def until_replaced(self, pods: dict[str, Process]) -> None:
        until(lambda: self.unready(pods), REPLACE_SECONDS)
        records = self.pods()
        for uid in pods:
            assert (records[uid]["status"]["phase"], records[uid]["status"]["reason"]) == ("Failed", "Lost")

    def shell(self, node: str) -> Path:
        """The node's root folder, as its own processes see it."""
        return Path(f"/proc/{self.part(f'holder-{node}').pid}/root")


def ready_status(node: dict[str, Any]) -> list[str]:
    return [c["status"] for c in node["status"].get("conditions", []) if c["type"] == "Ready"]


def busybox_image(name: str, extra: bytes = b"") -> bytes:
    members = [images.folder("bin"), images.member("bin/busybox", BUSYBOX.read_bytes(), 0o755)]
    members += [images.symlink(f"bin/{applet}", "busybox") for applet in APPLETS]
    members += [images.member("extra", extra)] if extra else []
    layer = images.layer(*members)
    return images.oci_archive(images.image(layer, names=[f"docker.io/library/{name}"]))


@contextlib.contextmanager
def frozen(process: Process) -> Iterator[None]:
    process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send(signal.SIGCONT)


@contextlib.contextmanager
def unplugged(node: NodePlan) -> Iterator[None]:
    links.ip("link", "set", node.link, "down")
    try:
        yield
    finally:
        links.ip("link", "set", node.link, "up")


def cluster_of(name: str, folder: Path) -> Cluster:
    return Cluster(name, DATA_ROOT / name, {"SHOAL_CONFIG": str(folder / "config")})


# For the module as a whole: its cluster outlives the single test.
clean_machine = pytest.fixture(scope="module", autouse=True)(leaks.clean_machine)


@pytest.fixture(scope="module")
def world(clean_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    cluster = cluster_of(f"faults{os.getpid()}", folder)
    try:
        (folder / "agent.yaml").write_text(yaml.safe_dump(NO_EVICTION))
        flags = ("--nodes", "3", "--heartbeat-ms", str(HEARTBEAT_MS), "--node-disk", "64Mi", "--etcd", binary())
        cluster.up(*flags, "--agent-settings", str(folder / "agent.yaml"))
        images.write(folder, busybox_image("busy:1"), "busy.tar")
        (folder / "app.yaml").write_text(WORKLOAD % 3)
        cluster.shoal("image", "load", str(folder / "busy.tar"))
        cluster.shoal("apply", "-f", str(folder / "app.yaml"), "--wait", "--timeout", "120s")
        yield World(cluster, folder)
    finally:
        cluster.down()


@pytest.fixture(autouse=True)
def whole(world: World) -> Iterator[None]:
    """Every test begins and ends with a whole cluster."""
    world.settle()
    yield
    world.settle()


def test_b94_a_node_without_power_is_replaced_and_comes_back_as_another_boot(world: World) -> None:
    node = world.busy_node()
    lost, others = world.on(node), {u: p for u, p in world.running().items() if u not in world.on(node)}
    boot = world.nodes()[node.name]["status"]["nodeInfo"]["bootID"]
    world.part(f"holder-{node.name}").send(signal.SIGKILL)
    world.until_not_ready(node.name)
    assert world.ready(node.name)["reason"] == "NodeStatusUnknown"
    world.until_replaced(lost)
    assert not world.on(node)
    assert world.cluster.part(f"holder-{node.name}") is None, "a node without power stays off"
    said = world.cluster.up()
    assert "is running" in said
    assert "all 3 node(s) are ready" in said
    world.settle()
    assert world.nodes()[node.name]["status"]["nodeInfo"]["bootID"] != boot
    assert not lost.keys() & world.pods().keys()
    assert others.items() <= world.running().items()


def test_b94_a_node_that_was_cut_off_stops_what_was_replaced(world: World) -> None:
    node = world.busy_node()
    lost, agent = world.on(node), world.part(f"agent-{node.name}")
    with unplugged(node):
        world.until_not_ready(node.name)
        world.until_replaced(lost)
        assert world.on(node) == lost, "without contact its pods run on"
    world.settle()
    assert not lost.keys() & world.running().keys()
    assert world.part(f"agent-{node.name}") == agent


def test_b94_a_frozen_agent_is_replaced_and_stops_its_old_pods_when_it_thaws(world: World) -> None:
    node = world.busy_node()
    lost, agent = world.on(node), world.part(f"agent-{node.name}")
    with frozen(agent):
        world.until_not_ready(node.name)
        world.until_replaced(lost)
        assert world.on(node) == lost
    world.settle()
    assert not lost.keys() & world.running().keys()
    assert world.part(f"agent-{node.name}") == agent


def transitions(world: World) -> dict[str, Any]:
    return {name: (ready_status(node), conditions_of(node)) for name, node in world.nodes().items()}


def conditions_of(node: dict[str, Any]) -> list[str]:
    return [c["lastTransitionTime"] for c in node["status"]["conditions"] if c["type"] == "Ready"]


def test_etcd_that_does_not_answer_is_told_and_judges_no_node(world: World) -> None:
    before, judged = world.running(), transitions(world)
    with frozen(world.part("etcd")):
        start = time.monotonic()
        done = world.cluster.attempt("scale", "deploy/app", "--replicas", "4")
        assert time.monotonic() - start < PATIENCE_SECONDS
        assert done.returncode == 1, done.stdout
        assert "etcd" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert world.running() == before
    until(lambda: "" if world.nodes() else "no nodes", SETTLE_SECONDS)
    scale(world, 4)
    assert transitions(world) == judged
    assert before.items() <= world.running().items()
    scale(world, 3)


def scale(world: World, replicas: int) -> None:
    world.cluster.shoal("scale", "deploy/app", "--replicas", str(replicas))
    until(lambda: "" if len(world.running()) == replicas else "not scaled yet", SETTLE_SECONDS)
    world.settle()


def test_a_command_waits_for_etcd_to_come_back_and_nothing_restarts(world: World) -> None:
    before, judged = world.running(), transitions(world)
    with frozen(world.part("keeper")):
        etcd = world.part("etcd")
        etcd.send(signal.SIGKILL)
        assert etcd.wait(NOTICE_SECONDS)
        command = [sys.executable, "-m", "shoal.deploy.cli.main", "scale", "deploy/app", "--replicas", "4"]
        environment = {**os.environ, **world.cluster.environment}
        waiting = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: "" if not master_ready(world.cluster, 0) else "the master calls itself ready", NOTICE_SECONDS)
        assert world.running() == before
    out, err = waiting.communicate(timeout=PATIENCE_SECONDS)
    assert waiting.returncode == 0, err
    assert "scaled" in out
    assert world.part("etcd") != etcd
    world.settle()
    assert before.items() <= world.running().items()
    assert transitions(world) == judged
    scale(world, 3)


def fetch(port: int, path: str) -> str:
    """A page of a master's; its text also when it says 503."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.read().decode()
    except OSError as fault:
        return f"no answer: {fault}"


def master_ready(cluster: Cluster, index: int) -> bool:
    return fetch(cluster.plan.http_ports[index], "/readyz").strip() == "ok"


def test_a_full_disk_under_a_node_touches_no_pod_and_is_told(world: World) -> None:
    node, before = world.busy_node(), world.running()
    pod = next(iter(world.on(node)))
    name = world.pods()[pod]["metadata"]["name"]
    archive = images.write(world.folder, busybox_image("more:1", os.urandom(4 << 20)), "more.tar")
    filler = world.shell(node.name) / str(DATA_ROOT / world.cluster.name / "nodes" / node.name / "data/filler")[1:]
    try:
        fill(filler)
        done = world.cluster.attempt("image", "load", "--node", node.name, str(archive))
        assert done.returncode == 1
        assert "full" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert world.cluster.shoal("exec", name, "--", "echo", "alive").strip() == "alive"
        assert world.running() == before
        before[pod].send(signal.SIGKILL)
        until(lambda: not_told(world, pod), NOTICE_SECONDS)
    finally:
        filler.unlink(missing_ok=True)
    world.settle()
    assert world.pods()[pod]["status"]["containerStatuses"][0]["restartCount"] == 1
    after = world.running()
    assert {u: p for u, p in after.items() if u != pod} == {u: p for u, p in before.items() if u != pod}
    said = world.cluster.shoal("image", "load", "--node", node.name, str(archive))
    assert f"{node.name}: done" in said
    world.cluster.shoal("image", "rm", "more:1", "--node", node.name)
    assert world.running() == after


def not_told(world: World, pod: str) -> str:
    """Whether the pod's status tells how its container ended, and why it has not started again."""
    status = world.pods()[pod]["status"]["containerStatuses"][0]
    ended, waits = status.get("lastState", {}).get("terminated", {}), status["state"].get("waiting", {})
    told = ended.get("exitCode") == 137 and "disk is full" in waits.get("message", "")
    return "" if told and waits["reason"] == "CreateContainerError" else f"{status}"


def fill(path: Path) -> None:
    """Takes all of the file system's space."""
    space = os.statvfs(path.parent)
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - ROOM_BYTES)
        file.seek(0, os.SEEK_END)
        while file.write(bytes(FILL_BYTES)):
            pass
    assert os.statvfs(path.parent).f_bavail * space.f_frsize < ROOM_BYTES


WRITER = """
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {a: "%s", b: "%s"}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busy:1
    command: [sh, -c, "i=0; while sleep 0.1; do i=$((i+1)); echo line $i; echo $i >/v/count; done 2>/dev/null"]
    volumeMounts: [{name: v, mountPath: /v}, {name: conf, mountPath: /conf}]
  volumes: [{name: v, emptyDir: {}}, {name: conf, configMap: {name: conf}}]
"""
LATE = """
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: busy:1, command: [sleep, "1000"], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, emptyDir: {}}]
"""


def test_a_full_disk_holds_back_what_is_written_and_harms_no_writer(world: World) -> None:
    """A pod's log, its volume and a ConfigMap in it; and a pod that comes meanwhile says why it waits."""
    node, shoal = world.busy_node(), world.cluster.shoal
    applied(world, WRITER % ("1", "1", node.name))
    until(lambda: "" if "line 3\n" in shoal("logs", "writer") else "it does not write", SETTLE_SECONDS)
    before, judged = world.running(), transitions(world)
    [record] = [p for p in world.cluster.objects("pods") if p["metadata"]["name"] == "writer"]
    writer = before[record["metadata"]["uid"]]
    conf = [Path(f"/proc/{writer.pid}/root/conf/{name}") for name in "ab"]
    filler = world.shell(node.name) / str(DATA_ROOT / world.cluster.name / "nodes" / node.name / "data/filler")[1:]
    try:
        fill(filler)
        applied(world, WRITER % ("2", "2", node.name))
        applied(world, LATE % node.name)
        until(
            lambda: "" if "full" in (said := waiting(world, "late")) or "space" in said else said or "-", NOTICE_SECONDS
        )
        assert [path.read_text() for path in conf] in (["1", "1"], ["2", "2"]), "whole, or not at all"
        assert before.items() <= world.running().items()
    finally:
        filler.unlink(missing_ok=True)
    until(lambda: "" if [path.read_text() for path in conf] == ["2", "2"] else "not updated", SETTLE_SECONDS)
    until(lambda: waiting(world, "late"), SETTLE_SECONDS)
    count = Path(f"/proc/{writer.pid}/root/v/count")
    seen = count.read_text().strip()
    until(lambda: "" if f"line {int(seen or 0) + 3}\n" in shoal("logs", "writer") else "the log stands", SETTLE_SECONDS)
    assert before.items() <= world.running().items()
    assert transitions(world) == judged
    shoal("delete", "pod", "writer", "late")
    shoal("delete", "configmap", "conf")


def applied(world: World, text: str) -> None:
    (world.folder / "more.yaml").write_text(text)
    world.cluster.shoal("apply", "-f", str(world.folder / "more.yaml"))


def waiting(world: World, name: str) -> str:
    """Why a pod's container waits; "" when it runs."""
    [pod] = [p for p in world.cluster.objects("pods") if p["metadata"]["name"] == name]
    [status] = pod["status"].get("containerStatuses", [{"state": {"waiting": {"message": "nobody has it yet"}}}])
    return (
        "" if "running" in status["state"] else str(status["state"].get("waiting", {}).get("message", status["state"]))
    )


def test_a_frozen_agent_does_not_hold_up_a_rollout_for_ever(world: World) -> None:
    node = world.busy_node()
    old = set(world.running())
    agent = world.part(f"agent-{node.name}")

    def outdated() -> str:
        [app] = world.cluster.objects("deployments")
        status = app["status"]
        counts = [status.get(name, 0) for name in ("updatedReplicas", "readyReplicas", "availableReplicas")]
        return (
            "" if counts == [3, 3, 3] and status["observedGeneration"] == app["metadata"]["generation"] else f"{status}"
        )

    with frozen(agent):
        applied(world, (WORKLOAD % 3).replace("3600", "3601"))
        until(outdated, SETTLE_SECONDS)
        fresh = {uid for uid, pod in world.pods().items() if "3601" in str(pod["spec"])} & set(world.running())
        assert len(fresh) == 3
        assert old & set(world.running()), "what the frozen agent has runs on"
    world.settle()
    assert set(world.running()) == fresh
    assert world.part(f"agent-{node.name}") == agent
    applied(world, WORKLOAD % 3)
    until(outdated, SETTLE_SECONDS)


@contextlib.contextmanager
def clone(world: World, of: NodePlan, at: NodePlan) -> Iterator[Path]:
    """An agent with the certificate of one node on the machine of another; yields its log."""
    plan, folder = world.cluster.plan, world.folder / "clone"
    folder.mkdir()
    config = yaml.safe_load((plan.node_folder(of.name) / "agent.yaml").read_text())
    cgroup = f"{plan.cgroup}/{at.name}-clone"
    config |= {"address": at.address, "data": str(folder / "data"), "run": "/run/clone", "cgroup": cgroup, "http": []}
    (folder / "agent.yaml").write_text(yaml.safe_dump(config))
    cgroups.make(cgroup, 0)
    procs = cgroups.procs_files(cgroup)
    holder = world.part(f"holder-{at.name}").pid
    command = [sys.executable, enter.__file__, str(holder), ",".join(map(str, procs)), "--", sys.executable]
    command += ["-m", "shoal.agent.main", "--config", str(folder / "agent.yaml")]
    log = folder / "log"
    with log.open("wb") as err:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=err, check=True, timeout=NOTICE_SECONDS)
    agent = identify(int(done.stdout))
    try:
        assert agent is not None
        yield log
    finally:
        if agent is not None:
            agent.end(0)  # first, or it would start another spawner
        for pid in {int(pid) for file in procs for pid in file.read_text().split()}:
            if (process := identify(pid)) is not None:
                process.end(0)
        assert cgroups.remove(cgroup) == []
        shutil.rmtree(folder)


def test_a_cloned_agent_is_refused_loudly_and_the_first_is_not_touched(world: World) -> None:
    first = world.busy_node()
    other = next(node for node in world.cluster.plan.nodes if node != first)
    before, agent, judged = world.running(), world.part(f"agent-{first.name}"), transitions(world)
    with clone(world, first, other) as log:
        refused = "refused (Cloned)"
        until(lambda: "" if refused in log.read_text() else f"the clone says {log.read_text()!r}", SETTLE_SECONDS)
        assert "two machines call themselves node" in log.read_text()
        said = world.cluster.shoal("events", "-A", "--for", f"node/{first.name}")
        assert "Cloned" in said
        name = next(p["metadata"]["name"] for u, p in world.pods().items() if u in world.on(first))
        assert world.cluster.shoal("exec", name, "--", "echo", "alive").strip() == "alive"
    assert (world.running(), world.part(f"agent-{first.name}"), transitions(world)) == (before, agent, judged)


def test_up_twice_says_so(world: World) -> None:
    parts = {name: world.part(name) for name in world.cluster.part_names()}
    assert f"cluster {world.cluster.name} is running" in world.cluster.up()
    assert {name: world.part(name) for name in world.cluster.part_names()} == parts


def test_without_root_up_and_down_say_why() -> None:
    for verb in ("up", "down"):
        # A user namespace without a mapping: nobody, who may still read a checkout that only root can enter
        command = ["unshare", "--user", sys.executable, "-m", "shoal.deploy.cli.main", verb, "--name", "nobodys"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=NOTICE_SECONDS)
        assert done.returncode == 1, done.stderr
        assert f"`shoal {verb}` needs root" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (DATA_ROOT / "nobodys").exists()


def leader(cluster: Cluster) -> int | None:
    """The index of the master that leads."""
    for index, port in enumerate(cluster.plan.http_ports):
        if f'leader_election_master_status{{name="master-{index}"}} 1.0' in fetch(port, "/metrics"):
            return index
    return None


def test_a_second_cluster_with_two_masters_stands_beside_it_and_outlives_its_leader(world: World) -> None:
    before = world.running()
    other = World(cluster_of(f"{world.cluster.name}b", world.folder), world.folder)
    cluster = other.cluster
    try:
        heartbeat = ("--heartbeat-ms", str(HEARTBEAT_MS), "--etcd", binary())
        cluster.up("--nodes", "1", "--masters", "2", *heartbeat)
        cluster.shoal("image", "load", str(world.folder / "busy.tar"))
        (world.folder / "one.yaml").write_text(WORKLOAD % 1)
        cluster.shoal("apply", "-f", str(world.folder / "one.yaml"), "--wait", "--timeout", "120s")
        take_the_leader_away(other)
        assert world.running() == before
    finally:
        said = cluster.down()
    assert f"cluster {cluster.name} is gone" in said
    assert f"there is no cluster {cluster.name}: nothing to do" in cluster.down()
    assert world.running() == before


def take_the_leader_away(world: World) -> None:
    """The other master takes over, the node's session moves to it, and nothing restarts."""
    cluster, before = world.cluster, world.running()
    agent, first = world.part("agent-node-1"), leader(cluster)
    assert first is not None
    with frozen(world.part("keeper")):  # so that the first does not come back and win again
        world.part(f"master-{first}").send(signal.SIGKILL)
        until(lambda: "" if leader(cluster) == 1 - first else "no other master leads yet", NOTICE_SECONDS)
        [name] = [pod["metadata"]["name"] for pod in world.pods().values()]

        def unreached() -> str:
            done = cluster.attempt("exec", name, "--", "echo", "alive")
            return "" if done.stdout.strip() == "alive" else done.stderr

        until(unreached, SETTLE_SECONDS)
        assert (world.running(), world.part("agent-node-1")) == (before, agent)
    world.settle()
    assert (world.running(), world.part("agent-node-1")) == (before, agent)
