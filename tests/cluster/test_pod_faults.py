"""Deaths in the midst: each part is killed while a pod pulls, begins, is probed, is updated, ends or is evicted.

After each the wished state has come about as if nothing had been: nothing twice, nothing half done, no restart too
many. On each node a bystander's process must be the same from the first test to the last but the reboot.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.deploy.demo import oci_writer
from shoal.deploy.devcluster.plan import DATA_ROOT
from shoal.deploy.devcluster.processes import Process
from tests import images, leaks
from tests.behaviours.test_storage import claim, volumes, with_claim
from tests.behaviours.world import Object, World, busybox_image, busybox_layer, config_map, container, pod, secret
from tests.cluster.pod_faults import (
    BACK_SECONDS,
    Fact,
    Held,
    facts,
    held_registry,
    inside,
    main_of,
    restarts,
    settled,
    until_file,
    until_gone,
    victim,
)
from tests.devcluster import Cluster, until
from tests.etcd import binary, free_port

HEARTBEAT_MS = 2000
SLEEP = "exec sleep 100000"
OFTEN = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 30}  # a busy machine is slow to answer
NODES = ("node-1", "node-2")
ON_NODE = sorted(("agent", "spawner", "supervisor"))
EVERY = (*ON_NODE, "master", "etcd")
STAY = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 600}
    for taint in ("unreachable", "not-ready")
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


# For the module as a whole: its cluster outlives the single test.
clean_machine = pytest.fixture(scope="module", autouse=True)(leaks.clean_machine)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(clean_machine: None, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("podfaults")
    name = f"podfaults{os.getpid()}"
    made = Cluster(name, DATA_ROOT / name, {"SHOAL_CONFIG": str(folder / "config")})
    try:
        mirror = ("--registry-mirror", f"registry.test=http://gateway:{port}")
        made.up("--nodes", "2", "--heartbeat-ms", str(HEARTBEAT_MS), "--etcd", binary(), *mirror)
        made.shoal("image", "load", str(images.write(folder, busybox_image(), "busy.tar")))
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def bystanders(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A pod on each node, which nothing that happens to others may touch."""
    world = World(cluster, tmp_path_factory.mktemp("bystanders"))
    for node in NODES:
        probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 30}
        made = container(SLEEP, livenessProbe=probe, readinessProbe=probe)
        world.apply(pod(f"by-{node}", made, nodeName=node, tolerations=STAY))
    for node in NODES:
        world.ready(f"by-{node}")
    yield world
    world.close()


def state_of(bystanders: World) -> list[tuple[set[Fact], dict[str, int], list[str]]]:
    """Their processes, restarts, and since when their conditions are as they are."""
    pods = [bystanders.pod(f"by-{node}") for node in NODES]
    return [
        (
            # Probes come and go: only what has been there from the beginning counts
            {fact for fact in facts(bystanders.cluster, pod["metadata"]["uid"]) if fact[1] in _firsts(bystanders, pod)},
            restarts(pod),
            [condition["lastTransitionTime"] for condition in pod["status"]["conditions"]],
        )
        for pod in pods
    ]


def _firsts(world: World, pod: Object) -> set[int]:
    found = world.cluster.containers().items()
    return {container.process.pid for (uid, _), container in found if uid == pod["metadata"]["uid"]}


@pytest.fixture
def world(cluster: Cluster, bystanders: World, tmp_path: Path) -> Iterator[World]:
    """A namespace; before and after the cluster is whole, and the bystanders are as they were."""
    until(lambda: settled(cluster), BACK_SECONDS)
    before, made = state_of(bystanders), World(cluster, tmp_path)
    try:
        yield made
    finally:
        until(lambda: settled(cluster), BACK_SECONDS)
        made.close()
    assert state_of(bystanders) == before
    until(lambda: "" if not _left(cluster, bystanders) else f"left: {_left(cluster, bystanders)}", BACK_SECONDS)


def _left(cluster: Cluster, bystanders: World) -> set[str]:
    """Pods other than the bystanders that still have processes."""
    own = {bystanders.pod(f"by-{node}")["metadata"]["uid"] for node in NODES}
    return {uid for uid, _ in cluster.containers()} - own


