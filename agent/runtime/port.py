"""The runtime's port: what the agent asks of whatever runs containers on its node.

Two adapters pass one contract suite (tests/node/runtime_contract.py): `client.py`, which talks to the spawner, and
`fake.py` for unit tests and simulation. Everything here is plain data; times are CLOCK_REALTIME seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ContainerID:
    """One run of one container: `attempt` counts from 0 with each restart and is never used twice within a pod."""

    pod_uid: str
    name: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.pod_uid}/{self.name}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Cgroup limits. None means no limit. cpu_shares follows cgroup v1's cpu.shares (2..262144)."""

    cpu_shares: int = 2
    cpu_quota_us: int | None = None  # per 100 ms
    memory_bytes: int | None = None
    pids: int | None = None
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A pod's shared namespaces (net, ipc, uts), its cgroup, its /dev/shm and its supervisor."""

    pod_uid: str
    hostname: str
    limits: Limits = field(default_factory=Limits)
    sysctls: Mapping[str, str] = field(default_factory=dict)  # namespaced ones, set once
    share_pid: bool = False  # one pid namespace for all containers, with a holder that is PID 1 and reaps
    host_network: bool = False  # the node's own namespaces instead
    host_pid: bool = False
    host_ipc: bool = False


@dataclass(frozen=True, slots=True)
class Sandbox:
    pod_uid: str
    netns: str  # path of the bind-mounted nsfs file


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path shown in the container. `source` belongs to the node (volumes/port.py gave it) and is opened by the
    runtime as it is; `sub_path` is resolved below it with RESOLVE_IN_ROOT and NO_MAGICLINKS and made (a folder) when
    missing; `target` is resolved inside the container's root in the same way. Mounted nodev."""

    source: str
    target: str
    read_only: bool = False
    sub_path: str = ""
    propagation: str = "None"  # None, HostToContainer, Bidirectional


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything that one run needs, decided before it starts. `layers` are unpacked folders, lowest first."""

    id: ContainerID
    layers: Sequence[str]
    argv: Sequence[str]
    env: Mapping[str, str]  # complete, but for HOME: if it lacks, the runtime takes it from the image's passwd
    cwd: str
    user: str  # "", "uid", "uid:gid", "name" or "name:group", looked up in the image's own passwd and group
    run_as_user: int | None = None  # these win over `user`
    run_as_group: int | None = None
    run_as_non_root: bool = False  # refuse uid 0 (CreateContainerConfigError)
    read_only_root: bool = False
    no_new_privs: bool = False  # allowPrivilegeEscalation: false
    drop_capabilities: Sequence[str] = ()  # "NET_BIND_SERVICE", "ALL"
    limits: Limits = field(default_factory=Limits)
    files: Mapping[str, str] = field(default_factory=dict)  # path in the container -> content (/etc/hosts, ...), 0644
    log_path: str = ""  # the file that the supervisor writes; rotated beside it
    log_max_bytes: int = 10 * 1024 * 1024
    log_max_files: int = 5
    mounts: Sequence[Mount] = ()  # in order, parents before what lies in them; all are in place before the process
    add_capabilities: Sequence[str] = ()
    supplemental_groups: Sequence[int] = ()  # fsGroup among them
    seccomp: str = ""  # "" the default profile, "unconfined", or an absolute path of a profile on the node (JSON)
    privileged: bool = False  # all capabilities and devices, no masks, no seccomp
    termination_path: str = ""  # a file there is given to the container; what is in it at the end is Exit.message
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """Pressure of one resource: seconds that some, or all, processes of the cgroup were held up."""

    some_seconds: float
    full_seconds: float


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run has used, read from its cgroup before that goes. 0 where the kernel does not say."""

    peak_memory_bytes: int = 0
    memory_limit_bytes: int = 0
    cpu_seconds: float = 0.0
    periods: int = 0
    throttled_periods: int = 0
    throttled_seconds: float = 0.0
    oom_kills: int = 0
    refused_forks: int = 0
    pressure: Mapping[str, Stall] = field(default_factory=dict)  # "cpu", "memory", "io"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended. `code` is 128 + signal when a signal ended it."""

    code: int
    signal: int
    oom: bool  # the kernel killed a process of its cgroup for memory
    at: float
    reason: str = ""  # "" or ContainerStatusUnknown when the code was lost
    message: str = ""  # of the termination file, at most 4 KiB
    resources: Resources | None = None


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container as the node's disk and processes tell it. Neither started nor exited: it was still starting."""

    id: ContainerID
    pid: int  # in the node's pid namespace; 0 before the start
    started_at: float  # 0 before the start
    start_ticks: int  # /proc/<pid>/stat field 22: with the boot id it names the process for ever
    exit: Exit | None
    start_error: StartError | None = None


