"""A pod's mounts: in place before the process, with what was asked of them, and no way out of volume or root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.runtime import syscalls
from tests.node.launching import Host, needs_root

RENAME_EXCHANGE = 2
pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


@pytest.fixture
def volume(host: Host) -> Path:
    folder = host.folder / "volume"
    folder.mkdir()
    (folder / "file").write_text("content\n")
    return folder


def mount(source: Path | str, target: str, **more: object) -> dict[str, Any]:
    return {"source": str(source), "target": target, **more}


def options(run_output: str, target: str) -> set[str]:
    """The options of a mount, from the text of /proc/self/mounts."""
    return next(set(line.split()[3].split(",")) for line in run_output.splitlines() if line.split()[1] == target)


def test_a_volume_is_there_and_keeps_what_is_written(host: Host, volume: Path) -> None:
    out = host.shell("cat /data/deep/file; echo new > /data/deep/out", mounts=[mount(volume, "/data/deep")])
    assert out == "content\n"
    assert (volume / "out").read_text() == "new\n"


@pytest.mark.parametrize("read_only_root", [False, True])
def test_the_mount_point_is_made_also_below_a_read_only_root(host: Host, volume: Path, read_only_root: bool) -> None:
    mounts = [mount(volume, "/a/b"), mount(volume / "file", "/a/single", read_only=True)]
    out = host.shell("cat /a/b/file /a/single", mounts=mounts, read_only_root=read_only_root)
    assert out == "content\ncontent\n"
    assert ("ead-only" in host.run("touch", "/a/x", mounts=mounts, read_only_root=read_only_root).err) == read_only_root


def test_read_only_goes_all_the_way_down(host: Host, volume: Path) -> None:
    inner = volume / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(inner)], check=True)
    try:
        run = host.run("sh", "-c", "touch /v/x; touch /v/inner/x", mounts=[mount(volume, "/v", read_only=True)])
        assert run.err.count("ead-only") == 2
        host.shell("touch /v/inner/x", mounts=[mount(volume, "/v")])
        assert (inner / "x").exists()
    finally:
        subprocess.run(["umount", str(inner)], check=True)


def test_devices_in_a_volume_are_dead(host: Host, volume: Path) -> None:
    os.mknod(volume / "zero", 0o20666, os.makedev(1, 5))
    run = host.run("sh", "-c", "cat /proc/self/mounts; head -c1 /v/zero", mounts=[mount(volume, "/v")])
    assert "nodev" in options(run.out, "/v")
    assert "ermission denied" in run.err
    assert host.run("head", "-c1", "/v/zero", mounts=[mount(volume, "/v")], privileged=True).out == "\0"


def test_order_and_nesting(host: Host, volume: Path) -> None:
    other = host.folder / "other"
    other.mkdir()
    (other / "mark").write_text("other\n")
    out = host.shell("cat /v/file /v/sub/mark", mounts=[mount(volume, "/v"), mount(other, "/v/sub")])
    assert out == "content\nother\n"


def test_the_users_own_hosts_file_wins_and_others_stay_managed(host: Host, volume: Path) -> None:
    fields = {"files": {"/etc/hosts": "managed\n", "/etc/resolv.conf": "resolver\n"}}
    assert host.shell("cat /etc/hosts /etc/resolv.conf", mounts=[mount(volume / "file", "/etc/hosts")], **fields) == (
        "content\nresolver\n"
    )
    assert host.shell("cat /etc/hosts /etc/file", mounts=[mount(volume, "/etc")], **fields) == "managed\ncontent\n"


def test_a_read_only_volume_over_etc_stays_without_managed_files(host: Host, volume: Path) -> None:
    out = host.shell("ls /etc", mounts=[mount(volume, "/etc", read_only=True)], files={"/etc/hosts": "managed\n"})
    assert out == "file\n"


def test_dev_shm_may_be_a_volume(host: Host, volume: Path) -> None:
    assert host.shell("cat /dev/shm/file", mounts=[mount(volume, "/dev/shm")]) == "content\n"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"target": "/proc"}, "/proc"),
        ({"target": "/proc/sys"}, "/proc/sys"),
        ({"target": "/x/../proc/1"}, "/proc/1"),
        ({"target": "/"}, "choose another"),
        ({"target": "relative"}, "absolute"),
        ({"sub_path": "../up"}, "'..'"),
        ({"sub_path": "/abs"}, "relative"),
        ({"propagation": "Sometimes"}, "Sometimes"),
        ({"propagation": "Bidirectional"}, "privileged"),
    ],
)
def test_what_cannot_be_mounted(host: Host, volume: Path, entry: dict[str, str], words: str) -> None:
    error = host.refuse("true", mounts=[mount(volume, "/v") | entry])
    assert error.reason == "CreateContainerConfigError"
    assert words in error.message


def test_one_place_is_mounted_once(host: Host, volume: Path) -> None:
    assert "twice" in host.refuse("true", mounts=[mount(volume, "/v"), mount(volume, "/v/")]).message


def test_a_link_in_the_image_leads_neither_to_the_host_nor_into_proc(host: Host, volume: Path) -> None:
    victim = host.folder / "victim"
    victim.mkdir()
    (host.root / "out").symlink_to(victim)
    (host.root / "up").symlink_to("../../../../../../.." + str(victim))
    (host.root / "kernel").symlink_to("/proc/sys")
    (host.root / "magic").symlink_to("/proc/self/root")
    (host.root / "inside").mkdir()
    (host.root / "fine").symlink_to("/../inside")
    host.shell("cat /inside/deep/file", mounts=[mount(volume, "/fine/deep")])
    for target in ("/out", "/up", "/out/deeper", "/kernel", "/kernel/net", "/magic", "/magic/etc"):
        assert target in host.refuse("true", mounts=[mount(volume, target)]).message
    assert list(victim.iterdir()) == []


def test_a_source_that_is_gone_or_a_link(host: Host, volume: Path) -> None:
    assert f"{volume}/none" in host.refuse("true", mounts=[mount(volume / "none", "/v")]).message
    (volume / "link").symlink_to("/")
    assert "symbolic link" in host.refuse("true", mounts=[mount(volume / "link", "/v")]).message


# ---- sub paths ----
def test_a_sub_path_is_made_and_used(host: Host, volume: Path) -> None:
    volume.chmod(0o2770)
    host.shell("echo x > /v/made", mounts=[mount(volume, "/v", sub_path="logs/today")])
    assert (volume / "logs/today/made").read_text() == "x\n"
    assert (volume / "logs/today").stat().st_mode & 0o777 == 0o770
    assert host.shell("cat /f", mounts=[mount(volume, "/f", sub_path="file")]) == "content\n"


@pytest.mark.parametrize("link", ["/", "..", "../..", "/etc", "{folder}", "../victim", "/proc/self/root", "victim/.."])
def test_a_sub_path_cannot_leave_its_volume(host: Host, volume: Path, link: str) -> None:
    victim = host.folder / "victim"
    victim.mkdir()
    (victim / "secret").write_text("secret")
    (volume / "way").symlink_to(link.format(folder=host.folder))
    for sub_path in ("way", "way/victim", "way/made"):
        try:
            out = host.run("sh", "-c", "ls -a /v; ls /v/victim /v/etc", mounts=[mount(volume, "/v", sub_path=sub_path)])
        except AssertionError:
            raise
        except Exception as error:
            assert "subPath" in str(error)
            continue
        assert "secret" not in out.out
        assert "passwd" not in out.out
    assert sorted(victim.iterdir()) == [victim / "secret"]


def test_a_magic_link_as_sub_path_is_refused(host: Host) -> None:
    """The volume is the node's own /proc, as a hostPath may be: its links lead anywhere."""
    error = host.refuse("true", mounts=[mount("/proc", "/v", sub_path=f"{os.getpid()}/root")])
    assert "subPath" in error.message


