"""A command inside a running container joins all of it, and nothing more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime import launch
from tests.node.launching import Host, Run, needs_root, profile, script

pytestmark = [pytest.mark.root, needs_root]
NAMESPACES = ("net", "ipc", "uts", "pid", "mnt", "cgroup")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def idle(host: Host, **fields: object) -> Run:
    """A container that does nothing, ready for company."""
    run = host.start("sh", "-c", "echo up; exec sleep 600", **fields)
    run.pump("up")
    return run


def test_exec_joins_namespaces_and_cgroup(host: Host) -> None:
    main = idle(host)
    inside = host.exec(main, "sh", "-c", "for n in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$n; done; cat")
    assert inside.wait() == 0
    assert inside.out.split() == [os.readlink(f"/proc/{main.pid}/ns/{name}") for name in NAMESPACES]
    sleeper = host.exec(main, "sleep", "600")
    assert host.cgroups.pids(host.path) == {main.pid, sleeper.pid}
    assert Path(f"/proc/{sleeper.pid}/cgroup").read_text() == Path(f"/proc/{main.pid}/cgroup").read_text()
    sleeper.kill()
    assert sleeper.wait() == -signal.SIGKILL
    assert host.exec(main, "readlink", "/proc/self/ns/pid").wait() == 0
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")


def test_exec_has_the_same_user_privileges_and_environment(host: Host) -> None:
    script(host.root, "etc/passwd", "web:x:101:102::/:/bin/sh\n", 0o644)
    fields = {
        "user": "web",
        "no_new_privs": True,
        "drop_capabilities": ["ALL"],
        "cwd": "/bin",
        "env": {"PATH": "/bin", "A": "b"},
        "limits": {"oom_score_adj": 77},
    }
    main = idle(host, **fields)
    run = host.exec(
        main, "sh", "-c", "pwd; id -u; id -g; echo $A; cat /proc/self/oom_score_adj /proc/self/status", **fields
    )
    assert run.wait() == 0
    assert run.out.splitlines()[:5] == ["/bin", "101", "102", "b", "77"]
    wanted = ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp", "Groups", "Uid", "Gid")
    theirs = Path(f"/proc/{main.pid}/status").read_text()
    for name in wanted:
        lines = {line for text in (run.out, theirs) for line in text.splitlines() if line.startswith(name + ":")}
        assert len({tuple(line.split()[1:]) for line in lines}) == 1, lines


def test_exec_sees_the_containers_files_and_reports_codes(host: Host) -> None:
    main = host.start("sh", "-c", "echo secret > /made; echo up; exec sleep 600")
    main.pump("up")
    assert host.exec(main, "cat", "/made").wait() == 0
    assert host.runs[-1].out == "secret\n"
    assert host.exec(main, "sh", "-c", "exit 9").wait() == 9
    assert host.exec(main, "sh", "-c", "kill -TERM $$").wait() == -signal.SIGTERM
    for argv, code in ((["missing"], 127), (["/made"], 126)):
        with pytest.raises(launch.LaunchError) as caught:
            host.exec(main, *argv)
        assert caught.value.exit_code == code
    assert main.code is None
    assert host.cgroups.pids(host.path) == {main.pid}


def test_exec_in_an_ended_container(host: Host) -> None:
    main = idle(host)
    main.kill()
    os.waitid(os.P_PIDFD, main.pidfd, os.WEXITED | os.WNOWAIT)
    with pytest.raises(launch.LaunchError) as caught:
        host.exec(main, "true")
    assert caught.value.reason in ("StartError", "CreateContainerError")


def test_the_interpreter_cannot_be_opened_during_exec(host: Host) -> None:
    """The container looks at /proc/*/exe all the time while commands are started in it: it may only ever open its own
    programs (CVE-2019-5736, CVE-2016-9962)."""
    spy = (
        "while :; do for p in /proc/[0-9]*; do head -c 65536 $p/exe | grep -aq -e Py_BytesMain && echo HIT; done; done"
    )
    main = host.start("sh", "-c", f"echo up; {spy} 2>/dev/null")
    main.pump("up")
    for _ in range(40):
        assert host.exec(main, "true").wait() == 0
    main.kill()
    main.wait()
    assert "HIT" not in main.out


def test_exec_does_not_trust_the_containers_null_device(host: Host) -> None:
    main = host.start("sh", "-c", "rm /dev/null; echo evil > /dev/null; echo up; exec sleep 600")
    main.pump("up")
    with pytest.raises(launch.LaunchError, match="standard streams"):
        host.exec(main, "cat")


def test_exec_with_a_vanished_working_folder(host: Host) -> None:
    main = host.start("sh", "-c", "rm -r /gone; ln -s /proc/1/root /gone; echo up; exec sleep 600", cwd="/gone")
    main.pump("up")
    with pytest.raises(launch.LaunchError, match="working directory"):
        host.exec(main, "true", cwd="/gone")


@pytest.mark.parametrize("own", [True, False])
def test_exec_on_a_terminal(host: Host, own: bool) -> None:
    """The terminal is the command's controlling one, belongs to its user, and has a name in the container; where a
    volume hides the container's terminals it is one of the node's."""
    volume = host.folder / "volume"
    volume.mkdir()
    mounts = [] if own else [{"source": str(volume), "target": "/dev/pts"}]
    main = idle(host, run_as_user=1000, mounts=mounts)
    master, slave = os.openpty()
    spec = host.spec("unused", run_as_user=1000)
    script = "test -t 0 && echo on a tty > /dev/tty; stat -L -c %u /proc/self/fd/0; readlink /proc/self/fd/0"
    launched = launch.launch_exec(
        spec,
        argv=["sh", "-c", script],
        pid=main.pid,
        pidfd=main.pidfd,
        cgroups=host.cgroups,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        seccomp_bpf=profile(),
        terminal=True,
    )
    os.close(slave)
    assert (launched.terminal >= 0) == own
    if own:
        os.close(master)
        master = launched.terminal
    seen = b""
    try:
        while part := os.read(master, 4096):
            seen += part
    except OSError:
        pass  # EIO: the other side is closed
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(launched.pid, 0)[1]) == 0
    os.close(launched.pidfd)
    lines = seen.decode().split("\r\n")
    assert lines[:2] == ["on a tty", "1000"]
    if own:
        assert lines[2] == "/dev/pts/0"
