"""`make test-kill`: every part of a running demo is killed in turn, and the wished state has to come back by itself.

After each kill all parts run, all nodes and workloads are ready, `exec` and `logs` work on the affected pod, and every
other container is the same process as before: pid, start time and restart count.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.deploy.devcluster.plan import DATA_ROOT, load
from shoal.deploy.devcluster.processes import Process
from tests.devcluster import Cluster, Unmet, until

BACK_SECONDS = 60.0
READY_SECONDS = 60.0  # for the demo itself, before the first kill

Snapshot = Mapping[str, "Fact"]
Pod = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """What must not change of a process that nobody killed. `restarts` is -1 for what is no container."""

    pid: int
    start_ticks: int
    restarts: int = -1


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: which process, and whose life shows that all is well again."""

    title: str
    victim: str  # its name in the snapshot
    pod: Pod
    afterwards: Callable[[], None] = lambda: None


def differences(before: Snapshot, after: Snapshot, victim: str) -> list[str]:
    """What is not as it was, save the victim, which must be another process (a container: with one restart more)."""
    wrong = [f"{name} is new" for name in sorted(after.keys() - before.keys())]
    for name, old in sorted(before.items()):
        new = after.get(name)
        if new is None:
            wrong.append(f"{name} is missing")
        elif name == victim:
            if (new.pid, new.start_ticks) == (old.pid, old.start_ticks):
                wrong.append(f"{name} is still the process that was killed (pid {old.pid})")
            expected = old.restarts + 1 if old.restarts >= 0 else old.restarts
            if new.restarts != expected:
                wrong.append(f"{name} has restart count {new.restarts}, not {expected}")
        elif new != old:
            wrong.append(f"{name} changed: {old} became {new}")
    return wrong


def unready(nodes: list[dict[str, Any]], deployments: list[dict[str, Any]], pods: list[Pod]) -> list[str]:
    """The nodes, Deployments and pods that are not ready."""
    names = [f"node {n['metadata']['name']}" for n in nodes if not is_ready(n)]
    names += [f"pod {p['metadata']['name']}" for p in pods if not is_ready(p)]
    for deployment in deployments:
        wanted, there = deployment["spec"].get("replicas", 1), deployment.get("status", {}).get("readyReplicas", 0)
        if there != wanted:
            names.append(f"deployment {deployment['metadata']['name']} ({there}/{wanted})")
    return names


def is_ready(item: dict[str, Any]) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Demo:
    """The cluster, the pods on it, and what runs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def pods(self) -> list[Pod]:
        return self.cluster.objects("pods", "-A")

    def pod(self, selector: str) -> Pod:
        """The pod with the fewest restarts: its next one waits least."""
        found = self.cluster.objects("pods", "-l", selector)
        if not found:
            raise Unmet(f"no pod {selector}: is the demo on this cluster?")
        return min(found, key=lambda pod: int(pod["status"]["containerStatuses"][0]["restartCount"]))

    def processes(self, pods: list[Pod]) -> dict[str, Process | None]:
        """Every process of the cluster by a name for people."""
        cluster = self.cluster
        found = {name: cluster.part(name) for name in cluster.part_names()}
        for node in cluster.plan.nodes:
            found[f"spawner of {node.name}"] = cluster.spawner(node.name)
        for pod in pods:
            name, uid, node_name = pod["metadata"]["name"], pod["metadata"]["uid"], pod["spec"]["nodeName"]
            found[f"supervisor of {name}"] = cluster.supervisor(node_name, uid)
        return found

    def snapshot(self, pods: list[Pod]) -> dict[str, Fact]:
        """Everything that runs now."""
        facts = {n: Fact(p.pid, p.start_ticks) for n, p in self.processes(pods).items() if p is not None}
        counts = {
            (pod["metadata"]["uid"], status["name"]): status["restartCount"]
            for pod in pods
            for status in pod["status"].get("containerStatuses", [])
        }
        names = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods}
        for (uid, name), container in self.cluster.containers().items():
            process, restarts = container.process, counts.get((uid, name), -1)
            facts[container_name(names.get(uid, uid), name)] = Fact(process.pid, process.start_ticks, restarts)
        return facts

    def missing(self) -> str:
        """What keeps the demo from being whole; "" when it is."""
        try:
            nodes, deployments, pods = self.cluster.objects("nodes"), self.cluster.objects("deployments"), self.pods()
        except (Unmet, subprocess.TimeoutExpired) as fault:
            return str(fault)
        wrong = [f"{name} does not run" for name, process in self.processes(pods).items() if process is None]
        wrong += [f"{name} is not ready" for name in unready(nodes, deployments, pods)]
        return "; ".join(wrong)

    def unused(self, pod: Pod) -> str:
        """Whether exec reaches the pod, and what its PID 1's output takes is in its log; "" when it is."""
        name, mark = pod["metadata"]["name"], f"mark-{uuid.uuid4().hex[:8]}"
        try:
            self.cluster.shoal("exec", name, "--", "sh", "-c", f"echo {mark} > /proc/1/fd/1")
            until(lambda: "" if mark in self.cluster.shoal("logs", name) else f"{mark} is not in the log of {name}", 5)
        except (Unmet, subprocess.TimeoutExpired) as fault:
            return str(fault)
        return ""