# Without a pause renames alone can keep a busy machine's look-ups from ending
SWAP = f"""
import ctypes, os, sys, time
exchange = ctypes.CDLL(None).renameat2
sub, link = (os.fsencode(os.path.join(sys.argv[1], name)) for name in ("sub", "link"))
print("swapping", flush=True)
while True:
    exchange(-100, sub, -100, link, {RENAME_EXCHANGE})
    time.sleep(0.0001)
"""


def test_a_sub_path_that_is_swapped_meanwhile(host: Host, volume: Path) -> None:
    """Another container turns the folder into a link to the host's root and back, all the time."""
    (volume / "real").mkdir()
    (volume / "link").symlink_to("/")
    (volume / "sub").mkdir()
    # A process, not a thread: a launch is a fork, and what a thread holds then stays locked in the child for ever
    with subprocess.Popen([sys.executable, "-S", "-c", SWAP, volume], stdout=subprocess.PIPE) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"swapping\n"
            look_25_times(host, volume)
        finally:
            swapper.kill()


def look_25_times(host: Host, volume: Path) -> None:
    for _ in range(25):
        try:
            run = host.run("ls", "/v", mounts=[mount(volume, "/v", sub_path="sub")])
        except Exception as error:
            assert "subPath" in str(error)
        else:
            assert "proc" not in run.out.split()
            assert "root" not in run.out.split()


# ---- propagation ----
@pytest.mark.parametrize(("propagation", "seen"), [("None", False), ("HostToContainer", True), ("Bidirectional", True)])
def test_mounts_of_the_node_show_when_asked_for(host: Host, propagation: str, seen: bool) -> None:
    shared = host.folder / "shared"
    shared.mkdir()
    syscalls.mount(b"none", os.fsencode(shared), b"tmpfs", 0)
    try:
        syscalls.mount(None, os.fsencode(shared), None, syscalls.MS_SHARED)
        (shared / "later").mkdir()
        entry = mount(shared, "/v", propagation=propagation)
        script = "echo up; while ! test -e /v/go; do sleep 0.05; done; ls /v/later"
        run = host.start("sh", "-c", script, mounts=[entry], privileged=propagation == "Bidirectional")
        run.pump("up")
        syscalls.mount(b"none", os.fsencode(shared / "later"), b"tmpfs", 0)
        (shared / "later/inside").touch()
        (shared / "go").touch()
        run.wait()
        assert ("inside" in run.out) == seen
        if propagation == "Bidirectional":
            (host.root / "bin/umount").symlink_to("busybox")
            host.shell("umount /v/later", mounts=[entry], privileged=True)
            assert not os.path.ismount(shared / "later")
    finally:
        subprocess.run(["umount", "-R", str(shared)], check=True)


def test_nothing_that_is_not_shared_is_bidirectional(host: Host, volume: Path) -> None:
    subprocess.run(["mount", "--bind", "--make-private", str(volume), str(volume)], check=True)
    try:
        error = host.refuse("true", mounts=[mount(volume, "/v", propagation="Bidirectional")], privileged=True)
        assert "shared" in error.message
    finally:
        subprocess.run(["umount", str(volume)], check=True)


# ---- the termination file ----
@pytest.mark.parametrize("fields", [{}, {"run_as_user": 1000}, {"read_only_root": True, "run_as_user": 1000}])
@pytest.mark.parametrize("path", ["/dev/termination-log", "/some/where/message"])
def test_everyone_may_write_the_termination_file(host: Host, path: str, fields: dict[str, Any]) -> None:
    host.shell(f"echo reason > {path}", termination_path=path, **fields)
    assert Path(host.work, "termination").read_text() == "reason\n"
