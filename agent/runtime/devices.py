"""Which devices a container may open: one list, as v1's devices.allow lines and as a BPF program for v2.

Kernel documentation: admin-guide/cgroup-v1/devices, admin-guide/cgroup-v2 "Device controller", bpf(2). Standard
library only.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from shoal.agent.runtime import syscalls

ANY = -1
# (major, minor) of the character devices; making any node is allowed, since making one gives no access to it.
ALLOWED = (
    (1, 3),  # null
    (1, 5),  # zero
    (1, 7),  # full
    (1, 8),  # random
    (1, 9),  # urandom
    (5, 0),  # tty
    (5, 2),  # ptmx
    (136, ANY),  # pts
)

# struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor; all of 32 bits.
_ACCESS_TYPE, _MAJOR, _MINOR = 0, 4, 8
_ACCESS_MKNOD = 1
_TYPE_CHARACTER = 2
_LOAD_WORD, _SHIFT_RIGHT, _AND, _SET, _JUMP_NOT, _EXIT = 0x61, 0x77, 0x57, 0xB7, 0x55, 0x95
_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_ALLOW_MULTI = 2
_ATTRIBUTE_BYTES = 128  # the kernel takes a larger, zero-filled attribute


# Of a node's /dev: mounts and links of its own, and what a container has already.
NOT_GIVEN = frozenset({"pts", "shm", "mqueue", "hugepages", "fd", "console", "char", "block", "ptmx"})
MAX_DEVICES = 4096


def of_node(root: str = "/dev") -> list[tuple[str, int, int]]:
    """What a privileged container gets: (path below /dev, mode, device number), folders before what lies in them."""
    found: list[tuple[str, int, int]] = []
    waiting = [""]
    while waiting and len(found) < MAX_DEVICES:
        folder = waiting.pop()
        for name in sorted(os.listdir(f"{root}/{folder}")):
            path = f"{folder}/{name}".lstrip("/")
            status = os.lstat(f"{root}/{path}")
            if path in NOT_GIVEN or (os.path.ismount(f"{root}/{path}") and stat.S_ISDIR(status.st_mode)):
                continue
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            elif not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                continue
            found.append((path, status.st_mode, status.st_rdev))
    return found


def v1_rules() -> list[str]:
    """The list as lines for devices.allow."""
    rules = [f"c {major}:{'*' if minor == ANY else minor} rwm" for major, minor in ALLOWED]
    return ["c *:* m", "b *:* m", *rules]


def program() -> bytes:
    """The list as struct bpf_insn: 1 allows, 0 refuses. r1 is the context."""
    allow = [_instruction(_SET, 0, imm=1), _instruction(_EXIT)]
    checks: list[bytes] = []
    for major, minor in ALLOWED:
        skip = len(allow) + (0 if minor == ANY else 1)
        checks.append(_instruction(_JUMP_NOT, 4, off=skip, imm=major))
        if minor != ANY:
            checks.append(_instruction(_JUMP_NOT, 5, off=len(allow), imm=minor))
        checks += allow
    refuse = [_instruction(_SET, 0, imm=0), _instruction(_EXIT)]
    head = [
        _instruction(_LOAD_WORD, 2, 1, _ACCESS_TYPE),
        _instruction(_LOAD_WORD, 4, 1, _MAJOR),
        _instruction(_LOAD_WORD, 5, 1, _MINOR),
        _instruction(_LOAD_WORD, 3, 1, _ACCESS_TYPE),
        _instruction(_SHIFT_RIGHT, 3, imm=16),
        _instruction(_AND, 2, imm=0xFFFF),
        _instruction(_JUMP_NOT, 3, off=len(allow), imm=_ACCESS_MKNOD),
        *allow,
        _instruction(_JUMP_NOT, 2, off=len(checks), imm=_TYPE_CHARACTER),
    ]
    return b"".join(head + checks + refuse)


def attach(folder: str) -> None:
    """Restricts the v2 cgroup at `folder`; the program goes with the cgroup. Raises OSError."""
    loaded = _load(program())
    try:
        target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attribute = struct.pack("=IIII", target, loaded, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI)
            syscalls.bpf(_PROG_ATTACH, attribute.ljust(_ATTRIBUTE_BYTES, b"\0"))
        finally:
            os.close(target)
    finally:
        os.close(loaded)


def _load(code: bytes) -> int:
    """A descriptor of the verified program."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    addresses = (ctypes.addressof(instructions), ctypes.addressof(license_text))
    attribute = struct.pack("=IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(code) // 8, *addresses)
    return syscalls.bpf(_PROG_LOAD, attribute.ljust(_ATTRIBUTE_BYTES, b"\0"))


def _instruction(code: int, destination: int = 0, source: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, off, imm)