def container_name(pod: str, container: str) -> str:
    return f"container {container} of {pod}"


def plan_kills(demo: Demo) -> list[Kill]:
    """One of each kind. The keeper is the one that only a person brings back."""
    redis, web = demo.pod("app=guestbook,tier=backend"), demo.pod("app=guestbook,tier=frontend")
    node, cluster = redis["spec"]["nodeName"], demo.cluster
    container = web["spec"]["containers"][0]["name"]

    def up() -> None:
        said = cluster.up()
        if "successor" not in said:
            raise Unmet(f"`shoal up` says nothing of a new keeper: {said}")

    return [
        Kill("an agent", f"agent-{node}", redis),
        Kill("the master", "master-0", redis),
        Kill("etcd", "etcd", redis),
        *([Kill("the registry", "registry", redis)] if "registry" in cluster.part_names() else []),
        Kill("a spawner", f"spawner of {node}", redis),
        Kill("a pod's supervisor", f"supervisor of {redis['metadata']['name']}", redis),
        Kill("the keeper", "keeper", redis, up),
        Kill("a container's process", container_name(web["metadata"]["name"], container), web),
    ]


def carry_out(demo: Demo, kill: Kill, before: Snapshot) -> tuple[float, Snapshot]:
    """Kills; the seconds until all is as wished, and how it is then. Raises Unmet."""
    if kill.victim not in before:
        raise Unmet(f"{kill.victim} does not run")
    old, after = before[kill.victim], before
    start = time.monotonic()
    Process(old.pid, old.start_ticks).send(signal.SIGKILL)
    kill.afterwards()

    def wrong() -> str:
        nonlocal after
        if missing := demo.missing():
            return missing
        after = demo.snapshot(demo.pods())
        return "; ".join(differences(before, after, kill.victim)) or demo.unused(kill.pod)

    until(wrong, BACK_SECONDS - (time.monotonic() - start))
    seconds = time.monotonic() - start
    if old.restarts >= 0:
        check_last_state(demo, kill.pod)
    check_ended(old)
    return seconds, after


def check_last_state(demo: Demo, pod: Pod) -> None:
    """The killed container's status tells how it ended."""
    [now] = [p for p in demo.pods() if p["metadata"]["uid"] == pod["metadata"]["uid"]]
    ended = now["status"]["containerStatuses"][0].get("lastState", {}).get("terminated", {})
    if (ended.get("exitCode"), ended.get("signal", signal.SIGKILL)) != (128 + signal.SIGKILL, signal.SIGKILL):
        raise Unmet(f"{pod['metadata']['name']}: lastState says {ended}, not a kill by signal 9")


def check_ended(old: Fact) -> None:
    if Process(old.pid, old.start_ticks).alive():
        raise Unmet(f"pid {old.pid} was killed and lives")


def run_all(demo: Demo) -> tuple[int, int]:
    """Each kill with its seconds; how many passed and failed. What one breaks later, the next one's comparison sees."""
    until(demo.missing, READY_SECONDS)
    kills, failed = plan_kills(demo), 0
    known: Snapshot = demo.snapshot(demo.pods())
    for kill in kills:
        try:
            seconds, known = carry_out(demo, kill, known)
            print(f"killed {kill.title} ({kill.victim}): as wished after {seconds:.1f} s", flush=True)
        except Unmet as fault:
            failed += 1
            print(f"killed {kill.title} ({kill.victim}): FAILED {fault}", flush=True)
            known = demo.snapshot(demo.pods())
    return len(kills) - failed, failed


def demo_command(verb: str, name: str) -> bool:
    command = [sys.executable, "-m", "shoal.deploy.demo", verb, "--name", name]
    return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--cluster", default="dev", metavar="NAME", help="the demo's cluster and context (dev)")
    name = parser.parse_args().cluster
    if os.geteuid() != 0:
        print("kill: root is needed (try: sudo make test-kill)", file=sys.stderr)
        return 1
    cluster = Cluster(name, DATA_ROOT / name)
    own, gone = load(cluster.data) is None, True  # one that somebody else brought up stays
    passed, failed = 0, 1
    try:
        if cluster.part("keeper") is not None or demo_command("up", name):
            passed, failed = run_all(Demo(cluster))
    except Unmet as fault:
        print(f"kill: the demo is not whole: {fault}", file=sys.stderr)
    finally:
        if own:
            gone = demo_command("down", name)
    print(f"{passed} passed, {failed} failed")
    return 0 if gone and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
