"""The keeper of a development cluster: starts what it consists of, and restarts what ends, with backoff.

It can be killed at any moment: everything runs on, and the next keeper finds it again by pid and start time. A node
whose holder has died stays off until somebody says `shoal up` (SIGHUP here), as a machine without power would.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shoal.deploy.devcluster import cgroups, disks, links, programs
from shoal.deploy.devcluster.plan import ClusterPlan, NodePlan, Refusal, load
from shoal.deploy.devcluster.processes import Process, Register, identify

FIRST_BACKOFF = 0.2  # seconds, doubling
LONGEST_BACKOFF = 10.0
STEADY_SECONDS = 30.0  # a run of this length ends the backoff
PR_SET_CHILD_SUBREAPER = 36
HERE = Path(__file__).parent


@dataclass(slots=True)
class Charge:
    """One process that the keeper looks after."""

    name: str
    start: Callable[[], Process]
    may_run: Callable[[], bool]
    process: Process | None = None
    pidfd: int = -1
    started: float = 0.0
    backoff: float = FIRST_BACKOFF
    due: float = 0.0
    fault: str = field(default="")


def say(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {message}", flush=True)


class Keeper:
    def __init__(self, plan: ClusterPlan) -> None:
        self.plan = plan
        self.register = Register(plan.run / "processes")
        self.poll = select.poll()
        self.off: set[str] = set()  # nodes without power
        self.charges: list[Charge] = []
        self.stopping = False
        self._add("etcd", lambda: self._spawn("etcd", programs.etcd(plan)))
        if plan.registry:
            self._add("registry", lambda: self._spawn("registry", programs.registry(plan)))
        for i in range(len(plan.master_ports)):
            self._add(f"master-{i}", lambda i=i: self._spawn(f"master-{i}", programs.master(plan, i)))  # type: ignore[misc]
        for node in plan.nodes:
            self._add(f"holder-{node.name}", lambda n=node: self._power_on(n), lambda n=node: n.name not in self.off)  # type: ignore[misc]
            self._add(f"agent-{node.name}", lambda n=node: self._agent(n), lambda n=node: self._powered(n.name))  # type: ignore[misc]

    def _add(self, name: str, start: Callable[[], Process], may_run: Callable[[], bool] = lambda: True) -> None:
        self.charges.append(Charge(name, start, may_run))

    def _powered(self, node: str) -> bool:
        return self.register.get(f"holder-{node}") is not None

    # ---- starting ----
    def _log(self, name: str) -> int:
        folder = self.plan.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _spawn(self, name: str, argv: list[str]) -> Process:
        log = self._log(name)
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        finally:
            os.close(log)
        return _known(child.pid, name)

    def _power_on(self, node: NodePlan) -> Process:
        """A holder with its cable and cgroup; the agent's own folders are on the host's disk."""
        path = f"{self.plan.cgroup}/{node.name}"
        left = cgroups.remove(path)
        if left:
            raise OSError(f"cgroups of the last run are still in use: {', '.join(left)}")
        cgroups.make(path, node.memory_bytes, self.plan.node_pids)
        self.plan.node_folder(node.name).mkdir(parents=True, exist_ok=True)
        log = self._log(f"holder-{node.name}")
        argv = [sys.executable, "-S", "-E", "-I", str(HERE / "holder.py"), node.name, str(uuid.uuid4())]
        try:
            starter = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd="/")
        finally:
            os.close(log)
        assert starter.stdin and starter.stdout
        with starter.stdin, starter.stdout:
            process = _known(int(starter.stdout.readline() or 0), f"holder of {node.name}")
            starter.wait()
            try:
                for procs in cgroups.procs_files(path):
                    procs.write_text(str(process.pid))
                links.plug_in(self.plan, node, process.pid)
                starter.stdin.write(b"go\n")
                starter.stdin.flush()
                if starter.stdout.readline() != b"ready\n":
                    raise OSError(f"holder of {node.name} did not come up; see its log")
                if self.plan.node_disk_bytes:
                    disks.attach(self.plan, node, process.pid)
            except BaseException:
                process.send(signal.SIGKILL)
                raise
        return process

    def _agent(self, node: NodePlan) -> Process:
        holder = self.register.get(f"holder-{node.name}")
        if holder is None:
            raise OSError(f"{node.name} has no power")
        log = self._log(f"agent-{node.name}")
        procs = ",".join(str(p) for p in cgroups.procs_files(f"{self.plan.cgroup}/{node.name}"))
        argv = [sys.executable, "-S", "-E", "-I", str(HERE / "enter.py"), str(holder.pid), procs, "--"]
        try:
            done = subprocess.run(
                argv + programs.agent(self.plan, node),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                check=True,
                timeout=20,
            )
        finally:
            os.close(log)
        return _known(int(done.stdout), f"agent of {node.name}")

    # ---- watching ----
    def adopt(self) -> None:
        """Finds what an earlier keeper started; nodes that are off get power."""
        for charge in self.charges:
            process = self.register.get(charge.name)
            if process is not None:
                self._watch(charge, process)
                say(f"{charge.name} runs already, pid {process.pid}")

    def _watch(self, charge: Charge, process: Process) -> None:
        charge.process, charge.started = process, time.monotonic()
        try:
            charge.pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            charge.process = None
            return
        self.poll.register(charge.pidfd, select.POLLIN)

    def _ended(self, charge: Charge) -> None:
        assert charge.process is not None
        self.poll.unregister(charge.pidfd)
        os.close(charge.pidfd)
        now = time.monotonic()
        if now - charge.started > STEADY_SECONDS:
            charge.backoff = FIRST_BACKOFF
        say(f"{charge.name} (pid {charge.process.pid}) ended")
        self.register.drop(charge.name)
        charge.process = None
        charge.due = now + charge.backoff
        charge.backoff = min(charge.backoff * 2, LONGEST_BACKOFF)
        kind, _, node = charge.name.partition("-")
        if kind == "holder":
            self.off.add(node)
            say(f"{node} is off until `shoal up`")

    def _start(self, charge: Charge) -> None:
        try:
            process = charge.start()
        except (OSError, subprocess.SubprocessError, ValueError, Refusal) as fault:
            charge.due = time.monotonic() + charge.backoff
            charge.backoff = min(charge.backoff * 2, LONGEST_BACKOFF)
            if str(fault) != charge.fault:
                say(f"{charge.name} could not be started: {fault}")
            charge.fault = str(fault)
            return
        charge.fault = ""
        self.register.put(charge.name, process)
        self._watch(charge, process)
        say(f"{charge.name} started, pid {process.pid}")

    def step(self) -> None:
        """Starts what is due, then waits for an end, a signal or the next due time."""
        now = time.monotonic()
        due = LONGEST_BACKOFF
        for charge in self.charges:
            if charge.process is None and charge.may_run():
                if charge.due <= now:
                    self._start(charge)
                else:
                    due = min(due, charge.due - now)
            elif charge.process is None and charge.name.startswith("agent-"):
                charge.due, charge.backoff = 0.0, FIRST_BACKOFF
        ready = {descriptor for descriptor, _ in self.poll.poll(due * 1000)}
        for charge in self.charges:
            if charge.process is not None and charge.pidfd in ready:
                self._ended(charge)
        _reap()

    def run(self) -> None:
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGHUP, lambda *_: self.off.clear())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(wake, select.POLLIN)
        while not self.stopping:
            self.step()
            try:
                os.read(wake, 4096)
            except BlockingIOError:
                pass


def _known(pid: int, what: str) -> Process:
    process = identify(pid)
    if process is None:
        raise OSError(f"{what} ended at once; see its log")
    return process


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> int:
    """keeper.py DATA_FOLDER: one per cluster; a second one ends at once."""
    plan = load(Path(sys.argv[1]))
    if plan is None:
        say(f"{sys.argv[1]} holds no cluster")
        return 1
    plan.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(plan.run / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another keeper runs already")
        return 1
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    me = identify(os.getpid())
    assert me is not None
    Register(plan.run).put("keeper", me)
    links.lay_bridge(plan)
    keeper = Keeper(plan)
    keeper.adopt()
    say(f"keeping cluster {plan.name}: {len(plan.master_ports)} master(s), {len(plan.nodes)} node(s)")
    keeper.run()
    say("the keeper ends; what it kept runs on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