class RuntimeFault(Exception):
    """Base of the runtime's errors."""


class StartError(RuntimeFault):
    """The container could not be started. `reason` is Kubernetes' word: CreateContainerConfigError, StartError,
    ContainerCannotRun, CreateContainerError, ...; the message says what, where and what to do."""

    def __init__(self, reason: str, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.exit_code = exit_code  # 127 command not found, 126 not executable, else 128


class RuntimeGone(RuntimeFault):
    """The spawner or supervisor does not answer; try again (retryable). Containers are not affected."""


@dataclass(frozen=True, slots=True)
class Started:
    id: ContainerID
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Exited:
    id: ContainerID
    exit: Exit


RuntimeEvent = Started | Exited


class ExecStream(Protocol):
    """A process inside a running container. Reads give b"" at the end of that stream."""

    async def write(self, data: bytes) -> None: ...
    async def close_input(self) -> None: ...
    async def read(self) -> tuple[str, bytes]:
        """The next piece: ("stdout" | "stderr", data) or ("end", b"") when both have ended."""
        ...

    async def resize(self, rows: int, columns: int) -> None: ...
    async def wait(self) -> int:
        """The exit code (128 + signal)."""
        ...

    async def close(self) -> None:
        """Kills the process if it still runs and frees everything."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """A command that a supervisor ran inside a container. `code` is None when its time was up and it was killed."""

    code: int | None
    output: bytes  # stdout and stderr together, the first 10 KiB


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one container or pod cgroup."""

    cpu_seconds: float
    memory_bytes: int  # working set
    pids: int


class Runtime(Protocol):
    """All calls are idempotent: asked twice they do it once. Any may raise RuntimeGone."""

    async def ensure_sandbox(self, spec: SandboxSpec) -> Sandbox: ...

    async def start(self, spec: ContainerSpec) -> ContainerState:
        """Starts one run; returns after execve has succeeded. Raises StartError (kept on disk: the same id fails
        the same way again)."""
        ...

    async def signal(self, id: ContainerID, signal: int) -> None:
        """Signals PID 1 of the container. SIGKILL kills the whole cgroup. An ended container is not an error."""
        ...

    async def remove_container(self, id: ContainerID) -> None:
        """Frees an ended run: mounts, upper folder, cgroup, state. Its log file stays."""
        ...

    async def remove_sandbox(self, pod_uid: str) -> None:
        """Kills what is left of the pod and frees all of it on the node, logs and state too."""
        ...

    async def sandboxes(self) -> Sequence[Sandbox]: ...

    async def list(self) -> Sequence[ContainerState]:
        """Every run that the node still knows, from disk, reconciled with what lives."""
        ...

    def events(self) -> AsyncIterator[RuntimeEvent]:
        """Starts and exits from now on. Raises RuntimeGone when the contact is lost; the caller lists again then, so
        that an exit may come twice."""
        ...

    async def exec(self, id: ContainerID, argv: Sequence[str], *, stdin: bool = False, tty: bool = False) -> ExecStream:
        """Runs a command with the container's own limits, profile, user and environment. Raises StartError."""
        ...

    async def run_probe(self, id: ContainerID, argv: Sequence[str], timeout_s: float) -> ProbeRun:
        """As exec, to its end, without streams. The supervisor itself kills it, and all that it started, after
        `timeout_s`, also when the agent is gone. Raises StartError (code 126, 127: the command cannot be run)."""
        ...

    async def attach(self, id: ContainerID, *, stdin: bool = False) -> ExecStream:
        """The container's own streams from now on, beside its log. close() only lets go. Raises RuntimeFault."""
        ...

    async def usage(self) -> Mapping[ContainerID, Usage]: ...
