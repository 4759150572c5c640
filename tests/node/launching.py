"""What the tests of the container's launch share: a root file system of busybox, a sandbox, cgroups, and runs in them.

Everything made here goes again when the Host closes, also after a failed test.
"""

from __future__ import annotations

import functools
import os
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from shoal.agent.runtime import launch, namespaces, seccomp, syscalls
from shoal.agent.runtime.cgroups import open_cgroups

BUSYBOX = "/bin/busybox"  # Debian's busybox-static
APPLETS = (
    "sh true false ls cat echo id mount ps sleep env dd stat readlink tail chmod ping hostname touch head wc mkdir "
    "ln rm sort test grep"
)
TIMEOUT_S = 90.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: containers are made for real")


@functools.cache
def profile() -> bytes:
    """The default seccomp profile, compiled once per test run."""
    return seccomp.compile_profile()


def make_root(folder: Path) -> Path:
    """A root file system with busybox and its usual names."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for name in APPLETS.split():
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def script(root: Path, name: str, text: str, mode: int = 0o755) -> None:
    """Writes an executable file into a root file system."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def elf64(code: bytes) -> bytes:
    """The smallest static x86_64 program: one loaded segment that starts with its own headers."""
    base, headers = 0x400000, 64 + 56
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = headers + len(code)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def elf32(code: bytes) -> bytes:
    """The same for i386."""
    base, headers = 0x8048000, 52 + 32
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    head = struct.pack("<16sHHIIIIIHHHHHH", ident, 2, 3, 1, base + headers, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = headers + len(code)
    return head + struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 5, 0x1000) + code


