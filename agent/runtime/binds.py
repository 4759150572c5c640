"""The mounts that a pod asks for: sources opened on the node, put into the container by descriptor.

A source is cloned before the tree is cut off from the node's (its propagation would be lost), and attached when the
container's own file systems are there. What lies below a source belongs to containers, which may change it meanwhile:
it is resolved inside the source by openat2(2). Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from shoal.agent.runtime import mounts, syscalls
from shoal.agent.runtime.syscalls import AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROPAGATION = {"None": syscalls.MS_PRIVATE, "HostToContainer": syscalls.MS_SLAVE, "Bidirectional": 0}
MAX_MOUNTS = 1024
# What the container's own file systems are: a mount over them would undo the masks.
REFUSED = ("/", "/proc")


class BadMount(Exception):
    """A mount that cannot be made; the message says which and why."""


class Bind:
    """One mount, checked: absolute clean target, relative sub_path without dots."""

    __slots__ = ("devices", "propagation", "read_only", "source", "sub_path", "target")

    def __init__(self, mount: Mapping[str, Any], *, privileged: bool) -> None:
        self.source, self.target = str(mount["source"]), _clean(str(mount["target"]))
        self.sub_path = str(mount.get("sub_path") or "")
        self.read_only = bool(mount.get("read_only"))
        self.propagation = str(mount.get("propagation") or "None")
        self.devices = privileged
        self._check(privileged)

    def attributes(self) -> int:
        """MOUNT_ATTR_*, for the mount and all below it."""
        read_only = syscalls.MOUNT_ATTR_RDONLY if self.read_only else 0
        return read_only | (0 if self.devices else syscalls.MOUNT_ATTR_NODEV)

    def _check(self, privileged: bool) -> None:
        if self.target in REFUSED or self.target.startswith("/proc/"):
            raise BadMount(f"nothing may be mounted on {self.target}; choose another mountPath")
        if not os.path.isabs(self.source) or "\0" in self.source:
            raise BadMount(f"the source {self.source!r} of {self.target} is no absolute path")
        if self.sub_path.startswith("/") or "\0" in self.sub_path or ".." in self.sub_path.split("/"):
            raise BadMount(f"subPath {self.sub_path!r} of {self.target} must be relative and without '..'")
        if self.propagation not in PROPAGATION:
            raise BadMount(f"mountPropagation {self.propagation!r} of {self.target}: use {', '.join(PROPAGATION)}")
        if self.propagation == "Bidirectional" and not privileged:
            raise BadMount(f"mountPropagation Bidirectional of {self.target} needs a privileged container")


def _clean(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise BadMount(f"the mount path {path!r} must be absolute")
    return "/" + os.path.normpath(path).lstrip("/")


def checked(entries: Sequence[Mapping[str, Any]], *, privileged: bool) -> list[Bind]:
    """The mounts of a spec, in order. Raises BadMount."""
    if len(entries) > MAX_MOUNTS:
        raise BadMount(f"{len(entries)} mounts are too many; at most {MAX_MOUNTS}")
    found = [Bind(entry, privileged=privileged) for entry in entries]
    targets = [bind.target for bind in found]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise BadMount(f"{twice} is mounted twice; each mountPath once")
    return found


class OpenSource(mounts.Step):
    """Clones what is to be mounted, with all that is mounted below it, while the node's tree is still whole."""

    def __init__(self, bind: Bind) -> None:
        self.bind = bind

    def describe(self) -> str:
        below = f" (subPath {self.bind.sub_path})" if self.bind.sub_path else ""
        shared = "; Bidirectional needs a shared mount there" if self.bind.propagation == "Bidirectional" else ""
        return f"mount {self.bind.source}{below} on {self.bind.target} (a symbolic link is refused{shared})"

    def run(self, context: mounts.Context) -> None:
        bind = self.bind
        whole = os.open(os.fsencode(bind.source), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        part = -1
        try:
            if stat.S_ISLNK(os.fstat(whole).st_mode):
                raise OSError(errno.ELOOP, "the source is a symbolic link")
            if bind.propagation == "Bidirectional" and not _is_shared(whole):
                raise OSError(errno.EINVAL, "not a shared mount")
            if bind.sub_path:
                part = _below(whole, os.fsencode(bind.sub_path.strip("/")))
            flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE
            clone = syscalls.open_tree(whole if part < 0 else part, b"", flags)
        finally:
            os.close(whole)
            if part >= 0:
                os.close(part)
        syscalls.mount_setattr(clone, bind.attributes(), recursive=True, propagation=PROPAGATION[bind.propagation])
        context.sources[bind.target] = clone


def _below(source: int, path: bytes) -> int:
    """A descriptor of `path` inside the source, made (folders, in the source's own mode) where missing. Links are
    followed inside the source only."""
    try:
        return syscalls.openat2(source, path, os.O_PATH, mounts.IN_ROOT)
    except FileNotFoundError:
        return mounts.make_folder(source, path, mounts.IN_ROOT, os.fstat(source).st_mode & 0o777)


def _is_shared(fd: int) -> bool:
    """Whether the mount of a descriptor passes mounts on (mountinfo's "shared:")."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        own = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo") as file:
        return any(line.split()[0] == own and " shared:" in line.partition(" - ")[0] for line in file)


class Attach(mounts.Step):
    """Puts an opened source onto its target, which is resolved inside the container's root and made where missing."""

    def __init__(self, bind: Bind) -> None:
        self.bind = bind

    def describe(self) -> str:
        return f"mount {self.bind.source} on {self.bind.target}"

    def run(self, context: mounts.Context) -> None:
        clone = context.sources.pop(self.bind.target)
        path = os.fsencode(self.bind.target.strip("/"))
        if stat.S_ISDIR(os.fstat(clone).st_mode):
            target = mounts.make_folder(context.root, path, mounts.IN_ROOT)
        else:
            target = mounts.make_file(context.root, path)
        try:
            if syscalls.filesystem_type(target) == syscalls.PROC_SUPER_MAGIC:
                raise OSError(errno.EPERM, "inside /proc")
            syscalls.move_mount(clone, target)
        finally:
            os.close(target)
            os.close(clone)
