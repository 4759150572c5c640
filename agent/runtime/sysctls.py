"""Which sysctls a pod may set: those that its own namespaces hold (sysctl(8), namespaces(7)). Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

FORBIDDEN = "SysctlForbidden"
MAX_VALUE = 4096  # characters
NAME = re.compile(r"[a-z0-9_-]+([./][A-Za-z0-9_-]+)+\Z")
# Name or prefix -> the namespace that holds it.
NAMESPACED = {
    "net.": "net",
    "kernel.shm": "ipc",
    "kernel.msg": "ipc",
    "kernel.sem": "ipc",
    "fs.mqueue.": "ipc",
    "kernel.domainname": "uts",
}
HOST = {"net": "hostNetwork", "ipc": "hostIPC", "uts": "hostNetwork"}


class SysctlError(Exception):
    """A sysctl that a pod cannot have; the message names it and says why."""


def checked(wanted: Mapping[str, str], shared: Collection[str]) -> dict[str, str]:
    """Path below /proc/sys -> value. `shared` are the kinds of namespaces that are the node's. Raises SysctlError."""
    return {_path(name, str(value), shared): str(value) for name, value in wanted.items()}


def _path(name: str, value: str, shared: Collection[str]) -> str:
    if not NAME.match(name):
        raise SysctlError(f"sysctl {name!r} is not written like net.core.somaxconn")
    dotted = name.replace("/", ".") if "." not in name.split("/")[0] else name
    kind = next((kind for prefix, kind in NAMESPACED.items() if _matches(dotted, prefix)), None)
    if kind is None:
        known = "net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, kernel.domainname"
        raise SysctlError(f"sysctl {name} belongs to the whole node; a pod may set {known}")
    if kind in shared:
        raise SysctlError(f"sysctl {name} would be the node's own, since the pod has {HOST[kind]}")
    if len(value) > MAX_VALUE or "\0" in value:
        raise SysctlError(f"the value of sysctl {name} is too long or has a NUL byte")
    return name if dotted != name else dotted_path(name)


def _matches(name: str, prefix: str) -> bool:
    whole = prefix in ("kernel.sem", "kernel.domainname")
    return name == prefix if whole else name.startswith(prefix)


def dotted_path(name: str) -> str:
    """net.ipv4.conf.eth0/1.rp_filter as net/ipv4/conf/eth0.1/rp_filter (sysctl(8))."""
    return name.translate(str.maketrans("./", "/."))


def write(path: str, value: str) -> None:
    """Sets one, in the caller's namespaces. Raises SysctlError."""
    try:
        fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise SysctlError(f"sysctl {path} does not exist in a pod's namespaces on this kernel") from None
    except OSError as fault:
        raise SysctlError(f"sysctl {path} cannot be set to {value!r}: {fault.strerror}") from fault