def uid_of(world: World, name: str = "p") -> str:
    return str(world.pod(name)["metadata"]["uid"])


def on_one(name: str, *containers: Object, **spec: object) -> Object:
    return pod(name, *containers, nodeName="node-1", **spec)


def shared(*scripts: tuple[str, str], **fields: object) -> list[Object]:
    """Containers with the volume v at /v."""
    return [
        container(script, name, volumeMounts=[{"name": "v", "mountPath": "/v"}], **fields) for name, script in scripts
    ]


EMPTY: Object = {"volumes": [{"name": "v", "emptyDir": {}}]}


# ---- pulling ----
@pytest.fixture(scope="module")
def registry(cluster: Cluster, port: int) -> Iterator[Held]:
    with held_registry(cluster.plan.gateway, port) as held:
        yield held


@pytest.mark.parametrize("kind", EVERY)
def test_a_death_in_mid_pull(world: World, registry: Held, kind: str) -> None:
    registry.hold()
    layer = images.layer(*busybox_layer(), images.member("mark", os.urandom(300_000)))
    registry.publish(oci_writer.layout([images.image(layer, names=["1"])]), kind)
    name = f"registry.test/slow/app:{kind}"
    world.apply(on_one("p", {**container(SLEEP), "image": name}))
    assert registry.halfway.wait(BACK_SECONDS), "nobody asked for the layer"
    doomed = victim(world.cluster, kind, "node-1", uid_of(world))
    if doomed.find() is None:
        pytest.skip("a pod that has started nothing has none")
    doomed.die()
    registry.go.set()
    found = world.ready("p")
    assert restarts(found) == {"main": 0}
    staging = world.cluster.data / "nodes/node-1/images/staging"
    until(lambda: "" if not list(staging.glob("*")) else f"left of a pull: {list(staging.glob('*'))}", BACK_SECONDS)


# ---- beginning ----
@pytest.mark.parametrize("kind", EVERY)
def test_a_death_between_two_init_containers(world: World, kind: str) -> None:
    """It is frozen while the first ends, and killed before it could have known."""
    first, second = shared(
        ("one", "echo one >>/v/ran; until [ -e /v/go ]; do sleep 0.1; done"), ("two", "echo two >>/v/ran")
    )
    [app] = shared(("main", f"echo main >>/v/ran; {SLEEP}"))
    world.apply(on_one("p", app, initContainers=[first, second], **EMPTY))
    one = main_of(world, "p", "one")
    until_file(inside(one, "/v/ran"), "one")
    doomed = victim(world.cluster, kind, "node-1", uid_of(world))
    old = doomed.freeze()
    inside(one, "/v/go").touch()
    if kind not in ("spawner", "supervisor"):
        until(lambda: "one runs" if one.alive() else "", BACK_SECONDS)
    old.send(signal.SIGKILL)
    doomed.replaced(old)
    found = world.ready("p")
    assert restarts(found) == {"one": 0, "two": 0, "main": 0}
    until_file(inside(main_of(world, "p"), "/v/ran"), "one\ntwo\nmain\n", whole=True)


@pytest.mark.parametrize("kind", EVERY)
def test_a_death_during_post_start(world: World, kind: str) -> None:
    hook = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo x >>/v/hook; until [ -e /v/go ]; do sleep 0.1; done"]}}
    }
    world.apply(on_one("p", *shared(("main", SLEEP), lifecycle=hook), **EMPTY))
    app = main_of(world, "p")
    until_file(inside(app, "/v/hook"), "x")
    victim(world.cluster, kind, "node-1", uid_of(world)).die()
    assert app.alive()
    inside(app, "/v/go").touch()
    found = world.ready("p")
    assert restarts(found) == {"main": 0}
    assert main_of(world, "p") == app
    assert inside(app, "/v/hook").read_text() in ("x\n", "x\nx\n"), "once, or once more by who came after"


