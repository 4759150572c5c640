"""Capabilities by name (capabilities(7)) and the sets a container gets. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.agent.runtime import syscalls

# fmt: off
NAMES = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
]
# fmt: on
NUMBERS = {name: number for number, name in enumerate(NAMES)}
LAST_POSSIBLE = 63

# What containers are used to, without NET_RAW (forged packets) and MKNOD (device nodes).
# fmt: off
DEFAULT = frozenset([
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "AUDIT_WRITE", "SETFCAP",
])
# fmt: on


class UnknownCapability(ValueError):
    """A name that is no capability (the message names the nearest way to write it), or one that cannot be given."""


def number(name: str) -> int:
    """The number of `NET_RAW`, `CAP_NET_RAW` or `net_raw`. Raises UnknownCapability."""
    short = name.upper().removeprefix("CAP_")
    if short not in NUMBERS:
        raise UnknownCapability(f"{name!r} is no Linux capability; write it like NET_BIND_SERVICE, or ALL")
    return NUMBERS[short]


def mask(names: Iterable[str]) -> int:
    """The bit mask of a set of names."""
    return sum({1 << number(name) for name in names})


def names(bits: int) -> list[str]:
    """The names of a bit mask."""
    return [name for name, position in NUMBERS.items() if bits >> position & 1]


def chosen(add: Iterable[str], drop: Iterable[str], own: int) -> int:
    """The bit mask of the default set with `add` and without `drop`, single names after ALL (containerd's order).
    `own`: what this node can give; ALL is that. Raises UnknownCapability."""
    added, dropped = [name.upper() for name in add], [name.upper() for name in drop]
    kept = own if "ALL" in added else mask(DEFAULT)
    if "ALL" in dropped:
        kept = 0
    wanted = mask(name for name in added if name != "ALL")
    if wanted & ~own:
        lacking = ", ".join(names(wanted & ~own))
        raise UnknownCapability(f"this node lacks {lacking} itself and cannot give it")
    return (kept | wanted) & own & ~mask(name for name in dropped if name != "ALL")


def possible() -> int:
    """What the calling process may give: its permitted and bounding sets (proc(5))."""
    found = -1
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("CapPrm:", "CapBnd:")):
                found &= int(line.split()[1], 16)
    return found


def bound(keep: int) -> None:
    """Drops all but `keep` from the bounding set, and all of the ambient one. Needs CAP_SETPCAP."""
    for capability in range(LAST_POSSIBLE + 1):
        if not keep >> capability & 1:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            except OSError:
                if capability <= NUMBERS["AUDIT_READ"]:
                    raise
                break  # beyond the kernel's last capability
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
