"""One pod's supervisor: the parent of its containers, forked from the spawner, outside of the pod's cgroup.

It makes pipes, launches, stamps logs, and records every step before the next one (records.py). It outlives the agent
and the spawner. When it dies itself the spawner holds duplicates of all pipes and forks a replacement, which takes up
what the records tell. wire.py draws what it says to the spawner. Standard library only, single-threaded.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from shoal.agent.runtime import cgroups as cgroup_kinds
from shoal.agent.runtime import executions, exits, explain, holder, launch, logs, namespaces, records, sysctls, wire
from shoal.agent.runtime.executions import Executions
from shoal.agent.runtime.output import Output
from shoal.agent.runtime.probes import Probes
from shoal.agent.runtime.settings import Settings
from shoal.agent.runtime.trees import delete_tree

RETRY_SECONDS = 1.0  # when the disk refuses a record
REAPED_SECONDS = 5.0  # how long the spawner may take to tell an orphan's code
EMPTY_SECONDS = 10.0  # how long killed processes may take to go
LOCK_SECONDS = 5.0  # how long a predecessor may take to die
HOST_FIELDS = {"net": "network", "ipc": "ipc", "pid": "pid"}  # kinds of namespaces by the spec's host_... fields
MAX_ERROR = 2000  # characters of a message that is kept
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)  # what a request of the wrong shape raises


class Busy(Exception):
    """Another supervisor of this pod is alive."""


@dataclass(slots=True)
class Live:
    """A run whose process may live."""

    name: str
    attempt: int
    spec: wire.Message
    output: Output
    pid: int = 0
    pidfd: int = -1
    ticks: int = 0  # /proc/<pid>/stat field 22
    at: float = 0.0
    own: bool = True  # our child: we can wait for it
    told: bool = False  # not our child, but perhaps the spawner's, which would tell its code
    ended: wire.Message | None = None  # the exit record that the disk has not taken yet

    @property
    def key(self) -> str:
        return run_key(self.name, self.attempt)


@dataclass(frozen=True, slots=True)
class Node:
    """What is the same for all pods of a node, read once by the spawner: each page that a supervisor changes costs."""

    settings: Settings
    cgroups: cgroup_kinds.Cgroups
    boot: str


class Supervisor:
    """The state and the loop. `kept` are the duplicates inherited from a dead predecessor."""

    def __init__(self, node: Node, pod: str, listener: socket.socket, kept: dict[str, wire.Kept]) -> None:
        self.settings, self.cgroups, self.boot = node.settings, node.cgroups, node.boot
        self.pod, self.listener = pod, listener
        self.poller = wire.Poller()
        self.link: wire.Channel | None = None  # to the spawner
        self.channels: set[wire.Channel] = set()
        self.live: dict[tuple[str, int], Live] = {}
        self.executions = Executions(self.poller, self._tell)
        self.probes = Probes(self.poller, self.cgroups)
        self.inherited = kept
        self.untold: list[wire.Message] = []  # exits that were seen while there was no spawner
        self.profiles: dict[str, bytes] = {}

    # -- taking up what a predecessor left

    def recover(self) -> None:
        """Resolves every run that the records leave open."""
        for run in records.runs(self.settings.data, self.pod):
            kept = self.inherited.get(run_key(run.name, run.attempt))
            if run.intent is None or (run.ended and kept is None):
                continue
            if run.started is None and kept is not None and "started" in kept.facts:
                folder = records.run_folder(self.settings.data, self.pod, run.name, run.attempt)
                records.write(folder, "started", kept.facts["started"])
                self._adopt(run, kept.facts["started"])
            elif run.started is None:
                self._resolve_start(run)
            elif run.started.get("boot") != self.boot:
                self._record_unknown(run)
            else:
                self._adopt(run, run.started)
        for key, kept in self.inherited.items():
            if key.startswith(executions.PREFIX):
                self.executions.adopt(kept)
            elif key not in {live.key for live in self.live.values()}:
                kept.close()
        self.inherited = {}

    def _resolve_start(self, run: records.Run) -> None:
        """A predecessor died between intent and started: whatever it made is ended, and told as what it was.

        Once the cgroup is removed a child that was on its way into it cannot start any more.
        """
        path = self.cgroups.container_path(self.pod, run.name, run.attempt)
        seen = self._clear_cgroup(path)
        if seen:
            self._record_unknown(run)
            return
        message = "the supervisor of this pod ended while it started this container; nothing of it had run"
        self._write_start_error(run.name, run.attempt, launch.LaunchError("StartError", message, 128))

    def _record_unknown(self, run: records.Run) -> None:
        """The end of a run is known, its code is not."""
        record = records.unknown_exit(time.time())
        self._write_exit(run.name, run.attempt, record)
        self._tell_exit(run.name, run.attempt, record)

    def _clear_cgroup(self, path: str) -> bool:
        """Kills and removes a cgroup; whether a process had been in it. Raises Refused when processes do not die."""
        deadline, seen = time.monotonic() + EMPTY_SECONDS, False
        while True:
            if self.cgroups.populated(path):
                seen = True
                self.cgroups.kill(path)
                self.cgroups.wait_empty(path, EMPTY_SECONDS)
            if self.cgroups.remove(path):
                return seen
            if time.monotonic() > deadline:
                raise wire.Refused(f"processes in the cgroup {path} do not end although they were killed")
            time.sleep(0.005)

    def _adopt(self, run: records.Run, started: records.Record) -> None:
        """Takes up a started container, with the duplicates when the spawner had them."""
        spec = records.with_private(
            self.settings.run, self.pod, run.name, run.attempt, (run.intent or {}).get("spec", {})
        )
        pid, ticks = int(started["pid"]), int(started["start_ticks"])
        live = Live(run.name, run.attempt, spec, Output(self.poller, spec), pid, own=False)
        self.probes.clear(self._path(live))
        live.ticks, live.at, live.told = ticks, started["at"], self._is_told(live.key, pid)
        kept = self.inherited.get(live.key, wire.Kept(live.key))
        live.output.adopt(kept.fds, pid, started.get("pipes", {}))
        self.live[run.name, run.attempt] = live
        live.pidfd = kept.fds.get("pidfd", -1)
        if live.pidfd < 0 and records.start_ticks(pid) == ticks:
            try:
                live.pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                pass
        self._watch(live)

    def _is_told(self, key: str, pid: int) -> bool:
        """Whether the spawner may be the one that waits for an orphan: it has known it, and no one else has it."""
        return key in self.inherited and records.parent_of(pid) in (0, os.getppid())

    # -- the loop

    def run(self) -> None:
        """Serves until the pod's sandbox is removed."""
        self.recover()
        self.poller.watch(self.listener.fileno(), self._accept)
        while self.poller.running or any(channel.backlog for channel in self.channels):
            self.poller.step()

    def _accept(self) -> None:
        sock = wire.accept(self.listener)
        if sock is not None:
            self.channels.add(wire.Channel(self.poller, sock, self._on_message, self._on_close))

    def _on_close(self, channel: wire.Channel) -> None:
        self.channels.discard(channel)
        if self.link is channel:
            self.link = None

    def _on_message(self, channel: wire.Channel, message: wire.Message, fds: list[int]) -> None:
        wire.close_all(fds)  # no request carries any
        if message.get("op") == "adopt":
            self._meet_spawner(channel)
            return
        if message.get("op") == "reaped":
            self._on_reaped(message)
            return
        answer: wire.Message
        handed: dict[str, int] = {}
        try:
            if message.get("op") == "probe":
                self._probe(message, partial(_answer, channel, message.get("id")))
                return
            answer = {"ok": self._handle(message, handed)}
        except launch.LaunchError as fault:
            answer = {"error": start_error(fault)}
        except (wire.WireError, OSError, cgroup_kinds.CgroupError, namespaces.SandboxError) as fault:
            answer = {"error": {"kind": "fault", "message": explain.in_words(fault)}}
        except MALFORMED as fault:
            answer = {"error": {"kind": "fault", "message": f"the request is malformed: {fault!r}"}}
        channel.send({"id": message.get("id"), **answer}, list(handed.values()))
        wire.close_all(list(handed.values()))

    def _handle(self, message: wire.Message, handed: dict[str, int]) -> wire.Message:
        """Does one request; descriptors for the answer go into `handed`."""
        operations: dict[str, Callable[[wire.Message], wire.Message]] = {
            "ensure_sandbox": self._ensure_sandbox,
            "remove_sandbox": self._remove_sandbox,
            "start": self._start,
            "signal": self._signal,
            "remove": self._remove,
        }
        if message.get("op") == "exec":
            return self._exec(message, handed)
        if message.get("op") == "attach":
            return self._attach(message, handed)
        operation = operations.get(str(message.get("op")))
        if operation is None:
            raise wire.Refused(f"unknown operation {message.get('op')!r}")
        return operation(message)

    # -- duplicates at the spawner

    def _meet_spawner(self, channel: wire.Channel) -> None:
        """A spawner has connected: it gets all duplicates, then hears that the records are in order."""
        self.link = channel
        for live in self.live.values():
            self._keep_run(live)
        self.executions.keep_all()
        for message in self.untold:
            channel.send(message)
        self.untold = []
        channel.send({"event": "ready"})

    def _keep_run(self, live: Live) -> None:
        fds = live.output.descriptors()
        if live.pidfd >= 0:
            fds["pidfd"] = live.pidfd
        facts: wire.Message = {"pid": live.pid, "run": [live.name, live.attempt]}
        if live.pid:
            facts["started"] = self._started(live)
        self._tell({"event": "keep", "key": live.key, "fds": list(fds), "facts": facts}, list(fds.values()))

    def _tell(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        if self.link is not None:
            self.link.send(message, fds)

    def _tell_exit(self, name: str, attempt: int, record: records.Record) -> None:
        message: wire.Message = {"event": "exited", "run": [self.pod, name, attempt], "exit": record}
        if self.link is None:
            self.untold.append(message)
        self._tell(message)

    # -- sandbox

    def _ensure_sandbox(self, message: wire.Message) -> wire.Message:
        spec = message["spec"]
        path = self.cgroups.pod_path(self.pod)
        self.cgroups.create(path)
        self.cgroups.limit(path, spec.get("limits") or {})
        self._make_sandbox(spec)
        folder = records.pod_folder(self.settings.data, self.pod)
        record = {"spec": spec, "boot": self.boot}
        if records.read(folder, "sandbox") != record:
            records.write(folder, "sandbox", record)
        return {"netns": f"{self.settings.sandbox(self.pod)}/net"}

    def _make_sandbox(self, spec: wire.Message) -> None:
        """What the pod shares with the node is the node's; with the node's network goes its name."""
        folder = self.settings.sandbox(self.pod)
        shared = {kind for kind in ("net", "ipc", "pid") if spec.get(f"host_{HOST_FIELDS[kind]}")}
        if "net" in shared:
            shared.add("uts")
        try:
            namespaces.make_sandbox(folder, spec["hostname"], wanted=spec.get("sysctls"), shared=shared)
        except sysctls.SysctlError as fault:
            raise launch.LaunchError(sysctls.FORBIDDEN, str(fault)) from fault
        if spec.get("share_pid") and "pid" not in shared:
            holder.ensure(folder, self.cgroups, self.cgroups.pod_path(self.pod))

    def _remove_sandbox(self, message: wire.Message) -> wire.Message:
        """Frees everything. The rename of the pod's folder is the point of no return; before it all can be redone."""
        del message
        path = self.cgroups.pod_path(self.pod)
        self.cgroups.kill(path)
        self.executions.reap_killed(EMPTY_SECONDS)
        self.probes.reap_killed(EMPTY_SECONDS)
        for live in list(self.live.values()):
            if not executions.ends_within(live.pidfd, EMPTY_SECONDS):
                raise wire.Refused(f"process {live.pid} of {self.pod}/{live.name} does not end although it was killed")
            self._on_end(live, last_chance=True)
        self._clear_cgroup(path)
        holder.reap(self.settings.sandbox(self.pod))
        self._fault_point("removing")
        namespaces.free_sandbox(self.settings.sandbox(self.pod))
        folder = records.pod_folder(self.settings.data, self.pod)
        for log_path in self._logs_outside(folder):
            for old in logs.rotated(log_path):
                os.unlink(old)
        delete_tree(records.private_folder(self.settings.run, self.pod))
        records.discard(self.settings.data, folder, self.pod)
        for name in (self.settings.socket(self.pod), self.settings.lock(self.pod)):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        self._tell({"event": "trash"})
        self.poller.running = False
        return {}

    def _logs_outside(self, folder: str) -> list[str]:
        try:
            with open(f"{folder}/log-paths") as file:
                return [line for line in file.read().splitlines() if not line.startswith(folder + "/")]
        except FileNotFoundError:
            return []

    # -- start

    def _start(self, message: wire.Message) -> wire.Message:
        pod, name, attempt = wire.checked_run(message["run"])
        if pod != self.pod:
            raise wire.Refused(f"pod {pod} is not served here")
        known = self.live.get((name, attempt))
        run = records.read_run(self.settings.data, pod, name, attempt)
        if run.start_error is not None:
            error = run.start_error
            raise launch.LaunchError(error["reason"], error["message"], error["exit_code"])
        if known is not None and run.started is None:
            self._write_started(known)  # the disk had refused it
        if known is None and run.intent is not None and not run.ended:
            self._resolve_start(run)  # an earlier call could not clean up after a start that had failed
            return self._start(message)
        if known is None and not run.ended:
            spec = message["spec"]
            if not isinstance(spec, dict) or list((spec.get("id") or {}).values()) != [pod, name, attempt]:
                raise wire.Refused(f"the spec is not the one of {pod}/{name}/{attempt}")
            self._launch(name, attempt, spec, str(message.get("seccomp", "")))
        return {}  # the client reads the records

    def _launch(self, name: str, attempt: int, spec: wire.Message, profile: str) -> None:
        """One run, each step recorded before the next."""
        sandbox = self.settings.sandbox(self.pod)
        if not namespaces.is_sandbox(sandbox):
            raise wire.Refused(f"pod {self.pod} has no sandbox on this boot: call ensure_sandbox first")
        if os.path.exists(f"{sandbox}/holder"):
            holder.ensure(sandbox, self.cgroups, self.cgroups.pod_path(self.pod))
        bpf = self._profile(profile)
        live = Live(name, attempt, spec, Output(self.poller, spec))
        folder = records.run_folder(self.settings.data, self.pod, name, attempt)
        self._write_intent(live, folder, profile)
        self._fault_point("intent")
        try:
            launched = self._launch_process(live, sandbox, bpf)
        except (launch.LaunchError, cgroup_kinds.CgroupError, OSError, *MALFORMED) as fault:
            error = fault if isinstance(fault, launch.LaunchError) else None
            error = error or launch.LaunchError("CreateContainerError", explain.in_words(fault)[:MAX_ERROR], 128)
            self._forget(live)
            self._clear_cgroup(self._path(live))
            self._write_start_error(name, attempt, error)
            raise error from fault
        self._fault_point("launched")
        live.pid, live.pidfd, live.ticks, live.at = launched.pid, launched.pidfd, launched.start_ticks, time.time()
        self.live[name, attempt] = live
        self._keep_run(live)
        self._fault_point("kept")
        self._watch(live)
        self._write_started(live)
        self._fault_point("started")

    def _started(self, live: Live) -> records.Record:
        pipes = live.output.identities()
        return {"pid": live.pid, "start_ticks": live.ticks, "boot": self.boot, "at": live.at, "pipes": pipes}

    def _write_started(self, live: Live) -> None:
        folder = records.run_folder(self.settings.data, self.pod, live.name, live.attempt)
        records.write(folder, "started", self._started(live))
        run = [self.pod, live.name, live.attempt]
        self._tell({"event": "started", "run": run, "pid": live.pid, "at": live.at})

    def _write_intent(self, live: Live, folder: str, profile: str) -> None:
        """Nothing is left when the disk refuses: then this id has never been tried."""
        spec = records.keep_private(self.settings.run, self.pod, live.name, live.attempt, live.spec)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        records.reserve(folder, "started")
        records.reserve(folder, "exit", records.EXIT_RESERVED)
        if spec.get("log_path"):
            with open(f"{records.pod_folder(self.settings.data, self.pod)}/log-paths", "a") as file:
                file.write(f"{spec['log_path']}\n")
        records.write(folder, "intent", {"spec": spec, "seccomp": profile, "boot": self.boot, "at": time.time()})

    def _launch_process(self, live: Live, sandbox: str, bpf: bytes) -> launch.Launched:
        streams = live.output.make()
        self._keep_run(live)  # before the start: the container must never write into a pipe without a reader
        self._fault_point("pipes")
        try:
            launched = launch.launch(
                live.spec,
                sandbox=sandbox,
                cgroups=self.cgroups,
                work=self._work(live),
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                seccomp_bpf=bpf,
                terminal=live.output.terminal,
            )
        finally:
            os.close(streams[0])
        live.output.use_terminal(launched.terminal)
        return launched

    def _profile(self, path: str) -> bytes:
        """A compiled seccomp profile; "" is none."""
        if path and path not in self.profiles:
            with open(path, "rb") as file:
                self.profiles[path] = file.read()
        return self.profiles.get(path, b"")

    def _path(self, live: Live) -> str:
        return self.cgroups.container_path(self.pod, live.name, live.attempt)

    def _work(self, live: Live) -> str:
        return records.work_folder(self.settings.data, self.pod, live.name, live.attempt)

    def _watch(self, live: Live) -> None:
        live.output.watch()
        if live.pidfd >= 0:
            self.poller.watch(live.pidfd, lambda: self._on_end(live))
        else:
            self.poller.after(0, (live.key, "end"), lambda: self._on_end(live))

    # -- the end of a run

    def _on_end(self, live: Live, *, last_chance: bool = False) -> None:
        """The process has ended: find the code, drain, record, publish, free."""
        record = live.ended or self._exit_record(live, last_chance)
        if record is None:
            return  # the spawner is going to tell
        if live.ended is None:
            self.cgroups.kill(self._path(live))
            live.output.finish()
            live.output.listeners.end(record["code"])
            self._fault_point("ended")
        recorded = self._write_exit(live.name, live.attempt, record)
        if live.ended is None:
            self._tell_exit(live.name, live.attempt, record)
        live.ended = record
        self._unwatch(live)
        if not recorded and not last_chance:
            self.poller.after(RETRY_SECONDS, (live.key, "end"), lambda: self._on_end(live))
            return
        self._fault_point("recorded")
        del self.live[live.name, live.attempt]
        self._forget(live)
        self.cgroups.remove(self._path(live))

    def _exit_record(self, live: Live, last_chance: bool) -> records.Record | None:
        if live.own:
            result = os.waitid(os.P_PIDFD, live.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if result is None:
                return None
            status = result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status
            return exits.of_status(status, self.cgroups, self._path(live), self._work(live))
        folder = records.run_folder(self.settings.data, self.pod, live.name, live.attempt)
        found = records.read(folder, "exit")
        if found is not None or last_chance:
            return found or records.unknown_exit(time.time())
        if live.pidfd >= 0:
            self.poller.forget(live.pidfd)
        wait = REAPED_SECONDS if live.told else 0.0
        self.poller.after(wait, (live.key, "end"), lambda: self._on_end(live, last_chance=True))
        return None

    def _on_reaped(self, message: wire.Message) -> None:
        """The spawner waited for an orphan of ours; it has recorded a container's end itself."""
        for live in list(self.live.values()):
            if live.pid == message.get("pid") and not live.own and live.ended is None:
                self._on_end(live)
        self.executions.on_reaped(int(message["pid"]), int(message["status"]))

    def _unwatch(self, live: Live) -> None:
        if live.pidfd >= 0:
            self.poller.forget(live.pidfd)
        self.poller.cancel((live.key, "end"))

    def _forget(self, live: Live) -> None:
        """Frees the descriptors here and at the spawner, and the zombie."""
        if live.own and live.pidfd >= 0:
            os.waitid(os.P_PIDFD, live.pidfd, os.WEXITED | os.WNOHANG)
        self._unwatch(live)
        live.output.close()
        if live.pidfd >= 0:
            os.close(live.pidfd)
            live.pidfd = -1
        self._tell({"event": "drop", "key": live.key})

    def _write_exit(self, name: str, attempt: int, record: records.Record) -> bool:
        """Whether the disk took it."""
        folder = records.run_folder(self.settings.data, self.pod, name, attempt)
        try:
            records.write_exit(folder, record)
        except OSError:
            return False
        return True

    def _write_start_error(self, name: str, attempt: int, error: launch.LaunchError) -> None:
        folder = records.run_folder(self.settings.data, self.pod, name, attempt)
        message = str(error.message)[:MAX_ERROR]
        record = {"reason": error.reason, "message": message, "exit_code": error.exit_code, "at": time.time()}
        try:
            os.replace(f"{folder}/exit.reserved", f"{folder}/start_error.reserved")
        except FileNotFoundError:
            pass
        records.write(folder, "start_error", record)

    # -- signal, remove, exec

    def _signal(self, message: wire.Message) -> wire.Message:
        _, name, attempt = wire.checked_run(message["run"])
        live, number = self.live.get((name, attempt)), int(message["signal"])
        if not 0 < number < signal.NSIG:
            raise wire.Refused(f"{number} is no signal")
        if live is None or live.ended is not None:
            return {}
        if number == signal.SIGKILL:
            self.cgroups.kill(self._path(live))
        elif live.pidfd >= 0:
            try:
                signal.pidfd_send_signal(live.pidfd, number)
            except ProcessLookupError:
                pass
        return {}

    def _remove(self, message: wire.Message) -> wire.Message:
        """Frees an ended run. The records go last: what is interrupted is asked for again."""
        _, name, attempt = wire.checked_run(message["run"])
        if (name, attempt) in self.live:
            raise wire.Refused(f"{self.pod}/{name}/{attempt} still runs: signal it and wait for its end first")
        self._clear_cgroup(self.cgroups.container_path(self.pod, name, attempt))
        label, data = f"{self.pod}.{name}-{attempt}", self.settings.data
        records.drop_private(self.settings.run, self.pod, name, attempt)
        records.discard(data, records.work_folder(data, self.pod, name, attempt), label)
        self._fault_point("removing")
        records.discard(data, records.run_folder(data, self.pod, name, attempt), f"{label}.records")
        self._tell({"event": "trash"})
        return {}

    def _exec(self, message: wire.Message, handed: dict[str, int]) -> wire.Message:
        """Runs a command in a container; `handed` gets the agent's ends by name."""
        live, argv, bpf = self._command(message)
        terminal = bool(message.get("tty"))

        def start(ends: list[int]) -> launch.Launched:
            return self._launch_in(live, argv, ends, bpf, terminal=terminal)

        handed.update(self.executions.begin(start, terminal=terminal, stdin=bool(message.get("stdin"))))
        return {"fds": list(handed)}

    def _command(self, message: wire.Message) -> tuple[Live, list[str], bytes]:
        """(where, what, its seccomp profile) of a command that is to run in a container. Raises Refused."""
        _, name, attempt = wire.checked_run(message["run"])
        live = self.live.get((name, attempt))
        if live is None or live.ended is not None or live.pidfd < 0:
            raise wire.Refused(f"container {name} of pod {self.pod} does not run (attempt {attempt})")
        argv = message["argv"]
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise wire.Refused("exec needs a command: a list of at least one word")
        folder = records.run_folder(self.settings.data, self.pod, name, attempt)
        profile = str((records.read(folder, "intent") or {}).get("seccomp", ""))
        return live, argv, self._profile(profile)

    def _launch_in(
        self,
        live: Live,
        argv: list[str],
        streams: list[int],
        bpf: bytes,
        *,
        terminal: bool = False,
        branch: str = "",
        timeout_s: float = launch.START_TIMEOUT_S,
    ) -> launch.Launched:
        """Starts a command in a running container; `streams` are its stdin, stdout and stderr. Raises LaunchError."""
        return launch.launch_exec(
            live.spec,
            argv=argv,
            pid=live.pid,
            pidfd=live.pidfd,
            cgroups=self.cgroups,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            seccomp_bpf=bpf,
            terminal=terminal,
            branch=branch,
            timeout_s=timeout_s,
        )

    def _probe(self, message: wire.Message, answer: Callable[[wire.Message], None]) -> None:
        """Runs a command in a container to its end, or for `seconds`; answers then."""
        live, argv, bpf = self._command(message)

        def start(branch: str, streams: list[int], seconds: float) -> launch.Launched:
            return self._launch_in(live, argv, streams, bpf, branch=branch, timeout_s=seconds)

        self.probes.begin(self._path(live), start, float(message["seconds"]), answer)

    def _attach(self, message: wire.Message, handed: dict[str, int]) -> wire.Message:
        """Lets the agent listen to a container; `handed` gets its ends by name."""
        _, name, attempt = wire.checked_run(message["run"])
        live = self.live.get((name, attempt))
        if live is None or live.ended is not None:
            raise wire.Refused(f"container {name} of pod {self.pod} does not run (attempt {attempt})")
        handed.update(live.output.attach(stdin=bool(message.get("stdin"))))
        self._keep_run(live)
        return {"fds": list(handed)}

    def _fault_point(self, stage: str) -> None:
        """For tests: dies here when told to."""
        path = self.settings.fault_points.get(f"supervisor.{stage}")
        if path and os.path.exists(path):
            os.unlink(path)
            os.kill(os.getpid(), signal.SIGKILL)


def _answer(channel: wire.Channel, number: object, found: wire.Message) -> None:
    channel.send({"id": number, "ok": found})


def run_key(name: str, attempt: int) -> str:
    """The name of a run's duplicates."""
    return f"run/{name}/{attempt}"


def start_error(fault: launch.LaunchError) -> wire.Message:
    """The wire's form of a start that failed."""
    message = str(fault.message)[:MAX_ERROR]
    return {"kind": "start", "reason": fault.reason, "message": message, "exit_code": fault.exit_code}


def take_lock(path: str) -> int:
    """The lock of a pod's supervisor, as a descriptor that must stay open. Raises Busy.

    A POSIX lock: it belongs to this process alone, so that no child on its way to execve seems to be a supervisor.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            if time.monotonic() > deadline:
                os.close(fd)
                raise Busy(f"{path} is held by another process") from fault
            time.sleep(0.01)
            continue
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd


def main(node: Node, pod: str, listener: socket.socket, kept: dict[str, wire.Kept]) -> int:
    """The life of a supervisor, in the process that the spawner forked for it."""
    try:
        take_lock(node.settings.lock(pod))
    except Busy:
        return 0
    Supervisor(node, pod, listener, kept).run()
    return 0
