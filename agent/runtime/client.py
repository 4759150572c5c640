"""The agent's side of the runtime: port.Runtime over the spawner's socket and the records on disk.

Starts a spawner (posix_spawn, never a fork) when none answers and it may, reconnects with backoff, and after each
reconnect tells of the exits that happened meanwhile. An adapter: it opens sockets, starts a process, uses threads.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from shoal.agent.runtime import caps, cgroups, namespaces, profiles, records, wire
from shoal.agent.runtime.events import Broadcast
from shoal.agent.runtime.execstream import AttachStream, PipeStream
from shoal.agent.runtime.port import (
    ContainerID,
    ContainerSpec,
    ContainerState,
    Exit,
    Exited,
    ProbeRun,
    Resources,
    RuntimeEvent,
    RuntimeFault,
    RuntimeGone,
    Sandbox,
    SandboxSpec,
    Stall,
    Started,
    StartError,
    Usage,
)
from shoal.agent.runtime.seccomp import ProfileError
from shoal.agent.runtime.settings import Settings

CALL_SECONDS = 90.0  # for one answer; longer than any start may take
PROBE_SLACK_SECONDS = 10.0  # beyond a command's own time-out, which the supervisor keeps
CONNECT_SECONDS = 10.0  # how long a call waits for a connection
RETRY_FIRST, RETRY_LONGEST = 0.02, 2.0  # seconds between attempts to connect
MAX_PROFILES = 32  # compiled ones that are remembered
BOOT = Path(__file__).resolve().with_name("boot.py")


def start_spawner(settings: Settings, python: str = sys.executable) -> int:
    """Starts a spawner, without waiting for it; its pid. One that finds another alive ends at once.

    To be called before grpc is imported when possible. Raises RuntimeFault.
    """
    config, log = f"{settings.run}/spawner.json", f"{settings.run}/spawner.log"
    try:
        settings.checked().make_folders()
        Path(f"{config}.tmp").write_text(settings.to_json())
        os.rename(f"{config}.tmp", config)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0), (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600)]
        argv = [python, "-S", "-E", "-I", str(BOOT), "spawner", "--config", config]
        env = dict(os.environ)
        return os.posix_spawn(python, argv, env, file_actions=[*actions, (os.POSIX_SPAWN_DUP2, 1, 2)], setsid=True)
    except OSError as fault:
        raise RuntimeFault(f"cannot start the spawner ({python}, {settings.run}): {fault}") from fault


def _profile_file(settings: Settings, profile: bytes) -> str:
    """The profile as a file named after its content: supervisors read it, also for containers of earlier versions."""
    folder = f"{settings.data}/seccomp"
    path = f"{folder}/{hashlib.sha256(profile).hexdigest()[:16]}.bpf"
    if not os.path.exists(path):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        Path(f"{path}.{os.getpid()}.tmp").write_bytes(profile)
        os.rename(f"{path}.{os.getpid()}.tmp", path)
    return path


class Client:
    """port.Runtime. `seccomp` is the compiled profile (BPF). Use `async with`, or start_client() and close()."""

    def __init__(
        self, settings: Settings, *, seccomp: bytes, start_spawner: bool = True, python: str = sys.executable
    ) -> None:
        self.settings = settings.checked()
        self._seccomp, self._may_start, self._python = _profile_file(settings, seccomp), start_spawner, python
        self._profiles: dict[tuple[bytes, tuple[str, ...]], bytes] = {}  # of the node's, by content and capabilities
        self._cgroups = cgroups.open_cgroups(settings.cgroup_root)
        self._boot = settings.current_boot()
        self._sock: Any = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._pending: dict[int, asyncio.Future[tuple[wire.Message, list[int]]]] = {}
        self._number = 0
        self._events = Broadcast()
        self._exits: set[ContainerID] | None = None  # that have been told, None before the first connection
        self._task: asyncio.Task[None] | None = None
        self._children: set[int] = set()
        self._send_lock = asyncio.Lock()
        self.problem = ""  # why there is no connection, for people

    async def __aenter__(self) -> Client:
        await self.start_client()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start_client(self) -> None:
        """Begins to connect, in the background; calls wait for it."""
        if self._task is None:
            self._task = asyncio.create_task(self._maintain(), name="runtime-connection")

    async def close(self) -> None:
        """Ends the connection; spawner and containers go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._disconnect("the client has been closed")

    # -- connection

    async def _maintain(self) -> None:
        wait = RETRY_FIRST
        while True:
            try:
                await self._connect()
                wait = RETRY_FIRST
                await self._lost.wait()
                self.problem = "the spawner closed the connection"
            except (OSError, RuntimeFault) as fault:
                self.problem = str(fault)
            except Exception as fault:  # whatever it answered: without this task no later one would be found
                self.problem = f"the spawner speaks another protocol: {fault!r}"
            self._disconnect(self.problem)
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_LONGEST)

    async def _connect(self) -> None:
        """One attempt, with a spawner of our own when nobody listens. Raises OSError, RuntimeFault."""
        path = f"{self.settings.run}/spawner.sock"
        try:
            self._sock = wire.connect(path)
        except OSError as fault:
            if fault.errno not in (errno.ENOENT, errno.ECONNREFUSED) or not self._may_start:
                raise OSError(fault.errno, f"no spawner answers at {path}: {os.strerror(fault.errno or 0)}") from fault
            self._start_spawner()
            raise
        self._lost.clear()
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._receive)
        found, _ = await self._exchange("ping")
        theirs = found["settings"]["data"], found["settings"]["cgroup_root"]
        if theirs != (self.settings.data, self.settings.cgroup_root):
            raise RuntimeFault(f"the spawner at {path} serves {theirs[0]} and {theirs[1]}, not this node's folders")
        await self._exchange("subscribe")
        await self._exchange("ready")
        await self._tell_missed()
        self.problem = ""
        self._connected.set()

    def _start_spawner(self) -> None:
        if self._children:
            return  # it is on its way
        pid = start_spawner(self.settings, self._python)
        self._children.add(pid)
        pidfd = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()

        def reap() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._children.discard(pid)
            os.waitpid(pid, 0)

        loop.add_reader(pidfd, reap)

    def _disconnect(self, why: str) -> None:
        if self._connected.is_set():
            self._events.emit(RuntimeGone(f"the runtime's spawner went away ({why})"))
        self._connected.clear()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(RuntimeGone(f"the runtime's spawner went away ({why}); try again"))

    def _receive(self) -> None:
        while self._sock is not None:
            try:
                message, fds = wire.receive(self._sock)
            except BlockingIOError:
                return
            except (wire.WireError, OSError):
                asyncio.get_running_loop().remove_reader(self._sock.fileno())
                self._lost.set()
                for future in self._pending.values():
                    if not future.done():
                        future.set_exception(RuntimeGone("the runtime's spawner closed the connection; try again"))
                return
            future = self._pending.pop(message.get("id", 0), None)  # type: ignore[arg-type]
            if future is not None and not future.done():
                future.set_result((message, fds))
                continue
            wire.close_all(fds)
            if "event" in message:
                self._on_event(message)

    async def _call(self, op: str, *, within: float = CALL_SECONDS, **fields: object) -> tuple[wire.Message, list[int]]:
        """One request's answer. Raises RuntimeGone, StartError, RuntimeFault."""
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                raise RuntimeGone(f"the runtime's spawner does not answer: {self.problem}") from None
        return await self._exchange(op, within=within, **fields)

    async def _exchange(
        self, op: str, *, within: float = CALL_SECONDS, **fields: object
    ) -> tuple[wire.Message, list[int]]:
        if self._sock is None:
            raise RuntimeGone("the runtime's spawner went away; try again")
        self._number += 1
        number = self._number
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"id": number, "op": op, **fields})
            async with asyncio.timeout(within):
                message, fds = await future
        except TimeoutError:
            raise RuntimeGone(f"the runtime did not answer {op} within {within:.0f} s") from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                wire.close_all(future.result()[1])  # nobody takes them any more
            raise
        finally:
            self._pending.pop(number, None)
        error = message.get("error")
        if error is None:
            return message["ok"], fds
        wire.close_all(fds)
        if error["kind"] == "start":
            raise StartError(error["reason"], error["message"], error["exit_code"])
        raise (RuntimeGone if error["kind"] == "gone" else RuntimeFault)(error["message"])

    async def _send(self, message: wire.Message) -> None:
        async with self._send_lock:
            while True:
                try:
                    wire.send(self._sock, message)
                    return
                except BlockingIOError:
                    await _writable(self._sock.fileno())
                except (OSError, AttributeError) as fault:
                    raise RuntimeGone(f"the runtime's spawner went away: {fault}; try again") from fault
                except wire.WireError as fault:
                    raise RuntimeFault(str(fault)) from fault

    # -- events

    def events(self) -> AsyncIterator[RuntimeEvent]:
        return self._events.reader()

    def _on_event(self, message: wire.Message) -> None:
        pod, name, attempt = message["run"]
        id = ContainerID(pod, name, attempt)
        if message["event"] == "started":
            self._events.emit(Started(id, message["pid"], message["at"]))
        elif message["event"] == "exited":
            self._tell_exit(id, message["exit"])

    def _tell_exit(self, id: ContainerID, record: wire.Message) -> None:
        if self._exits is not None and id not in self._exits:
            self._exits.add(id)
            self._events.emit(Exited(id, _exit(record)))

    async def _tell_missed(self) -> None:
        """The exits that were recorded while there was no connection."""
        found = {_id(run): run.exit for run in await asyncio.to_thread(self._runs) if run.exit is not None}
        if self._exits is None:
            self._exits = set(found)
        for id, record in found.items():
            self._tell_exit(id, record)
        self._exits &= set(found)

    def _runs(self) -> list[records.Run]:
        return [run for pod in records.pods(self.settings.data) for run in records.runs(self.settings.data, pod)]

    # -- the port

    async def ensure_sandbox(self, spec: SandboxSpec) -> Sandbox:
        found, _ = await self._call(
            "ensure_sandbox", pod=spec.pod_uid, spec={**asdict(spec), "sysctls": dict(spec.sysctls)}
        )
        return Sandbox(spec.pod_uid, found["netns"])

    async def start(self, spec: ContainerSpec) -> ContainerState:
        id = spec.id
        form = {**asdict(spec), "env": dict(spec.env), "files": dict(spec.files)}
        profile = self._seccomp
        if spec.seccomp not in ("", "unconfined") and not spec.privileged:
            profile = await asyncio.to_thread(self._local_profile, spec)
        await self._call("start", pod=id.pod_uid, run=_run(id), spec=form, seccomp=profile)
        run = await asyncio.to_thread(records.read_run, self.settings.data, id.pod_uid, id.name, id.attempt)
        state = _state(run)
        if state.start_error is not None:
            raise state.start_error
        return state

    def _local_profile(self, spec: ContainerSpec) -> str:
        """A file with the compiled form of a profile of the node's. Raises StartError."""
        try:
            content = profiles.read(spec.seccomp)
            kept = caps.chosen(spec.add_capabilities, spec.drop_capabilities, caps.possible())
            names = tuple(caps.names(kept))
            key = hashlib.sha256(content).digest(), names
            if key not in self._profiles:
                compiled = profiles.compile_json(content, spec.seccomp, names)
                self._profiles = {**dict(list(self._profiles.items())[-MAX_PROFILES:]), key: compiled}
            return _profile_file(self.settings, self._profiles[key])
        except (ProfileError, caps.UnknownCapability) as fault:
            raise StartError("CreateContainerConfigError", str(fault)) from fault

    async def signal(self, id: ContainerID, signal: int) -> None:
        await self._call("signal", pod=id.pod_uid, run=_run(id), signal=int(signal))

    async def remove_container(self, id: ContainerID) -> None:
        await self._call("remove", pod=id.pod_uid, run=_run(id))
        self._exits = {known for known in self._exits or () if known != id}

    async def remove_sandbox(self, pod_uid: str) -> None:
        await self._call("remove_sandbox", pod=pod_uid)
        self._exits = {known for known in self._exits or () if known.pod_uid != pod_uid}

    async def sandboxes(self) -> Sequence[Sandbox]:
        await self._call("ready")
        return await asyncio.to_thread(self._sandboxes)

    def _sandboxes(self) -> list[Sandbox]:
        found = []
        for pod in records.pods(self.settings.data):
            record = records.read(records.pod_folder(self.settings.data, pod), "sandbox")
            folder = self.settings.sandbox(pod)
            if record is not None and record.get("boot") == self._boot and namespaces.is_sandbox(folder):
                found.append(Sandbox(pod, f"{folder}/net"))
        return found

    async def list(self) -> Sequence[ContainerState]:
        await self._call("ready")
        return [_state(run) for run in await asyncio.to_thread(self._runs) if run.intent is not None]

    async def exec(self, id: ContainerID, argv: Sequence[str], *, stdin: bool = False, tty: bool = False) -> PipeStream:
        found, fds = await self._call("exec", pod=id.pod_uid, run=_run(id), argv=[*argv], stdin=stdin, tty=tty)
        return PipeStream(dict(zip(found["fds"], fds, strict=True)))

    async def run_probe(self, id: ContainerID, argv: Sequence[str], timeout_s: float) -> ProbeRun:
        within = timeout_s + PROBE_SLACK_SECONDS
        fields = {"pod": id.pod_uid, "run": _run(id), "argv": [*argv], "seconds": timeout_s}
        found, _ = await self._call("probe", within=within, **fields)
        return ProbeRun(found["code"], found["output"].encode("latin-1"))

    async def attach(self, id: ContainerID, *, stdin: bool = False) -> AttachStream:
        found, fds = await self._call("attach", pod=id.pod_uid, run=_run(id), stdin=stdin)
        return AttachStream(dict(zip(found["fds"], fds, strict=True)))

    async def usage(self) -> Mapping[ContainerID, Usage]:
        return await asyncio.to_thread(self._usage)

    def _usage(self) -> dict[ContainerID, Usage]:
        running = [run for run in self._runs() if run.started is not None and not run.ended]
        return {
            _id(run): Usage(*self._cgroups.usage(self._cgroups.container_path(run.pod, run.name, run.attempt)))
            for run in running
        }

    async def supervisors(self) -> Mapping[str, int]:
        """Pod uid -> pid of its supervisor, for diagnosis."""
        found, _ = await self._call("pods")
        return dict(found["pods"])


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, done)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _run(id: ContainerID) -> list[object]:
    return [id.pod_uid, id.name, id.attempt]


def _id(run: records.Run) -> ContainerID:
    return ContainerID(run.pod, run.name, run.attempt)


def _exit(record: records.Record) -> Exit:
    """Also of a record that an earlier version wrote."""
    message, found = record.get("message") or "", record.get("resources")
    return Exit(
        record["code"], record["signal"], record["oom"], record["at"], record["reason"], message, _resources(found)
    )


def _resources(found: Mapping[str, Any] | None) -> Resources | None:
    if not found:
        return None
    pressure = {name: Stall(*seconds) for name, seconds in (found.get("pressure") or {}).items()}
    known = {field.name for field in fields(Resources)}
    return Resources(**{name: value for name, value in found.items() if name in known} | {"pressure": pressure})


def _state(run: records.Run) -> ContainerState:
    started, error = run.started or {}, run.start_error
    return ContainerState(
        _id(run),
        pid=started.get("pid", 0),
        started_at=started.get("at", 0.0),
        start_ticks=started.get("start_ticks", 0),
        exit=None if run.exit is None else _exit(run.exit),
        start_error=None if error is None else StartError(error["reason"], error["message"], error["exit_code"]),
    )
