"""The default profile's list and its cache."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shoal.agent.runtime import seccomp

NEVER = """
    mount umount2 pivot_root unshare setns open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr bpf keyctl
    add_key request_key perf_event_open userfaultfd init_module finit_module delete_module kexec_load kexec_file_load
    reboot swapon swapoff acct quotactl settimeofday clock_settime stime syslog open_by_handle_at name_to_handle_at
    io_uring_setup io_uring_enter io_uring_register iopl ioperm lookup_dcookie move_pages migrate_pages set_mempolicy
    mbind nfsservctl vhangup kcmp modify_ldt uselib ustat sysfs _sysctl fanotify_init sethostname setdomainname
    clone clone3 socket personality"""


def test_list_holds_each_call_once_and_none_of_the_refused() -> None:
    names = list(seccomp.allowed())
    assert len(names) == len(set(names))
    assert not set(names) & set(NEVER.split())
    assert {"read", "execve", "futex", "rt_sigreturn", "exit_group"} <= set(names)


def test_unknown_names_are_only_those_of_newer_kernels() -> None:
    """A misspelt name would silently stay refused."""
    newer = {
        "cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "getxattrat", "listxattrat",
        "map_shadow_stack", "mseal", "removexattrat", "setxattrat",
    }  # fmt: skip
    other_machines = {"arch_prctl", "get_thread_area", "set_thread_area"}
    unknown = {name for name in seccomp.allowed() if seccomp._resolve(name) == -1}
    assert unknown <= newer | other_machines


def test_compiles_to_whole_instructions() -> None:
    program = seccomp.compile_profile()
    assert program == seccomp.compile_profile()
    assert len(program) % 8 == 0
    assert 50 < len(program) // 8 < 4096  # the kernel's limit
    returns = {struct.unpack_from("=HBBI", program, at)[3] for at in range(0, len(program), 8) if program[at] == 0x06}
    assert returns == {0x7FFF0000, 0x00050001, 0x00050026}  # allow, EPERM, ENOSYS


def test_cache_is_filled_used_and_repaired(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    program = seccomp.cached_profile(folder)
    [file] = folder.iterdir()
    assert file.read_bytes()[:-32] == program
    stamp = file.stat().st_mtime_ns
    assert seccomp.cached_profile(folder) == program
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(program[:-8])
    assert seccomp.cached_profile(folder) == program
    assert file.read_bytes()[:-32] == program


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(seccomp.ProfileError, match="seccomp profile"):
        seccomp.cached_profile(tmp_path / "file")
