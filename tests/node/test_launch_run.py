"""Containers run: commands, exit codes, users, environment, working folder, managed files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime.launch import LaunchError
from tests.node.launching import Host, needs_root, script

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def users(host: Host) -> None:
    script(host.root, "etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n", 0o644)
    script(host.root, "etc/group", "root:x:0:\nweb:x:102:\nlogs:x:103:web,other\ndata:x:104:web\n", 0o644)


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(host: Host, code: int) -> None:
    assert host.run("/bin/sh", "-c", f"exit {code}").code == code


def test_the_command_is_pid_1_and_alone(host: Host) -> None:
    run = host.start("sh", "-c", "echo $$ /proc/[0-9]*; exec sleep 60")
    run.pump("\n")
    assert run.out == "1 /proc/1\n"
    stat = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()
    assert run.start_ticks == int(stat[19]) > 0
    run.kill()
    assert run.wait() == -signal.SIGKILL


def test_environment_is_exactly_the_spec(host: Host) -> None:
    env = {"PATH": "/bin", "HOME": "/h", "A": "1", "UMLAUT": "ä", "EMPTY": ""}
    assert host.run("env", env=env).out == "PATH=/bin\nHOME=/h\nA=1\nUMLAUT=ä\nEMPTY=\n"


def test_home_comes_from_the_image_unless_given(host: Host) -> None:
    script(host.root, "etc/passwd", "web:x:101:102::/srv/web:/bin/sh\n", 0o644)
    assert host.shell("echo $HOME", user="web") == "/srv/web\n"
    assert host.shell("echo $HOME", user="web", env={"PATH": "/bin", "HOME": "/x"}) == "/x\n"
    assert host.shell("echo $HOME", run_as_user=55) == "/\n"


def test_a_user_whose_name_is_a_number_gives_no_rights(host: Host) -> None:
    script(host.root, "etc/passwd", "1000:x:0:0::/:/bin/sh\n", 0o644)
    script(host.root, "etc/group", "1000:x:0:1000\n", 0o644)
    for fields in ({"run_as_user": 1000}, {"user": "1000"}, {"user": "1000:1000"}):
        assert host.shell("id -u", **fields) == "1000\n"
    assert host.shell("id -g; id -G", user="1000:1000") == "1000\n1000\n"


def test_a_run_is_never_started_twice(host: Host) -> None:
    run = host.start("sh", "-c", "echo up; exec sleep 60")
    run.pump("up")
    host.attempt -= 1
    with pytest.raises(LaunchError, match="already"):
        host.start("true")
    assert host.cgroups.pids(host.path) == {run.pid}
    assert host.exec(run, "true").wait() == 0


def test_path_lookup_happens_inside(host: Host) -> None:
    script(host.root, "opt/mine/tool", "#!/bin/sh\necho found $1\n")
    assert host.run("tool", "x", env={"PATH": "/nowhere:/opt/mine"}).out == "found x\n"


@pytest.mark.parametrize("command", ["missing", "/bin/missing", "./missing", "/bin/busybox/missing"])
def test_command_not_found_is_127(host: Host, command: str) -> None:
    error = host.refuse(command)
    assert (error.exit_code, error.reason) == (127, "ContainerCannotRun")
    assert command in error.message
    assert "not found" in error.message


def test_missing_interpreter_says_so(host: Host) -> None:
    script(host.root, "bin/odd", "#!/usr/bin/no-such-shell\n")
    error = host.refuse("odd")
    assert error.exit_code == 127
    assert "interpreter" in error.message


@pytest.mark.parametrize(("text", "mode"), [("#!/bin/sh\n", 0o644), ("no format at all", 0o755)])
def test_not_executable_is_126(host: Host, text: str, mode: int) -> None:
    script(host.root, "bin/odd", text, mode)
    error = host.refuse("odd")
    assert (error.exit_code, error.reason) == (126, "ContainerCannotRun")
    assert host.refuse("/bin").exit_code == 126


def test_a_path_folder_that_is_closed_to_the_user_is_126(host: Host) -> None:
    script(host.root, "secret/tool", "#!/bin/sh\n")
    (host.root / "secret").chmod(0o700)
    assert host.refuse("tool", env={"PATH": "/secret"}, run_as_user=1000).exit_code == 126


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0 0 0"),
        ("web", "101 102 102 103 104"),
        ("101", "101 102 102 103 104"),
        ("web:data", "101 104 104"),
        ("web:55", "101 55 55"),
        ("7", "7 0 0"),
        ("7:8", "7 8 8"),
    ],
)
def test_user_of_the_image(host: Host, user: str, expected: str) -> None:
    users(host)
    assert host.shell("echo $(id -u) $(id -g) $(id -G)", user=user).strip() == expected


def test_run_as_wins_over_the_image(host: Host) -> None:
    users(host)
    ids = "echo $(id -u) $(id -g) $(id -G)"
    assert host.shell(ids, user="web", run_as_user=7).strip() == "7 0 0"
    assert host.shell(ids, user="0", run_as_user=101).strip() == "101 102 102 103 104"
    assert host.shell(ids, user="web", run_as_user=7, run_as_group=9).strip() == "7 9 9"
    assert host.shell(ids, user="web", run_as_group=9).strip().startswith("101 9 9")


def test_unknown_users_and_root_under_non_root(host: Host) -> None:
    users(host)
    for user, word in (("nobody-here", "passwd"), ("web:nogroup", "group"), ("99999999999", "number")):
        error = host.refuse("true", user=user)
        assert error.reason == "CreateContainerConfigError"
        assert word in error.message
    error = host.refuse("true", run_as_non_root=True)
    assert error.reason == "CreateContainerConfigError"
    assert "runAsNonRoot" in error.message
    assert host.run("true", user="web", run_as_non_root=True).code == 0


def test_a_fifo_as_passwd_does_not_hang(host: Host) -> None:
    (host.root / "etc").mkdir()
    os.mkfifo(host.root / "etc/passwd")
    assert host.run("true", user="5:5").code == 0


def test_working_folder_is_made_and_used(host: Host) -> None:
    assert host.shell("pwd", cwd="/srv/new/place") == "/srv/new/place\n"
    assert not (host.root / "srv").exists()  # the image's layer is untouched
    assert host.shell("pwd", cwd="") == "/\n"
    assert host.refuse("true", cwd="relative").reason == "CreateContainerConfigError"
    error = host.refuse("true", cwd="/bin/busybox")
    assert "working directory" in error.message


def test_managed_files(host: Host) -> None:
    files = {"/etc/hosts": "10.1.2.3 pod\n", "/etc/hostname": "pod-one\n", "/deep/er/file": "x"}
    out = host.shell("cat /etc/hosts /etc/hostname /deep/er/file; stat -c %a /etc/hosts; hostname", files=files)
    assert out == "10.1.2.3 pod\npod-one\nx644\npod-one\n"


def test_loopback_is_up_and_low_ports_are_free(host: Host) -> None:
    text = "nc -l -p 80 127.0.0.1 >/tmp/got & until echo hello | nc -w 1 127.0.0.1 80; do :; done; wait; cat /tmp/got"
    (host.root / "tmp").mkdir()
    (host.root / "tmp").chmod(0o1777)
    (host.root / "bin/nc").symlink_to("busybox")
    assert host.shell(text, run_as_user=1000) == "hello\n"


def test_streams_can_be_reopened_by_the_user(host: Host) -> None:
    run = host.run("sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr", run_as_user=1000)
    assert (run.code, run.out, run.err) == (0, "out\n", "err\n")


def test_signals_start_unblocked_and_with_defaults(host: Host) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        out = host.run("cat", "/proc/self/status").out
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    fields = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert int(fields["SigBlk"], 16) == 0
    assert int(fields["SigIgn"], 16) == 0


@pytest.mark.parametrize("fields", [{"env": {"A=B": "x"}}, {"env": {"": "x"}}, {"env": {"A": "x\0y"}}, {"user": "a\0"}])
def test_values_that_cannot_be_passed(host: Host, fields: dict[str, object]) -> None:
    error = host.refuse("true", **fields)
    assert error.reason == "CreateContainerConfigError"
    assert "NUL" in error.message


@pytest.mark.parametrize("fields", [{"env": {"A": "\ud800"}}, {"files": {"/x": "\ud800"}}, {"cwd": "/\ud800"}])
def test_text_that_is_no_unicode(host: Host, fields: dict[str, object]) -> None:
    error = host.refuse("true", **fields)
    assert error.reason == "CreateContainerConfigError"
    assert "Unicode" in error.message


def test_too_long_arguments(host: Host) -> None:
    error = host.refuse("true", "x" * (1 << 20))
    assert error.exit_code == 126
    assert "too long" in error.message


def test_no_descriptor_leaks_in_either_direction(host: Host) -> None:
    before = set(os.listdir("/proc/self/fd"))
    leak = os.open("/", os.O_RDONLY)  # close-on-exec is off on purpose
    os.set_inheritable(leak, True)
    try:
        out = host.run("ls", "/proc/1/fd").out
        assert out.split() == ["0", "1", "2", "3"]  # 3 is the listing's own
    finally:
        os.close(leak)
    host.refuse("missing")
    assert set(os.listdir("/proc/self/fd")) == before