# ---- running ----
@pytest.mark.parametrize("kind", EVERY)
def test_a_death_while_probes_run(world: World, kind: str) -> None:
    """No flap, no restart; and the probes go on: one that fails afterwards is heard."""
    liveness = {
        "exec": {"command": ["sh", "-c", "echo x >>/v/asked; [ ! -e /v/sick ]"]},
        **OFTEN,
    }
    readiness = {"exec": {"command": ["true"]}, **OFTEN}
    world.apply(on_one("p", *shared(("main", SLEEP), livenessProbe=liveness, readinessProbe=readiness), **EMPTY))
    before = world.ready("p")["status"]["conditions"]
    app, doomed = main_of(world, "p"), victim(world.cluster, kind, "node-1", uid_of(world))
    asked = inside(app, "/v/asked")
    until_file(asked, "x")
    doomed.die()
    count = len(asked.read_text())
    until(lambda: "" if len(asked.read_text()) > count + 4 else "the probes do not go on", BACK_SECONDS)
    until(lambda: settled(world.cluster), BACK_SECONDS)
    after = world.ready("p")
    assert (restarts(after), main_of(world, "p")) == ({"main": 0}, app)
    assert after["status"]["conditions"] == before
    volume = os.open(inside(app, "/v"), os.O_RDONLY | os.O_DIRECTORY)  # it outlives each run
    inside(app, "/v/sick").touch()
    until(lambda: "the sick one lives" if app.alive() else "", BACK_SECONDS)
    os.unlink("sick", dir_fd=volume)
    os.close(volume)
    world.until("p", "restarted", lambda found: restarts(found)["main"] >= 1)


@pytest.mark.parametrize("kind", ["agent", "master", "etcd"])
def test_a_death_while_a_config_map_updates(world: World, kind: str) -> None:
    """The container sees the old one or the new one whole, and the new one in the end."""
    world.apply(config_map("conf", {"a": "0", "b": "0"}))
    look = 'a=$(cat a) && b=$(cat b) && [ "$a" != "$b" ] && echo "$a $b" >>/v/torn'  # a generation that went fails
    script = f"while :; do cd /c/..data && {look}; usleep 5000; done 2>/dev/null"
    mounts = [{"name": "c", "mountPath": "/c"}, {"name": "v", "mountPath": "/v"}]
    volumes = [*EMPTY["volumes"], {"name": "c", "configMap": {"name": "conf"}}]
    world.apply(on_one("p", container(script, volumeMounts=mounts), volumes=volumes))
    world.ready("p")
    app, doomed = main_of(world, "p"), victim(world.cluster, kind, "node-1")
    for value in ("1", "2"):
        old = doomed.running()
        command = [sys.executable, "-m", "shoal.deploy.cli.main", "apply", "--context", world.cluster.name]
        command += ["-n", world.namespace, "-f", world.write(config_map("conf", {"a": value, "b": value}))]
        updating = subprocess.Popen(command, env={**os.environ, **world.cluster.environment}, stdout=subprocess.PIPE)
        if value == "1":
            old.send(signal.SIGSTOP)
        old.send(signal.SIGKILL)
        doomed.replaced(old)
        updating.communicate(timeout=BACK_SECONDS)
        assert updating.returncode == 0
        until_file(inside(app, "/c/a"), value)
        until_file(inside(app, "/c/b"), value)
    assert not inside(app, "/v/torn").exists()
    assert main_of(world, "p") == app


@pytest.mark.parametrize("kind", ["agent", "master", "etcd"])
def test_a_death_while_a_claim_is_bound(world: World, kind: str) -> None:
    doomed = victim(world.cluster, kind, "node-1")
    world.apply(claim("data"))
    world.apply(with_claim("p", f"echo kept >>/data/file; {SLEEP}", nodeSelector={"kubernetes.io/hostname": "node-1"}))
    doomed.die()
    world.ready("p")
    until_file(inside(main_of(world, "p"), "/data/file"), "kept\n", whole=True)
    [volume] = volumes(world)
    assert volume["spec"]["claimRef"]["name"] == "data"
    assert world.get("pvc", "data")["status"]["phase"] == "Bound"


