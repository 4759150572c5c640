"""What a container cannot do: privileges, system calls, hidden paths, escapes through the image's own contents."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime import caps, syscalls
from tests.node.launching import Host, elf32, elf64, needs_root, script

pytestmark = [pytest.mark.root, needs_root]

# x86_64 call numbers of the probes.
SYS = {
    "socket": 41,
    "clone": 56,
    "ptrace": 101,
    "personality": 135,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "reboot": 169,
    "init_module": 175,
    "add_key": 248,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "open_by_handle_at": 304,
    "setns": 308,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "open_tree": 428,
    "clone3": 435,
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        ([], caps.mask(caps.DEFAULT)),
        (["NET_BIND_SERVICE"], caps.mask(caps.DEFAULT - {"NET_BIND_SERVICE"})),
        (["CAP_CHOWN", "kill", "NET_RAW"], caps.mask(caps.DEFAULT - {"CHOWN", "KILL"})),
        (["ALL"], 0),
    ],
)
@pytest.mark.parametrize("no_new_privs", [False, True])
def test_capabilities(host: Host, drop: list[str], kept: int, no_new_privs: bool) -> None:
    run = host.run("cat", "/proc/self/status", drop_capabilities=drop, no_new_privs=no_new_privs)
    fields = status(run.out)
    assert [int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [kept] * 3
    assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
    assert fields["NoNewPrivs"] == str(int(no_new_privs))
    assert fields["Seccomp"] == "2"


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_capabilities_of_a_user(host: Host, no_new_privs: bool) -> None:
    run = host.run("cat", "/proc/self/status", run_as_user=1000, no_new_privs=no_new_privs)
    fields = status(run.out)
    assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16) == int(fields["CapAmb"], 16) == 0
    assert int(fields["CapBnd"], 16) == caps.mask(caps.DEFAULT)
    assert fields["Seccomp"] == "2"


def test_set_user_id_programs_follow_no_new_privs(host: Host) -> None:
    """The program exits with its effective user id."""
    if syscalls.MACHINE != "x86_64":
        pytest.skip("the program is for x86_64")
    geteuid_then_exit = b"\xb8\x6b\x00\x00\x00\x0f\x05\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05"
    (host.root / "who").write_bytes(elf64(geteuid_then_exit))
    (host.root / "who").chmod(0o4755)
    assert host.run("/who", run_as_user=77).code == 0
    assert host.run("/who", run_as_user=77, no_new_privs=True).code == 77


def test_unknown_capability(host: Host) -> None:
    error = host.refuse("true", drop_capabilities=["FLY"])
    assert error.reason == "CreateContainerConfigError"
    assert "FLY" in error.message


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unshare", (syscalls.CLONE_NEWUSER,)),
        ("setns", (0, 0)),
        ("mount", ()),
        ("umount2", ()),
        ("open_tree", (-100 & (1 << 64) - 1, 0, 1)),
        ("bpf", ()),
        ("keyctl", ()),
        ("add_key", ()),
        ("perf_event_open", ()),
        ("userfaultfd", ()),
        ("io_uring_setup", (1, 0)),
        ("open_by_handle_at", ()),
        ("init_module", ()),
        ("kexec_file_load", ()),
        ("reboot", ()),
        ("swapon", ()),
        ("clone", (syscalls.CLONE_NEWUSER,)),
        ("clone", (syscalls.CLONE_NEWNS | 17,)),
        ("personality", (0x0400000,)),  # READ_IMPLIES_EXEC
        ("socket", (40, 1, 0)),  # AF_VSOCK
        ("socket", ((1 << 32) + 40, 1, 0)),  # the kernel sees AF_VSOCK here too
        ("socket", (38, 5, 0)),  # AF_ALG
    ],
)
def test_refused_calls(host: Host, name: str, arguments: tuple[int, ...]) -> None:
    assert host.probe(SYS[name], *arguments) == errno.EPERM


def test_allowed_calls_and_the_fallback_from_clone3(host: Host) -> None:
    assert host.probe(SYS["clone3"], 0, 0) == errno.ENOSYS
    assert host.probe(SYS["socket"], 1, 1, 0) == 0
    assert host.probe(SYS["socket"], 2, 1, 0) == 0
    assert host.probe(SYS["personality"], 0xFFFFFFFF) == 0


def test_x32_calls_are_refused(host: Host) -> None:
    assert host.probe(0x40000000 + 39) == errno.EPERM


def test_i386_calls_are_refused(host: Host) -> None:
    """exit(42) through int 0x80; refused, it runs into an instruction that ends it by a signal."""
    if syscalls.MACHINE != "x86_64":
        pytest.skip("the probe is an i386 program")
    code = b"\xb8" + struct.pack("<I", 1) + b"\xbb" + struct.pack("<I", 42) + b"\xcd\x80\x0f\x0b"
    (host.root / "probe32").write_bytes(elf32(code))
    (host.root / "probe32").chmod(0o755)
    run = host.run("/probe32")
    assert run.code is not None
    assert run.code < 0


def test_hidden_paths_are_empty(host: Host) -> None:
    """Which of them exist depends on the kernel; what exists shows nothing."""
    hidden = [
        path for path in ("/proc/keys", "/proc/timer_list", "/proc/kcore", "/proc/interrupts") if Path(path).exists()
    ]
    assert hidden
    assert host.run("cat", *hidden).out == ""
    folders = [path for path in ("/proc/acpi", "/proc/scsi", "/sys/firmware") if Path(path).is_dir()]
    assert host.shell(f"for f in {' '.join(folders)}; do ls -A $f; done") == ""


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/new", "/sys/fs/cgroup/new"],
)
def test_kernel_paths_are_read_only(host: Host, path: str) -> None:
    if path.startswith("/proc") and not Path(path).exists():
        pytest.skip("this kernel does not have it")
    run = host.run("sh", "-c", f"echo x > {path}")
    assert run.code != 0
    assert "ead-only" in run.err


def test_own_limits_cannot_be_lifted(host: Host) -> None:
    files = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory.max"
    run = host.run("sh", "-c", f"for f in {files}; do test -e $f && echo seen && echo 1 > $f && echo wrote; done; true")
    assert "seen" in run.out
    assert "wrote" not in run.out


def test_read_only_root(host: Host) -> None:
    run = host.run(
        "sh", "-c", "touch /new; touch /etc/hosts; echo x >/etc/hosts", read_only_root=True, files={"/etc/hosts": "h"}
    )
    assert run.code != 0
    assert run.err.count("ead-only") == 3
    assert host.shell("touch /new && echo x > /dev/shm/y && echo ok") == "ok\n"
    assert host.run("sh", "-c", "echo x > /dev/shm/y", read_only_root=True).code == 0


def test_device_nodes_of_the_image_are_dead(host: Host) -> None:
    """Without CAP_MKNOD none can be made; one that lies in a layer cannot be opened (nodev)."""
    os.mknod(host.root / "zero", 0o20666, os.makedev(1, 5))
    assert "ermission denied" in host.run("head", "-c1", "/zero").err
    assert host.run("head", "-c1", "/dev/zero").out == "\0"
    (host.root / "bin/mknod").symlink_to("busybox")
    assert "not permitted" in host.run("mknod", "/dev/mem", "c", "1", "1").err


def test_poisoned_modules_do_not_run(host: Host) -> None:
    """The image offers every name that the child's interpreter could look for, below the interpreter's own paths."""
    import encodings
    import sys

    poison = "open('/poisoned', 'w').write(__name__)\nraise SystemExit(99)\n"
    folders = {
        Path(encodings.__file__).parent,
        Path(encodings.__file__).parent.parent,
        *map(Path, filter(None, sys.path)),
    }
    names = "encodings codecs big5 traceback linecache tokenize signal errno _struct os locale pwd grp utf_8 ascii idna"
    for folder in folders:
        for name in names.split():
            script(host.root, f"{str(folder).strip('/')}/{name}.py", poison)
    for name in names.split():
        script(host.root, f"{name}.py", poison)
    script(
        host.root, "etc/passwd", "j\udce4:x:5:5::/:/bin/sh\n".encode(errors="surrogateescape").decode("latin-1"), 0o644
    )
    for fields in ({}, {"env": {"PATH": "/bin", "LANG": "zh_TW.BIG5"}}, {"user": "5"}):
        run = host.run("sh", "-c", "test ! -e /poisoned", **fields)
        assert (run.code, run.err) == (0, "")
    assert host.refuse("missing-command").exit_code == 127
    assert host.refuse("/etc/passwd").exit_code == 126


@pytest.mark.parametrize("name", ["proc", "dev", "sys"])
def test_a_mount_point_that_is_a_link_is_refused(host: Host, name: str) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    (host.root / name).symlink_to("/etc")
    (host.root / "etc").mkdir()
    error = host.refuse("true")
    assert f"/{name}" in error.message
    assert "symbolic link" in error.message
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("target", ["{host}/victim", "../../../../../..{host}/victim"])
def test_a_managed_file_cannot_escape_through_a_link(host: Host, target: str) -> None:
    """The link points at a file of the host; inside the container there is no such file."""
    victim = host.folder / "victim"
    victim.write_text("untouched")
    (host.root / "etc").mkdir()
    (host.root / "etc/hosts").symlink_to(target.format(host=host.folder))
    assert host.run("cat", "/etc/hosts", files={"/etc/hosts": "mine\n"}).out == "mine\n"
    assert victim.read_text() == "untouched"


def test_a_managed_file_behind_a_magic_link_is_refused(host: Host) -> None:
    (host.root / "etc").mkdir()
    (host.root / "etc/hosts").symlink_to("/proc/self/root/etc/passwd")
    assert "/etc/hosts" in host.refuse("true", files={"/etc/hosts": "mine\n"}).message


def test_a_managed_file_through_a_linked_folder_stays_inside(host: Host) -> None:
    outside = host.folder / "outside"
    outside.mkdir()
    (host.root / "etc").symlink_to(outside)
    host.refuse("true", files={"/etc/new/hosts": "x"})
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/self/fd/7", "/proc/1/root", "/proc/self/cwd", "/link", "/proc/self/fd"])
def test_a_working_folder_outside_is_refused(host: Host, folder: str) -> None:
    (host.root / "link").symlink_to("/proc/self/fd/8")
    leak = os.open("/", os.O_RDONLY)
    try:
        if folder == "/proc/self/fd":  # a real folder, inside: allowed
            assert host.run("true", cwd=folder).code == 0
            return
        assert "working directory" in host.refuse("true", cwd=folder).message
    finally:
        os.close(leak)


def test_the_hosts_null_device_is_not_handed_in(host: Host) -> None:
    """A container's root may change the mode of what it has open: it must be its own."""
    null = host.folder / "null"  # stands for the host's /dev/null, which a failure would spoil for everyone
    os.mknod(null, 0o20666, os.makedev(1, 3))
    null.chmod(0o666)
    host.stdin = str(null)
    run = host.run("sh", "-c", "chmod 600 /proc/self/fd/0 /dev/null; cat; stat -c %a /dev/null")
    assert (run.code, run.out) == (0, "600\n")
    assert null.stat().st_mode & 0o777 == 0o666


