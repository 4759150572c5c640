"""A node's runtime for tests: a spawner of its own on temporary folders, and busybox as every container's image."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from shoal.agent.runtime import cgroups, namespaces, records, seccomp
from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import ContainerID, ContainerSpec, ContainerState, Limits, RuntimeGone, SandboxSpec
from shoal.agent.runtime.settings import Settings

BUSYBOX = "/usr/bin/busybox"
APPLETS = (
    "sh",
    "true",
    "false",
    "sleep",
    "cat",
    "echo",
    "id",
    "seq",
    "setsid",
    "pwd",
    "env",
    "yes",
    "dd",
    "head",
    "kill",
    "nohup",
    "tty",
    "wc",
)
T = TypeVar("T")
PATIENCE = 90.0  # seconds that a condition may take


async def until(condition: Callable[[], object], what: str = "", seconds: float = PATIENCE) -> None:
    """Waits for a condition. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        await asyncio.sleep(0.01)


async def persistent(call: Callable[[], Awaitable[T]]) -> T:
    """As the agent does: tries again while the runtime is away."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await call()
        except RuntimeGone:
            assert time.monotonic() < deadline, "the runtime did not come back"
            await asyncio.sleep(0.02)


POINTS = ("intent", "pipes", "launched", "kept", "started", "ended", "recorded", "removing")  # where one may die


class World:
    """Folders, cgroups and processes of one test; `close` ends and removes all of it."""

    def __init__(self, folder: Path, *, data: Path | None = None) -> None:
        self.folder = folder
        self.faults = {point: str(folder / f"fault.{point}") for point in (f"supervisor.{point}" for point in POINTS)}
        self.settings = Settings(
            run=str(folder / "run"),
            data=str(data or folder / "data"),
            cgroup_root=f"shoal-test-{os.getpid()}-{uuid.uuid4().hex[:6]}",
            fault_points=self.faults,
        )
        self.layer = folder / "layer"
        self.profile = seccomp.cached_profile(folder / "profiles")
        self._make_layer()

    def _make_layer(self) -> None:
        for name in ("bin", "etc", "tmp", "root"):
            (self.layer / name).mkdir(parents=True, exist_ok=True)
        (self.layer / "tmp").chmod(0o1777)
        shutil.copy(BUSYBOX, self.layer / "bin/busybox")
        for applet in APPLETS:
            (self.layer / "bin" / applet).symlink_to("busybox")
        (self.layer / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/tmp:/bin/sh\n")
        (self.layer / "etc/group").write_text("root:x:0:\nweb:x:1000:\n")

    def client(self) -> Client:
        return Client(self.settings, seccomp=self.profile)

    def pod(self) -> str:
        return str(uuid.uuid4())

    def sandbox(self, pod: str) -> SandboxSpec:
        return SandboxSpec(pod, "tester", Limits())

    def spec(self, pod: str, script: str, *, name: str = "main", attempt: int = 0, **more: object) -> ContainerSpec:
        """A container that runs a shell script."""
        fields: dict[str, object] = {
            "layers": [str(self.layer)],
            "argv": ["/bin/sh", "-c", script],
            "env": {"PATH": "/bin"},
            "cwd": "/",
            "user": "",
            "log_path": str(self.log(pod, name)),
            **more,
        }
        return ContainerSpec(ContainerID(pod, name, attempt), **fields)  # type: ignore[arg-type]

    def log(self, pod: str, name: str = "main") -> Path:
        return Path(self.settings.data) / "pods" / pod / "logs" / f"{name}.log"

    def lines(self, pod: str, name: str = "main") -> list[str]:
        """The log's texts, oldest first; pieces of one line joined."""
        texts, piece = [], ""
        path = self.log(pod, name)
        files = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, 100))]
        for file in reversed([file for file in files if file.exists()]):
            for line in file.read_text().splitlines():
                _, _, tag, text = line.split(" ", 3)
                piece += text
                if tag == "F":
                    texts.append(piece)
                    piece = ""
        return texts

    def arm(self, point: str) -> None:
        """The next process that reaches `point` kills itself."""
        Path(self.faults[point]).touch()

    def spawner_pid(self) -> int:
        return _pid(f"{self.settings.run}/spawner.lock")

    def supervisor_pid(self, pod: str) -> int:
        return _pid(self.settings.lock(pod))

    async def close(self) -> None:
        """Ends the spawner, then the supervisors, then what they ran; removes cgroups, mounts and folders."""
        groups = cgroups.open_cgroups(self.settings.cgroup_root)
        pods = records.pods(self.settings.data)
        for pid in [self.spawner_pid(), *(self.supervisor_pid(pod) for pod in pods)]:
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        groups.kill(self.settings.cgroup_root)
        await until(lambda: groups.remove(self.settings.cgroup_root), "the test's cgroups are removed")
        for pod in {*pods, *_entries(f"{self.settings.run}/sandboxes")}:
            namespaces.free_sandbox(self.settings.sandbox(pod))
        shutil.rmtree(self.folder, ignore_errors=True)


def _entries(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _pid(path: str) -> int:
    """The pid in a lock file when that process still lives, else 0."""
    try:
        pid = int(Path(path).read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0
    return pid if pid and records.start_ticks(pid) else 0


async def state_of(client: Client, id: ContainerID) -> ContainerState:
    found = [state for state in await persistent(client.list) if state.id == id]
    assert len(found) == 1, f"{id} is listed {len(found)} times"
    return found[0]


async def ended(client: Client, id: ContainerID) -> ContainerState:
    """Waits for the recorded end of a run."""
    deadline = time.monotonic() + PATIENCE
    while True:
        state = await state_of(client, id)
        if state.exit is not None or state.start_error is not None:
            return state
        assert time.monotonic() < deadline, f"{id} did not end"
        await asyncio.sleep(0.01)
