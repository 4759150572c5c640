"""A development cluster as a test sees it: through the command, and through the kernel's own records.

What runs is read from /proc and the cgroups, never from what Shoal says of itself.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.deploy.devcluster.plan import RUN_ROOT, ClusterPlan, load
from shoal.deploy.devcluster.processes import Process, Register, identify

POLL_SECONDS = 0.1
COMMAND_SECONDS = 180.0  # longer than any patience of the command
GROUPS, GROUPED = ("image",), 2  # such verbs have two words
PIDS = Path("/sys/fs/cgroup/pids")  # any hierarchy would do: the runtime joins all of them


class Unmet(AssertionError):
    """What was waited for did not come; the message says what is missing."""


def until(problem: Callable[[], str], seconds: float) -> float:
    """Waits until `problem` is "" and returns the seconds it took. Raises Unmet with the last problem: what it said, or
    a command of it that failed."""
    start = time.monotonic()
    while why := _tried(problem):
        if time.monotonic() - start > seconds:
            raise Unmet(f"after {seconds:g} s: {why}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - start


def _tried(problem: Callable[[], str]) -> str:
    try:
        return problem()
    except Unmet as unmet:
        return str(unmet) or "a command failed"


def pids_inside(pid: int) -> list[int]:
    """The process's pids, from the host's namespace to its innermost; [] when it has ended (proc(5), NSpid)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return next(([int(n) for n in line.split()[1:]] for line in lines if line.startswith("NSpid:")), [])


@dataclass(frozen=True, slots=True)
class Container:
    """A running container: the kernel's word on its PID 1."""

    node: str
    pod: str  # uid
    name: str
    attempt: int
    process: Process


@dataclass(frozen=True)
class Cluster:
    name: str
    data: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> ClusterPlan:
        plan = load(self.data)
        assert plan is not None, f"no cluster in {self.data}"
        return plan

    # ---- the command ----
    def run(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """The command as it is typed, whatever its exit code."""
        command = [sys.executable, "-m", "shoal.deploy.cli.main", *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )

    def attempt(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """A verb in this cluster's context, whatever its exit code."""
        verb = GROUPED if arguments[0] in GROUPS else 1
        return self.run(*arguments[:verb], "--context", self.name, *arguments[verb:], timeout=timeout)

    def shoal(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> str:
        """Its output. Raises Unmet with its words when it fails."""
        done = self.attempt(*arguments, timeout=timeout)
        if done.returncode != 0:
            raise Unmet(f"`shoal {' '.join(arguments)}` ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """What `shoal get ARGUMENTS` finds."""
        found: list[dict[str, Any]] = json.loads(self.shoal("get", *arguments, "-o", "json"))["items"]
        return found

    def up(self, *arguments: str) -> str:
        """`shoal up`; its output. Raises Unmet."""
        return self._lifecycle("up", *arguments)

    def down(self) -> str:
        return self._lifecycle("down")

    def _lifecycle(self, verb: str, *arguments: str) -> str:
        done = self.run(verb, "--name", self.name, "--data", str(self.data), *arguments)
        if done.returncode != 0:
            raise Unmet(f"`shoal {verb}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    # ---- what runs ----
    def part(self, name: str) -> Process | None:
        """The living process of that name: keeper, etcd, master-0, holder-NODE, agent-NODE."""
        folder = RUN_ROOT / self.name
        return Register(folder if name == "keeper" else folder / "processes").get(name)

    def part_names(self) -> list[str]:
        plan = self.plan
        masters = [f"master-{index}" for index in range(len(plan.master_ports))]
        nodes = [f"{kind}-{node.name}" for node in plan.nodes for kind in ("holder", "agent")]
        return ["keeper", "etcd", *(["registry"] if plan.registry else []), *masters, *nodes]

    def spawner(self, node: str) -> Process | None:
        return self._locked(node, "spawner.lock")

    def supervisor(self, node: str, uid: str) -> Process | None:
        return self._locked(node, f"pods/{uid}.lock")

    def _locked(self, node: str, lock: str) -> Process | None:
        """The process whose pid, as the node counts, is in a lock of the node's own /run."""
        holder = self.part(f"holder-{node}")
        if holder is None:
            return None
        try:
            inside = int(Path(f"/proc/{holder.pid}/root/run/shoal/{lock}").read_text())
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        procs = PIDS / self.plan.cgroup / node / "system/cgroup.procs"
        for pid in map(int, procs.read_text().split()):
            if pids_inside(pid)[1:] == [inside]:
                return identify(pid)
        return None

    def containers(self) -> dict[tuple[str, str], Container]:
        """(pod uid, container name) -> the container, from the cgroups of all nodes."""
        found = {}
        # Not Path.glob, which fails when a folder goes while it looks.
        for path in glob.iglob(f"{PIDS / self.plan.cgroup}/*/pods/*/*/cgroup.procs"):
            procs = Path(path)
            node, _, uid, run = procs.parts[-5:-1]
            name, _, attempt = run.rpartition("-")
            for process in first_processes(procs):
                found[uid, name] = Container(node, uid, name, int(attempt), process)
        return found


def first_processes(procs: Path) -> list[Process]:
    """The PID 1s in a cgroup; none when it has gone meanwhile."""
    try:
        pids = [int(pid) for pid in procs.read_text().split()]
    except OSError:
        return []
    found = [identify(pid) for pid in pids if pids_inside(pid)[-1:] == [1]]
    return [process for process in found if process is not None]