@pytest.mark.parametrize("kind", ON_NODE)
def test_a_death_beside_containers_that_share_their_processes(world: World, kind: str) -> None:
    world.apply(on_one("p", container(SLEEP), container("exec sleep 99999", "other"), shareProcessNamespace=True))
    world.ready("p")
    uid = uid_of(world)
    before = facts(world.cluster, uid)
    assert len(before) >= 3, "two containers and who reaps"
    victim(world.cluster, kind, "node-1", uid).die()
    until(lambda: settled(world.cluster), BACK_SECONDS)
    until(lambda: world.attempt("exec", "p", "-c", "main", "--", "true").stderr, BACK_SECONDS)
    seen = world.exec("p", "ps", "-o", "args", container="other")
    assert "sleep 100000" in seen and "sleep 99999" in seen
    assert facts(world.cluster, uid) == before
    [(_, pid, _)] = [fact for fact in before if _is(fact, "sleep 99999")]
    os.kill(pid, signal.SIGKILL)
    found = world.until("p", "restarted", lambda found: restarts(found)["other"] == 1 and _all_run(found))
    assert restarts(found)["main"] == 0
    assert len(before & facts(world.cluster, uid)) == len(before) - 1


def _is(fact: Fact, command: str) -> bool:
    return Path(f"/proc/{fact[1]}/cmdline").read_bytes().replace(b"\0", b" ").strip() == command.encode()


def _all_run(found: Object) -> bool:
    return all("running" in one["state"] for one in found["status"]["containerStatuses"])


@pytest.mark.parametrize("kind", EVERY)
def test_a_death_under_an_open_attach(world: World, kind: str) -> None:
    """It goes on or ends with words; the container does not notice, and can be attached to again."""
    script = "i=0; while read line; do echo got $line; done"
    world.apply(on_one("p", container(script, stdin=True)))
    world.ready("p")
    app = main_of(world, "p")
    command = [sys.executable, "-m", "shoal.deploy.cli.main", "attach", "--context", world.cluster.name]
    command += ["-n", world.namespace, "-i", "p"]
    environment = {**os.environ, **world.cluster.environment}
    with open(world.folder / "out", "wb") as out, open(world.folder / "err", "wb") as err:
        attached = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment)
    try:
        assert attached.stdin is not None
        attached.stdin.write(b"one\n")
        attached.stdin.flush()
        until_file(world.folder / "out", "got one")
        victim(world.cluster, kind, "node-1", uid_of(world)).die()
        until(lambda: settled(world.cluster), BACK_SECONDS)
    finally:
        attached.kill()
        attached.communicate()
    said = (world.folder / "err").read_text()
    assert "Traceback" not in said
    assert main_of(world, "p") == app and restarts(world.pod("p")) == {"main": 0}
    until(lambda: unanswered(command, environment), BACK_SECONDS)  # the node may have to meet its master first
    assert main_of(world, "p") == app


def unanswered(command: list[str], environment: dict[str, str]) -> str:
    """Why a line that is typed into a new attach is not answered; "" when it is."""
    pipe = subprocess.PIPE
    again = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    assert again.stdin is not None and again.stdout is not None and again.stderr is not None
    try:
        again.stdin.write(b"two\n")
        again.stdin.flush()
        heard = again.stdout.readline()
        return "" if heard == b"got two\n" else f"{heard!r}: {again.stderr.read().decode()}"
    finally:
        again.kill()
        again.communicate()


# ---- ending ----
@pytest.mark.parametrize("kind", EVERY)
def test_a_death_during_pre_stop(world: World, kind: str) -> None:
    """The hook is not cut short, TERM comes after it, and the grace is not counted anew."""
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo x >>/v/hook; until [ -e /v/go ]; do sleep 0.1; done"]}}}
    script = "trap 'echo term >>/data/said; exit 0' TERM; while :; do sleep 0.1; done"
    world.apply(claim("data"))
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "d", "mountPath": "/data"}]
    made = container(script, volumeMounts=mounts, lifecycle=hook)
    data = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    where = {"kubernetes.io/hostname": "node-1"}
    world.apply(
        pod("p", made, volumes=[*EMPTY["volumes"], *data], terminationGracePeriodSeconds=600, nodeSelector=where)
    )
    world.ready("p")
    app, uid = main_of(world, "p"), uid_of(world)
    world.shoal("delete", "pod", "p", "--wait=false")
    until_file(inside(app, "/v/hook"), "x")
    victim(world.cluster, kind, "node-1", uid).die()
    until(lambda: settled(world.cluster), BACK_SECONDS)
    assert app.alive()
    assert not inside(app, "/data/said").exists(), "TERM came before the hook had ended"
    inside(app, "/v/go").touch()
    until_gone(world, "p")
    reader = with_claim("reader", "cat /data/said", restartPolicy="Never")
    assert world.output(reader) == "term\n"


