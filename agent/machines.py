"""The machine the agent runs on: a real one, read from /proc, or a node of the development cluster, told by flags."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.agent.machine import Amount, Capacity, MachineInfo, MachineUsage, Signals
from shoal.agent.runtime.cgroups import Room

DEFAULT_PODS = 110  # the kubelet's
NO_ROOM = Room(0, 0, 0, 0)
IDLE, IO_WAIT = 3, 4  # fields of /proc/stat's first line
OCI_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a flag says instead of the machine; None and "" leave it to the machine."""

    milli_cpu: int | None = None
    memory_bytes: int | None = None
    pods: int | None = None
    ephemeral_storage_bytes: int | None = None
    boot_id: str = ""


class RealMachine:
    """Implements machine.Machine from /proc and /etc. `data` is the folder whose disk holds the pods."""

    def __init__(
        self,
        data: Path,
        overrides: Overrides | None = None,
        proc: Path = Path("/proc"),
        pods: Callable[[], Room] | None = None,
    ) -> None:
        """`pods`: what the limits of all pods together leave."""
        self._data = data
        self._overrides = overrides or Overrides()
        self._proc = proc
        self._pods = pods
        self._info = self._read_info()

    def capacity(self) -> Capacity:
        told = self._overrides
        return Capacity(
            milli_cpu=1000 * (os.cpu_count() or 1) if told.milli_cpu is None else told.milli_cpu,
            memory_bytes=self._memory() if told.memory_bytes is None else told.memory_bytes,
            pods=DEFAULT_PODS if told.pods is None else told.pods,
            ephemeral_storage_bytes=self._storage()
            if told.ephemeral_storage_bytes is None
            else told.ephemeral_storage_bytes,
        )

    def info(self) -> MachineInfo:
        return self._info

    def usage(self) -> MachineUsage:
        ticks = [int(field) for field in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = sum(ticks) - ticks[IDLE] - ticks[IO_WAIT]  # proc(5): guests are counted within user and nice
        memory = self._meminfo("MemTotal") - self._meminfo("MemAvailable")
        return MachineUsage(busy / os.sysconf("SC_CLK_TCK"), memory)

    def signals(self) -> Signals:
        disk = os.statvfs(self._data)
        memory = Amount(self._meminfo("MemAvailable"), self._memory())
        pods = self._pods() if self._pods is not None else NO_ROOM
        return Signals(
            memory,
            Amount(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize),
            Amount(disk.f_favail, disk.f_files),
            self._pids(),
            _left(pods.memory_limit, pods.memory_used),
            _left(pods.pids_limit, pods.pids_used),
        )

    def pids_capacity(self) -> int:
        """Processes and threads that the kernel allows; 0 when it does not say."""
        limits = [_first_line(self._proc / "sys/kernel" / name) for name in ("pid_max", "threads-max")]
        return min((int(text) for text in limits if text.isdigit()), default=0)

    def _pids(self) -> Amount:
        tasks = (self._proc / "loadavg").read_text().split()[3].partition("/")[2]  # proc(5): running/all
        return _left(self.pids_capacity(), int(tasks))

    def _memory(self) -> int:
        return self._meminfo("MemTotal")

    def _meminfo(self, name: str) -> int:
        for line in (self._proc / "meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._proc}/meminfo does not say {name}")

    def _storage(self) -> int:
        disk = os.statvfs(self._data)
        return disk.f_blocks * disk.f_frsize

    def _read_info(self) -> MachineInfo:
        system = platform.uname()
        boot_id = self._overrides.boot_id or _first_line(self._proc / "sys/kernel/random/boot_id")
        return MachineInfo(
            machine_id=_first_line(Path("/etc/machine-id")),
            boot_id=boot_id,
            kernel=system.release,
            os_image=_os_image(Path("/etc/os-release")),
            architecture=OCI_ARCHITECTURES.get(system.machine, system.machine),
            hostname=socket.gethostname(),
        )


class DevNode:
    """A development node: everything but its share, name and boot is the host's."""

    def __init__(
        self,
        host: RealMachine,
        name: str,
        capacity: Capacity,
        boot_id: str = "",
        used: Callable[[], tuple[float, int, int]] | None = None,
        room: Callable[[], Room] | None = None,
    ) -> None:
        """`used`: what its cgroup says (CPU seconds, memory in bytes, processes); `room`: what its limits leave."""
        self._host = host
        self._name = name
        self._capacity = capacity
        self._boot_id = boot_id
        self._used = used
        self._room = room

    def capacity(self) -> Capacity:
        return self._capacity

    def usage(self) -> MachineUsage:
        if self._used is None:
            return self._host.usage()
        cpu_seconds, memory_bytes, _ = self._used()
        return MachineUsage(cpu_seconds, memory_bytes)

    def signals(self) -> Signals:
        """Where its cgroup has no limit, the host's own count."""
        host, room = self._host.signals(), self._room() if self._room is not None else NO_ROOM
        memory = _left(room.memory_limit, room.memory_used) if room.memory_limit else host.memory
        pids = _left(room.pids_limit, room.pids_used) if room.pids_limit else host.pids
        return replace(host, memory=memory, pids=pids)

    def info(self) -> MachineInfo:
        host = self._host.info()
        return MachineInfo(
            machine_id=f"{host.machine_id}-{self._name}" if host.machine_id else self._name,
            boot_id=self._boot_id or host.boot_id,
            kernel=host.kernel,
            os_image=host.os_image,
            architecture=host.architecture,
            hostname=self._name,
        )


def _left(limit: int, used: int) -> Amount:
    return Amount(max(limit - used, 0), limit)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip().partition("\n")[0]
    except OSError:
        return ""


def _os_image(path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return "Linux"
    for line in lines:
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip('"')
    return "Linux"
