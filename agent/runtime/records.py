"""What is known of each run, on disk: intent, started, exit, start_error, each by write, fsync, rename.

    <data>/pods/<uid>/sandbox.json                            the pod's SandboxSpec and the boot it was made in
    <data>/pods/<uid>/runs/<container>/<attempt>/intent.json  before anything is made: the spec, the cgroup, the boot
                                                /started.json after execve: pid, start ticks, boot, time
                                                /exit.json    the end: code, signal, oom, time, reason, message, usage
                                                /start_error.json  it never ran: reason, message, exit code
    <data>/pods/<uid>/work/<container>-<attempt>/             what launch needs (upper folder, files, last message)
    <data>/trash/                                             what a sweeper deletes out of line
    <run>/private/<uid>/<container>-<attempt>.json            command and environment, which may hold Secrets: in memory

The blocks of started.json and exit.json are reserved with the intent: a full disk cannot take away how a run ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shoal.agent.runtime.trees import delete_tree

RESERVED = 4096  # bytes, one block: every started record, and every exit record without a message, fits into it
EXIT_RESERVED = 2 * RESERVED  # most messages are short; one that does not fit on a full disk is left out
UNKNOWN = "ContainerStatusUnknown"
UNKNOWN_CODE = 137

PRIVATE = ("argv", "env")  # of a spec: never written to a disk

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The records of one run as they lie on disk."""

    pod: str
    name: str
    attempt: int
    intent: Record | None
    started: Record | None
    exit: Record | None
    start_error: Record | None

    @property
    def ended(self) -> bool:
        return self.exit is not None or self.start_error is not None


def pod_folder(data: str, pod: str) -> str:
    return f"{data}/pods/{pod}"


def run_folder(data: str, pod: str, name: str, attempt: int) -> str:
    return f"{data}/pods/{pod}/runs/{name}/{attempt}"


def work_folder(data: str, pod: str, name: str, attempt: int) -> str:
    return f"{data}/pods/{pod}/work/{name}-{attempt}"


def private_folder(run: str, pod: str) -> str:
    return f"{run}/private/{pod}"


def keep_private(run: str, pod: str, name: str, attempt: int, spec: Record) -> Record:
    """Writes the private part of a spec to the run folder, which is in memory, and gives the rest. Raises OSError."""
    folder = private_folder(run, pod)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write(folder, f"{name}-{attempt}", {key: spec[key] for key in PRIVATE if key in spec})
    return {key: value for key, value in spec.items() if key not in PRIVATE}


def with_private(run: str, pod: str, name: str, attempt: int, spec: Record) -> Record:
    """The whole spec again, as far as it is known."""
    return {"argv": [], "env": {}, **spec, **(read(private_folder(run, pod), f"{name}-{attempt}") or {})}


def drop_private(run: str, pod: str, name: str, attempt: int) -> None:
    try:
        os.unlink(f"{private_folder(run, pod)}/{name}-{attempt}.json")
    except FileNotFoundError:
        pass


def reserve(folder: str, name: str, size: int = RESERVED) -> None:
    """Takes the disk space of a later record, so that a full disk cannot refuse it. Raises OSError."""
    _store(f"{folder}/{name}.reserved", b"".ljust(size))


def write(folder: str, name: str, record: Record) -> None:
    """Makes `record` the content of folder/name.json, whole or not at all. Raises OSError."""
    reserved = f"{folder}/{name}.reserved"
    temporary = reserved if os.path.exists(reserved) else f"{folder}/{name}.tmp"
    _store(temporary, json.dumps(record).encode().ljust(RESERVED))
    os.rename(temporary, f"{folder}/{name}.json")


def write_exit(folder: str, record: Record) -> None:
    """Writes exit.json; the first one stays. Raises OSError."""
    if os.path.exists(f"{folder}/exit.json"):
        return
    try:
        write(folder, "exit", record)
    except OSError:
        if not record.get("message"):
            raise
        write(folder, "exit", {**record, "message": "", "resources": None})


def _store(path: str, data: bytes) -> None:
    """Overwrites in place, within the blocks that a reserved file has already. Raises OSError with the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(fd, data)
        os.ftruncate(fd, len(data))
        os.fsync(fd)
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror, path) from fault
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read(folder: str, name: str) -> Record | None:
    """The record, or None when it is not there. A damaged one is set aside as NAME.damaged and counts as missing."""
    path = f"{folder}/{name}.json"
    try:
        with open(path, "rb") as file:
            record = json.loads(file.read())
        if isinstance(record, dict):
            return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        pass
    try:
        os.rename(path, f"{folder}/{name}.damaged")
    except FileNotFoundError:
        pass
    return None


def read_run(data: str, pod: str, name: str, attempt: int) -> Run:
    folder = run_folder(data, pod, name, attempt)
    return Run(pod, name, attempt, *(read(folder, kind) for kind in ("intent", "started", "exit", "start_error")))


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def pods(data: str) -> list[str]:
    """The pods whose folder is there."""
    return _entries(f"{data}/pods")


def runs(data: str, pod: str) -> Iterator[Run]:
    """Every run of a pod, in order of name and attempt."""
    base = f"{pod_folder(data, pod)}/runs"
    for name in _entries(base):
        for attempt in sorted(int(entry) for entry in _entries(f"{base}/{name}") if entry.isdigit()):
            yield read_run(data, pod, name, attempt)


def exit_record(code: int, signal: int, at: float, *, oom: bool = False, reason: str = "") -> Record:
    return {"code": code, "signal": signal, "oom": oom, "at": at, "reason": reason}


def exit_of_status(status: int, at: float, *, oom_kills: int = 0) -> Record:
    """The record for a wait status (waitpid(2)): 128 + n for signal n. A failure while a process of the container was
    killed for memory is told as such."""
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + signal if signal else os.WEXITSTATUS(status)
    return exit_record(code, signal, at, oom=oom_kills > 0 and code != 0)


def unknown_exit(at: float) -> Record:
    """The record of a container whose end was seen but whose code is lost."""
    return exit_record(UNKNOWN_CODE, 0, at, reason=UNKNOWN)


def start_ticks(pid: int) -> int:
    """/proc/<pid>/stat field 22, or 0 when there is no such process or it is a zombie (proc(5))."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else 0


def parent_of(pid: int) -> int:
    """/proc/<pid>/stat field 4, also of a zombie; 0 when there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def discard(data: str, path: str, label: str) -> None:
    """Moves a folder into the trash, where the sweeper deletes it; a missing one is no error."""
    os.makedirs(f"{data}/trash", exist_ok=True)
    for number in range(1 << 20):
        try:
            os.rename(path, f"{data}/trash/{label}.{number}")
        except FileNotFoundError:
            return
        except OSError:
            if not os.path.exists(f"{data}/trash/{label}.{number}"):
                raise
        else:
            return


def sweep(data: str) -> int:
    """Deletes what lies in the trash; the number of entries that could not be deleted."""
    return sum(not delete_tree(f"{data}/trash/{entry}") for entry in _entries(f"{data}/trash"))
