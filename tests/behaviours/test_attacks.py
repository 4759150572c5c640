"""What a hostile container, image or manifest tries against its node, its neighbours and whoever looks at it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import yaml

from tests.behaviours.world import POD_SECONDS, Object, World, container, pod, secret
from tests.devcluster import until

PROBED = {"exec": {"command": ["true"]}, "periodSeconds": 1}
HOSTILE = r"printf '\033[31mred\033[0m \033]52;c;cm0gLXJm\007 \033[2J\302\23331m end\n'"


def on_disk(world: World, name: str, value: str) -> list[str]:
    """The files of a pod's node that hold `value`."""
    node = world.pod(name)["spec"]["nodeName"]
    folder = next(path for path in world.cluster.data.rglob(node) if path.is_dir())
    return subprocess.run(["grep", "-rlF", value, str(folder)], capture_output=True, text=True).stdout.split()


def test_b55_a_secret_s_variable_is_on_no_disk_of_the_node_and_in_nobody_s_words(world: World) -> None:
    value = f"zebra-{os.getpid()}-{world.namespace}"
    world.apply(secret("keys", {"password": value}))
    env = [{"name": "PW", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}}]
    script = 'test -n "$PW" || exit 9; exec sleep 1000 # $(PW)'
    dies = container('test -n "$PW" && exit 3', "dies", env=env, args=["x", "$(PW)"])
    world.apply(pod("p", container(script, env=env, livenessProbe=PROBED), dies))

    def died() -> str:
        return "" if "exitCode: 3" in world.shoal("get", "deaths", "-o", "yaml") else "no certificate yet"

    until(died, POD_SECONDS)
    world.until("p", "up", lambda _: world.status("p")["state"]["running"])
    assert world.exec("p", "sh", "-c", "echo $PW", container="main") == f"{value}\n"
    assert on_disk(world, "p", value) == []
    for told in (["get", "deaths", "-o", "yaml"], ["describe", "pod", "p"], ["events"], ["why", "pod/p"]):
        assert value not in world.shoal(*told)
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    outside = [line for pid in pids if value in (line := _cmdline(pid)) and not line.startswith("sh\0")]
    assert not outside, "only the container's own processes have it among their arguments"


def _cmdline(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def on_a_terminal(world: World, *arguments: str) -> bytes:
    """What the command writes when a person looks."""
    ours, theirs = pty.openpty()
    chosen = ["--context", world.cluster.name, "-n", world.namespace]
    words = [sys.executable, "-m", "shoal.deploy.cli.main", arguments[0], *chosen, *arguments[1:]]
    environment = {**os.environ, **world.cluster.environment}
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # EIO: the last writer has gone
        pass
    finally:
        os.close(ours)
    assert process.wait(POD_SECONDS) == 0, seen
    return seen


def test_b14_a_log_cannot_drive_the_terminal_of_who_reads_it(world: World) -> None:
    world.run(pod("p", container(HOSTILE), restartPolicy="Never"))
    assert on_a_terminal(world, "logs", "p") == (b"\x1b[31mred\x1b[0m ^[]52;c;cm0gLXJm^G ^[[2JM-^[31m end\r\n"), (
        "colours stay; nothing else reaches the terminal"
    )
    assert "\x1b]52" in world.logs("p"), "into a file it goes as it is"


def test_b11_no_message_drives_the_terminal_of_who_asks(world: World) -> None:
    world.run(pod("p", container(f"{HOSTILE} > /dev/termination-log; exit 1"), restartPolicy="Never"))
    for asked in (["describe", "pod", "p"], ["get", "pod", "p", "-o", "json"], ["get", "pod", "p", "-o", "yaml"]):
        seen = on_a_terminal(world, *asked)
        assert b"]52;c;cm0gLXJm" in seen
        assert b"\x1b]" not in seen and b"\x1b[2J" not in seen and b"\xc2\x9b" not in seen


def test_b11_the_termination_file_cannot_lead_to_another(world: World) -> None:
    """Neither put in its place, nor by a link that waits at its path in a volume."""
    script = "rm -f /dev/termination-log; ln -sf /etc/passwd /dev/termination-log; mkfifo /dev/termination-log; "
    world.run(pod("p", container(f"{script} echo mine > /dev/termination-log"), restartPolicy="Never"))
    assert world.status("p")["state"]["terminated"]["message"] == "mine\n"
    mount: Object = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    plants = container("ln -s /etc/shadow-of-the-node /v/told", "plants", **mount)
    main = container("echo mine > /v/told", terminationMessagePath="/v/told", **mount)
    world.run(pod("q", main, initContainers=[plants], volumes=[{"name": "v", "emptyDir": {}}], restartPolicy="Never"))
    assert world.status("q")["state"]["terminated"]["message"] == "mine\n"
    assert not os.path.exists("/etc/shadow-of-the-node")


def test_b5_variables_that_double_each_other_harm_nobody(world: World) -> None:
    bomb = [{"name": "V0", "value": "x" * 100}]
    bomb += [{"name": f"V{n}", "value": f"$(V{n - 1})" * 10} for n in range(1, 20)]
    world.apply(pod("bomb", container("true", env=bomb)))
    assert "spec.containers[0].env[4].value" in world.waiting("bomb", "CreateContainerConfigError")
    assert world.output(pod("p", container("echo fine"))) == "fine\n"


def test_b15_a_fork_bomb_is_held_and_deleted(world: World) -> None:
    """Its neighbours go on, commands run in them, and it can be deleted."""
    world.apply(pod("bomb", container("f() { f | f & }; f & exec sleep 1000")), pod("p", container("sleep 1000")))
    world.ready("p")
    world.ready("bomb")
    assert world.exec("p", "echo", "fine") == "fine\n"
    world.shoal("delete", "pod", "bomb")
    assert world.exec("p", "echo", "fine") == "fine\n"


def test_b67_a_pod_cannot_take_its_node_s_paths_by_another_door(world: World) -> None:
    """An init container, a template, a direct bind to a node: the namespace's level holds for all of them."""
    volume: Object = {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}
    mount: Object = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    plain = pod("p", container("true"), initContainers=[container("true", "first", **mount)], **volume)
    assert "hostPath" in world.refused(plain)
    node = world.cluster.shoal("get", "nodes", "-o", "name").split()[0].partition("/")[2]
    assert "hostPath" in world.refused(pod("p", container("true", **mount), nodeName=node, **volume))
    privileged = container("true", "first", securityContext={"privileged": True})
    assert "privileged" in world.refused(pod("p", container("true"), initContainers=[privileged]))
    labels = {"app": "x"}
    body = pod("p", container("true", **mount), **volume)["spec"]
    for kind in ("ReplicaSet", "Deployment"):
        template = {"metadata": {"labels": labels}, "spec": body}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        said = world.refused({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "w"}, "spec": spec})
        assert "hostPath" in said, yaml.safe_dump(spec)