def probe(number: int, *arguments: int) -> bytes:
    """A program that makes one system call and exits with its errno (0: it succeeded)."""
    loads = [b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8"]  # movabs rdi, rsi, rdx, r10, r8
    code = b"\xb8" + struct.pack("<I", number)
    for load, value in zip(loads, (*arguments, 0, 0, 0, 0, 0), strict=False):
        code += load + struct.pack("<Q", value)
    # syscall; neg eax; jns +2 (skip the next); xor eax,eax; mov edi,eax; mov eax,60; syscall
    code += b"\x0f\x05\xf7\xd8\x79\x02\x31\xc0\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05"
    return elf64(code)


class Run:
    """A started process with the reading ends of its streams."""

    def __init__(self, launched: launch.Launched, out: int, err: int) -> None:
        self.pid = launched.pid
        self.pidfd = launched.pidfd
        self.start_ticks = launched.start_ticks
        self._streams = {out: b"", err: b""}
        self._out, self._err = out, err
        self.code: int | None = None

    @property
    def out(self) -> str:
        return self._streams[self._out].decode(errors="replace")

    @property
    def err(self) -> str:
        return self._streams[self._err].decode(errors="replace")

    def pump(self, until: str | None = None) -> None:
        """Reads both streams to their end, or until stdout contains `until`."""
        poller = select.poll()
        open_streams = set(self._streams)
        for fd in open_streams:
            poller.register(fd, select.POLLIN)
        deadline = time.monotonic() + TIMEOUT_S
        while open_streams and (until is None or until not in self.out):
            assert time.monotonic() < deadline, f"no end within {TIMEOUT_S} s; so far: {self.out!r} {self.err!r}"
            for fd, _ in poller.poll(1000):
                part = os.read(fd, 65536)
                self._streams[fd] += part
                if not part:
                    poller.unregister(fd)
                    open_streams.discard(fd)

    def wait(self) -> int:
        """The exit code, or minus the signal, after both streams have ended."""
        if self.code is None:
            self.pump()
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
            os.close(self.pidfd)
            os.close(self._out)
            os.close(self._err)
        return self.code

    def kill(self) -> None:
        if self.code is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Host:
    """One pod's surroundings. `layers` is the image; spec fields come as keywords of start, run and refuse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = make_root(folder / "root")
        self.layers = [str(self.root)]
        self.sandbox = str(folder / "sandbox")
        self.cgroups = open_cgroups(f"shoal-test-{os.getpid()}/n1")
        self.attempt = 0
        self.runs: list[Run] = []
        self.stdin = "/dev/null"
        self.path = ""  # of the last run's cgroup
        self.work = ""

    def __enter__(self) -> Host:
        namespaces.make_sandbox(self.sandbox, "pod-one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        top = self.cgroups.base.partition("/")[0]
        self.cgroups.kill(top)
        for run in self.runs:
            run.wait()
        assert self.cgroups.wait_empty(top, TIMEOUT_S)
        assert self.cgroups.remove(top)
        namespaces.free_sandbox(self.sandbox)
        assert str(self.folder) not in Path("/proc/self/mountinfo").read_text()

    def spec(self, *argv: str, **fields: Any) -> dict[str, Any]:
        """The JSON form of a ContainerSpec."""
        limits = {"cpu_shares": 100, "cpu_quota_us": None, "memory_bytes": None, "pids": None, "oom_score_adj": 0}
        limits |= fields.pop("limits", {})
        spec: dict[str, Any] = {
            "id": {"pod_uid": "pod-1", "name": "main", "attempt": self.attempt},
            "layers": self.layers,
            "argv": list(argv),
            "env": {"PATH": "/bin"},
            "cwd": "/",
            "user": "",
            "run_as_user": None,
            "run_as_group": None,
            "run_as_non_root": False,
            "read_only_root": False,
            "no_new_privs": False,
            "drop_capabilities": [],
            "limits": limits,
            "files": {},
            "mounts": [],
            "add_capabilities": [],
            "supplemental_groups": [],
            "seccomp": "",
            "privileged": False,
            "termination_path": "",
        }
        assert set(fields) <= set(spec), f"no such field: {set(fields) - set(spec)}"
        return spec | fields

    def start(self, *argv: str, **fields: Any) -> Run:
        """Launches a container with pipes for its output."""
        self.attempt += 1
        spec = self.spec(*argv, **fields)
        self.path = launch.container_cgroup(spec, self.cgroups)
        self.work = tempfile.mkdtemp(prefix="run-", dir=self.folder)

        def begin(stdin: int, stdout: int, stderr: int) -> launch.Launched:
            return launch.launch(
                spec,
                sandbox=self.sandbox,
                cgroups=self.cgroups,
                work=self.work,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                seccomp_bpf=profile(),
            )

        return self._with_streams(begin)

    def exec(self, inside: Run, *argv: str, **fields: Any) -> Run:
        """Launches a command in a running container (the last one started)."""
        spec = self.spec("unused", **fields)

        def begin(stdin: int, stdout: int, stderr: int) -> launch.Launched:
            return launch.launch_exec(
                spec,
                argv=argv,
                pid=inside.pid,
                pidfd=inside.pidfd,
                cgroups=self.cgroups,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                seccomp_bpf=profile(),
            )

        return self._with_streams(begin)

    def _with_streams(self, begin: Callable[[int, int, int], launch.Launched]) -> Run:
        stdin = os.open(self.stdin, os.O_RDONLY | os.O_CLOEXEC)
        out, out_child = os.pipe2(os.O_CLOEXEC)
        err, err_child = os.pipe2(os.O_CLOEXEC)
        try:
            run = Run(begin(stdin, out_child, err_child), out, err)
        except BaseException:
            os.close(out)
            os.close(err)
            raise
        finally:
            for fd in (stdin, out_child, err_child):
                os.close(fd)
        self.runs.append(run)
        return run

    def run(self, *argv: str, **fields: Any) -> Run:
        """Launches a container and waits for its end."""
        run = self.start(*argv, **fields)
        run.wait()
        return run

    def shell(self, text: str, **fields: Any) -> str:
        """The output of a shell command that must succeed."""
        run = self.run("sh", "-c", text, **fields)
        assert run.code == 0, (run.code, run.out, run.err)
        return run.out

    def refuse(self, *argv: str, **fields: Any) -> launch.LaunchError:
        """The error of a launch that must fail and leave nothing."""
        with pytest.raises(launch.LaunchError) as caught:
            self.start(*argv, **fields)
        assert not os.path.exists(self.work)
        for folder in self.cgroups.folders(self.path):
            assert not os.path.exists(folder)
        return caught.value

    def probe(self, number: int, *arguments: int, **fields: Any) -> int:
        """The errno of one system call inside a container."""
        if syscalls.MACHINE != "x86_64":
            pytest.skip("the probes are x86_64 programs")
        path = self.root / "probe"
        path.write_bytes(probe(number, *arguments))
        path.chmod(0o755)
        code = self.run("/probe", **fields).code
        assert code is not None
        return code