@pytest.mark.parametrize("kind", EVERY)
def test_a_death_while_a_pod_is_evicted(world: World, kind: str) -> None:
    wait = "echo up >/v/up; until [ -e /v/go ]; do sleep 0.1; done"  # else it may be over before we have seen it
    script = f"trap 'echo term >>/v/term' TERM; {wait}; head -c 3m /dev/zero >/v/large; while :; do sleep 0.1; done"
    body = on_one("p", *shared(("main", script)), volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}])
    body["spec"]["terminationGracePeriodSeconds"] = 5
    world.apply(body)
    app, uid = main_of(world, "p"), uid_of(world)
    doomed = victim(world.cluster, kind, "node-1", uid)
    until_file(inside(app, "/v/up"), "up")
    inside(app, "/v/go").touch()
    until(lambda: "" if _told(app) else "it is not evicted", BACK_SECONDS)
    if old := doomed.find():
        old.send(signal.SIGKILL)
    if kind != "supervisor":  # it may be over already, and is replaced only while it has work left
        assert old is not None
        doomed.replaced(old)
    found = world.phase("p", "Failed")["status"]
    assert (found["reason"], restarts(world.pod("p"))) == ("Evicted", {"main": 0})
    assert 'Usage of EmptyDir volume "v" exceeds the limit "1Mi"' in found["message"]
    until(lambda: "it still runs" if facts(world.cluster, uid) else "", BACK_SECONDS)


def _told(app: Process) -> bool:
    """Whether it was sent TERM, or has ended of it."""
    return not app.alive() or inside(app, "/v/term").exists()


# ---- without power ----
def test_a_reboot_starts_pods_again_with_all_that_they_had(cluster: Cluster, bystanders: World, tmp_path: Path) -> None:
    """The same pods, new runs: init containers first, Secrets from the master, volumes as they were left."""
    world = World(cluster, tmp_path)
    world.apply(claim("data"), secret("s", {"key": "hunter2"}), config_map("conf", {"a": "1"}))
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("v", "s", "conf", "data")]
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key", "optional": True}}}]
    script = f'echo "$KEY $(cat /s/key /conf/a)" >>/data/seen; echo main >>/v/ran; {SLEEP}'
    kept = [{"name": "s", "secret": {"secretName": "s"}}, {"name": "conf", "configMap": {"name": "conf"}}]
    kept.append({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
    made = container(script, env=env, volumeMounts=mounts)
    [init] = shared(("one", "echo one >>/v/ran"))
    where = {"kubernetes.io/hostname": "node-2"}
    volumes = [*EMPTY["volumes"], *kept]
    world.apply(pod("p", made, initContainers=[init], volumes=volumes, nodeSelector=where, tolerations=STAY))
    world.ready("p")
    uid, before = uid_of(world), state_of(bystanders)
    old, holder = facts(cluster, uid), cluster.part("holder-node-2")
    assert holder is not None
    holder.send(signal.SIGKILL)
    until(lambda: "it has power" if cluster.part("holder-node-2") or facts(cluster, uid) else "", BACK_SECONDS)
    cluster.up()
    until(lambda: settled(cluster), BACK_SECONDS)
    found = world.until("p", "started again", lambda found: restarts(found) == {"one": 1, "main": 1})
    found = world.ready("p")
    assert (found["metadata"]["uid"], restarts(found)) == (uid, {"one": 1, "main": 1})
    app = main_of(world, "p")
    until_file(inside(app, "/v/ran"), "one\nmain\n" * 2, whole=True)
    until_file(inside(app, "/data/seen"), "hunter2 hunter21\n" * 2, whole=True)
    assert not old & facts(cluster, uid)
    bystanders.until("by-node-2", "started again", lambda found: restarts(found) == {"main": 1})
    bystanders.ready("by-node-2")
    assert state_of(bystanders)[0] == before[0], "the other node's pod was not touched"
    world.close()
    until(lambda: "" if not _left(cluster, bystanders) else f"left: {_left(cluster, bystanders)}", BACK_SECONDS)