def test_own_namespaces(host: Host) -> None:
    kinds = ("net", "ipc", "uts", "pid", "mnt", "cgroup")
    runs = [host.start("sh", "-c", "echo up; exec sleep 60") for _ in range(2)]
    for run in runs:
        run.pump("up")
    first, second = ([os.readlink(f"/proc/{run.pid}/ns/{kind}") for kind in kinds] for run in runs)
    assert not set(first) & {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    assert first[:3] == second[:3]  # the pod's, shared by its containers
    assert not set(first[3:]) & set(second[3:])


def test_no_traces_on_the_host(host: Host) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    run = host.start("sh", "-c", "echo up; exec sleep 60", files={"/etc/hosts": "x"})
    run.pump("up")
    assert Path("/proc/self/mountinfo").read_text() == before
    run.kill()
    run.wait()


def test_added_capabilities_and_all(host: Host) -> None:
    added = host.run("cat", "/proc/self/status", drop_capabilities=["ALL"], add_capabilities=["NET_ADMIN"])
    assert [int(status(added.out)[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [
        caps.mask(["NET_ADMIN"])
    ] * 3
    whole = status(host.run("cat", "/proc/self/status", add_capabilities=["ALL"]).out)
    assert int(whole["CapEff"], 16) == caps.possible()
    user = status(host.run("cat", "/proc/self/status", add_capabilities=["NET_ADMIN"], run_as_user=7).out)
    assert int(user["CapEff"], 16) == 0
    assert int(user["CapBnd"], 16) == caps.mask(caps.DEFAULT | {"NET_ADMIN"})
    assert "FLY" in host.refuse("true", add_capabilities=["FLY"]).message


def test_supplemental_groups_join_those_of_the_image(host: Host) -> None:
    script(host.root, "etc/passwd", "app:x:1000:1000::/:/bin/sh\n", 0o644)
    script(host.root, "etc/group", "app:x:1000:\nextra:x:2000:app\n", 0o644)
    main = host.start("sh", "-c", "id -G; exec sleep 60", user="app", supplemental_groups=[3000, 4000])
    main.pump("\n")
    assert main.out.split() == ["1000", "2000", "3000", "4000"]
    inside = host.exec(main, "id", "-G", user="app", supplemental_groups=[3000, 4000])
    inside.wait()
    assert inside.out == main.out
    main.kill()
    assert "group id" in host.refuse("true", supplemental_groups=[-1]).message


def test_unconfined(host: Host) -> None:
    assert status(host.run("cat", "/proc/self/status", seccomp="unconfined").out)["Seccomp"] == "0"
    assert host.probe(SYS["unshare"], syscalls.CLONE_NEWUSER, seccomp="unconfined") == 0


def test_privileged(host: Host) -> None:
    """All capabilities and devices, nothing hidden, nothing read-only, no filter; its namespaces stay its own."""
    (host.root / "bin/find").symlink_to("busybox")
    run = host.run("cat", "/proc/self/status", privileged=True)
    fields = status(run.out)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == caps.possible()
    assert fields["Seccomp"] == "0"
    seen = set(host.shell("find /dev -type b -o -type c", privileged=True).split())
    blocks = {str(path) for path in Path("/dev").iterdir() if path.is_block_device()}
    assert blocks <= seen
    assert {"/dev/null", "/dev/kmsg"} & {str(path) for path in Path("/dev").iterdir()} <= seen
    options = {
        line.split()[1]: line.split()[3].split(",")
        for line in host.shell("cat /proc/self/mounts", privileged=True).splitlines()
    }
    assert options["/sys"][0] == "rw"
    assert not {"/proc/sys", "/proc/kcore"} & set(options)
    assert all(flags[0] == "rw" for target, flags in options.items() if target.startswith("/sys/fs/cgroup"))
    host.shell("echo 1 > /proc/sys/net/ipv4/ip_forward", privileged=True)
    (host.root / "bin/mknod").symlink_to("busybox")
    assert host.run("sh", "-c", "mknod /z c 1 5 && head -c1 /z", privileged=True).out == "\0"
